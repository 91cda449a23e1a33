//! What processes did to a database's files: every call that a power cut could undo, in one order.
//!
//! Plain data, and the file that it is kept in. Made by `record`, read by the enumeration, and by
//! whoever wants to replay it elsewhere.
//!
//! Files are known by number, not by name: a number is one inode of the run, so a WAL that was
//! removed and made again has two. The wal-index (`-shm`) is left out: it is never durable.

mod codec;

pub use codec::RecordingError;

use crate::history::Line;
use crate::plan::CyclePlan;
use crate::run::trace::Phase;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// A whole recording.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    /// What was recorded.
    pub header: Header,
    /// The files that were there before, durable to the last byte: file `n` is number `n`.
    pub start: Vec<StartFile>,
    /// What happened, in the order in which the kernel did it.
    pub entries: Vec<Entry>,
}

/// What was recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Header {
    /// The scenario and setting, or the command line.
    pub subject: String,
    /// The database's file name; its sidecars have the same with a suffix.
    pub database: String,
    /// What the processes saw of themselves, and what the undisturbed run left: of workers alone.
    pub board: Option<Board>,
    /// Asks whether what was acknowledged under the token `?1` is there: of other programs.
    pub check_sql: Option<String>,
    /// What an acknowledgement promises that says nothing of its own.
    pub promise: hardboard::Durability,
    /// What could not be followed; a recording with any is not judged.
    pub unseen: Vec<String>,
    /// Wall time of the recorded run, µs. Traced: some times slower than the program alone.
    pub elapsed_us: u64,
}

/// What is known of a run of workers beside their calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Board {
    /// What was done to the database before, and what was seen of it.
    pub before: (CyclePlan, Vec<Line>),
    /// The recorded run: its plan, and its lines, ending with what an undisturbed reader saw.
    pub recorded: (CyclePlan, Vec<Line>),
}

/// A file that was there when the recording began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFile {
    /// Its name in the database's directory.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// A file by its number: an inode of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileIndex(pub u32);

/// One call that was made and did something, or one acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When, µs since the run began.
    pub at_us: u64,
    /// Who: processes are numbered from 0 in the order in which they are first met.
    pub process: u32,
    /// What SQLite was doing.
    pub phase: Phase,
    /// What was done.
    pub op: Op,
}

/// Bytes of a write; equal writes share them.
pub type Bytes = Arc<[u8]>;

/// What a call did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Bytes were written: as many as the kernel said, not as many as were asked for.
    Write {
        /// To which file.
        file: FileIndex,
        /// Where, bytes.
        offset: u64,
        /// What.
        bytes: Bytes,
    },
    /// The file was given this length, bytes.
    Truncate {
        /// Which file.
        file: FileIndex,
        /// Its length from then on.
        length: u64,
    },
    /// Room was allocated: the file is at least `offset + length` long.
    Allocate {
        /// Which file.
        file: FileIndex,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// The file was synced.
    Sync {
        /// Which file.
        file: FileIndex,
    },
    /// The directory was synced.
    SyncDirectory,
    /// A new, empty file was made under this name.
    Create {
        /// Its number.
        file: FileIndex,
        /// Its name.
        name: String,
    },
    /// The name was removed.
    Unlink {
        /// Which.
        name: String,
    },
    /// A name was changed; what had the new one before has none any more.
    Rename {
        /// From this.
        from: String,
        /// To this.
        to: String,
    },
    /// A process said that a commit was done.
    Ack(Ack),
}

/// An acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// What it names.
    pub token: String,
    /// What it promises.
    pub durability: hardboard::Durability,
    /// The commit's number, where the program counts its commits.
    pub seq: Option<i64>,
}

impl Ack {
    /// Reads one line `ack TOKEN [process|power [SEQ]]`; none if it is no acknowledgement.
    #[must_use]
    pub fn parse(line: &str, promise: hardboard::Durability) -> Option<Self> {
        let mut words = line.split_whitespace();
        if words.next() != Some("ack") {
            return None;
        }
        let token = words.next()?.to_owned();
        let durability = match words.next() {
            None => promise,
            Some(word) => word.parse().ok()?,
        };
        let seq = match words.next() {
            None => None,
            Some(word) => Some(word.parse().ok()?),
        };
        Some(Self { token, durability, seq })
    }
}

impl Recording {
    /// What happened at `cut`: the call that was the last to be made before the power went.
    #[must_use]
    pub fn describe(&self, cut: usize) -> String {
        match cut.checked_sub(1).and_then(|last| self.entries.get(last)) {
            None => "before the first operation".to_owned(),
            Some(entry) => {
                format!("after operation {cut} ({entry})")
            }
        }
    }

    /// Bytes of all writes, each counted as often as it was made.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.entries
            .iter()
            .map(|entry| match &entry.op {
                Op::Write { bytes, .. } => bytes.len() as u64,
                _ => 0,
            })
            .sum()
    }

    /// Syncs of files and of the directory.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        let syncs = |op: &Op| matches!(op, Op::Sync { .. } | Op::SyncDirectory);
        self.entries.iter().filter(|entry| syncs(&entry.op)).count() as u64
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (process, phase) = (self.process, self.phase);
        match &self.op {
            Op::Write { offset, bytes, .. } => {
                write!(f, "{phase}, {} bytes at {offset}, process {process}", bytes.len())
            }
            Op::Truncate { length, .. } => write!(f, "{phase} to {length}, process {process}"),
            Op::Ack(ack) => write!(f, "ack {}, process {process}", ack.token),
            Op::Create { name, .. } => write!(f, "{name} made, process {process}"),
            Op::Unlink { name } => write!(f, "{name} removed, process {process}"),
            Op::Rename { from, to } => write!(f, "{from} renamed {to}, process {process}"),
            Op::Allocate { .. } | Op::Sync { .. } | Op::SyncDirectory => {
                write!(f, "{phase}, process {process}")
            }
        }
    }
}
