//! The board as a whole: opening it, its numbers, and what its failures leave behind.

use std::env;
use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use super::fixture::{HOUR, Place, dump, quick};
use super::*;
use crate::error::Outcome;
use crate::{FencingToken, NewTask, Synchronous, TaskId};

fn titled() -> NewTask<'static> {
    NewTask { title: "dig", ..NewTask::default() }
}

/// Ends the transaction behind the back of its writer, which makes the commit fail as it does
/// when SQLite has given the transaction up.
fn lose_the_commit(board: &mut Board, key: OpKey) -> StoreError {
    let failed = board.db.write(None, |conn| -> Result<(), Stop> {
        conn.execute_batch("ROLLBACK")?;
        Ok(())
    });
    board.explain(failed.unwrap_err(), Kind::Create.deed(), key)
}

#[test]
fn board_can_be_sent_to_another_thread() {
    fn check<T: Send>() {}
    check::<Board>();
    check::<StoreError>();
}

#[test]
fn first_commit_is_number_one_and_an_empty_board_is_at_zero() {
    let mut place = Place::new();
    let mut board = place.board();
    assert_eq!(board.commit_seq().unwrap(), CommitSeq::new(0));
    let (_, commit) = board.create_task(place.key(), &titled()).unwrap();
    assert_eq!(commit.seq, CommitSeq::new(1));
    assert_eq!(board.commit_seq().unwrap(), CommitSeq::new(1));
}

#[test]
fn refused_write_leaves_no_hole_in_the_commit_numbers() {
    let mut place = Place::new();
    let mut board = place.board();
    assert!(board.complete(place.key(), TaskId::new(9), FencingToken::new(1), "").is_err());
    let (_, commit) = board.create_task(place.key(), &titled()).unwrap();
    assert_eq!(commit.seq, CommitSeq::new(1));
}

#[test]
fn keys_of_a_session_count_from_one() {
    let mut session = Session::new(3);
    assert_eq!(session.next_key(), OpKey { session: 3, op: 1 });
    assert_eq!(session.next_key(), OpKey { session: 3, op: 2 });
}

#[test]
fn every_opened_board_has_the_settings_that_were_asked_for() {
    let place = Place::new();
    for synchronous in [Synchronous::Normal, Synchronous::Full, Synchronous::Extra] {
        let options = Options { synchronous, wal_autocheckpoint_pages: 77, ..quick() };
        let board = Board::create(&place.path(), &options).unwrap();
        assert_eq!(board.pragmas().unwrap(), Pragmas::wanted(&options));
        board.close().unwrap();
        let board = Board::open(&place.path(), &options).unwrap();
        assert_eq!(board.pragmas().unwrap(), Pragmas::wanted(&options));
    }
}

#[test]
fn what_was_written_is_there_when_the_board_is_opened_again() {
    let mut place = Place::new();
    let mut board = place.board();
    place.create(&mut board, "dig", 3);
    let before = dump(board.connection());
    board.close().unwrap();
    let board = Board::open(&place.path(), &quick()).unwrap();
    assert_eq!(dump(board.connection()), before);
}

#[test]
fn creating_a_board_that_is_there_opens_it() {
    let mut place = Place::new();
    let mut board = place.board();
    place.create(&mut board, "dig", 0);
    assert_eq!(dump(place.board().connection()), dump(board.connection()));
}

#[test]
fn processes_that_create_one_board_at_the_same_moment_all_get_it() {
    for _ in 0..8 {
        let place = Place::new();
        let (path, start) = (place.path(), Barrier::new(4));
        let options = Options { busy_timeout: Duration::from_secs(20), ..quick() };
        thread::scope(|scope| {
            for session in 0..4 {
                let (path, start, options) = (&path, &start, &options);
                scope.spawn(move || {
                    start.wait();
                    let mut board = Board::create(path, options).unwrap();
                    let key = Session::new(session).next_key();
                    board.create_task(key, &titled()).unwrap().1
                });
            }
        });
        assert_eq!(place.board().commit_seq().unwrap(), CommitSeq::new(4));
    }
}

#[test]
fn write_is_refused_as_busy_while_another_connection_holds_the_lock() {
    let mut place = Place::new();
    let mut board = place.board();
    let other = place.board();
    other.connection().execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = board.create_task(place.key(), &titled()).unwrap_err();
    let StoreError::Busy { waited } = error else { panic!("{error:?}") };
    assert!(waited >= Duration::from_millis(40), "{waited:?}");
    assert_eq!(error.outcome(), Outcome::Refused);
    other.connection().execute_batch("ROLLBACK").unwrap();
    assert_eq!(board.create_task(place.key(), &titled()).unwrap().1.seq, CommitSeq::new(1));
}

#[test]
fn readers_are_not_kept_waiting_by_a_writer() {
    let mut place = Place::new();
    let mut board = place.board();
    let task = place.create(&mut board, "dig", 0);
    let other = place.board();
    other.connection().execute_batch("BEGIN IMMEDIATE; DELETE FROM events").unwrap();
    assert_eq!(board.events(task).unwrap().len(), 1);
}

#[test]
fn full_database_refuses_the_write_and_keeps_what_was_there() {
    let mut place = Place::new();
    let mut board = place.board();
    let pages = "SELECT page_count FROM pragma_page_count";
    let pages: i64 = board.connection().query_row(pages, [], |row| row.get(0)).unwrap();
    board.connection().pragma_update(None, "max_page_count", pages).unwrap();
    let before = dump(board.connection());
    let title = "x".repeat(100_000);
    let task = NewTask { title: &title, ..NewTask::default() };
    let error = board.create_task(place.key(), &task).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    assert_eq!(error.outcome(), Outcome::Refused);
    assert!(std::error::Error::source(&error).is_some());
    assert_eq!(dump(board.connection()), before);
    assert_eq!(board.create_task(place.key(), &titled()).unwrap().1.seq, CommitSeq::new(1));
}

#[test]
fn failed_commit_is_of_unknown_outcome_and_names_its_write() {
    let mut place = Place::new();
    let mut board = place.board();
    let key = place.key();
    let error = lose_the_commit(&mut board, key);
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert!(std::error::Error::source(&error).is_some());
    let StoreError::Indeterminate { key: named, .. } = error else { panic!("{error:?}") };
    assert_eq!(named, key);
}

#[test]
fn connection_is_of_no_use_after_a_write_of_unknown_outcome() {
    let mut place = Place::new();
    let mut board = place.board();
    let task = place.create(&mut board, "dig", 0);
    let key = place.key();
    lose_the_commit(&mut board, key);
    let token = FencingToken::new(1);
    let errors = [
        board.create_task(key, &titled()).unwrap_err(),
        board.claim_next(key, "ann", HOUR).unwrap_err(),
        board.claim(key, task, "ann", HOUR).unwrap_err(),
        board.heartbeat(key, task, token, HOUR).unwrap_err(),
        board.append_events(key, task, None, &[]).unwrap_err(),
        board.complete(key, task, token, "").unwrap_err(),
        board.take_back_expired(key).unwrap_err(),
        board.tick(&mut Session::new(1)).unwrap_err(),
        board.pragmas().unwrap_err(),
        board.commit_seq().unwrap_err(),
        board.task(task).unwrap_err(),
        board.tasks(crate::TaskFilter::default()).unwrap_err(),
        board.runs(task).unwrap_err(),
        board.events(task).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, StoreError::Poisoned), "{error:?}");
        assert_eq!(error.outcome(), Outcome::Refused);
    }
    // One commit, its task, its event and nothing else.
    assert_eq!(dump(place.board().connection()).len(), 3);
}

/// The part of the next test that runs in a process that may not make its files any longer.
#[test]
#[ignore = "needs the limit that the next test sets"]
fn writer_under_a_limit() {
    let Some(path) = env::var_os("BOARD_UNDER_A_LIMIT") else { return };
    let mut board = Board::open(Path::new(&path), &quick()).unwrap();
    let mut session = Session::new(1);
    let error = loop {
        let key = session.next_key();
        match board.create_task(key, &titled()) {
            Ok(_) => assert!(key.op < 100_000, "the limit is never reached"),
            Err(error) => break error,
        }
    };
    let StoreError::Indeterminate { key, source } = error else { panic!("{error:?}") };
    assert_eq!(key, OpKey { session: 1, op: session.last_op });
    assert_eq!(source.sqlite_error_code(), Some(rusqlite::ErrorCode::SystemIoFailure));
}

#[test]
fn commit_that_the_file_system_fails_is_of_unknown_outcome() {
    let place = Place::new();
    place.board().close().unwrap();
    let run = "trap '' XFSZ; ulimit -f 2000; \
               exec \"$0\" --ignored --exact board::tests::writer_under_a_limit";
    let done = Command::new("sh")
        .args(["-c", run])
        .arg(env::current_exe().unwrap())
        .env("BOARD_UNDER_A_LIMIT", place.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && told.contains("1 passed"), "{told}");
    // Each task that is there is there with its event and its commit.
    let whole = "SELECT (SELECT count(*) FROM commits) = (SELECT count(*) FROM tasks) \
                 AND (SELECT count(*) FROM commits) = (SELECT count(*) FROM events)";
    let board = place.board();
    assert!(board.connection().query_row(whole, [], |row| row.get::<_, bool>(0)).unwrap());
    assert!(board.commit_seq().unwrap() > CommitSeq::new(10));
}

#[test]
fn several_looks_at_one_moment_do_not_see_what_is_written_between_them() {
    let mut place = Place::new();
    let (board, mut other) = (place.board(), place.board());
    let seen = board.at_one_moment(|board| {
        let before = board.commit_seq()?;
        place.create(&mut other, "dig", 0);
        Ok((before, board.commit_seq()?))
    });
    assert_eq!(seen.unwrap(), (CommitSeq::new(0), CommitSeq::new(0)));
    assert_eq!(board.commit_seq().unwrap(), CommitSeq::new(1));
}

#[test]
fn call_says_what_its_write_survives_and_the_next_one_is_as_the_options_say() {
    let mut place = Place::new();
    let options = Options { synchronous: Synchronous::Extra, ..Options::default() };
    let mut board = Board::create(&place.path(), &options).unwrap();
    let task = place.create(&mut board, "dig", 0);
    let mut seen = |board: &mut Board| {
        let commit = board.append_events(place.key(), task, None, &[]).unwrap();
        let level: i64 =
            board.connection().pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
        (commit.durability, level)
    };
    assert_eq!(seen(&mut board), (Durability::Power, 3));
    assert_eq!(seen(&mut board.at(Durability::Process)), (Durability::Process, 1));
    let mut power = board.at(Durability::Power);
    assert_eq!(seen(&mut power), (Durability::Power, 2));
    // Within a choice another may be made, and it ends before the first.
    assert_eq!(seen(&mut power.at(Durability::Process)), (Durability::Process, 1));
    assert_eq!(seen(&mut power), (Durability::Power, 2));
    drop(power);
    assert_eq!(seen(&mut board), (Durability::Power, 3));
}
