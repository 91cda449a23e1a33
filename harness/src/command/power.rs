//! `killpoint power`: one run is recorded, and every state that a power cut could leave is judged.

use super::engines::Choice;
use super::place::Place;
use super::progress::interruptible;
use super::run::{common_words, engine, fresh_seed, name_of, one_line, write_results};
use super::{CommandError, print, say};
use crate::cli::{self, Format};
use crate::exit::Exit;
use crate::history::Line;
use crate::history::power::Cut as Seen;
use crate::oracle::power::{self, PowerJudge, PowerTally};
use crate::report::power::{PowerReport, PowerSetting, PowerSpentMs, in_words, line, rate, table};
use crate::report::{Report, cost, ratio};
use crate::run::RunError;
use crate::run::engine::Engines;
use crate::run::machine::{self, Machine};
use crate::run::power::{
    Explored, Options, Recorded, Recording, Sink, explore, observe, record_command, record_script,
};
use crate::scenario::Expect;
use crate::scenario::power::{Cut, Power, Profile};
use crate::verdict::{Finding, FindingKind, Verdict};
use hardboard::Durability;
use killpoint_worker::wire::EngineName;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Findings of one report that are kept word for word.
const FINDINGS_MAX: usize = 40;
/// Contents of an undisturbed run that are compared with the model row by row.
const MODEL_CHECKS_MAX: usize = 60;
/// How long a command may take that is recorded.
const DEADLINE: Duration = Duration::from_mins(5);

/// Carries out the command.
pub(crate) fn power(arguments: &cli::Power) -> Result<Exit, CommandError> {
    let choice = Choice::of(&arguments.engine)?;
    let works = works(arguments, choice.name)?;
    let engines = choice.ready(works.iter().filter_map(Work::engine))?;
    let mut place = Place::make(&arguments.common)?;
    let seed = arguments.common.seed.unwrap_or_else(fresh_seed);
    let command = command_line(arguments, seed);
    say(&format!("seed {seed:#x} · repeat: {command}"));
    let jobs = arguments.jobs.map_or_else(machine::cores, usize::from);
    let interrupted = interruptible()?;
    let enumerate =
        Enumerate { arguments, engines: &engines, seed, jobs, interrupted: &interrupted };
    let (mut reports, mut exits, mut error) = (Vec::new(), Vec::new(), None);
    for work in &works {
        match enumerate.work(work, &place) {
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
            Err(CommandError::Run(failed)) => {
                let failed = CommandError::Run(failed);
                if failed.exit() == Exit::Usage {
                    return Err(failed);
                }
                exits.push(failed.exit());
                error = Some(one_line(&failed));
            }
            Err(failed) => return Err(failed),
        }
        if error.is_some() || interrupted.load(Ordering::Relaxed) {
            break;
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

/// What the command tells in the end.
pub(super) fn report(
    command: String,
    seed: u64,
    powers: Vec<PowerReport>,
    error: Option<String>,
    exit: Exit,
    place: &Place,
) -> Report {
    let versions = powers.iter().flat_map(|power| &power.sqlite_versions).copied().collect();
    let (engine, machine) = (engine(&versions), Machine::here(place.work.path()));
    Report {
        error,
        powers,
        not_shown: crate::report::power::NOT_SHOWN.iter().map(|t| (*t).to_owned()).collect(),
        ..Report::of(command, seed, engine, machine, exit)
    }
}

/// One thing to do.
enum Work {
    /// A scenario: each of its settings is recorded.
    Scenario(String, Box<Power>),
    /// A recording that was made before.
    Recording(Box<Recording>),
    /// A command.
    Command,
}

impl Work {
    fn engine(&self) -> Option<EngineName> {
        match self {
            Self::Scenario(_, power) => Some(power.script.engine),
            Self::Recording(_) | Self::Command => None,
        }
    }
}

fn works(arguments: &cli::Power, engine: Option<EngineName>) -> Result<Vec<Work>, CommandError> {
    let mut works = Vec::new();
    if arguments.canaries {
        for canary in crate::scenario::builtin::POWER_CANARIES {
            works.push(Work::Scenario(canary.name.to_owned(), Box::new(canary.load_power()?)));
        }
    }
    for file in &arguments.files {
        let mut power = crate::scenario::power::load(file)?;
        power.script.engine = engine.unwrap_or(power.script.engine);
        works.push(Work::Scenario(name_of(file), Box::new(power)));
    }
    for file in &arguments.recording {
        let recording =
            Recording::load(file).map_err(|error| CommandError::Usage(error.to_string()))?;
        works.push(Work::Recording(Box::new(recording)));
    }
    if !arguments.command.is_empty() {
        if arguments.db.is_none() {
            let text = "--db: name the database that the command writes, as in --db app.db";
            return Err(CommandError::Usage(text.to_owned()));
        }
        works.push(Work::Command);
    }
    if works.is_empty() {
        let text = "nothing to do: name a scenario file, a --recording, or a command behind --";
        return Err(CommandError::Usage(text.to_owned()));
    }
    Ok(works)
}

fn command_line(arguments: &cli::Power, seed: u64) -> String {
    let mut words = vec!["killpoint power".to_owned()];
    words.extend(arguments.files.iter().map(|file| file.display().to_string()));
    if arguments.canaries {
        words.push("--canaries".to_owned());
    }
    words.extend(arguments.recording.iter().map(|file| format!("--recording {}", file.display())));
    words.extend(arguments.profile.iter().map(|profile| format!("--profile {profile}")));
    words.extend(arguments.states.map(|states| format!("--states {states}")));
    words.extend(arguments.jobs.map(|jobs| format!("--jobs {jobs}")));
    Choice::words(&arguments.engine, &mut words);
    common_words(&arguments.common, seed, &mut words);
    if let Some(db) = &arguments.db {
        words.push(format!("--db {}", db.display()));
        words.extend(arguments.check_sql.iter().map(|sql| format!("--check-sql '{sql}'")));
        words.push("--".to_owned());
        words.extend(arguments.command.iter().map(|word| word.to_string_lossy().into_owned()));
    }
    words.join(" ")
}

fn tell(report: &PowerReport, format: Format) -> Result<(), CommandError> {
    let word = match (report.as_expected, report.canary) {
        (true, true) => "CAUGHT",
        (true, false) => "AS EXPECTED",
        (false, true) => "BLIND",
        (false, false) => "NOT AS EXPECTED",
    };
    let expected = report.expect.describe();
    say(&format!("{}: {} (expected {expected}): {word}", report.name, report.verdict));
    match format {
        Format::Text => {
            print(&format!("{}\n{}\n", table(report, false), in_words(report)))?;
        }
        Format::Jsonl => {
            let text = serde_json::to_string(report)
                .map_err(|error| CommandError::Usage(error.to_string()))?;
            print(&(text + "\n"))?;
        }
    }
    for setting in &report.settings {
        say(&line(setting));
    }
    if !report.as_expected || !report.findings.is_empty() {
        for finding in report.findings.iter().take(6) {
            say(&format!("  {}: {}", finding.kind, finding.detail));
        }
    }
    Ok(())
}

/// What one enumeration gave.
pub(super) struct Judged {
    pub(super) setting: PowerSetting,
    pub(super) tally: PowerTally,
}

/// Judges what a thread sees.
struct Bench<'r> {
    recording: &'r Recording,
    judge: PowerJudge,
}

impl Sink for Bench<'_> {
    fn take(&mut self, cut: &Seen<'_>, how: &dyn Fn() -> String) {
        let at = cut.at;
        self.judge.judge(cut, &|| {
            let mut how = how();
            how.truncate(how.char_indices().nth(240).map_or(how.len(), |(end, _)| end));
            format!("cut {} [{how}]", self.recording.describe(at))
        });
    }
}

/// Enumerates one recording under one profile, and judges it.
pub(super) fn judge_recording(
    name: &str,
    recording: &Recording,
    options: &Options<'_>,
) -> Result<Judged, RunError> {
    let make = |course: &std::sync::Arc<_>| Bench {
        recording,
        judge: PowerJudge::new(std::sync::Arc::clone(course)),
    };
    let (course, explored, benches) = explore(recording, options, &make)?;
    let mut tally = PowerTally::default();
    for bench in benches {
        tally.add(bench.judge.seen);
    }
    for finding in power::undisturbed(&course) {
        tally.find_in_course(finding);
    }
    for unseen in &recording.header.unseen {
        let detail = format!("the recording is not whole: {unseen}");
        tally.find_in_course(Finding { kind: FindingKind::LedgerCutShort, detail });
    }
    let mut model_checks = 0;
    if let Some(board) = &recording.header.board {
        for (seq, line) in observe(recording, &course, MODEL_CHECKS_MAX)? {
            model_checks += 1;
            for mut finding in power::board(&board.before, &board.recorded, line, seq) {
                finding.detail = format!("undisturbed, after commit {seq}: {}", finding.detail);
                tally.find_in_course(finding);
            }
        }
    }
    let mut setting = setting(name, recording, &explored, options);
    setting.commits = course.commits.len().saturating_sub(1) as u64;
    setting.fsyncs_per_commit = cost::round(ratio(recording.syncs(), setting.commits), 4);
    setting.bytes_per_commit = cost::round(ratio(recording.written_bytes(), setting.commits), 1);
    setting.acked = course.acks.len() as u64;
    let promised = course.acks.iter().filter(|ack| ack.durability == Durability::Power);
    setting.power_acked = promised.count() as u64;
    setting.model_checks = model_checks;
    setting.count(&tally);
    Ok(Judged { setting, tally })
}

fn setting(
    name: &str,
    recording: &Recording,
    explored: &Explored,
    options: &Options<'_>,
) -> PowerSetting {
    let ms = |time: Duration| cost::round(time.as_secs_f64() * 1e3, 1);
    let processes: BTreeSet<u32> = recording.entries.iter().map(|entry| entry.process).collect();
    let spent = explored.spent;
    PowerSetting {
        name: name.to_owned(),
        profile: options.profile.to_string(),
        processes: processes.len() as u64,
        operations: recording.entries.len() as u64,
        states: explored.states,
        contents: explored.contents,
        interrupted_recoveries: explored.interrupted_recoveries,
        file_recoveries: explored.file_recoveries,
        elapsed_ms: u64::try_from(explored.elapsed.as_millis()).unwrap_or(u64::MAX),
        states_per_s_and_core: rate(explored.states, options.jobs, explored.elapsed),
        spent_ms: PowerSpentMs {
            choosing: ms(spent.choose),
            composing: ms(spent.compose),
            digests: ms(spent.digest),
            recovery: ms(spent.recover),
            contents: ms(spent.content),
            checks: ms(spent.check),
            again: ms(spent.again),
        },
        ..PowerSetting::default()
    }
}

/// How recordings are enumerated.
struct Enumerate<'a> {
    arguments: &'a cli::Power,
    engines: &'a Engines,
    seed: u64,
    jobs: usize,
    interrupted: &'a AtomicBool,
}

impl Enumerate<'_> {
    fn work(&self, work: &Work, place: &Place) -> Result<PowerReport, CommandError> {
        let began = Instant::now();
        let mut gathered = Gathered::default();
        let (name, claim, expect, canary) = match work {
            Work::Scenario(name, power) => {
                for setting in &power.setting {
                    let subject = format!("{name} {}", setting.name());
                    let dir = place.work.path().join("victims");
                    let recording =
                        record_script(&subject, &power.script, *setting, &dir, self.engines)?;
                    remove_tree(&dir)?;
                    self.keep(&recording, place)?;
                    self.all(&setting.name(), &recording, &power.cut, place, &mut gathered)?;
                }
                (name.clone(), power.claim.clone(), power.expect, power.canary)
            }
            Work::Recording(recording) => {
                let cut = Cut::default();
                self.all("recording", recording, &cut, place, &mut gathered)?;
                let subject = recording.header.subject.clone();
                (subject, "A recorded run survives power cuts.".to_owned(), Expect::Pass, false)
            }
            Work::Command => {
                let recording = self.record_command(place)?;
                self.keep(&recording, place)?;
                let cut = Cut::default();
                self.all("command", &recording, &cut, place, &mut gathered)?;
                let subject = recording.header.subject;
                let claim = "What the command acknowledges survives power cuts.".to_owned();
                (subject, claim, Expect::Pass, false)
            }
        };
        if self.interrupted.load(Ordering::Relaxed) {
            let detail = "stopped before the last image".to_owned();
            gathered.find(Finding { kind: FindingKind::Interrupted, detail }, 1);
        }
        let verdict = gathered.verdict();
        Ok(PowerReport {
            name,
            claim,
            expect,
            canary,
            verdict,
            as_expected: expect.met(verdict, gathered.by_kind.keys().copied()),
            findings_by_kind: gathered
                .by_kind
                .iter()
                .map(|(kind, count)| (kind.as_str().to_owned(), *count))
                .collect(),
            findings: gathered.findings,
            settings: gathered.settings,
            sqlite_versions: gathered.versions.into_iter().collect(),
            elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            jobs: self.jobs,
        })
    }

    /// One recording under every profile that is asked for.
    fn all(
        &self,
        name: &str,
        recording: &Recording,
        cut: &Cut,
        place: &Place,
        gathered: &mut Gathered,
    ) -> Result<(), CommandError> {
        let asked = &self.arguments.profile;
        let profiles: &[Profile] = if asked.is_empty() { &cut.profiles } else { asked };
        for profile in profiles {
            let dir = place.work.path().join("images");
            let options = Options {
                profile: *profile,
                states: self.arguments.states.unwrap_or(cut.states).into(),
                seed: self.seed,
                jobs: self.jobs,
                sparse: false,
                dir: Some(&dir),
                interrupted: self.interrupted,
            };
            let judged = judge_recording(name, recording, &options)?;
            gathered.take(judged);
            gathered.versions.extend(versions_of(recording));
        }
        Ok(())
    }

    /// Keeps the recording where results go, if that was named.
    fn keep(&self, recording: &Recording, place: &Place) -> Result<(), CommandError> {
        if !place.named && self.arguments.save.is_none() {
            return Ok(());
        }
        let file = self.arguments.save.clone().unwrap_or_else(|| {
            let plain = |c: char| if c.is_ascii_alphanumeric() || c == '+' { c } else { '-' };
            let name: String = recording.header.subject.chars().map(plain).take(80).collect();
            place.out.join(format!("{name}.recording"))
        });
        recording.save(&file).map_err(|error| CommandError::Output {
            path: file,
            source: std::io::Error::other(error),
        })
    }

    fn record_command(&self, place: &Place) -> Result<Recording, CommandError> {
        let arguments = self.arguments;
        let dir = place.work.path().join("command");
        let made = std::fs::create_dir_all(&dir).and_then(|()| dir.canonicalize());
        let dir = made.map_err(|source| RunError::Place { path: dir, source })?;
        if let Some(setup) = &arguments.setup {
            let status = super::exec::shell(setup, &dir, &[])?;
            if status != 0 {
                let text = format!("--setup {setup}: ended with {status}");
                return Err(CommandError::Usage(text));
            }
        }
        let database = arguments.db.clone().unwrap_or_default();
        let recorded = Recorded {
            command: arguments.command.iter().map(super::exec::absolute).collect(),
            copies: arguments.copies,
            database: dir.join(database),
            dir,
            check_sql: arguments.check_sql.clone(),
            promise: arguments.acks_promise,
            deadline: arguments.deadline.unwrap_or(DEADLINE),
        };
        Ok(record_command(&recorded)?)
    }
}

/// SQLite's versions, as the recorded workers report the library that they loaded.
fn versions_of(recording: &Recording) -> impl Iterator<Item = u32> {
    let board = recording.header.board.iter();
    let lines = board.flat_map(|board| &board.recorded.1);
    lines.filter_map(|line| match line {
        Line::Life(life) => life.loaded.as_ref().map(|loaded| loaded.sqlite_version),
        _ => None,
    })
}

fn remove_tree(dir: &Path) -> Result<(), RunError> {
    std::fs::remove_dir_all(dir).map_err(|source| RunError::Place { path: dir.to_owned(), source })
}

/// What the settings of one report gave together.
#[derive(Default)]
struct Gathered {
    settings: Vec<PowerSetting>,
    findings: Vec<Finding>,
    by_kind: BTreeMap<FindingKind, u64>,
    versions: BTreeSet<u32>,
}

impl Gathered {
    fn take(&mut self, judged: Judged) {
        let Judged { setting, tally } = judged;
        let of = format!("{} {}", setting.name, setting.profile);
        for finding in tally.findings {
            let detail = format!("{of}: {}", finding.detail);
            self.find(Finding { detail, ..finding }, 0);
        }
        for (kind, count) in tally.by_kind {
            *self.by_kind.entry(kind).or_default() += count;
        }
        self.settings.push(setting);
    }

    fn find(&mut self, finding: Finding, count: u64) {
        if count > 0 {
            *self.by_kind.entry(finding.kind).or_default() += count;
        }
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    fn verdict(&self) -> Verdict {
        if self.settings.is_empty() {
            return Verdict::Inconclusive;
        }
        let kinds = self.by_kind.keys().map(|kind| kind.verdict());
        Verdict::merge(std::iter::once(Verdict::Pass).chain(kinds))
    }
}
