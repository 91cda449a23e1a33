use std::error::Error;

use rusqlite::ffi;

use super::*;

fn reported(code: i32) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some("told by SQLite".to_owned()))
}

fn sorted(code: i32) -> StoreError {
    let waited = Duration::from_millis(7);
    StoreError::refused(reported(code), "dig", Path::new("a.db"), waited)
}

#[test]
fn failures_are_sorted_by_the_callers_next_move() {
    assert!(matches!(sorted(ffi::SQLITE_BUSY), StoreError::Busy { .. }));
    assert!(matches!(sorted(ffi::SQLITE_BUSY_RECOVERY), StoreError::Busy { .. }));
    assert!(matches!(sorted(ffi::SQLITE_FULL), StoreError::Full { .. }));
    assert!(matches!(sorted(ffi::SQLITE_IOERR_FSYNC), StoreError::Io { .. }));
    assert!(matches!(sorted(ffi::SQLITE_IOERR_DATA), StoreError::Corrupt { .. }));
    assert!(matches!(sorted(ffi::SQLITE_IOERR_CORRUPTFS), StoreError::Corrupt { .. }));
    assert!(matches!(sorted(ffi::SQLITE_CORRUPT_INDEX), StoreError::Corrupt { .. }));
    assert!(matches!(sorted(ffi::SQLITE_NOTADB), StoreError::Corrupt { .. }));
    assert!(matches!(sorted(ffi::SQLITE_CANTOPEN), StoreError::Open { .. }));
    assert!(matches!(sorted(ffi::SQLITE_READONLY_DBMOVED), StoreError::Open { .. }));
    assert!(matches!(sorted(ffi::SQLITE_PROTOCOL), StoreError::Sqlite { during: "dig", .. }));
}

#[test]
fn source_is_kept_and_not_folded_into_the_text() {
    let codes = [
        ffi::SQLITE_FULL,
        ffi::SQLITE_IOERR,
        ffi::SQLITE_CORRUPT,
        ffi::SQLITE_CANTOPEN,
        ffi::SQLITE_PROTOCOL,
    ];
    for error in codes.map(sorted) {
        assert_eq!(error.source().unwrap().to_string(), "told by SQLite", "{error:?}");
        assert!(!error.to_string().contains("told by SQLite"), "{error}");
    }
}

#[test]
fn outcome_is_unknown_for_a_failed_commit_alone() {
    let key = OpKey { session: 3, op: 4 };
    let unknown = StoreError::Indeterminate { key, source: reported(ffi::SQLITE_IOERR) };
    assert_eq!(unknown.outcome(), Outcome::Unknown);
    assert_eq!(unknown.to_string(), "the outcome of write 3/4 is unknown");
    assert_eq!(StoreError::Poisoned.outcome(), Outcome::Refused);
    assert_eq!(sorted(ffi::SQLITE_FULL).outcome(), Outcome::Refused);
    assert_eq!(sorted(ffi::SQLITE_IOERR).outcome(), Outcome::Refused);
}

#[test]
fn texts_say_what_it_is_about() {
    let (task, token) = (TaskId::new(5), FencingToken::new(2));
    let texts = [
        (sorted(ffi::SQLITE_BUSY), "the write lock was still held after 7 ms"),
        (
            StoreError::StaleClaim { task, token, newest: FencingToken::new(3) },
            "claim 2 of task 5 is not live: the newest token is 3",
        ),
        (StoreError::NoSuchTask { task }, "there is no task 5"),
        (
            StoreError::NotClaimable { task, status: Status::Done },
            "task 5 cannot be claimed: it is done",
        ),
        (sorted(ffi::SQLITE_CORRUPT), "the database is damaged: a.db"),
        (
            StoreError::NotABoard {
                path: "a.db".into(),
                found: Found::Application { id: 0x0f05_5111 },
            },
            "not a board (it is a database of another application, id 0x0f055111): a.db",
        ),
        (sorted(ffi::SQLITE_PROTOCOL), "SQLite failed to dig"),
    ];
    for (error, text) in texts {
        assert_eq!(error.to_string(), text);
    }
}
