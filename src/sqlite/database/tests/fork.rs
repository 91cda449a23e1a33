//! A database carried over a real `fork`: of no use in the child, and unharmed by it.
//!
//! The parent is a process of its own, with one thread, so that the child finds no lock of the
//! allocator or of SQLite held by a thread that it has not.
#![expect(unsafe_code, reason = "a fork, and an end without destructors")]

use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::*;
use crate::sqlite::fixture::LEDGER;
use crate::sqlite::recover::{Known, Request, recover};

const FILE: &str = "HARDBOARD_TEST_FORK";

/// What the child finds wrong, a bit each; 0: all is as it must be.
fn in_the_child(mut database: Database) -> i32 {
    let refused = |result: Result<(), StoreError>| {
        i32::from(!matches!(result, Err(StoreError::OtherProcess { .. })))
    };
    let appended = Place::try_append(&mut database, None, 1);
    let appended =
        i32::from(!matches!(appended, Err(Failure::Unready(StoreError::OtherProcess { .. }))));
    let read = refused(database.read("count", touch).map(drop));
    let verified = refused(database.verify(Depth::Quick).map(drop));
    let elsewhere = env::temp_dir();
    let backed_up =
        refused(database.backup(&elsewhere, crate::sqlite::backup::Rotation::default()).map(drop));
    let checkpointed = refused(database.checkpoint(Mode::Passive).map(drop));
    drop(database);
    appended | read << 1 | verified << 2 | backed_up << 3 | checkpointed << 4
}

#[test]
#[ignore = "is run by the next test as a process of its own"]
#[expect(clippy::print_stderr, reason = "the test runner lets standard error through")]
fn parent_that_forks() {
    let Some(path) = env::var_os(FILE) else { return };
    let mut database = Database::open(Path::new(&path), &Place::options(), false).unwrap();
    database.keep_chain(&LEDGER).unwrap();
    Place::try_append(&mut database, None, 1).unwrap();
    database.connection().execute_batch("BEGIN IMMEDIATE").unwrap();
    // SAFETY: this process has one thread that is not idle, so no lock is held that the child
    // needs.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let wrong = in_the_child(database);
            // SAFETY: it ends the process and does nothing else.
            unsafe { nix::libc::_exit(wrong) }
        }
        ForkResult::Parent { child } => {
            let ended = waitpid(child, None).unwrap();
            assert!(matches!(ended, WaitStatus::Exited(_, 0)), "{ended:?}");
        }
    }
    eprintln!("the child has ended");
    io::stdin().lock().read_line(&mut String::new()).unwrap();
    database.connection().execute_batch("COMMIT").unwrap();
    Place::try_append(&mut database, None, 1).unwrap();
    database.close().unwrap();
}

#[test]
fn database_carried_over_a_fork_is_refused_in_the_child_and_every_lock_of_the_parent_holds() {
    let place = Place::new();
    let mut database = place.open();
    place.append(&mut database, 1);
    database.close().unwrap();
    let mut parent = Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "--test-threads", "1"])
        .arg("sqlite::database::tests::fork::parent_that_forks")
        .env(FILE, place.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(parent.stderr.take().unwrap());
    let mut all = String::new();
    while !all.contains("the child has ended") {
        assert!(told.read_line(&mut all).unwrap() > 0, "{all}");
    }
    // SQLite's lock, and ours, as another process sees them.
    let other = Connection::open(place.path()).unwrap();
    other.busy_timeout(Duration::ZERO).unwrap();
    let error = other.execute_batch("BEGIN IMMEDIATE").unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy));
    drop(other);
    let known = Known { ledger: Some(&LEDGER), ..Known::NOTHING };
    let repaired = recover(&place.path(), &known, &Place::options(), &Request::default());
    assert!(matches!(repaired, Err(StoreError::Busy { .. })), "{repaired:?}");
    parent.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(parent.wait().unwrap().success());
    let database = place.open();
    let report = database.verify(Depth::Full).unwrap();
    assert!(report.is_sound() && report.rows == 3, "{report:?}");
}
