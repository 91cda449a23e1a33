//! A database that this process has open: one connection, and all that guards it.
//!
//! This is the seam. What stands above it (a board, or any other schema) knows that writes are
//! transactions with one of three outcomes, and how durable each is to be; what SQLite needs for
//! that stays in here.
//!
//! What is checked when:
//!
//! | when | what |
//! |---|---|
//! | it is opened | nothing quarantined here, nobody repairs, the files, the anchor |
//! | opened after all who had it open were killed | and the structure, within a bounded time |
//! | before each commit | the files are those that were opened; no commit seen is missing |
//! | before the first, and now and then | and the files' names; no anchored commit is missing |
//! | after each commit | the log's length, now and then a checkpoint and its answer |
//!
//! In: a path, [`Options`], bodies of transactions. Out: what the bodies gave, with an
//! [`Acknowledgement`], or a [`Failure`]. Not here: what the rows mean.

mod anchoring;
mod owner;
mod schedule;
mod turn;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde::Serialize;

use crate::error::{Result, StoreError};
use crate::options::{Options, Synchronous};
use crate::sqlite::anchor::AnchorFile;
use crate::sqlite::callback::{Callbacks, Wired};
use crate::sqlite::chain::{Chain, Ledger};
use crate::sqlite::checkpoint::{Mode, Policy};
use crate::sqlite::durability::{self, Durability};
use crate::sqlite::engine::{Engine, Trust};
use crate::sqlite::place::file_system::FileSystem;
use crate::sqlite::place::{self, Files};
use crate::sqlite::pragma::{self, Pragmas};
use crate::sqlite::quarantine::{self, Notice};
use crate::sqlite::sidecar::{self, Hold, LockFile, Part};
use crate::sqlite::transaction::{self, Failure, Timing, Transaction};
use crate::sqlite::verify::{self, Depth, Report};
use crate::sqlite::{fork, guard, open};

pub use anchoring::Anchored;
use turn::Turn;

/// What is known of a write that was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// What it survives.
    pub durability: Durability,
    /// How long it took.
    pub timing: Timing,
}

/// What was found when a database was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Opened {
    /// Why the engine is trusted.
    pub trust: Option<Trust>,
    /// Whether SQLite's locks are guarded against code of others in this process.
    pub guarded: bool,
    /// What the database lies on, if the system says so.
    pub file_system: Option<FileSystem>,
    /// Whether all who had it open before ended without a close, as when they were killed.
    pub unclean: bool,
    /// What a look at its structure found; `None`: it was closed in good order, so there was none.
    pub checked: Option<Report>,
    /// What the anchor said; `None`: its schema keeps no chain.
    pub anchored: Option<Anchored>,
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
    /// The chain that the schema keeps, if it keeps one.
    chain: Option<Chain>,
    anchor: Option<AnchorFile>,
    /// A commit is acknowledged and not anchored: the next write begins with that.
    unanchored: bool,
    /// Writes since it was last looked whether others wait for theirs.
    writes: Cell<u32>,
    /// The files as they were when they were opened.
    files: Option<Files>,
    opened: Opened,
    /// When all of it was last looked at, or it was opened.
    verified: Cell<Instant>,
    /// The process that opened it.
    pid: u32,
    poisoned: Cell<bool>,
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
        let trust = Engine::loaded().trust(options.accept_engine.as_deref())?;
        if let Ok(place) = place::resolve(path) {
            // Before SQLite sees the files: a look at them can write, as where a journal is hot.
            quarantine::refuse(path, &place)?;
            let accepted = options.accept_file_system.as_deref();
            place::require_fit(path, &place, accepted, create && !place.exists())?;
        }
        let guarded = options.guard && guard::install();
        let conn = open::connect(path, options, create)?;
        let place = place::resolve(path)
            .map_err(|_| open::failed(path, rusqlite::Error::InvalidPath(path.to_owned())))?;
        let file_system = FileSystem::of(&place).ok();
        Ok(Self {
            wired: Some(Wired::new(conn)),
            lock: None,
            path: path.to_owned(),
            place,
            default_level: options.synchronous,
            level: Cell::new(None),
            policy: Policy::new(options.wal_autocheckpoint_pages),
            chain: None,
            anchor: None,
            unanchored: false,
            writes: Cell::new(0),
            files: None,
            opened: Opened { trust: Some(trust), file_system, guarded, ..Opened::default() },
            verified: Cell::new(Instant::now()),
            pid: fork::pid(),
            options: options.clone(),
            poisoned: Cell::new(false),
        })
    }

    /// Puts the one policy into effect (see [`pragma::apply`]). It may write to the database, and
    /// makes the files that lie beside it.
    pub(crate) fn arm(&mut self) -> Result<()> {
        let lock = LockFile::open(&self.place).map_err(self.beside("open the lock file"))?;
        self.opened.unclean = self
            .enter(&lock)
            .map_err(self.beside("lock the lock file"))?
            .ok_or(StoreError::Busy { waited: self.options.busy_timeout })?;
        self.lock = Some(lock);
        // A repair that ended while we waited has put another file here.
        quarantine::refuse(&self.path, &self.place)?;
        pragma::apply(self.connection(), &self.path, &self.options)?;
        self.level.set(Some(self.options.synchronous));
        let patience = self.options.busy_timeout;
        let installed = self.wired.as_mut().map_or(Ok(()), |wired| wired.install(patience));
        installed.map_err(|source| self.refused(source, "prepare to write"))?;
        self.read("open the log", |conn| {
            conn.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
        })?;
        // SQLite has the file in WAL mode now, and asks for it alone no more.
        let held = self.opened.guarded.then(|| guard::hold(&self.place)).flatten();
        self.opened.guarded = held.is_some();
        self.files = Some(Files::look(&self.place, held));
        place::require_unmoved(self.connection(), &self.path)?;
        self.check_at_open()
    }

    /// What was found when it was opened.
    #[must_use]
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// The size always; the structure if nobody looked since its users were killed. A kill damages
    /// nothing, but whoever kills all users at once may have done more.
    fn check_at_open(&mut self) -> Result<()> {
        let place = &self.place;
        if let Some(reason) = self.read("compare sizes", |conn| verify::cut_short(conn, place))? {
            return Err(self.damaged(&reason));
        }
        if !self.opened.unclean {
            return Ok(());
        }
        let report = self.verify_within(Depth::Quick, self.options.open_check_budget)?;
        let found = report.first().map(str::to_owned);
        self.opened.checked = Some(report);
        found.map_or(Ok(()), |reason| Err(self.damaged(&reason)))
    }

    /// Looks whether the database is sound.
    ///
    /// # Errors
    ///
    /// What kept it from looking. What it found is in the report, and nothing follows from it by
    /// itself: see [`quarantine`](Self::quarantine).
    pub fn verify(&self, depth: Depth) -> Result<Report> {
        self.verify_within(depth, Duration::MAX)
    }

    pub(crate) fn verify_within(&self, depth: Depth, budget: Duration) -> Result<Report> {
        self.usable()?;
        let Some(wired) = &self.wired else { return Err(StoreError::Poisoned) };
        verify::verify(wired, self.ledger(), depth, budget)
            .map_err(|source| self.refused(source, "verify the database"))
    }

    /// Quarantines the database for that reason: this connection is not used any more, the files
    /// are copied once, and whoever opens the place is refused until it is recovered.
    ///
    /// # Errors
    ///
    /// [`StoreError::Beside`] if the notice could not be laid. This connection is unfit for use
    /// nevertheless.
    pub fn quarantine(&self, reason: &str) -> Result<Notice> {
        self.poisoned.set(true);
        quarantine::quarantine(&self.place, reason, self.options.quarantine_bytes)
            .map_err(self.beside("quarantine the database"))
    }

    /// Quarantines, and says so. What keeps it from that is told by a later open or look.
    pub(crate) fn damaged(&self, reason: &str) -> StoreError {
        let notice = self.quarantine(reason).ok();
        StoreError::Quarantined {
            path: self.path.clone(),
            reason: reason.to_owned(),
            copy: notice.and_then(|notice| notice.copy).unwrap_or_else(|| self.place.clone()),
        }
    }

    /// Takes part in the database's use. `None`: a repair did not end in time. Else whether it was
    /// left without a close and nobody has it open, so that nobody has looked at it since.
    fn enter(&self, lock: &LockFile) -> io::Result<Option<bool>> {
        let first = lock.take(Part::Use, Hold::Exclusive)?;
        let unclean = first && !lock.was_closed()?;
        if first {
            lock.mark(false)?;
        }
        let entered = lock.wait(Part::Use, Hold::Shared, self.options.busy_timeout)?;
        Ok(entered.then_some(unclean))
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

    /// Runs `body` as one write (see `transaction::write`), as durable as `durability` says, or
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
        body: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<(T, Acknowledgement), Failure<E>> {
        let level = durability.map_or(self.default_level, Durability::level);
        self.ready(level).map_err(Failure::Unready)?;
        let Some((wired, control)) = self.wired.as_ref().and_then(|w| Some((w, w.control()?)))
        else {
            return Err(Failure::Unready(StoreError::Poisoned));
        };
        let owner = self.before_write();
        let (chain, files, path) = (self.chain.as_ref(), self.files.as_ref(), &self.path);
        let anchor = self.anchor.as_ref();
        let every = self.options.watch_every;
        let turn = self.lock.as_ref().zip(wired.callbacks());
        let turn = turn.map(|(lock, callbacks)| Turn { lock, callbacks, writes: &self.writes });
        let begin = |conn: &Connection| match turn {
            Some(turn) => turn.begin(conn, control),
            None => control.begin(conn),
        };
        let written = transaction::write(wired.conn(), control, begin, |conn| {
            let value = body(&Transaction::new(conn, chain, path)).map_err(Stop::Body)?;
            let due = files
                .map_or(Ok(true), |files| files.require_same(conn, path, every))
                .map_err(Stop::Unready)?;
            if due {
                // A read of a file costs some hundredths of a commit: now and then is enough.
                anchoring::require_unmade(chain, anchor, path).map_err(Stop::Unready)?;
            }
            Ok(value)
        })
        .map_err(Failure::from_stop);
        let durability = Durability::of(level);
        let committed = owner.then(Instant::now);
        match &written {
            Ok(_) => self.anchor_commit(durability),
            Err(failure) if failure.poisons() => self.poisoned.set(true),
            Err(_) => {}
        }
        if owner {
            self.step(written.is_ok());
        }
        let (value, mut timing) = written?;
        timing.after = committed.map_or(Duration::ZERO, |committed| committed.elapsed());
        Ok((value, Acknowledgement { durability, timing }))
    }

    /// Makes the connection ready for a write at that level.
    fn ready(&mut self, level: Synchronous) -> Result<()> {
        self.usable()?;
        self.anchor_what_is_not()?;
        self.set_level(level)
    }

    /// One look: a single statement, so what it sees is of one moment.
    pub fn read<T>(
        &self,
        during: &'static str,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        self.usable()?;
        let started = Instant::now();
        query(self.connection()).map_err(|source| {
            let error = self.refused(source, during);
            match error {
                StoreError::Busy { .. } => StoreError::Busy { waited: started.elapsed() },
                error => error,
            }
        })
    }

    /// Whether the connection may still be used.
    ///
    /// # Errors
    ///
    /// [`StoreError::Poisoned`] after a failure that says so; [`StoreError::OtherProcess`] in
    /// another process than the one that opened it, as after a fork.
    pub fn usable(&self) -> Result<()> {
        let pid = fork::pid();
        if self.pid != pid {
            return Err(StoreError::OtherProcess { opened_by: self.pid, pid });
        }
        if self.poisoned.get() { Err(StoreError::Poisoned) } else { Ok(()) }
    }

    /// Closes the database. The last to close it copies the log into it and cuts the log.
    ///
    /// # Errors
    ///
    /// What SQLite reported. Everything that was acknowledged stands nevertheless.
    pub fn close(mut self) -> Result<()> {
        self.shut()
    }

    /// What a failure that wrote nothing means to the caller. Damage quarantines the database.
    pub(crate) fn refused(&self, source: rusqlite::Error, during: &'static str) -> StoreError {
        if self.lock.is_some() && verify::is_broken(&source) {
            // What keeps it from being copied is told by a later open or look.
            self.quarantine(&format!("{during}: {source}")).ok();
        }
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

    /// Closes the connection, after the last checkpoint if nobody else has the database open.
    fn shut(&mut self) -> Result<()> {
        if self.pid != fork::pid() {
            // The files, the locks and the connection are the parent's. Closing them here could
            // undo what it holds.
            if let Some(wired) = self.wired.take() {
                wired.forget();
            }
            return Ok(());
        }
        let mut last = Ok(());
        if self.wired.is_some() && !self.poisoned.get() && self.is_alone() {
            match self.checkpoint(Mode::Truncate) {
                Ok(Some(done)) if done.complete => self.mark_closed(),
                Ok(_) => {}
                Err(error) => last = Err(error),
            }
        }
        self.sync_anchor();
        let Some(wired) = self.wired.take() else { return last };
        let closed = wired.close().map_err(|source| self.refused(source, "close the database"));
        closed.and(last)
    }

    /// Whether nobody else has the database open; then nobody can open it any more until this
    /// value is gone.
    ///
    /// What is held in common is let go first: else of two that close at once each would see the
    /// other, and neither would be the last.
    fn is_alone(&self) -> bool {
        self.lock.as_ref().is_some_and(|lock| {
            lock.release(Part::Use).is_ok()
                && lock.take(Part::Use, Hold::Exclusive).unwrap_or(false)
        })
    }

    fn mark_closed(&self) {
        if let Some(lock) = &self.lock {
            lock.mark(true).ok();
        }
    }

    pub(crate) fn patience(&self) -> Duration {
        self.options.busy_timeout
    }

    pub(crate) fn ledger(&self) -> Option<&'static Ledger> {
        self.chain.as_ref().map(|chain| chain.ledger)
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

/// Why a transaction stopped: by its own body, or by what this layer saw before the commit.
enum Stop<E> {
    Body(E),
    Unready(StoreError),
}

impl<E> Failure<E> {
    fn from_stop(failure: Failure<Stop<E>>) -> Self {
        match failure {
            Failure::Unready(error) | Failure::Body(Stop::Unready(error)) => Self::Unready(error),
            Failure::Body(Stop::Body(error)) => Self::Body(error),
            Failure::Busy { waited } => Self::Busy { waited },
            Failure::Begin(source) => Self::Begin(source),
            Failure::Refused(source) => Self::Refused(source),
            Failure::Rollback(source) => Self::Rollback(source),
            Failure::Commit(source) => Self::Commit(source),
        }
    }

    /// Whether the connection is not to be used after it.
    fn poisons(&self) -> bool {
        match self {
            Self::Commit(_) | Self::Rollback(_) => true,
            Self::Unready(error) => {
                matches!(error, StoreError::Moved { .. } | StoreError::RolledBack { .. })
            }
            Self::Begin(source) | Self::Refused(source) => transaction::is_grave(source),
            Self::Busy { .. } | Self::Body(_) => false,
        }
    }
}
