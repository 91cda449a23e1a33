//! What a run did and what became of the victims: plain data.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::calls::Sys;
use super::driver::Fault;
use super::phase::Phase;
use super::{ProcessId, ThreadId};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By a signal.
    Signal {
        /// Its number.
        signal: i32,
        /// Whether this supervisor sent it.
        by_supervisor: bool,
    },
}

impl fmt::Display for Exit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(out, "exit code {code}"),
            Self::Signal { signal, by_supervisor: true } => {
                write!(out, "signal {signal}, sent by the supervisor")
            }
            Self::Signal { signal, by_supervisor: false } => write!(out, "signal {signal}"),
        }
    }
}

/// What came of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Under way when the run ended, or the process died first: the fault did not land.
    Unfinished,
    /// It cannot be done to this call. The call happened as if nothing had been asked.
    NotPossible {
        /// Why.
        reason: &'static str,
    },
    /// The victim was killed.
    Killed {
        /// What the call had returned; none if it was killed before the call.
        result: Option<i64>,
    },
    /// The call was not made, and failed.
    Failed,
    /// A part of the call happened.
    Shortened {
        /// Bytes that the program asked for.
        asked: u64,
        /// What the call returned.
        result: i64,
    },
    /// The thread was delayed.
    Delayed,
    /// The process was stopped and continued.
    Paused,
}

/// The proof that a fault was delivered, or why it was not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// What was asked.
    pub fault: Fault,
    /// What came of it.
    pub outcome: Outcome,
    /// The numbered point; none if the call was on no database file.
    pub point: Option<u64>,
    /// What SQLite was doing.
    pub phase: Phase,
    /// The call.
    pub call: Sys,
    /// The process.
    pub process: ProcessId,
    /// The thread.
    pub thread: ThreadId,
    /// Which of the spawned commands, from 0.
    pub copy: usize,
    /// When, since the run began.
    #[serde(rename = "at_ns", serialize_with = "nanoseconds")]
    pub at: Duration,
    /// How the process ended; none if it had not when the run ended.
    pub exit: Option<Exit>,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunEnd {
    /// Every process ended.
    AllExited,
    /// Every spawned command ended; what it had left behind was killed.
    LeftoversKilled,
    /// The deadline passed; everything was killed.
    Deadline,
    /// The driver asked for it; everything was killed.
    Driver,
    /// Every thread was held and the driver let none go; everything was killed.
    Stalled,
}

/// Why calls of a process may have gone unseen. A run with any of these proves less than it seems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unseen {
    /// It made an `io_uring`: what goes through that makes no stops.
    Ring,
    /// Its memory cannot be read, so what its calls point to is not known: it has made itself
    /// undumpable, or runs as another user.
    Memory,
}

/// One process of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessReport {
    /// Its number.
    pub process: ProcessId,
    /// The one that made it; none for a spawned command.
    pub parent: Option<ProcessId>,
    /// Whether it was spawned by the supervisor, and not made by another victim.
    pub spawned: bool,
    /// Which of the spawned commands it descends from, from 0.
    pub copy: usize,
    /// Its command line, as last executed.
    pub command: String,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Stops on database files.
    pub points: u64,
    /// Why calls of it may have gone unseen; empty if none did.
    pub unseen: Vec<Unseen>,
    /// Where it was when the run was cut short: the state of its main thread.
    pub cut_short_in: Option<String>,
}

/// What happened in a run.
#[derive(Clone, Debug, Serialize)]
#[must_use = "a run that nobody looks at has shown nothing"]
pub struct Run {
    /// Why it ended.
    pub end: RunEnd,
    /// How long it took.
    #[serde(rename = "elapsed_ns", serialize_with = "nanoseconds")]
    pub elapsed: Duration,
    /// Every process that was ever part of it, in the order of their beginning.
    pub processes: Vec<ProcessReport>,
    /// What was done to them, in order.
    pub receipts: Vec<Receipt>,
    /// Stops on database files.
    pub points: u64,
    /// Stops by phase, those on no database file included.
    pub phases: BTreeMap<Phase, u64>,
    /// All stops at traced calls, whatever they were on.
    pub stops: u64,
    /// Calls that were let pass beforehand, and so made no stop.
    pub passed: u64,
    /// Whether the supervisor and its only victim shared a core at the end.
    pub one_core: bool,
    /// Sleeps that took no time.
    pub sleeps_skipped: u64,
}

impl Run {
    /// How the `copy`-th spawned command (from 0) ended.
    #[must_use]
    pub fn exit_of(&self, copy: usize) -> Option<Exit> {
        self.processes
            .iter()
            .find(|process| process.copy == copy && process.spawned)
            .and_then(|process| process.exit)
    }
}

impl fmt::Display for Run {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = match self.end {
            RunEnd::AllExited => "every process ended",
            RunEnd::LeftoversKilled => "every command ended, and what it left behind was killed",
            RunEnd::Deadline => "the deadline passed, and everything was killed",
            RunEnd::Driver => "the driver ended it, and everything was killed",
            RunEnd::Stalled => "every thread was held and none let go; everything was killed",
        };
        writeln!(out, "{end} ({} points, {} stops)", self.points, self.stops)?;
        for process in &self.processes {
            write!(out, "  {} {}: ", process.process, process.command)?;
            match (&process.exit, &process.cut_short_in) {
                (Some(exit), None) => writeln!(out, "{exit}")?,
                (Some(exit), Some(place)) => writeln!(out, "{exit}, when {place}")?,
                (None, _) => writeln!(out, "end not seen")?,
            }
            for unseen in &process.unseen {
                let why = match unseen {
                    Unseen::Ring => "it uses io_uring",
                    Unseen::Memory => "its memory cannot be read",
                };
                writeln!(out, "    calls may have gone unseen: {why}")?;
            }
        }
        Ok(())
    }
}

pub(super) fn nanoseconds<S: serde::Serializer>(
    duration: &Duration,
    out: S,
) -> Result<S::Ok, S::Error> {
    out.serialize_u64(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}
