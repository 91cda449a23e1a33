//! What a person asks for: the declarative file, before any random choice is made.
//!
//! Everything here is plain data. No type in this module holds a path, a clock reading or a random
//! number, so one file means the same thing on every machine and in every year.
//!
//! In: the text of one file of `scenarios/`. Out: a checked [`Scenario`].
//! Not here: turning "one kill in a commit" into a victim and a moment, which is `plan`'s work.

pub mod builtin;
mod check;
mod load;
pub mod power;
pub mod schedule;
pub mod sweep;

pub use load::{ScenarioError, load, parse};

use crate::verdict::{FindingKind, Verdict};
use hardboard::Synchronous;
use killpoint_worker::wire::{EngineName, Journal, Role, Settings, Target};
use serde::{Deserialize, Serialize};

/// The format that this version reads.
pub const FORMAT: u32 = 1;

/// One scenario file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// The file's format: [`FORMAT`].
    pub format: u32,
    /// What this run is to show, in one sentence.
    pub claim: String,
    /// The verdict that shows it.
    pub expect: Expect,
    /// Whether this is a control: its expectation missed means that the harness is blind.
    #[serde(default)]
    pub canary: bool,
    /// Which SQLite all processes run on, unless a setting says otherwise.
    #[serde(default)]
    pub engine: EngineName,
    /// How many processes of each role.
    pub writers: Writers,
    /// What they do.
    #[serde(default)]
    pub workload: Workload,
    /// How the database is set; each setting gets the same number of cycles.
    pub setting: Vec<Setting>,
    /// How often, how long.
    #[serde(default)]
    pub cycles: Cycles,
    /// Who is killed when.
    #[serde(default)]
    pub kill: Kills,
    /// Who is stopped, and for how long.
    #[serde(default)]
    pub pause: Pauses,
    /// What must be seen before a pass is one.
    #[serde(default)]
    pub least: Least,
}

/// The verdict that a scenario is to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// Every promise holds.
    Pass,
    /// A promise is broken, with a finding of this kind among the findings.
    Fail(FindingKind),
    /// It cannot be judged, with a finding of this kind among the findings.
    Inconclusive(FindingKind),
}

impl Expect {
    /// Whether a verdict with findings of these kinds is what was expected.
    pub fn met(self, verdict: Verdict, mut kinds: impl Iterator<Item = FindingKind>) -> bool {
        match self {
            Self::Pass => verdict == Verdict::Pass,
            Self::Fail(kind) => verdict == Verdict::Fail && kinds.any(|found| found == kind),
            Self::Inconclusive(kind) => {
                verdict == Verdict::Inconclusive && kinds.any(|found| found == kind)
            }
        }
    }

    /// As a reader is told.
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            Self::Pass => "pass".to_owned(),
            Self::Fail(kind) => format!("fail: {kind}"),
            Self::Inconclusive(kind) => format!("inconclusive: {kind}"),
        }
    }
}

/// How many processes of each role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Writers {
    /// They create tasks and take back expired claims.
    pub dispatcher: u32,
    /// They claim, beat, append and complete.
    pub worker: u32,
    /// They append bursts of events.
    pub reviewer: u32,
    /// They only read.
    pub reader: u32,
    /// They come and go: each task is a process of its own, which opens, works, closes and ends.
    pub visitor: u32,
}

/// What the processes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Workload {
    /// Through which store.
    pub target: Target,
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
    /// Of 100 claims, how many a worker holds on to after its lease has run out.
    pub overstays_per_100_claims: u32,
    /// Of 100 claims, and of 100 operations of a dispatcher, how many are followed by a step of the
    /// wall clock of that process, forward or back.
    pub clock_steps_per_100: u32,
    /// How far the wall clock steps, s.
    pub clock_step_s: u32,
    /// Pause between two operations, µs, least and most.
    pub pause_us: [u32; 2],
    /// How long a connection waits for a lock before it reports busy, ms.
    pub busy_timeout_ms: u32,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            target: Target::Hardboard,
            lease_ms: 20,
            tasks_ready: 6,
            heartbeats_per_claim: 2,
            events_per_burst: 50,
            events_per_append: [1, 6],
            payload_bytes: [20, 160],
            overstays_per_100_claims: 10,
            clock_steps_per_100: 0,
            clock_step_s: 3_600,
            pause_us: [0, 0],
            busy_timeout_ms: 5_000,
        }
    }
}

/// How the database is set, and what else differs from the scenario's other settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Setting {
    /// `PRAGMA synchronous`.
    pub synchronous: Synchronous,
    /// `PRAGMA wal_autocheckpoint`, pages; 0 is none.
    pub wal_autocheckpoint: u32,
    /// Whether one more process owns the checkpoints. Needed where `wal-autocheckpoint` is 0.
    #[serde(default)]
    pub checkpoint_owner: bool,
    /// `PRAGMA journal_mode`. The hardened store knows WAL only.
    #[serde(default)]
    pub journal_mode: Journal,
    /// `PRAGMA page_size`, bytes; 0 is SQLite's own choice. Not for the hardened store.
    #[serde(default)]
    pub page_bytes: u32,
    /// Workers, if not as many as the scenario has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
    /// Events of one append, least and most, if not the workload's: the size of transactions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events_per_append: Option<[u32; 2]>,
    /// Through which store, if not the workload's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// Which SQLite, if not the scenario's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineName>,
    /// The same for single roles.
    #[serde(default, skip_serializing_if = "EngineOf::is_empty")]
    pub engine_of: EngineOf,
    /// Whether each process that keeps its connection open also opens, reads and closes the
    /// database file by itself after each of its commits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub header_check: bool,
    /// The verdict that this setting is to give, if not the scenario's. With it every setting is
    /// held to its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
}

/// Which SQLite the processes of single roles run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct EngineOf {
    /// The dispatchers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispatcher: Option<EngineName>,
    /// The workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<EngineName>,
    /// The reviewers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reviewer: Option<EngineName>,
    /// The readers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reader: Option<EngineName>,
    /// The workers that come and go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visitor: Option<EngineName>,
}

impl EngineOf {
    /// Whether no role has one of its own.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Each role's, as far as it has one.
    #[must_use]
    pub fn by_role(self) -> [(Role, Option<EngineName>); 5] {
        [
            (Role::Dispatcher, self.dispatcher),
            (Role::Worker, self.worker),
            (Role::Reviewer, self.reviewer),
            (Role::Reader, self.reader),
            (Role::Visitor, self.visitor),
        ]
    }
}

impl Scenario {
    /// Which SQLite a process runs on.
    #[must_use]
    pub fn engine(&self, setting: Setting, role: Role) -> EngineName {
        let of_role = setting.engine_of.by_role().into_iter().find(|(of, _)| *of == role);
        of_role.and_then(|(_, engine)| engine).or(setting.engine).unwrap_or(self.engine)
    }

    /// The verdict that a setting is to give.
    #[must_use]
    pub fn expect_of(&self, setting: Setting) -> Expect {
        setting.expect.unwrap_or(self.expect)
    }

    /// Whether each setting is held to a verdict of its own, rather than all to one together.
    #[must_use]
    pub fn settings_differ(&self) -> bool {
        self.setting.iter().any(|setting| setting.expect.is_some())
    }

    /// Every SQLite that some process may run on.
    pub fn engines(&self) -> impl Iterator<Item = EngineName> {
        self.setting.iter().flat_map(|setting| {
            let roles = setting.engine_of.by_role().into_iter().filter_map(|(_, engine)| engine);
            roles.chain([setting.engine.unwrap_or(self.engine)])
        })
    }

    /// Has every process run on `engine`, whatever the scenario says.
    pub fn run_all_on(&mut self, engine: EngineName) {
        self.engine = engine;
        for setting in &mut self.setting {
            setting.engine = None;
            setting.engine_of = EngineOf::default();
        }
    }
}

impl Setting {
    /// What each connection is asked for.
    #[must_use]
    pub fn connection(self) -> Settings {
        Settings {
            synchronous: self.synchronous,
            wal_autocheckpoint: self.wal_autocheckpoint,
            journal: self.journal_mode,
            page_bytes: self.page_bytes,
        }
    }

    /// A short name, `full+100`, with all that sets it apart.
    #[must_use]
    pub fn name(self) -> String {
        let level = self.synchronous.as_str();
        let mut name = match self.journal_mode {
            Journal::Wal => format!("{level}+{}", self.wal_autocheckpoint),
            Journal::Delete => format!("{level}+delete"),
        };
        if self.page_bytes > 0 {
            name = format!("{name}+page{}", self.page_bytes);
        }
        if let Some(workers) = self.workers {
            name = format!("{name} {workers} workers");
        }
        if let Some([least, most]) = self.events_per_append {
            name = format!("{name} {least}-{most} events");
        }
        if self.checkpoint_owner {
            name.push_str("+owner");
        }
        if self.header_check {
            name.push_str("+header-check");
        }
        match self.target {
            Some(Target::Hardboard) => name.push_str(" hardboard"),
            Some(Target::Baseline) => name.push_str(" baseline"),
            Some(Target::Flawed(_)) => name.push_str(" flawed"),
            None => {}
        }
        if let Some(engine) = self.engine {
            name = format!("{name} on {}", engine.as_str());
        }
        for (role, engine) in self.engine_of.by_role() {
            if let Some(engine) = engine {
                let role = format!("{role:?}").to_lowercase();
                name = format!("{name}, {role} on {}", engine.as_str());
            }
        }
        name
    }
}

/// How often, how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Cycles {
    /// Cycles of each setting.
    pub count: u32,
    /// Cycles that a database goes through before a new one takes its place.
    pub per_database: u32,
    /// From the last connection's opening to the ending, ms, least and most.
    pub run_ms: [u32; 2],
    /// Each so many-th cycle ends gracefully (drain, checkpoint, close); 0: none does.
    pub graceful_every: u32,
    /// How long a process may take to end when it is asked to, ms; then it is killed and counts as
    /// hung.
    pub deadline_ms: u32,
    /// Go on after a finding, on a new database, instead of stopping there.
    pub to_the_end: bool,
}

impl Default for Cycles {
    fn default() -> Self {
        Self {
            count: 100,
            per_database: 10,
            run_ms: [3, 12],
            graceful_every: 4,
            deadline_ms: 20_000,
            to_the_end: false,
        }
    }
}

/// Process kills a cycle, by the moment that is waited for. Who is left at the end of a cycle is
/// killed too, all at once, unless the cycle ends gracefully.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Kills {
    /// Anyone, whatever it does.
    pub any_moment: u32,
    /// Anyone who holds the write lock and has written nothing yet.
    pub transaction: u32,
    /// Anyone whose transaction is being written.
    pub commit: u32,
    /// Anyone in a checkpoint.
    pub checkpoint: u32,
    /// Anyone whose claim the dispatcher has just taken back.
    pub taken_back: u32,
    /// A dispatcher, whatever it does.
    pub dispatcher: u32,
    /// How long a kill waits for its moment, even when the cycle would be over, ms.
    pub wait_ms: u32,
    /// Plan them all and send none: what the canary of the harness itself does.
    pub not_sent: bool,
    /// That nobody is killed, at a cycle's end neither, is what the scenario wants.
    pub none: bool,
}

impl Default for Kills {
    fn default() -> Self {
        Self {
            any_moment: 0,
            transaction: 0,
            commit: 0,
            checkpoint: 0,
            taken_back: 0,
            dispatcher: 0,
            wait_ms: 40,
            not_sent: false,
            none: false,
        }
    }
}

/// Pauses a cycle: SIGSTOP to a worker that holds a claim, and SIGCONT after a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Pauses {
    /// How many.
    pub count: u32,
    /// How long each is, ms, least and most. Longer than a lease, and the claim is lost meanwhile.
    pub ms: [u32; 2],
}

impl Default for Pauses {
    fn default() -> Self {
        Self { count: 0, ms: [30, 60] }
    }
}

/// What a run must have seen at least; less makes it inconclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Least {
    /// Claims that were acknowledged.
    pub claims: u64,
    /// Writes that were refused because their claim was no longer live.
    pub stale_refused: u64,
    /// Pauses in which the stopped worker lost its claim.
    pub pauses_past_lease: u64,
}
