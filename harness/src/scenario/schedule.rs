//! What a run of schedules is asked for: a few processes, and who of them runs when.
//!
//! In: the text of a scenario file with a `[schedule]` table. Out: a checked [`Schedules`].
//! Not here: any one schedule, which is `plan`'s work.

use super::load::{self, Complaint};
use super::{FORMAT, ScenarioError, Setting};
use crate::run::trace::{ErrorCode, PhasePattern, Trap};
use crate::verdict::{FindingKind, Verdict};
use killpoint_worker::wire::{EngineName, Step, Target};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// One scenario of schedules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Schedules {
    /// The file's format: [`FORMAT`].
    pub format: u32,
    /// What the run is to show, in one sentence.
    pub claim: String,
    /// The verdict that shows it.
    pub expect: Expected,
    /// Whether this is a control.
    #[serde(default)]
    pub canary: bool,
    /// How the processes are scheduled.
    pub schedule: Schedule,
    /// What our own workers do; or else a command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
    /// Any program as the victim; or else our own workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Program>,
    /// How the database of our own workers is set; each setting gets the same schedules.
    #[serde(default)]
    pub setting: Vec<Setting>,
    /// What is broken on the way.
    #[serde(default)]
    pub faults: Faults,
    /// One schedule, word for word, in place of drawn ones: what `killpoint shrink` writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<Exact>,
}

/// One schedule, word for word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Exact {
    /// What the processes are told of chance follows from it; hexadecimal.
    pub seed: String,
    /// The processes, by slot.
    pub process: Vec<ExactProcess>,
    /// Where the schedule leaves the rule that needs no decision.
    #[serde(default)]
    pub preemption: Vec<Preemption>,
}

/// One process of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ExactProcess {
    /// The seed of its own choices; hexadecimal.
    pub seed: String,
    /// What it does, in order.
    pub script: Vec<Step>,
}

/// At a certain step of a process another one goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Preemption {
    /// The process that has run until then, by slot.
    pub slot: usize,
    /// Which step of its script it is at, from 1; 0 while it opens, and for programs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub op: u32,
    /// Its own step since that began, from 1; 0 is before its first of all.
    pub step: u32,
    /// Who goes on.
    pub to: usize,
    /// How far it goes on behind that step; none: it stands before the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trap: Option<Trap>,
}

/// The number that a hexadecimal text stands for.
#[must_use]
pub fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The verdict that a scenario of schedules is to give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expected {
    /// Every promise holds in every schedule.
    Pass,
    /// A promise is broken: at least one finding, and each first one of these kinds.
    Fail(Vec<FindingKind>),
}

impl Expected {
    /// Whether a verdict with findings of these kinds is what was expected.
    pub fn met(&self, verdict: Verdict, kinds: impl IntoIterator<Item = FindingKind>) -> bool {
        match self {
            Self::Pass => verdict == Verdict::Pass,
            Self::Fail(expected) => {
                verdict == Verdict::Fail && kinds.into_iter().any(|kind| expected.contains(&kind))
            }
        }
    }

    /// As a reader is told.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Pass => "pass".to_owned(),
            Self::Fail(kinds) => {
                let names: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
                format!("fail: {}", names.join(" or "))
            }
        }
    }
}

/// How the processes are scheduled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Schedule {
    /// Schedules of each setting.
    pub count: u32,
    /// Which SQLite our own workers run on.
    #[serde(default)]
    pub engine: EngineName,
    /// Who runs next.
    pub policy: Policy,
    /// Where else than at calls a process may be stopped.
    #[serde(default)]
    pub preempt: Preempt,
    /// Of 100 schedules, how many are run a second time and compared step by step.
    #[serde(default = "two")]
    pub twice_per_100: u32,
    /// Of 100 schedules, how many end with all processes killed; the others close.
    #[serde(default = "ten")]
    pub kill_endings_per_100: u32,
    /// A schedule that comes to no end within so many stops has a live-lock.
    #[serde(default = "many")]
    pub stops_max: u32,
    /// Seeds that are tried, each on its own: the run's, and others drawn from it.
    #[serde(default = "one")]
    pub seeds: u32,
    /// Go on after a finding, instead of stopping there.
    #[serde(default)]
    pub to_the_end: bool,
    /// Explore beside the schedules that showed something new, as every run with `--budget` does.
    #[serde(default)]
    pub steered: bool,
}

/// Who runs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Policy {
    /// Whoever has the highest priority. Priorities are random; at as many random steps whoever
    /// runs then gets the lowest (probabilistic concurrency testing, Burckhardt et al. 2010).
    Pct {
        /// Priority changes in one schedule: the depth, less one.
        changes: u32,
    },
    /// Anyone, drawn anew at about each so many-th step.
    RandomWalk {
        /// Steps.
        every: u32,
    },
    /// Each in turn, for so many steps.
    RoundRobin {
        /// Steps.
        steps: u32,
    },
    /// All at once, as the machine will; one call of about so many is delayed. Not replayable.
    Delay {
        /// Calls.
        every: u32,
        /// The longest delay, ms.
        ms_max: u32,
    },
}

/// Where else than at calls a process may be stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preempt {
    /// Nowhere.
    #[default]
    Calls,
    /// Where it touches a word of the wal-index, or after a random count of instructions where
    /// the machine has no watchpoints.
    WalIndex,
    /// After a random count of instructions.
    Steps,
}

/// What our own workers do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Work {
    /// Through which store.
    pub target: Target,
    /// Processes.
    pub processes: u32,
    /// Steps of each.
    pub steps: u32,
    /// How often each kind of step is drawn, in relation to the others.
    pub mix: BTreeMap<Step, u32>,
    /// Events of one append, least and most.
    #[serde(default = "one_event")]
    pub events: [u32; 2],
    /// Bytes of one event's payload, least and most.
    #[serde(default = "some_bytes")]
    pub payload_bytes: [u32; 2],
    /// How long a connection waits for a lock before it reports busy, ms; virtual time.
    #[serde(default = "ten_seconds")]
    pub busy_timeout_ms: u32,
    /// What each process does elsewhere before each step, least and most, µs: a sleep, which takes
    /// no time under a policy that chooses.
    #[serde(default)]
    pub pause_us: [u32; 2],
}

/// Any program as the victim. It runs in a new directory for each schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Program {
    /// Program and arguments. A word that names a file from where killpoint runs is made absolute.
    pub argv: Vec<String>,
    /// Copies that run at once; each finds its number in `KILLPOINT_COPY`.
    pub copies: u32,
    /// The database, relative to the directory.
    pub database: String,
    /// Run first, to its end, in the directory.
    #[serde(default)]
    pub setup: Vec<String>,
    /// A query with an acknowledged token as its parameter: gives something if it is there.
    #[serde(default)]
    pub check_sql: Option<String>,
}

/// What is broken on the way: how often in 100 schedules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Faults {
    /// A process is killed at a step.
    pub kills_per_100: u32,
    /// A process is killed inside a write.
    pub tears_per_100: u32,
    /// A call fails.
    pub errors_per_100: u32,
    /// With one of these.
    pub errors: Vec<ErrorCode>,
    /// A process is not chosen for many steps.
    pub pauses_per_100: u32,
    /// Faults fall at calls of these phases alone; none: at any.
    pub at: Vec<PhasePattern>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks for it")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

const fn one() -> u32 {
    1
}

const fn two() -> u32 {
    2
}

const fn ten() -> u32 {
    10
}

const fn many() -> u32 {
    200_000
}

const fn one_event() -> [u32; 2] {
    [1, 1]
}

const fn some_bytes() -> [u32; 2] {
    [20, 160]
}

const fn ten_seconds() -> u32 {
    10_000
}

/// Whether the text of a scenario file asks for schedules.
#[must_use]
pub fn is_one(text: &str) -> bool {
    toml::from_str::<toml::Table>(text).is_ok_and(|table| table.contains_key("schedule"))
}

/// Reads and checks the file at `path`.
pub fn load(path: &Path) -> Result<Schedules, ScenarioError> {
    load::read(path, &check)
}

/// Reads and checks a text, called `name` in complaints.
pub fn parse(name: &str, text: &str) -> Result<Schedules, ScenarioError> {
    load::parse_as(name, text, &check)
}

fn check(asked: &Schedules) -> Result<(), Complaint> {
    let complain = |path, text: &str| Err(Complaint { path, text: text.to_owned() });
    if asked.format != FORMAT {
        let found = asked.format;
        let text = format!("format {found} is not known: this reads {FORMAT}");
        return Err(Complaint { path: &["format"], text });
    }
    if asked.claim.trim().is_empty() {
        return complain(&["claim"], "the claim is empty: say what the run is to show");
    }
    if asked.schedule.count == 0 {
        return complain(&["schedule", "count"], "0 schedules show nothing");
    }
    if asked.schedule.seeds == 0 {
        return complain(&["schedule", "seeds"], "0 seeds show nothing");
    }
    match (&asked.work, &asked.command) {
        (Some(work), None) => check_work(asked, work),
        (None, Some(program)) => check_program(asked, program),
        _ => complain(&["schedule"], "write either [work] or [command], and not both"),
    }?;
    if let Some(exact) = &asked.exact {
        check_exact(asked, exact)?;
    }
    let s = &asked.schedule;
    let shares = [
        (&["schedule", "twice-per-100"] as &'static [_], s.twice_per_100),
        (&["schedule", "kill-endings-per-100"], s.kill_endings_per_100),
        (&["faults", "kills-per-100"], asked.faults.kills_per_100),
        (&["faults", "tears-per-100"], asked.faults.tears_per_100),
        (&["faults", "errors-per-100"], asked.faults.errors_per_100),
        (&["faults", "pauses-per-100"], asked.faults.pauses_per_100),
    ];
    if let Some((path, _)) = shares.into_iter().find(|(_, share)| *share > 100) {
        return complain(path, "a share of 100 is at most 100");
    }
    if asked.faults.errors_per_100 > 0 && asked.faults.errors.is_empty() {
        return complain(&["faults", "errors-per-100"], "say which: errors = [\"EIO\"]");
    }
    let zero = match s.policy {
        Policy::Pct { .. } => false,
        Policy::RandomWalk { every } | Policy::Delay { every, .. } => every == 0,
        Policy::RoundRobin { steps } => steps == 0,
    };
    if zero {
        return complain(&["schedule", "policy"], "0 steps are no turn: write at least 1");
    }
    Ok(())
}

fn check_exact(asked: &Schedules, exact: &Exact) -> Result<(), Complaint> {
    let complain = |path, text: &str| Err(Complaint { path, text: text.to_owned() });
    let seeds = exact.process.iter().map(|process| &process.seed).chain([&exact.seed]);
    if seeds.map(|seed| number(seed)).any(|seed| seed.is_none()) {
        return complain(&["exact", "seed"], "a seed is a hexadecimal number: \"0x5eed\"");
    }
    let processes = asked.work.as_ref().map_or(0, |work| work.processes as usize);
    if exact.process.len() != processes {
        return complain(&["exact"], "write one [[exact.process]] for each of work.processes");
    }
    let beyond = |preemption: &Preemption| preemption.slot.max(preemption.to) >= processes;
    if exact.preemption.iter().any(beyond) {
        return complain(&["exact", "preemption"], "a slot is 0 to work.processes less one");
    }
    Ok(())
}

fn check_work(asked: &Schedules, work: &Work) -> Result<(), Complaint> {
    let complain = |path, text: &str| Err(Complaint { path, text: text.to_owned() });
    if !(1..=16).contains(&work.processes) {
        return complain(&["work", "processes"], "1 to 16 processes can be scheduled");
    }
    if work.steps == 0 || work.mix.values().all(|weight| *weight == 0) {
        return complain(&["work", "mix"], "no steps: there would be nothing to schedule");
    }
    if work.events[0] == 0 || work.events[0] > work.events[1] {
        return complain(&["work", "events"], "write least and most, from 1");
    }
    if work.pause_us[0] > work.pause_us[1] {
        return complain(&["work", "pause-us"], "the range runs backwards");
    }
    if work.payload_bytes[0] > work.payload_bytes[1] {
        return complain(&["work", "payload-bytes"], "the range runs backwards");
    }
    if asked.setting.is_empty() {
        return complain(&["setting"], "no setting: write at least one [[setting]]");
    }
    Ok(())
}

fn check_program(asked: &Schedules, program: &Program) -> Result<(), Complaint> {
    let complain = |path, text: &str| Err(Complaint { path, text: text.to_owned() });
    if program.argv.is_empty() {
        return complain(&["command", "argv"], "no program");
    }
    if !(1..=16).contains(&program.copies) {
        return complain(&["command", "copies"], "1 to 16 copies can be scheduled");
    }
    if !asked.setting.is_empty() {
        return complain(&["setting"], "a command has its own settings: take this table out");
    }
    Ok(())
}
