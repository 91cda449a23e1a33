//! What each report of the kernel means, and the stop-by-stop conversation with the driver.

use super::arch;
use super::driver::{Decision, Driver, Event, Stop, Whom};
use super::examine::Examined;
use super::filter;
use super::operation::Syscall;
use super::ptrace::{self, CallInfo, Resume, Status, event};
use super::report::Exit;
use super::scene::Scene;
use super::state::Activity;
use super::supervisor::{Supervisor, unless_dead};
use super::world;
use super::{ProcessId, Sys, ThreadId, TraceError};

impl Supervisor {
    /// Deals with one report of the kernel.
    pub(super) fn handle(
        &mut self,
        driver: &mut dyn Driver,
        thread: ThreadId,
        status: Status,
    ) -> Result<(), TraceError> {
        self.take_passed(driver, thread)?;
        match status {
            Status::Exited(code) => {
                self.gone(driver, thread, Exit::Code(code));
                return Ok(());
            }
            Status::Killed { signal, .. } => {
                let exit = Exit::Signal { signal, by_supervisor: self.was_killed(thread) };
                self.gone(driver, thread, exit);
                return Ok(());
            }
            Status::Signal(_) | Status::Call | Status::Event { .. } => {}
        }
        if !self.state.threads.contains_key(&thread) {
            self.early.insert(thread);
            self.born(driver, thread, None)?;
        }
        if self.is_dying(thread) {
            return self.resume(thread, Resume::Run, 0);
        }
        match status {
            Status::Event { event: event::SECCOMP, .. } => self.at_call(driver, thread),
            Status::Call => self.at_exit_of_call(driver, thread),
            Status::Event { event: event::STOP, signal } => {
                if self.is_new(thread) && self.state.options.one_at_a_time {
                    self.park(thread);
                    return Ok(());
                }
                let stopped =
                    matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU);
                let how = if stopped { Resume::Listen } else { Resume::Run };
                self.resume(thread, how, 0)
            }
            Status::Event { event: event::CLONE | event::FORK | event::VFORK, .. } => {
                let maker = self.state.threads.get(&thread).map(|record| record.process);
                match ptrace::event_message(thread.0) {
                    // A child may have lived and died before its maker's report is read.
                    Ok(child) if self.early.remove(&ThreadId(child)) => {}
                    Ok(child) if !self.state.threads.contains_key(&ThreadId(child)) => {
                        self.born(driver, ThreadId(child), maker)?;
                    }
                    Ok(_) => {}
                    Err(errno) => unless_dead(thread, "ask for a new thread", errno)?,
                }
                self.resume(thread, Resume::Run, 0)
            }
            Status::Event { event: event::EXEC, .. } => {
                self.executed(driver, thread);
                self.resume(thread, Resume::Run, 0)
            }
            Status::Signal(libc::SIGTRAP) if self.trap_of(thread).is_some() => {
                self.at_trap(driver, thread)
            }
            Status::Signal(signal) => self.resume(thread, Resume::Run, signal),
            Status::Event { .. } | Status::Exited(_) | Status::Killed { .. } => {
                self.resume(thread, Resume::Run, 0)
            }
        }
    }

    fn is_new(&self, thread: ThreadId) -> bool {
        let activity = self.state.threads.get(&thread).map(|record| &record.activity);
        matches!(activity, Some(Activity::Starting))
    }

    fn is_dying(&self, thread: ThreadId) -> bool {
        let activity = self.state.threads.get(&thread).map(|record| &record.activity);
        matches!(activity, Some(Activity::Dying))
    }

    fn was_killed(&self, thread: ThreadId) -> bool {
        let process = self.state.threads.get(&thread).map(|record| record.process);
        process
            .and_then(|process| self.state.processes.get(&process))
            .is_some_and(|record| record.killed)
    }

    /// A thread that the kernel traces for us from its beginning.
    fn born(
        &mut self,
        driver: &mut dyn Driver,
        thread: ThreadId,
        maker: Option<ProcessId>,
    ) -> Result<(), TraceError> {
        let made = self.state.adopt(thread, maker);
        self.leave_core();
        if let Some((child, parent)) = made {
            driver.at_event(&Event::Forked { parent, child }, &self.scene());
        }
        let process = self.state.threads.get(&thread).map(|record| record.process);
        let record = process.and_then(|process| self.state.processes.get(&process));
        let doomed = record.is_some_and(|record| self.doomed.contains(&record.copy));
        match process {
            Some(process) if doomed || self.is_over() => self.kill(process, Whom::Process),
            _ => Ok(()),
        }
    }

    fn executed(&mut self, driver: &mut dyn Driver, thread: ThreadId) {
        let process = ProcessId(thread.0);
        // All other threads are gone, and the caller has taken the number of the first.
        self.state.threads.retain(|id, record| *id == thread || record.process != process);
        self.held.retain(|stop| stop.process != process);
        let threads = &self.state.threads;
        self.parked.retain(|parked| threads.contains_key(parked) && *parked != thread);
        self.timers.retain(|timer| timer.stop.process != process);
        self.state.executed(process);
        self.share_core();
        if self.answers.is_some() {
            // Fails only if the process is gone.
            world::prepare_program(process.0).ok();
        }
        driver.at_event(&Event::Executed { process }, &self.scene());
    }

    fn gone(&mut self, driver: &mut dyn Driver, thread: ThreadId, exit: Exit) {
        let Some(record) = self.state.threads.remove(&thread) else { return };
        self.held.retain(|stop| stop.thread != thread);
        self.parked.retain(|parked| *parked != thread);
        self.timers.retain(|timer| timer.stop.thread != thread);
        self.passes.remove(thread);
        self.share_core();
        let process = record.process;
        // The end of the first thread is reported last, and is that of the process.
        if process.0 != thread.0 {
            return;
        }
        self.state.threads.retain(|_, record| record.process != process);
        for receipt in &mut self.log.receipts {
            if receipt.process == process && receipt.exit.is_none() {
                receipt.exit = Some(exit);
            }
        }
        driver.at_event(&Event::Exited { process, exit }, &self.scene());
        self.state.ended(process, exit);
    }

    fn at_call(&mut self, driver: &mut dyn Driver, thread: ThreadId) -> Result<(), TraceError> {
        let (index, arguments) = match ptrace::call_info(thread.0) {
            Ok(CallInfo::Filtered { index, arguments }) => (index, arguments),
            Ok(CallInfo::Left { .. } | CallInfo::Elsewhere) => {
                return self.resume(thread, Resume::Run, 0);
            }
            Err(errno) => return unless_dead(thread, "read the call", errno),
        };
        let Some(sys) = Sys::from_index(index) else {
            if index == filter::FOREIGN {
                return Err(self.foreign(thread));
            }
            return self.resume(thread, Resume::Run, 0);
        };
        let call = Syscall { sys, arguments };
        // What is only answered is no call to a trap: it goes on behind it.
        if self.trap_of(thread).is_none() {
            self.let_pass(driver, thread, Decision::Continue);
        }
        if self.answer(thread, &call)? {
            return Ok(());
        }
        self.end_trap(thread)?;
        match self.state.examine(thread, call) {
            Examined::Ignored => {
                // Whatever its number: what is closed unlooked at may not be passed on.
                self.note_ignored(thread, &call);
                self.state.before_ignored_call(thread, &call);
                self.resume(thread, Resume::Run, 0)
            }
            Examined::NewDescriptor(operation) => {
                self.resume(thread, Resume::ToExit, 0)?;
                self.set_activity(thread, Activity::Opening(Box::new(operation)));
                Ok(())
            }
            Examined::Stop(stop) => {
                self.set_activity(thread, Activity::Standing);
                let decision = driver.at_stop(&stop, &Scene { state: &self.state });
                self.note_gate(&stop);
                self.let_pass(driver, thread, decision);
                self.apply(*stop, decision)
            }
        }
    }

    fn at_exit_of_call(
        &mut self,
        driver: &mut dyn Driver,
        thread: ThreadId,
    ) -> Result<(), TraceError> {
        let result = match ptrace::call_info(thread.0) {
            Ok(CallInfo::Left { result }) => result,
            Ok(CallInfo::Filtered { .. } | CallInfo::Elsewhere) => {
                return self.resume(thread, Resume::Run, 0);
            }
            Err(errno) => return unless_dead(thread, "read the result", errno),
        };
        match self.set_activity(thread, Activity::Standing) {
            Some(Activity::Leaving(leaving)) => self.left(driver, *leaving, result),
            Some(Activity::Substituted { index, value }) => {
                if let Err(errno) = arch::set_argument(thread.0, index, value) {
                    return unless_dead(thread, "put back the path", errno);
                }
                self.resume(thread, Resume::Run, 0)
            }
            Some(Activity::Opening(operation)) => {
                self.state.after_call(thread, &operation, result);
                self.resume(thread, Resume::Run, 0)
            }
            _ => self.resume(thread, Resume::Run, 0),
        }
    }

    /// Tells the driver the result that it asked for.
    pub(super) fn tell_result(&self, driver: &mut dyn Driver, stop: &Stop, result: i64) {
        driver.at_result(stop, result, &self.scene());
    }

    fn foreign(&self, thread: ThreadId) -> TraceError {
        let process =
            self.state.threads.get(&thread).map_or(ProcessId(thread.0), |record| record.process);
        let program = self.scene().command(process).to_owned();
        TraceError::ForeignAbi { process, program }
    }
}
