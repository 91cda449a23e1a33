//! The rungs, on copies.
//!
//! In: the files to work from, a directory to work in. Out: a database in that directory, and what
//! is known of it. Not here: putting it in the old one's place.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::pages::Pages;
use super::tree::Broken;
use super::{Known, RecoverError, Recovery, Rung, Table, rebuild, swap, tree};
use crate::sqlite::anchor::Anchor;
use crate::sqlite::chain::{self, Head, Ledger};
use crate::sqlite::sidecar::beside;
use crate::sqlite::verify::{self, Depth, Report};

/// A database, and what it is.
pub(super) struct Climbed {
    pub(super) result: PathBuf,
    pub(super) recovery: Recovery,
}

pub(super) fn climb(
    source: &Path,
    work: &Path,
    known: &Known<'_>,
    anchored: Option<Anchor>,
    backup: Option<&Path>,
) -> Result<Climbed, RecoverError> {
    swap::remove_directory(work)?;
    fs::create_dir(work)?;
    let copy = work.join("copy.db");
    copy_files(source, &copy)?;
    let (before, rung) = whole(&copy, known, anchored)?;
    if let Some(rung) = rung {
        let recovery = describe(&copy, rung, before.clone(), known, anchored)?;
        // The backup may have what is missing at the end.
        if recovery.commits_lost_at_the_end == 0 || backup.is_none() {
            return Ok(Climbed { result: copy, recovery });
        }
    }
    // SQLite may have changed the copy.
    copy_files(source, &copy)?;
    salvage(&copy, &work.join("new.db"), before, known, anchored, backup)
}

/// The first two rungs. Gives what the copy is, and the rung on which it was sound.
fn whole(
    copy: &Path,
    known: &Known<'_>,
    anchored: Option<Anchor>,
) -> Result<(Report, Option<Rung>), RecoverError> {
    let conn = open(copy)?;
    if !has_whole_schema(&conn, known) {
        let missing = "tables or indexes are missing, or their statements are damaged";
        let structure = vec![missing.to_owned()];
        return Ok((Report { structure, complete: true, ..Report::default() }, None));
    }
    let before = match look(&conn, known) {
        Ok(report) => report,
        Err(error) if verify::is_damage(&error) => broken(&error),
        Err(error) => return Err(error.into()),
    };
    if !before.is_damaged() {
        into_one_file(conn)?;
        return Ok((before, Some(Rung::Log)));
    }
    let only_indexes = before.content.is_empty()
        && before.foreign_keys.is_empty()
        && before.structure.iter().all(|complaint| is_about_an_index(complaint));
    if only_indexes && conn.execute_batch("REINDEX").is_ok() {
        let after = look(&conn, known);
        if after.is_ok_and(|after| !after.is_damaged()) && has(&conn, known, anchored) {
            into_one_file(conn)?;
            return Ok((before, Some(Rung::Reindex)));
        }
    }
    Ok((before, None))
}

fn look(conn: &Connection, known: &Known<'_>) -> rusqlite::Result<Report> {
    verify::look(conn, known.ledger, Depth::Full)
}

fn broken(error: &rusqlite::Error) -> Report {
    Report { structure: vec![error.to_string()], complete: true, ..Report::default() }
}

/// Whether all that the schema must have is there. An empty database is sound, too.
fn has_whole_schema(conn: &Connection, known: &Known<'_>) -> bool {
    known.schema.iter().all(|(name, sql)| {
        let have: rusqlite::Result<String> =
            conn.query_row("SELECT sql FROM sqlite_schema WHERE name = ?1", [name], |row| {
                row.get(0)
            });
        have.is_ok_and(|have| have == *sql)
    })
}

/// Whether the anchored commit is there, as far as that can be asked.
fn has(conn: &Connection, known: &Known<'_>, anchored: Option<Anchor>) -> bool {
    let (Some(ledger), Some(anchored)) = (known.ledger, anchored) else { return true };
    link_of(conn, ledger, anchored.head.seq).is_ok_and(|link| link == Some(anchored.head.link))
}

fn link_of(conn: &Connection, ledger: &Ledger, seq: i64) -> rusqlite::Result<Option<chain::Link>> {
    conn.query_row(ledger.link_of, [seq], |row| row.get(0)).optional()
}

/// What SQLite says of an index that does not match its table.
fn is_about_an_index(complaint: &str) -> bool {
    complaint.starts_with("wrong # of entries in index")
        || complaint.starts_with("non-unique entry in index")
        || (complaint.starts_with("row ") && complaint.contains("missing from index"))
        || (complaint.starts_with("row ") && complaint.contains("values differ from index"))
}

/// The last two rungs.
fn salvage(
    copy: &Path,
    result: &Path,
    before: Report,
    known: &Known<'_>,
    anchored: Option<Anchor>,
    backup: Option<&Path>,
) -> Result<Climbed, RecoverError> {
    let pages = Pages::open(copy)?;
    let mut schema = rebuild::read_schema(&pages, known);
    let shapes = rebuild::shapes(&mut schema)?;
    let found = tree::salvage(&pages, &shapes);
    let broken: BTreeMap<String, Broken> = found
        .broken
        .iter()
        .map(|(index, broken)| (shapes[*index].table.clone(), *broken))
        .collect();
    let conn = rebuild::make(result, &schema)?;
    rebuild::fill(&conn, &shapes, found)?;
    if let Some(ledger) = known.ledger {
        drop_altered(&conn, ledger)?;
    }
    let mut rung = Rung::Salvage;
    let mut from_backup = BTreeMap::new();
    if let Some(backup) = backup {
        rung = Rung::Backup;
        from_backup = add_from(&conn, backup, &schema)?;
    }
    let seq = anchored.map_or(0, |anchored| anchored.head.seq);
    let census = take_census(&conn, known, seq)?;
    let newest = newest(&conn, known)?;
    if let Some(ledger) = known.ledger {
        let mut found = Report::default();
        let sound = verify::walk(&conn, ledger, &mut found).is_ok() && found.content.is_empty();
        if !sound {
            chain::rebuild(&conn, ledger)?;
        }
    }
    for mend in known.mend {
        conn.execute_batch(mend)?;
    }
    let after = look(&conn, known)?;
    let mut tables = Vec::new();
    for shape in &shapes {
        let saved = census.saved.get(&shape.table).copied().unwrap_or(0);
        let expected = census.expected.get(&shape.table).copied().flatten();
        let broken = broken.get(&shape.table).copied().unwrap_or_default();
        tables.push(Table {
            table: shape.table.clone(),
            saved,
            lost: expected.map(|expected| expected.saturating_sub(saved)),
            from_backup: from_backup.get(&shape.table).copied().unwrap_or(0),
            broken_pages: broken.pages,
            broken_cells: broken.cells,
        });
    }
    rebuild::finish(conn, result)?;
    let commits_lost_at_the_end = lost_at_the_end(anchored, newest);
    let recovery = Recovery {
        rung,
        before,
        after,
        tables,
        anchored,
        newest,
        commits_lost_at_the_end,
        kept: None,
        applied: false,
    };
    Ok(Climbed { result: result.to_owned(), recovery })
}

/// Takes out appended rows and commits that are not as they were written: they count as lost.
fn drop_altered(conn: &Connection, ledger: &Ledger) -> rusqlite::Result<()> {
    let mut drop_commit = conn.prepare(ledger.drop_commit)?;
    for seq in verify::altered_commits(conn, ledger)? {
        drop_commit.execute([seq])?;
    }
    let altered = verify::altered_rows(conn, ledger)?;
    let table = ledger.rows_table.replace('"', "\"\"");
    let mut delete = conn.prepare(&format!("DELETE FROM \"{table}\" WHERE rowid = ?1"))?;
    for key in altered {
        delete.execute([key])?;
    }
    Ok(())
}

/// Adds the rows whose keys are not there yet.
fn add_from(
    conn: &Connection,
    backup: &Path,
    schema: &rebuild::Schema,
) -> Result<BTreeMap<String, u64>, RecoverError> {
    let mut added = BTreeMap::new();
    conn.execute_batch("COMMIT")?;
    conn.execute("ATTACH ?1 AS backup", [backup.to_string_lossy()])?;
    conn.execute_batch("BEGIN")?;
    for (table, _, _) in &schema.tables {
        let table = table.replace('"', "\"\"");
        let sql =
            format!("INSERT OR IGNORE INTO main.\"{table}\" SELECT * FROM backup.\"{table}\"");
        // A table that the backup has not, or has otherwise, gives nothing.
        if let Ok(rows) = conn.execute(&sql, []) {
            added.insert(table, rows as u64);
        }
    }
    conn.execute_batch("COMMIT; DETACH backup; BEGIN")?;
    Ok(added)
}

struct Counted {
    saved: BTreeMap<String, u64>,
    expected: BTreeMap<String, Option<u64>>,
}

fn take_census(
    conn: &Connection,
    known: &Known<'_>,
    anchored_seq: i64,
) -> rusqlite::Result<Counted> {
    let mut counted = Counted { saved: BTreeMap::new(), expected: BTreeMap::new() };
    let tables: Vec<String> = conn
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table'")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for table in tables {
        let count = format!("SELECT count(*) FROM \"{}\"", table.replace('"', "\"\""));
        let saved: i64 = conn.query_row(&count, [], |row| row.get(0))?;
        counted.saved.insert(table, u64::try_from(saved).unwrap_or(0));
    }
    for census in known.census {
        let expected: Option<i64> = conn
            .prepare(census.expected)
            .and_then(|mut sql| sql.query_row([anchored_seq], |row| row.get(0)))?;
        let expected = expected.and_then(|expected| u64::try_from(expected).ok());
        counted.expected.insert(census.table.to_owned(), expected);
    }
    Ok(counted)
}

/// What is known of a database that is sound as it is.
fn describe(
    copy: &Path,
    rung: Rung,
    before: Report,
    known: &Known<'_>,
    anchored: Option<Anchor>,
) -> Result<Recovery, RecoverError> {
    let conn = open(copy)?;
    let census = take_census(&conn, known, 0)?;
    let newest = newest(&conn, known)?;
    let after = if rung == Rung::Reindex { look(&conn, known)? } else { before.clone() };
    let tables = census
        .saved
        .into_iter()
        .filter(|(table, _)| !table.starts_with("sqlite_"))
        .map(|(table, saved)| Table {
            table,
            saved,
            // Structure and chain are whole, so nothing is missing but at the end.
            lost: Some(0),
            from_backup: 0,
            broken_pages: 0,
            broken_cells: 0,
        })
        .collect();
    into_one_file(conn)?;
    Ok(Recovery {
        rung,
        before,
        after,
        tables,
        anchored,
        newest,
        commits_lost_at_the_end: lost_at_the_end(anchored, newest),
        kept: None,
        applied: false,
    })
}

fn newest(conn: &Connection, known: &Known<'_>) -> rusqlite::Result<Option<Head>> {
    known.ledger.map(|ledger| chain::newest(conn, ledger)).transpose()
}

fn lost_at_the_end(anchored: Option<Anchor>, newest: Option<Head>) -> u64 {
    match (anchored, newest) {
        (Some(anchored), Some(newest)) => {
            u64::try_from(anchored.head.seq.saturating_sub(newest.seq)).unwrap_or(0)
        }
        _ => 0,
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
}

/// Copies the log into the copy, which is then the whole of it.
fn into_one_file(conn: Connection) -> rusqlite::Result<()> {
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    conn.close().map_err(|(_, error)| error)
}

/// Copies database and log, and not the index of the log: SQLite makes that anew.
fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::remove_file(beside(to, "-shm")).or_else(swap::ignore_missing)?;
    fs::copy(from, to)?;
    match fs::copy(beside(from, "-wal"), beside(to, "-wal")) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::remove_file(beside(to, "-wal")).or_else(swap::ignore_missing)
        }
        Err(error) => Err(error),
    }
}
