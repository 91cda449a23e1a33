//! Looking whether a database is sound: its structure, and its content.
//!
//! | check | finds | does not find |
//! |---|---|---|
//! | size | a file cut short | what its log still holds |
//! | `quick_check` | broken pages, cells, types, NOT NULL, CHECK | an index unlike its table |
//! | `integrity_check` | that too | a changed value, a missing commit |
//! | texts | bytes that are no UTF-8 |  |
//! | foreign keys | a row that refers to none |  |
//! | the chain | a changed or missing row or commit | commits missing at the end |
//! | the anchor | commits missing at the end | more than it was told, see there |
//!
//! In: a connection, a [`Ledger`], a time budget. Out: a [`Report`]. Nothing is changed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::ValueRef;
use serde::Serialize;

use crate::sqlite::callback::Wired;
use crate::sqlite::chain::{Content, Digest, Head, Ledger, Link, next_link};
use crate::sqlite::sidecar::beside;

/// Complaints of one check that are kept.
const COMPLAINTS_MAX: usize = 100;

/// How thorough to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// Without the comparison of indexes with their tables, and without the chain.
    Quick,
    /// Everything.
    Full,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Complaints about the structure, by SQLite.
    pub structure: Vec<String>,
    /// Rows that refer to a row that is not there.
    pub foreign_keys: Vec<String>,
    /// Rows and commits that are not as they were written, or missing before the newest.
    pub content: Vec<String>,
    /// Commits whose link was computed anew.
    pub commits: u64,
    /// Rows whose checksum was computed anew.
    pub rows: u64,
    /// Whether the time was enough for all of it. What was not looked at is not known to be sound.
    pub complete: bool,
}

impl Report {
    /// Whether all was looked at and nothing was found.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.complete && !self.is_damaged()
    }

    /// Whether anything was found.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        !(self.structure.is_empty() && self.foreign_keys.is_empty() && self.content.is_empty())
    }

    /// The first complaint, for an error's text.
    #[must_use]
    pub fn first(&self) -> Option<&str> {
        let all = self.structure.iter().chain(&self.foreign_keys).chain(&self.content);
        all.map(String::as_str).next()
    }
}

/// Looks at all of the database, for `budget` at most.
///
/// What SQLite itself reports as damage on the way is a complaint like any other. What it reports
/// beside that, as a lock that could not be had, is the error.
pub(crate) fn verify(
    wired: &Wired,
    ledger: Option<&Ledger>,
    depth: Depth,
    budget: Duration,
) -> rusqlite::Result<Report> {
    let (report, interrupted) = wired.within(budget, |conn| look(conn, ledger, depth));
    match report {
        Ok(mut report) => {
            report.complete = !interrupted;
            Ok(report)
        }
        Err(error) if interrupted => {
            if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) {
                Ok(Report::default())
            } else {
                Err(error)
            }
        }
        Err(error) => Err(error),
    }
}

/// As [`verify`], on any connection and without a limit.
pub(crate) fn look(
    conn: &Connection,
    ledger: Option<&Ledger>,
    depth: Depth,
) -> rusqlite::Result<Report> {
    let mut report = Report { complete: true, ..Report::default() };
    let check = match depth {
        Depth::Quick => format!("PRAGMA quick_check({COMPLAINTS_MAX})"),
        Depth::Full => format!("PRAGMA integrity_check({COMPLAINTS_MAX})"),
    };
    report.structure = complaints(conn, &check, |row| row.get(0))?;
    report.structure.retain(|complaint| complaint != "ok");
    report.foreign_keys = complaints(conn, "PRAGMA foreign_key_check", |row| {
        let (table, id, parent): (String, Option<i64>, String) =
            (row.get(0)?, row.get(1)?, row.get(2)?);
        let id = id.map_or_else(|| "?".to_owned(), |id| id.to_string());
        Ok(format!("row {id} of {table} refers to a row of {parent} that is not there"))
    })?;
    if depth == Depth::Full {
        report.structure.extend(texts(conn)?);
    }
    if let (Some(ledger), Depth::Full) = (ledger, depth) {
        match walk(conn, ledger, &mut report) {
            Err(error) if is_damage(&error) => report.complain(format!("the chain: {error}")),
            other => other?,
        }
    }
    Ok(report)
}

/// Whether a file is shorter than the database in it says, and no log has the rest. `None`: sound,
/// or not to be told.
pub(crate) fn cut_short(conn: &Connection, place: &Path) -> rusqlite::Result<Option<String>> {
    // In this order: pages that were in the log at first are in the file once the log is empty.
    let pages: u32 = conn.pragma_query_value(None, "page_count", |row| row.get(0))?;
    let page_bytes: u32 = conn.pragma_query_value(None, "page_size", |row| row.get(0))?;
    let wanted = u64::from(pages) * u64::from(page_bytes);
    let log = fs::metadata(beside(place, "-wal")).map_or(0, |log| log.len());
    if log > 0 {
        return Ok(None);
    }
    let Ok(file) = fs::metadata(place) else { return Ok(None) };
    Ok((file.len() < wanted).then(|| format!("the file has {} bytes of {wanted}", file.len())))
}

impl Report {
    fn complain(&mut self, complaint: String) {
        if self.content.len() < COMPLAINTS_MAX {
            self.content.push(complaint);
        }
    }
}

/// The rows of a check, as far as the damage that it looks for lets it go.
fn complaints(
    conn: &Connection,
    check: &str,
    read: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<String>,
) -> rusqlite::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut ask = || -> rusqlite::Result<()> {
        let mut statement = conn.prepare(check)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if found.len() < COMPLAINTS_MAX {
                found.push(read(row)?);
            }
        }
        Ok(())
    };
    match ask() {
        Err(error) if is_damage(&error) => found.push(error.to_string()),
        other => other?,
    }
    Ok(found)
}

/// Texts that are none: SQLite's own check takes any bytes for one.
fn texts(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut found = Vec::new();
    let tables = complaints(
        conn,
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0",
        |row| row.get(0),
    )?;
    for table in tables {
        let mut look = || -> rusqlite::Result<()> {
            let select = format!("SELECT * FROM \"{}\"", table.replace('"', "\"\""));
            let mut statement = conn.prepare(&select)?;
            let columns = statement.column_count();
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                for column in 0..columns {
                    if let ValueRef::Text(text) = row.get_ref(column)?
                        && std::str::from_utf8(text).is_err()
                        && found.len() < COMPLAINTS_MAX
                    {
                        found.push(format!("a text in table {table} is not UTF-8"));
                    }
                }
            }
            Ok(())
        };
        match look() {
            // It was complained of before.
            Err(error) if is_damage(&error) => {}
            other => other?,
        }
    }
    Ok(found)
}

/// Computes every link and checksum anew and compares them with those in the database.
pub(crate) fn walk(
    conn: &Connection,
    ledger: &Ledger,
    report: &mut Report,
) -> rusqlite::Result<()> {
    let _snapshot = if conn.is_autocommit() { Some(conn.unchecked_transaction()?) } else { None };
    let pruned_to: i64 = conn.query_row(ledger.pruned_to, [], |row| row.get(0))?;
    let mut commits = conn.prepare(ledger.commits)?;
    let mut rows = conn.prepare(ledger.rows)?;
    let row_columns = rows.column_count();
    let commit_columns = commits.column_count();
    let mut commits = commits.query([0])?;
    let mut rows = Rows { all: rows.query([0])?, columns: row_columns, ledger, next: None };
    rows.advance(report)?;
    let mut before = Head::ORIGIN;
    while let Some(commit) = commits.next()? {
        let (seq, stored): (i64, Link) = (commit.get(0)?, commit.get(1)?);
        let (content, count): (i64, i64) = (commit.get(2)?, commit.get(3)?);
        if seq == before.seq + 1 {
            let mut digest = next_link(&before.link);
            digest.absorb(ValueRef::Integer(seq));
            digest.absorb(ValueRef::Integer(content));
            for column in 4..commit_columns {
                digest.absorb(commit.get_ref(column)?);
            }
            if digest.link() != stored {
                report.complain(format!("commit {seq} is not as it was written"));
            }
        } else {
            report.complain(format!("commit {} is missing", before.seq + 1));
        }
        let (found, appended) = rows.of_commit(seq, report)?;
        let whole = appended == count && found == content;
        if !whole && seq > pruned_to {
            report
                .complain(format!("commit {seq} appended {count} rows, {appended} are as it did"));
        }
        report.commits += 1;
        before = Head { seq, link: stored };
    }
    if let Some((seq, _)) = rows.next {
        report.complain(format!("a row names commit {seq}, which is not there"));
    }
    Ok(())
}

/// The keys of appended rows that are not as they were written.
pub(crate) fn altered_rows(conn: &Connection, ledger: &Ledger) -> rusqlite::Result<Vec<i64>> {
    let mut altered = Vec::new();
    let mut rows = conn.prepare(ledger.rows)?;
    let columns = rows.column_count();
    let mut rows = rows.query([i64::MIN])?;
    while let Some(row) = rows.next()? {
        let mut digest = Digest::new(ledger.rows_table);
        for column in 3..columns {
            digest.absorb(row.get_ref(column)?);
        }
        if digest.checksum() != row.get::<_, i64>(1)? {
            altered.push(row.get(2)?);
        }
    }
    Ok(altered)
}

/// The numbers of commits that are not as they were written, as far as the one before is there to
/// tell.
pub(crate) fn altered_commits(conn: &Connection, ledger: &Ledger) -> rusqlite::Result<Vec<i64>> {
    let mut altered = Vec::new();
    let mut commits = conn.prepare(ledger.commits)?;
    let columns = commits.column_count();
    let mut commits = commits.query([0])?;
    // The number before, and the links that it may have: the one that it says, and the one that
    // its columns make. Where they differ, the next commit tells which part of it is as it was.
    let mut before = (0, vec![Link::ORIGIN]);
    while let Some(commit) = commits.next()? {
        let (seq, content): (i64, i64) = (commit.get(0)?, commit.get(2)?);
        let stored: Option<Link> = commit.get(1).ok();
        let mut may_be: Vec<Link> = stored.into_iter().collect();
        if seq == before.0 + 1 {
            let mut made = Vec::new();
            for link in &before.1 {
                let mut digest = next_link(link);
                digest.absorb(ValueRef::Integer(seq));
                digest.absorb(ValueRef::Integer(content));
                for column in 4..columns {
                    digest.absorb(commit.get_ref(column)?);
                }
                made.push(digest.link());
            }
            if stored.is_none_or(|stored| !made.contains(&stored)) {
                altered.push(seq);
                may_be.extend(made);
            }
        }
        before = (seq, may_be);
        if before.1.is_empty() {
            before.0 = 0;
        }
    }
    Ok(altered)
}

/// The appended rows, read side by side with the commits.
struct Rows<'stmt> {
    all: rusqlite::Rows<'stmt>,
    columns: usize,
    ledger: &'stmt Ledger,
    /// Commit and checksum of the row that comes next.
    next: Option<(i64, i64)>,
}

impl Rows<'_> {
    /// The content that the rows of a commit make, and how many there are.
    fn of_commit(&mut self, seq: i64, report: &mut Report) -> rusqlite::Result<(i64, i64)> {
        let mut content = Content::new();
        let mut appended = 0;
        while let Some((of, checksum)) = self.next {
            if of > seq {
                break;
            }
            if of < seq {
                report.complain(format!("a row names commit {of}, which is not before it"));
            } else {
                content.absorb(checksum);
                appended += 1;
            }
            self.advance(report)?;
        }
        Ok((content.value(), appended))
    }

    fn advance(&mut self, report: &mut Report) -> rusqlite::Result<()> {
        self.next = None;
        let Some(row) = self.all.next()? else { return Ok(()) };
        let (seq, stored): (i64, i64) = (row.get(0)?, row.get(1)?);
        let mut digest = Digest::new(self.ledger.rows_table);
        for column in 3..self.columns {
            digest.absorb(row.get_ref(column)?);
        }
        if digest.checksum() != stored {
            report.complain(format!("a row of commit {seq} is not as it was written"));
        }
        report.rows += 1;
        self.next = Some((seq, stored));
        Ok(())
    }
}

/// Whether SQLite itself says that the file is damaged.
pub(crate) fn is_broken(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// Whether an error tells of damage, and not of a lock, a budget or a bug.
pub(crate) fn is_damage(error: &rusqlite::Error) -> bool {
    is_broken(error)
        || matches!(
            error,
            rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::Utf8Error(..)
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::fixture::{LEDGER, Place};

    #[track_caller]
    fn check(spoil: &str, complaint: &str) {
        let place = Place::new();
        let mut database = place.open();
        for number in 0..20 {
            place.append(&mut database, number % 4);
        }
        let before = database.verify(Depth::Full).unwrap();
        assert!(before.is_sound(), "{before:?}");
        assert_eq!((before.commits, before.rows), (20, 30));
        database.connection().execute_batch(spoil).unwrap();
        let after = database.verify(Depth::Full).unwrap();
        assert_eq!(after.structure, [""; 0], "the structure is sound all the while");
        assert_eq!(after.content.first().map(String::as_str), Some(complaint), "{after:?}");
        assert!(!database.verify(Depth::Quick).unwrap().is_damaged());
    }

    #[test]
    fn changed_and_missing_rows_and_commits_are_found_where_the_structure_is_sound() {
        check(
            "UPDATE notes SET text = 'x' WHERE id = 5",
            "a row of commit 4 is not as it was written",
        );
        check("DELETE FROM notes WHERE id = 5", "commit 4 appended 3 rows, 2 are as it did");
        check(
            "UPDATE notes SET text = 'x', checksum = 7 WHERE id = 5",
            "a row of commit 4 is not as it was written",
        );
        check(
            "INSERT INTO notes SELECT 99, 3, text, checksum FROM notes WHERE id = 5",
            "a row of commit 3 is not as it was written",
        );
        check("UPDATE marks SET who = 'x' WHERE seq = 9", "commit 9 is not as it was written");
        check(
            "UPDATE marks SET link = zeroblob(32) WHERE seq = 9",
            "commit 9 is not as it was written",
        );
        check("DELETE FROM marks WHERE seq = 9", "commit 9 is missing");
        check("UPDATE marks SET rows = 0 WHERE seq = 8", "commit 8 is not as it was written");
        check("DELETE FROM marks WHERE seq = 20", "a row names commit 20, which is not there");
    }

    #[test]
    fn rows_taken_out_for_age_leave_the_chain_whole() {
        let place = Place::new();
        let mut database = place.open();
        for _ in 0..10 {
            place.append(&mut database, 2);
        }
        let prune = "DELETE FROM notes WHERE seq <= 4; UPDATE kept SET pruned_to = 4";
        database.connection().execute_batch(prune).unwrap();
        assert!(database.verify(Depth::Full).unwrap().is_sound());
        database.connection().execute_batch("DELETE FROM notes WHERE seq = 5").unwrap();
        assert!(database.verify(Depth::Full).unwrap().is_damaged());
    }

    #[test]
    fn look_that_runs_out_of_time_says_so_and_leaves_the_connection_usable() {
        let place = Place::new();
        let mut database = place.open();
        place.append(&mut database, 3000);
        let report = database.verify_within(Depth::Full, Duration::ZERO).unwrap();
        assert!(!report.complete && !report.is_damaged() && !report.is_sound(), "{report:?}");
        assert!(database.verify(Depth::Full).unwrap().is_sound());
    }

    #[test]
    fn row_that_refers_to_none_is_found() {
        let place = Place::new();
        let mut database = place.open();
        place.append(&mut database, 1);
        let conn = database.connection();
        conn.execute_batch(
            "PRAGMA foreign_keys = OFF; CREATE TABLE c (m REFERENCES marks (seq)) STRICT",
        )
        .unwrap_err();
        conn.execute_batch("CREATE TABLE c (m INTEGER REFERENCES marks (seq)) STRICT").unwrap();
        conn.execute_batch("INSERT INTO c VALUES (77)").unwrap();
        let report = look(conn, Some(&LEDGER), Depth::Quick).unwrap();
        assert_eq!(report.foreign_keys.len(), 1, "{report:?}");
    }
}
