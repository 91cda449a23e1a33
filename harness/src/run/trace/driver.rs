//! The supervisor's question to its driver at every stop, and the answers it takes.
//!
//! A driver decides; it never touches a process. Kills by plan, a scheduler and a checker that only
//! looks on are all drivers.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::files::FileRef;
use super::operation::{Operation, Syscall};
use super::phase::Phase;
use super::report::Exit;
use super::scene::Scene;
use super::{ProcessId, ThreadId};

/// A thread that stands before a traced call.
#[derive(Clone, Debug)]
pub struct Stop {
    /// The process.
    pub process: ProcessId,
    /// The thread of it.
    pub thread: ThreadId,
    /// Which of the spawned commands it descends from, counted from 0.
    pub copy: usize,
    /// Time since the run began.
    pub at: Duration,
    /// Number of this stop in the order of all that the kernel reported of all victims, from 1.
    pub event: u64,
    /// Number of this stop among those on database files, from 1; none if it is on no such file.
    pub point: Option<u64>,
    /// The same, counted in this process alone.
    pub point_in_process: Option<u64>,
    /// Of a call that was let pass, and is told only now: the step of its script that our worker
    /// was at then, which the ledger says no more.
    pub script_step: Option<u32>,
    /// What SQLite is doing.
    pub phase: Phase,
    /// The call.
    pub call: Syscall,
    /// What the call asks for. The offset of a write or read on a database file is always known.
    pub operation: Operation,
    /// The file it works on, if that file belongs to a database or takes acknowledgements.
    pub file: Option<FileRef>,
    /// The second file of a rename, link or copy, likewise.
    pub target: Option<FileRef>,
}

/// An error that a call can be made to fail with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "each is the error of the same name")]
pub enum ErrorCode {
    Eio,
    Enospc,
    Eintr,
    Eagain,
    Edquot,
    Efbig,
    Enolck,
    Enomem,
    Eacces,
}

impl ErrorCode {
    /// Its number.
    #[must_use]
    pub const fn number(self) -> i32 {
        match self {
            Self::Eio => libc::EIO,
            Self::Enospc => libc::ENOSPC,
            Self::Eintr => libc::EINTR,
            Self::Eagain => libc::EAGAIN,
            Self::Edquot => libc::EDQUOT,
            Self::Efbig => libc::EFBIG,
            Self::Enolck => libc::ENOLCK,
            Self::Enomem => libc::ENOMEM,
            Self::Eacces => libc::EACCES,
        }
    }
}

/// The moment of a kill, seen from the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum KillWhen {
    /// The call does not happen.
    Before,
    /// The call happens, and the program never learns of it.
    After,
    /// Only the first `bytes` of a write happen: a torn write.
    Inside {
        /// At least 1, and less than the write's length.
        bytes: u64,
    },
}

/// Who is killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whom {
    /// The process, with all its threads.
    #[default]
    Process,
    /// Every process of the same spawned command.
    Copy,
    /// Every process of the run.
    All,
}

/// Something done to a victim at a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// SIGKILL.
    Kill {
        /// The moment.
        when: KillWhen,
        /// Who dies.
        #[serde(default)]
        whom: Whom,
    },
    /// The call is not made and fails with this error.
    Fail(ErrorCode),
    /// Only the first `bytes` of a write or read happen, and the program is told so.
    Shorten {
        /// At least 1, and less than the call's length.
        bytes: u64,
    },
    /// The thread waits before the call.
    Delay {
        /// How long.
        ms: u64,
    },
    /// The whole process is stopped (SIGSTOP) before the call, and continued (SIGCONT) later.
    Pause {
        /// How long.
        ms: u64,
    },
}

/// Where between two calls a thread is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Trap {
    /// Once it has touched, read or written, eight bytes of the wal-index, by a hardware
    /// watchpoint. Nothing happens if the process has not mapped them.
    Touch {
        /// Where they begin in the `-shm` file; a multiple of 8.
        offset: u64,
        /// How many touches are let pass before.
        skip: u32,
    },
    /// After so many instructions, one by one: a hundred times slower, and always to be had.
    Steps(u32),
}

/// What to do with a stopped thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Let the call happen.
    Continue,
    /// Let the call happen and tell the driver its result. Costs a second stop.
    Observe,
    /// Keep the thread where it is. [`Driver::choose`] lets it go, with any other decision.
    Hold,
    /// A sleep takes no time: the call is not made and returns 0. Other calls just happen.
    SkipSleep,
    /// Let the call happen, and stop the thread in the midst of its own code:
    /// [`Driver::at_trap`] is asked then. Its next traced call ends the trap.
    Until(Trap),
    /// Let a call that waits for a lock happen without waiting. If the lock cannot be had the
    /// thread stands before the call again, and the driver is told `-EAGAIN`. Other calls just
    /// happen.
    Try,
    /// Break something.
    Fault(Fault),
    /// Kill everything and end the run. The call does not happen.
    EndRun,
}

/// Something that happened to a process.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A command was started; none of its code has run.
    Started {
        /// The new process.
        process: ProcessId,
    },
    /// A process made another.
    Forked {
        /// The one that called.
        parent: ProcessId,
        /// The new one.
        child: ProcessId,
    },
    /// A process runs another program now.
    Executed {
        /// The process.
        process: ProcessId,
    },
    /// A process ended.
    Exited {
        /// The process.
        process: ProcessId,
        /// How.
        exit: Exit,
    },
}

/// The held threads, for a driver to choose from.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    /// The stops that are held, the longest first.
    pub held: &'a [Stop],
    /// Threads that stand still at no call, likewise: new ones where one runs at a time, those
    /// that a trap has stopped, those that tried a lock in vain.
    pub parked: &'a [ThreadId],
    /// Threads that are running, or blocked in a call.
    pub running: usize,
    /// How long nothing has happened.
    pub quiet: Duration,
}

/// Which held thread goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// None, until something happens. If nothing can happen any more, the run ends as stalled.
    Wait,
    /// None; ask again after this time if nothing has happened.
    WaitAtMost(Duration),
    /// This one, with this decision ([`Decision::Hold`] counts as [`Decision::Continue`]). The
    /// question is asked again at once. A thread that is neither held nor parked counts as
    /// [`Choice::Wait`].
    Release(ThreadId, Decision),
}

/// What a driver knows that it will let happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// So many stops of the thread, from its next on, will be answered with
    /// [`Decision::Continue`].
    pub stops: u32,
    /// Of these, so many may ask for a lock that excludes others: at one more it is stopped.
    pub exclusive: u32,
}

/// Decides at every stop.
///
/// Called on the supervisor's thread while the thread in question, and only that thread, stands
/// still. A thread that is not held goes on by itself.
pub trait Driver {
    /// A thread stands before a traced call on a database file, a sleep, or an acknowledgement.
    fn at_stop(&mut self, stop: &Stop, scene: &Scene<'_>) -> Decision;

    /// What is certain of the next stops of `thread`, which is about to go on with
    /// [`Decision::Continue`]: stops at locks and at writes on files of a database that has been
    /// met.
    ///
    /// Where the victim has a [gate](killpoint_worker::gate), such calls are then made without a
    /// stop, and [`at_stop`](Self::at_stop) is asked later, for each, in their order. What is not
    /// told by a [`Stop`] itself (memory, the bytes written, the files) is then not as it was. An
    /// answer other than what was promised is a fault of the driver, and ends the run as an error.
    fn ahead(&self, _thread: ThreadId) -> Ahead {
        Ahead::default()
    }

    /// The call of a stop that was answered with [`Decision::Observe`] has returned `result`:
    /// `-errno` if it failed. Not called if the process died in it.
    fn at_result(&mut self, _stop: &Stop, _result: i64, _scene: &Scene<'_>) {}

    /// A thread was stopped by its [`Trap`]. [`Decision::Hold`] keeps it there,
    /// [`Decision::Until`] sets another trap; anything else lets it go on.
    fn at_trap(&mut self, _thread: ThreadId, _process: ProcessId, _scene: &Scene<'_>) -> Decision {
        Decision::Continue
    }

    /// A process started, forked, executed or ended.
    fn at_event(&mut self, _event: &Event, _scene: &Scene<'_>) {}

    /// Which held thread goes on. Asked after every event while any thread is held.
    fn choose(&mut self, _standing: Standing<'_>, _scene: &Scene<'_>) -> Choice {
        Choice::Wait
    }
}

/// Lets everything happen.
#[derive(Clone, Copy, Debug, Default)]
pub struct LookOn;

impl Driver for LookOn {
    fn at_stop(&mut self, _stop: &Stop, _scene: &Scene<'_>) -> Decision {
        Decision::Continue
    }
}
