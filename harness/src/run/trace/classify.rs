//! From a call on a database file to the phase that SQLite is in.
//!
//! In: the decoded call, the file's role, what is remembered of the database, and [`Facts`] that
//! are looked up only where the answer depends on them. Out: a [`Phase`]. SQLite's file formats are
//! known here and nowhere else in the tracer.

use super::files::{Database, FileRef, Role};
use super::operation::{LockCall, Offset, Operation};
use super::phase::{DbLock, Phase, Sidecar, WalLock};

/// The WAL header and a frame header, in bytes.
const WAL_HEADER_BYTES: u64 = 32;
const FRAME_HEADER_BYTES: u64 = 24;

/// The smallest page and sector of SQLite, in bytes.
const SECTOR_BYTES: u64 = 512;

/// The first bytes of a rollback journal's header.
const JOURNAL_MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

/// The fields of a journal header, and the record count that is written over its head, in bytes.
const JOURNAL_FIELDS_BYTES: u64 = 28;
const JOURNAL_COUNT_BYTES: u64 = 12;

/// What the phase may depend on beyond the call itself. Each costs something, so each is asked
/// late.
pub(super) trait Facts {
    /// Fills `head` with the first bytes that a write is about to write; false if it cannot.
    fn head(&self, head: &mut [u8]) -> bool;
    /// The file's present size in bytes; 0 if unknown.
    fn file_bytes(&self) -> u64;
    /// Whether the database has a WAL with something in it.
    fn wal_in_use(&self) -> bool;
}

/// The phase of `operation` on `file`. What it shows of the database is remembered in `database`.
pub(super) fn classify(
    operation: &Operation,
    file: FileRef,
    database: Option<&mut Database>,
    facts: &dyn Facts,
) -> Phase {
    let Some(database) = database else {
        return if matches!(operation, Operation::Write { .. }) {
            Phase::Ack
        } else {
            Phase::Other
        };
    };
    if matches!(file.role, Role::Wal | Role::Journal) {
        database.wal_in_use = None;
    }
    match operation {
        Operation::Open { .. } => Phase::Open,
        Operation::Close { .. } | Operation::CloseRange { .. } => Phase::Close,
        Operation::Read { .. } | Operation::Copy { .. } => Phase::Read,
        Operation::Rename { .. } => Phase::Rename,
        Operation::Link { .. } => Phase::Link,
        Operation::Sleep => Phase::Sleep,
        Operation::Write { offset, length, .. } => match *offset {
            Offset::At(at) => write(file.role, at, *length, database, facts),
            Offset::Position => Phase::Other,
        },
        Operation::Sync { .. } => sync(file.role, database),
        Operation::Truncate { .. } | Operation::TruncatePath { .. } => truncate(file.role),
        Operation::Lock { lock, .. } => self::lock(file.role, lock),
        Operation::Unlink { .. } => unlink(file.role),
        Operation::Map { .. } if file.role == Role::Shm => Phase::ShmMap,
        Operation::Unmap { .. } if file.role == Role::Shm => Phase::ShmUnmap,
        Operation::Map { .. }
        | Operation::Unmap { .. }
        | Operation::Allocate { .. }
        | Operation::Ring
        | Operation::World
        | Operation::Dup { .. } => Phase::Other,
    }
}

fn write(role: Role, at: u64, length: u64, database: &mut Database, facts: &dyn Facts) -> Phase {
    match role {
        Role::Database => {
            let in_use = database.wal_in_use.unwrap_or_else(|| facts.wal_in_use());
            database.wal_in_use = Some(in_use);
            if in_use { Phase::CheckpointPageWrite } else { Phase::DbPageWrite }
        }
        Role::Wal => wal_write(at, length, database, facts),
        Role::Journal => journal_write(at, length, facts),
        Role::Shm => Phase::ShmExtend,
        Role::Ack => Phase::Ack,
        Role::Directory => Phase::Other,
    }
}

fn wal_write(at: u64, length: u64, database: &mut Database, facts: &dyn Facts) -> Phase {
    database.wal_in_use = Some(true);
    let Some(behind_header) = at.checked_sub(WAL_HEADER_BYTES) else {
        let mut head = [0; 12];
        if at == 0 && facts.head(&mut head) {
            let [.., a, b, c, d] = head;
            database.wal_page_bytes = Some(u64::from(u32::from_be_bytes([a, b, c, d])));
        }
        database.last_frame = None;
        let anew = facts.file_bytes() >= WAL_HEADER_BYTES;
        return if anew { Phase::WalReset } else { Phase::WalHeader };
    };
    let begins_frame = match database.wal_page_bytes {
        Some(page) => behind_header.is_multiple_of(page + FRAME_HEADER_BYTES),
        // Before any WAL header was seen the lengths must do: a header is written by itself.
        None => length == FRAME_HEADER_BYTES,
    };
    if begins_frame {
        let mut head = [0; 8];
        let commits = facts.head(&mut head) && head[4..] != [0; 4];
        database.last_frame = Some((at, commits));
        return if commits { Phase::CommitFrame } else { Phase::FrameHeader };
    }
    // The page follows its header, in one piece or (around a sync) in two.
    let commits = database.last_frame.is_some_and(|(header, commits)| {
        let page = database.wal_page_bytes.unwrap_or(length);
        commits && at > header && at - header < page + FRAME_HEADER_BYTES
    });
    if commits { Phase::CommitPage } else { Phase::FramePage }
}

/// A header is written whole at a sector boundary, then its record count over its first 12 bytes.
/// A record (4 bytes, a page, 4 bytes) never begins a page or a checksum at a sector boundary, and
/// what it does begin there is 4 bytes long.
fn journal_write(at: u64, length: u64, facts: &dyn Facts) -> Phase {
    if !at.is_multiple_of(SECTOR_BYTES) {
        return Phase::JournalPage;
    }
    if length == 1 || (at == 0 && length == JOURNAL_FIELDS_BYTES) {
        return Phase::JournalZero;
    }
    let mut head = [0; 8];
    let is_count = length == JOURNAL_COUNT_BYTES && facts.head(&mut head) && head == JOURNAL_MAGIC;
    if is_count || length >= JOURNAL_FIELDS_BYTES {
        Phase::JournalHeader
    } else {
        Phase::JournalPage
    }
}

fn sync(role: Role, database: &mut Database) -> Phase {
    match role {
        Role::Database => {
            database.wal_in_use = None;
            Phase::DbSync
        }
        Role::Wal => Phase::WalSync,
        Role::Journal => Phase::JournalSync,
        Role::Directory => Phase::DirectorySync,
        Role::Shm | Role::Ack => Phase::Other,
    }
}

fn truncate(role: Role) -> Phase {
    match role {
        Role::Database => Phase::DbTruncate,
        Role::Wal => Phase::WalTruncate,
        Role::Journal => Phase::JournalTruncate,
        Role::Shm => Phase::ShmTruncate,
        Role::Directory | Role::Ack => Phase::Other,
    }
}

fn unlink(role: Role) -> Phase {
    match role {
        Role::Database => Phase::DbUnlink,
        Role::Wal => Phase::SidecarUnlink(Sidecar::Wal),
        Role::Shm => Phase::SidecarUnlink(Sidecar::Shm),
        Role::Journal => Phase::SidecarUnlink(Sidecar::Journal),
        Role::Directory | Role::Ack => Phase::Other,
    }
}

fn lock(role: Role, lock: &LockCall) -> Phase {
    let byte = u64::try_from(lock.start).ok();
    let named = match role {
        Role::Shm => {
            let which = byte.and_then(WalLock::of_byte).map(|which| match which {
                // Recovery takes the checkpoint lock, its own and the readers' in one call.
                WalLock::Checkpoint if lock.length > 1 => WalLock::Recover,
                which => which,
            });
            which.map(|which| Phase::WalIndexLock(which, lock.kind))
        }
        Role::Database => {
            byte.and_then(DbLock::of_byte).map(|which| Phase::DbLock(which, lock.kind))
        }
        Role::Wal | Role::Journal | Role::Directory | Role::Ack => None,
    };
    named.unwrap_or(Phase::Other)
}

/// Whether a lock is one that only SQLite takes: on the pending, reserved or shared bytes.
pub(super) fn is_database_lock(lock: &LockCall) -> bool {
    let byte = u64::try_from(lock.start).unwrap_or(0);
    byte >= DbLock::PENDING_BYTE && DbLock::of_byte(byte).is_some()
}

#[cfg(test)]
mod tests;
