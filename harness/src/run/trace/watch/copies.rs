//! The rule about copies: a database that is being written is not copied by reading its file.
//!
//! A look at the header is no copy: at least 16 KiB must be read, or the file to its end. Reads at
//! given offsets (`pread64`) are how SQLite reads, and are not looked at.

use std::collections::HashMap;

use super::super::ProcessId;
use super::super::files::{DatabaseId, FileRef, Role};
use super::Watcher;
use super::finding::Breach;
use super::protocol::Moment;

/// From how many bytes on reading is copying.
const COPY_BYTES_MIN: u64 = 16 * 1024;

/// The files that are being read.
#[derive(Debug, Default)]
pub(super) struct Copies {
    reading: HashMap<(ProcessId, i32), Reading>,
}

#[derive(Debug)]
struct Reading {
    file: FileRef,
    bytes: u64,
    /// The process that wrote while this was being read.
    writer: Option<ProcessId>,
}

impl Copies {
    pub(super) fn forget(&mut self, process: ProcessId) {
        self.reading.retain(|(who, _), _| *who != process);
    }

    pub(super) fn closed(&mut self, moment: &Moment<'_>) {
        let process = moment.stop.process;
        let operation = &moment.stop.operation;
        self.reading.retain(|(who, fd), _| *who != process || !operation.closes(*fd));
    }
}

/// Whoever writes to the database at this moment.
fn writer(moment: &Moment<'_>, database: DatabaseId) -> Option<ProcessId> {
    moment.writer_elsewhere(database).or_else(|| moment.writer_here(database))
}

impl Watcher {
    /// A plain read, or a copy within the kernel, has brought `bytes` of a database file; 0 is its
    /// end.
    pub(super) fn copied_out(&mut self, moment: &Moment<'_>, fd: i32, bytes: u64) {
        let file = moment.descriptor(fd).filter(|held| !held.locked).map(|held| held.file);
        let Some((file, database)) = file.and_then(|file| Some((file, file.database?))) else {
            return;
        };
        if !matches!(file.role, Role::Database | Role::Wal) {
            return;
        }
        let reading = self.copies.reading.entry((moment.stop.process, fd)).or_insert(Reading {
            file,
            bytes: 0,
            writer: None,
        });
        reading.bytes += bytes;
        reading.writer = reading.writer.or_else(|| writer(moment, database));
        let whole = bytes == 0 && reading.bytes > 0;
        let (Some(process), bytes) = (reading.writer, reading.bytes) else { return };
        if whole || bytes >= COPY_BYTES_MIN {
            let breach = Breach::CopyDuringTransaction { process, bytes };
            self.findings.add(moment, breach, file);
        }
        if whole {
            self.copies.reading.remove(&(moment.stop.process, fd));
        }
    }

    /// A lock was got: whoever is in the middle of a copy has met a writer.
    pub(super) fn copies_meet_writer(&mut self, moment: &Moment<'_>) {
        if self.copies.reading.is_empty() {
            return;
        }
        let Some(database) = moment.stop.file.and_then(|file| file.database) else { return };
        let Some(writer) = moment.writer_here(database) else { return };
        for reading in self.copies.reading.values_mut() {
            if reading.file.database == Some(database) {
                reading.writer.get_or_insert(writer);
            }
        }
    }
}
