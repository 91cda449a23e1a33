//! The rule about the wal-index: no more frames are in the database than the WAL has.
//!
//! `nBackfill` (at byte 96) may pass `mxFrame` (at byte 16) only in the middle of a reset or a
//! recovery, and whoever is in one holds the write or the recovery lock. The bytes are read from
//! the memory of the process at hand, through its own mapping: no file is opened.

use std::collections::HashMap;

use super::super::ProcessId;
use super::super::files::{DatabaseId, FileId, FileRef, Role};
use super::super::phase::WalLock;
use super::Watcher;
use super::finding::Breach;
use super::protocol::Moment;

/// Two copies of the header, 48 bytes each, and the beginning of what follows them.
const HEADER_BYTES: usize = 48;
const READ_BYTES: usize = 100;
const MX_FRAME_AT: usize = 16;
const IS_INIT_AT: usize = 12;
const BACKFILL_AT: usize = 96;

/// Where processes have mapped their wal-indexes.
#[derive(Debug, Default)]
pub(super) struct WalIndexes {
    mapped: HashMap<(ProcessId, FileId), u64>,
}

impl WalIndexes {
    pub(super) fn forget(&mut self, process: ProcessId) {
        self.mapped.retain(|(who, _), _| *who != process);
    }

    /// `nBackfill` and `mxFrame`, if the process has the wal-index mapped and it is in order.
    fn counts(&mut self, moment: &Moment<'_>, file: FileId) -> Option<(u32, u32)> {
        let process = moment.stop.process;
        let key = (process, file);
        if let Some(address) = self.mapped.get(&key) {
            if let Some(counts) = read(moment, *address) {
                return Some(counts);
            }
            self.mapped.remove(&key);
        }
        let address = moment.scene.mapping(process, file)?;
        let counts = read(moment, address)?;
        self.mapped.insert(key, address);
        Some(counts)
    }
}

fn read(moment: &Moment<'_>, address: u64) -> Option<(u32, u32)> {
    let mut bytes = [0; READ_BYTES];
    moment.scene.read_memory(moment.stop.process, address, &mut bytes).ok()?;
    let whole = bytes[..HEADER_BYTES] == bytes[HEADER_BYTES..2 * HEADER_BYTES];
    let word = |at: usize| {
        let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    if !whole || bytes[IS_INIT_AT] != 1 {
        return None;
    }
    Some((word(BACKFILL_AT)?, word(MX_FRAME_AT)?))
}

impl Watcher {
    /// A lock call on the wal-index: a moment to look into it.
    pub(super) fn check_wal_index(&mut self, moment: &Moment<'_>, file: FileRef) {
        let Some(database) = file.database.filter(|_| file.role == Role::Shm) else { return };
        if in_the_middle(moment, database, file.id) {
            return;
        }
        let Some((backfilled, frames)) = self.wal_indexes.counts(moment, file.id) else { return };
        if backfilled <= frames {
            return;
        }
        // Once more: the two numbers are not read at one moment.
        let again = self.wal_indexes.counts(moment, file.id);
        if let Some((backfilled, frames)) = again.filter(|(backfilled, frames)| backfilled > frames)
        {
            self.findings.add(moment, Breach::BackfillPastEnd { backfilled, frames }, file);
        }
    }
}

/// Whether somebody may be in the middle of a reset or a recovery.
fn in_the_middle(moment: &Moment<'_>, database: DatabaseId, file: FileId) -> bool {
    let locks = moment.scene.locks();
    let busy = locks.on(file).any(|(_, lock)| {
        let covers = |which: WalLock| lock.range.contains(which.byte());
        lock.exclusive && (covers(WalLock::Write) || covers(WalLock::Recover))
    });
    busy || moment.has_alone(database)
}
