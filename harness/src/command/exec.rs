//! `killpoint exec`: any command as the victim, in any language, on any SQLite.
//!
//! Each cycle runs the copies once with one fault at one point, then recovers copies of the
//! database and asks for everything that was ever acknowledged on it. The first cycle on each
//! database is undisturbed: it shows which points there are, and that the check holds when nothing
//! is broken.

use super::place::Place;
use super::progress::{Progress, interruptible};
use super::run::{common_words, fresh_seed, write_results};
use super::{CommandError, print, say};
use crate::cli;
use crate::exit::Exit;
use crate::plan::Stream;
use crate::report::exec::ExecReport;
use crate::report::{Engine, NOT_SHOWN, Report, SCHEMA, bound};
use crate::run::RunError;
use crate::run::exec::{Executed, Hit, Remains, Victim, execute, inspect};
use crate::run::machine::{self, Machine};
use crate::run::trace::{
    ErrorCode, Exit as End, Fault, KillWhen, Outcome, Phase, PhasePattern, RunEnd, Whom,
};
use crate::verdict::{Finding, FindingKind, Verdict};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Carries out the command.
pub(crate) fn exec(arguments: &cli::Exec) -> Result<Exit, CommandError> {
    let blows = blows(arguments)?;
    let mut place = Place::make(&arguments.common)?;
    let seed = arguments.common.seed.unwrap_or_else(fresh_seed);
    let command = command_line(arguments, seed);
    say(&format!("repeat: {command}"));
    let began = Instant::now();
    let budget = arguments.common.budget.unwrap_or_default();
    let interrupted = interruptible()?;
    let mut session = Session::new(arguments, blows, seed);
    let progress = Progress::new("exec", arguments.cycles.into());
    for cycle in 0.. {
        if cycle >= arguments.cycles && began.elapsed() >= budget {
            break;
        }
        if interrupted.load(Ordering::Relaxed) {
            session.find(FindingKind::Interrupted, format!("stopped after {cycle} cycles"));
            break;
        }
        session.cycle(cycle, place.work.path())?;
        session.cycles += 1;
        progress.step();
        if session.verdict() == Verdict::Fail {
            break;
        }
    }
    drop(progress);
    let mut told = session.tell(arguments);
    told.elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let exit = Exit::of(told.as_expected, false, told.verdict);
    if exit == Exit::Broken {
        place.keep();
        let to = place.out.join("evidence");
        super::execute::copy_tree(&session.dir(place.work.path()), &to)?;
        say(&format!("evidence: {}", to.display()));
    }
    finish(told, exit, &mut place, arguments, (command, seed))?;
    Ok(exit)
}

/// Tells the end, and writes what was asked for.
fn finish(
    told: ExecReport,
    exit: Exit,
    place: &mut Place,
    arguments: &cli::Exec,
    (command, seed): (String, u64),
) -> Result<(), CommandError> {
    say(&format!("{} (exit {}): {}", told.verdict, exit.code(), told.line()));
    if arguments.common.format == cli::Format::Jsonl {
        let line =
            serde_json::to_string(&told).map_err(|error| CommandError::Usage(error.to_string()))?;
        print(&(line + "\n"))?;
    }
    let report = Report {
        schema: SCHEMA,
        killpoint: env!("CARGO_PKG_VERSION").to_owned(),
        command,
        seed: format!("{seed:#x}"),
        engine: Engine {
            sqlite_version: "the command's own".to_owned(),
            judge_sqlite_version: rusqlite::version().to_owned(),
        },
        machine: Machine::here(place.work.path()),
        exit_code: exit.code(),
        peak_memory_mib: machine::peak_memory_mib(),
        error: None,
        scenarios: Vec::new(),
        configs: Vec::new(),
        sweeps: Vec::new(),
        powers: Vec::new(),
        execs: vec![told],
        schedules: Vec::new(),
        recommendation: None,
        not_shown: NOT_SHOWN.iter().map(|text| (*text).to_owned()).collect(),
    };
    write_results(&report, place, arguments.junit.as_deref(), exit)
}

/// The command that does the same again.
fn command_line(arguments: &cli::Exec, seed: u64) -> String {
    let mut words = vec!["killpoint exec".to_owned()];
    let lists = [
        ("--kill", &arguments.kill),
        ("--tear", &arguments.tear),
        ("--fail", &arguments.fail),
        ("--pause", &arguments.pause),
    ];
    for (flag, values) in lists {
        words.extend(values.iter().map(|value| format!("{flag} {value}")));
    }
    words.push(format!("--copies {} --cycles {}", arguments.copies, arguments.cycles));
    words.push(format!("--per-database {}", arguments.per_database));
    words.extend(arguments.db.iter().map(|db| format!("--db {}", quoted(db.as_os_str()))));
    let texts = [
        ("--setup", &arguments.setup),
        ("--check-sql", &arguments.check_sql),
        ("--check", &arguments.check),
    ];
    for (flag, value) in texts {
        words.extend(value.iter().map(|value| format!("{flag} {}", quoted(OsStr::new(value)))));
    }
    if let Some(deadline) = arguments.deadline {
        let text = humantime::format_duration(deadline).to_string().replace(' ', "");
        words.push(format!("--deadline {text}"));
    }
    common_words(&arguments.common, seed, &mut words);
    words.push("--".to_owned());
    words.extend(arguments.command.iter().map(|word| quoted(word)));
    words.join(" ")
}

/// A word as a shell takes it for one.
fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@,+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A fault with the points that it may strike.
#[derive(Clone, Copy, Debug)]
struct Blow {
    pattern: PhasePattern,
    /// Only this one of them; none: any.
    nth: Option<u64>,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Kill,
    Tear,
    Fail(ErrorCode),
    Pause(Duration),
}

/// The faults that were asked for, or the usual ones.
fn blows(arguments: &cli::Exec) -> Result<Vec<Blow>, CommandError> {
    let mut blows = Vec::new();
    for text in &arguments.kill {
        blows.push(blow("--kill", text, text, What::Kill)?);
    }
    for text in &arguments.tear {
        blows.push(blow("--tear", text, text, What::Tear)?);
    }
    for text in &arguments.fail {
        let (code, at) = split("--fail", text, "EIO@wal-sync")?;
        let named: Result<ErrorCode, _> =
            serde_json::from_value(serde_json::Value::String(code.to_owned()));
        let code = named.map_err(|error| CommandError::Usage(format!("--fail {text}: {error}")))?;
        blows.push(blow("--fail", text, at, What::Fail(code))?);
    }
    for text in &arguments.pause {
        let (time, at) = split("--pause", text, "500ms@commit-page")?;
        let time = humantime::parse_duration(time)
            .map_err(|error| CommandError::Usage(format!("--pause {text}: {error}")))?;
        blows.push(blow("--pause", text, at, What::Pause(time))?);
    }
    if blows.is_empty() {
        for phase in [Phase::CommitFrame, Phase::CommitPage, Phase::WalSync] {
            blows.push(Blow { pattern: phase.into(), nth: None, what: What::Kill });
        }
    }
    Ok(blows)
}

fn split<'t>(flag: &str, text: &'t str, example: &str) -> Result<(&'t str, &'t str), CommandError> {
    text.split_once('@').ok_or_else(|| {
        CommandError::Usage(format!("{flag} {text}: write what and where, as in {example}"))
    })
}

fn blow(flag: &str, text: &str, at: &str, what: What) -> Result<Blow, CommandError> {
    let wrong =
        |error: &dyn std::fmt::Display| CommandError::Usage(format!("{flag} {text}: {error}"));
    let (name, nth) = match at.split_once(':') {
        None => (at, None),
        Some((name, nth)) => match nth.parse::<u64>() {
            Ok(nth) if nth > 0 => (name, Some(nth)),
            _ => return Err(wrong(&"after the colon goes a number from 1")),
        },
    };
    let pattern = name.parse().map_err(|error| wrong(&error))?;
    Ok(Blow { pattern, nth, what })
}

/// What has been seen and found so far.
struct Session<'a> {
    arguments: &'a cli::Exec,
    blows: Vec<Blow>,
    choices: Stream,
    /// Points of the last undisturbed run.
    usual: BTreeMap<Phase, u64>,
    database: u32,
    acked: Vec<String>,
    refused: Vec<String>,
    findings: Vec<Finding>,
    landed: BTreeMap<String, u64>,
    planned: u64,
    acked_ever: u64,
    checked: u64,
    bad: u64,
    cycles: u64,
    databases: Vec<PathBuf>,
}

impl<'a> Session<'a> {
    fn new(arguments: &'a cli::Exec, blows: Vec<Blow>, seed: u64) -> Self {
        Self {
            arguments,
            blows,
            choices: Stream::new(seed, "exec"),
            usual: BTreeMap::new(),
            database: 0,
            acked: Vec::new(),
            refused: Vec::new(),
            findings: Vec::new(),
            landed: BTreeMap::new(),
            planned: 0,
            acked_ever: 0,
            checked: 0,
            bad: 0,
            cycles: 0,
            databases: Vec::new(),
        }
    }

    fn dir(&self, work: &Path) -> PathBuf {
        work.join(format!("database-{}", self.database))
    }

    fn find(&mut self, kind: FindingKind, detail: String) {
        self.findings.push(Finding { kind, detail });
    }

    fn verdict(&self) -> Verdict {
        Verdict::merge(
            std::iter::once(Verdict::Pass).chain(self.findings.iter().map(|f| f.kind.verdict())),
        )
    }

    fn cycle(&mut self, cycle: u32, work: &Path) -> Result<(), CommandError> {
        let first = cycle.is_multiple_of(self.arguments.per_database);
        if first {
            let old = self.dir(work);
            if old.exists() {
                std::fs::remove_dir_all(&old).map_err(|source| RunError::place(&old, source))?;
            }
            self.database += 1;
            (self.acked, self.refused) = (Vec::new(), Vec::new());
            self.set_up(&self.dir(work))?;
        }
        let dir = self
            .dir(work)
            .canonicalize()
            .map_err(|source| RunError::place(&self.dir(work), source))?;
        let victim = Victim {
            command: self.arguments.command.iter().map(absolute).collect(),
            copies: self.arguments.copies,
            databases: self.arguments.db.iter().map(|db| dir.join(db)).collect(),
            dir: dir.clone(),
            deadline: self.arguments.deadline.unwrap_or(Duration::from_mins(1)),
        };
        let hit = if first { None } else { Some(self.choose()) };
        let executed = execute(&victim, hit)?;
        self.take(cycle, hit, &executed);
        if first {
            self.usual.clone_from(&executed.phases);
        }
        self.judge(cycle, &dir)
    }

    fn set_up(&self, dir: &Path) -> Result<(), CommandError> {
        std::fs::create_dir_all(dir).map_err(|source| RunError::place(dir, source))?;
        let Some(setup) = &self.arguments.setup else { return Ok(()) };
        let status = shell(setup, dir, &[])?;
        if status == 0 {
            return Ok(());
        }
        Err(CommandError::Usage(format!("--setup {setup}: ended with {status}")))
    }

    /// The next fault, at a point that the undisturbed run has shown to be there.
    fn choose(&mut self) -> Hit {
        let blow = self.blows[usize::try_from(self.planned).unwrap_or(0) % self.blows.len()];
        self.planned += 1;
        let there: u64 = self
            .usual
            .iter()
            .filter(|(phase, _)| blow.pattern.matches(**phase))
            .map(|(_, count)| count)
            .sum();
        let most = u32::try_from(there).unwrap_or(u32::MAX).max(1);
        let nth = blow.nth.unwrap_or_else(|| self.choices.within([1, most]).into());
        // Now one dies and the others go on, now all die at once.
        let all = self.arguments.copies > 1 && self.planned.is_multiple_of(2);
        let whom = if all { Whom::All } else { Whom::Copy };
        let fault = match blow.what {
            What::Kill => Fault::Kill { when: KillWhen::Before, whom },
            What::Tear => Fault::Kill { when: KillWhen::Inside { bytes: 12 }, whom },
            What::Fail(code) => Fault::Fail(code),
            What::Pause(time) => {
                Fault::Pause { ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX) }
            }
        };
        Hit { pattern: blow.pattern, nth, fault }
    }

    fn take(&mut self, cycle: u32, hit: Option<Hit>, executed: &Executed) {
        self.acked_ever += executed.acked.len() as u64;
        self.acked.extend_from_slice(&executed.acked);
        self.refused.extend_from_slice(&executed.refused);
        for database in &executed.databases {
            if !self.databases.contains(database) {
                self.databases.push(database.clone());
            }
        }
        if let (Some(_), Some(receipt)) = (hit, &executed.receipt) {
            let landed =
                !matches!(receipt.outcome, Outcome::NotPossible { .. } | Outcome::Unfinished);
            if landed {
                *self.landed.entry(receipt.phase.to_string()).or_default() += 1;
            }
        }
        if executed.strange > 0 {
            let lines = executed.strange;
            let detail = format!("cycle {cycle}: {lines} lines that are not of the protocol");
            self.find(FindingKind::LedgerCutShort, detail);
        }
        if executed.end == RunEnd::Deadline {
            self.find(FindingKind::Hung, format!("cycle {cycle}: not over by its deadline"));
        }
        for (command, exit) in &executed.exits {
            if let Some(End::Signal { signal, by_supervisor: false }) = exit {
                let detail = format!("cycle {cycle}: signal {signal} ended {command}");
                self.find(FindingKind::UnexpectedExit, detail);
            }
            if let (None, Some(End::Code(code @ 1..))) = (hit, exit) {
                let detail = format!("cycle {cycle}: undisturbed, {command} ended with {code}");
                self.find(FindingKind::UnexpectedExit, detail);
            }
        }
    }

    fn judge(&mut self, cycle: u32, dir: &Path) -> Result<(), CommandError> {
        let query = self.arguments.check_sql.as_deref();
        let databases: Vec<PathBuf> = self
            .databases
            .iter()
            .filter(|db| db.starts_with(dir) && db.exists())
            .cloned()
            .collect();
        for database in &databases {
            let remains = inspect(database, dir, query, &self.acked, &self.refused)?;
            self.checked += 1;
            let before = self.findings.len();
            self.weigh(cycle, database, &remains);
            self.bad += u64::from(self.findings.len() > before);
        }
        let Some(check) = &self.arguments.check else { return Ok(()) };
        let list = |name: &str, tokens: &[String]| {
            let path = dir.join(name);
            std::fs::write(&path, tokens.join("\n") + "\n")
                .map(|()| path.clone())
                .map_err(|source| RunError::place(&path, source))
        };
        let acks = list("killpoint-acks", &self.acked)?;
        let refused = list("killpoint-refused", &self.refused)?;
        let environment =
            [("KILLPOINT_ACKS", acks.as_os_str()), ("KILLPOINT_REFUSED", refused.as_os_str())];
        let status = shell(check, dir, &environment)?;
        if status != 0 {
            let detail = format!("cycle {cycle}: --check ended with {status}: {check}");
            self.find(FindingKind::LostAckedWrite, detail);
        }
        Ok(())
    }

    fn weigh(&mut self, cycle: u32, database: &Path, remains: &Remains) {
        let name = database.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let at = format!("cycle {cycle}, {name}");
        if let Some(why) = &remains.unreadable {
            self.find(FindingKind::Corrupt, format!("{at}: cannot be read: {why}"));
            return;
        }
        if let Some(first) = remains.integrity.first() {
            self.find(FindingKind::Corrupt, format!("{at}: integrity_check: {first}"));
        }
        if !remains.stable {
            let detail = format!("{at}: two recoveries, or two checkpoints, gave different files");
            self.find(FindingKind::RecoveryDiverged, detail);
        }
        if let Some(first) = remains.missing.first() {
            let count = remains.missing.len();
            let detail = format!("{at}: {count} acknowledged are not there, the first: {first}");
            self.find(FindingKind::LostAckedWrite, detail);
        }
        if let Some(first) = remains.present.first() {
            let count = remains.present.len();
            let detail = format!("{at}: {count} refused are there, the first: {first}");
            self.find(FindingKind::RefusedWritePresent, detail);
        }
    }

    /// Tells what was found and what was not judged; gives all that was seen.
    fn tell(&mut self, arguments: &cli::Exec) -> ExecReport {
        let mut not_judged = vec!["power loss".to_owned()];
        let landed: u64 = self.landed.values().sum();
        if landed == 0 {
            let planned = self.planned;
            let detail = format!("none of {planned} planned faults landed");
            self.find(FindingKind::FaultNotDelivered, detail);
        }
        if self.checked == 0 {
            let detail = "no SQLite database was met: name it with --db".to_owned();
            self.find(FindingKind::FaultNotDelivered, detail);
        }
        let asks = self.arguments.check_sql.is_some() || self.arguments.check.is_some();
        if self.acked_ever == 0 {
            let text = "whether acknowledged writes survive, since nothing was acknowledged (write \
                        `ack TOKEN` lines to the descriptor in KILLPOINT_ACK_FD)";
            not_judged.push(text.to_owned());
            if asks {
                let detail = "a check was given, and nothing was ever acknowledged".to_owned();
                self.find(FindingKind::NothingAcked, detail);
            }
        } else if !asks {
            let detail = "writes were acknowledged, and neither --check-sql nor --check says how \
                          to ask for them";
            self.find(FindingKind::LedgerCutShort, detail.to_owned());
        }
        for text in &not_judged {
            say(&format!("not judged: {text}"));
        }
        for finding in self.findings.iter().take(10) {
            say(&format!("{}: {}", finding.kind, finding.detail));
        }
        let words: Vec<String> = arguments.command.iter().map(|word| quoted(word)).collect();
        let verdict = self.verdict();
        ExecReport {
            victim: words.join(" "),
            copies: arguments.copies,
            verdict,
            as_expected: verdict == Verdict::Pass,
            findings: self.findings.clone(),
            cycles: self.cycles,
            faults: self.planned,
            landed_by_phase: self.landed.clone(),
            acked_ops: self.acked_ever,
            recoveries: self.checked,
            bad_recovery_share: bound::upper_95(self.bad, self.checked),
            not_judged,
            elapsed_ms: 0,
        }
    }
}

/// A word as it means the same in another directory: what names a file from here, made absolute.
pub(super) fn absolute(word: &OsString) -> OsString {
    let path = Path::new(word);
    let names_a_file = path.is_relative() && path.components().count() > 1 && path.exists();
    if names_a_file && let Ok(path) = path.canonicalize() {
        return path.into_os_string();
    }
    word.clone()
}

/// Runs a shell command in `dir`, and gives its exit code.
pub(super) fn shell(
    text: &str,
    dir: &Path,
    environment: &[(&str, &OsStr)],
) -> Result<i32, CommandError> {
    let status = std::process::Command::new("/bin/sh")
        .args(["-c", text])
        .current_dir(dir)
        .envs(environment.iter().copied())
        .status()
        .map_err(|source| RunError::System { what: "/bin/sh", source })?;
    Ok(status.code().unwrap_or(-1))
}
