//! `killpoint run`: scenarios, each under one seed, or under fresh ones until the budget is spent.

use super::engines::Choice;
use super::execute::{Executed, Execution, Spent, execute};
use super::place::Place;
use super::progress::{Progress, interruptible};
use super::{CommandError, print, say, schedule};
use crate::cli::{Common, Format, Run};
use crate::exit::Exit;
use crate::oracle::Tally;
use crate::plan::{Plan, round_seed};
use crate::report::{
    Bounds, Counts, Engine, EngineReport, NOT_SHOWN, Report, SCHEMA, ScenarioReport, SettingReport,
    SpentMs, bound, cost, junit, summary, text,
};
use crate::run::Engines;
use crate::run::machine::{self, Machine};
use crate::scenario::{self, Scenario, Setting, builtin};
use crate::verdict::{FindingKind, Verdict};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Operations that one process can record in one cycle.
const OPS_MAX: usize = 8_192;
/// Cycles that `--plan-only` prints of each database.
const PLANNED_MAX: u32 = 2;

/// Half as many lanes again as there are cores: a lane waits, for a moment or a disk, a third of
/// its time.
fn lanes() -> usize {
    machine::cores() + machine::cores().div_ceil(2)
}

/// Carries out the command.
pub(crate) fn run(run: &Run) -> Result<Exit, CommandError> {
    if run.files.iter().any(|file| schedule::is_one(file)) {
        return schedule::run(run);
    }
    let choice = Choice::of(&run.engine)?;
    let scenarios = gather(run, &choice)?;
    let seed = run.common.seed.unwrap_or_else(fresh_seed);
    if run.plan_only {
        return plan_only(&scenarios, seed);
    }
    let mut place = Place::make(&run.common)?;
    let jobs = run.jobs.map_or_else(lanes, usize::from);
    place.check_room(scenarios.iter().map(|(_, scenario)| scenario), jobs)?;
    let engines = choice.ready(scenarios.iter().flat_map(|(_, scenario)| scenario.engines()))?;
    let interrupted = interruptible()?;
    let command = command_line(run, seed);
    say(&format!("seed {seed:#x} · repeat: {command}"));
    let mut suite = Suite {
        engines: (&engines, choice.library.as_deref()),
        reports: Vec::new(),
        versions: BTreeSet::new(),
        exits: Vec::new(),
        error: None,
    };
    let began = Instant::now();
    for round in 0.. {
        for (name, scenario) in &scenarios {
            let plan = Plan::new(name, scenario, round_seed(seed, round));
            let deadline = run.common.budget.map(|budget| began + budget);
            suite.run_one(&plan, &place, jobs, (deadline, &interrupted), run.common.format)?;
            if suite.over(&interrupted) {
                break;
            }
        }
        let spent = run.common.budget.is_none_or(|budget| began.elapsed() >= budget);
        if spent || suite.over(&interrupted) || suite.gravest() != Exit::AsExpected {
            break;
        }
    }
    let exit = suite.gravest();
    let report = suite.report(command, seed, exit, &place);
    write_results(&report, &mut place, run.junit.as_deref(), exit)?;
    tell_end(&report, &place, exit);
    Ok(exit)
}

/// Loads everything before anything runs.
fn gather(run: &Run, choice: &Choice) -> Result<Vec<(String, Scenario)>, CommandError> {
    let mut scenarios = Vec::new();
    if run.canaries {
        for canary in builtin::CANARIES {
            let mut scenario = canary.load()?;
            choice.apply(&mut scenario);
            scenarios.push((canary.name.to_owned(), scenario));
        }
    }
    for file in &run.files {
        let mut scenario = scenario::load(file)?;
        if let Some(cycles) = run.cycles {
            scenario.cycles.count = cycles;
        }
        choice.apply(&mut scenario);
        scenarios.push((name_of(file), scenario));
    }
    if scenarios.is_empty() {
        return Err(CommandError::Usage(
            "nothing to run: name a scenario file, or give --canaries; `killpoint list` shows \
             what is built in"
                .to_owned(),
        ));
    }
    Ok(scenarios)
}

/// A scenario's name: its folder and file without the ending.
pub(super) fn name_of(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    match file.parent().and_then(Path::file_name) {
        Some(folder) => format!("{}/{stem}", folder.to_string_lossy()),
        None => stem.into_owned(),
    }
}

pub(super) fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = u64::try_from(since.as_nanos() & u128::from(u64::MAX)).unwrap_or(0);
    // 32 bits are enough to differ and short enough to copy by hand.
    crate::plan::Stream::new(time, &format!("seed/{}", std::process::id())).bits() >> 32
}

fn plan_only(scenarios: &[(String, Scenario)], seed: u64) -> Result<Exit, CommandError> {
    for (name, scenario) in scenarios {
        let plan = Plan::new(name, scenario, seed);
        for generation in plan.generations() {
            for cycle in 0..generation.cycles.min(PLANNED_MAX) {
                let line = serde_json::to_string(&plan.cycle(generation, cycle))
                    .map_err(|error| CommandError::Usage(error.to_string()))?;
                print(&(line + "\n"))?;
            }
        }
    }
    Ok(Exit::AsExpected)
}

/// The command that does the same again.
pub(super) fn command_line(run: &Run, seed: u64) -> String {
    let mut words = vec!["killpoint run".to_owned()];
    words.extend(run.files.iter().map(|file| file.display().to_string()));
    if run.canaries {
        words.push("--canaries".to_owned());
    }
    if let Some(cycles) = run.cycles {
        words.push(format!("--cycles {cycles}"));
    }
    if let Some(jobs) = run.jobs {
        words.push(format!("--jobs {jobs}"));
    }
    Choice::words(&run.engine, &mut words);
    common_words(&run.common, seed, &mut words);
    words.join(" ")
}

pub(super) fn common_words(common: &Common, seed: u64, words: &mut Vec<String>) {
    words.push(format!("--seed {seed:#x}"));
    if let Some(budget) = common.budget {
        words.push(format!("--budget {}", humantime::format_duration(budget)).replace(' ', ""));
        if let Some(last) = words.last_mut() {
            *last = last.replacen("--budget", "--budget ", 1);
        }
    }
    if let Some(dir) = &common.dir {
        words.push(format!("--dir {}", dir.display()));
    }
}

/// What has been run so far.
struct Suite<'a> {
    /// What the processes run on, and the library that the command line names.
    engines: (&'a Engines, Option<&'a Path>),
    reports: Vec<ScenarioReport>,
    versions: BTreeSet<u32>,
    exits: Vec<Exit>,
    error: Option<String>,
}

impl Suite<'_> {
    fn run_one(
        &mut self,
        plan: &Plan,
        place: &Place,
        jobs: usize,
        (deadline, interrupted): (Option<Instant>, &AtomicBool),
        format: Format,
    ) -> Result<(), CommandError> {
        let cycles = plan.generations().map(|generation| u64::from(generation.cycles)).sum();
        let progress = Progress::new(&plan.name, cycles);
        let executed = execute(
            plan,
            &Execution {
                jobs,
                dir: place.work.path(),
                history: &place.out.join("history.jsonl"),
                evidence: &place.out.join("evidence"),
                ops_max: OPS_MAX,
                deadline,
                interrupted,
                engines: self.engines.0,
                given_engine: self.engines.1,
                watch: &progress,
            },
        )?;
        drop(progress);
        self.versions.extend(loaded_versions(&executed.tally));
        let report = scenario_report(plan, jobs, &executed);
        let cut = interrupted.load(Ordering::Relaxed) && report.verdict == Verdict::Inconclusive;
        let exit = if cut {
            Exit::Inconclusive
        } else {
            Exit::of(report.as_expected, report.canary, report.verdict)
        };
        if let Some(error) = executed.error {
            self.exits.push(Exit::Failed);
            self.error = Some(one_line(&error));
        } else {
            self.exits.push(exit);
        }
        if exit != Exit::AsExpected {
            keep_history(&place.out, &plan.name, self.reports.len())?;
        }
        tell(&report, format)?;
        self.reports.push(report);
        Ok(())
    }

    fn over(&self, interrupted: &AtomicBool) -> bool {
        interrupted.load(Ordering::Relaxed) || self.error.is_some()
    }

    fn gravest(&self) -> Exit {
        Exit::merge(self.exits.iter().copied())
    }

    fn report(self, command: String, seed: u64, exit: Exit, place: &Place) -> Report {
        Report {
            schema: SCHEMA,
            killpoint: env!("CARGO_PKG_VERSION").to_owned(),
            command,
            seed: format!("{seed:#x}"),
            engine: engine(&self.versions),
            machine: Machine::here(place.work.path()),
            exit_code: exit.code(),
            peak_memory_mib: machine::peak_memory_mib(),
            error: self.error,
            scenarios: self.reports,
            configs: Vec::new(),
            sweeps: Vec::new(),
            powers: Vec::new(),
            execs: Vec::new(),
            schedules: Vec::new(),
            recommendation: None,
            not_shown: NOT_SHOWN.iter().map(|text| (*text).to_owned()).collect(),
        }
    }
}

/// An error and its sources in one line.
pub(super) fn one_line(error: &dyn std::error::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `3054001` as `3.54.1`.
pub(super) fn version(number: u32) -> String {
    format!("{}.{}.{}", number / 1_000_000, number / 1_000 % 1_000, number % 1_000)
}

/// The versions that the processes loaded.
pub(super) fn loaded_versions(tally: &Tally) -> BTreeSet<u32> {
    tally.engines.keys().map(|(_, _, loaded)| loaded.sqlite_version).collect()
}

/// What was under test, and what looked at it.
pub(super) fn engine(numbers: &BTreeSet<u32>) -> Engine {
    Engine {
        sqlite_version: versions(numbers),
        judge_sqlite_version: rusqlite::version().to_owned(),
    }
}

fn versions(numbers: &BTreeSet<u32>) -> String {
    let texts: Vec<String> = numbers.iter().copied().map(version).collect();
    if texts.is_empty() { "unknown".to_owned() } else { texts.join(", ") }
}

/// A history that did not end as expected is not written over by the next round's.
fn keep_history(out: &Path, name: &str, index: usize) -> Result<(), CommandError> {
    let from = out.join("history.jsonl");
    let to = out.join(format!("history-{}-{index}.jsonl", name.replace('/', "-")));
    std::fs::copy(&from, &to).map(drop).map_err(|source| CommandError::Output { path: to, source })
}

fn tell(report: &ScenarioReport, format: Format) -> Result<(), CommandError> {
    say(&text::scenario(report));
    if !report.as_expected {
        for line in text::findings(report) {
            say(&line);
        }
    }
    if format == Format::Jsonl {
        let line = serde_json::to_string(report)
            .map_err(|error| CommandError::Usage(error.to_string()))?;
        print(&(line + "\n"))?;
    }
    Ok(())
}

pub(super) fn scenario_report(plan: &Plan, jobs: usize, executed: &Executed) -> ScenarioReport {
    let scenario = &plan.scenario;
    let tally = &executed.tally;
    // Not all findings are kept word for word; all are counted.
    let told = executed.findings.iter().map(|finding| finding.kind);
    let kinds = tally.findings.keys().copied().chain(told);
    let elapsed_s = executed.elapsed.as_secs_f64().max(1e-9);
    let mut by_kind = tally.findings.clone();
    for finding in &executed.findings {
        by_kind.entry(finding.kind).or_insert(1);
    }
    let settings: Vec<Settled> = scenario
        .setting
        .iter()
        .zip(&executed.settings)
        .map(|(setting, tally)| Settled::of(scenario, *setting, tally))
        .collect();
    let processes = plan.generations().next().map_or(0, |g| plan.cycle(g, 0).lives.len());
    ScenarioReport {
        name: plan.name.clone(),
        claim: scenario.claim.clone(),
        expect: scenario.expect,
        canary: scenario.canary,
        seed: format!("{:#x}", plan.seed),
        verdict: executed.verdict,
        as_expected: if scenario.settings_differ() {
            executed.lacking.is_empty()
                && executed.settings.len() == scenario.setting.len()
                && settings.iter().all(Settled::as_expected)
        } else {
            scenario.expect.met(executed.verdict, kinds)
        },
        findings: executed.findings.clone(),
        findings_by_kind: by_kind.iter().map(|(k, n)| (k.as_str().to_owned(), *n)).collect(),
        counts: counts(tally),
        elapsed_ms: ms(executed.elapsed),
        cycles_per_s: cost::round(crate::report::ratio(tally.cycles, 1) / elapsed_s, 1),
        jobs,
        processes,
        spent_ms: spent(&executed.spent),
        settings: settings.into_iter().map(|setting| setting.report).collect(),
        bounds: Bounds {
            lost_acked_op_share: bound::upper_95(tally.lost_acked_ops, tally.acked_ops),
            corrupt_cycle_share: bound::upper_95(tally.corrupt_cycles, tally.cycles),
        },
        evidence: executed.evidence.iter().map(|path| path.display().to_string()).collect(),
    }
}

/// One setting's report, and whether it is what was expected of it alone.
struct Settled {
    report: SettingReport,
    kinds: BTreeSet<FindingKind>,
}

impl Settled {
    fn of(scenario: &Scenario, setting: Setting, tally: &Tally) -> Self {
        let mut kinds: BTreeSet<FindingKind> = tally.findings.keys().copied().collect();
        if tally.acked_ops == 0 {
            kinds.insert(FindingKind::NothingAcked);
        }
        let own = scenario.settings_differ();
        let verdict = std::iter::once(Verdict::Pass).chain(kinds.iter().map(|kind| kind.verdict()));
        let engines =
            tally.engines.iter().map(|((role, engine, loaded), processes)| EngineReport {
                role: *role,
                engine: *engine,
                sqlite_version: version(loaded.sqlite_version),
                source_id: loaded.source_id.clone(),
                processes: *processes,
            });
        let report = SettingReport {
            name: setting.name(),
            expect: own.then(|| scenario.expect_of(setting)),
            verdict: own.then(|| Verdict::merge(verdict)),
            failed_cycles: tally.failed_cycles,
            first_loss_ms: tally.first_loss_us.map(|us| us / 1_000),
            engines: engines.collect(),
            counts: counts(tally),
        };
        Self { report, kinds }
    }

    fn as_expected(&self) -> bool {
        let (Some(expect), Some(verdict)) = (self.report.expect, self.report.verdict) else {
            return true;
        };
        expect.met(verdict, self.kinds.iter().copied())
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn spent(spent: &Spent) -> SpentMs {
    SpentMs {
        founding: ms(spent.found),
        processes: ms(spent.processes),
        recovery: ms(spent.observe),
        judging: ms(spent.judge),
    }
}

pub(super) fn counts(tally: &Tally) -> Counts {
    Counts {
        cycles: tally.cycles,
        graceful_cycles: tally.graceful_cycles,
        process_kills: tally.process_kills,
        kills_by_activity: tally.kills_by_activity.clone(),
        acked_ops: tally.acked_ops,
        lost_acked_ops: tally.lost_acked_ops,
        refused_ops: tally.refused_ops,
        stale_refused_ops: tally.stale_ops,
        claims: tally.claims,
        pauses: tally.pauses,
        pauses_past_lease: tally.pauses_past_lease,
        unknown_ops: tally.unknown_ops,
        unknown_kept_ops: tally.unknown_kept,
        corrupt_cycles: tally.corrupt_cycles,
    }
}

/// Writes what was asked for, and keeps an unnamed place if something in it is needed.
pub(super) fn write_results(
    report: &Report,
    place: &mut Place,
    junit_file: Option<&Path>,
    exit: Exit,
) -> Result<(), CommandError> {
    if exit != Exit::AsExpected {
        place.keep();
    }
    let write = |path: &Path, text: &str| {
        std::fs::write(path, text)
            .map_err(|source| CommandError::Output { path: path.to_owned(), source })
    };
    if let Some(file) = junit_file {
        let xml = junit::render(report).map_err(|error| CommandError::Output {
            path: file.to_owned(),
            source: std::io::Error::other(error),
        })?;
        write(file, &xml)?;
    }
    if place.named || exit != Exit::AsExpected {
        let json = report.to_json().map_err(|error| CommandError::Output {
            path: place.out.join("report.json"),
            source: error.into(),
        })?;
        write(&place.out.join("report.json"), &json)?;
        write(&place.out.join("SUMMARY.md"), &summary::render(report))?;
    }
    Ok(())
}

fn tell_end(report: &Report, place: &Place, exit: Exit) {
    if let Some(error) = &report.error {
        say(&format!("killpoint: {error}"));
    }
    let as_expected = report.scenarios.iter().filter(|scenario| scenario.as_expected).count();
    let sum = |of: fn(&Counts) -> u64| -> u64 {
        report.scenarios.iter().map(|scenario| of(&scenario.counts)).sum()
    };
    let place_text = if place.named || exit != Exit::AsExpected {
        format!(" · results: {}", place.out.display())
    } else {
        String::new()
    };
    say(&format!(
        "{exit:?} (exit {}): {as_expected} of {} as expected · {} cycles · {} kills · {} acked · \
         {} lost{place_text}\nrepeat: {}",
        exit.code(),
        report.scenarios.len(),
        sum(|c| c.cycles),
        sum(|c| c.process_kills),
        sum(|c| c.acked_ops),
        sum(|c| c.lost_acked_ops),
        report.command,
    ));
}
