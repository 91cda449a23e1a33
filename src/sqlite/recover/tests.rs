//! Recovery of boards with known damage: what is saved, what is lost, and that none is lost in
//! silence.

mod corpus;
mod misuse;
mod stranger;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rusqlite::Connection;
use rusqlite::types::Value;
use tempfile::TempDir;

use super::record::{Kind, cells};
use super::*;
use crate::board::recover::KNOWN;
use crate::sqlite::checkpoint::Mode;
use crate::{Board, NewEvent, NewTask, Options, Session, Synchronous};

fn options() -> Options {
    Options {
        synchronous: Synchronous::Off,
        busy_timeout: Duration::from_millis(50),
        ..Options::default()
    }
}

/// A board of about that many pages, closed: tasks in every stage of their life.
fn board(dir: &TempDir, pages: u32) -> PathBuf {
    let path = dir.path().join("board.db");
    let mut board = Board::create(&path, &options()).unwrap();
    let mut session = Session::new(1);
    let lease = Duration::from_hours(1);
    let mut number = 0;
    loop {
        number += 1;
        let title = format!("task {number}: {}", "resize the pictures ".repeat(4));
        let task = NewTask { title: &title, priority: number % 7, ..NewTask::default() };
        let (task, _) = board.create_task(session.next_key(), &task).unwrap();
        let claim = board.claim(session.next_key(), task, "ann", lease).unwrap();
        let payload = format!("step {number} of many, {}", "x".repeat(120));
        let events = [NewEvent { kind: "progress", payload: &payload }; 3];
        let token = Some(claim.token);
        let _commit = board.append_events(session.next_key(), task, token, &events).unwrap();
        if number % 3 > 0 {
            let _commit = board.complete(session.next_key(), task, claim.token, "as it should be");
        }
        let count: u32 =
            board.connection().pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        if count >= pages {
            break;
        }
    }
    board.close().unwrap();
    path
}

/// The rows of a table: key, and all of it.
type Rows = BTreeMap<String, String>;

/// Every row of every table, by table and as text.
fn rows(path: &Path) -> BTreeMap<String, Rows> {
    let conn = Connection::open(path).unwrap();
    let tables: Vec<String> = conn
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    tables.into_iter().map(|table| (table.clone(), rows_of(&conn, &table))).collect()
}

/// The rows without their place in the chain, which a recovery may make anew.
fn rows_of(conn: &Connection, table: &str) -> Rows {
    let mut rows = conn.prepare(&format!("SELECT * FROM {table}")).unwrap();
    let columns: Vec<usize> = rows
        .column_names()
        .enumerate()
        .filter(|(_, name)| !["link", "content", "checksum", "rows"].contains(name))
        .map(|(index, _)| index)
        .collect();
    let keys = if ["runs", "links"].contains(&table) { 2 } else { 1 };
    let text = |row: &rusqlite::Row<'_>| {
        let values = columns.iter().map(|column| row.get::<_, Value>(*column));
        let values = values.collect::<Result<Vec<_>, _>>()?;
        Ok((format!("{:?}", &values[..keys]), format!("{values:?}")))
    };
    let rows: Rows = rows.query_map([], text).unwrap().collect::<Result<_, _>>().unwrap();
    // What stands for a row that was lost is not that row.
    let stands_for = [r#"Text("lost")"#, "(lost, and made anew by a recovery)"];
    rows.into_iter().filter(|(_, row)| !stands_for.iter().any(|text| row.contains(text))).collect()
}

/// Whether a row says that a recovery changed it, since what it refers to was lost.
fn is_mended(row: &str) -> bool {
    row.contains("its run was lost in a recovery") || row.contains(r#"Text("interrupted")"#)
}

/// How many rows lie on each page, tables and keys of tables alike.
fn rows_on_pages(path: &Path) -> BTreeMap<u32, u64> {
    let pages = pages::Pages::open(path).unwrap();
    let mut on = BTreeMap::new();
    let mut schema = rebuild::read_schema(&pages, &KNOWN);
    let shapes = rebuild::shapes(&mut schema).unwrap();
    for number in 1..=pages.count() {
        let Some(page) = pages.read(number) else { continue };
        let Some(kind) = Kind::of(&page, number) else { continue };
        let found = cells(&pages, &page, number, kind);
        let fits = found
            .list
            .iter()
            .filter_map(|cell| cell.values.as_deref())
            .filter(|values| shapes.iter().any(|s| s.has(kind) && s.fits_whole(values)));
        on.insert(number, fits.count() as u64);
    }
    on
}

/// What a recovery came to.
#[derive(Debug, Default)]
struct Outcome {
    /// Rows of the original that the result has not, by table.
    lost: BTreeMap<String, u64>,
    /// Rows of the original that the result has with other values.
    altered: BTreeMap<String, u64>,
    silent: Vec<String>,
    sound: bool,
}

/// Recovers the files that lie in `dir` and compares with what was there.
fn outcome(
    path: &Path,
    original: &BTreeMap<String, Rows>,
    request: &Request<'_>,
) -> (Outcome, Recovery) {
    let recovery = crate::board::recover::recover(path, &options(), request).unwrap();
    let after = rows(path);
    let mut outcome = Outcome { sound: !recovery.after.is_damaged(), ..Outcome::default() };
    for (table, rows) in original {
        let have = after.get(table).cloned().unwrap_or_default();
        let lost = rows.keys().filter(|key| !have.contains_key(*key)).count() as u64;
        let altered = rows.iter().filter(|(key, row)| {
            have.get(*key).is_some_and(|have| have != *row && !is_mended(have))
        });
        let altered = altered.count() as u64;
        if altered > 0 {
            outcome.altered.insert(table.clone(), altered);
        }
        if lost == 0 {
            continue;
        }
        outcome.lost.insert(table.clone(), lost);
        let told = recovery.tables.iter().find(|told| told.table == *table);
        let is_told = told.is_some_and(|told| {
            told.lost.map_or(told.broken_pages + told.broken_cells > 0, |counted| counted >= lost)
        }) || recovery.commits_lost_at_the_end > 0;
        if !is_told {
            outcome.silent.push(format!("{table}: {lost} rows, told {told:?}"));
        }
    }
    (outcome, recovery)
}

#[test]
fn log_whose_index_is_broken_still_gives_every_commit() {
    let dir = tempfile::tempdir().unwrap();
    let path = board(&dir, 20);
    let mut open = Board::open(&path, &options()).unwrap();
    let mut session = Session::new(2);
    for _ in 0..30 {
        let task = NewTask { title: "later", ..NewTask::default() };
        let _made = open.create_task(session.next_key(), &task).unwrap();
    }
    let newest = open.commit_seq().unwrap().get();
    // As a kill leaves them, and with the index of the log pointing past its end, which is how the
    // WAL-reset fault leaves it.
    let place = tempfile::tempdir().unwrap();
    let copy = place.path().join("board.db");
    for ending in ["", "-wal", "-shm", "-anchor"] {
        fs::copy(beside(&path, ending), beside(&copy, ending)).unwrap();
    }
    let mut index = fs::read(beside(&copy, "-shm")).unwrap();
    index[96..100].copy_from_slice(&9999_u32.to_le_bytes());
    fs::write(beside(&copy, "-shm"), index).unwrap();
    drop(open);
    let request = Request { apply: true, backup: None };
    let recovery = crate::board::recover::recover(&copy, &options(), &request).unwrap();
    assert_eq!(recovery.rung, Rung::Log);
    assert_eq!(recovery.newest.unwrap().seq, newest);
    assert!(recovery.is_complete(), "{recovery:?}");
    let board = Board::open(&copy, &options()).unwrap();
    assert_eq!(board.commit_seq().unwrap().get(), newest);
}

/// Writes over the root page of an index, keeping its kind: entries are missing, nothing else.
fn empty_an_index(path: &Path, index: &str) {
    let conn = Connection::open(path).unwrap();
    let root: u32 = conn
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = ?1", [index], |r| r.get(0))
        .unwrap();
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    conn.close().unwrap();
    let mut bytes = fs::read(path).unwrap();
    let at = (root as usize - 1) * 4096;
    bytes[at..at + 8].copy_from_slice(&[10, 0, 0, 0, 0, 16, 0, 0]);
    fs::write(path, bytes).unwrap();
}

#[test]
fn index_without_its_entries_is_made_anew_and_no_row_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = board(&dir, 12);
    let original = rows(&path);
    empty_an_index(&path, "tasks_assignee");
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch("PRAGMA writable_schema = ON").unwrap();
    drop(conn);
    empty_an_index(&path, "comments_task");
    empty_an_index(&path, "tasks_status");
    let before = fs::read(&path).unwrap();
    let dry = crate::board::recover::recover(&path, &options(), &Request::default()).unwrap();
    assert_eq!((dry.rung, dry.applied, dry.kept), (Rung::Reindex, false, None));
    assert_eq!(fs::read(&path).unwrap(), before, "a dry run changes nothing");
    let (outcome, recovery) = outcome(&path, &original, &Request { apply: true, backup: None });
    assert_eq!(recovery.rung, Rung::Reindex, "{recovery:?}");
    assert!(recovery.before.is_damaged() && recovery.after.is_sound());
    assert!(outcome.lost.is_empty() && outcome.altered.is_empty());
    let kept = recovery.kept.unwrap().join("board.db");
    assert_eq!(fs::read(kept).unwrap(), before, "the damaged file is kept");
    Board::open(&path, &options()).unwrap();
}

#[test]
fn rows_that_only_a_backup_has_are_taken_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = board(&dir, 40);
    let original = rows(&path);
    let open = Board::open(&path, &options()).unwrap();
    let backup = open.database().backup(dir.path(), crate::sqlite::backup::Rotation::default());
    open.close().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    for page in [5, 9, 17, 23, 31] {
        bytes[page * 4096..(page + 1) * 4096].fill(0);
    }
    fs::write(&path, bytes).unwrap();
    let dry = crate::board::recover::recover(&path, &options(), &Request::default()).unwrap();
    assert!(dry.rung == Rung::Salvage && dry.rows_lost() > 0, "{dry:?}");
    let request = Request { apply: true, backup: Some(&backup.unwrap().path) };
    let (outcome, recovery) = outcome(&path, &original, &request);
    assert_eq!((recovery.rung, recovery.rows_lost()), (Rung::Backup, 0), "{recovery:?}");
    assert!(outcome.lost.is_empty() && outcome.altered.is_empty() && outcome.sound);
    assert!(recovery.tables.iter().map(|table| table.from_backup).sum::<u64>() > 0);
}

#[test]
fn quarantined_board_is_opened_again_after_its_recovery_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = board(&dir, 20);
    let mut bytes = fs::read(&path).unwrap();
    bytes[7 * 4096..8 * 4096].fill(0x33);
    fs::write(&path, bytes).unwrap();
    quarantine::quarantine(&path, "page 8 is noise", u64::MAX).unwrap();
    let error = Board::open(&path, &options()).unwrap_err();
    assert!(matches!(error, StoreError::Quarantined { .. }), "{error:?}");
    let request = Request { apply: true, backup: None };
    let recovery = crate::board::recover::recover(&path, &options(), &request).unwrap();
    assert!(recovery.applied && recovery.after.is_sound(), "{recovery:?}");
    let mut board = Board::open(&path, &options()).unwrap();
    let task = NewTask { title: "goes on", ..NewTask::default() };
    let _made = board.create_task(Session::new(5).next_key(), &task).unwrap();
    assert!(board.database().verify(crate::sqlite::verify::Depth::Full).unwrap().is_sound());
}

#[test]
fn board_that_is_open_is_not_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let path = board(&dir, 12);
    let mut open = Board::open(&path, &options()).unwrap();
    let error = crate::board::recover::recover(&path, &options(), &Request::default());
    assert!(matches!(error, Err(StoreError::Busy { .. })), "{error:?}");
    open.checkpoint(Mode::Passive).unwrap();
}

#[test]
fn commits_that_are_gone_from_the_end_are_told_and_accepted_by_a_recovery() {
    let dir = tempfile::tempdir().unwrap();
    let path = board(&dir, 12);
    let old = fs::read(&path).unwrap();
    let mut open = Board::open(&path, &options()).unwrap();
    let mut session = Session::new(2);
    for _ in 0..9 {
        let task = NewTask { title: "later", ..NewTask::default() };
        let _made = open.create_task(session.next_key(), &task).unwrap();
    }
    open.close().unwrap();
    fs::write(&path, old).unwrap();
    let error = Board::open(&path, &options()).unwrap_err();
    assert!(matches!(error, StoreError::RolledBack { .. }), "{error:?}");
    let request = Request { apply: true, backup: None };
    let recovery = crate::board::recover::recover(&path, &options(), &request).unwrap();
    assert_eq!((recovery.rung, recovery.commits_lost_at_the_end), (Rung::Log, 9));
    assert!(!recovery.is_complete());
    Board::open(&path, &options()).unwrap();
}

#[test]
fn any_bytes_at_all_are_recovered_to_something_and_never_panic() {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    for length in [0, 1, 99, 512, 4096, 5000, 40_960] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("board.db");
        let mut bytes = vec![0; length];
        random.fill(&mut bytes[..]);
        if length > 512 {
            bytes[..16].copy_from_slice(b"SQLite format 3\0");
            bytes[100] = 13;
        }
        fs::write(&path, &bytes).unwrap();
        fs::write(beside(&path, "-wal"), &bytes).unwrap();
        let request = Request { apply: true, backup: None };
        let recovery = crate::board::recover::recover(&path, &options(), &request).unwrap();
        assert!(recovery.after.is_sound(), "{length}: {recovery:?}");
        Board::open(&path, &options()).unwrap();
    }
}
