//! A database that this process has open: one connection, and all that guards it.
//!
//! This is the seam. What stands above it (a board, or any other schema) knows that writes are
//! transactions with one of three outcomes, and how durable each is to be; what SQLite needs for
//! that stays in here.
//!
//! In: a path, [`Options`], bodies of transactions. Out: what the bodies gave, with an
//! [`Acknowledgement`], or a [`Failure`]. Not here: what the rows mean.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::error::{Result, StoreError};
use crate::options::{Options, Synchronous};
use crate::sqlite::durability::{self, Durability};
use crate::sqlite::open::connect;
use crate::sqlite::pragma::{self, Pragmas};
use crate::sqlite::transaction::{self, Failure, Timing};

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
    conn: Connection,
    path: PathBuf,
    /// The level when a call chooses nothing.
    default_level: Synchronous,
    /// The level in effect; `None` while that is not known.
    level: Cell<Option<Synchronous>>,
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
        database.arm(options)?;
        Ok(database)
    }

    /// Opens the database without writing to it, to find out whose it is.
    pub(crate) fn look(path: &Path, options: &Options, create: bool) -> Result<Self> {
        let conn = connect(path, options, create)?;
        Ok(Self {
            conn,
            path: path.to_owned(),
            default_level: options.synchronous,
            level: Cell::new(None),
            poisoned: false,
        })
    }

    /// Puts the one policy into effect (see [`pragma::apply`]). It may write to the database.
    pub(crate) fn arm(&mut self, options: &Options) -> Result<()> {
        pragma::apply(&self.conn, &self.path, options)?;
        self.level.set(Some(options.synchronous));
        Ok(())
    }

    /// The file, as it was named when it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The connection. Whoever writes by it does so without what this layer promises.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.conn
    }

    /// What a write survives when its call chooses nothing.
    #[must_use]
    pub fn default_durability(&self) -> Durability {
        Durability::of(self.default_level)
    }

    /// The settings of a call that chooses nothing, put into effect and asked for now.
    pub fn pragmas(&self) -> Result<Pragmas> {
        self.usable()?;
        self.set_level(self.default_level)?;
        Pragmas::read(&self.conn)
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
        match transaction::write(&mut self.conn, body) {
            Ok((value, timing)) => {
                Ok((value, Acknowledgement { durability: Durability::of(level), timing }))
            }
            Err(failure) => {
                self.poisoned |= matches!(failure, Failure::Commit(_) | Failure::Rollback(_));
                Err(failure)
            }
        }
    }

    /// One look: a single statement, so what it sees is of one moment.
    pub fn read<T>(
        &self,
        during: &'static str,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        self.usable()?;
        let started = Instant::now();
        query(&self.conn)
            .map_err(|source| StoreError::refused(source, during, &self.path, started.elapsed()))
    }

    /// Whether the connection may still be used.
    pub fn usable(&self) -> Result<()> {
        if self.poisoned { Err(StoreError::Poisoned) } else { Ok(()) }
    }

    /// Closes the database.
    ///
    /// # Errors
    ///
    /// What SQLite reported. Everything that was acknowledged stands nevertheless.
    pub fn close(self) -> Result<()> {
        let Self { conn, path, .. } = self;
        let started = Instant::now();
        conn.close().map_err(|(_, source)| {
            StoreError::refused(source, "close the database", &path, started.elapsed())
        })
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
        durability::set_level(&self.conn, &self.path, level)?;
        self.level.set(Some(level));
        Ok(())
    }
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
        database.conn.execute_batch("BEGIN").unwrap();
        let failed = database.write(Some(Durability::Process), |_| -> Result<(), ()> { panic!() });
        assert!(matches!(failed, Err(Failure::Unready(_))), "{failed:?}");
        database.conn.execute_batch("COMMIT").unwrap();
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
}
