//! One write, from `BEGIN IMMEDIATE` to the end of `COMMIT`.
//!
//! The write lock is taken before anything is read, so a body never acts on what another writer
//! has changed meanwhile, and never fails half-way because a read could not become a write.
//!
//! In: a connection and a body. Out: what the body gave and a [`Timing`], or a [`Failure`] that
//! says how far the transaction came. Not here: the meaning of either to a board.

use std::ops::Deref;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use crate::error::{Result as StoreResult, StoreError};
use crate::sqlite::chain::{Chain, Entry};
use crate::sqlite::control::Control;

/// How long the parts of one transaction took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// `BEGIN IMMEDIATE`, the wait for the write lock included.
    pub wait: Duration,
    /// The statements between.
    pub body: Duration,
    /// `COMMIT`, a sync included.
    pub commit: Duration,
    /// What the store does after it within the call: now and then a checkpoint.
    pub after: Duration,
}

impl Timing {
    /// All parts.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.wait + self.body + self.commit + self.after
    }
}

/// How a transaction failed. All but [`Commit`](Self::Commit) certainly wrote nothing.
#[derive(Debug)]
pub enum Failure<E> {
    /// The connection could not be made ready for the write, which never began.
    Unready(StoreError),
    /// `BEGIN IMMEDIATE` or `COMMIT` found the database locked for the whole busy timeout.
    Busy {
        /// How long `BEGIN IMMEDIATE` or `COMMIT` took.
        waited: Duration,
    },
    /// `BEGIN IMMEDIATE` failed otherwise.
    Begin(rusqlite::Error),
    /// The body failed and was rolled back.
    Body(E),
    /// `COMMIT` was refused with the transaction still open, as a deferred foreign key does, and
    /// it was rolled back.
    Refused(rusqlite::Error),
    /// `ROLLBACK` failed: nothing was committed, but the connection is not to be used any more.
    Rollback(rusqlite::Error),
    /// `COMMIT` failed in a way that leaves its fate open: it is wholly there or wholly absent
    /// when the database is opened next. This connection is not to be used any more, since it
    /// may see the one and a later reader the other.
    Commit(rusqlite::Error),
}

impl<E> Failure<Option<E>> {
    /// Without a body that stopped for no error: `None` stands for that.
    #[must_use]
    pub fn transpose(self) -> Option<Failure<E>> {
        Some(match self {
            Self::Unready(error) => Failure::Unready(error),
            Self::Busy { waited } => Failure::Busy { waited },
            Self::Begin(source) => Failure::Begin(source),
            Self::Body(error) => Failure::Body(error?),
            Self::Refused(source) => Failure::Refused(source),
            Self::Rollback(source) => Failure::Rollback(source),
            Self::Commit(source) => Failure::Commit(source),
        })
    }
}

/// A write that has begun: the connection, with the write lock held.
#[derive(Clone, Copy, Debug)]
pub struct Transaction<'a> {
    conn: &'a Connection,
    chain: Option<&'a Chain>,
    path: &'a Path,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(conn: &'a Connection, chain: Option<&'a Chain>, path: &'a Path) -> Self {
        Self { conn, chain, path }
    }

    /// The connection. Its lifetime is that of the transaction.
    #[must_use]
    pub fn connection(&self) -> &'a Connection {
        self.conn
    }

    /// The next entry of the chain that the schema keeps.
    ///
    /// # Errors
    ///
    /// [`StoreError::RolledBack`] if a commit is missing that this connection has seen: the
    /// database was exchanged or rolled back under it. [`StoreError::Sqlite`] if the schema keeps
    /// no chain; else what SQLite reported.
    pub fn entry(&self) -> StoreResult<Entry<'a>> {
        let during = "read the newest commit";
        let Some(chain) = self.chain else {
            return Err(StoreError::Sqlite { during, source: rusqlite::Error::InvalidQuery });
        };
        let failed = |source| StoreError::refused(source, during, self.path, Duration::ZERO);
        let before = chain.head(self.conn).map_err(failed)?;
        let seen = chain.seen.get();
        let still_there =
            if before.seq == seen.seq { before == seen } else { before.seq > seen.seq };
        if !still_there {
            return Err(StoreError::RolledBack {
                path: self.path.to_owned(),
                missing: seen.seq,
                newest: before.seq,
            });
        }
        Ok(Entry::new(chain, before))
    }
}

impl Deref for Transaction<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.conn
    }
}

/// Runs `body` in one immediate transaction, which `begin` begins.
///
/// Commits if the body gives a value. Rolls back if it gives an error, or panics.
///
/// # Errors
///
/// See [`Failure`].
pub(crate) fn write<T, E>(
    conn: &Connection,
    control: &Control,
    begin: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    body: impl FnOnce(&Connection) -> Result<T, E>,
) -> Result<(T, Timing), Failure<E>> {
    let started = Instant::now();
    let open = Open::begin(conn, control, begin).map_err(|source| {
        if is_busy(&source) {
            Failure::Busy { waited: started.elapsed() }
        } else {
            Failure::Begin(source)
        }
    })?;
    let locked = Instant::now();
    let value = match body(open.conn) {
        Ok(value) => value,
        Err(error) => {
            open.rollback().map_err(Failure::Rollback)?;
            return Err(Failure::Body(error));
        }
    };
    let written = Instant::now();
    open.commit(written)?;
    let timing = Timing {
        wait: locked.duration_since(started),
        body: written.duration_since(locked),
        commit: written.elapsed(),
        after: Duration::ZERO,
    };
    Ok((value, timing))
}

/// A transaction that was begun. Dropped without an end, as by a panic, it is rolled back.
struct Open<'conn> {
    conn: &'conn Connection,
    control: &'conn Control,
}

impl<'conn> Open<'conn> {
    fn begin(
        conn: &'conn Connection,
        control: &'conn Control,
        begin: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<Self> {
        begin(conn)?;
        Ok(Self { conn, control })
    }

    fn commit<E>(self, started: Instant) -> Result<(), Failure<E>> {
        let Err(source) = self.control.commit(self.conn) else { return Ok(()) };
        // SQLite ends the transaction when a commit fails, but for a lock it could not get and a
        // constraint it put off: those it leaves open, and nothing of them is in the log.
        if self.conn.is_autocommit() {
            return Err(Failure::Commit(source));
        }
        let waited = started.elapsed();
        self.rollback().map_err(Failure::Rollback)?;
        Err(if is_busy(&source) { Failure::Busy { waited } } else { Failure::Refused(source) })
    }

    /// Ends the transaction, unless SQLite has done so itself after an error.
    fn rollback(self) -> rusqlite::Result<()> {
        if self.conn.is_autocommit() { Ok(()) } else { self.conn.execute_batch("ROLLBACK") }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if !self.conn.is_autocommit() {
            // Only a panic comes here, or a rollback that has already failed and been reported.
            self.conn.execute_batch("ROLLBACK").ok();
        }
    }
}

/// Whether an error says that the connection, or what it sees, is not to be trusted any more:
/// I/O that failed, damage, a full disk, what is no database.
pub(crate) fn is_grave(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::DiskFull
                | ErrorCode::NotADatabase
        )
    )
}

/// Whether a lock could not be had.
pub(crate) fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;
    use crate::options::Options;
    use crate::sqlite::open::open;

    fn place() -> (TempDir, Connection) {
        let dir = tempfile::tempdir().unwrap();
        let conn = connection(dir.path());
        conn.execute_batch(
            "CREATE TABLE parent (id INTEGER PRIMARY KEY); \
             CREATE TABLE child (of INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
        )
        .unwrap();
        (dir, conn)
    }

    fn connection(dir: &Path) -> Connection {
        let busy_timeout = Duration::from_millis(40);
        let options = Options { busy_timeout, ..Options::default() };
        open(dir.join("any.db"), &options, true).unwrap()
    }

    fn write<T, E>(
        conn: &mut Connection,
        body: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<(T, Timing), Failure<E>> {
        let control = Control::new(conn).unwrap();
        super::write(conn, &control, |conn| control.begin(conn), body)
    }

    fn insert(conn: &Connection) -> rusqlite::Result<()> {
        conn.execute("INSERT INTO parent DEFAULT VALUES", []).map(|_| ())
    }

    fn rows(conn: &Connection) -> i64 {
        let count = "SELECT (SELECT count(*) FROM parent) + (SELECT count(*) FROM child)";
        conn.query_row(count, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn body_that_gives_a_value_is_committed() {
        let (dir, mut conn) = place();
        let (value, timing) = write(&mut conn, |conn| insert(conn).map(|()| 17)).unwrap();
        assert_eq!(value, 17);
        assert_eq!(timing.total(), timing.wait + timing.body + timing.commit);
        assert!(timing.commit > Duration::ZERO);
        assert_eq!(rows(&connection(dir.path())), 1);
    }

    #[test]
    fn body_that_fails_is_rolled_back_and_its_error_is_kept() {
        let (_dir, mut conn) = place();
        let failed = write(&mut conn, |conn| {
            insert(conn).unwrap();
            Err::<(), _>("no")
        });
        assert!(matches!(failed, Err(Failure::Body("no"))), "{failed:?}");
        assert!(conn.is_autocommit());
        assert_eq!(rows(&conn), 0);
    }

    #[test]
    fn body_that_panics_is_rolled_back() {
        let (_dir, mut conn) = place();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            write(&mut conn, |conn| -> Result<(), ()> {
                insert(conn).unwrap();
                panic!("in the body")
            })
        }));
        assert!(panicked.is_err());
        assert!(conn.is_autocommit());
        assert_eq!(rows(&conn), 0);
    }

    #[test]
    fn lock_held_by_another_is_waited_for_and_the_body_never_runs() {
        let (dir, mut conn) = place();
        let other = connection(dir.path());
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let failed = write(&mut conn, |_| -> Result<(), ()> { panic!("it ran") });
        let Err(Failure::Busy { waited }) = failed else { panic!("{failed:?}") };
        assert!(waited >= Duration::from_millis(40), "{waited:?}");
    }

    #[test]
    fn constraint_that_was_put_off_refuses_the_commit_and_nothing_is_written() {
        let (_dir, mut conn) = place();
        let failed =
            write(&mut conn, |conn| conn.execute("INSERT INTO child VALUES (9)", []).map(|_| ()));
        let Err(Failure::Refused(source)) = failed else { panic!("{failed:?}") };
        assert_eq!(source.sqlite_error_code(), Some(ErrorCode::ConstraintViolation));
        assert!(conn.is_autocommit());
        assert_eq!(rows(&conn), 0);
    }

    #[test]
    fn commit_of_a_transaction_that_is_gone_is_of_unknown_outcome() {
        let (_dir, mut conn) = place();
        let failed = write(&mut conn, |conn| {
            insert(conn)?;
            conn.execute_batch("COMMIT")
        });
        assert!(matches!(failed, Err(Failure::Commit(_))), "{failed:?}");
        // As it happens it is there: that is what unknown means.
        assert_eq!(rows(&conn), 1);
    }

    #[test]
    fn transaction_within_a_transaction_is_refused() {
        let (_dir, mut conn) = place();
        conn.execute_batch("BEGIN").unwrap();
        let failed = write(&mut conn, insert);
        assert!(matches!(failed, Err(Failure::Begin(_))), "{failed:?}");
    }

    #[test]
    fn body_that_stopped_for_no_error_is_told_from_every_failure() {
        assert!(Failure::<Option<()>>::Body(None).transpose().is_none());
        let kept = Failure::Body(Some(5)).transpose();
        assert!(matches!(kept, Some(Failure::Body(5))), "{kept:?}");
        let waited = Duration::from_secs(1);
        let kept = Failure::<Option<()>>::Busy { waited }.transpose();
        assert!(matches!(kept, Some(Failure::Busy { .. })), "{kept:?}");
    }
}
