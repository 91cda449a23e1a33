//! `killpoint tune`: the settings of one scenario side by side.
//!
//! One lane, so that settings do not disturb each other; a new database for each cycle; settings
//! take turns in rounds, so that a machine that gets slower or faster favours none. The first round
//! is always whole, and a round that was begun is finished.

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
use crate::report::{NOT_SHOWN, Report, SCHEMA, ScenarioReport, table, text};
use crate::run::machine::{self, Machine};
use crate::scenario::{self, Scenario, builtin};
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
    let plan = Plan::new(&name, &scenario, seed);
    let costs = Costs::new(&scenario);
    let budget = tune.common.budget.unwrap_or(BUDGET);
    let executed = execute(
        &plan,
        &Execution {
            jobs: 1,
            dir: place.work.path(),
            history: &place.out.join("history.jsonl"),
            evidence: &place.out.join("evidence"),
            ops_max: OPS_MAX,
            deadline: Some(Instant::now() + budget),
            interrupted: &interrupted,
            engines: &engines,
            given_engine: choice.library.as_deref(),
            watch: &costs,
        },
    )?;
    let scenario_report = scenario_report(&plan, 1, &executed);
    let exit = if executed.error.is_some() {
        Exit::Failed
    } else {
        Exit::of(scenario_report.as_expected, false, scenario_report.verdict)
    };
    let configs = costs.into_configs(&scenario, &scenario_report);
    show(&configs, tune.common.format)?;
    say(&text::scenario(&scenario_report));
    if exit != Exit::AsExpected {
        for line in text::findings(&scenario_report) {
            say(&line);
        }
    }
    let report = Report {
        schema: SCHEMA,
        killpoint: env!("CARGO_PKG_VERSION").to_owned(),
        command: command.clone(),
        seed: format!("{seed:#x}"),
        engine: engine(&loaded_versions(&executed.tally)),
        machine: Machine::here(place.work.path()),
        exit_code: exit.code(),
        peak_memory_mib: machine::peak_memory_mib(),
        error: executed.error.as_ref().map(|error| one_line(error)),
        scenarios: vec![scenario_report],
        configs,
        sweeps: Vec::new(),
        execs: Vec::new(),
        schedules: Vec::new(),
        not_shown: NOT_SHOWN.iter().map(|text| (*text).to_owned()).collect(),
    };
    write_results(&report, &mut place, None, exit)?;
    if let Some(error) = &report.error {
        say(&format!("killpoint: {error}"));
    }
    say(&format!("{exit:?} (exit {}) · repeat: {command}", exit.code()));
    Ok(exit)
}

fn command_line(tune: &Tune, seed: u64) -> String {
    let mut words = vec!["killpoint tune".to_owned()];
    words.extend(tune.file.iter().map(|file| file.display().to_string()));
    Choice::words(&tune.engine, &mut words);
    common_words(&tune.common, seed, &mut words);
    words.join(" ")
}

fn show(configs: &[Config], format: Format) -> Result<(), CommandError> {
    match format {
        Format::Text => {
            let (table, words) = (table::render(configs, false), table::in_words(configs));
            print(&format!("{table}\n{words}\n"))
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
