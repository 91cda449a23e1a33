//! Stopping a thread in the midst of its own code: hardware watchpoints and counted steps.
//!
//! In: a thread that is about to run, and a [`Trap`]. Out: a question to the driver once the thread
//! has run into it. A trap ends at the thread's next traced call, hit or not.

use std::sync::OnceLock;

use nix::errno::Errno;

use super::arch;
use super::driver::{Decision, Driver, Stop, Trap};
use super::ptrace::{self, Resume};
use super::scene::Scene;
use super::state::State;
use super::supervisor::{Supervisor, unless_dead};
use super::{ProcessId, ThreadId, TraceError};
use crate::run::trace::Role;

/// How this machine can stop a thread between two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preemption {
    /// By hardware watchpoints.
    Watchpoints,
    /// By counted steps alone, and why.
    Steps {
        /// What a watchpoint met here.
        why: &'static str,
    },
}

/// Tries a watchpoint on a process of our own, once.
pub fn preemption() -> Preemption {
    static FOUND: OnceLock<Preemption> = OnceLock::new();
    *FOUND.get_or_init(|| match ptrace::watchpoint_works(arch::watch) {
        Ok(true) => Preemption::Watchpoints,
        Ok(false) => Preemption::Steps {
            why: "a hardware watchpoint was set and never met: a virtual \
                                       machine without debug registers",
        },
        Err(Errno::ENOTSUP) => {
            Preemption::Steps { why: "hardware watchpoints are used on x86-64 alone" }
        }
        Err(_) => Preemption::Steps { why: "the kernel refuses hardware watchpoints here" },
    })
}

impl Supervisor {
    pub(super) fn trap_of(&self, thread: ThreadId) -> Option<Trap> {
        self.state.threads.get(&thread)?.trap
    }

    /// Lets the call of `stop` happen, with a trap behind it.
    pub(super) fn happen_until(&mut self, stop: Stop, trap: Trap) -> Result<(), TraceError> {
        // A call whose result is needed stops once more; the trap is not worth a third kind.
        if self.state.needs_result(&stop) {
            return self.apply(stop, Decision::Continue);
        }
        self.state.before_call(&stop);
        self.run_into(stop.thread, trap)
    }

    /// Lets a thread that stands at no call go on.
    pub(super) fn unpark(
        &mut self,
        thread: ThreadId,
        decision: Decision,
    ) -> Result<(), TraceError> {
        match decision {
            Decision::Until(trap) => self.run_into(thread, trap),
            _ => self.resume(thread, Resume::Run, 0),
        }
    }

    fn run_into(&mut self, thread: ThreadId, trap: Trap) -> Result<(), TraceError> {
        let how = match trap {
            Trap::Touch { offset, .. } => {
                let Some(address) = self.state.wal_index_at(thread, offset) else {
                    return self.resume(thread, Resume::Run, 0);
                };
                match arch::watch(thread.0, Some(address)) {
                    Ok(()) => Resume::Run,
                    Err(Errno::ENOTSUP) => return self.resume(thread, Resume::Run, 0),
                    Err(errno) => return unless_dead(thread, "set a watchpoint", errno),
                }
            }
            Trap::Steps(0) => return self.resume(thread, Resume::Run, 0),
            Trap::Steps(_) => Resume::Step,
        };
        if let Some(record) = self.state.threads.get_mut(&thread) {
            record.trap = Some(trap);
        }
        self.resume(thread, how, 0)
    }

    /// A thread has touched a watched word, or made a step.
    pub(super) fn at_trap(
        &mut self,
        driver: &mut dyn Driver,
        thread: ThreadId,
    ) -> Result<(), TraceError> {
        let Some(record) = self.state.threads.get_mut(&thread) else { return Ok(()) };
        match &mut record.trap {
            Some(Trap::Touch { skip, .. }) if *skip > 0 => {
                *skip -= 1;
                return self.resume(thread, Resume::Run, 0);
            }
            Some(Trap::Steps(left)) if *left > 1 => {
                *left -= 1;
                return self.resume(thread, Resume::Step, 0);
            }
            _ => {}
        }
        let process = record.process;
        self.end_trap(thread)?;
        match driver.at_trap(thread, process, &Scene { state: &self.state }) {
            Decision::Hold => {
                self.park(thread);
                Ok(())
            }
            decision => self.unpark(thread, decision),
        }
    }

    /// Takes a trap away, met or not.
    pub(super) fn end_trap(&mut self, thread: ThreadId) -> Result<(), TraceError> {
        let Some(record) = self.state.threads.get_mut(&thread) else { return Ok(()) };
        match record.trap.take() {
            Some(Trap::Touch { .. }) => match arch::watch(thread.0, None) {
                Ok(()) => Ok(()),
                Err(errno) => unless_dead(thread, "take a watchpoint away", errno),
            },
            Some(Trap::Steps(_)) | None => Ok(()),
        }
    }

    /// Lets a call that waits for a lock happen without waiting.
    pub(super) fn attempt(&mut self, stop: Stop) -> Result<(), TraceError> {
        match self.attempted(stop) {
            Ok(leaving) => self.leave(leaving),
            Err((stop, Errno::EINVAL)) => self.apply(stop, Decision::Continue),
            Err((stop, errno)) => unless_dead(stop.thread, "try a lock", errno),
        }
    }
}

impl State {
    /// Where `thread` has byte `offset` of a wal-index in its memory.
    fn wal_index_at(&self, thread: ThreadId, offset: u64) -> Option<u64> {
        let process: ProcessId = self.threads.get(&thread)?.process;
        let maps = &self.processes.get(&process)?.maps;
        let within = |from: u64, length: u64| (from..from.saturating_add(length)).contains(&offset);
        let map = maps
            .iter()
            .rev()
            .find(|map| map.file.role == Role::Shm && within(map.offset, map.length))?;
        Some(map.address + (offset - map.offset))
    }
}
