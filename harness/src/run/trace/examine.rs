//! From a raw stop to a [`Stop`]: which file, which point, which phase.
//!
//! Most stops are on files that are nothing to us, so the descriptor is looked at first and the
//! arguments are decoded only if it matters. Nothing of the victim is changed here.

use std::fs;
use std::path::{Path, PathBuf};

use super::calls::{CallKind, Sys};
use super::classify::{Facts, classify, is_database_lock};
use super::driver::Stop;
use super::files::{
    Database, FileId, FileRef, Role, Sight, Slot, display_path, effective_position, file_at,
    file_bytes,
};
use super::memory::Memory;
use super::operation::{Offset, Operation, PathArgument, Syscall};
use super::phase::Phase;
use super::report::Unseen;
use super::state::State;
use super::{ProcessId, ThreadId};

/// What a stop turned out to be.
#[derive(Debug)]
pub(super) enum Examined {
    /// Nothing to anybody.
    Ignored,
    /// Nothing to the driver, but the descriptor that the call returns must be looked at.
    NewDescriptor(Operation),
    /// A stop for the driver.
    Stop(Box<Stop>),
}

/// The files that a call works on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Subject {
    file: Option<FileRef>,
    target: Option<FileRef>,
    /// The call opens a file that may become a database.
    may_become: bool,
}

impl Subject {
    pub(super) fn of(file: Option<FileRef>) -> Self {
        Self { file, ..Self::default() }
    }
}

impl State {
    /// What a thread stands before.
    pub(super) fn examine(&mut self, thread: ThreadId, call: Syscall) -> Examined {
        self.stops += 1;
        let Some(process) = self.threads.get(&thread).map(|thread| thread.process) else {
            return Examined::Ignored;
        };
        let fd = descriptor_of(&call);
        // Of a directory only the sync matters: programs open and close theirs all the time.
        let syncs = call.sys.kind() == CallKind::Sync;
        let file = fd
            .and_then(|fd| self.file_of(process, fd))
            .filter(|file| file.role != Role::Directory || syncs);
        // An empty file becomes a database when it is locked as one.
        let undecided = fd.filter(|_| file.is_none() && call.sys == Sys::FcntlLock).filter(|fd| {
            let owner = self.owner(process);
            matches!(self.table_mut(owner).slot(*fd), Slot::Undecided(_))
        });
        let by_fd_alone = fd.is_some() && call.sys.kind() != CallKind::Copy;
        // Where one thread runs at a time, none may wait for another in the kernel.
        let waits = self.options.one_at_a_time && waits_for_lock(&call);
        if by_fd_alone
            && !waits
            && file.is_none()
            && undecided.is_none()
            && !self.options.other_files
        {
            return Examined::Ignored;
        }
        if call.sys == Sys::IoUringSetup {
            self.note_unseen(process, Unseen::Ring);
            return Examined::Ignored;
        }
        let Ok(memory) = self.memory(process) else {
            self.note_unseen(process, Unseen::Memory);
            return Examined::Ignored;
        };
        // Pointers that lead nowhere make the call itself fail: nothing to see.
        let Ok(mut operation) = Operation::decode(&call, memory) else {
            return Examined::Ignored;
        };
        let subject = self.subject(process, &operation, file, undecided);
        let known = subject.file.or(subject.target);
        let matters = known.is_some() || operation == Operation::Sleep || waits;
        if !matters && !self.options.other_files {
            if subject.may_become {
                return Examined::NewDescriptor(operation);
            }
            return Examined::Ignored;
        }
        settle_offset(process, &mut operation);
        let phase = self.phase_of(process, &call, &operation, known);
        Examined::Stop(Box::new(self.numbered(thread, process, call, operation, phase, subject)))
    }

    fn subject(
        &mut self,
        process: ProcessId,
        operation: &Operation,
        file: Option<FileRef>,
        undecided: Option<i32>,
    ) -> Subject {
        match operation {
            Operation::Lock { lock, .. } => match undecided.filter(|_| is_database_lock(lock)) {
                Some(fd) => Subject::of(self.promote(process, fd)),
                None => Subject::of(file),
            },
            Operation::Copy { from, to } => {
                let (from, to) = (self.file_of(process, *from), self.file_of(process, *to));
                Subject { file: from, target: to, may_become: false }
            }
            Operation::Unmap { address, .. } => Subject::of(self.mapped_at(process, *address)),
            Operation::CloseRange { .. } => {
                let closed = self.closed_by_range(process, operation);
                Subject::of(closed.first().map(|(_, file)| *file))
            }
            Operation::Open { path, flags } => self.opened(process, path, *flags),
            Operation::TruncatePath { path, .. } => Subject::of(self.named(process, path, true)),
            Operation::Unlink { path } => Subject::of(self.named(process, path, false)),
            Operation::Rename { from, to, .. } | Operation::Link { from, to } => {
                let file = self.named(process, from, false);
                let target = self.named(process, to, false);
                Subject { file, target, may_become: false }
            }
            _ => Subject::of(file),
        }
    }

    pub(super) fn numbered(
        &mut self,
        thread: ThreadId,
        process: ProcessId,
        call: Syscall,
        operation: Operation,
        phase: Phase,
        Subject { file, target, .. }: Subject,
    ) -> Stop {
        *self.phases.entry(phase).or_default() += 1;
        let on_database = file.or(target).is_some_and(|file| file.database.is_some());
        let (mut point, mut point_in_process, mut copy) = (None, None, 0);
        if let Some(record) = self.processes.get_mut(&process) {
            copy = record.copy;
            if on_database {
                self.points += 1;
                record.points += 1;
                (point, point_in_process) = (Some(self.points), Some(record.points));
            }
        }
        Stop {
            process,
            thread,
            copy,
            at: self.started.elapsed(),
            event: self.events,
            point,
            point_in_process,
            script_step: None,
            phase,
            call,
            operation,
            file,
            target,
        }
    }

    fn phase_of(
        &mut self,
        process: ProcessId,
        call: &Syscall,
        operation: &Operation,
        file: Option<FileRef>,
    ) -> Phase {
        let Some(file) = file else {
            let sleeps = *operation == Operation::Sleep;
            return if sleeps { Phase::Sleep } else { Phase::Other };
        };
        let database = file.database.map(|id| self.files.database_mut(id));
        let wal = wal_of(file, database.as_deref());
        let memory = self.processes.get(&process).and_then(|record| record.memory.get());
        let facts = Here { process, call, operation, memory, wal: wal.as_deref() };
        classify(operation, file, database, &facts)
    }

    /// The same of a call that has passed, and whose bytes began with `head`.
    pub(super) fn phase_of_passed(
        &mut self,
        operation: &Operation,
        file: FileRef,
        head: &[u8],
    ) -> Phase {
        let database = file.database.map(|id| self.files.database_mut(id));
        let wal = wal_of(file, database.as_deref());
        classify(operation, file, database, &Noted { head, wal: wal.as_deref() })
    }

    fn mapped_at(&self, process: ProcessId, address: u64) -> Option<FileRef> {
        let maps = &self.processes.get(&process)?.maps;
        maps.iter()
            .find(|map| (map.address..map.address.saturating_add(map.length)).contains(&address))
            .map(|map| map.file)
    }

    /// The file that an `open` opens or makes.
    fn opened(&mut self, process: ProcessId, path: &PathArgument, flags: i32) -> Subject {
        let Ok((id, metadata)) = file_at(process, path, true) else {
            if flags & libc::O_CREAT == 0 {
                return Subject::default();
            }
            let shown = display_path(process, path);
            let file = self.files.role_of_name(&shown).map(|(role, database)| FileRef {
                id: FileId::NEW,
                role,
                database: Some(database),
            });
            return Subject { may_become: self.files.detects(), ..Subject::of(file) };
        };
        if !metadata.is_file() {
            return Subject::default();
        }
        let shown = real_path(process, path);
        match self.files.look_at_path(id, &shown, &metadata) {
            Sight::File(file) => Subject::of(Some(file)),
            Sight::Undecided => Subject { may_become: true, ..Subject::default() },
            Sight::NotOurs => Subject::default(),
        }
    }

    /// The file of a database that a path names, if it is there.
    fn named(&mut self, process: ProcessId, path: &PathArgument, follow: bool) -> Option<FileRef> {
        let (id, metadata) = file_at(process, path, follow).ok()?;
        if !metadata.is_file() {
            return None;
        }
        let shown = if follow { real_path(process, path) } else { display_path(process, path) };
        self.files.at_path(id, &shown)
    }
}

fn real_path(process: ProcessId, path: &PathArgument) -> std::path::PathBuf {
    let shown = display_path(process, path);
    fs::canonicalize(&shown).unwrap_or(shown)
}

/// Whether a call waits in the kernel until a lock can be had.
fn waits_for_lock(call: &Syscall) -> bool {
    let command = super::operation::low(call.arguments[1]).cast_signed();
    match call.sys {
        Sys::FcntlLock => matches!(command, libc::F_SETLKW | libc::F_OFD_SETLKW),
        Sys::Flock => command & libc::LOCK_NB == 0 && command & libc::LOCK_UN == 0,
        _ => false,
    }
}

/// The descriptor that decides whether a call matters.
fn descriptor_of(call: &Syscall) -> Option<i32> {
    let argument = match call.sys {
        Sys::Mmap => call.arguments[4],
        Sys::Truncate
        | Sys::Open
        | Sys::Openat
        | Sys::Openat2
        | Sys::Creat
        | Sys::CloseRange
        | Sys::Unlink
        | Sys::Unlinkat
        | Sys::Rename
        | Sys::Renameat
        | Sys::Renameat2
        | Sys::Link
        | Sys::Linkat
        | Sys::Munmap
        | Sys::IoUringSetup
        | Sys::Getrandom
        | Sys::ClockGettime
        | Sys::Gettimeofday
        | Sys::Time
        | Sys::Getpid
        | Sys::Gettid
        | Sys::Getppid
        | Sys::Nanosleep
        | Sys::ClockNanosleep => return None,
        // What matters of these is the descriptor that they close, if it is open.
        Sys::Dup2 | Sys::Dup3 => call.arguments[1],
        _ => call.arguments[0],
    };
    Some(super::operation::low(argument).cast_signed())
}

/// Replaces "at the position" by the offset that this is.
fn settle_offset(process: ProcessId, operation: &mut Operation) {
    let appends = matches!(operation, Operation::Write { .. });
    if let Operation::Write { fd, offset, .. } | Operation::Read { fd, offset, .. } = operation
        && *offset == Offset::Position
        && let Some(at) = effective_position(process, *fd, appends)
    {
        *offset = Offset::At(at);
    }
}

/// The facts of a stop, looked up in the stopped process.
struct Here<'a> {
    process: ProcessId,
    call: &'a Syscall,
    operation: &'a Operation,
    memory: Option<&'a Memory>,
    wal: Option<&'a Path>,
}

impl Facts for Here<'_> {
    fn head(&self, head: &mut [u8]) -> bool {
        let Some(memory) = self.memory else { return false };
        let buffer = self.call.arguments[1];
        let address = match self.call.sys {
            Sys::Writev | Sys::Pwritev | Sys::Pwritev2 => match memory.word(buffer) {
                Ok(address) => address,
                Err(_) => return false,
            },
            _ => buffer,
        };
        memory.read(address, head).is_ok()
    }

    fn file_bytes(&self) -> u64 {
        self.operation.fd().map_or(0, |fd| file_bytes(self.process, fd))
    }

    fn wal_in_use(&self) -> bool {
        is_in_use(self.wal)
    }
}

/// The facts of a call that has passed. What may change a WAL's size never passes.
struct Noted<'a> {
    head: &'a [u8],
    wal: Option<&'a Path>,
}

impl Facts for Noted<'_> {
    fn head(&self, head: &mut [u8]) -> bool {
        let there = self.head.get(..head.len());
        there.is_some_and(|there| {
            head.copy_from_slice(there);
            true
        })
    }

    fn file_bytes(&self) -> u64 {
        0
    }

    fn wal_in_use(&self) -> bool {
        is_in_use(self.wal)
    }
}

/// The WAL beside `file`, where the phase may depend on it.
fn wal_of(file: FileRef, database: Option<&Database>) -> Option<PathBuf> {
    database.filter(|_| file.role == Role::Database).map(|database| database.wal.clone())
}

fn is_in_use(wal: Option<&Path>) -> bool {
    wal.and_then(|wal| fs::metadata(wal).ok()).is_some_and(|wal| wal.len() > 0)
}
