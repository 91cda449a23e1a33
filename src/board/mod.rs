//! The task board: tasks, claims on them, and events about them, in one SQLite database.
//!
//! Every write is one transaction with one row in `commits`, so the commits are numbered without a
//! hole and each row that a write touches names the commit that last did so. Whoever records the
//! [`Commit`]s that were returned can check later that none is missing, and tell who wrote what.
//!
//! In: an [`OpKey`] and what to write. Out: a [`Commit`], or an error that says what it left.
//! Not here: checkpoints, backups, verification and repair of the file.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Connection;

use crate::error::{Found, Result, StoreError};
use crate::options::Options;
use crate::sqlite::checkpoint::{Checkpoint, Mode};
use crate::sqlite::database::{Acknowledgement, Database};
use crate::sqlite::durability::Durability;
use crate::sqlite::pragma::Pragmas;
use crate::sqlite::transaction::{Failure, Timing};

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

pub mod schema;
pub mod task;
pub mod claim;
pub mod run;
pub mod event;
pub mod dispatch;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use claim::FencingToken;
use schema::Identity;
use task::TaskId;

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

/// What a write is, as the `kind` column of `commits` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Create,
    Claim,
    Heartbeat,
    Events,
    Complete,
    TakeBack,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Claim => "claim",
            Self::Heartbeat => "heartbeat",
            Self::Events => "events",
            Self::Complete => "complete",
            Self::TakeBack => "take-back",
        }
    }

    /// What was being done, for an error's text: "SQLite failed to ...".
    const fn deed(self) -> &'static str {
        match self {
            Self::Create => "create a task",
            Self::Claim => "claim a task",
            Self::Heartbeat => "extend a claim",
            Self::Events => "append events",
            Self::Complete => "complete a task",
            Self::TakeBack => "take a claim back",
        }
    }
}

/// Why the body of a write ended it.
enum Stop {
    /// The board's own rules forbid the write.
    Rule(StoreError),
    /// SQLite failed.
    Sqlite(rusqlite::Error),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Rule(error)
    }
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
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
        let mut db = Database::look(path, options, true)?;
        let identity = schema::identify(db.connection(), path)?;
        if identity == Identity::Board {
            schema::check(db.connection(), path)?;
        }
        db.arm()?;
        let mut board = Self { db, durability: None };
        if identity == Identity::Empty {
            board.make_schema()?;
            schema::check(board.connection(), path)?;
        }
        Ok(board)
    }

    /// Opens the board at `path`, which must be there.
    ///
    /// Whatever else lies there is left as it is.
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
        let mut db = Database::look(path, options, false)?;
        if schema::identify(db.connection(), path)? == Identity::Empty {
            return Err(schema::not_a_board(path, Found::Empty));
        }
        schema::check(db.connection(), path)?;
        db.arm()?;
        Ok(Self { db, durability: None })
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
    /// # board.create_task(me.next_key(), &NewTask { title: "paint the fence", priority: 0 })?;
    /// let lease = Duration::from_secs(60);
    /// let claim = board.claim_next(me.next_key(), "tom", lease)?.expect("one task is ready");
    /// // A heartbeat that a power cut takes back costs nothing.
    /// let beat = board
    ///     .at(Durability::Process)
    ///     .heartbeat(me.next_key(), claim.task, claim.token, lease)?;
    /// assert_eq!(beat.durability, Durability::Process);
    /// let done = board.at(Durability::Power).complete(me.next_key(), claim.task, claim.token, "")?;
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
        self.read("read the newest commit", |conn| {
            conn.prepare_cached("SELECT coalesce(max(seq), 0) FROM commits")?
                .query_row([], |row| row.get(0))
        })
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

    /// Makes the schema, unless another process was quicker.
    fn make_schema(&mut self) -> Result<()> {
        let path = self.db.path().to_owned();
        let made = self.db.write(None, |conn| -> Result<(), Stop> {
            if schema::identify(conn, &path)? == Identity::Empty {
                schema::make(conn)?;
            }
            Ok(())
        });
        made.map(|_| ()).map_err(|failure| self.explain(failure, "make the board", OpKey::CREATION))
    }

    /// One write. The body records itself with [`record`] and gives the number it got.
    fn write<T>(
        &mut self,
        kind: Kind,
        key: OpKey,
        body: impl FnOnce(&Connection) -> Result<(T, CommitSeq), Stop>,
    ) -> Result<(T, Commit)> {
        match self.db.write(self.durability, body) {
            Ok(((value, seq), ack)) => Ok((value, commit(seq, ack))),
            Err(failure) => Err(self.explain(failure, kind.deed(), key)),
        }
    }

    /// As [`write`](Self::write), with a body that may find that there is nothing to write.
    fn write_if<T>(
        &mut self,
        kind: Kind,
        key: OpKey,
        body: impl FnOnce(&Connection) -> Result<Option<(T, CommitSeq)>, Stop>,
    ) -> Result<Option<(T, Commit)>> {
        let body = |conn: &Connection| body(conn).map_err(Some)?.ok_or(None);
        match self.db.write(self.durability, body) {
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
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        self.db.read(during, query)
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

/// Writes the row that every write has in `commits`, and gives its number.
///
/// SQLite itself chooses the number, the greatest plus one, under the write lock that is held from
/// before the row is written until the commit: so there is no hole, and no number twice.
fn record(
    conn: &Connection,
    kind: Kind,
    key: OpKey,
    task: TaskId,
    token: Option<FencingToken>,
    rows: i64,
) -> rusqlite::Result<CommitSeq> {
    conn.prepare_cached(
        "INSERT INTO commits (session, op, kind, task_id, token, rows) VALUES (?, ?, ?, ?, ?, ?)",
    )?
    .execute((key.session, key.op, kind.as_str(), task, token, rows))?;
    Ok(CommitSeq::new(conn.last_insert_rowid()))
}

/// The wall clock, in milliseconds since 1970.
fn now_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => milliseconds(since),
        Err(before) => -milliseconds(before.duration()),
    }
}

/// Whole milliseconds; what is too long for the column is as long as the column can hold.
fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
