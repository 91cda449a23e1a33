//! One setting of a scenario of schedules, ready to be played and judged.

use crate::bundle::{Build, Bundle, BundleError, Manifest};
use crate::command::CommandError;
use crate::oracle::Judge;
use crate::plan::schedule::{Order, SchedulePlan};
use crate::run::exec::inspect;
use crate::run::machine::Machine;
use crate::run::schedule::{Arena, Ask, Cast, Played, Prepared, cycle_of, prepare};
use crate::run::trace::{Exit, Outcome, RunEnd};
use crate::run::{Engines, RunError};
use crate::scenario::schedule::{Program, Schedules};
use crate::verdict::{Finding, FindingKind};
use killpoint_worker::wire::{EXIT_OPEN, EXIT_STORE};
use std::path::{Path, PathBuf};

/// The exit code of a panic.
const PANICKED: i32 = 101;

/// What every schedule of one setting has in common.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) name: String,
    pub(super) asked: Schedules,
    pub(super) cast: Cast,
    pub(super) prepared: Prepared,
    pub(super) build: Build,
    judge: Judge,
}

/// What a schedule gave, judged.
pub(super) struct Judged {
    pub(super) played: Played,
    pub(super) findings: Vec<Finding>,
}

impl Stage {
    /// Prepares the files of a setting in `dir`.
    pub(super) fn prepare(
        name: &str,
        asked: &Schedules,
        setting: usize,
        engines: &Engines,
        dir: &Path,
    ) -> Result<Self, CommandError> {
        let (cast, build) = cast(asked, engines)?;
        let engine = asked.schedule.engine;
        let work = asked.work.as_ref().map(|work| (work, asked.setting[setting], engine));
        let prepared = prepare(work, &cast, &dir.join("prepare"))?;
        Ok(Self::of(name, asked, cast, prepared, build))
    }

    /// Takes the files of a bundle.
    pub(super) fn of_bundle(bundle: &Bundle, engines: &Engines) -> Result<Self, CommandError> {
        let (cast, build) = cast(&bundle.scenario, engines)?;
        let prepared = Prepared::kept(bundle.start.clone(), bundle.before.clone());
        Ok(Self::of(&bundle.manifest.name, &bundle.scenario, cast, prepared, build))
    }

    fn of(name: &str, asked: &Schedules, cast: Cast, prepared: Prepared, build: Build) -> Self {
        let mut judge = Judge::default();
        if let Some((plan, lines)) = &prepared.before {
            // What was found there is found by `before` too.
            drop(judge.after_fault(plan, lines));
        }
        Self { name: name.to_owned(), asked: asked.clone(), cast, prepared, build, judge }
    }

    /// What is wrong with the files before any schedule: then nothing that follows means anything.
    pub(super) fn before(&self) -> Vec<Finding> {
        let before = self.prepared.before.as_ref();
        before.map_or_else(Vec::new, |(plan, lines)| Judge::default().after_fault(plan, lines))
    }

    /// Refuses a bundle of another build.
    pub(super) fn is_build_of(&self, bundle: &Bundle, path: &Path) -> Result<(), BundleError> {
        let was = &bundle.manifest.cast;
        if *was == self.build {
            return Ok(());
        }
        let short = |build: &Build| {
            format!("{}, build {}", build.what, build.digest.get(..12).unwrap_or_default())
        };
        let (was, is) = (short(was), short(&self.build));
        Err(BundleError::OtherBuild { path: path.to_owned(), was, is })
    }

    /// A place to play in.
    pub(super) fn arena(&self, dir: &Path, cpu: Option<usize>) -> Result<Arena<'_>, RunError> {
        Arena::new(&self.prepared, &self.cast, dir, cpu)
    }

    /// Plays and judges.
    pub(super) fn play(
        &self,
        arena: &mut Arena<'_>,
        plan: &SchedulePlan,
        ask: Ask,
    ) -> Result<Judged, RunError> {
        let played = arena.play(plan, ask)?;
        let findings = self.judge(arena, plan, &played)?;
        Ok(Judged { played, findings })
    }

    pub(super) fn judge(
        &self,
        arena: &Arena<'_>,
        plan: &SchedulePlan,
        played: &Played,
    ) -> Result<Vec<Finding>, RunError> {
        let mut findings = Vec::new();
        if let Some(stuck) = &played.stuck {
            let kind = if stuck.deadlock { FindingKind::Deadlock } else { FindingKind::LiveLock };
            findings.push(Finding { kind, detail: stuck.describe() });
        } else if played.end == RunEnd::Deadline {
            let detail = "the processes did not end within the deadline".to_owned();
            findings.push(Finding { kind: FindingKind::Hung, detail });
        }
        match &self.cast {
            Cast::Workers(_) => {
                let cycle = cycle_of(plan);
                findings.extend(self.judge.clone().after_fault(&cycle, &played.lines));
            }
            Cast::Program(program) => {
                findings.extend(remains(program, &arena.database(), played)?);
            }
        }
        if plan.faults.is_empty() {
            findings.extend(exits(plan, played));
        }
        Ok(findings)
    }

    /// The whole of a failing schedule.
    pub(super) fn bundle(
        &self,
        seed: u64,
        plan: &SchedulePlan,
        judged: &Judged,
        dir: &Path,
    ) -> Bundle {
        let played = &judged.played;
        let order = match &plan.order {
            order if played.steps.is_empty() => order.clone(),
            _ => Order::Decided(played.decisions.clone()),
        };
        Bundle {
            manifest: Manifest {
                schema: crate::bundle::SCHEMA,
                name: self.name.clone(),
                killpoint: env!("CARGO_PKG_VERSION").to_owned(),
                seed: format!("{seed:#x}"),
                machine: Machine::here(dir),
                cast: self.build.clone(),
                findings: judged.findings.clone(),
                steps: played.steps.len(),
                left: played.left.clone(),
                digests: std::collections::BTreeMap::new(),
            },
            scenario: self.asked.clone(),
            plan: SchedulePlan { order, ..plan.clone() },
            before: self.prepared.before.clone(),
            history: played.lines.clone(),
            steps: played.steps.clone(),
            start: self.prepared.files.clone(),
            left: played.images.clone(),
        }
    }
}

/// Faults that landed.
pub(super) fn landed(played: &Played) -> u64 {
    let landed = played.receipts.iter().filter(|receipt| {
        !matches!(receipt.outcome, Outcome::NotPossible { .. } | Outcome::Unfinished)
    });
    landed.count() as u64
}

/// What runs, and which build of it.
fn cast(asked: &Schedules, engines: &Engines) -> Result<(Cast, Build), CommandError> {
    if let Some(program) = &asked.command {
        let program = absolute(program);
        let mut hash = blake3::Hasher::new();
        for word in &program.argv {
            hash.update(word.as_bytes());
            if let Ok(bytes) = std::fs::read(word) {
                hash.update(&bytes);
            }
        }
        let words: Vec<&str> =
            asked.command.iter().flat_map(|p| &p.argv).map(String::as_str).collect();
        let build = Build { what: words.join(" "), digest: hash.finalize().to_hex().to_string() };
        return Ok((Cast::Program(program), build));
    }
    let engine = engines.get(asked.schedule.engine).map_err(RunError::from)?;
    let loaded = &engine.loaded;
    let id = loaded.source_id.split_whitespace().last().unwrap_or_default();
    let version = crate::command::run::version(loaded.sqlite_version);
    let what = format!("SQLite {version}, source id {}", id.get(..12).unwrap_or(id));
    Ok((Cast::Workers(engines.clone()), Build { what, digest: engine.digest() }))
}

/// Each word that names a file from here, by its whole path; the program by where `PATH` has it.
fn absolute(program: &Program) -> Program {
    let place = |word: &String| {
        let path = Path::new(word);
        let there = path.is_file().then(|| path.canonicalize().ok()).flatten();
        there.map_or_else(|| word.clone(), |path| path.display().to_string())
    };
    let mut placed = program.clone();
    placed.argv = program.argv.iter().map(place).collect();
    placed.setup = program.setup.iter().map(place).collect();
    for words in [&mut placed.argv, &mut placed.setup] {
        if let Some(first) = words.first_mut()
            && !first.contains('/')
            && let Some(found) = in_path(first)
        {
            *first = found.display().to_string();
        }
    }
    placed
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// What is left of the database of a program.
fn remains(program: &Program, database: &Path, played: &Played) -> Result<Vec<Finding>, RunError> {
    let dir = database.parent().unwrap_or(Path::new(".")).to_owned();
    let (acked, refused) = (&played.acks.acked, &played.acks.refused);
    if !database.exists() {
        return Ok(Vec::new());
    }
    let remains = inspect(database, &dir, program.check_sql.as_deref(), acked, refused)?;
    let mut findings = Vec::new();
    let mut find = |kind, detail: String| findings.push(Finding { kind, detail });
    if let Some(why) = &remains.unreadable {
        find(FindingKind::Corrupt, format!("cannot be read: {why}"));
        return Ok(findings);
    }
    if let Some(first) = remains.integrity.first() {
        let count = remains.integrity.len();
        find(
            FindingKind::Corrupt,
            format!("integrity_check has {count} complaints, the first: {first}"),
        );
    }
    if let Some(first) = remains.missing.first() {
        let (count, all) = (remains.missing.len(), acked.len());
        let text = format!("{count} of {all} acknowledged are not there, the first: {first}");
        find(FindingKind::LostAckedWrite, text);
    }
    if let Some(first) = remains.present.first() {
        find(FindingKind::RefusedWritePresent, format!("{first} was refused and is there"));
    }
    Ok(findings)
}

/// Processes that ended as nobody asked.
fn exits(plan: &SchedulePlan, played: &Played) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (slot, exit) in played.exits.iter().enumerate() {
        let why = match exit {
            Some(Exit::Code(PANICKED)) => "it panicked".to_owned(),
            Some(Exit::Code(EXIT_OPEN | EXIT_STORE)) if !plan.lives.is_empty() => {
                message(played, slot).unwrap_or_else(|| "its store was unusable".to_owned())
            }
            Some(Exit::Code(code)) if *code != 0 && plan.lives.is_empty() => {
                format!("exit code {code}")
            }
            Some(Exit::Signal { signal, by_supervisor: false }) => format!("signal {signal}"),
            _ => continue,
        };
        let detail = format!("process {slot}: {why}");
        findings.push(Finding { kind: FindingKind::UnexpectedExit, detail });
    }
    findings
}

fn message(played: &Played, slot: usize) -> Option<String> {
    use crate::history::Line;
    played.lines.iter().find_map(|line| match line {
        Line::Life(life) if life.slot == slot => life.message.clone(),
        _ => None,
    })
}
