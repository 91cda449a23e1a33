//! A schedule in words: who did what to which file, byte and lock, in the order of time.

use super::driver::Told;
use crate::run::trace::{LockKind, Offset, Operation, Phase, Role, Stop, Trap, WalLock};
use serde::{Deserialize, Serialize};

/// One step in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chapter {
    /// Its number among the steps of all, from 1.
    pub number: usize,
    /// Who, by slot.
    pub slot: usize,
    /// Which step of its script it is at, and its own step since that began: as decisions have it.
    pub step: (u32, u32),
    /// The phase, as faults name it; `trap` for a trap.
    pub phase: String,
    /// What is done, to which file, byte and lock.
    pub what: String,
    /// mxFrame and nBackfill of the wal-index at that moment, if the process has it mapped.
    pub wal_index: Option<(u32, u32)>,
}

/// All steps in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    /// In order.
    pub chapters: Vec<Chapter>,
}

impl Story {
    pub(super) fn of(told: Vec<Told>) -> Self {
        let chapter = |(index, told): (usize, Told)| {
            let (phase, what) = match (&told.stop, told.trap) {
                (Some(stop), _) => (stop.phase.to_string(), describe(stop)),
                (None, Some(trap)) => ("trap".to_owned(), describe_trap(trap)),
                (None, None) => ("end".to_owned(), "ends".to_owned()),
            };
            Chapter {
                number: index + 1,
                slot: told.slot,
                step: told.step,
                phase,
                what,
                wal_index: told.wal_index,
            }
        };
        Self { chapters: told.into_iter().enumerate().map(chapter).collect() }
    }
}

/// What a word of the wal-index holds, by its offset.
fn word(offset: u64) -> &'static str {
    match offset {
        0..=47 => "the first copy of the header",
        48..=95 => "the second copy of the header",
        96..=99 => "nBackfill",
        100..=119 => "the read marks",
        _ => "nBackfillAttempted",
    }
}

fn describe_trap(trap: Trap) -> String {
    match trap {
        Trap::Touch { offset, .. } => {
            format!("has touched bytes {offset} to {} of -shm: {}", offset + 7, word(offset))
        }
        Trap::Steps(steps) => format!("has made {steps} instructions of its own"),
    }
}

fn file(stop: &Stop) -> &'static str {
    match stop.file.map(|file| file.role) {
        Some(Role::Database) => "the database",
        Some(Role::Wal) => "-wal",
        Some(Role::Shm) => "-shm",
        Some(Role::Journal) => "-journal",
        Some(Role::Directory) => "the directory",
        Some(Role::Ack) => "the acknowledgements",
        None => "another file",
    }
}

fn describe(stop: &Stop) -> String {
    let file = file(stop);
    let meaning = meaning(stop.phase);
    match &stop.operation {
        Operation::Write { offset, length, .. } => {
            let at = match offset {
                Offset::At(at) => format!(" at byte {at}"),
                Offset::Position => String::new(),
            };
            format!("writes {length} bytes to {file}{at}{meaning}")
        }
        Operation::Lock { lock, .. } => {
            let kind = match lock.kind {
                LockKind::Shared => "asks for a shared lock on",
                LockKind::Exclusive => "asks for the exclusive lock on",
                LockKind::Unlock => "gives up",
                LockKind::Test => "asks about",
            };
            let named = match stop.phase {
                Phase::WalIndexLock(which, _) => format!(" ({})", wal_lock(which)),
                _ => String::new(),
            };
            let last = lock.start + lock.length.max(1) - 1;
            let bytes = if last == lock.start {
                format!("byte {}", lock.start)
            } else {
                format!("bytes {} to {last}", lock.start)
            };
            format!("{kind} {bytes} of {file}{named}")
        }
        Operation::Sync { .. } => format!("syncs {file}"),
        Operation::Truncate { length, .. } => format!("sets the size of {file} to {length}"),
        Operation::Sleep => "sleeps, waiting for a lock".to_owned(),
        Operation::Close { .. } => format!("closes {file}"),
        Operation::Unlink { .. } => format!("removes {file}"),
        Operation::Map { offset, length, .. } => {
            format!("maps {length} bytes of {file} at {offset}")
        }
        _ => format!("{} on {file}", stop.call.sys.name()),
    }
}

fn meaning(phase: Phase) -> &'static str {
    match phase {
        Phase::WalReset => ": the WAL begins anew, over its old frames",
        Phase::WalHeader => ": the WAL begins",
        Phase::CommitFrame => ": the frame that commits",
        Phase::CheckpointPageWrite => ": a page from the WAL, by a checkpoint",
        _ => "",
    }
}

fn wal_lock(lock: WalLock) -> &'static str {
    match lock {
        WalLock::Write => "the writer",
        WalLock::Checkpoint => "the checkpointer",
        WalLock::Recover => "recovery",
        WalLock::Read0 => "readers of no WAL",
        WalLock::Read1 | WalLock::Read2 | WalLock::Read3 | WalLock::Read4 => "a read mark",
        WalLock::Dms => "the dead man's switch",
    }
}
