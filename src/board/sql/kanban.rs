//! Reading the board of another application, whatever columns its version has.

use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Map, Value};

/// A row: its columns by name.
pub(in crate::board) type Row = Map<String, Value>;

/// Opens the board for reading alone.
pub(in crate::board) fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(std::time::Duration::from_secs(5))?;
    // All tables are read as of one moment.
    conn.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema")?;
    Ok(conn)
}

/// The complaints of a structural check; none: it is sound.
pub(in crate::board) fn complaints(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut lines: Vec<String> = conn
        .prepare("PRAGMA integrity_check(10)")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    lines.retain(|line| line != "ok");
    Ok(lines)
}

/// All rows of one of its tables in the order of `order`; `None`: it has no such table.
pub(in crate::board) fn rows(
    conn: &Connection,
    table: &'static str,
    order: &'static str,
) -> rusqlite::Result<Option<Vec<Row>>> {
    let there = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1)";
    if !conn.query_row(there, [table], |row| row.get::<_, bool>(0))? {
        return Ok(None);
    }
    let mut statement = conn.prepare(&format!("SELECT * FROM {table} ORDER BY {order}"))?;
    let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let rows = statement.query_map([], |row| {
        names
            .iter()
            .enumerate()
            .map(|(index, name)| Ok((name.clone(), value_of(row.get_ref(index)?))))
            .collect()
    })?;
    rows.collect::<rusqlite::Result<_>>().map(Some)
}

fn value_of(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => number.into(),
        ValueRef::Text(text) | ValueRef::Blob(text) => {
            String::from_utf8_lossy(text).into_owned().into()
        }
    }
}
