//! Copying the log into the database: by one process at a time, and with the answer checked.
//!
//! SQLite's own automatic checkpoints are off on every connection. Instead a writer whose commit
//! left many pages in the log takes, before its next transaction, the right to checkpoint: a lock
//! on a byte of the lock file ([`super::sidecar`]). Whoever does not get it writes on without a
//! wait. The step is made after that transaction, within the caller's call, and the right is given
//! back. So there is no thread for it, ownership never stays with a process that sleeps, and the
//! kernel takes it from one that is killed.
//!
//! # Why the right is taken before the transaction
//!
//! SQLite up to 3.51.2 can lose acknowledged commits (its documentation, *Write-Ahead Logging*,
//! section 11): a checkpoint reads how long the log is; then, if all of the log had been copied
//! before, a writer may start the log anew; then the checkpoint takes the new log for the old one.
//! It cannot happen while some of the log is still to be copied, for nobody starts a log anew
//! then. An owner that has just committed has something to copy, and as nobody else may copy it,
//! that stays so until the owner's own checkpoint does it. Hence the rule, kept on every engine
//! since it costs nothing: **only the owner checkpoints, and only after a commit of its own that
//! it made as the owner.** Where there is no such commit, as at the close, an owner on such an
//! engine makes one that changes nothing.
//!
//! # How the log stays bounded
//!
//! | pages in the log                | what the step does                                        |
//! |---------------------------------|-----------------------------------------------------------|
//! | `wal_autocheckpoint_pages`, N   | PASSIVE: copies what no reader needs, waits for nobody    |
//! | each further N up to 4 N        | the same: a reader or steady writers held the log back    |
//! | from 4 N on, each further N     | TRUNCATE: waits for writers and readers, 100 ms at most   |
//!
//! A reader that stays for minutes holds the log for as long, in every mode: that is what a
//! snapshot is. [`Checkpoint::complete`] says so, and `hardboard checkpoint` says who it may be.
//!
//! In: how long the log is. Out: a [`Checkpoint`]. Not here: what is done with a broken answer.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde::Serialize;

use crate::sqlite::engine::Engine;
use crate::sqlite::transaction::is_busy;

/// How long a step within a caller's call may wait for others, at most.
pub(crate) const STEP_PATIENCE: Duration = Duration::from_millis(100);

/// From how many times the wanted length on a step waits for others.
const LONG_LOG: u32 = 4;

/// How a checkpoint goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Copies what can be copied without any wait.
    Passive,
    /// Waits for writers and readers, copies all and cuts the log to nothing. If the wait is in
    /// vain it does what the other would.
    Truncate,
}

/// What a checkpoint did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    /// How it was made.
    pub mode: Mode,
    /// Whether nothing of the log is left to copy. If not, a reader needs an older state, or
    /// writers did not stop.
    pub complete: bool,
    /// Pages in the log when it ended.
    pub log_pages: u32,
    /// How many of them the database has.
    pub done_pages: u32,
    /// How long it took.
    #[serde(rename = "took_us", serialize_with = "microseconds")]
    pub took: Duration,
}

fn microseconds<S: serde::Serializer>(took: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(took.as_micros()).unwrap_or(u64::MAX))
}

/// Why there is no [`Checkpoint`].
#[derive(Debug)]
pub(crate) enum Failure {
    /// Another connection, of another program, checkpoints; or a lock was not to be had.
    Busy,
    /// What no sound log can have: more pages copied than there are. The file must be left as it
    /// is: a copy of database and log without the -shm still has every commit.
    Impossible { log_pages: i64, done_pages: i64 },
    /// SQLite failed.
    Sqlite(rusqlite::Error),
}

/// Makes a checkpoint and checks what SQLite says of it.
pub(crate) fn run(conn: &Connection, mode: Mode) -> Result<Checkpoint, Failure> {
    // A log that is cut is said to have had no page: the answer to the other mode, asked before,
    // is one that can be checked, and finds what another program's SQLite did to the log while the
    // log is there still. An engine with the reset fault is not asked twice: after the first
    // answer it has nothing left to copy, which is the state that the fault needs.
    if mode == Mode::Truncate && !Engine::loaded().may_reset_log() {
        match ask(conn, Mode::Passive) {
            Ok(_) | Err(Failure::Busy) => {}
            Err(failure) => return Err(failure),
        }
    }
    ask(conn, mode)
}

fn ask(conn: &Connection, mode: Mode) -> Result<Checkpoint, Failure> {
    let started = Instant::now();
    let sql = match mode {
        Mode::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
        Mode::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
    };
    let answer = conn
        .prepare_cached(sql)
        .and_then(|mut sql| sql.query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))));
    match answer {
        Ok(answer) => judge(mode, answer, started.elapsed()),
        Err(error) if is_busy(&error) => Err(Failure::Busy),
        Err(error) => Err(Failure::Sqlite(error)),
    }
}

/// The answer is three columns: whether it was held up, the pages in the log, those copied; both
/// of these -1 if it did not even begin.
fn judge(
    mode: Mode,
    (held_up, log, done): (i64, i64, i64),
    took: Duration,
) -> Result<Checkpoint, Failure> {
    if (log, done) == (-1, -1) && held_up != 0 {
        return Err(Failure::Busy);
    }
    match (u32::try_from(log), u32::try_from(done)) {
        (Ok(log_pages), Ok(done_pages)) if done_pages <= log_pages => Ok(Checkpoint {
            mode,
            complete: held_up == 0 && done_pages == log_pages,
            log_pages,
            done_pages,
            took,
        }),
        _ => Err(Failure::Impossible { log_pages: log, done_pages: done }),
    }
}

/// When a connection makes a step, and which.
#[derive(Debug)]
pub(crate) struct Policy {
    every_pages: u32,
    next_at_pages: Cell<u32>,
}

impl Policy {
    /// A step each `every_pages`; 0: never.
    pub(crate) fn new(every_pages: u32) -> Self {
        Self { every_pages, next_at_pages: Cell::new(every_pages) }
    }

    /// The step that is due when a commit has left that many pages in the log.
    pub(crate) fn due(&self, log_pages: u32) -> Option<Mode> {
        if self.every_pages == 0 {
            return None;
        }
        if log_pages < self.every_pages {
            // The log was started anew.
            self.next_at_pages.set(self.every_pages);
        }
        if log_pages < self.next_at_pages.get() {
            return None;
        }
        let long = log_pages >= self.every_pages.saturating_mul(LONG_LOG);
        Some(if long { Mode::Truncate } else { Mode::Passive })
    }

    /// A step was made, or was another's to make, when the log had that many pages.
    pub(crate) fn made(&self, log_pages: u32) {
        self.next_at_pages.set(log_pages.saturating_add(self.every_pages));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(answer: (i64, i64, i64)) -> Result<Checkpoint, Failure> {
        judge(Mode::Passive, answer, Duration::ZERO)
    }

    #[test]
    fn answer_is_believed_only_within_what_a_sound_log_can_have() {
        assert!(judged((0, 7, 7)).unwrap().complete);
        assert!(judged((0, 0, 0)).unwrap().complete);
        assert!(!judged((0, 7, 3)).unwrap().complete);
        assert!(!judged((1, 7, 7)).unwrap().complete);
        assert!(matches!(judged((1, -1, -1)), Err(Failure::Busy)));
        for answer in [(0, 40, 9999), (0, 1, 61), (0, -1, -1), (0, -1, 3), (0, 5, -2)] {
            assert!(matches!(judged(answer), Err(Failure::Impossible { .. })), "{answer:?}");
        }
    }

    #[test]
    fn steps_are_due_at_each_multiple_and_anew_after_a_restart_of_the_log() {
        let policy = Policy::new(100);
        assert_eq!(policy.due(99), None);
        assert_eq!(policy.due(100), Some(Mode::Passive));
        policy.made(100);
        assert_eq!(policy.due(199), None);
        assert_eq!(policy.due(200), Some(Mode::Passive));
        policy.made(200);
        assert_eq!(policy.due(5), None);
        assert_eq!(policy.due(100), Some(Mode::Passive));
        assert_eq!(policy.due(400), Some(Mode::Truncate));
        policy.made(400);
        assert_eq!(policy.due(499), None);
        assert_eq!(Policy::new(0).due(u32::MAX), None);
    }
}
