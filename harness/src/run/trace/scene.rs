//! What a driver may look at while it decides.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::calls::Sys;
use super::files::{Database, DatabaseId, FdTable, FileId, LockModel, Owner, Role};
use super::operation::{Operation, pieces};
use super::stack::Stack;
use super::state::State;
use super::{ProcessId, Stop, ThreadId};

/// The supervisor's picture of the victims. Looking changes nothing.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    pub(super) state: &'a State,
}

impl<'a> Scene<'a> {
    /// Time since the run began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.state.started.elapsed()
    }

    /// The processes that are alive, in no order.
    pub fn processes(&self) -> impl Iterator<Item = ProcessId> + 'a {
        self.state.processes.keys().copied()
    }

    /// The command line of a living process; empty for any other.
    #[must_use]
    pub fn command(&self, process: ProcessId) -> &'a str {
        self.state.processes.get(&process).map_or("", |process| process.command.as_str())
    }

    /// The process that made this one, if that is traced too.
    #[must_use]
    pub fn parent(&self, process: ProcessId) -> Option<ProcessId> {
        self.state.processes.get(&process)?.parent
    }

    /// The process of a living thread.
    #[must_use]
    pub fn process_of(&self, thread: ThreadId) -> Option<ProcessId> {
        Some(self.state.threads.get(&thread)?.process)
    }

    /// Who owns the record locks of a process.
    #[must_use]
    pub fn owner(&self, process: ProcessId) -> Owner {
        self.state.owner(process)
    }

    /// The open descriptors of a process, as far as they matter and were met.
    #[must_use]
    pub fn descriptors(&self, process: ProcessId) -> Option<&'a FdTable> {
        self.state.tables.get(&self.state.owner(process))
    }

    /// All record locks, if the options ask for the model.
    #[must_use]
    pub fn locks(&self) -> &'a LockModel {
        &self.state.locks
    }

    /// A database of the run.
    #[must_use]
    pub fn database(&self, id: DatabaseId) -> &'a Database {
        self.state.files.database(id)
    }

    /// All databases that the run has met.
    pub fn databases(&self) -> impl Iterator<Item = (DatabaseId, &'a Database)> {
        self.state.files.databases()
    }

    /// The path that a file was last seen under.
    #[must_use]
    pub fn path(&self, file: FileId) -> Option<&'a Path> {
        self.state.files.path(file)
    }

    /// The stack of a thread that is stopped now.
    #[must_use]
    pub fn stack(&self, thread: ThreadId) -> Stack {
        self.state.stack(thread)
    }

    /// Fills `buffer` from the memory of a process.
    pub fn read_memory(
        &self,
        process: ProcessId,
        address: u64,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        self.state.memory(process)?.read(address, buffer)
    }

    /// Fills `buffer` from the beginning of the wal-index, as a process has it mapped.
    pub fn read_wal_index(&self, process: ProcessId, buffer: &mut [u8]) -> io::Result<()> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let record = self.state.processes.get(&process).ok_or_else(missing)?;
        let beginning =
            record.maps.iter().rev().find(|map| map.file.role == Role::Shm && map.offset == 0);
        let map = beginning.ok_or_else(missing)?;
        self.state.memory(process)?.read(map.address, buffer)
    }

    /// Where a process has mapped the beginning of a file, if it has; searched in `/proc/PID/maps`.
    #[must_use]
    pub fn mapping(&self, process: ProcessId, file: FileId) -> Option<u64> {
        super::stack::mapping_of(process, file)
    }

    /// The first bytes, at most `bytes_max`, that the write of `stop` is about to write.
    pub fn written(&self, stop: &Stop, bytes_max: usize) -> io::Result<Vec<u8>> {
        let Operation::Write { length, .. } = stop.operation else {
            return Ok(Vec::new());
        };
        let memory = self.state.memory(stop.process)?;
        let [_, buffer, count, ..] = stop.call.arguments;
        let bytes = usize::try_from(length).unwrap_or(usize::MAX).min(bytes_max);
        let mut out = Vec::with_capacity(bytes);
        let mut take = |address: u64, length: u64| -> io::Result<()> {
            let want = usize::try_from(length).unwrap_or(usize::MAX).min(bytes - out.len());
            let from = out.len();
            out.resize(from + want, 0);
            memory.read(address, &mut out[from..])
        };
        if matches!(stop.call.sys, Sys::Writev | Sys::Pwritev | Sys::Pwritev2) {
            for piece in pieces(memory, buffer, count)? {
                take(memory.word(piece.length_at - 8)?, piece.length)?;
            }
        } else {
            take(buffer, length)?;
        }
        Ok(out)
    }
}
