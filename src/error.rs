//! What a failed call means to its caller.
//!
//! The variants are split by the caller's next move, and every one of them answers the question
//! that matters after a failure: was anything written? See [`StoreError::outcome`].
//!
//! In: a [`rusqlite::Error`] and what was being done. Out: a [`StoreError`] that keeps it as its
//! source. Not here: how an error looks on a terminal, which is `cli`'s work.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::ErrorCode;

use crate::board::claim::FencingToken;
use crate::board::note::AttachmentId;
use crate::board::task::{Status, TaskId};
use crate::board::{CommitSeq, OpKey};

/// The result of a call of this crate.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A failed call.
///
/// Try again: [`Busy`](Self::Busy). Give the work up: [`StaleClaim`](Self::StaleClaim). Choose
/// another task: [`NotClaimable`](Self::NotClaimable), [`NoSuchTask`](Self::NoSuchTask). Look
/// before writing again: [`Indeterminate`](Self::Indeterminate). Open the board anew:
/// [`Poisoned`](Self::Poisoned). All others need a person.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another writer held the lock for the whole wait. Nothing was written; a retry is safe.
    #[error("the write lock was still held after {} ms", waited.as_millis())]
    Busy {
        /// Time spent waiting.
        waited: Duration,
    },

    /// The claim that the write was made under is not the live one: it was taken back, or the
    /// task is done. The holder must stop its work on the task.
    #[error("claim {token} of task {task} is not live: the newest token is {newest}")]
    StaleClaim {
        /// The task.
        task: TaskId,
        /// The token that came with the write.
        token: FencingToken,
        /// The newest token of that task (0: it was never claimed). It may equal `token`, when
        /// that claim has ended and no other was made since.
        newest: FencingToken,
    },

    /// The board has no task of this number.
    #[error("there is no task {task}")]
    NoSuchTask {
        /// The number asked for.
        task: TaskId,
    },

    /// The task is not ready, so it cannot be claimed.
    #[error("task {task} cannot be claimed: it is {status}")]
    NotClaimable {
        /// The task.
        task: TaskId,
        /// What it is instead of ready.
        status: Status,
    },

    /// The task is ready, and names another worker.
    #[error("task {task} cannot be claimed: it is for {assignee}")]
    NotForYou {
        /// The task.
        task: TaskId,
        /// Who may claim it.
        assignee: String,
    },

    /// Where the task stands forbids it.
    #[error("task {task} cannot be {deed}: it is {status}")]
    NotAllowed {
        /// The task.
        task: TaskId,
        /// Where it stands.
        status: Status,
        /// What was to be done with it, as in "it was blocked".
        deed: &'static str,
    },

    /// A task of that idempotency key is there. Go on with that one.
    #[error("task {task} has the idempotency key {key:?}")]
    TaskExists {
        /// The task that is there.
        task: TaskId,
        /// The key.
        key: String,
    },

    /// The operation of that key was written before. This call wrote nothing; whatever the
    /// operation was to do is done.
    #[error("operation {key} is commit {seq} already")]
    AlreadyWritten {
        /// The operation.
        key: OpKey,
        /// The commit that wrote it.
        seq: CommitSeq,
    },

    /// One task would wait for another that waits for it.
    #[error("task {child} cannot wait for task {parent}, which is itself or waits for it")]
    Cycle {
        /// The task that was to be waited for.
        parent: TaskId,
        /// The task that was to wait.
        child: TaskId,
    },

    /// The one task does not wait for the other.
    #[error("task {child} does not wait for task {parent}")]
    NoSuchLink {
        /// The task that is not waited for.
        parent: TaskId,
        /// The task that does not wait.
        child: TaskId,
    },

    /// The task has no attachment of this number.
    #[error("task {task} has no attachment {attachment}")]
    NoSuchAttachment {
        /// The task.
        task: TaskId,
        /// The number asked for.
        attachment: AttachmentId,
    },

    /// The board has no subscription of this name.
    #[error("there is no subscription {name:?}")]
    NoSuchSubscription {
        /// The name asked for.
        name: String,
    },

    /// The board has a subscription of this name.
    #[error("there is a subscription {name:?} already")]
    SubscriptionExists {
        /// The name.
        name: String,
    },

    /// The claim's process is alive, so the claim is not given away.
    #[error("the worker of claim {token} of task {task} is alive: process {pid}")]
    WorkerLives {
        /// The task.
        task: TaskId,
        /// The claim.
        token: FencingToken,
        /// The process.
        pid: i32,
    },

    /// Another dispatcher has taken over. This one must stop, and start nothing more.
    #[error("dispatcher {epoch} has been followed by dispatcher {newest}")]
    StaleDispatcher {
        /// The number of the one that called.
        epoch: i64,
        /// The number of the newest.
        newest: i64,
    },

    /// The board is not as it was when the plan was made. Make it again.
    #[error("the board has moved on from commit {planned}, where the plan was made, to {now}")]
    PlanOutdated {
        /// The newest commit when the plan was made.
        planned: CommitSeq,
        /// The newest commit now.
        now: CommitSeq,
    },

    /// A verification found what should not be. Nothing was changed, unless it says so.
    #[error("the verification found: {found}")]
    Unsound {
        /// The first thing that it found.
        found: String,
    },

    /// What is to be imported cannot be, or the board is not empty. Nothing was written.
    #[error("cannot import: {what}")]
    Import {
        /// What is in the way.
        what: String,
    },

    /// The file with the settings cannot be read or understood.
    #[error("{}: {what}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        what: String,
    },

    /// A file beside the board could not be used.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system reported.
        #[source]
        source: std::io::Error,
    },

    /// An argument makes no sense.
    #[error("{what} is not {wanted}")]
    Invalid {
        /// The argument.
        what: String,
        /// What it should be.
        wanted: &'static str,
    },

    /// The disk, or the size the database may have, is full. Nothing was written.
    #[error("no space left for the write")]
    Full {
        /// What SQLite reported.
        #[source]
        source: rusqlite::Error,
    },

    /// A file beside the database could not be opened, locked, read or written. Nothing was
    /// written to the database.
    #[error("cannot {during}: {}", path.display())]
    Beside {
        /// What was being done.
        during: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system reported.
        #[source]
        source: std::io::Error,
    },

    /// The operating system failed a read or a write. Nothing was written.
    #[error("input or output failed")]
    Io {
        /// What SQLite reported.
        #[source]
        source: rusqlite::Error,
    },

    /// The file holds what no write of this crate could have put there. Nothing was written.
    #[error("the database is damaged: {}", path.display())]
    Corrupt {
        /// The database file.
        path: PathBuf,
        /// What SQLite reported.
        #[source]
        source: rusqlite::Error,
    },

    /// The commit failed in a way that leaves its fate open: the write is wholly there or wholly
    /// absent. Open the board anew and look before writing it again.
    #[error("the outcome of write {key} is unknown")]
    Indeterminate {
        /// The write concerned.
        key: OpKey,
        /// What SQLite reported while the commit was in flight.
        #[source]
        source: rusqlite::Error,
    },

    /// An earlier write of this connection had an unknown outcome, so nothing that the connection
    /// says can be trusted. This call did nothing. Open the board anew.
    #[error("the connection is not to be used after a write of unknown outcome")]
    Poisoned,

    /// SQLite cannot work safely where the database lies. Nothing was opened.
    #[error("{why}: {}", path.display())]
    Place {
        /// The database file.
        path: PathBuf,
        /// What is the matter with its place.
        why: String,
    },

    /// The loaded SQLite can lose acknowledged commits, and the options do not accept it. Nothing
    /// was opened.
    #[error(
        "SQLite {version} can lose commits ({found}): upgrade to 3.51.3 or later, or to 3.50.7 or \
         3.44.6 of those lines"
    )]
    Engine {
        /// Its version.
        version: String,
        /// The check-in that it was built from.
        source_id: String,
        /// How that is known.
        found: String,
    },

    /// The database, its log or its index was moved, removed, replaced or given another name while
    /// it was open. Nothing was written. Open the database anew, once it is clear which file is the
    /// right one.
    #[error("a file of the open database is not what it was ({what}): {}", path.display())]
    Moved {
        /// The file.
        path: PathBuf,
        /// What became of it.
        what: &'static str,
    },

    /// A commit that was acknowledged is not there: an old copy was put over the database, its
    /// log was lost, or it is another database. Nothing was written. Put the right one back, or
    /// accept the loss with `hardboard recover`.
    #[error(
        "acknowledged commit {missing} is not there, the newest is {newest}: {}", path.display()
    )]
    RolledBack {
        /// The database file.
        path: PathBuf,
        /// The number of a commit that was acknowledged and is not there, or not as it was.
        missing: i64,
        /// The number of the newest commit that is there.
        newest: i64,
    },

    /// The place was quarantined: a process found the database damaged, copied it, and nobody
    /// writes to it until it is recovered. Nothing was written.
    #[error(
        "the database is quarantined ({reason}), its copy is {}: {}",
        copy.display(),
        path.display()
    )]
    Quarantined {
        /// The database file.
        path: PathBuf,
        /// What was found.
        reason: String,
        /// Where the copy of database and log lies.
        copy: PathBuf,
    },

    /// The database was opened by another process than this one, as before a fork. Nothing was
    /// done. Open it in this process.
    #[error("the database was opened by process {opened_by}, and this is process {pid}")]
    OtherProcess {
        /// The process that opened it.
        opened_by: u32,
        /// This one.
        pid: u32,
    },

    /// A checkpoint gave an answer that no sound log can give: more pages copied than there are.
    /// Acknowledged commits are out of sight, and the next checkpoint or a close by another
    /// program would lose them. Nothing was written. Stop all processes that have the database
    /// open, by SIGKILL if need be; a copy of the database and its `-wal`, without the `-shm`, then
    /// has every commit, and `hardboard recover` makes it.
    #[error(
        "the log's index is broken ({done_pages} of {log_pages} pages copied): {}",
        path.display()
    )]
    BrokenLog {
        /// The database file.
        path: PathBuf,
        /// Pages in the log, as SQLite has it.
        log_pages: i64,
        /// Pages copied, as SQLite has it.
        done_pages: i64,
    },

    /// A setting did not take: read back, it was not what was asked for. The connection is closed.
    #[error("{pragma} is {got}, not {wanted}")]
    PragmaRefused {
        /// The setting's name, as SQLite spells it.
        pragma: &'static str,
        /// What was asked for.
        wanted: String,
        /// What was read back.
        got: String,
    },

    /// An option's value is not understood.
    #[error("{name} is {value:?}: understood are {understood}")]
    Option {
        /// The option or environment variable.
        name: &'static str,
        /// Its value, with what is not UTF-8 replaced.
        value: String,
        /// What would have been understood.
        understood: &'static str,
    },

    /// The database could not be opened for writing, or does not exist.
    #[error("cannot open the database: {}", path.display())]
    Open {
        /// The file asked for.
        path: PathBuf,
        /// What SQLite reported.
        #[source]
        source: rusqlite::Error,
    },

    /// The file is something else than a board of this crate, and was left as it is.
    #[error("not a board ({found}): {}", path.display())]
    NotABoard {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        found: Found,
    },

    /// Anything else that SQLite may report. Nothing was written.
    #[error("SQLite failed to {during}")]
    Sqlite {
        /// What was being done.
        during: &'static str,
        /// What SQLite reported.
        #[source]
        source: rusqlite::Error,
    },
}

/// What a file is that is not a board.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Found {
    /// An empty file, or a database without any content.
    Empty,
    /// Not a SQLite database, or one whose first page is damaged.
    NotADatabase,
    /// A database of another application.
    Application {
        /// The `application_id` in its header (0: none was set).
        id: i64,
    },
    /// A board in a format that this version does not know.
    Version {
        /// The `user_version` in its header.
        version: i64,
    },
    /// A database that calls itself a board, with a table, index or trigger that a board has not,
    /// or without one that it has.
    Schema {
        /// The name of the table, index or trigger.
        object: String,
    },
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::NotADatabase => f.write_str("it is not a SQLite database"),
            Self::Application { id } => {
                write!(f, "it is a database of another application, id {id:#010x}")
            }
            Self::Version { version } => write!(f, "its format is {version}, not known here"),
            Self::Schema { object } => write!(f, "its {object} is not that of a board"),
        }
    }
}

/// What a failed write did to the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Certainly nothing was written.
    Refused,
    /// The write is wholly there or wholly absent.
    Unknown,
}

impl StoreError {
    /// What the failed call did to the board.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Indeterminate { .. } => Outcome::Unknown,
            Self::Busy { .. }
            | Self::StaleClaim { .. }
            | Self::NoSuchTask { .. }
            | Self::NotClaimable { .. }
            | Self::NotForYou { .. }
            | Self::NotAllowed { .. }
            | Self::TaskExists { .. }
            | Self::AlreadyWritten { .. }
            | Self::Cycle { .. }
            | Self::NoSuchLink { .. }
            | Self::NoSuchAttachment { .. }
            | Self::NoSuchSubscription { .. }
            | Self::SubscriptionExists { .. }
            | Self::WorkerLives { .. }
            | Self::StaleDispatcher { .. }
            | Self::Invalid { .. }
            | Self::Config { .. }
            | Self::PlanOutdated { .. }
            | Self::Unsound { .. }
            | Self::Import { .. }
            | Self::File { .. }
            | Self::Full { .. }
            | Self::Beside { .. }
            | Self::Io { .. }
            | Self::Corrupt { .. }
            | Self::Poisoned
            | Self::BrokenLog { .. }
            | Self::Engine { .. }
            | Self::Place { .. }
            | Self::Moved { .. }
            | Self::RolledBack { .. }
            | Self::Quarantined { .. }
            | Self::OtherProcess { .. }
            | Self::PragmaRefused { .. }
            | Self::Option { .. }
            | Self::Open { .. }
            | Self::NotABoard { .. }
            | Self::Sqlite { .. } => Outcome::Refused,
        }
    }

    /// Sorts a failure that certainly wrote nothing by the caller's next move.
    pub(crate) fn refused(
        source: rusqlite::Error,
        during: &'static str,
        path: &Path,
        waited: Duration,
    ) -> Self {
        match kind(&source) {
            Kind::Busy => Self::Busy { waited },
            Kind::Full => Self::Full { source },
            Kind::Io => Self::Io { source },
            Kind::Corrupt => Self::Corrupt { path: path.to_owned(), source },
            Kind::Open => Self::Open { path: path.to_owned(), source },
            Kind::Other => Self::Sqlite { during, source },
        }
    }
}

/// The kinds of [`rusqlite::Error`] that a caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Busy,
    Full,
    Io,
    Corrupt,
    Open,
    Other,
}

fn kind(error: &rusqlite::Error) -> Kind {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
            ErrorCode::DatabaseBusy => Kind::Busy,
            ErrorCode::DiskFull => Kind::Full,
            // The file system or a checksum, not the device, says that the content is wrong.
            ErrorCode::SystemIoFailure if is_damage(failure.extended_code) => Kind::Corrupt,
            ErrorCode::SystemIoFailure => Kind::Io,
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Kind::Corrupt,
            ErrorCode::CannotOpen | ErrorCode::ReadOnly => Kind::Open,
            _ => Kind::Other,
        },
        // A column of a strict table holds what its type or its check forbids.
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::Utf8Error(..) => Kind::Corrupt,
        _ => Kind::Other,
    }
}

fn is_damage(extended_code: i32) -> bool {
    use rusqlite::ffi::{SQLITE_IOERR_CORRUPTFS, SQLITE_IOERR_DATA};
    extended_code == SQLITE_IOERR_CORRUPTFS || extended_code == SQLITE_IOERR_DATA
}

#[cfg(test)]
mod tests;
