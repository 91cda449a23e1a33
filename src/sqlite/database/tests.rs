//! The open database: durability, the owner of checkpoints, closing, what is watched.

mod fork;

use rusqlite::Connection;
use tempfile::TempDir;

use super::owner::touch;
use super::*;
use crate::sqlite::fixture::Place;

fn place(synchronous: Synchronous) -> (TempDir, Database) {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { synchronous, ..Options::default() };
    let mut database = Database::open(&dir.path().join("any.db"), &options, true).unwrap();
    let made = database.write(None, |conn| conn.execute_batch("CREATE TABLE t (x)"));
    made.unwrap();
    (dir, database)
}

/// The level while the body runs is the level of its commit: no transaction can change it.
#[track_caller]
fn check(database: &mut Database, asked: Option<Durability>, level: Synchronous) {
    let (seen, ack) = database
        .write(asked, |conn| {
            conn.execute("INSERT INTO t VALUES (1)", [])?;
            conn.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0))
        })
        .unwrap();
    assert_eq!(seen, i64::from(level.pragma_number()), "{asked:?}");
    assert_eq!(ack.durability, Durability::of(level));
}

#[test]
fn write_is_committed_at_the_level_it_asks_for_and_others_at_the_default() {
    use Durability::{Power, Process};
    for default in [Synchronous::Off, Synchronous::Normal, Synchronous::Extra] {
        let (_dir, mut database) = place(default);
        check(&mut database, None, default);
        check(&mut database, Some(Process), Synchronous::Normal);
        check(&mut database, Some(Power), Synchronous::Full);
        check(&mut database, Some(Power), Synchronous::Full);
        check(&mut database, Some(Process), Synchronous::Normal);
        check(&mut database, None, default);
        assert_eq!(database.default_durability(), Durability::of(default));
    }
}

#[test]
fn settings_told_are_those_of_a_call_that_chooses_nothing() {
    let (_dir, mut database) = place(Synchronous::Full);
    check(&mut database, Some(Durability::Process), Synchronous::Normal);
    assert_eq!(database.pragmas().unwrap().synchronous, Synchronous::Full);
}

#[test]
fn level_that_cannot_be_changed_refuses_the_write_before_it_begins() {
    let (_dir, mut database) = place(Synchronous::Full);
    database.connection().execute_batch("BEGIN").unwrap();
    let failed = database.write(Some(Durability::Process), |_| -> Result<(), ()> { panic!() });
    assert!(matches!(failed, Err(Failure::Unready(_))), "{failed:?}");
    database.connection().execute_batch("COMMIT").unwrap();
    check(&mut database, Some(Durability::Process), Synchronous::Normal);
}

#[test]
fn database_whose_commit_has_an_unknown_outcome_is_not_used_again() {
    let (_dir, mut database) = place(Synchronous::Full);
    let failed = database.write(None, |conn| conn.execute_batch("COMMIT"));
    assert!(matches!(failed, Err(Failure::Commit(_))), "{failed:?}");
    let failed = database.write(None, |_| -> Result<(), ()> { panic!("it ran") });
    assert!(matches!(failed, Err(Failure::Unready(StoreError::Poisoned))), "{failed:?}");
    let read = database.read("look", |_| -> rusqlite::Result<()> { panic!("it ran") });
    assert!(matches!(read, Err(StoreError::Poisoned)), "{read:?}");
}

/// Writes rows until the log has at least that many pages.
fn fill(database: &mut Database, pages: u32) {
    while database.callbacks().unwrap().log_pages() < pages {
        let insert = "INSERT INTO t VALUES (zeroblob(3000))";
        let (_, _ack) = database.write(None, |conn| conn.execute(insert, [])).unwrap();
    }
}

fn log_bytes(database: &Database) -> u64 {
    std::fs::metadata(sidecar::beside(&database.place, "-wal")).unwrap().len()
}

fn small() -> Options {
    Options {
        synchronous: Synchronous::Off,
        wal_autocheckpoint_pages: 20,
        busy_timeout: Duration::from_millis(40),
        ..Options::default()
    }
}

fn pair() -> (TempDir, Database, Database) {
    let dir = tempfile::tempdir().unwrap();
    let open = || Database::open(&dir.path().join("any.db"), &small(), true).unwrap();
    let (mut one, two) = (open(), open());
    one.write(None, |conn| conn.execute_batch("CREATE TABLE t (x)")).unwrap();
    (dir, one, two)
}

#[test]
fn log_stays_short_under_a_steady_writer() {
    let (_dir, mut one, _two) = pair();
    let mut longest = 0;
    for _ in 0..400 {
        let insert = "INSERT INTO t VALUES (zeroblob(3000))";
        let (_, _ack) = one.write(None, |conn| conn.execute(insert, [])).unwrap();
        longest = longest.max(one.callbacks().unwrap().log_pages());
    }
    assert!((20..40).contains(&longest), "{longest}");
}

#[test]
fn writer_that_may_not_checkpoint_writes_on_and_the_right_moves_when_it_is_free() {
    let (_dir, mut one, two) = pair();
    let lock = two.lock.as_ref().unwrap();
    assert!(lock.take(Part::Checkpoint, Hold::Exclusive).unwrap());
    lock.sign(Part::Checkpoint).unwrap();
    fill(&mut one, 200);
    assert_eq!(one.checkpoint_owner().unwrap(), Some(std::process::id()));
    assert!(one.checkpoint(Mode::Passive).unwrap().is_none());
    lock.release(Part::Checkpoint).unwrap();
    assert_eq!(one.checkpoint_owner().unwrap(), None);
    let before = log_bytes(&one);
    for _ in 0..60 {
        let (_, _ack) = one.write(None, |c| c.execute("INSERT INTO t VALUES (1)", [])).unwrap();
    }
    assert!(one.callbacks().unwrap().log_pages() < 60, "the log was started anew");
    assert!(log_bytes(&one) < before, "the long log was cut");
}

#[test]
fn reader_that_stays_is_told_by_an_incomplete_checkpoint_and_waited_for_in_vain() {
    let (_dir, mut one, two) = pair();
    let reader = two.connection().unchecked_transaction().unwrap();
    let count = "SELECT count(*) FROM t";
    reader.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap();
    fill(&mut one, 100);
    let done = one.checkpoint(Mode::Truncate).unwrap().unwrap();
    assert!(!done.complete && done.done_pages < done.log_pages, "{done:?}");
    drop(reader);
    let done = one.checkpoint(Mode::Truncate).unwrap().unwrap();
    assert!(done.complete, "{done:?}");
    assert_eq!(log_bytes(&one), 0);
}

#[test]
fn last_to_close_leaves_an_empty_log_and_others_leave_it_alone() {
    let (_dir, mut one, mut two) = pair();
    fill(&mut one, 10);
    fill(&mut two, 10);
    let place = one.place.clone();
    one.close().unwrap();
    assert!(log_bytes(&two) > 0);
    two.close().unwrap();
    for ending in ["-wal", "-shm"] {
        assert!(sidecar::beside(&place, ending).exists(), "{ending} stays for who comes next");
    }
    assert_eq!(std::fs::metadata(sidecar::beside(&place, "-wal")).unwrap().len(), 0);
    assert!(LockFile::open(&place).unwrap().was_closed().unwrap());
}

#[test]
fn commit_that_changes_nothing_leaves_something_to_copy() {
    let (_dir, mut one, _two) = pair();
    assert!(one.checkpoint(Mode::Truncate).unwrap().unwrap().complete);
    touch(one.connection()).unwrap();
    let done = one.checkpoint(Mode::Passive).unwrap().unwrap();
    assert_eq!((done.log_pages, done.done_pages), (1, 1));
}

/// Copies database and log as they lie there, as `cp` would.
fn copy(place: &Place) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    ["", "-wal"]
        .map(|ending| sidecar::beside(&place.path(), ending))
        .into_iter()
        .filter_map(|path| Some((path.clone(), std::fs::read(path).ok()?)))
        .collect()
}

fn put_back(copy: &[(std::path::PathBuf, Vec<u8>)], place: &Place) {
    for ending in ["-wal", "-shm"] {
        std::fs::remove_file(sidecar::beside(&place.path(), ending)).ok();
    }
    for (path, bytes) in copy {
        std::fs::write(path, bytes).unwrap();
    }
}

/// What SQLite's own check says of the files as they lie there.
fn integrity(place: &Place) -> String {
    let conn = Connection::open(place.path()).unwrap();
    conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}

/// The next open finds that a commit is missing, which SQLite's own check does not.
#[track_caller]
fn check_found(place: &Place, missing: i64, newest: i64) {
    assert_eq!(integrity(place), "ok");
    let error = place.try_open().unwrap_err();
    let StoreError::RolledBack { missing: gone, newest: there, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!((gone, there), (missing, newest));
}

#[test]
fn old_copy_that_was_put_back_is_found_at_the_next_open() {
    let place = Place::new();
    let mut database = place.open();
    place.append_times(&mut database, 5, 1);
    database.close().unwrap();
    let old = copy(&place);
    let mut database = place.open();
    assert!(matches!(database.opened().anchored, Some(Anchored::Confirmed(_))));
    place.append_times(&mut database, 3, 1);
    database.close().unwrap();
    put_back(&old, &place);
    check_found(&place, 8, 5);
}

#[test]
fn log_that_was_deleted_is_found_at_the_next_open() {
    let place = Place::new();
    let mut database = place.open();
    place.append_times(&mut database, 5, 1);
    database.checkpoint(Mode::Truncate).unwrap();
    place.append_times(&mut database, 3, 1);
    // What a kill leaves: nothing was closed.
    let killed = copy(&place);
    database.close().unwrap();
    put_back(&killed[..1], &place);
    check_found(&place, 8, 5);
}

#[test]
fn other_database_under_the_same_name_is_found_though_it_has_more_commits() {
    let place = Place::new();
    let mut database = place.open();
    place.append_times(&mut database, 5, 1);
    database.close().unwrap();
    let other = Place::new();
    let mut database = other.open();
    other.append_times(&mut database, 9, 2);
    database.close().unwrap();
    std::fs::copy(other.path(), place.path()).unwrap();
    check_found(&place, 5, 9);
}

#[test]
fn acknowledged_commit_that_vanishes_under_an_open_connection_is_found_by_its_next_write() {
    let place = Place::new();
    let mut database = place.open();
    place.append_times(&mut database, 3, 1);
    database.connection().execute_batch("DELETE FROM marks WHERE seq = 3").unwrap();
    let failed = Place::try_append(&mut database, None, 1).unwrap_err();
    let Failure::Body(StoreError::RolledBack { missing: 3, newest: 2, .. }) = failed else {
        panic!("{failed:?}")
    };
}

#[test]
fn acknowledged_commit_of_another_that_vanished_is_found_by_whoever_writes_next() {
    let place = Place::new();
    let (mut one, mut two) = (place.open(), place.open());
    place.append_times(&mut one, 3, 1);
    one.connection().execute_batch("DELETE FROM marks WHERE seq = 3").unwrap();
    // It never saw that commit, and would make another of that number.
    let failed = Place::try_append(&mut two, None, 1).unwrap_err();
    let Failure::Unready(StoreError::RolledBack { missing: 3, newest: 2, .. }) = failed else {
        panic!("{failed:?}")
    };
    assert!(matches!(two.usable(), Err(StoreError::Poisoned)));
    assert!(matches!(place.try_open(), Err(StoreError::RolledBack { .. })));
}

#[test]
fn commits_of_others_are_anchored_by_them_and_no_false_alarm_comes_of_it() {
    let place = Place::new();
    let (mut one, mut two) = (place.open(), place.open());
    for number in 0..60 {
        let durability = [Durability::Process, Durability::Power][number % 3 % 2];
        let writer = if number % 2 == 0 { &mut one } else { &mut two };
        Place::try_append(writer, Some(durability), 1).unwrap();
    }
    assert_eq!(one.anchor.as_ref().unwrap().newest().unwrap().unwrap().head.seq, 60);
    drop(place.open());
}

#[test]
fn anchor_that_is_gone_is_told_and_made_anew() {
    let place = Place::new();
    let mut database = place.open();
    let head = place.append(&mut database, 1);
    database.close().unwrap();
    std::fs::remove_file(sidecar::beside(&place.path(), "-anchor")).unwrap();
    assert_eq!(place.open().opened().anchored, Some(Anchored::Absent));
    let Some(Anchored::Confirmed(anchor)) = place.open().opened().anchored else { panic!() };
    assert_eq!(anchor.head, head);
}

#[test]
fn file_moved_removed_or_linked_under_an_open_database_refuses_the_commit() {
    let spoil: [fn(&Place); 6] = [
        |place| std::fs::rename(place.path(), place.path().with_extension("old")).unwrap(),
        |place| std::fs::remove_file(sidecar::beside(&place.path(), "-wal")).unwrap(),
        |place| std::fs::remove_file(sidecar::beside(&place.path(), "-shm")).unwrap(),
        |place| std::fs::hard_link(place.path(), place.path().with_extension("2")).unwrap(),
        |place| {
            let bytes = std::fs::read(place.path()).unwrap();
            std::fs::write(place.path().with_extension("new"), bytes).unwrap();
            std::fs::rename(place.path().with_extension("new"), place.path()).unwrap();
        },
        |place| {
            let log = sidecar::beside(&place.path(), "-wal");
            std::fs::remove_file(&log).unwrap();
            std::fs::write(&log, b"").unwrap();
        },
    ];
    for (index, spoil) in spoil.iter().enumerate() {
        let place = Place::new();
        let mut database = place.open();
        place.append(&mut database, 1);
        spoil(&place);
        let failed = Place::try_append(&mut database, None, 1).unwrap_err();
        assert!(
            matches!(failed, Failure::Unready(StoreError::Moved { .. })),
            "{index}: {failed:?}"
        );
        assert!(matches!(database.usable(), Err(StoreError::Poisoned)), "{index}");
    }
}

#[test]
fn database_that_moved_just_after_a_look_is_missed_at_no_commit_though_its_path_is_not_walked() {
    let spoil: [fn(&Place); 3] = [
        |place| std::fs::rename(place.path(), place.path().with_extension("old")).unwrap(),
        |place| std::fs::hard_link(place.path(), place.path().with_extension("2")).unwrap(),
        |place| {
            let bytes = std::fs::read(place.path()).unwrap();
            std::fs::write(place.path().with_extension("new"), bytes).unwrap();
            std::fs::rename(place.path().with_extension("new"), place.path()).unwrap();
        },
    ];
    // Many times, for the move may fall into the tick of the kernel's clock that the look was in.
    for round in 0..20 {
        for (index, spoil) in spoil.iter().enumerate() {
            let place = Place::new();
            let mut database = place.open();
            database.options.watch_every = Duration::from_hours(1);
            place.append(&mut database, 1);
            place.append(&mut database, 1);
            spoil(&place);
            let failed = Place::try_append(&mut database, None, 1).unwrap_err();
            assert!(
                matches!(failed, Failure::Unready(StoreError::Moved { .. })),
                "{index} in round {round}: {failed:?}"
            );
        }
    }
}

#[test]
fn database_in_another_process_than_its_own_is_refused_and_its_end_does_no_harm() {
    let place = Place::new();
    let mut database = place.open();
    place.append(&mut database, 1);
    database.pid = database.pid.wrapping_add(1);
    let failed = Place::try_append(&mut database, None, 1).unwrap_err();
    assert!(matches!(failed, Failure::Unready(StoreError::OtherProcess { .. })), "{failed:?}");
    drop(database);
    // The lock that the parent holds was not let go by the child's end.
    let lock = LockFile::open(&place.path()).unwrap();
    assert!(lock.was_closed().is_ok_and(|closed| !closed), "nothing was closed in its name");
    place.append(&mut place.open(), 1);
}

#[test]
fn database_left_without_a_close_is_looked_at_and_one_that_was_closed_is_not() {
    let place = Place::new();
    let mut database = place.open();
    place.append(&mut database, 1);
    database.close().unwrap();
    assert_eq!(place.open().opened().checked, None);
    // As if it were killed: the locks go, the mark stays.
    let lock = LockFile::open(&place.path()).unwrap();
    lock.mark(false).unwrap();
    let report = place.open().opened().checked.clone().unwrap();
    assert!(report.is_sound(), "{report:?}");
}

#[test]
fn damage_that_a_read_meets_quarantines_the_database_and_nobody_writes_to_it_again() {
    let place = Place::new();
    let mut database = place.open();
    place.append_times(&mut database, 50, 20);
    let page: u64 = database
        .connection()
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'notes'", [], |row| {
            row.get::<_, u32>(0).map(u64::from)
        })
        .unwrap();
    database.close().unwrap();
    let mut bytes = std::fs::read(place.path()).unwrap();
    let at = usize::try_from((page - 1) * 4096).unwrap();
    bytes[at..at + 64].fill(0x5a);
    std::fs::write(place.path(), &bytes).unwrap();
    let database = Database::open(&place.path(), &Place::options(), false).unwrap();
    let count = |conn: &Connection| {
        conn.query_row("SELECT count(*), max(text) FROM notes NOT INDEXED", [], |_| Ok(()))
    };
    let error = database.read("count", count).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(matches!(database.usable(), Err(StoreError::Poisoned)));
    database.close().unwrap();
    let error = place.try_open().unwrap_err();
    let StoreError::Quarantined { copy, .. } = error else { panic!("{error:?}") };
    assert_eq!(std::fs::read(copy.join("any.db")).unwrap(), bytes);
    assert_eq!(std::fs::read(place.path()).unwrap(), bytes, "it was not written to");
}

#[test]
fn lock_that_cannot_be_had_quarantines_nothing() {
    let place = Place::new();
    let (mut one, two) = (place.open(), place.open());
    two.connection().execute_batch("BEGIN IMMEDIATE").unwrap();
    let failed = Place::try_append(&mut one, None, 1).unwrap_err();
    assert!(matches!(failed, Failure::Busy { .. }), "{failed:?}");
    assert_eq!(quarantine::notice(&place.path()), None);
    one.usable().unwrap();
}

#[test]
fn file_cut_short_is_found_at_the_open() {
    let place = Place::new();
    let mut database = place.open();
    place.append(&mut database, 500);
    database.close().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(place.path()).unwrap();
    file.set_len(file.metadata().unwrap().len() - 4096).unwrap();
    let error = place.try_open().unwrap_err();
    assert!(
        matches!(error, StoreError::Quarantined { .. } | StoreError::Corrupt { .. }),
        "{error:?}"
    );
}

#[test]
fn quarantined_place_is_refused_before_sqlite_sees_its_files() {
    let place = Place::new();
    let mut database = place.open();
    place.append(&mut database, 1);
    drop(database.damaged("a test says so"));
    drop(database);
    // A file that is none, and a journal that SQLite would put back into it.
    std::fs::write(place.path(), b"").unwrap();
    let journal = sidecar::beside(&place.path(), "-journal");
    std::fs::write(&journal, [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7]).unwrap();
    let error = Database::look(&place.path(), &Place::options(), true).unwrap_err();
    assert!(matches!(error, StoreError::Quarantined { .. }), "{error:?}");
    assert!(journal.exists() && std::fs::metadata(place.path()).unwrap().len() == 0);
}
