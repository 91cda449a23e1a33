//! `killpoint sweep`: one script, struck at every point of it, each time from the same files.

use super::engines::Choice;
use super::place::Place;
use super::progress::{Progress, interruptible};
use super::run::{common_words, engine, fresh_seed, name_of, one_line, write_results};
use super::{CommandError, print, say};
use crate::cli::{self, Format};
use crate::exit::Exit;
use crate::history::Line;
use crate::oracle::Judge;
use crate::report::sweep::{PhaseCoverage, SettingSweep, SweepReport, line, table};
use crate::report::{NOT_SHOWN, Report, cost, ratio};
use crate::run::machine::{self, Machine};
use crate::run::sweep::{Blow, Point, Prepared, Range, Strike, exhaustive, prepare, sampled};
use crate::run::trace::Outcome;
use crate::run::{Engines, RunError};
use crate::scenario::Setting;
use crate::scenario::sweep::{self, Sweep};
use crate::verdict::{Finding, FindingKind, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Findings of one sweep that are kept word for word.
const FINDINGS_MAX: usize = 50;

/// SQLite's versions, as the struck processes report the library that they loaded.
fn versions_of(reports: &[SweepReport]) -> BTreeSet<u32> {
    reports.iter().flat_map(|report| &report.sqlite_versions).copied().collect()
}

fn command_line(arguments: &cli::Sweep, seed: u64) -> String {
    let mut words = vec!["killpoint sweep".to_owned()];
    words.extend(arguments.files.iter().map(|file| file.display().to_string()));
    words.extend(arguments.jobs.map(|jobs| format!("--jobs {jobs}")));
    Choice::words(&arguments.engine, &mut words);
    common_words(&arguments.common, seed, &mut words);
    words.join(" ")
}

/// Carries out the command.
pub(crate) fn sweep(arguments: &cli::Sweep) -> Result<Exit, CommandError> {
    let choice = Choice::of(&arguments.engine)?;
    let mut sweeps = Vec::new();
    for file in &arguments.files {
        let mut sweep = sweep::load(file)?;
        sweep.script.engine = choice.name.unwrap_or(sweep.script.engine);
        sweeps.push((name_of(file), sweep));
    }
    let engines = choice.ready(sweeps.iter().map(|(_, sweep)| sweep.script.engine))?;
    let mut place = Place::make(&arguments.common)?;
    let seed = arguments.common.seed.unwrap_or_else(fresh_seed);
    let command = command_line(arguments, seed);
    say(&format!("repeat: {command}"));
    let jobs = arguments.jobs.map_or_else(machine::cores, usize::from);
    let interrupted = interruptible()?;
    let mut reports: Vec<SweepReport> = Vec::new();
    let mut exits = Vec::new();
    let mut error = None;
    let began = Instant::now();
    let budget = arguments.common.budget.unwrap_or_default();
    // Once through all; after that the sampled ones again, with fresh seeds, while there is time.
    let again = sweeps.iter().filter(|(_, sweep)| sweep.script.writers > 1).cycle();
    let rounds = sweeps.iter().chain(again).enumerate();
    for (index, (name, sweep)) in rounds {
        if index >= sweeps.len() && began.elapsed() >= budget {
            break;
        }
        let seed = seed.wrapping_add(u64::try_from(index / sweeps.len()).unwrap_or(0));
        let swept = Swept { name, sweep, jobs, seed, engines: &engines, interrupted: &interrupted };
        match swept.run(place.work.path()) {
            Ok(report) => {
                tell(&report, arguments.common.format)?;
                let cut = interrupted.load(Ordering::Relaxed);
                exits.push(if cut && report.verdict == Verdict::Inconclusive {
                    Exit::Inconclusive
                } else {
                    Exit::of(report.as_expected, report.canary, report.verdict)
                });
                reports.push(report);
            }
            Err(failed) => {
                exits.push(Exit::Failed);
                error = Some(one_line(&failed));
            }
        }
        if error.is_some() || interrupted.load(Ordering::Relaxed) {
            break;
        }
    }
    let exit = Exit::merge(exits);
    let (engine, machine) = (engine(&versions_of(&reports)), Machine::here(place.work.path()));
    let report = Report {
        error,
        sweeps: reports,
        not_shown: NOT_SHOWN.iter().map(|text| (*text).to_owned()).collect(),
        ..Report::of(command.clone(), seed, engine, machine, exit)
    };
    write_results(&report, &mut place, arguments.junit.as_deref(), exit)?;
    if let Some(error) = &report.error {
        say(&format!("killpoint: {error}"));
    }
    say(&format!("{exit:?} (exit {}) · repeat: {command}", exit.code()));
    Ok(exit)
}

fn tell(report: &SweepReport, format: Format) -> Result<(), CommandError> {
    let word = match (report.as_expected, report.canary) {
        (true, true) => "CAUGHT",
        (true, false) => "AS EXPECTED",
        (false, true) => "BLIND",
        (false, false) => "NOT AS EXPECTED",
    };
    let expected = report.expect.describe();
    say(&format!("{}: {} (expected {expected}): {word}", report.name, report.verdict));
    for setting in &report.settings {
        say(&line(setting));
        if format == Format::Text {
            print(&(table(setting, false) + "\n"))?;
        }
    }
    if !report.as_expected {
        for finding in report.findings.iter().take(8) {
            say(&format!("  {}: {}", finding.kind, finding.detail));
        }
    }
    if format == Format::Jsonl {
        let text = serde_json::to_string(report)
            .map_err(|error| CommandError::Usage(error.to_string()))?;
        print(&(text + "\n"))?;
    }
    Ok(())
}

/// One sweep file under way.
struct Swept<'a> {
    name: &'a str,
    sweep: &'a Sweep,
    jobs: usize,
    seed: u64,
    engines: &'a Engines,
    interrupted: &'a AtomicBool,
}

/// What the lanes of one setting have together.
#[derive(Default)]
struct Gathered {
    coverage: SettingSweep,
    findings: Vec<Finding>,
    by_kind: BTreeMap<FindingKind, u64>,
    /// SQLite's versions, as the struck processes report the library that they loaded.
    versions: BTreeSet<u32>,
    error: Option<RunError>,
}

impl Gathered {
    fn find(&mut self, phase: &str, finding: Finding) {
        *self.by_kind.entry(finding.kind).or_default() += 1;
        self.coverage.phases.entry(phase.to_owned()).or_default().findings += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}

impl Swept<'_> {
    fn run(&self, dir: &Path) -> Result<SweepReport, RunError> {
        let began = Instant::now();
        let mut findings = Vec::new();
        let mut by_kind: BTreeMap<FindingKind, u64> = BTreeMap::new();
        let mut settings = Vec::new();
        let mut versions = BTreeSet::new();
        for (index, setting) in self.sweep.setting.iter().enumerate() {
            let gathered = self.setting(*setting, &dir.join(format!("setting-{index}")))?;
            findings.extend(gathered.findings);
            versions.extend(gathered.versions);
            for (kind, count) in gathered.by_kind {
                *by_kind.entry(kind).or_default() += count;
            }
            settings.push(gathered.coverage);
        }
        findings.extend(self.lacking(&settings));
        let verdict = Verdict::merge(
            std::iter::once(Verdict::Pass)
                .chain(by_kind.keys().map(|kind| kind.verdict()))
                .chain(findings.iter().map(|finding| finding.kind.verdict())),
        );
        let kinds = by_kind.keys().copied().chain(findings.iter().map(|finding| finding.kind));
        Ok(SweepReport {
            name: self.name.to_owned(),
            claim: self.sweep.claim.clone(),
            expect: self.sweep.expect,
            canary: self.sweep.canary,
            verdict,
            as_expected: self.sweep.expect.met(verdict, kinds),
            findings_by_kind: by_kind.iter().map(|(k, n)| (k.as_str().to_owned(), *n)).collect(),
            findings,
            settings,
            sqlite_versions: versions.into_iter().collect(),
            elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            jobs: self.jobs,
        })
    }

    /// Phases that had to be hit and were not; strikes that did not land.
    fn lacking(&self, settings: &[SettingSweep]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut lacks = |detail| {
            findings.push(Finding { kind: FindingKind::FaultNotDelivered, detail });
        };
        for setting in settings {
            for wanted in &self.sweep.faults.require {
                let hit = setting.phases.iter().any(|(phase, c)| {
                    let landed = c.kills + c.tears + c.errors > 0;
                    landed && phase.parse().is_ok_and(|phase| wanted.matches(phase))
                });
                if !hit {
                    lacks(format!("{}: phase {wanted} was never hit", setting.name));
                }
            }
            if setting.landed == 0 {
                lacks(format!("{}: no strike landed", setting.name));
            }
            let exhaustive = self.sweep.script.writers == 1;
            if exhaustive && setting.landed < setting.strikes {
                let missed = setting.strikes - setting.landed;
                lacks(format!("{}: {missed} strikes did not land", setting.name));
            }
        }
        if self.interrupted.load(Ordering::Relaxed) {
            let detail = "stopped before the last strike".to_owned();
            findings.push(Finding { kind: FindingKind::Interrupted, detail });
        }
        findings
    }

    fn setting(&self, setting: Setting, dir: &Path) -> Result<Gathered, RunError> {
        let prepared = prepare(&self.sweep.script, setting, &dir.join("prepare"), self.engines)?;
        // What was done before must be sound, or nothing that follows means anything.
        let mut judge = Judge::default();
        let (plan, lines) = &prepared.before;
        let before = judge.after_fault(plan, lines);
        let points = std::thread::scope(|scope| {
            let record = || {
                let mut range = Range::new(&prepared, &dir.join("record"), Some(0))?;
                Ok((range.record(false)?, range.record(true)?))
            };
            scope.spawn(record).join()
        });
        let (points, abandoned) = points.unwrap_or_else(|_| {
            Err(RunError::Zygote("the recording thread panicked".to_owned()))
        })?;
        let strikes = if self.sweep.script.writers == 1 {
            exhaustive(&points, abandoned.len() as u64, &self.sweep.faults)
        } else {
            sampled(&points, &self.sweep.faults, self.seed)
        };
        let mut gathered = Gathered { coverage: coverage(setting, &points), ..Gathered::default() };
        gathered.coverage.strikes = u64::try_from(strikes.len()).unwrap_or(u64::MAX);
        for finding in before {
            gathered.find("before", finding);
        }
        let began = Instant::now();
        let shared = Mutex::new(gathered);
        let next = AtomicUsize::new(0);
        let progress = Progress::new(&setting.name(), strikes.len() as u64);
        std::thread::scope(|scope| {
            for lane in 0..self.jobs {
                let (prepared, strikes, judge) = (&prepared, &strikes, &judge);
                let (shared, next, progress) = (&shared, &next, &progress);
                scope.spawn(move || {
                    let cpu = Some(lane % machine::cores());
                    let dir = dir.join(format!("lane-{lane}"));
                    let struck = Range::new(prepared, &dir, cpu).and_then(|mut range| {
                        while let Some(strike) = self.next(strikes, next, shared) {
                            let found = strike_once(&mut range, prepared, strike, judge)?;
                            gather(shared, strike, found);
                            progress.step();
                        }
                        Ok(())
                    });
                    if let Err(error) = struck {
                        lock(shared).error.get_or_insert(error);
                    }
                });
            }
        });
        let mut gathered = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        let elapsed = began.elapsed();
        let c = &mut gathered.coverage;
        c.elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let lanes_s = elapsed.as_secs_f64().max(1e-9) * ratio(self.jobs as u64, 1);
        c.strikes_per_s_and_core = cost::round(ratio(c.strikes, 1) / lanes_s, 1);
        match gathered.error.take() {
            Some(error) => Err(error),
            None => Ok(gathered),
        }
    }

    fn next<'s>(
        &self,
        strikes: &'s [Strike],
        next: &AtomicUsize,
        shared: &Mutex<Gathered>,
    ) -> Option<&'s Strike> {
        let over = self.interrupted.load(Ordering::Relaxed) || lock(shared).error.is_some();
        if over { None } else { strikes.get(next.fetch_add(1, Ordering::Relaxed)) }
    }
}

fn lock(shared: &Mutex<Gathered>) -> std::sync::MutexGuard<'_, Gathered> {
    // Another lane's panic leaves counts that are at most one strike short.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn coverage(setting: Setting, points: &[Point]) -> SettingSweep {
    let mut phases: BTreeMap<String, PhaseCoverage> = BTreeMap::new();
    for point in points {
        phases.entry(point.phase.to_string()).or_default().points += 1;
    }
    let points = u64::try_from(points.len()).unwrap_or(u64::MAX);
    SettingSweep { name: setting.name(), points, phases, ..SettingSweep::default() }
}

/// Where the blow fell, whether it landed, and what was found.
struct Found {
    phase: String,
    landed: bool,
    findings: Vec<Finding>,
    versions: Vec<u32>,
}

fn strike_once(
    range: &mut Range<'_>,
    prepared: &Prepared,
    strike: &Strike,
    judge: &Judge,
) -> Result<Found, RunError> {
    let struck = range.strike(strike)?;
    let mut findings = judge.clone().after_fault(&prepared.plan, &struck.lines);
    let versions = struck.lines.iter().filter_map(|line| match line {
        Line::Life(life) => Some(life.loaded.as_ref()?.sqlite_version),
        _ => None,
    });
    let versions = versions.collect();
    if let Some(trouble) = struck.trouble {
        let kind = if trouble.contains("Deadline") {
            FindingKind::Hung
        } else {
            FindingKind::UnexpectedExit
        };
        findings.push(Finding { kind, detail: trouble });
    }
    for finding in &mut findings {
        finding.detail = format!("{}: {}", strike.describe(), finding.detail);
    }
    let receipt = struck.receipt;
    let landed = receipt.as_ref().is_some_and(|receipt| {
        !matches!(receipt.outcome, Outcome::NotPossible { .. } | Outcome::Unfinished)
    });
    let phase = receipt.map_or(strike.phase, |receipt| receipt.phase).to_string();
    Ok(Found { phase, landed, findings, versions })
}

fn gather(shared: &Mutex<Gathered>, strike: &Strike, found: Found) {
    let mut gathered = lock(shared);
    gathered.coverage.landed += u64::from(found.landed);
    gathered.versions.extend(found.versions);
    let phase = gathered.coverage.phases.entry(found.phase.clone()).or_default();
    if found.landed {
        match strike.blow {
            Blow::KillBefore | Blow::KillAfter => phase.kills += 1,
            Blow::Tear { .. } => phase.tears += 1,
            Blow::Fail(_) | Blow::FailForGood(_) => phase.errors += 1,
        }
    } else {
        phase.missed += 1;
    }
    for finding in found.findings {
        gathered.find(&found.phase, finding);
    }
}
