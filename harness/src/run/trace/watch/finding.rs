//! A rule of SQLite's that a program broke: what, who, when, where.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::super::calls::Sys;
use super::super::files::{FileId, HeldLock, Role};
use super::super::stack::Stack;
use super::super::{ProcessId, ThreadId};

/// Why a write was not SQLite's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stranger {
    /// Nothing was ever locked through the descriptor, as SQLite does before it writes.
    NeverLocked,
    /// It went through SQLite's own descriptor at a moment when SQLite held no lock for it.
    NoLockHeld,
    /// It is no whole page, header or frame, wherever SQLite writes nothing else.
    NoPage,
    /// The descriptor was opened by other code than the one that SQLite locks through.
    OpenedElsewhere,
}

/// The rule that was broken, with what shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "rule")]
pub enum Breach {
    /// A descriptor was closed while the process held locks on the file through another one: the
    /// kernel dropped them all, and SQLite does not know.
    ///
    /// SQLite itself does this, up to 3.54.1 at least, if one thread closes a connection at the
    /// moment at which another begins a transaction; then the stack leads to `sqlite3_close`.
    LocksDropped {
        /// The descriptor that was closed.
        closed_fd: i32,
        /// What was lost.
        locks: Vec<HeldLock>,
    },
    /// A connection that had been used before a fork was used in the child.
    CarriedOverFork {
        /// The process that forked.
        opened_by: ProcessId,
        /// The descriptor.
        fd: i32,
    },
    /// A file was removed while processes had it open.
    RemovedWhileOpen {
        /// Those processes.
        open_in: Vec<ProcessId>,
    },
    /// A file was renamed while processes had it open.
    RenamedWhileOpen {
        /// Those processes.
        open_in: Vec<ProcessId>,
    },
    /// Another file took the name of one that processes had open.
    ReplacedWhileOpen {
        /// Those processes.
        open_in: Vec<ProcessId>,
    },
    /// A file was cut by somebody who held no lock for it while processes had it open.
    TruncatedWhileOpen {
        /// Those processes.
        open_in: Vec<ProcessId>,
    },
    /// Two copies of SQLite in one process use the same file: each drops the other's locks.
    TwoCopies {
        /// The module that locked first.
        first: String,
        /// The module that locks now.
        second: String,
    },
    /// One file is used as a database under two names, which have two WALs.
    TwoPaths {
        /// The name that was used first.
        first: PathBuf,
        /// The name that is used now.
        second: PathBuf,
        /// The process that uses the first.
        process: ProcessId,
    },
    /// A database that another process locks is written as a database, but without any lock.
    DifferentLocking {
        /// The process that locks.
        process: ProcessId,
    },
    /// A write to the database or its WAL that did not come from SQLite.
    ForeignWrite {
        /// What shows that.
        why: Stranger,
    },
    /// The file was copied by plain reads while a transaction or checkpoint ran.
    CopyDuringTransaction {
        /// The process whose transaction or checkpoint it was.
        process: ProcessId,
        /// How much was read, in bytes.
        bytes: u64,
    },
    /// A checkpoint wrote to the database from WAL frames that were not yet synced.
    CheckpointBeforeSync,
    /// A commit was acknowledged before its frames were synced, by a process that syncs them.
    AckBeforeSync,
    /// The wal-index says that more frames are in the database than the WAL has: the WAL-reset race
    /// of SQLite up to 3.51.2, or a stray write.
    BackfillPastEnd {
        /// `nBackfill`, in frames.
        backfilled: u32,
        /// `mxFrame`, in frames.
        frames: u32,
    },
}

impl Breach {
    /// The name of the rule.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        match self {
            Self::LocksDropped { .. } => "locks-dropped",
            Self::CarriedOverFork { .. } => "carried-over-fork",
            Self::RemovedWhileOpen { .. } => "removed-while-open",
            Self::RenamedWhileOpen { .. } => "renamed-while-open",
            Self::ReplacedWhileOpen { .. } => "replaced-while-open",
            Self::TruncatedWhileOpen { .. } => "truncated-while-open",
            Self::TwoCopies { .. } => "two-copies",
            Self::TwoPaths { .. } => "two-paths",
            Self::DifferentLocking { .. } => "different-locking",
            Self::ForeignWrite { .. } => "foreign-write",
            Self::CopyDuringTransaction { .. } => "copy-during-transaction",
            Self::CheckpointBeforeSync => "checkpoint-before-sync",
            Self::AckBeforeSync => "ack-before-sync",
            Self::BackfillPastEnd { .. } => "backfill-past-end",
        }
    }
}

/// A broken rule, at the moment it was first seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The rule.
    #[serde(flatten)]
    pub breach: Breach,
    /// The process.
    pub process: ProcessId,
    /// The thread.
    pub thread: ThreadId,
    /// Its command line.
    pub command: String,
    /// Since the run began.
    #[serde(rename = "at_ns", serialize_with = "super::super::report::nanoseconds")]
    pub at: Duration,
    /// The numbered point.
    pub point: Option<u64>,
    /// The file, as it was called then.
    pub path: PathBuf,
    /// The file.
    pub file: FileId,
    /// What the file is.
    pub role: Role,
    /// The call.
    pub call: Sys,
    /// Where in the program.
    pub stack: Stack,
    /// How often this process broke this rule with this file.
    pub times: u64,
}

impl Finding {
    /// Whether another finding is the same broken rule again.
    pub(super) fn is_again(&self, other: &Self) -> bool {
        self.breach.rule() == other.breach.rule()
            && self.process == other.process
            && self.file == other.file
    }
}
