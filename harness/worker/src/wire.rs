//! What the harness and a zygote say to each other: one JSON object a line.
//!
//! Plain data only. The harness writes an [`Order`], the zygote answers with one [`Reply`].

use hardboard::{Durability, Synchronous};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What a zygote is told to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Fork one process for each of these slots. Answered by [`Reply::Forked`] as soon as all run.
    Fork {
        /// All processes of the cycle, those of other zygotes included.
        cycle: Cycle,
        /// Which of them this zygote forks, in this order.
        slots: Vec<usize>,
    },
    /// Wait until every child has ended. Answered by [`Reply::Reaped`].
    ///
    /// No child is reaped before this, so a process id stays valid to be killed until then.
    Reap,
}

/// What a zygote answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The process ids, in the order of the slots.
    Forked(Vec<i32>),
    /// How each process ended, in the order of the slots.
    Reaped(Vec<Exit>),
    /// The zygote could not do it; one line.
    Failed(String),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// It returned this exit code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// Exit code of a life that could not open its connection.
pub const EXIT_OPEN: i32 = 20;
/// Exit code of a life whose store became unusable, or whose role could not be played.
pub const EXIT_STORE: i32 = 21;
/// Exit code of a life that found the disk full.
pub const EXIT_FULL: i32 = 22;

/// The processes of one cycle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cycle {
    /// The database file.
    pub database: PathBuf,
    /// The processes, by slot.
    pub lives: Vec<Life>,
}

/// What a nursery is told: which of a cycle's processes its next child is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Birth {
    /// Its place among the lives of the cycle.
    pub slot: usize,
    /// The cycle.
    pub cycle: Cycle,
}

/// One process from fork to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Life {
    /// Names this life for good: no other life on the same database has the same.
    pub session: i64,
    /// What it does.
    pub role: Role,
    /// Which SQLite it is to run on.
    #[serde(default)]
    pub engine: EngineName,
    /// Through what it writes.
    pub target: Target,
    /// How its connection is asked to be set.
    pub settings: Settings,
    /// The shape of its work.
    pub shape: Shape,
    /// Seed of its own choices.
    pub seed: u64,
    /// What a process of the role [`Role::Script`] does, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub script: Vec<Step>,
    /// Whether it ends without closing its connection, as if it were killed there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub abandon: bool,
    /// What operations of these kinds are to survive, where that is not what the settings give.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub durability: BTreeMap<Step, Durability>,
    /// The descriptor that takes a line `ack SESSION.OPERATION DURABILITY SEQ` for each
    /// acknowledgement, once it is in the ledger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack_fd: Option<i32>,
    /// Whether it opens, reads and closes the database file by itself after each commit, while its
    /// connection is open: POSIX then drops all locks that the process holds on the file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub header_check: bool,
    /// Whether its ledger holds no times: a look at the clock is a call where the vDSO is hidden.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untimed: bool,
}

/// A SQLite that processes can run on, by the name that scenarios have for it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum EngineName {
    /// The one that is compiled in.
    #[default]
    #[serde(rename = "bundled")]
    Bundled,
    /// The last with the WAL-reset race that a rusqlite release bundles.
    #[serde(rename = "3.51.1")]
    V3_51_1,
    /// The last line in which a stray close of the database file destroys it.
    #[serde(rename = "3.50.2")]
    V3_50_2,
    /// The machine's own.
    #[serde(rename = "system")]
    System,
    /// The library that the command line names.
    #[serde(rename = "given")]
    Given,
}

impl EngineName {
    /// Every name that a scenario may use.
    pub const NAMED: [Self; 4] = [Self::Bundled, Self::V3_51_1, Self::V3_50_2, Self::System];

    /// As it stands in scenario files and reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bundled => "bundled",
            Self::V3_51_1 => "3.51.1",
            Self::V3_50_2 => "3.50.2",
            Self::System => "system",
            Self::Given => "given",
        }
    }

    /// The version that this name promises, as `sqlite3_libversion_number` has it; none where the
    /// name promises nothing.
    #[must_use]
    pub fn promised_version(self) -> Option<u32> {
        match self {
            Self::V3_51_1 => Some(3_051_001),
            Self::V3_50_2 => Some(3_050_002),
            Self::Bundled | Self::System | Self::Given => None,
        }
    }
}

/// One step of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Creates a task.
    Create,
    /// Claims the next task; the steps that follow are under this claim.
    Claim,
    /// Appends events, under the claim if there is one.
    Events,
    /// Extends the claim.
    Heartbeat,
    /// Completes the claimed task.
    Complete,
    /// Checkpoints as far as it can be done without waiting.
    Checkpoint,
    /// Waits for the writer, and checkpoints everything.
    CheckpointFull,
    /// The same, and has the next writer begin the WAL anew.
    CheckpointRestart,
    /// The same, and cuts the WAL to nothing.
    CheckpointTruncate,
}

/// What a process does until it is killed or told to drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Makes the file and its schema, then ends. Never killed.
    Founder,
    /// Keeps tasks ready, and takes back claims whose lease ran out.
    Dispatcher,
    /// Claims a task, beats, appends events under its token, completes it; sometimes overstays.
    Worker,
    /// Appends bursts of events without a claim.
    Reviewer,
    /// Reads the board in read transactions.
    Reader,
    /// A worker that comes and goes: for each task a process of its own, which opens a connection,
    /// claims, works, closes and ends.
    Visitor,
    /// Owns the checkpoints of a database whose writers do none.
    Checkpointer,
    /// Performs the steps of its script once, whatever comes of each, and ends.
    Script,
}

/// Through what a process writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The hardened store.
    Hardboard,
    /// The same board on plain SQLite: no fencing, no constraints, no read-back of pragmas.
    Baseline,
    /// The plain board with a fault built in, which the oracles must find.
    Flawed(Flaw),
}

/// A way to be wrong, for the canaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flaw {
    /// Tells that an operation is committed, and commits it a little later.
    AckBeforeCommit,
    /// Commits one operation as two transactions.
    SplitTransaction,
    /// Gives a task away while its owner's run is still live.
    DoubleClaim,
    /// Has leases and no fencing: whoever finds a lease expired, by its own wall clock, takes the
    /// task, and whoever still holds an old claim may write under it.
    LeaseOnly,
    /// Tells that an operation was refused after it has committed it.
    RefusedButApplied,
    /// Writes events that nobody asked for.
    AlienWrite,
    /// Writes an event of a task that does not exist, with foreign keys off.
    OrphanEvent,
    /// Opens its connection with another `synchronous` than it was asked for.
    OtherSynchronous,
    /// Does not end when it is asked to.
    NeverEnds,
    /// Has `journal_mode` off: a kill may tear a transaction over several pages.
    NoJournal,
    /// Looks for a task to claim in one transaction, under the write lock, and claims it in the
    /// next one without a second look.
    CheckThenAct,
    /// The hardened store without its one checkpoint owner: SQLite's own automatic checkpoints, by
    /// whoever commits.
    NoOwner,
    /// Does not sync the WAL before a checkpoint writes to the database.
    NoWalSync,
    /// Does not sync the directory in which it has made a file.
    NoDirectorySync,
    /// Promises that a commit survives a power cut, and commits with NORMAL.
    PowerByNormal,
}

/// What a connection is asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    /// `PRAGMA synchronous`.
    pub synchronous: Synchronous,
    /// `PRAGMA wal_autocheckpoint`, in pages; 0 is none.
    pub wal_autocheckpoint: u32,
    /// `PRAGMA journal_mode`; the hardened store knows WAL only.
    #[serde(default)]
    pub journal: Journal,
    /// `PRAGMA page_size` of a new database, bytes; 0 is SQLite's own. Not for the hardened store.
    #[serde(default)]
    pub page_bytes: u32,
}

/// A journal mode.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Journal {
    /// A write-ahead log.
    #[default]
    Wal,
    /// A rollback journal, removed at each commit.
    Delete,
}

impl Journal {
    /// As `PRAGMA journal_mode` spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Delete => "delete",
        }
    }
}

/// The shape of the work: sizes, counts and waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Shape {
    /// How long a claim is leased, ms.
    pub lease_ms: u32,
    /// How many tasks the dispatchers keep ready.
    pub tasks_ready: u32,
    /// Heartbeats from a claim to its completion.
    pub heartbeats_per_claim: u32,
    /// Events of one burst of a reviewer.
    pub events_per_burst: u32,
    /// Events of one append, least and most.
    pub events_per_append: [u32; 2],
    /// Bytes of one event's payload, least and most.
    pub payload_bytes: [u32; 2],
    /// Of 100 claims, how many are overstayed: the worker stops beating until the lease has run
    /// out, and then goes on as if nothing had been.
    pub overstays_per_100_claims: u32,
    /// Of 100 claims, and of 100 operations of a dispatcher, how many are followed by a step of the
    /// wall clock of that process, forward or back.
    #[serde(default)]
    pub clock_steps_per_100: u32,
    /// How far the wall clock steps, s.
    #[serde(default)]
    pub clock_step_s: u32,
    /// Pause between two operations, µs, least and most; 0 is none.
    pub pause_us: [u32; 2],
    /// A checkpoint owner checkpoints when the WAL holds this many pages.
    pub checkpoint_pages: u32,
    /// How long a connection waits for a lock before it reports busy, ms.
    pub busy_timeout_ms: u32,
}
