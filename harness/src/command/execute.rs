//! From a plan to what it showed: lanes that run, write the history, read it back and judge it.
//!
//! This is the one place where `run` and `oracle` meet, and only through lines that have been in
//! the history's file. Each lane does one database at a time; lanes share the list of databases
//! still to be done, the history's file, and nothing else.

use crate::history::{self, Line, Writer};
use crate::oracle::{self, CycleJudgement, Judge, Tally};
use crate::plan::{CyclePlan, Generation, Plan};
use crate::run::{Engines, Lane, RunError};
use crate::scenario::Expect;
use crate::verdict::{Finding, FindingKind, Verdict};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Findings of one scenario that are kept word for word.
const FINDINGS_MAX: usize = 50;
/// Databases that are kept as evidence of one run.
const EVIDENCE_MAX: usize = 3;

/// How a plan is to be carried out.
pub(crate) struct Execution<'a> {
    /// Lanes at once.
    pub(crate) jobs: usize,
    /// Where the databases lie: a directory of ours, removed when all is well.
    pub(crate) dir: &'a Path,
    /// Where the history goes.
    pub(crate) history: &'a Path,
    /// Where databases go that something was found in.
    pub(crate) evidence: &'a Path,
    /// Operations that one process can record in one cycle.
    pub(crate) ops_max: usize,
    /// When to stop, at the end of a round over all settings but not before one is whole.
    pub(crate) deadline: Option<Instant>,
    /// Set when a person wants it to end.
    pub(crate) interrupted: &'a AtomicBool,
    /// What the processes run on, made ready.
    pub(crate) engines: &'a Engines,
    /// The library that the command line names, if it does.
    pub(crate) given_engine: Option<&'a Path>,
    /// Told of each cycle.
    pub(crate) watch: &'a dyn Watch,
}

/// Is told of each cycle when it has been judged.
pub(crate) trait Watch: Sync {
    fn cycle(&self, plan: &CyclePlan, lines: &[Line], judgement: &CycleJudgement);
}

/// What carrying out a plan showed.
pub(crate) struct Executed {
    /// All cycles together.
    pub(crate) tally: Tally,
    /// By setting.
    pub(crate) settings: Vec<Tally>,
    /// The first findings, in order of discovery; those of the whole run last.
    pub(crate) findings: Vec<Finding>,
    /// What the run as a whole lacks; among the findings, too.
    pub(crate) lacking: Vec<FindingKind>,
    /// From the merge of all findings.
    pub(crate) verdict: Verdict,
    /// Wall time.
    pub(crate) elapsed: Duration,
    /// Lane time, by what it went into.
    pub(crate) spent: Spent,
    /// Databases that were kept.
    pub(crate) evidence: Vec<PathBuf>,
    /// What kept the harness from going on.
    pub(crate) error: Option<RunError>,
}

/// Time of all lanes together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// Making databases.
    pub(crate) found: Duration,
    /// From fork to the end of the last process.
    pub(crate) processes: Duration,
    /// Copying, recovering and reading.
    pub(crate) observe: Duration,
    /// Writing and reading the history, judging.
    pub(crate) judge: Duration,
}

struct Shared {
    executed: Executed,
    stop: bool,
    /// Settings that have shown what they were to show, where each has a verdict of its own.
    settled: Vec<bool>,
    generations: Box<dyn Iterator<Item = Generation> + Send>,
}

/// Carries out `plan`.
pub(crate) fn execute(plan: &Plan, execution: &Execution<'_>) -> Result<Executed, RunError> {
    let history = Writer::create(execution.history)?;
    history.append([&header(plan, execution.given_engine)])?;
    let began = Instant::now();
    let shared = Mutex::new(Shared {
        executed: Executed {
            tally: Tally::default(),
            settings: vec![Tally::default(); plan.scenario.setting.len()],
            findings: Vec::new(),
            lacking: Vec::new(),
            verdict: Verdict::Pass,
            elapsed: Duration::ZERO,
            spent: Spent::default(),
            evidence: Vec::new(),
            error: None,
        },
        stop: false,
        settled: vec![false; plan.scenario.setting.len()],
        generations: Box::new(plan.generations()),
    });
    std::thread::scope(|scope| {
        for index in 0..execution.jobs {
            let worker = Worker { plan, execution, history: &history, shared: &shared, began };
            let dir = execution.dir.join(format!("lane-{index}"));
            scope.spawn(move || {
                if let Err(error) = worker.work(&dir) {
                    let mut shared = worker.shared();
                    shared.stop = true;
                    shared.executed.error.get_or_insert(error);
                }
            });
        }
    });
    let mut executed = shared.into_inner().unwrap_or_else(PoisonError::into_inner).executed;
    executed.elapsed = began.elapsed();
    let cut = execution.interrupted.load(Ordering::Relaxed);
    let interrupted = cut || executed.error.is_some();
    history.append([&Line::End(history::End { interrupted })])?;
    let lacking = oracle::judge_whole(plan, &executed.tally, interrupted);
    executed.lacking = lacking.iter().map(|finding| finding.kind).collect();
    executed.findings.extend(lacking);
    executed.verdict = Verdict::merge(
        std::iter::once(executed.verdict)
            .chain(executed.findings.iter().map(|finding| finding.kind.verdict())),
    );
    Ok(executed)
}

fn header(plan: &Plan, given_engine: Option<&Path>) -> Line {
    Line::Header(Box::new(history::Header {
        schema: history::SCHEMA,
        name: plan.name.clone(),
        scenario: plan.scenario.clone(),
        seed: format!("{:#x}", plan.seed),
        killpoint: env!("CARGO_PKG_VERSION").to_owned(),
        judge_sqlite_version: rusqlite::version().to_owned(),
        given_engine: given_engine.map(Path::to_owned),
    }))
}

#[derive(Clone, Copy)]
struct Worker<'a> {
    plan: &'a Plan,
    execution: &'a Execution<'a>,
    history: &'a Writer,
    shared: &'a Mutex<Shared>,
    began: Instant,
}

impl Worker<'_> {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        // Another lane's panic leaves counts that are at most one cycle short.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, dir: &Path) -> Result<(), RunError> {
        let mut lane = Lane::start(dir, self.execution.ops_max, self.execution.engines)?;
        while let Some(generation) = self.next() {
            let from = Instant::now();
            lane.found(self.plan, generation)?;
            self.shared().executed.spent.found += from.elapsed();
            self.generation(&mut lane, generation)?;
        }
        lane.discard()
    }

    /// The next database to do, if any is to be done.
    fn next(&self) -> Option<Generation> {
        let mut shared = self.shared();
        if shared.stop || self.execution.interrupted.load(Ordering::Relaxed) {
            return None;
        }
        let mut generation = shared.generations.next()?;
        while shared.settled[generation.setting] {
            generation = shared.generations.next()?;
        }
        let round_begins = generation.setting == 0 && generation.index > 0;
        if round_begins && self.no_time_for_a_round(generation) {
            shared.stop = true;
            return None;
        }
        Some(generation)
    }

    /// Whether a round like those before would end after the deadline.
    fn no_time_for_a_round(&self, next: Generation) -> bool {
        let Some(deadline) = self.execution.deadline else { return false };
        let settings = u32::try_from(self.plan.scenario.setting.len()).unwrap_or(1);
        let rounds = (next.index / settings.max(1)).max(1);
        Instant::now() + self.began.elapsed() / rounds > deadline
    }

    /// What the setting of a cycle is to show.
    fn expect_of(&self, plan: &CyclePlan) -> Expect {
        let scenario = &self.plan.scenario;
        scenario.expect_of(scenario.setting[plan.setting])
    }

    fn generation(&self, lane: &mut Lane, generation: Generation) -> Result<(), RunError> {
        let mut judge = Judge::default();
        for index in 0..generation.cycles {
            let stop = self.shared().stop;
            if stop || self.execution.interrupted.load(Ordering::Relaxed) {
                return Ok(());
            }
            let plan = self.plan.cycle(generation, index);
            if self.cycle(lane, &mut judge, &plan)? == Verdict::Fail {
                // The model no longer follows this database: the next cycles go to another.
                return self.keep_evidence(lane, &plan);
            }
        }
        Ok(())
    }

    fn cycle(
        &self,
        lane: &mut Lane,
        judge: &mut Judge,
        plan: &CyclePlan,
    ) -> Result<Verdict, RunError> {
        let from = Instant::now();
        self.history.append([&Line::Planned(plan.clone())])?;
        let lines = lane.cycle(plan)?;
        let (processes, observe) = lane.spent();
        let span = self.history.append(&lines)?;
        // What is judged is what the file holds, not what this lane remembers.
        let lines = self.history.read(span)?;
        let judgement = judge.cycle(plan, &lines);
        let verdict = judgement.verdict();
        let mut shared = self.shared();
        let executed = &mut shared.executed;
        executed.spent.processes += processes;
        executed.spent.observe += observe;
        executed.spent.judge += from.elapsed().saturating_sub(processes + observe);
        executed.tally.add(&judgement.tally);
        executed.settings[plan.setting].add(&judgement.tally);
        executed.verdict = executed.verdict.max(verdict);
        let room = FINDINGS_MAX.saturating_sub(executed.findings.len());
        executed.findings.extend(judgement.findings.iter().take(room).cloned());
        let done = match self.expect_of(plan) {
            Expect::Fail(kind) => judgement.findings.iter().any(|found| found.kind == kind),
            Expect::Pass | Expect::Inconclusive(_) => verdict == Verdict::Fail,
        };
        if done && !self.plan.scenario.cycles.to_the_end {
            if self.plan.scenario.settings_differ() {
                shared.settled[plan.setting] = true;
            } else {
                shared.stop = true;
            }
        }
        drop(shared);
        self.execution.watch.cycle(plan, &lines, &judgement);
        Ok(verdict)
    }

    /// Keeps the files as the cycle's processes left them, unless the finding was expected.
    fn keep_evidence(&self, lane: &mut Lane, plan: &CyclePlan) -> Result<(), RunError> {
        let expected = matches!(self.expect_of(plan), Expect::Fail(_));
        let kept = self.shared().executed.evidence.len();
        if expected || kept >= EVIDENCE_MAX {
            return Ok(());
        }
        let name = format!("database-{}-cycle-{}", plan.generation, plan.cycle);
        let to = self.execution.evidence.join(name);
        if let Some(from) = lane.keep() {
            copy_tree(&from, &to)?;
            self.shared().executed.evidence.push(to);
        }
        Ok(())
    }
}

pub(super) fn copy_tree(from: &Path, to: &Path) -> Result<(), RunError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| RunError::place(&path, source)
    };
    std::fs::create_dir_all(to).map_err(fail(to))?;
    for entry in std::fs::read_dir(from).map_err(fail(from))? {
        let entry = entry.map_err(fail(from))?;
        let copy = to.join(entry.file_name());
        std::fs::copy(entry.path(), &copy).map_err(fail(&copy))?;
    }
    Ok(())
}
