//! Stops, kills, breaks and watches any process at an exact system call on a SQLite database.
//!
//! A [`Supervisor`] starts commands under a seccomp filter and ptrace. Every traced call on a
//! database file is a numbered point with a [`Phase`]; at each the [`Driver`] decides what happens,
//! and the [`Run`] tells what did. The victims need no preparation: any program, any SQLite, any
//! language.
//!
//! What never happens here: a victim outliving its supervisor; a fault without a [`Receipt`]; a
//! lock of a victim lost by our looking at its files.
//!
//! Not here: which faults to ask for, what must be true afterwards, command lines and reports.
//!
//! # Example
//!
//! Kills a Python program in the middle of the page that would have committed its third
//! transaction:
//!
//! ```no_run
//! use killpoint::run::trace::{
//!     CallSet, Command, Databases, Decision, Driver, Fault, KillWhen, Options, Phase, Scene, Stop,
//!     Supervisor, TraceError, Whom,
//! };
//!
//! struct ThirdCommit(u32);
//!
//! impl Driver for ThirdCommit {
//!     fn at_stop(&mut self, stop: &Stop, _scene: &Scene<'_>) -> Decision {
//!         if stop.phase != Phase::CommitPage {
//!             return Decision::Continue;
//!         }
//!         self.0 += 1;
//!         match self.0 {
//!             3 => Decision::Fault(Fault::Kill {
//!                 when: KillWhen::Inside { bytes: 512 },
//!                 whom: Whom::Process,
//!             }),
//!             _ => Decision::Continue,
//!         }
//!     }
//! }
//!
//! # fn main() -> Result<(), TraceError> {
//! let databases = Databases::At(vec!["board.db".into()]);
//! let mut supervisor = Supervisor::new(Options::new(CallSet::FAULTS, databases))?;
//! supervisor.spawn(&Command::new("python3").args(["worker.py", "board.db"]))?;
//! let run = supervisor.run(&mut ThirdCommit(0))?;
//! assert_eq!(run.receipts.len(), 1);
//! # Ok(())
//! # }
//! ```

mod alarm;
mod apply;
mod arch;
mod asked;
mod calls;
mod classify;
mod command;
mod cores;
mod driver;
mod effects;
mod error;
mod events;
mod examine;
mod files;
mod filter;
mod hash;
mod launch;
mod memory;
mod nursery;
mod operation;
mod options;
mod passed;
mod phase;
mod ptrace;
mod report;
mod scene;
mod stack;
mod state;
mod supervisor;
mod trap;
mod watch;
mod world;

use std::fmt;

use serde::Serialize;

pub use calls::{CallKind, CallSet, Sys};
pub use command::{Command, FdUse};
pub use driver::{
    Ahead, Choice, Decision, Driver, ErrorCode, Event, Fault, KillWhen, LookOn, Standing, Stop,
    Trap, Whom,
};
pub use error::TraceError;
pub use files::{
    Database, DatabaseId, Databases, Descriptor, FdTable, FileId, FileRef, HeldLock, Inherited,
    LockModel, Owner, Range, Role,
};
pub use nursery::Nursery;
pub use operation::{LockCall, LockKind, Offset, Operation, PathArgument, Syscall};
pub use options::{Leftovers, Options};
pub use phase::{DbLock, Phase, PhasePattern, Sidecar, UnknownPhase, WalLock};
pub use report::{Exit, Outcome, ProcessReport, Receipt, Run, RunEnd, Unseen};
pub use scene::Scene;
pub use stack::{Frame, Stack};
pub use supervisor::Supervisor;
pub use trap::{Preemption, preemption};
pub use watch::{Breach, Finding, Stranger, Watcher};
pub use world::World;

/// A process, by its number in the supervisor's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ProcessId(pub i32);

/// A thread, by its number in the supervisor's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ThreadId(pub i32);

impl fmt::Display for ProcessId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl fmt::Display for ThreadId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}
