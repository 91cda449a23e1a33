//! The acknowledgement ledger: what each writer sent and was told, in shared memory.
//!
//! The memory belongs to no file system that is put under faults and outlives every writer, so a
//! SIGKILL at any instruction leaves it as it was. A writer marks an operation *sent* before it
//! calls the store and *acked*, *refused* or *unknown* after; one that is still *sent* when its
//! process is gone is unknown too. Every word is an atomic, so reading while writers run is sound.
//!
//! Not here: what the operations mean (`life`), or whether they survived (the harness's oracle).

mod map;

pub use map::{Ledger, LedgerError};

use hardboard::Durability;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Processes that one ledger has room for.
pub const SLOTS: usize = 64;

/// What a process is doing, as seen from below SQLite.
///
/// | activity    | from                                    | to                          |
/// |-------------|-----------------------------------------|-----------------------------|
/// | opening     | fork                                    | the connection is ready     |
/// | idle        | no lock held, waiting for one included  |                             |
/// | reading     | a read lock is held                     | it is released              |
/// | transaction | the write lock is held                  | the first byte is written   |
/// | commit      | the first byte of a transaction written | the write lock is released  |
/// | checkpoint  | the checkpoint lock is held             | it is released              |
/// | closed      | the connection is closed                |                             |
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
#[repr(u32)]
pub enum Activity {
    /// The connection is not ready yet.
    Opening = 0,
    /// Between transactions, or waiting for a lock.
    Idle = 1,
    /// In a read transaction.
    Reading = 2,
    /// In a write transaction that has written nothing to a file yet.
    Transaction = 3,
    /// In a write transaction that is being written.
    Commit = 4,
    /// In a checkpoint.
    Checkpoint = 5,
    /// Done, connection closed.
    Closed = 6,
}

impl Activity {
    fn from_word(word: u32) -> Self {
        match word {
            1 => Self::Idle,
            2 => Self::Reading,
            3 => Self::Transaction,
            4 => Self::Commit,
            5 => Self::Checkpoint,
            6 => Self::Closed,
            _ => Self::Opening,
        }
    }
}

/// What a writer was told of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u32)]
pub enum State {
    /// Sent, no answer yet.
    Sent = 1,
    /// Committed: it must be there, whole.
    Acked = 2,
    /// Not done: it must not be there.
    Refused = 3,
    /// Nobody can tell: wholly there or wholly absent.
    Unknown = 4,
}

/// What an operation does.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
#[repr(u32)]
pub enum Kind {
    /// Creates a task.
    Create = 1,
    /// Claims the next task.
    Claim = 2,
    /// Extends a lease.
    Heartbeat = 3,
    /// Appends events.
    Events = 4,
    /// Completes a task.
    Complete = 5,
    /// Takes back a claim whose lease ran out.
    TakeBack = 6,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Create, Self::Claim, Self::Heartbeat, Self::Events, Self::Complete, Self::TakeBack];

    /// As the column `commits.kind` has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Claim => "claim",
            Self::Heartbeat => "heartbeat",
            Self::Events => "events",
            Self::Complete => "complete",
            Self::TakeBack => "take-back",
        }
    }

    /// The kind that a column `commits.kind` names.
    #[must_use]
    pub fn from_column(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// Why an operation was refused.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
#[repr(u32)]
pub enum Reason {
    /// It was not refused.
    None = 0,
    /// There was nothing to claim or to take back.
    Nothing = 1,
    /// The claim is no longer the live one.
    Stale = 2,
    /// The lock was not had in time.
    Busy = 3,
    /// The disk or a quota is full.
    Full = 4,
    /// Any other error; the slot's message has the last one.
    Error = 5,
}

/// One operation as its writer saw it: 72 bytes.
///
/// Times are ns; `started_ns` counts from the monotonic clock's origin.
#[repr(C)]
#[derive(Default)]
pub struct Entry {
    state: AtomicU32,
    kind: AtomicU32,
    reason: AtomicU32,
    rows: AtomicU32,
    task: AtomicI64,
    token: AtomicI64,
    seq: AtomicI64,
    started_ns: AtomicU64,
    total_ns: AtomicU64,
    commit_ns: AtomicU64,
    /// 1 [`Durability::Process`], 2 [`Durability::Power`].
    durability: AtomicU64,
}

/// A copy of one [`Entry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What the writer was told.
    pub state: State,
    /// What it asked for.
    pub kind: Kind,
    /// Why it was refused, if it was.
    pub reason: Reason,
    /// Event rows asked for.
    pub rows: u32,
    /// The task, 0 where it was not known yet.
    pub task: i64,
    /// The fencing token, 0 for none.
    pub token: i64,
    /// The commit's sequence number when acknowledged, else 0.
    pub seq: i64,
    /// When it was sent, ns of the monotonic clock.
    pub started_ns: u64,
    /// From sent to answered, ns.
    pub total_ns: u64,
    /// In COMMIT, an automatic checkpoint included, ns.
    pub commit_ns: u64,
    /// What the acknowledgement promised to survive; `Process` unless acknowledged.
    pub durability: Durability,
}

impl Entry {
    /// Marks the operation as sent.
    pub fn send(&self, kind: Kind, task: i64, token: i64, rows: u32, now_ns: u64) {
        self.kind.store(kind as u32, Ordering::Relaxed);
        self.reason.store(Reason::None as u32, Ordering::Relaxed);
        self.rows.store(rows, Ordering::Relaxed);
        self.task.store(task, Ordering::Relaxed);
        self.token.store(token, Ordering::Relaxed);
        self.seq.store(0, Ordering::Relaxed);
        self.started_ns.store(now_ns, Ordering::Relaxed);
        self.total_ns.store(0, Ordering::Relaxed);
        self.commit_ns.store(0, Ordering::Relaxed);
        self.durability.store(1, Ordering::Relaxed);
        self.state.store(State::Sent as u32, Ordering::Release);
    }

    /// Marks it as acknowledged, with the promise that it survives what `durability` says.
    pub fn ack(&self, task: i64, token: i64, seq: i64, durability: Durability) {
        let word = match durability {
            Durability::Process => 1,
            Durability::Power => 2,
        };
        self.durability.store(word, Ordering::Relaxed);
        self.task.store(task, Ordering::Relaxed);
        self.token.store(token, Ordering::Relaxed);
        self.seq.store(seq, Ordering::Relaxed);
        self.state.store(State::Acked as u32, Ordering::Release);
    }

    /// Marks it as refused.
    pub fn refuse(&self, reason: Reason) {
        self.reason.store(reason as u32, Ordering::Relaxed);
        self.seq.store(0, Ordering::Relaxed);
        self.state.store(State::Refused as u32, Ordering::Release);
    }

    /// Marks its outcome as unknown.
    pub fn lose_track(&self) {
        self.state.store(State::Unknown as u32, Ordering::Release);
    }

    /// As if nothing had ever been sent here.
    pub fn clear(&self) {
        self.state.store(0, Ordering::Release);
    }

    /// Says how long it took, ns.
    pub fn time(&self, total_ns: u64, commit_ns: u64) {
        self.total_ns.store(total_ns, Ordering::Relaxed);
        self.commit_ns.store(commit_ns, Ordering::Relaxed);
    }

    /// A copy; `None` if nothing was ever sent here, or memory holds no known state.
    #[must_use]
    pub fn read(&self) -> Option<Record> {
        let state = match self.state.load(Ordering::Acquire) {
            1 => State::Sent,
            2 => State::Acked,
            3 => State::Refused,
            4 => State::Unknown,
            _ => return None,
        };
        let kind_word = self.kind.load(Ordering::Relaxed);
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u32 == kind_word)?;
        let reason = match self.reason.load(Ordering::Relaxed) {
            1 => Reason::Nothing,
            2 => Reason::Stale,
            3 => Reason::Busy,
            4 => Reason::Full,
            5 => Reason::Error,
            _ => Reason::None,
        };
        Some(Record {
            state,
            kind,
            reason,
            rows: self.rows.load(Ordering::Relaxed),
            task: self.task.load(Ordering::Relaxed),
            token: self.token.load(Ordering::Relaxed),
            seq: self.seq.load(Ordering::Relaxed),
            started_ns: self.started_ns.load(Ordering::Relaxed),
            total_ns: self.total_ns.load(Ordering::Relaxed),
            commit_ns: self.commit_ns.load(Ordering::Relaxed),
            durability: match self.durability.load(Ordering::Relaxed) {
                2 => Durability::Power,
                _ => Durability::Process,
            },
        })
    }
}

/// What the shim counted; times ns, sizes bytes.
#[repr(C)]
#[derive(Default)]
pub struct Counters {
    /// Calls of xSync on the database file.
    pub database_syncs: AtomicU64,
    /// Calls of xSync on the WAL or the rollback journal.
    pub log_syncs: AtomicU64,
    /// Bytes written to the database file.
    pub database_bytes: AtomicU64,
    /// Bytes written to the WAL or the rollback journal.
    pub log_bytes: AtomicU64,
    /// The greatest end of a write to the WAL: its high-water mark.
    pub wal_end_max: AtomicU64,
    /// Checkpoint locks taken by checkpoints that wrote at least one page.
    pub checkpoints: AtomicU64,
    /// Time under the checkpoint lock.
    pub checkpoint_ns: AtomicU64,
    /// The longest of those times.
    pub checkpoint_ns_max: AtomicU64,
    /// Fatal or last error: bytes of [`Slot::message`] that are set.
    message_bytes: AtomicU32,
    /// A file operation failed for want of space.
    no_space: AtomicU32,
    /// The pragmas below are set.
    pragmas_set: AtomicU32,
    synchronous: AtomicU32,
    wal_autocheckpoint: AtomicU32,
    journal_mode: AtomicU32,
    sqlite_version: AtomicU32,
    /// Bytes of the source id that are set.
    source_id_bytes: AtomicU32,
}

/// One process's part of the ledger, before its entries.
#[repr(C)]
pub struct Slot {
    activity: AtomicU32,
    drain: AtomicU32,
    ready: AtomicU32,
    used: AtomicU32,
    script_step: AtomicU32,
    /// What the shim counted.
    pub counters: Counters,
    message: [AtomicU8; 240],
    source_id: [AtomicU8; 128],
}

/// The pragmas that a process read back from its own connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Effective {
    /// `PRAGMA synchronous`, 0 to 3.
    pub synchronous: u32,
    /// `PRAGMA wal_autocheckpoint`, pages.
    pub wal_autocheckpoint: u32,
    /// `PRAGMA journal_mode` is `wal`.
    pub wal: bool,
}

/// The SQLite that a process has loaded, as the library itself says.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub struct Loaded {
    /// `sqlite3_libversion_number`: 3054001 is 3.54.1.
    pub sqlite_version: u32,
    /// `sqlite3_sourceid`: date, time and digest of the check-in; at most 128 bytes are kept.
    pub source_id: String,
}

impl Slot {
    /// What the process is doing, or was doing when it ended.
    #[must_use]
    pub fn activity(&self) -> Activity {
        Activity::from_word(self.activity.load(Ordering::Acquire))
    }

    /// Says what the process is doing.
    pub fn set_activity(&self, activity: Activity) {
        self.activity.store(activity as u32, Ordering::Release);
    }

    /// Whether the process is asked to finish its operation, close, and end.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.drain.load(Ordering::Acquire) != 0
    }

    /// Asks for that.
    pub fn drain(&self) {
        self.drain.store(1, Ordering::Release);
    }

    /// Whether the process has opened its connection, or has given up.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) != 0
    }

    /// Says so.
    pub fn set_ready(&self) {
        self.ready.store(1, Ordering::Release);
    }

    /// How many entries were sent.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Acquire) as usize
    }

    /// Says that the first `used` entries were sent.
    pub fn set_used(&self, used: u32) {
        self.used.store(used, Ordering::Release);
    }

    /// Steps of its script that it has begun, and one more once it closes; 0 while it opens.
    #[must_use]
    pub fn script_step(&self) -> u32 {
        self.script_step.load(Ordering::Acquire)
    }

    /// Says that it begins this step of its script, from 1.
    pub fn set_script_step(&self, step: u32) {
        self.script_step.store(step, Ordering::Release);
    }

    /// Records what the process read back from its connection.
    pub fn set_effective(&self, effective: &Effective) {
        let c = &self.counters;
        c.synchronous.store(effective.synchronous, Ordering::Relaxed);
        c.wal_autocheckpoint.store(effective.wal_autocheckpoint, Ordering::Relaxed);
        c.journal_mode.store(u32::from(effective.wal), Ordering::Relaxed);
        c.pragmas_set.store(1, Ordering::Release);
    }

    /// What the process read back; `None` if it never came so far.
    #[must_use]
    pub fn effective(&self) -> Option<Effective> {
        let c = &self.counters;
        (c.pragmas_set.load(Ordering::Acquire) != 0).then(|| Effective {
            synchronous: c.synchronous.load(Ordering::Relaxed),
            wal_autocheckpoint: c.wal_autocheckpoint.load(Ordering::Relaxed),
            wal: c.journal_mode.load(Ordering::Relaxed) != 0,
        })
    }

    /// Records which SQLite the process has loaded.
    pub fn set_loaded(&self, loaded: &Loaded) {
        self.counters.sqlite_version.store(loaded.sqlite_version, Ordering::Relaxed);
        put_text(&self.source_id, &loaded.source_id, &self.counters.source_id_bytes);
    }

    /// Which SQLite the process has loaded; `None` if it never came so far as to say.
    #[must_use]
    pub fn loaded(&self) -> Option<Loaded> {
        Some(Loaded {
            source_id: text(&self.source_id, &self.counters.source_id_bytes)?,
            sqlite_version: self.counters.sqlite_version.load(Ordering::Relaxed),
        })
    }

    /// Says that a file operation failed because the disk or a quota is full.
    pub fn set_no_space(&self) {
        self.counters.no_space.store(1, Ordering::Release);
    }

    /// Whether one did. SQLite tells some of them as plain I/O errors, such as a -shm that cannot
    /// grow; and by the time that the process has ended, there may be room again.
    #[must_use]
    pub fn no_space(&self) -> bool {
        self.counters.no_space.load(Ordering::Acquire) != 0
    }

    /// Keeps the start of an error's text, at most 240 bytes.
    pub fn set_message(&self, text: &str) {
        put_text(&self.message, text, &self.counters.message_bytes);
    }

    /// The last error's text, if there was one.
    #[must_use]
    pub fn message(&self) -> Option<String> {
        text(&self.message, &self.counters.message_bytes)
    }

    /// As if no process had ever used it.
    pub fn clear(&self) {
        self.activity.store(0, Ordering::Relaxed);
        self.drain.store(0, Ordering::Relaxed);
        self.ready.store(0, Ordering::Relaxed);
        self.used.store(0, Ordering::Relaxed);
        self.script_step.store(0, Ordering::Relaxed);
        let c = &self.counters;
        let sums = [
            &c.database_syncs,
            &c.log_syncs,
            &c.database_bytes,
            &c.log_bytes,
            &c.wal_end_max,
            &c.checkpoints,
            &c.checkpoint_ns,
            &c.checkpoint_ns_max,
        ];
        for sum in sums {
            sum.store(0, Ordering::Relaxed);
        }
        c.message_bytes.store(0, Ordering::Relaxed);
        c.source_id_bytes.store(0, Ordering::Relaxed);
        c.no_space.store(0, Ordering::Relaxed);
        c.pragmas_set.store(0, Ordering::Release);
    }
}

/// Writes as much of a text as fits.
fn put_text(to: &[AtomicU8], text: &str, bytes_set: &AtomicU32) {
    let bytes = &text.as_bytes()[..text.len().min(to.len())];
    for (byte, cell) in bytes.iter().zip(to) {
        cell.store(*byte, Ordering::Relaxed);
    }
    bytes_set.store(u32::try_from(bytes.len()).unwrap_or(0), Ordering::Release);
}

/// What was written by [`put_text`], if anything was.
fn text(from: &[AtomicU8], bytes_set: &AtomicU32) -> Option<String> {
    let length = bytes_set.load(Ordering::Acquire) as usize;
    let bytes: Vec<u8> = from.iter().take(length).map(|b| b.load(Ordering::Relaxed)).collect();
    (length > 0).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether this process looks at no clock.
static UNTIMED: AtomicBool = AtomicBool::new(false);

/// Has [`now_ns`] give 0 in this process from now on.
pub fn leave_out_times() {
    UNTIMED.store(true, Ordering::Relaxed);
}

/// Now, ns of the monotonic clock: the same in every process of the machine.
#[must_use]
pub fn now_ns() -> u64 {
    if UNTIMED.load(Ordering::Relaxed) {
        return 0;
    }
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs()
    })
}
