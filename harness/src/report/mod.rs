//! What a run tells: `report.json`, `SUMMARY.md`, JUnit XML, and the lines for a person.
//!
//! The [`Report`] is the whole of it; every other form is made from a `Report` alone, so that a
//! summary can be made again from the file. No form reads a clock.
//!
//! # The file
//!
//! Names of `report.json` are fixed; more may be added, and [`SCHEMA`] is raised when one changes
//! its meaning. Every name of a number ends in its unit or is a count. `bounds` holds one-sided 95
//! % upper bounds by Clopper and Pearson: 0 of n seen means at most 3/n, not never.

pub mod bound;
pub mod cost;
pub mod exec;
pub mod junit;
pub mod power;
pub mod schedule;
pub mod summary;
pub mod sweep;
pub mod table;
pub mod text;
pub mod tune;

use crate::exit::Exit;
use crate::run::machine::Machine;
use crate::scenario::Expect;
use crate::verdict::{Finding, Verdict};
use killpoint_worker::ledger::Activity;
use killpoint_worker::wire::{EngineName, Role};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of `report.json`.
pub const SCHEMA: u32 = 1;

/// What a run does not show, for every report.
pub const NOT_SHOWN: [&str; 3] = [
    "SIGKILL leaves the page cache alive: nothing here says what a power cut or a kernel crash \
     does, and no kill can tell synchronous OFF, NORMAL, FULL and EXTRA apart. \
     Power loss: not measured.",
    "Kills land at moments, not at every system call; interleavings are those that this machine's \
     scheduler happened to make.",
    "One machine, one file system, one build of SQLite: those named here.",
];

/// One run of the command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The version of killpoint.
    pub killpoint: String,
    /// The command, as it can be given again.
    pub command: String,
    /// Hexadecimal.
    pub seed: String,
    /// What was under test.
    pub engine: Engine,
    /// Where it ran.
    pub machine: Machine,
    /// What the process ends with.
    pub exit_code: u8,
    /// The most memory of the harness and of the greatest of its processes, MiB.
    pub peak_memory_mib: [u64; 2],
    /// Why the harness could not go on, if it could not.
    pub error: Option<String>,
    /// One for each scenario and round.
    pub scenarios: Vec<ScenarioReport>,
    /// One for each row of the table; of `tune` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub configs: Vec<cost::Config>,
    /// One for each sweep file; of `sweep` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sweeps: Vec<sweep::SweepReport>,
    /// One for each scenario or recording; of `power` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub powers: Vec<power::PowerReport>,
    /// What was run; of `exec` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub execs: Vec<exec::ExecReport>,
    /// One for each scenario of schedules and round.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedules: Vec<schedule::ScheduleReport>,
    /// What the rows come to; of `tune` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recommendation: Option<String>,
    /// What the run does not show.
    pub not_shown: Vec<String>,
}

/// What was under test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// As the processes under test report the library that they loaded; joined by commas.
    pub sqlite_version: String,
    /// The SQLite that recovered and read copies of the files: the bundled one, whoever wrote them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub judge_sqlite_version: String,
}

/// Processes of one role that ran on one SQLite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineReport {
    /// The role.
    pub role: Role,
    /// Which engine was asked for.
    pub engine: EngineName,
    /// The version that the library itself reports, `3.50.2`.
    pub sqlite_version: String,
    /// The source id that the library itself reports.
    pub source_id: String,
    /// How many processes.
    pub processes: u64,
}

/// One scenario under one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScenarioReport {
    /// Its name: `reports/heartbeat-reclaim`.
    pub name: String,
    /// What it is to show.
    pub claim: String,
    /// The verdict that shows it.
    pub expect: Expect,
    /// Whether it is a control.
    pub canary: bool,
    /// Hexadecimal.
    pub seed: String,
    /// What it gave.
    pub verdict: Verdict,
    /// Whether that is what was expected.
    pub as_expected: bool,
    /// The first findings.
    pub findings: Vec<Finding>,
    /// All findings, by kind.
    pub findings_by_kind: BTreeMap<String, u64>,
    /// Counts.
    #[serde(flatten)]
    pub counts: Counts,
    /// Wall time, ms.
    pub elapsed_ms: u64,
    /// Cycles a second, judging included.
    pub cycles_per_s: f64,
    /// Lanes at once.
    pub jobs: usize,
    /// Processes of one cycle.
    pub processes: usize,
    /// Where the lanes' time went, ms.
    pub spent_ms: SpentMs,
    /// The counts of each setting.
    pub settings: Vec<SettingReport>,
    /// 95 % upper bounds.
    pub bounds: Bounds,
    /// Where databases were kept that something was found in.
    pub evidence: Vec<String>,
}

/// Counts of one scenario or setting.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Cycles judged.
    pub cycles: u64,
    /// Of those, ended by drain, checkpoint and close.
    pub graceful_cycles: u64,
    /// Processes killed.
    pub process_kills: u64,
    /// By what the victim was doing when it ended.
    pub kills_by_activity: BTreeMap<Activity, u64>,
    /// Operations acknowledged.
    pub acked_ops: u64,
    /// Of those, absent.
    pub lost_acked_ops: u64,
    /// Operations refused.
    pub refused_ops: u64,
    /// Of those, under a claim that was no longer live.
    pub stale_refused_ops: u64,
    /// Claims acknowledged.
    #[serde(default)]
    pub claims: u64,
    /// Pauses of a worker that held a claim.
    #[serde(default)]
    pub pauses: u64,
    /// Of those, in which it lost its claim.
    #[serde(default)]
    pub pauses_past_lease: u64,
    /// Operations in flight at a kill.
    pub unknown_ops: u64,
    /// Of those, there.
    pub unknown_kept_ops: u64,
    /// Cycles with damage.
    pub corrupt_cycles: u64,
}

impl Counts {
    /// The share of kills that landed inside a write transaction: body, commit or its checkpoint.
    #[must_use]
    pub fn in_flight_share(&self) -> f64 {
        let of = |activity| self.kills_by_activity.get(&activity).copied().unwrap_or(0);
        let inside = of(Activity::Transaction) + of(Activity::Commit);
        ratio(inside, self.process_kills)
    }
}

/// Counts of one setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingReport {
    /// `full+100`.
    pub name: String,
    /// What it was to give, where it had an expectation of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    /// What it gave, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Cycles in which a promise was broken.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed_cycles: u64,
    /// When the first acknowledged operation that is lost was sent, ms from its cycle's beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_loss_ms: Option<u64>,
    /// Which SQLite its processes really loaded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<EngineReport>,
    /// Counts.
    #[serde(flatten)]
    pub counts: Counts,
}

/// Where the lanes' time went, ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpentMs {
    /// Making databases.
    pub founding: u64,
    /// From fork to the end of the last process: opening, writing, killing.
    pub processes: u64,
    /// Copying files, recovering copies, checking and reading them.
    pub recovery: u64,
    /// Writing and reading the history, judging.
    pub judging: u64,
}

/// One-sided 95 % upper bounds of Clopper and Pearson.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bounds {
    /// Of the share of acknowledged operations that are lost.
    pub lost_acked_op_share: f64,
    /// Of the share of cycles that leave damage.
    pub corrupt_cycle_share: f64,
}

/// `part` of `whole`; 0 of nothing is 0.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts here stay far below 2^52")]
pub fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Report {
    /// The report of a command that has nothing to report yet.
    #[must_use]
    pub fn of(command: String, seed: u64, engine: Engine, machine: Machine, exit: Exit) -> Self {
        Self {
            schema: SCHEMA,
            killpoint: env!("CARGO_PKG_VERSION").to_owned(),
            command,
            seed: format!("{seed:#x}"),
            engine,
            machine,
            exit_code: exit.code(),
            peak_memory_mib: crate::run::machine::peak_memory_mib(),
            error: None,
            scenarios: Vec::new(),
            configs: Vec::new(),
            sweeps: Vec::new(),
            powers: Vec::new(),
            execs: Vec::new(),
            schedules: Vec::new(),
            recommendation: None,
            not_shown: Vec::new(),
        }
    }

    /// The file's text.
    ///
    /// # Errors
    ///
    /// None of the values can fail to be written; serde wants the type.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    /// A report from a file's text.
    pub fn from_json(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }
}
