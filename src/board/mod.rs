//! The task board: tasks, claims on them, and events about them, in one SQLite database.
//!
//! Every write is one transaction with one row in `commits`, so the commits are numbered without a
//! hole and each row that a write touches names the commit that last did so. Whoever records the
//! [`Commit`]s that were returned can check later that none is missing, and tell who wrote what.
//!
//! In: an [`OpKey`] and what to write. Out: a [`Commit`], or an error that says what it left.
//! Not here: checkpoints, backups, verification and repair of the file.

#![expect(
    clippy::redundant_closure_for_method_calls,
    reason = "a method of `Tx<'_>` is not general enough for a look: its lifetime is bound early"
)]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::error::{Found, Result, StoreError};
use crate::options::Options;
use crate::sqlite::checkpoint::{Checkpoint, Mode};
use crate::sqlite::database::{Acknowledgement, Database};
use crate::sqlite::durability::Durability;
use crate::sqlite::pragma::Pragmas;
use crate::sqlite::transaction::{Failure, Timing, Transaction};

/// Declares a newtype over the integer that SQLite stores for it.
macro_rules! stored_integer {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(i64);

        impl $name {
            /// The value that is stored as `value`.
            #[must_use]
            pub const fn new(value: i64) -> Self {
                Self(value)
            }

            /// The integer that stands in the database.
            #[must_use]
            pub const fn get(self) -> i64 {
                self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl rusqlite::types::ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
                self.0.to_sql()
            }
        }

        impl rusqlite::types::FromSql for $name {
            fn column_result(
                value: rusqlite::types::ValueRef<'_>,
            ) -> rusqlite::types::FromSqlResult<Self> {
                i64::column_result(value).map(Self)
            }
        }
    };
}

/// Declares an enumeration that the database stores by the name of each variant.
macro_rules! stored_name {
    ($(#[$doc:meta])* $type:ident { $($(#[$of:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(serde::Serialize, serde::Deserialize)]
        pub enum $type {
            $($(#[$of])* #[serde(rename = $name)] $variant,)+
        }

        impl $type {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name, as the database has it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The one of exactly that name.
            #[must_use]
            pub fn parse(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.as_str() == name)
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl rusqlite::types::ToSql for $type {
            fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
                self.as_str().to_sql()
            }
        }

        impl rusqlite::types::FromSql for $type {
            fn column_result(
                value: rusqlite::types::ValueRef<'_>,
            ) -> rusqlite::types::FromSqlResult<Self> {
                let name = value.as_str()?;
                Self::parse(name).ok_or_else(|| {
                    let text = format!("{} {name:?}", stringify!($type));
                    rusqlite::types::FromSqlError::Other(text.into())
                })
            }
        }
    };
}

pub mod schema;
mod migrate;
pub mod clock;
pub mod process;
mod write;
mod sql;
pub mod task;
pub mod recover;
pub mod doctor;
pub mod link;
pub mod claim;
pub mod run;
pub mod transition;
pub mod event;
pub mod note;
pub mod subscription;
pub mod dispatch;
pub mod reconcile;
pub mod import;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use clock::Clock;
use schema::Identity;
use sql::{LEDGER, Tx};
use write::{Kind, Stop, Writing};

stored_integer! {
    /// The number of a commit. The first of a board is 1, and there is no hole.
    CommitSeq
}

/// Names one write for good: who sends it, and the how-manieth of the sender it is.
///
/// It is stored with the write, so that after a crash a sender that knows its keys can find out
/// which of its writes are there. Never use one twice, and never give two senders one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpKey {
    /// Who sends the write.
    pub session: i64,
    /// The how-manieth write of the session it is, counted from 1. Numbers may be left out.
    pub op: i64,
}

impl OpKey {
    /// The key in the error of a [`Board::create`] whose outcome is unknown. Calling it again
    /// settles the matter.
    pub const CREATION: Self = Self { session: 0, op: 0 };
}

impl fmt::Display for OpKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.session, self.op)
    }
}

/// A sender of writes, which counts them.
#[derive(Debug)]
pub struct Session {
    id: i64,
    last_op: i64,
}

impl Session {
    /// A sender that has sent nothing yet. No other may ever have the same `id` on a board.
    #[must_use]
    pub fn new(id: i64) -> Self {
        Self { id, last_op: 0 }
    }

    /// The key of the next write.
    pub fn next_key(&mut self) -> OpKey {
        self.last_op = self.last_op.wrapping_add(1);
        OpKey { session: self.id, op: self.last_op }
    }
}

/// The acknowledgement of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an acknowledgement nobody records cannot be checked after a crash"]
pub struct Commit {
    /// The commit's number.
    pub seq: CommitSeq,
    /// What it survives.
    pub durability: Durability,
    /// How long it took.
    pub timing: Timing,
}

/// A board that this process has open.
///
/// One connection: it can be sent to another thread, but not be used by two at once. Open the
/// board again for that, in as many threads and processes as there are. Don't carry it over a
/// fork.
#[derive(Debug)]
pub struct Board {
    db: Database,
    /// What the next write is to survive; `None`: what the options say.
    durability: Option<Durability>,
    clock: Clock,
}

/// A board whose writes are all of one durability. See [`Board::at`].
#[derive(Debug)]
pub struct At<'board> {
    board: &'board mut Board,
    before: Option<Durability>,
}

impl Deref for At<'_> {
    type Target = Board;

    fn deref(&self) -> &Board {
        self.board
    }
}

impl DerefMut for At<'_> {
    fn deref_mut(&mut self) -> &mut Board {
        self.board
    }
}

impl Drop for At<'_> {
    fn drop(&mut self) {
        self.board.durability = self.before;
    }
}

impl Board {
    /// Opens the board at `path`, and makes it first if there is none.
    ///
    /// A file that is empty, and a database without any content, become a board. When this
    /// returns, the board is there to stay: the file, its place in the directory and the schema
    /// are as durable as `options.synchronous` says. Any number of processes may create one board
    /// at the same time; each gets it.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), and [`StoreError::Indeterminate`] with [`OpKey::CREATION`] if the
    /// schema's commit failed: call it again.
    pub fn create(path: &Path, options: &Options) -> Result<Self> {
        let mut board = Self::look(path, options, true)?;
        let identity = schema::identify(board.connection(), path)?;
        if identity == Identity::Board {
            schema::check(board.connection(), path)?;
        }
        board.begin(identity)?;
        Ok(board)
    }

    /// Opens the board at `path`, which must be there.
    ///
    /// Whatever else lies there is left as it is. A board in an older format is brought to this
    /// one, in one transaction; a program that knows only the older one can then no longer write
    /// to it.
    ///
    /// # Errors
    ///
    /// - [`StoreError::Open`]: there is no such file, it is not a regular file, or it may only be
    ///   read.
    /// - [`StoreError::NotABoard`]: it is something else, or in a format of another version.
    /// - [`StoreError::Corrupt`]: it is a board, and damaged.
    /// - [`StoreError::PragmaRefused`]: a setting of the one policy did not take.
    /// - [`StoreError::Busy`]: another process held a lock for the whole of
    ///   `options.busy_timeout`.
    pub fn open(path: &Path, options: &Options) -> Result<Self> {
        let mut board = Self::look(path, options, false)?;
        let identity = schema::identify(board.connection(), path)?;
        if identity == Identity::Empty {
            return Err(schema::not_a_board(path, Found::Empty));
        }
        if identity == Identity::Board {
            schema::check(board.connection(), path)?;
        }
        board.begin(identity)?;
        Ok(board)
    }

    /// Puts the settings into effect, makes the schema where it is not the one of this version, and
    /// compares the board with its anchor.
    fn begin(&mut self, identity: Identity) -> Result<()> {
        self.db.arm()?;
        if identity != Identity::Board {
            self.make_schema()?;
            schema::check(self.connection(), self.db.path())?;
        }
        self.db.keep_chain(&LEDGER)
    }

    fn look(path: &Path, options: &Options, create: bool) -> Result<Self> {
        let db = Database::look(path, options, create)?;
        Ok(Self { db, durability: None, clock: options.clock.clone() })
    }

    /// The board, with every write by the result as durable as `durability` says.
    ///
    /// Without it a write is as durable as [`Options::synchronous`] says. A board may mix both as
    /// it likes: what follows for a power cut stands in [`crate::sqlite::durability`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use hardboard::{Board, Durability, NewTask, Options, Session};
    /// # fn main() -> hardboard::Result<()> {
    /// # let dir = tempfile::tempdir().expect("a temporary directory");
    /// # let mut board = Board::create(&dir.path().join("board.db"), &Options::default())?;
    /// # let mut me = Session::new(1);
    /// # let fence = NewTask { title: "paint the fence", ..NewTask::default() };
    /// # board.create_task(me.next_key(), &fence)?;
    /// let lease = Duration::from_secs(60);
    /// let claim = board.claim_next(me.next_key(), "tom", lease)?.expect("one task is ready");
    /// // A heartbeat that a power cut takes back costs nothing.
    /// let beat = board
    ///     .at(Durability::Process)
    ///     .heartbeat(me.next_key(), claim.task, claim.token, lease)?;
    /// assert_eq!(beat.durability, Durability::Process);
    /// let mut safe = board.at(Durability::Power);
    /// let done = safe.complete(me.next_key(), claim.task, claim.token, "")?;
    /// assert_eq!(done.durability, Durability::Power);
    /// # Ok(())
    /// # }
    /// ```
    pub fn at(&mut self, durability: Durability) -> At<'_> {
        let before = self.durability.replace(durability);
        At { board: self, before }
    }

    /// The settings of a call that chooses no durability, asked for now.
    pub fn pragmas(&self) -> Result<Pragmas> {
        self.db.pragmas()
    }

    /// The number of the newest commit that this connection sees; 0 if there is none.
    pub fn commit_seq(&self) -> Result<CommitSeq> {
        self.read("read the newest commit", |tx| tx.last_commit())
    }

    /// The commit that wrote the operation of that key, if it is there: the answer to an outcome
    /// that was unknown.
    pub fn commit_of(&self, key: OpKey) -> Result<Option<CommitSeq>> {
        self.read("look for a commit", |tx| tx.commit_of(key))
    }

    /// The clocks by which leases end.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Copies the log into the database now (see [`Database::checkpoint`]).
    pub fn checkpoint(&mut self, mode: Mode) -> Result<Option<Checkpoint>> {
        self.db.checkpoint(mode)
    }

    /// The database that the board is in.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.db
    }

    /// The connection, for readers and checks.
    ///
    /// Whoever writes by it breaks what the board promises.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        self.db.connection()
    }

    /// The file, however it was named, as a path that does not depend on where one is.
    #[must_use]
    pub fn absolute_path(&self) -> PathBuf {
        let path = self.db.path();
        path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.into())
    }

    /// Closes the board.
    ///
    /// The last connection to be closed copies the log into the database and removes it. Dropping
    /// a board does the same, and tells nobody if it fails.
    ///
    /// # Errors
    ///
    /// What SQLite reported. Everything that was acknowledged stands nevertheless.
    pub fn close(self) -> Result<()> {
        self.db.close()
    }

    /// Makes the schema, or brings it to this format, unless another process was quicker.
    fn make_schema(&mut self) -> Result<()> {
        let (path, place) = (self.db.path().to_owned(), self.db.place().to_owned());
        let made = self.db.write(None, |conn| -> Result<(), Stop> {
            match schema::identify(conn, &path)? {
                Identity::Board => {}
                Identity::Empty => {
                    Database::require_nothing_anchored(&place)?;
                    schema::make(conn)?;
                }
                Identity::Older { format } => migrate::to_current(conn, format)?,
            }
            Ok(())
        });
        made.map(|_| ()).map_err(|failure| self.explain(failure, "make the board", OpKey::CREATION))
    }

    /// One write: its body, and the row in `commits` that records it.
    fn write<T>(
        &mut self,
        kind: Kind,
        key: OpKey,
        body: impl FnOnce(&mut Writing<'_>) -> Result<T, Stop>,
    ) -> Result<(T, Commit)> {
        let clock = &self.clock;
        let whole = |open: &Transaction<'_>| {
            let mut writing = Writing::begin(open, clock, kind, key)?;
            let value = body(&mut writing)?;
            Ok((value, writing.end()?))
        };
        match self.db.write(self.durability, whole) {
            Ok(((value, seq), ack)) => Ok((value, commit(seq, ack))),
            Err(failure) => Err(self.explain(failure, kind.deed(), key)),
        }
    }

    /// As [`write`](Self::write), with a body that may find that there is nothing to write.
    fn write_if<T>(
        &mut self,
        kind: Kind,
        key: OpKey,
        body: impl FnOnce(&mut Writing<'_>) -> Result<Option<T>, Stop>,
    ) -> Result<Option<(T, Commit)>> {
        let clock = &self.clock;
        let whole = |open: &Transaction<'_>| {
            let mut writing = Writing::begin(open, clock, kind, key).map_err(Some)?;
            let value = body(&mut writing).map_err(Some)?.ok_or(None)?;
            Ok((value, writing.end().map_err(Some)?))
        };
        match self.db.write(self.durability, whole) {
            Ok(((value, seq), ack)) => Ok(Some((value, commit(seq, ack)))),
            Err(failure) => match failure.transpose() {
                None => Ok(None),
                Some(failure) => Err(self.explain(failure, kind.deed(), key)),
            },
        }
    }

    /// What a failed transaction means to the caller.
    fn explain(&self, failure: Failure<Stop>, during: &'static str, key: OpKey) -> StoreError {
        match failure {
            Failure::Busy { waited } => StoreError::Busy { waited },
            Failure::Unready(error) | Failure::Body(Stop::Rule(error)) => error,
            Failure::Begin(source)
            | Failure::Refused(source)
            | Failure::Body(Stop::Sqlite(source)) => self.db.refused(source, during),
            Failure::Rollback(source) => StoreError::Sqlite { during: "roll back", source },
            Failure::Commit(source) => StoreError::Indeterminate { key, source },
        }
    }

    /// One look at the board: a single statement, so what it sees is of one moment.
    fn read<T>(
        &self,
        during: &'static str,
        query: impl FnOnce(Tx<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        self.db.read(during, |conn| query(Tx::new(conn)))
    }

    /// Several looks that see the board at the same moment.
    pub(crate) fn at_one_moment<T>(&self, look: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        self.db.usable()?;
        let conn = self.db.connection();
        let _snapshot = conn
            .unchecked_transaction()
            .map_err(|source| self.db.refused(source, "begin to read"))?;
        look(self)
    }
}

fn commit(seq: CommitSeq, ack: Acknowledgement) -> Commit {
    Commit { seq, durability: ack.durability, timing: ack.timing }
}
