//! A traced program that forks victims: a victim then costs a fork, and no exec and no linking.
//!
//! The program is started once, under a supervisor's filter. Between two births it stands at the
//! report of its last fork, so that it takes no time and has nothing to tell. Its children are
//! traced from their first instruction, and inherit the filter.
//!
//! In: a command that reads one byte for every child it is to fork. Out: stopped children.
//! Not here: what the command is told of a child, which goes by a descriptor of the caller's.

use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use killpoint_worker::gate::Gates;
use nix::errno::Errno;

use super::TraceError;
use super::calls::CallSet;
use super::command::{Command, FdUse};
use super::filter;
use super::launch::{launch, pipe};
use super::ptrace::{self, Resume, Status, Whose, event};
use super::world;

/// A program that forks one victim whenever it is rung for.
///
/// It belongs to the thread that started it, as its victims do, and is killed when it is dropped.
#[derive(Debug)]
pub struct Nursery {
    thread: i32,
    bell: OwnedFd,
    calls: CallSet,
    gates: Option<Arc<Gates>>,
    alive: bool,
    /// Tracing belongs to a thread.
    _on_one_thread: PhantomData<*const ()>,
}

impl Nursery {
    /// Starts `command`, whose children will stop at `calls`; it reads `bell_fd` for its orders.
    ///
    /// Its children may live in a [`World`](super::World) if `repeats`: then what chance decides in
    /// the program itself is always the same, and its clocks are read by calls. With `gates`, which
    /// the command must have been given, too, a driver can let calls of theirs pass unstopped.
    pub fn start(
        command: Command,
        bell_fd: i32,
        calls: CallSet,
        repeats: bool,
        gates: Option<Arc<Gates>>,
    ) -> Result<Self, TraceError> {
        let calls = if repeats { calls.and(CallSet::WORLD) } else { calls };
        let step = "make a pipe";
        let program = command.program.clone();
        let (theirs, bell) =
            pipe().map_err(|source| TraceError::Start { program, step, source })?;
        let command = command.fd(bell_fd, theirs, FdUse::Plain);
        let thread = launch(&command, &mut filter::program(calls, gates.is_some()))?;
        if repeats {
            world::prepare_program(thread).map_err(|source| TraceError::Start {
                program: command.program.clone(),
                step: "hide the vDSO",
                source,
            })?;
        }
        Ok(Self { thread, bell, calls, gates, alive: true, _on_one_thread: PhantomData })
    }

    /// What its children stop at.
    pub(super) fn calls(&self) -> CallSet {
        self.calls
    }

    /// What its children can be let pass by.
    pub(super) fn gates(&self) -> Option<&Arc<Gates>> {
        self.gates.as_ref()
    }

    /// Rings, and gives the child: traced, and stopped before its first instruction.
    pub(super) fn birth(&mut self) -> Result<i32, TraceError> {
        let ill = |errno| TraceError::supervise("have a victim forked", self.thread, errno);
        nix::unistd::write(self.bell.as_fd(), &[1]).map_err(ill)?;
        let mut signal = 0;
        let child = loop {
            ptrace::resume(self.thread, Resume::Run, signal).map_err(ill)?;
            signal = 0;
            match wait_for(self.thread).map_err(ill)? {
                Status::Event { event: event::FORK | event::VFORK | event::CLONE, .. } => {
                    break ptrace::event_message(self.thread).map_err(ill)?;
                }
                // A call of its own that the filter knows, or the stop that follows its start.
                Status::Event { event: event::SECCOMP, .. } => {
                    world::answer_nursery(self.thread).map_err(ill)?;
                }
                Status::Event { .. } | Status::Call => {}
                Status::Signal(sent) => signal = sent,
                Status::Exited(_) | Status::Killed { .. } => {
                    self.alive = false;
                    return Err(ill(Errno::ECHILD));
                }
            }
        };
        match wait_for(child).map_err(ill)? {
            Status::Exited(_) | Status::Killed { .. } => Err(ill(Errno::ESRCH)),
            Status::Event { .. } | Status::Call | Status::Signal(_) => Ok(child),
        }
    }
}

/// The next thing that happens to one thread.
fn wait_for(thread: i32) -> Result<Status, Errno> {
    loop {
        match ptrace::wait(Whose::Thread(thread), true) {
            Ok(Some((_, status))) => return Ok(status),
            Ok(None) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

impl Drop for Nursery {
    fn drop(&mut self) {
        if !self.alive || ptrace::signal(self.thread, libc::SIGKILL).is_err() {
            return;
        }
        while let Ok(status) = wait_for(self.thread) {
            if matches!(status, Status::Exited(_) | Status::Killed { .. }) {
                return;
            }
        }
    }
}
