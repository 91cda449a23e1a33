//! Scenarios of schedules: `killpoint run` on a file with a `[schedule]` table, `killpoint replay`
//! and `killpoint shrink`.

mod explain;
mod explore;
mod lanes;
mod replay;
mod shrink;
mod stage;

pub(crate) use replay::replay;
pub(crate) use shrink::shrink;

use super::engines::Choice;
use super::place::Place;
use super::progress::interruptible;
use super::run::{command_line, engine, fresh_seed, name_of, one_line, write_results};
use super::{CommandError, print, say};
use crate::cli::{Format, Run};
use crate::exit::Exit;
use crate::plan::round_seed;
use crate::plan::schedule::schedule;
use crate::report::schedule::ScheduleReport;
use crate::report::{NOT_SHOWN, Report};
use crate::run::machine::{self, Machine};
use crate::scenario::ScenarioError;
use crate::scenario::schedule::{self as scenario, Schedules};
use explore::Explorer;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Schedules that `--plan-only` prints of each setting.
const PLANNED_MAX: u64 = 2;

/// Whether this is a scenario of schedules.
pub(super) fn is_one(file: &Path) -> bool {
    std::fs::read_to_string(file).is_ok_and(|text| scenario::is_one(&text))
}

/// Carries out `killpoint run` for scenarios of schedules.
#[expect(clippy::too_many_lines, reason = "one command from its arguments to its report")]
pub(super) fn run(run: &Run) -> Result<Exit, CommandError> {
    if run.canaries || !run.files.iter().all(|file| is_one(file)) {
        return Err(CommandError::Usage(
            "scenarios with a [schedule] table are run by themselves: name them in a command of \
             their own"
                .to_owned(),
        ));
    }
    let choice = Choice::of(&run.engine)?;
    let scenarios = gather(run, &choice)?;
    let seed = run.common.seed.unwrap_or_else(fresh_seed);
    if run.plan_only {
        return plan_only(&scenarios, seed);
    }
    let engines = choice.ready(scenarios.iter().map(|(_, asked)| asked.schedule.engine))?;
    let mut place = Place::make(&run.common)?;
    let jobs = run.jobs.map_or_else(machine::cores, usize::from);
    let interrupted = interruptible()?;
    let command = command_line(run, seed);
    say(&format!("seed {seed:#x} · repeat: {command}"));
    let (mut reports, mut exits, mut error): (Vec<ScheduleReport>, Vec<Exit>, _) =
        (Vec::new(), Vec::new(), None);
    let mut versions = BTreeSet::new();
    let began = Instant::now();
    'all: for round in 0.. {
        for (name, asked) in &scenarios {
            let explorer = Explorer {
                name,
                asked,
                engines: &engines,
                seed: round_seed(seed, round),
                jobs,
                deadline: run.common.budget.map(|budget| began + budget),
                interrupted: &interrupted,
                out: &place.out,
            };
            match explorer.run(place.work.path()) {
                Ok(report) => {
                    tell(&report, run.common.format)?;
                    exits.push(Exit::of(report.as_expected, report.canary, report.verdict));
                    reports.push(report);
                    if asked.command.is_none() {
                        let of = engines.get(asked.schedule.engine);
                        versions.extend(of.map(|engine| engine.loaded.sqlite_version).ok());
                    }
                }
                Err(failed) => {
                    exits.push(Exit::Failed);
                    error = Some(one_line(&failed));
                    break 'all;
                }
            }
            if interrupted.load(Ordering::Relaxed) {
                break 'all;
            }
        }
        let spent = run.common.budget.is_none_or(|budget| began.elapsed() >= budget);
        if spent || Exit::merge(exits.iter().copied()) != Exit::AsExpected {
            break;
        }
    }
    let exit = Exit::merge(exits);
    if reports.iter().any(|report| !report.bundles.is_empty()) {
        place.keep();
    }
    let machine = Machine::here(place.work.path());
    let report = Report {
        error,
        schedules: reports,
        not_shown: NOT_SHOWN.iter().map(|text| (*text).to_owned()).collect(),
        ..Report::of(command.clone(), seed, engine(&versions), machine, exit)
    };
    write_results(&report, &mut place, run.junit.as_deref(), exit)?;
    if let Some(error) = &report.error {
        say(&format!("killpoint: {error}"));
    }
    let bundles = report.schedules.iter().flat_map(|schedule| &schedule.bundles).next();
    if let Some(bundle) = bundles {
        let path = place.out.join(bundle);
        say(&format!(
            "replay: killpoint replay {0} · shrink: killpoint shrink {0}",
            path.display()
        ));
    }
    say(&format!("{exit:?} (exit {}) · repeat: {command}", exit.code()));
    Ok(exit)
}

fn gather(run: &Run, choice: &Choice) -> Result<Vec<(String, Schedules)>, ScenarioError> {
    let read = |file: &std::path::PathBuf| {
        let mut asked = scenario::load(file)?;
        if let Some(cycles) = run.cycles {
            asked.schedule.count = cycles;
        }
        asked.schedule.engine = choice.name.unwrap_or(asked.schedule.engine);
        Ok((name_of(file), asked))
    };
    run.files.iter().map(read).collect()
}

fn plan_only(scenarios: &[(String, Schedules)], seed: u64) -> Result<Exit, CommandError> {
    for (_, asked) in scenarios {
        for setting in 0..asked.setting.len().max(1) {
            for number in 0..PLANNED_MAX {
                let line = serde_json::to_string(&schedule(asked, seed, setting, number))
                    .map_err(|error| CommandError::Usage(error.to_string()))?;
                print(&(line + "\n"))?;
            }
        }
    }
    Ok(Exit::AsExpected)
}

fn tell(report: &ScheduleReport, format: Format) -> Result<(), CommandError> {
    let word = match (report.as_expected, report.canary) {
        (true, true) => "CAUGHT",
        (true, false) => "AS EXPECTED",
        (false, true) => "BLIND",
        (false, false) => "NOT AS EXPECTED",
    };
    say(&format!("{}: {} (expected {}): {word}", report.name, report.verdict, report.expect));
    for setting in &report.settings {
        say(&format!("  {}", setting.line()));
    }
    for finding in report.findings.iter().take(4) {
        say(&format!("  {}: {}", finding.kind, finding.detail));
    }
    if format == Format::Jsonl {
        let text = serde_json::to_string(report)
            .map_err(|error| CommandError::Usage(error.to_string()))?;
        print(&(text + "\n"))?;
    }
    Ok(())
}
