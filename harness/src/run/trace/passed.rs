//! Calls that a driver has let pass beforehand: they make no stop, and are looked at afterwards.
//!
//! In: a driver's [`Ahead`], and the notes of a victim's [gate](killpoint_worker::gate). Out: the
//! same questions to the driver, and the same picture, as if each call had stopped. A call is noted
//! before it is made, and nobody else runs between it and the victim's next stop: so the order of
//! all that happened is kept.
//!
//! Not here: which calls may pass; see `gate::pass` of the worker.

use std::sync::Arc;

use killpoint_worker::gate::{Gate, Gates, Passed};
use nix::errno::Errno;

use super::calls::{CallKind, Sys};
use super::driver::{Ahead, Decision, Driver, Stop};
use super::examine::Subject;
use super::files::Role;
use super::hash::NumberMap;
use super::operation::{LockCall, LockKind, Offset, Operation, Syscall, low};
use super::state::State;
use super::supervisor::Supervisor;
use super::{ThreadId, TraceError};

/// The gates of the victims that have one, each by the thread that goes through it.
#[derive(Debug, Default)]
pub(super) struct Passes(NumberMap<ThreadId, (Arc<Gates>, usize)>);

impl Passes {
    pub(super) fn add(&mut self, thread: ThreadId, gates: &Arc<Gates>, place: usize) {
        self.0.insert(thread, (Arc::clone(gates), place));
    }

    pub(super) fn remove(&mut self, thread: ThreadId) {
        self.0.remove(&thread);
    }

    fn gate(&self, thread: ThreadId) -> Option<&Gate> {
        self.0.get(&thread).map(|(gates, place)| gates.gate(*place))
    }
}

impl Supervisor {
    /// Lets calls of a thread that is about to go on pass, as far as its driver knows what it will
    /// say of them.
    pub(super) fn let_pass(&self, driver: &dyn Driver, thread: ThreadId, decision: Decision) {
        let Some(gate) = self.passes.gate(thread) else { return };
        // With a lock model each lock's result must be seen.
        if decision != Decision::Continue || self.state.options.track_locks {
            gate.allow(0, 0);
            return;
        }
        let Ahead { stops, exclusive } = driver.ahead(thread);
        gate.allow(stops, exclusive);
    }

    /// Takes a stop at a file of a database for the proof that its descriptor is known.
    pub(super) fn note_gate(&self, stop: &Stop) {
        let Some(gate) = self.passes.gate(stop.thread) else { return };
        match stop.operation {
            Operation::Lock { fd, .. } | Operation::Write { fd, .. } => {
                let role = stop.file.filter(|file| file.database.is_some()).map(|file| file.role);
                if matches!(role, Some(Role::Database | Role::Wal | Role::Shm)) {
                    gate.know(fd);
                }
            }
            _ => self.note_ignored(stop.thread, &stop.call),
        }
    }

    /// Takes a descriptor that is about to be closed for unknown again.
    pub(super) fn note_ignored(&self, thread: ThreadId, call: &Syscall) {
        let Some(gate) = self.passes.gate(thread).filter(|_| call.sys.kind() == CallKind::Close)
        else {
            return;
        };
        match call.sys {
            Sys::Close => gate.forget(low(call.arguments[0]).cast_signed()),
            _ => gate.forget_all(),
        }
    }

    /// Asks the driver about what a thread has done since it was last stopped.
    pub(super) fn take_passed(
        &mut self,
        driver: &mut dyn Driver,
        thread: ThreadId,
    ) -> Result<(), TraceError> {
        let Some((gates, place)) = self.passes.0.get(&thread) else { return Ok(()) };
        let (gates, place) = (Arc::clone(gates), *place);
        let taken = gates.gate(place).take();
        if self.is_over() {
            // Everything was killed in the midst of its doings, and the driver has nothing to say.
            return Ok(());
        }
        for (passed, script_step) in taken {
            let Some(mut stop) = self.state.examine_passed(thread, &passed) else {
                let what = "know the file of a call that passed";
                return Err(TraceError::supervise(what, thread.0, Errno::EBADF));
            };
            stop.script_step = Some(script_step);
            let decision = driver.at_stop(&stop, &self.scene());
            if decision != Decision::Continue {
                let what = "hold to what was said of a call that passed";
                return Err(TraceError::supervise(what, thread.0, Errno::EPROTO));
            }
            self.state.before_call(&stop);
        }
        Ok(())
    }
}

impl State {
    /// The stop that a call would have made that passed; none if its descriptor is unknown.
    fn examine_passed(&mut self, thread: ThreadId, passed: &Passed) -> Option<Stop> {
        self.events += 1;
        self.passed += 1;
        let process = self.threads.get(&thread)?.process;
        let (call, operation) = call_of(passed);
        let file = operation.fd().and_then(|fd| self.file_of(process, fd))?;
        let head = match passed {
            Passed::Write { head, .. } => head.as_slice(),
            Passed::Lock { .. } => &[],
        };
        let phase = self.phase_of_passed(&operation, file, head);
        Some(self.numbered(thread, process, call, operation, phase, Subject::of(Some(file))))
    }
}

/// What a call that passed asked for, without its pointers.
fn call_of(passed: &Passed) -> (Syscall, Operation) {
    let word = |fd: i32| u64::from(fd.cast_unsigned());
    match *passed {
        Passed::Write { fd, offset, length, .. } => {
            let arguments = [word(fd), 0, length, offset, 0, 0];
            let operation = Operation::Write { fd, offset: Offset::At(offset), length };
            (Syscall { sys: Sys::Pwrite64, arguments }, operation)
        }
        Passed::Lock { fd, of_open_file, kind, whence, start, length } => {
            let command = if of_open_file { libc::F_OFD_SETLK } else { libc::F_SETLK };
            let arguments = [word(fd), word(command), 0, 0, 0, 0];
            let kind = LockKind::of(kind);
            let lock = LockCall { kind, waits: false, of_open_file, whence, start, length };
            (Syscall { sys: Sys::FcntlLock, arguments }, Operation::Lock { fd, lock })
        }
    }
}
