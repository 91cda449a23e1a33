//! `killpoint real-fs`: power cuts under a real file system, which the crash models are checked
//! against.

use super::engines::Choice;
use super::place::Place;
use super::power::report;
use super::progress::interruptible;
use super::run::{common_words, fresh_seed, name_of, one_line, write_results};
use super::{CommandError, print, say};
use crate::cli;
use crate::exit::Exit;
use crate::oracle::power::{self, PowerJudge};
use crate::report::power::{PowerReport, PowerSetting, Real, line, table};
use crate::run::power::Recording;
use crate::run::power::realfs::{Asked, FileSystem, Tried, enter_private_namespace, try_cuts};
use crate::run::{Engines, RunError};
use crate::scenario::power::Power;
use crate::scenario::{Expect, Setting, power as scenario};
use crate::verdict::{Finding, FindingKind, Verdict};
use hardboard::Durability;
use killpoint_worker::wire::EngineName;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Findings of one report that are kept word for word.
const FINDINGS_MAX: usize = 20;
/// Of the cuts asked for, one in so many is spent on the control.
const CONTROL_SHARE: u32 = 4;

/// Carries out the command.
pub(crate) fn real_fs(arguments: &cli::RealFs) -> Result<Exit, CommandError> {
    let choice = Choice::of(&arguments.engine)?;
    let mut scenarios = Vec::new();
    for file in &arguments.files {
        let mut power = scenario::load(file)?;
        power.script.engine = choice.name.unwrap_or(power.script.engine);
        scenarios.push((name_of(file), power));
    }
    let file_systems = there(arguments);
    let seed = arguments.common.seed.unwrap_or_else(fresh_seed);
    let command = command_line(arguments, seed);
    if file_systems.is_empty() {
        say("Inconclusive (exit 3): there is no file system here that could be put under it");
        return Ok(Exit::Inconclusive);
    }
    let names: Vec<EngineName> = scenarios.iter().map(|(_, power)| power.script.engine).collect();
    let engines = choice.ready(names)?;
    let interrupted = interruptible()?;
    // Before any thread: what is mounted from here on is seen by nobody else.
    enter_private_namespace()?;
    let mut place = Place::make(&arguments.common)?;
    say(&format!("seed {seed:#x} · repeat: {command}"));
    let bench = Bench { cuts: arguments.cuts, seed, engines: &engines, interrupted: &interrupted };
    let (mut reports, mut exits, mut error) = (Vec::new(), Vec::new(), None);
    'all: for (name, power) in &scenarios {
        for file_system in &file_systems {
            for lying in [true, false] {
                let dir = place.work.path().join(format!("{file_system}-{}", reports.len()));
                match bench.scenario(name, power, *file_system, lying, &dir) {
                    Ok(report) => {
                        tell(&report, arguments.common.format)?;
                        exits.push(Exit::of(report.as_expected, report.canary, report.verdict));
                        reports.push(report);
                    }
                    Err(failed) => {
                        exits.push(Exit::Failed);
                        error = Some(one_line(&failed));
                    }
                }
                if error.is_some() || interrupted.load(Ordering::Relaxed) {
                    break 'all;
                }
            }
        }
    }
    let exit = Exit::merge(exits);
    let report = report(command.clone(), seed, reports, error, exit, &place);
    write_results(&report, &mut place, None, exit)?;
    if let Some(error) = &report.error {
        say(&format!("killpoint: {error}"));
    }
    say(&format!("{exit:?} (exit {}) · repeat: {command}", exit.code()));
    Ok(exit)
}

/// The file systems asked for that can be had; says why of the others.
fn there(arguments: &cli::RealFs) -> Vec<FileSystem> {
    let asked: &[FileSystem] =
        if arguments.on.is_empty() { &FileSystem::ALL } else { &arguments.on };
    let mut there = Vec::new();
    for file_system in asked {
        match file_system.obstacle() {
            None => there.push(*file_system),
            Some(why) => say(&format!("SKIPPED {file_system}: {why}")),
        }
    }
    there
}

fn command_line(arguments: &cli::RealFs, seed: u64) -> String {
    let mut words = vec!["killpoint real-fs".to_owned()];
    words.extend(arguments.files.iter().map(|file| file.display().to_string()));
    words.extend(arguments.on.iter().map(|file_system| format!("--on {file_system}")));
    words.push(format!("--cuts {}", arguments.cuts));
    Choice::words(&arguments.engine, &mut words);
    common_words(&arguments.common, seed, &mut words);
    words.join(" ")
}

fn tell(report: &PowerReport, format: cli::Format) -> Result<(), CommandError> {
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
    }
    if !report.as_expected {
        for finding in report.findings.iter().take(6) {
            say(&format!("  {}: {}", finding.kind, finding.detail));
        }
    }
    match format {
        cli::Format::Text => print(&(table(report, false) + "\n")),
        cli::Format::Jsonl => {
            let text = serde_json::to_string(report)
                .map_err(|error| CommandError::Usage(error.to_string()))?;
            print(&(text + "\n"))
        }
    }
}

/// What all runs of the command have in common.
struct Bench<'a> {
    cuts: u32,
    seed: u64,
    engines: &'a Engines,
    interrupted: &'a AtomicBool,
}

/// What was found under one file system.
#[derive(Default)]
struct Gathered {
    findings: Vec<Finding>,
    by_kind: BTreeMap<FindingKind, u64>,
}

impl Gathered {
    fn find(&mut self, kind: FindingKind, many: u64, detail: impl FnOnce() -> String) {
        *self.by_kind.entry(kind).or_default() += many;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { kind, detail: detail() });
        }
    }
}

impl Bench<'_> {
    /// One scenario on one file system; `lying` is the control, on a disk whose flushes do nothing.
    fn scenario(
        &self,
        name: &str,
        power: &Power,
        file_system: FileSystem,
        lying: bool,
        dir: &Path,
    ) -> Result<PowerReport, RunError> {
        let began = Instant::now();
        let mut gathered = Gathered::default();
        let mut settings = Vec::new();
        for (index, setting) in power.setting.iter().enumerate() {
            let dir = dir.join(index.to_string());
            let asked = Asked {
                subject: name,
                script: &power.script,
                setting: *setting,
                file_system,
                cuts: if lying { self.cuts.div_ceil(CONTROL_SHARE) } else { self.cuts },
                lying,
                seed: self.seed,
                engines: self.engines,
                interrupted: self.interrupted,
            };
            settings.push(self.setting(&asked, *setting, &dir, &mut gathered)?);
        }
        if self.interrupted.load(Ordering::Relaxed) {
            gathered.find(FindingKind::Interrupted, 1, || "stopped before the last cut".into());
        }
        let kinds = gathered.by_kind.keys().map(|kind| kind.verdict());
        let verdict = Verdict::merge(std::iter::once(Verdict::Pass).chain(kinds));
        let (claim, expect) = if lying {
            let claim =
                "A disk whose flushes do nothing leaves what no model of an honest disk has.";
            (claim.to_owned(), Expect::Fail(FindingKind::ImpossibleInModel))
        } else {
            (power.claim.clone(), power.expect)
        };
        let disk = if lying { ", lying disk" } else { "" };
        Ok(PowerReport {
            name: format!("{name} on {file_system}{disk}"),
            claim,
            expect,
            canary: lying,
            verdict,
            as_expected: expect.met(verdict, gathered.by_kind.keys().copied()),
            findings_by_kind: gathered
                .by_kind
                .iter()
                .map(|(kind, count)| (kind.as_str().to_owned(), *count))
                .collect(),
            findings: gathered.findings,
            sqlite_versions: Vec::new(),
            settings,
            elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            jobs: 1,
        })
    }

    fn setting(
        &self,
        asked: &Asked<'_>,
        setting: Setting,
        dir: &Path,
        gathered: &mut Gathered,
    ) -> Result<PowerSetting, RunError> {
        let began = Instant::now();
        let mut judge: Option<PowerJudge> = None;
        let mut course = None;
        let mut impossible: BTreeMap<String, u64> = BTreeMap::new();
        let (recording, tried) = try_cuts(asked, dir, &mut |seen_course, seen, place| {
            course.get_or_insert_with(|| std::sync::Arc::clone(seen_course));
            let judge =
                judge.get_or_insert_with(|| PowerJudge::new(std::sync::Arc::clone(seen_course)));
            judge.judge(&seen.cut, &|| place.to_owned());
            for profile in seen.impossible {
                *impossible.entry(profile.to_string()).or_default() += 1;
                gathered.find(FindingKind::ImpossibleInModel, 1, || {
                    format!("{place}: the files left are impossible in the model {profile}")
                });
            }
        })?;
        let mut row = row(&recording, &tried, setting, asked);
        row.elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        row.real = Some(real(&tried, impossible));
        if let Some(course) = course {
            row.commits = course.commits.len().saturating_sub(1) as u64;
            row.acked = course.acks.len() as u64;
            let promised = course.acks.iter().filter(|ack| ack.durability == Durability::Power);
            row.power_acked = promised.count() as u64;
            for finding in power::undisturbed(&course) {
                gathered.find(finding.kind, 1, || finding.detail.clone());
            }
        }
        for unseen in &recording.header.unseen {
            gathered.find(FindingKind::LedgerCutShort, 1, || {
                format!("the recording is not whole: {unseen}")
            });
        }
        if let Some(judge) = judge {
            row.count(&judge.seen);
            for finding in &judge.seen.findings {
                gathered.find(finding.kind, 0, || finding.detail.clone());
            }
            for (kind, count) in judge.seen.by_kind {
                *gathered.by_kind.entry(kind).or_default() += count;
            }
        }
        if tried.flushes == 0 || tried.between == 0 {
            gathered.find(FindingKind::FaultNotDelivered, 1, || {
                format!(
                    "{} flushes reached the disk, {} states were neither all nor nothing: nothing \
                     was put to the test",
                    tried.flushes, tried.between
                )
            });
        }
        Ok(row)
    }
}

fn row(recording: &Recording, tried: &Tried, setting: Setting, asked: &Asked<'_>) -> PowerSetting {
    let mut processes: Vec<u32> = recording.entries.iter().map(|entry| entry.process).collect();
    processes.sort_unstable();
    processes.dedup();
    PowerSetting {
        name: setting.name(),
        profile: format!("{}, mounted", asked.file_system),
        processes: processes.len() as u64,
        operations: tried.operations,
        states: tried.states,
        ..PowerSetting::default()
    }
}

fn real(tried: &Tried, impossible: BTreeMap<String, u64>) -> Real {
    Real {
        block_writes: tried.block_writes,
        flushes: tried.flushes,
        cuts: tried.cuts,
        between: tried.between,
        unmountable: tried.unmountable,
        impossible,
    }
}
