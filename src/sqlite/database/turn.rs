//! Taking turns: that of many writers none waits for ever.
//!
//! SQLite has no queue. Who finds the write lock taken looks again after a pause, and who has just
//! given it back and wants it again finds it free: a process that writes without a pause keeps
//! all others out, for seconds (`cargo bench --bench scale` shows it). So whoever finds the lock
//! taken takes a second one first, the turn, and holds it until it has the write lock: it is the
//! next. And whoever writes again and again looks at every sixteenth write whether somebody holds
//! the turn, and then waits for it like everybody else.
//!
//! It is a courtesy and no lock: nobody waits for it longer than [`TURN_PATIENCE`], so a process
//! that is stopped while it holds the turn keeps nobody out; and one that is killed has given it
//! back.
//!
//! In: a connection that wants to write. Out: the transaction has begun. Not here: what is written.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::sqlite::backoff::Backoff;
use crate::sqlite::callback::Callbacks;
use crate::sqlite::control::Control;
use crate::sqlite::sidecar::{Hold, LockFile, Part};
use crate::sqlite::transaction::is_busy;

/// How many writes a connection makes without a look whether others wait.
const WRITES_A_LOOK: u32 = 16;
/// How long the turn is waited for.
const TURN_PATIENCE: Duration = Duration::from_millis(100);
/// Between two tries for it. It does not grow: who came last would else try the most often.
const PAUSE: Duration = Duration::from_micros(250);

/// What is needed to wait for one's turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn<'a> {
    pub(super) lock: &'a LockFile,
    pub(super) callbacks: &'a Callbacks,
    /// Writes of this connection since it last looked.
    pub(super) writes: &'a Cell<u32>,
}

impl Turn<'_> {
    /// `BEGIN IMMEDIATE`, as soon as it is this connection's turn.
    ///
    /// # Errors
    ///
    /// What SQLite said: busy, if the patience of the connection ended.
    pub(super) fn begin(self, conn: &Connection, control: &Control) -> rusqlite::Result<()> {
        let patience = self.callbacks.patience();
        if !self.gives_way() {
            match self.begin_within(Duration::ZERO, conn, control) {
                Err(error) if is_busy(&error) && !patience.is_zero() => {}
                begun => return begun,
            }
        }
        let started = Instant::now();
        let mut pauses = Backoff::steady(started, patience.min(TURN_PATIENCE), PAUSE);
        let mut held = self.try_to_hold();
        while !held && pauses.pause() {
            held = self.try_to_hold();
        }
        let left = patience.saturating_sub(started.elapsed());
        let begun = self.begin_within(left, conn, control);
        if held {
            // Failing that, it goes with the descriptor.
            self.lock.release(Part::Turn).ok();
        }
        begun
    }

    /// Whether somebody else waits, as far as it is time to look.
    fn gives_way(self) -> bool {
        let writes = self.writes.get() + 1;
        self.writes.set(writes % WRITES_A_LOOK);
        writes == WRITES_A_LOOK && self.lock.is_held_elsewhere(Part::Turn).unwrap_or(false)
    }

    /// A lock that cannot be asked for is as one that cannot be had.
    fn try_to_hold(self) -> bool {
        self.lock.take(Part::Turn, Hold::Exclusive).unwrap_or(false)
    }

    fn begin_within(
        self,
        patience: Duration,
        conn: &Connection,
        control: &Control,
    ) -> rusqlite::Result<()> {
        let before = self.callbacks.set_patience(patience);
        let begun = control.begin(conn);
        self.callbacks.set_patience(before);
        begun
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;
    use crate::options::Options;
    use crate::sqlite::database::Database;
    use crate::sqlite::fixture::{LEDGER, Place};

    fn open(place: &Place) -> Database {
        let busy_timeout = Duration::from_secs(30);
        let options = Options { busy_timeout, ..Place::options() };
        let mut database = Database::open(&place.path(), &options, false).unwrap();
        database.keep_chain(&LEDGER).unwrap();
        database
    }

    #[test]
    fn of_many_writers_without_a_pause_none_is_kept_out() {
        const WRITERS: usize = 8;
        const MOST: u32 = 400;
        let place = Place::new();
        drop(place.open());
        let done = AtomicBool::new(false);
        let all_open = Barrier::new(WRITERS);
        let made: Vec<u32> = thread::scope(|scope| {
            let writer = || {
                let mut database = open(&place);
                all_open.wait();
                let mut made = 0;
                while made < MOST && !done.load(Ordering::Relaxed) {
                    place.append(&mut database, 1);
                    made += 1;
                }
                done.store(true, Ordering::Relaxed);
                made
            };
            let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(writer)).collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        assert!(made.iter().all(|made| *made >= MOST / 10), "{made:?}");
    }

    #[test]
    fn turn_that_is_never_given_back_keeps_nobody_out() {
        let place = Place::new();
        drop(place.open());
        let mut one = open(&place);
        let stopped = LockFile::open(&place.path()).unwrap();
        assert!(stopped.take(Part::Turn, Hold::Exclusive).unwrap());
        // The next write looks, and finds that somebody waits, who never does anything.
        one.writes.set(WRITES_A_LOOK - 1);
        let started = Instant::now();
        place.append(&mut one, 1);
        assert!(started.elapsed() >= TURN_PATIENCE, "it gave way, and then went on");
    }
}
