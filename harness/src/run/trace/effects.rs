//! What a call does to the picture of descriptors, locks and mappings once it happens.
//!
//! In two parts: what is certain before the call ([`State::before_call`]), and what depends on its
//! result ([`State::after_call`]). A call that a fault prevents changes nothing.

use std::rc::Rc;

use super::calls::Sys;
use super::driver::Stop;
use super::files::{FileRef, Files, HeldLock, Range, Role, Slot, effective_position, file_bytes};
use super::operation::{LockCall, LockKind, Operation, Syscall, low};
use super::state::{Mapping, State};
use super::{ProcessId, ThreadId};

impl State {
    /// Whether the picture depends on the result of the call.
    pub(super) fn needs_result(&self, stop: &Stop) -> bool {
        match &stop.operation {
            Operation::Lock { lock, .. } => {
                self.options.track_locks
                    && matches!(lock.kind, LockKind::Shared | LockKind::Exclusive)
            }
            Operation::Open { .. } | Operation::Dup { to: None, .. } => true,
            Operation::Map { .. } => stop.file.is_some_and(|file| file.role == Role::Shm),
            _ => false,
        }
    }

    /// Follows a call that is about to happen, as far as its result does not matter.
    pub(super) fn before_call(&mut self, stop: &Stop) {
        let process = stop.process;
        match &stop.operation {
            Operation::Close { .. }
            | Operation::CloseRange { .. }
            | Operation::Dup { to: Some(_), .. } => self.follow_close(process, &stop.operation),
            Operation::Lock { fd, lock } if lock.kind == LockKind::Unlock => {
                self.locked(process, *fd, stop.file, lock);
            }
            Operation::Unmap { address, length } => {
                if let Some(record) = self.processes.get_mut(&process) {
                    let gone = *address..address.saturating_add(*length);
                    record.maps.retain(|map| !gone.contains(&map.address));
                }
            }
            _ => {}
        }
    }

    /// Follows a call that was nothing to the driver.
    pub(super) fn before_ignored_call(&mut self, thread: ThreadId, call: &Syscall) {
        let Some(process) = self.threads.get(&thread).map(|thread| thread.process) else { return };
        let [a, b, c, ..] = call.arguments;
        let operation = match call.sys {
            Sys::Close => Operation::Close { fd: low(a).cast_signed() },
            Sys::Dup2 | Sys::Dup3 => {
                Operation::Dup { from: low(a).cast_signed(), to: Some(low(b).cast_signed()) }
            }
            Sys::CloseRange => {
                let only_mark = low(c) & libc::CLOSE_RANGE_CLOEXEC != 0;
                Operation::CloseRange { first: low(a), last: low(b), only_mark }
            }
            _ => return,
        };
        self.follow_close(process, &operation);
    }

    /// Follows a call that closes descriptors.
    fn follow_close(&mut self, process: ProcessId, operation: &Operation) {
        let owner = self.owner(process);
        match *operation {
            Operation::Close { fd } => self.closed(process, fd),
            Operation::CloseRange { first, last, only_mark: false } => {
                for (_, file) in self.closed_by_range(process, operation) {
                    self.locks.close(owner, file.id);
                }
                self.table_mut(owner).forget_range(first, last);
            }
            // Nothing is closed if there is nothing to duplicate.
            Operation::Dup { from, to: Some(to) }
                if from != to && Files::identity(process, from).is_some() =>
            {
                self.closed(process, to);
                let copied = self.table_mut(owner).slot(from).clone();
                self.table_mut(owner).set(to, copied);
            }
            _ => {}
        }
    }

    /// The open files that matter of those that a `close_range` closes. What the table does not
    /// know is not looked for: nothing was ever done with it.
    pub(super) fn closed_by_range(
        &mut self,
        process: ProcessId,
        operation: &Operation,
    ) -> Vec<(i32, FileRef)> {
        let Operation::CloseRange { first, last, only_mark: false } = *operation else {
            return Vec::new();
        };
        let owner = self.owner(process);
        let within = |fd: i32| u32::try_from(fd).is_ok_and(|fd| (first..=last).contains(&fd));
        let table = self.table_mut(owner);
        let open = table.descriptors().filter(|(fd, _)| within(*fd));
        open.map(|(fd, held)| (fd, held.file)).collect()
    }

    fn closed(&mut self, process: ProcessId, fd: i32) {
        let owner = self.owner(process);
        let table = self.table_mut(owner);
        let file = table.get(fd).map(|held| held.file);
        table.forget(fd);
        if let Some(file) = file {
            self.locks.close(owner, file.id);
        }
    }

    fn locked(&mut self, process: ProcessId, fd: i32, file: Option<FileRef>, lock: &LockCall) {
        let owner = self.owner(process);
        if lock.kind != LockKind::Unlock
            && let Some(held) = self.table_mut(owner).get_mut(fd)
        {
            held.locked = true;
            held.locked_as_open_file |= lock.of_open_file;
        }
        if !self.options.track_locks || lock.of_open_file {
            return;
        }
        let start = lock.start.saturating_add(base(process, fd, lock));
        if let (Some(file), Some(range)) = (file, Range::new(start, lock.length)) {
            let exclusive = lock.kind == LockKind::Exclusive;
            let held = HeldLock { range, exclusive, fd, since: self.events };
            self.locks.apply(owner, file.id, lock.kind, held);
        }
    }

    /// Follows a call that has happened.
    pub(super) fn after_call(&mut self, thread: ThreadId, operation: &Operation, result: i64) {
        let Some(process) = self.threads.get(&thread).map(|thread| thread.process) else { return };
        if result < 0 {
            return;
        }
        let owner = self.owner(process);
        match operation {
            Operation::Lock { fd, lock } => {
                if matches!(lock.kind, LockKind::Shared | LockKind::Exclusive) {
                    let file = self.file_of(process, *fd);
                    self.locked(process, *fd, file, lock);
                }
            }
            Operation::Open { .. } => {
                let Ok(fd) = i32::try_from(result) else { return };
                self.table_mut(owner).forget(fd);
                self.file_of(process, fd);
                if self.options.open_stacks {
                    let stack = Rc::new(self.stack(thread));
                    self.table_mut(owner).set_opened(fd, stack);
                }
            }
            Operation::Dup { from, to: None } => {
                let Ok(fd) = i32::try_from(result) else { return };
                let copied = self.table_mut(owner).slot(*from).clone();
                self.table_mut(owner).set(fd, copied);
            }
            Operation::Map { fd, offset, length, .. } => {
                let file = self.file_of(process, *fd);
                let (Some(file), Ok(address)) = (file, u64::try_from(result)) else { return };
                if let Some(record) = self.processes.get_mut(&process) {
                    record.maps.push(Mapping { address, length: *length, offset: *offset, file });
                }
            }
            _ => {}
        }
    }

    /// Takes a descriptor for one of a database because it is locked as only SQLite locks.
    pub(super) fn promote(&mut self, process: ProcessId, fd: i32) -> Option<FileRef> {
        let file = self.files.promote(process, fd)?;
        let owner = self.owner(process);
        let opened = match self.table_mut(owner).slot(fd) {
            Slot::Undecided(opened) => opened.clone(),
            Slot::Unknown | Slot::NotOurs | Slot::Open(_) => None,
        };
        self.note_descriptor(process, fd, file);
        if let Some(stack) = opened {
            self.table_mut(owner).set_opened(fd, stack);
        }
        Some(file)
    }
}

/// What a lock's start counts from, in bytes.
fn base(process: ProcessId, fd: i32, lock: &LockCall) -> i64 {
    let bytes = match i32::from(lock.whence) {
        libc::SEEK_CUR => effective_position(process, fd, false).unwrap_or(0),
        libc::SEEK_END => file_bytes(process, fd),
        _ => 0,
    };
    i64::try_from(bytes).unwrap_or(0)
}
