//! A database that this process has open: one connection, and all that guards it.
//!
//! This is the seam. What stands above it (a board, or any other schema) knows that writes are
//! transactions with one of three outcomes, and how durable each is to be; what SQLite needs for
//! that stays in here.
//!
//! In: a path, [`Options`], bodies of transactions. Out: what the bodies gave, with an
//! [`Acknowledgement`], or a [`Failure`]. Not here: what the rows mean.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::error::{Result, StoreError};
use crate::options::{Options, Synchronous};
use crate::sqlite::callback::{Callbacks, Wired};
use crate::sqlite::checkpoint::{self, Checkpoint, Mode, Policy, STEP_PATIENCE};
use crate::sqlite::durability::{self, Durability};
use crate::sqlite::pragma::{self, Pragmas};
use crate::sqlite::sidecar::{self, Hold, LockFile, Part};
use crate::sqlite::transaction::{self, Failure, Timing};
use crate::sqlite::{engine, open, place};

/// What is known of a write that was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// What it survives.
    pub durability: Durability,
    /// How long it took.
    pub timing: Timing,
}

/// An open database.
///
/// It can be sent to another thread, but not be used by two at once. Don't carry it over a fork.
#[derive(Debug)]
pub struct Database {
    /// `None` only while it is being closed.
    wired: Option<Wired>,
    /// `None` until it is known whose the database is.
    lock: Option<LockFile>,
    /// As it was named when it was opened.
    path: PathBuf,
    /// Where it lies, without symbolic links.
    place: PathBuf,
    /// The level when a call chooses nothing.
    default_level: Synchronous,
    /// The level in effect; `None` while that is not known.
    level: Cell<Option<Synchronous>>,
    options: Options,
    policy: Policy,
    poisoned: bool,
}

impl Database {
    /// Opens the database at `path`, made first if `create`, with the one policy in effect.
    ///
    /// # Errors
    ///
    /// As [`crate::sqlite::open::open`].
    pub fn open(path: &Path, options: &Options, create: bool) -> Result<Self> {
        let mut database = Self::look(path, options, create)?;
        database.arm()?;
        Ok(database)
    }

    /// Opens the database without writing to it, to find out whose it is.
    pub(crate) fn look(path: &Path, options: &Options, create: bool) -> Result<Self> {
        let conn = open::connect(path, options, create)?;
        let place = place::resolve(path)
            .map_err(|_| open::failed(path, rusqlite::Error::InvalidPath(path.to_owned())))?;
        Ok(Self {
            wired: Some(Wired::new(conn)),
            lock: None,
            path: path.to_owned(),
            place,
            default_level: options.synchronous,
            level: Cell::new(None),
            policy: Policy::new(options.wal_autocheckpoint_pages),
            options: options.clone(),
            poisoned: false,
        })
    }

    /// Puts the one policy into effect (see [`pragma::apply`]). It may write to the database, and
    /// makes the files that lie beside it.
    pub(crate) fn arm(&mut self) -> Result<()> {
        let lock = LockFile::open(&self.place).map_err(self.beside("open the lock file"))?;
        let shared = lock.wait(Part::Use, Hold::Shared, self.options.busy_timeout);
        if !shared.map_err(self.beside("lock the lock file"))? {
            return Err(StoreError::Busy { waited: self.options.busy_timeout });
        }
        pragma::apply(self.connection(), &self.path, &self.options)?;
        self.level.set(Some(self.options.synchronous));
        let patience = self.options.busy_timeout;
        if let Some(wired) = &mut self.wired {
            wired.install(patience);
        }
        self.lock = Some(lock);
        Ok(())
    }

    /// The file, as it was named when it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The connection. Whoever writes by it does so without what this layer promises.
    ///
    /// # Panics
    ///
    /// Never: there is one until the value is gone.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        match &self.wired {
            Some(wired) => wired.conn(),
            None => unreachable!("a database that is being closed is not lent to anybody"),
        }
    }

    /// What a write survives when its call chooses nothing.
    #[must_use]
    pub fn default_durability(&self) -> Durability {
        Durability::of(self.default_level)
    }

    /// The settings of a call that chooses nothing, put into effect and asked for now. The wait
    /// for locks and the length of the log are this layer's own matter: SQLite's are off.
    pub fn pragmas(&self) -> Result<Pragmas> {
        self.usable()?;
        self.set_level(self.default_level)?;
        let mut pragmas = Pragmas::read(self.connection())?;
        if let Some(callbacks) = self.callbacks() {
            pragmas.busy_timeout_ms = pragma::busy_timeout_ms(callbacks.patience());
            pragmas.wal_autocheckpoint_pages = self.options.wal_autocheckpoint_pages;
        }
        Ok(pragmas)
    }

    /// Runs `body` as one write (see [`transaction::write`]), as durable as `durability` says, or
    /// as the options did.
    ///
    /// Each of the two durabilities asks nothing of the calls before and after it: the level is
    /// changed when it has to be, and what is acknowledged is what was in effect.
    ///
    /// # Errors
    ///
    /// See [`Failure`]. After one that leaves the connection unfit for use, every further call is
    /// [`StoreError::Poisoned`].
    pub fn write<T, E>(
        &mut self,
        durability: Option<Durability>,
        body: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<(T, Acknowledgement), Failure<E>> {
        let level = durability.map_or(self.default_level, Durability::level);
        self.usable().and_then(|()| self.set_level(level)).map_err(Failure::Unready)?;
        let owner = self.before_write();
        let written = match &mut self.wired {
            Some(wired) => transaction::write(wired.conn_mut(), body),
            None => return Err(Failure::Unready(StoreError::Poisoned)),
        };
        if let Err(failure) = &written {
            self.poisoned |= matches!(failure, Failure::Commit(_) | Failure::Rollback(_));
        }
        let committed = Instant::now();
        if owner {
            self.step(written.is_ok());
        }
        let (value, mut timing) = written?;
        timing.after = committed.elapsed();
        Ok((value, Acknowledgement { durability: Durability::of(level), timing }))
    }

    /// One look: a single statement, so what it sees is of one moment.
    pub fn read<T>(
        &self,
        during: &'static str,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        self.usable()?;
        let started = Instant::now();
        query(self.connection())
            .map_err(|source| StoreError::refused(source, during, &self.path, started.elapsed()))
    }

    /// Whether the connection may still be used.
    pub fn usable(&self) -> Result<()> {
        if self.poisoned { Err(StoreError::Poisoned) } else { Ok(()) }
    }

    /// Copies the log into the database now, as the one process that may.
    ///
    /// `None`: another has the right to, and did not give it back within the patience of the
    /// options; or it belongs to another program. Whether anything is left to copy stands in the
    /// result.
    ///
    /// # Errors
    ///
    /// - [`StoreError::BrokenLog`]: the log's index is damaged.
    /// - Others as [`write`](Self::write).
    pub fn checkpoint(&mut self, mode: Mode) -> Result<Option<Checkpoint>> {
        self.usable()?;
        let patience = self.options.busy_timeout;
        let Some(lock) = &self.lock else { return Ok(None) };
        let owner = lock.wait(Part::Checkpoint, Hold::Exclusive, patience);
        if !owner.map_err(self.beside("lock the lock file"))? {
            return Ok(None);
        }
        lock.sign(Part::Checkpoint).ok();
        let done = self.checkpoint_as_owner(mode);
        self.release_checkpoint();
        done
    }

    /// Who has the right to checkpoint at this moment: the number of a process, 0 if it did not
    /// sign; `None`: nobody but this connection.
    pub fn checkpoint_owner(&self) -> Result<Option<u32>> {
        let Some(lock) = &self.lock else { return Ok(None) };
        let held = lock.is_held_elsewhere(Part::Checkpoint);
        if !held.map_err(self.beside("read the lock file"))? {
            return Ok(None);
        }
        let signature = lock.signature(Part::Checkpoint);
        Ok(Some(signature.map_err(self.beside("read the lock file"))?.unwrap_or(0)))
    }

    /// Closes the database. The last to close it copies the log into it and cuts the log.
    ///
    /// # Errors
    ///
    /// What SQLite reported. Everything that was acknowledged stands nevertheless.
    pub fn close(mut self) -> Result<()> {
        self.shut()
    }

    /// What a failure that wrote nothing means to the caller.
    pub(crate) fn refused(&self, source: rusqlite::Error, during: &'static str) -> StoreError {
        StoreError::refused(source, during, &self.path, Duration::ZERO)
    }

    fn set_level(&self, level: Synchronous) -> Result<()> {
        if self.level.get() == Some(level) {
            return Ok(());
        }
        self.level.set(None);
        durability::set_level(self.connection(), &self.path, level)?;
        self.level.set(Some(level));
        Ok(())
    }

    /// Takes the right to checkpoint if a step is due, without any wait.
    fn before_write(&self) -> bool {
        let Some(callbacks) = self.callbacks() else { return false };
        let pages = callbacks.log_pages();
        if self.policy.due(pages).is_none() {
            return false;
        }
        let Some(lock) = &self.lock else { return false };
        let owner = lock.take(Part::Checkpoint, Hold::Exclusive).unwrap_or(false);
        if owner {
            lock.sign(Part::Checkpoint).ok();
        } else {
            self.policy.made(pages);
        }
        owner
    }

    /// The owner's step after its commit. What it cannot do is left to the next step; what it
    /// finds broken poisons the connection: the commit stands.
    fn step(&mut self, committed: bool) {
        if let (true, Some(callbacks)) = (committed, self.callbacks()) {
            let pages = callbacks.log_pages();
            if let Some(mode) = self.policy.due(pages) {
                let patience = callbacks.set_patience(STEP_PATIENCE);
                let done = checkpoint::run(self.connection(), mode);
                callbacks.set_patience(patience);
                self.policy.made(pages);
                self.poisoned |= matches!(done, Err(checkpoint::Failure::Impossible { .. }));
            }
        }
        self.release_checkpoint();
    }

    fn release_checkpoint(&self) {
        if let Some(lock) = &self.lock {
            // Failing that, the lock goes with the descriptor.
            lock.release(Part::Checkpoint).ok();
        }
    }

    fn checkpoint_as_owner(&mut self, mode: Mode) -> Result<Option<Checkpoint>> {
        if engine::Engine::loaded().may_reset_log() {
            // So that there is something to copy: see the module's documentation.
            touch(self.connection()).map_err(|source| self.refused(source, "checkpoint"))?;
        }
        match checkpoint::run(self.connection(), mode) {
            Ok(done) => {
                if let Some(callbacks) = self.callbacks() {
                    callbacks.forget_log();
                }
                Ok(Some(done))
            }
            Err(checkpoint::Failure::Busy) => Ok(None),
            Err(checkpoint::Failure::Impossible { log_pages, done_pages }) => {
                self.poisoned = true;
                Err(StoreError::BrokenLog { path: self.path.clone(), log_pages, done_pages })
            }
            Err(checkpoint::Failure::Sqlite(source)) => Err(self.refused(source, "checkpoint")),
        }
    }

    /// Closes the connection, after the last checkpoint if nobody else has the database open.
    fn shut(&mut self) -> Result<()> {
        let mut last = Ok(());
        if self.wired.is_some() && !self.poisoned && self.is_alone() {
            match self.checkpoint(Mode::Truncate) {
                Ok(Some(done)) if done.complete => self.mark_closed(),
                Ok(_) => {}
                Err(error) => last = Err(error),
            }
        }
        let Some(wired) = self.wired.take() else { return last };
        let closed = wired.close().map_err(|source| self.refused(source, "close the database"));
        closed.and(last)
    }

    /// Whether nobody else has the database open; then nobody can open it any more until this
    /// value is gone.
    fn is_alone(&self) -> bool {
        self.lock
            .as_ref()
            .is_some_and(|lock| lock.take(Part::Use, Hold::Exclusive).unwrap_or(false))
    }

    fn mark_closed(&self) {
        if let Some(lock) = &self.lock {
            lock.mark(true).ok();
        }
    }

    fn callbacks(&self) -> Option<&Callbacks> {
        self.wired.as_ref().and_then(Wired::callbacks)
    }

    /// What a failure on the lock file means.
    fn beside(&self, during: &'static str) -> impl Fn(io::Error) -> StoreError {
        let path = sidecar::beside(&self.place, "-lock");
        move |source| StoreError::Beside { during, path: path.clone(), source }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // There is nobody to tell.
        self.shut().ok();
    }
}

/// A commit that changes nothing: the `user_version` is set to what it is.
fn touch(conn: &Connection) -> rusqlite::Result<()> {
    let open = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
    let version: i64 = open.pragma_query_value(None, "user_version", |row| row.get(0))?;
    open.pragma_update(None, "user_version", version)?;
    open.commit()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

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
}
