//! `killpoint tune`: the settings of one scenario side by side, latency and durability together.
//!
//! Durability first: each setting is recorded once and judged under power cuts (`durability`). Then
//! latency, untraced, for what is left of the budget. One lane, so that settings do not disturb each other; a new database for each cycle; settings
//! take turns in rounds, so that a machine that gets slower or faster favours none. The first round
//! is always whole, and a round that was begun is finished.

use super::durability;
use super::engines::Choice;
use super::execute::{Execution, Watch, execute};
use super::place::Place;
use super::progress::{Progress, interruptible};
use super::run::{
    common_words, engine, fresh_seed, loaded_versions, name_of, one_line, scenario_report,
    write_results,
};
use super::{CommandError, print, say};
use crate::cli::{Format, Tune};
use crate::exit::Exit;
use crate::history::Line;
use crate::oracle::CycleJudgement;
use crate::plan::{CyclePlan, Plan};
use crate::report::cost::{Config, Cost};
use crate::report::power::PowerSetting;
use crate::report::tune as advise;
use crate::report::{Report, ScenarioReport, table, text};
use crate::run::engine::Engines;
use crate::run::machine::{self, Machine};
use crate::scenario::{self, Scenario, builtin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Operations that one process can record in one cycle.
const OPS_MAX: usize = 65_536;
/// When no budget is given.
const BUDGET: Duration = Duration::from_mins(1);

/// Carries out the command.
pub(crate) fn tune(tune: &Tune) -> Result<Exit, CommandError> {
    let (name, mut scenario) = match &tune.file {
        Some(file) => (name_of(file), scenario::load(file)?),
        None => (builtin::TUNE.name.to_owned(), builtin::TUNE.load()?),
    };
    let choice = Choice::of(&tune.engine)?;
    choice.apply(&mut scenario);
    let mut place = Place::make(&tune.common)?;
    place.check_room([&scenario], 1)?;
    let engines = choice.ready(scenario.engines())?;
    let interrupted = interruptible()?;
    let seed = tune.common.seed.unwrap_or_else(fresh_seed);
    let command = command_line(tune, seed);
    say(&format!("seed {seed:#x} · repeat: {command}"));
    let began = Instant::now();
    let budget = tune.common.budget.unwrap_or(BUDGET);
    let machine = Machine::here(place.work.path());
    let doubts = durability::doubts(place.work.path(), &machine.file_system)?;
    for doubt in &doubts {
        say(&format!("warning: {doubt}"));
    }
    let power = measure_power(&scenario, &place, &engines, seed, &interrupted)?;
    let plan = Plan::new(&name, &scenario, seed);
    let costs = Costs::new(&scenario);
    let executed = execute(
        &plan,
        &Execution {
            jobs: 1,
            dir: place.work.path(),
            history: &place.out.join("history.jsonl"),
            evidence: &place.out.join("evidence"),
            ops_max: OPS_MAX,
            deadline: Some(began + budget),
            interrupted: &interrupted,
            engines: &engines,
            given_engine: choice.library.as_deref(),
            watch: &costs,
        },
    )?;
    let scenario_report = scenario_report(&plan, 1, &executed);
    let mut configs = costs.into_configs(&scenario, &scenario_report);
    let broken = put_power(&mut configs, &power);
    let failed = executed.error.is_some();
    let exit = exit_of(failed, &scenario_report, &broken, interrupted.load(Ordering::Relaxed));
    let recommendation = advise::recommend(&configs, tune.loss_budget, tune.latency_budget);
    show(&configs, &recommendation, tune.common.format)?;
    tell(&scenario_report, &broken, exit);
    let engine = engine(&loaded_versions(&executed.tally));
    let report = Report {
        error: executed.error.as_ref().map(|error| one_line(error)),
        scenarios: vec![scenario_report],
        configs,
        recommendation: Some(recommendation),
        not_shown: not_shown(doubts),
        ..Report::of(command.clone(), seed, engine, machine, exit)
    };
    write_results(&report, &mut place, None, exit)?;
    if place.named {
        let path = place.out.join("pareto.svg");
        std::fs::write(&path, advise::pareto(&report.configs))
            .map_err(|source| CommandError::Output { path, source })?;
    }
    if let Some(error) = &report.error {
        say(&format!("killpoint: {error}"));
    }
    say(&format!("{exit:?} (exit {}) · repeat: {command}", exit.code()));
    Ok(exit)
}

/// Each row recorded, and judged under power cuts.
fn measure_power(
    scenario: &Scenario,
    place: &Place,
    engines: &Engines,
    seed: u64,
    interrupted: &AtomicBool,
) -> Result<Vec<PowerSetting>, CommandError> {
    let progress = Progress::new("power loss", scenario.setting.len() as u64);
    let mut rows = Vec::new();
    // What is recorded depends on no disk: in memory no sync is waited for.
    let memory = tempfile::Builder::new().prefix("killpoint-").tempdir_in("/dev/shm").ok();
    let dir = memory.as_ref().map_or(place.work.path(), tempfile::TempDir::path);
    for setting in &scenario.setting {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        let how = (seed, machine::cores());
        rows.push(durability::measure(scenario, *setting, dir, engines, how, interrupted)?);
        progress.step();
    }
    Ok(rows)
}

fn tell(report: &ScenarioReport, broken: &[String], exit: Exit) {
    for text in broken {
        say(&format!("  broken: {text}"));
    }
    say(&text::scenario(report));
    if exit != Exit::AsExpected {
        for line in text::findings(report) {
            say(&line);
        }
    }
}

/// Puts the losses into the rows, and says which promises they break.
fn put_power(configs: &mut [Config], power: &[PowerSetting]) -> Vec<String> {
    let mut broken = Vec::new();
    for (config, power) in configs.iter_mut().zip(power) {
        durability::put(config, power);
        broken.extend(durability::broken(config));
    }
    broken
}

fn exit_of(failed: bool, report: &ScenarioReport, broken: &[String], interrupted: bool) -> Exit {
    let mut exits = vec![if failed {
        Exit::Failed
    } else {
        Exit::of(report.as_expected, false, report.verdict)
    }];
    if !broken.is_empty() {
        exits.push(Exit::Broken);
    }
    if interrupted {
        exits.push(Exit::Inconclusive);
    }
    Exit::merge(exits)
}

fn not_shown(doubts: Vec<String>) -> Vec<String> {
    let kills = "Latencies are those of this machine, disk and workload while nobody was killed; a \
                 level that looks cheap here may not be elsewhere.";
    let loss_ms = "Milliseconds of loss are lost commits at the row's own untraced rate: a quieter \
                   program loses as many commits and more time.";
    let profile = "Power loss is that of the profile strict on one recording a row, of about 400 \
                   commits.";
    let power = crate::report::power::NOT_SHOWN;
    doubts
        .into_iter()
        .chain([kills, loss_ms, profile].map(str::to_owned))
        .chain(power.map(str::to_owned))
        .collect()
}

fn command_line(tune: &Tune, seed: u64) -> String {
    let mut words = vec!["killpoint tune".to_owned()];
    words.extend(tune.file.iter().map(|file| file.display().to_string()));
    words.push(format!("--loss-budget {}", tune.loss_budget));
    words.extend(tune.latency_budget.map(|budget| format!("--latency-budget {budget}")));
    Choice::words(&tune.engine, &mut words);
    common_words(&tune.common, seed, &mut words);
    words.join(" ")
}

fn show(configs: &[Config], recommendation: &str, format: Format) -> Result<(), CommandError> {
    match format {
        Format::Text => {
            let (table, words) = (table::render(configs, false), table::in_words(configs));
            let durability = table::render_durability(configs, false);
            print(&format!("{table}\n\n{durability}\n\n{words}\n\n{recommendation}"))
        }
        Format::Jsonl => configs.iter().try_for_each(|config| {
            let line = serde_json::to_string(config)
                .map_err(|error| CommandError::Usage(error.to_string()))?;
            print(&(line + "\n"))
        }),
    }
}

/// Collects the costs of each setting while the run goes on.
struct Costs {
    by_setting: Mutex<Vec<Cost>>,
    progress: Progress,
}

impl Costs {
    fn new(scenario: &Scenario) -> Self {
        let by_setting = Mutex::new(vec![Cost::default(); scenario.setting.len()]);
        // How many rounds fit into the budget is not known before they are run.
        Self { by_setting, progress: Progress::new("tune", 0) }
    }

    /// The rows of the table.
    fn into_configs(self, scenario: &Scenario, report: &ScenarioReport) -> Vec<Config> {
        drop(self.progress);
        self.by_setting
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .zip(&scenario.setting)
            .zip(&report.settings)
            .map(|((cost, setting), report)| cost.config(*setting, &report.counts))
            .collect()
    }
}

impl Watch for Costs {
    fn cycle(&self, plan: &CyclePlan, lines: &[Line], judgement: &CycleJudgement) {
        self.progress.cycle(plan, lines, judgement);
        let mut costs = self.by_setting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cost) = costs.get_mut(plan.setting) {
            cost.add(lines);
        }
    }
}
