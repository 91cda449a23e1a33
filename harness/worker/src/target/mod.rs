//! What a writer can ask of a board, whichever store is behind it.
//!
//! [`Target::perform`] is the whole interface: one operation in, what was committed out. The store
//! under test and the plain one stand side by side in `hardboard` and `baseline`.

mod baseline;
mod hardboard;

use crate::ledger::{Effective, Kind, Reason};
use crate::shim;
use crate::wire;
use ::hardboard::{Durability, OpKey};
use hardboard::Owner;
use std::path::Path;

/// One operation as its writer asks for it.
#[derive(Clone, Debug)]
pub(crate) enum Op<'a> {
    Create {
        title: &'a str,
        priority: i64,
    },
    ClaimNext {
        worker: &'a str,
        lease_ms: u32,
    },
    Heartbeat {
        task: i64,
        token: i64,
        lease_ms: u32,
    },
    /// `token` 0: without a claim.
    Events {
        task: i64,
        token: i64,
        events: &'a [(&'static str, String)],
    },
    Complete {
        task: i64,
        token: i64,
        result: &'a str,
    },
    TakeBack,
}

impl Op<'_> {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Create { .. } => Kind::Create,
            Self::ClaimNext { .. } => Kind::Claim,
            Self::Heartbeat { .. } => Kind::Heartbeat,
            Self::Events { .. } => Kind::Events,
            Self::Complete { .. } => Kind::Complete,
            Self::TakeBack => Kind::TakeBack,
        }
    }

    /// The step of a script that it is; a take-back goes with the claims.
    pub(crate) fn step(&self) -> wire::Step {
        match self {
            Self::Create { .. } => wire::Step::Create,
            Self::ClaimNext { .. } | Self::TakeBack => wire::Step::Claim,
            Self::Heartbeat { .. } => wire::Step::Heartbeat,
            Self::Events { .. } => wire::Step::Events,
            Self::Complete { .. } => wire::Step::Complete,
        }
    }

    /// The task and token that it names; 0 where it names none.
    pub(crate) fn names(&self) -> (i64, i64) {
        match self {
            Self::Heartbeat { task, token, .. }
            | Self::Events { task, token, .. }
            | Self::Complete { task, token, .. } => (*task, *token),
            Self::Create { .. } | Self::ClaimNext { .. } | Self::TakeBack => (0, 0),
        }
    }

    /// How many event rows it appends.
    pub(crate) fn rows(&self) -> u32 {
        match self {
            Self::Create { .. }
            | Self::ClaimNext { .. }
            | Self::Complete { .. }
            | Self::TakeBack => 1,
            Self::Events { events, .. } => u32::try_from(events.len()).unwrap_or(u32::MAX),
            Self::Heartbeat { .. } => 0,
        }
    }
}

/// How a checkpoint goes about it, as SQLite names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Passive,
    Full,
    Restart,
    Truncate,
}

impl Mode {
    fn pragma(self) -> &'static str {
        match self {
            Self::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
            Self::Full => "PRAGMA wal_checkpoint(FULL)",
            Self::Restart => "PRAGMA wal_checkpoint(RESTART)",
            Self::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
        }
    }
}

/// What was committed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) task: i64,
    /// 0 for none.
    pub(crate) token: i64,
    pub(crate) seq: i64,
    /// In COMMIT, ns.
    pub(crate) commit_ns: u64,
    /// What it survives, by the store's own word.
    pub(crate) durability: Durability,
}

/// An operation that was not acknowledged.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Certainly nothing was written.
    Refused(Reason, String),
    /// Wholly there or wholly absent.
    Unknown(String),
}

/// A store that a writer has open.
pub(crate) trait Target {
    /// Performs `op` under `key`, to survive what `durability` says, or what the connection's
    /// settings do.
    ///
    /// `early` is there for a store that acknowledges before it has committed; an honest one does
    /// not touch it.
    fn perform(
        &mut self,
        key: OpKey,
        op: &Op<'_>,
        durability: Option<Durability>,
        early: &mut dyn FnMut(Done),
    ) -> Result<Done, Failure>;

    /// The connection, for reading and for what it says of itself.
    fn connection(&self) -> &rusqlite::Connection;

    /// How many claims may be taken back, as it sees it.
    fn expired(&self) -> rusqlite::Result<i64>;

    /// Sets the wall clock of this process, as the store sees it, forward or back.
    fn shift_clock(&mut self, by_ms: i64);

    /// What it says of its own settings, asked for now.
    fn effective(&self) -> Result<Effective, String> {
        effective(self.connection()).map_err(|error| error.to_string())
    }

    /// Copies the log into the database; gives the pages in the log and
    /// those copied, or `None` if another is at it.
    fn checkpoint(&mut self, mode: Mode) -> Result<Option<(i64, i64)>, String> {
        checkpoint(self.connection(), mode)
    }

    /// Closes the connection, and says what went wrong if it did.
    fn close(self: Box<Self>) -> Result<(), String>;
}

/// Opens `path` as `life` asks, making the file and its schema if `create`.
pub(crate) fn open(
    path: &Path,
    life: &wire::Life,
    create: bool,
) -> Result<Box<dyn Target>, String> {
    match life.target {
        wire::Target::Hardboard => hardboard::open(path, life, Owner::One, create),
        wire::Target::Flawed(wire::Flaw::NoOwner) => {
            hardboard::open(path, life, Owner::None, create)
        }
        wire::Target::Baseline => baseline::open(path, life, None, create),
        wire::Target::Flawed(flaw) => baseline::open(path, life, Some(flaw), create),
    }
}

fn checkpoint(conn: &rusqlite::Connection, mode: Mode) -> Result<Option<(i64, i64)>, String> {
    let answer = conn
        .prepare_cached(mode.pragma())
        .and_then(|mut sql| sql.query_row([], |row| Ok((row.get(1)?, row.get(2)?))));
    match answer {
        Ok((-1, -1)) => Ok(None),
        Ok(pages) => Ok(Some(pages)),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {
            Ok(None)
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Reads back what matters of a connection's settings.
fn effective(conn: &rusqlite::Connection) -> rusqlite::Result<Effective> {
    let number = |pragma: &str| {
        conn.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
            .map(|value| u32::try_from(value).unwrap_or(u32::MAX))
    };
    let journal: String = conn.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    Ok(Effective {
        synchronous: number("synchronous")?,
        wal_autocheckpoint: number("wal_autocheckpoint")?,
        wal: journal.eq_ignore_ascii_case("wal"),
    })
}

fn vfs() -> String {
    shim::NAME.to_owned()
}
