//! What was seen, as it happened: JSON Lines that can be judged again.
//!
//! | line          | when it is written                    | holds                            |
//! |---------------|---------------------------------------|----------------------------------|
//! | `header`      | first                                 | scenario, seed, machine          |
//! | `planned`     | before a cycle's processes are forked | the [`CyclePlan`]                |
//! | `timed`       | when its cycle is over                | how long opening and writing took |
//! | `life`        | likewise, one a process               | ledger, settings, exit           |
//! | `killed`      | likewise, one a kill sent             | the receipt                      |
//! | `paused`      | likewise, one a pause made            | the receipt                      |
//! | `observed`    | likewise, last of its cycle           | what recovery gave               |
//! | `end`         | last                                  | whether the run came to its end  |
//!
//! Every name of a number ends in its unit; a 128-bit digest is a hexadecimal string. A reader must
//! bear a torn last line: it is what a killed harness leaves.
//!
//! Not here: any judgement. A line says what was planned or seen, never whether it was right.

pub mod content;
pub mod power;
mod file;

pub use file::{HistoryError, Reader, Span, Writer};

use crate::plan::{CyclePlan, Moment};
use crate::scenario::Scenario;
use content::{CommitRow, EventGroup, RunRow, TaskRow, Totals};
use hardboard::Durability;
use killpoint_worker::ledger::{Activity, Effective, Kind, Loaded, Reason, Record as Entry, State};
use killpoint_worker::wire::{EngineName, Exit, Role};
use serde::{Deserialize, Serialize};

/// The version of the lines' format.
pub const SCHEMA: u32 = 2;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Line {
    /// What is run, and where.
    Header(Box<Header>),
    /// A cycle is about to begin.
    Planned(CyclePlan),
    /// How long its parts took.
    Timed(Timing),
    /// What one process did.
    Life(Life),
    /// A kill that was sent.
    Killed(Receipt),
    /// A pause that was made.
    Paused(Pause),
    /// What recovery gave at the end of a cycle.
    Observed(Box<Observation>),
    /// The run came to its end.
    End(End),
}

/// What is run, and where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Header {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The scenario's name.
    pub name: String,
    /// The scenario, whole: a history needs no other file to be judged.
    pub scenario: Scenario,
    /// Hexadecimal.
    pub seed: String,
    /// The version of killpoint.
    pub killpoint: String,
    /// The SQLite that recovered the copies, `3.54.1`: the bundled one, whatever wrote them.
    pub judge_sqlite_version: String,
    /// The library that the command line named, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_engine: Option<std::path::PathBuf>,
}

/// How the run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct End {
    /// Whether it was stopped before all cycles were done.
    pub interrupted: bool,
}

/// How long the parts of a cycle took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Timing {
    /// Which database.
    pub generation: u32,
    /// Which of its cycles.
    pub cycle: u32,
    /// From the fork of all to the last connection's opening. Those who open first write already.
    pub open_us: u64,
    /// From there to the ending.
    pub write_us: u64,
}

/// What one process did in a cycle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Life {
    /// Which database.
    pub generation: u32,
    /// Which of its cycles.
    pub cycle: u32,
    /// Its place in the plan.
    pub slot: usize,
    /// What its operations are known by.
    pub session: i64,
    /// What it did.
    pub role: Role,
    /// Which SQLite it was to run on.
    #[serde(default)]
    pub engine: EngineName,
    /// Which SQLite it did run on, in the library's own words; none if it never came so far.
    pub loaded: Option<Loaded>,
    /// The pragmas that it read back; none if it never opened its connection.
    pub effective: Option<Effective>,
    /// How it ended.
    pub exit: Exit,
    /// What it was doing then.
    pub activity: Activity,
    /// Whether it had to be killed because it did not end in time.
    pub hung: bool,
    /// Whether its ledger was full.
    pub ledger_full: bool,
    /// The last error's text.
    pub message: Option<String>,
    /// What the shim counted.
    pub counters: Counters,
    /// Its operations, from number 1.
    pub ops: Vec<Op>,
}

/// What the shim counted in one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counters {
    /// xSync calls on the database.
    pub database_syncs: u64,
    /// xSync calls on the WAL.
    pub log_syncs: u64,
    /// Bytes written to the database.
    pub database_bytes: u64,
    /// Bytes written to the WAL.
    pub log_bytes: u64,
    /// The end of the farthest write to the WAL.
    pub wal_end_max_bytes: u64,
    /// Checkpoints that wrote a page.
    pub checkpoints: u64,
    /// Time in them.
    pub checkpoint_ns: u64,
    /// The longest of them.
    pub checkpoint_ns_max: u64,
}

/// One operation: an array on the line, to keep lines short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OpColumns", into = "OpColumns")]
pub struct Op {
    /// What it does.
    pub kind: Kind,
    /// What its writer was told.
    pub state: State,
    /// Why it was refused.
    pub reason: Reason,
    /// Event rows it was to append.
    pub rows: u32,
    /// The task, 0 where it was not known.
    pub task: i64,
    /// The token, 0 for none.
    pub token: i64,
    /// The commit's number, 0 unless acknowledged.
    pub seq: i64,
    /// From sent to answered, ns.
    pub total_ns: u64,
    /// In COMMIT, ns.
    pub commit_ns: u64,
    /// What the acknowledgement promised to survive.
    pub durability: Durability,
    /// When it was sent, µs after the last connection's opening; 0 if before.
    pub started_us: u64,
}

type OpColumns = (Kind, State, Reason, u32, i64, i64, i64, u64, u64, Durability, u64);

impl From<OpColumns> for Op {
    fn from(columns: OpColumns) -> Self {
        let (kind, state, reason, rows, task, token, seq, total_ns, commit_ns, durability, us) =
            columns;
        Self {
            kind,
            state,
            reason,
            rows,
            task,
            token,
            seq,
            total_ns,
            commit_ns,
            durability,
            started_us: us,
        }
    }
}

impl From<Op> for OpColumns {
    fn from(op: Op) -> Self {
        (
            op.kind,
            op.state,
            op.reason,
            op.rows,
            op.task,
            op.token,
            op.seq,
            op.total_ns,
            op.commit_ns,
            op.durability,
            op.started_us,
        )
    }
}

impl Op {
    /// From a ledger's entry; times count from `began_ns` of the monotonic clock.
    #[must_use]
    pub fn of(entry: &Entry, began_ns: u64) -> Self {
        Self {
            kind: entry.kind,
            state: entry.state,
            reason: entry.reason,
            rows: entry.rows,
            task: entry.task,
            token: entry.token,
            seq: entry.seq,
            total_ns: entry.total_ns,
            commit_ns: entry.commit_ns,
            durability: entry.durability,
            started_us: entry.started_ns.saturating_sub(began_ns) / 1_000,
        }
    }
}

/// A kill that was sent: what was planned, and what it met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Receipt {
    /// Which database.
    pub generation: u32,
    /// Which of its cycles.
    pub cycle: u32,
    /// Which kill of the cycle's plan, from 0; none for the ending.
    pub planned: Option<usize>,
    /// The victim's slot.
    pub slot: usize,
    /// The moment that was waited for.
    pub moment: Moment,
    /// Whether that moment was seen, rather than the wait for it run out.
    pub met: bool,
    /// When it was sent, µs after the last connection's opening; 0 if before.
    pub at_us: u64,
    /// What the victim was doing when it ended.
    pub activity: Activity,
}

/// A pause that was made: what was planned, and what it met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pause {
    /// Which database.
    pub generation: u32,
    /// Which of its cycles.
    pub cycle: u32,
    /// Which pause of the cycle's plan, from 0.
    pub planned: usize,
    /// The victim's slot.
    pub slot: usize,
    /// The task whose claim it held.
    pub task: i64,
    /// The token of that claim.
    pub token: i64,
    /// When it was stopped, µs after the last connection's opening.
    pub at_us: u64,
    /// For how long, µs.
    pub for_us: u64,
    /// What it was doing.
    pub activity: Activity,
}

/// What two recoveries of copies of the files gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Observation {
    /// Which database.
    pub generation: u32,
    /// Which of its cycles.
    pub cycle: u32,
    /// Sizes before recovery, bytes: database, WAL.
    pub database_bytes: u64,
    /// See above; 0 when there is none.
    pub wal_bytes: u64,
    /// Why the files could not be read, if they could not: SQLite's words.
    pub unreadable: Option<String>,
    /// The complaints of `PRAGMA integrity_check`, none when it said ok.
    pub integrity: Vec<String>,
    /// The complaints of `PRAGMA foreign_key_check`.
    pub foreign_keys: Vec<String>,
    /// BLAKE3 of the database file after recovery and a checkpoint: first copy.
    pub first_file: String,
    /// The same after a second checkpoint.
    pub first_file_again: String,
    /// The same of the second copy.
    pub second_file: String,
    /// Rows with a commit number up to this are in `totals` only.
    pub since: i64,
    /// Rows and digest of each table, whole.
    pub totals: Totals,
    /// `commits` after `since`; of an unreadable file those that can be read all the same.
    pub commits: Vec<CommitRow>,
    /// `events` after `since`, by commit.
    pub events: Vec<EventGroup>,
    /// `tasks` created or changed after `since`.
    pub tasks: Vec<TaskRow>,
    /// `runs` begun or changed after `since`.
    pub runs: Vec<RunRow>,
}
