//! Carries out what a driver decided, on a thread that stands before a call.
//!
//! In: a stop and a [`Decision`]. Out: a thread that runs again, or waits for its time, or dies;
//! and a receipt for every fault.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::arch;
use super::calls::Sys;
use super::driver::{Decision, Driver, Fault, KillWhen, Stop, Whom};
use super::operation::{Operation, pieces};
use super::ptrace::{self, Resume};
use super::report::{Outcome, Receipt};
use super::state::{Activity, Leaving, Restore};
use super::supervisor::{Supervisor, Timer, unless_dead};
use super::{ProcessId, ThreadId, TraceError};

impl Supervisor {
    /// Does what was decided. The thread stands before the call of `stop`.
    pub(super) fn apply(&mut self, stop: Stop, decision: Decision) -> Result<(), TraceError> {
        match decision {
            Decision::Observe => self.happen(stop, true, None),
            Decision::Hold => {
                self.held.push(stop);
                Ok(())
            }
            Decision::SkipSleep if stop.operation == Operation::Sleep => {
                self.log.sleeps_skipped += 1;
                self.slept(stop.process, &stop.call);
                self.skip(stop.thread, 0)
            }
            Decision::SkipSleep | Decision::Continue => self.happen(stop, false, None),
            Decision::Until(trap) => self.happen_until(stop, trap),
            Decision::Try => self.attempt(stop),
            Decision::Fault(fault) => self.fault(stop, fault),
            // The thread stays where it is until it is killed.
            Decision::EndRun => {
                self.ending = true;
                Ok(())
            }
        }
    }

    /// Lets the call happen.
    fn happen(
        &mut self,
        stop: Stop,
        observe: bool,
        fault: Option<(Fault, usize)>,
    ) -> Result<(), TraceError> {
        self.state.before_call(&stop);
        let thread = stop.thread;
        let stop = match fault {
            Some(_) => stop,
            None => match self.ask_later(stop) {
                Some(stop) => stop,
                None => return self.resume(thread, Resume::Run, 0),
            },
        };
        if observe || fault.is_some() || self.state.needs_result(&stop) {
            self.leave(Leaving { stop, observe, fault, restore: None, again: false })
        } else {
            self.resume(stop.thread, Resume::Run, 0)
        }
    }

    /// Lets the call happen and stops the thread when it leaves it.
    pub(super) fn leave(&mut self, leaving: Leaving) -> Result<(), TraceError> {
        let thread = leaving.stop.thread;
        self.resume(thread, Resume::ToExit, 0)?;
        self.set_activity(thread, Activity::Leaving(Box::new(leaving)));
        Ok(())
    }

    pub(super) fn skip(&mut self, thread: ThreadId, result: i64) -> Result<(), TraceError> {
        match arch::skip_call(thread.0, result) {
            Ok(()) => self.resume(thread, Resume::Run, 0),
            Err(errno) => unless_dead(thread, "skip the call", errno),
        }
    }

    fn fault(&mut self, stop: Stop, fault: Fault) -> Result<(), TraceError> {
        let receipt = self.write_receipt(&stop, fault);
        match fault {
            Fault::Kill { when: KillWhen::Before, whom } => {
                self.log.receipts[receipt].outcome = Outcome::Killed { result: None };
                self.kill(stop.process, whom)
            }
            Fault::Kill { when: KillWhen::After, .. } => {
                self.happen(stop, false, Some((fault, receipt)))
            }
            Fault::Kill { when: KillWhen::Inside { bytes }, .. } => {
                let writes = matches!(stop.operation, Operation::Write { .. });
                if writes {
                    self.shorten(stop, fault, bytes, receipt)
                } else {
                    self.refuse(stop, receipt, "only a write can be torn")
                }
            }
            Fault::Shorten { bytes } => self.shorten(stop, fault, bytes, receipt),
            Fault::Fail(error) => {
                self.log.receipts[receipt].outcome = Outcome::Failed;
                self.skip(stop.thread, -i64::from(error.number()))
            }
            Fault::Delay { ms } => {
                let due = Instant::now() + Duration::from_millis(ms);
                self.timers.push(Timer { due, stop, receipt, paused: false });
                Ok(())
            }
            Fault::Pause { ms } => {
                self.signal(stop.process, libc::SIGSTOP)?;
                let due = Instant::now() + Duration::from_millis(ms);
                self.timers.push(Timer { due, stop, receipt, paused: true });
                Ok(())
            }
        }
    }

    fn write_receipt(&mut self, stop: &Stop, fault: Fault) -> usize {
        self.log.receipts.push(Receipt {
            fault,
            outcome: Outcome::Unfinished,
            point: stop.point,
            phase: stop.phase,
            call: stop.call.sys,
            process: stop.process,
            thread: stop.thread,
            copy: stop.copy,
            at: stop.at,
            exit: None,
        });
        self.log.receipts.len() - 1
    }

    /// A fault that this call cannot have: it happens, and the receipt says why.
    fn refuse(
        &mut self,
        stop: Stop,
        receipt: usize,
        reason: &'static str,
    ) -> Result<(), TraceError> {
        self.log.receipts[receipt].outcome = Outcome::NotPossible { reason };
        self.happen(stop, false, None)
    }

    /// Lets only the first `bytes` of a write or read happen.
    fn shorten(
        &mut self,
        stop: Stop,
        fault: Fault,
        bytes: u64,
        receipt: usize,
    ) -> Result<(), TraceError> {
        let (Operation::Write { length, .. } | Operation::Read { length, .. }) = stop.operation
        else {
            return self.refuse(stop, receipt, "only a write or read can be shortened");
        };
        if bytes == 0 || bytes >= length {
            return self.refuse(stop, receipt, "the part must be smaller than the call, and not 0");
        }
        match self.cut(&stop, bytes) {
            Ok(restore) => {
                let fault = Some((fault, receipt));
                self.leave(Leaving {
                    stop,
                    observe: false,
                    fault,
                    restore: Some(restore),
                    again: false,
                })
            }
            Err(errno) => unless_dead(stop.thread, "shorten the call", errno),
        }
    }

    /// Changes the length that the kernel will see. Returns how to put it back.
    fn cut(&self, stop: &Stop, bytes: u64) -> Result<Restore, Errno> {
        const LENGTH: usize = 2;
        let arguments = stop.call.arguments;
        let vectored = matches!(
            stop.call.sys,
            Sys::Readv | Sys::Preadv | Sys::Preadv2 | Sys::Writev | Sys::Pwritev | Sys::Pwritev2
        );
        if !vectored {
            arch::set_argument(stop.thread.0, LENGTH, bytes)?;
            return Ok(Restore { argument: (LENGTH, arguments[LENGTH]), memory: None });
        }
        let memory = self.state.memory(stop.process).map_err(|_| Errno::EFAULT)?;
        let all = pieces(memory, arguments[1], arguments[LENGTH]).map_err(|_| Errno::EFAULT)?;
        let (mut left, mut count) = (bytes, 0);
        for piece in all {
            count += 1;
            if piece.length >= left {
                memory.set_word(piece.length_at, left).map_err(|_| Errno::EFAULT)?;
                arch::set_argument(stop.thread.0, LENGTH, count)?;
                let memory = Some((piece.length_at, piece.length));
                return Ok(Restore { argument: (LENGTH, arguments[LENGTH]), memory });
            }
            left -= piece.length;
        }
        Err(Errno::EINVAL)
    }

    /// Changes a call that waits for a lock into one that does not; `EINVAL` if it does not wait.
    #[expect(clippy::result_large_err, reason = "the stop is given back to be dealt with")]
    pub(super) fn attempted(&mut self, stop: Stop) -> Result<Leaving, (Stop, Errno)> {
        const COMMAND: usize = 1;
        let asked = stop.call.arguments[COMMAND];
        let command = super::operation::low(asked).cast_signed();
        let tried = match (stop.call.sys, command) {
            (Sys::FcntlLock, libc::F_SETLKW) => libc::F_SETLK,
            (Sys::FcntlLock, libc::F_OFD_SETLKW) => libc::F_OFD_SETLK,
            (Sys::Flock, command) if command & libc::LOCK_NB == 0 => command | libc::LOCK_NB,
            _ => return Err((stop, Errno::EINVAL)),
        };
        self.state.before_call(&stop);
        match arch::set_argument(stop.thread.0, COMMAND, u64::from(tried.cast_unsigned())) {
            Ok(()) => {
                let restore = Some(Restore { argument: (COMMAND, asked), memory: None });
                Ok(Leaving { stop, observe: true, fault: None, restore, again: true })
            }
            Err(errno) => Err((stop, errno)),
        }
    }

    /// A thread has left the call that it was let into.
    pub(super) fn left(
        &mut self,
        driver: &mut dyn Driver,
        leaving: Leaving,
        result: i64,
    ) -> Result<(), TraceError> {
        let Leaving { stop, observe, fault, restore, again } = leaving;
        let thread = stop.thread;
        self.state.after_call(thread, &stop.operation, result);
        self.try_word(&stop, result);
        if let Some(restore) = restore {
            self.put_back(&stop, restore)?;
        }
        if observe {
            self.tell_result(driver, &stop, result);
        }
        if again && (result == -i64::from(libc::EAGAIN) || result == -i64::from(libc::EACCES)) {
            if let Err(errno) = arch::repeat_call(thread.0, stop.call.sys) {
                return unless_dead(thread, "repeat the call", errno);
            }
            self.park(thread);
            return Ok(());
        }
        let Some((fault, receipt)) = fault else {
            return self.resume(thread, Resume::Run, 0);
        };
        match fault {
            Fault::Kill { whom, .. } => {
                self.log.receipts[receipt].outcome = Outcome::Killed { result: Some(result) };
                self.kill(stop.process, whom)
            }
            Fault::Shorten { .. } => {
                let asked = match stop.operation {
                    Operation::Write { length, .. } | Operation::Read { length, .. } => length,
                    _ => 0,
                };
                self.log.receipts[receipt].outcome = Outcome::Shortened { asked, result };
                self.resume(thread, Resume::Run, 0)
            }
            Fault::Fail(_) | Fault::Delay { .. } | Fault::Pause { .. } => {
                self.resume(thread, Resume::Run, 0)
            }
        }
    }

    fn put_back(&mut self, stop: &Stop, restore: Restore) -> Result<(), TraceError> {
        let (index, value) = restore.argument;
        if let Err(errno) = arch::set_argument(stop.thread.0, index, value) {
            unless_dead(stop.thread, "restore the call's length", errno)?;
        }
        if let (Some((at, value)), Ok(memory)) = (restore.memory, self.state.memory(stop.process)) {
            // Fails only if the process is gone: then there is nothing to restore.
            memory.set_word(at, value).ok();
        }
        Ok(())
    }

    /// A delay or pause is over.
    pub(super) fn timer_over(&mut self, timer: Timer) -> Result<(), TraceError> {
        let Timer { stop, receipt, paused, .. } = timer;
        self.log.receipts[receipt].outcome =
            if paused { Outcome::Paused } else { Outcome::Delayed };
        if paused {
            self.signal(stop.process, libc::SIGCONT)?;
        }
        self.happen(stop, false, None)
    }

    /// Kills `process` and whoever else is meant.
    pub(super) fn kill(&mut self, process: ProcessId, whom: Whom) -> Result<(), TraceError> {
        let copy = self.state.processes.get(&process).map(|record| record.copy);
        if whom == Whom::Copy {
            self.doomed.extend(copy);
        }
        let victims: Vec<_> = self
            .state
            .processes
            .iter()
            .filter(|(id, record)| match whom {
                Whom::Process => **id == process,
                Whom::Copy => Some(record.copy) == copy,
                Whom::All => true,
            })
            .map(|(id, _)| *id)
            .collect();
        for victim in victims {
            if let Some(record) = self.state.processes.get_mut(&victim) {
                record.killed = true;
            }
            self.signal(victim, libc::SIGKILL)?;
            for thread in self.state.threads.values_mut() {
                if thread.process == victim {
                    thread.activity = Activity::Dying;
                }
            }
            self.held.retain(|stop| stop.process != victim);
            let threads = &self.state.threads;
            self.parked.retain(|thread| {
                threads.get(thread).is_some_and(|record| record.process != victim)
            });
            self.timers.retain(|timer| timer.stop.process != victim);
        }
        Ok(())
    }

    /// Sends a signal to a process that has not been reaped.
    fn signal(&self, process: ProcessId, signal: i32) -> Result<(), TraceError> {
        if !self.state.processes.contains_key(&process) {
            return Ok(());
        }
        ptrace::signal(process.0, signal)
            .map_err(|errno| TraceError::supervise("send a signal", process.0, errno))
    }
}
