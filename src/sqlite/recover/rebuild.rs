//! Making a new database of the rows that were saved.
//!
//! In: the schema and the rows. Out: a whole database file, on the disk.
//! Not here: where the rows come from, and what is missing.

use std::fs::File;
use std::path::Path;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, params_from_iter};

use super::pages::{Pages, big};
use super::shape::Shape;
use super::tree::{self, Row, Salvage};
use super::{Known, RecoverError};

/// What a database is made of besides its rows.
#[derive(Debug, Default)]
pub(super) struct Schema {
    /// Each statement, tables first, with the root page of a table where it is known.
    pub(super) tables: Vec<(String, String, Option<u32>)>,
    /// Indexes, then views and triggers.
    pub(super) others: Vec<String>,
    pub(super) application_id: i64,
    pub(super) user_version: i64,
    /// Whether all of it was read from the file.
    pub(super) whole: bool,
}

/// Reads the schema of the file; what the file does not say is taken from what is known of it.
pub(super) fn read_schema(pages: &Pages, known: &Known<'_>) -> Schema {
    let (rows, whole) = tree::rows_of(pages, &Shape::of_schema());
    let mut schema = Schema {
        application_id: known.application_id,
        user_version: known.user_version,
        whole,
        ..Schema::default()
    };
    let mut names = Vec::new();
    for (_, values) in rows {
        let [Value::Text(kind), Value::Text(name), _, Value::Integer(root), Value::Text(sql)] =
            values.as_slice()
        else {
            continue;
        };
        if name.starts_with("sqlite_") {
            continue;
        }
        names.push(name.clone());
        if kind == "table" {
            let root = u32::try_from(*root).ok().filter(|root| *root > 0);
            schema.tables.push((name.clone(), sql.clone(), root));
        } else {
            schema.others.push(sql.clone());
        }
    }
    for (name, sql) in known.schema {
        if !names.iter().any(|have| have == name) {
            schema.whole = false;
            if sql.starts_with("CREATE TABLE") {
                schema.tables.push(((*name).to_owned(), (*sql).to_owned(), None));
            } else {
                schema.others.push((*sql).to_owned());
            }
        }
    }
    if known.schema.is_empty()
        && let Some(page) = pages.read(1)
        && page.starts_with(b"SQLite format 3\0")
    {
        schema.user_version = page.get(60..64).map_or(0, big).into();
        schema.application_id = page.get(68..72).map_or(0, big).into();
    }
    schema
}

/// The shapes of the tables that can be made.
pub(super) fn shapes(schema: &mut Schema) -> rusqlite::Result<Vec<Shape>> {
    let scratch = Connection::open_in_memory()?;
    // What cannot be made cannot be asked about either: its statement is damaged.
    schema.tables.retain(|(_, sql, _)| scratch.execute_batch(sql).is_ok());
    schema.others.sort_by_key(|sql| !sql.contains("INDEX"));
    schema.others.retain(|sql| scratch.execute_batch(sql).is_ok());
    let tables = schema.tables.iter();
    tables.map(|(name, _, root)| Shape::ask(&scratch, name, *root)).collect()
}

/// Makes the database at `path`, which must not be there, and puts the rows in.
pub(super) fn make(path: &Path, schema: &Schema) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    // Nobody else sees the file before it is whole, and it is synced at the end.
    conn.execute_batch(
        "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF; BEGIN",
    )?;
    for (_, sql, _) in &schema.tables {
        conn.execute_batch(sql)?;
    }
    for sql in &schema.others {
        conn.execute_batch(sql)?;
    }
    conn.pragma_update(None, "application_id", schema.application_id)?;
    conn.pragma_update(None, "user_version", schema.user_version)?;
    Ok(conn)
}

/// Puts the rows in. One that the table refuses, as a number that is there already, is left out.
pub(super) fn fill(conn: &Connection, shapes: &[Shape], salvage: Salvage) -> rusqlite::Result<()> {
    for mut rows_of in [salvage.rows, salvage.doubtful] {
        for (index, shape) in shapes.iter().enumerate() {
            let mut rows = rows_of.remove(&index).unwrap_or_default();
            rows.sort_by_key(|(rowid, _)| *rowid);
            for row in rows {
                insert(conn, shape, row)?;
            }
        }
    }
    Ok(())
}

fn insert(conn: &Connection, shape: &Shape, (rowid, values): Row) -> rusqlite::Result<()> {
    let columns = &shape.columns[..values.len().min(shape.columns.len())];
    let names: Vec<String> =
        columns.iter().map(|column| format!("\"{}\"", column.name.replace('"', "\"\""))).collect();
    let sql = format!(
        "INSERT OR IGNORE INTO \"{}\" ({}) VALUES ({})",
        shape.table.replace('"', "\"\""),
        names.join(", "),
        vec!["?"; names.len()].join(", ")
    );
    let values = columns
        .iter()
        .zip(values)
        .map(|(column, value)| if column.is_rowid { Value::Integer(rowid) } else { value });
    match conn.prepare_cached(&sql)?.execute(params_from_iter(values)) {
        Err(error) if !is_refusal(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Whether the row itself is at fault: a type or a check that it breaks.
fn is_refusal(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{ConstraintViolation, TooBig, TypeMismatch};
    matches!(error.sqlite_error_code(), Some(ConstraintViolation | TooBig | TypeMismatch))
}

/// Ends the making: the file is whole and on the disk, in WAL mode, without a log beside it.
pub(super) fn finish(conn: Connection, path: &Path) -> Result<(), RecoverError> {
    conn.execute_batch("COMMIT; PRAGMA journal_mode = DELETE; PRAGMA journal_mode = WAL")?;
    conn.close().map_err(|(_, error)| error)?;
    File::open(path)?.sync_all()?;
    Ok(())
}
