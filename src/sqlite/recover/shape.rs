//! What the rows of a table look like on their pages.
//!
//! SQLite itself is asked, about an empty table made by the same statement. In: the schema's
//! statements. Out: a [`Shape`] for each table.

use rusqlite::types::{Type, Value};
use rusqlite::{Connection, OptionalExtension};

use super::record::Kind;

/// How a table is stored.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) table: String,
    /// The page that its tree begins on, if that is known.
    pub(super) root: Option<u32>,
    /// Whether its rows have numbers; else they lie in the tree of their primary key.
    has_rowid: bool,
    /// The columns in the order in which a record has them.
    pub(super) columns: Vec<Column>,
}

#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) name: String,
    /// The only type that it may have beside null, in a strict table.
    only: Option<Type>,
    not_null: bool,
    /// Whether it is another name for the row's number, which the record then does not hold.
    pub(super) is_rowid: bool,
}

impl Shape {
    /// Of the table that holds the schema itself.
    pub(super) fn of_schema() -> Self {
        let column = |name: &str, only, not_null| Column {
            name: name.to_owned(),
            only: Some(only),
            not_null,
            is_rowid: false,
        };
        Self {
            table: "sqlite_schema".to_owned(),
            root: Some(1),
            has_rowid: true,
            columns: vec![
                column("type", Type::Text, true),
                column("name", Type::Text, true),
                column("tbl_name", Type::Text, true),
                column("rootpage", Type::Integer, true),
                column("sql", Type::Text, false),
            ],
        }
    }

    /// Of the table of that name, which `conn` has.
    pub(super) fn ask(conn: &Connection, table: &str, root: Option<u32>) -> rusqlite::Result<Self> {
        let (without_rowid, strict): (bool, bool) = conn.query_row(
            "SELECT wr, strict FROM pragma_table_list WHERE schema = 'main' AND name = ?1",
            [table],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let mut columns = Vec::new();
        let mut keys = 0;
        let mut read = conn.prepare(
            "SELECT name, type, \"notnull\", pk, hidden FROM pragma_table_xinfo(?1) ORDER BY cid",
        )?;
        let mut rows = read.query([table])?;
        while let Some(row) = rows.next()? {
            let (name, kind): (String, String) = (row.get(0)?, row.get(1)?);
            let (not_null, key, hidden): (bool, i64, i64) = (row.get(2)?, row.get(3)?, row.get(4)?);
            if hidden == 2 {
                // Computed when it is read, and not stored.
                continue;
            }
            keys += i64::from(key > 0);
            let is_key = key == 1 && !without_rowid && kind.eq_ignore_ascii_case("INTEGER");
            let only = if strict { strict_type(&kind) } else { None };
            let not_null = not_null || (without_rowid && key > 0);
            columns.push(Column { name, only, not_null, is_rowid: is_key });
        }
        if keys > 1 {
            // A key of several columns is none of the numbers of the rows.
            for column in &mut columns {
                column.is_rowid = false;
            }
        }
        if without_rowid {
            columns = in_order_of_key(conn, table, columns)?;
        }
        Ok(Self { table: table.to_owned(), root, has_rowid: !without_rowid, columns })
    }

    /// Whether its tree has pages of that kind.
    pub(super) fn has(&self, kind: Kind) -> bool {
        matches!(kind, Kind::TableInterior | Kind::TableLeaf) == self.has_rowid
    }

    /// Whether a record can be one of its rows. One with fewer columns was written before the
    /// others were added.
    pub(super) fn fits(&self, values: &[Value]) -> bool {
        let fit = |(column, value): (&Column, &Value)| {
            let kind = value.data_type();
            if column.is_rowid {
                return kind == Type::Null;
            }
            match kind {
                Type::Null => !column.not_null,
                kind => column.only.is_none_or(|only| only == kind),
            }
        };
        !values.is_empty()
            && values.len() <= self.columns.len()
            && self.columns.iter().zip(values).all(fit)
    }

    /// As [`fits`](Self::fits), with every column there: for a page that may be any table's.
    pub(super) fn fits_whole(&self, values: &[Value]) -> bool {
        values.len() == self.columns.len() && self.fits(values)
    }
}

fn strict_type(name: &str) -> Option<Type> {
    match name.to_ascii_uppercase().as_str() {
        "INT" | "INTEGER" => Some(Type::Integer),
        "TEXT" => Some(Type::Text),
        "BLOB" => Some(Type::Blob),
        _ => None,
    }
}

/// A table without numbers for its rows is stored as the index of its primary key.
fn in_order_of_key(
    conn: &Connection,
    table: &str,
    columns: Vec<Column>,
) -> rusqlite::Result<Vec<Column>> {
    let index: Option<String> = conn
        .query_row("SELECT name FROM pragma_index_list(?1) WHERE origin = 'pk'", [table], |row| {
            row.get(0)
        })
        .optional()?;
    let Some(index) = index else { return Ok(columns) };
    let order: Vec<Option<String>> = conn
        .prepare("SELECT name FROM pragma_index_xinfo(?1) ORDER BY seqno")?
        .query_map([index], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut ordered: Vec<Column> = Vec::new();
    for name in order.into_iter().flatten() {
        ordered.extend(columns.iter().find(|column| column.name == name).cloned());
    }
    Ok(ordered)
}
