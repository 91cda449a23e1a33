//! `killpoint watch`: an unmodified program under the checker of the rules that SQLite relies on.

use super::{CommandError, print, say};
use crate::cli::{self, Format};
use crate::exit::Exit;
use crate::run::RunError;
use crate::run::trace::{
    Breach, Command, Databases, Finding, LookOn, Options, Run, RunEnd, Supervisor, Watcher,
};
use std::path::PathBuf;
use std::time::Duration;

/// Frames of a stack that are shown.
const FRAMES_SHOWN: usize = 12;

/// Carries out the command.
pub(crate) fn watch(arguments: &cli::Watch) -> Result<Exit, CommandError> {
    let databases = || databases(&arguments.db);
    let unwatched = if arguments.compare_unwatched {
        // Under the same supervisor, with nothing to stop at: what is compared is the watching.
        let options = Options::new(crate::run::trace::CallSet::NONE, databases()?);
        Some(under(options, arguments, &mut LookOn)?.elapsed)
    } else {
        None
    };
    let mut watcher = Watcher::new();
    if arguments.acks_promise_power_safety {
        watcher = watcher.acks_promise_power_safety();
    }
    let mut options = Watcher::options(databases()?);
    options.one_core = !arguments.any_core;
    let run = under(options, arguments, &mut watcher)?;
    let findings = watcher.into_findings();
    for finding in &findings {
        match arguments.format {
            Format::Text => say(&describe(finding)),
            Format::Jsonl => {
                let text = serde_json::to_string(finding)
                    .map_err(|error| CommandError::Usage(error.to_string()))?;
                print(&(text + "\n"))?;
            }
        }
    }
    tell_end(&run, unwatched, findings.len());
    Ok(match (findings.is_empty(), run.end) {
        (false, _) => Exit::Broken,
        // What was not watched to its end, or never touched a database, is no proof of anything.
        (true, RunEnd::AllExited | RunEnd::LeftoversKilled) if run.points > 0 => Exit::AsExpected,
        (true, _) => Exit::Inconclusive,
    })
}

pub(super) fn databases(paths: &[PathBuf]) -> Result<Databases, CommandError> {
    if paths.is_empty() {
        return Ok(Databases::Detect);
    }
    let absolute = paths.iter().map(|path| {
        // The file may not exist yet, its directory must.
        let (dir, name) =
            (path.parent().filter(|dir| !dir.as_os_str().is_empty()), path.file_name());
        let place = |source| CommandError::Place { what: "--db", path: path.clone(), source };
        let name = name.ok_or_else(|| {
            CommandError::Usage(format!("--db {}: not a file name", path.display()))
        })?;
        let dir = dir.unwrap_or_else(|| std::path::Path::new("."));
        Ok(dir.canonicalize().map_err(place)?.join(name))
    });
    Ok(Databases::At(absolute.collect::<Result<_, CommandError>>()?))
}

/// Runs the command to its end.
fn under(
    options: Options,
    arguments: &cli::Watch,
    driver: &mut dyn crate::run::trace::Driver,
) -> Result<Run, CommandError> {
    let Some((program, rest)) = arguments.command.split_first() else {
        return Err(CommandError::Usage("no command after --".to_owned()));
    };
    let deadline = arguments.deadline.unwrap_or(Duration::from_hours(1));
    let traced = |source| CommandError::Run(RunError::Trace { source });
    let mut supervisor = Supervisor::new(options.deadline(deadline)).map_err(traced)?;
    for _ in 0..arguments.copies {
        supervisor.spawn(&Command::new(program).args(rest)).map_err(traced)?;
    }
    supervisor.run(driver).map_err(traced)
}

/// One finding for a person: the rule, who, when, where, and the stack.
fn describe(finding: &Finding) -> String {
    let times =
        if finding.times > 1 { format!(", {} times", finding.times) } else { String::new() };
    let mut text = format!(
        "{}: {}\n  {} on {} ({:?}) by process {} ({}) after {:.3} s{times}",
        finding.breach.rule(),
        in_words(&finding.breach),
        finding.call.name(),
        finding.path.display(),
        finding.role,
        finding.process,
        finding.command,
        finding.at.as_secs_f64(),
    );
    let frames = finding.stack.frames.iter().take(FRAMES_SHOWN).enumerate();
    let stack: Vec<String> =
        frames.map(|(index, frame)| format!("\n    #{index:<2} {frame}")).collect();
    text.push_str(&stack.concat());
    text
}

/// What a breach means, in one sentence.
fn in_words(breach: &Breach) -> String {
    match breach {
        Breach::LocksDropped { closed_fd, locks } => {
            let held: Vec<String> =
                locks.iter().map(|lock| serde_json::to_string(lock).unwrap_or_default()).collect();
            format!(
                "closing descriptor {closed_fd} dropped the locks that this process held on the \
                 file through another one: {}",
                held.join(" ")
            )
        }
        Breach::CarriedOverFork { opened_by, fd } => {
            format!("descriptor {fd} was opened by process {opened_by} and carried over a fork")
        }
        Breach::RemovedWhileOpen { open_in } => {
            format!("removed while open in {}", processes(open_in))
        }
        Breach::RenamedWhileOpen { open_in } => {
            format!("renamed while open in {}", processes(open_in))
        }
        Breach::ReplacedWhileOpen { open_in } => {
            format!("another file took its name while it was open in {}", processes(open_in))
        }
        Breach::TruncatedWhileOpen { open_in } => {
            format!("cut without a lock while open in {}", processes(open_in))
        }
        Breach::TwoCopies { first, second } => format!(
            "two copies of SQLite in one process use the file, each drops the other's locks: \
             {first} and {second}"
        ),
        Breach::TwoPaths { first, second, process } => format!(
            "used as a database under two names, which have two WALs: {} (by process {process}) \
             and {}",
            first.display(),
            second.display()
        ),
        Breach::DifferentLocking { process } => {
            format!("written without any lock while process {process} locks it")
        }
        Breach::ForeignWrite { why } => format!("a write that did not come from SQLite ({why:?})"),
        Breach::CopyDuringTransaction { process, bytes } => format!(
            "{bytes} bytes were copied by plain reads while a transaction or checkpoint of \
             process {process} ran"
        ),
        Breach::CheckpointBeforeSync => {
            "a checkpoint wrote pages from WAL frames that were not yet synced".to_owned()
        }
        Breach::AckBeforeSync => {
            "a commit was acknowledged before its frames were synced".to_owned()
        }
        Breach::BackfillPastEnd { backfilled, frames } => format!(
            "the wal-index says that {backfilled} frames are in the database, and the WAL has \
             {frames}"
        ),
    }
}

fn processes(list: &[crate::run::trace::ProcessId]) -> String {
    let names: Vec<String> = list.iter().map(|process| format!("process {process}")).collect();
    names.join(", ")
}

fn tell_end(run: &Run, unwatched: Option<Duration>, findings: usize) {
    // Helpers that a shell starts on the way have nothing to tell.
    for process in run.processes.iter().filter(|p| p.spawned || p.points > 0) {
        let how = match (&process.exit, &process.cut_short_in) {
            (_, Some(place)) => format!("did not end: it was in {place}"),
            (Some(exit), None) => exit.to_string(),
            (None, None) => "no end was seen".to_owned(),
        };
        say(&format!("process {} ({}): {how}", process.process, process.command));
    }
    let cores = if run.one_core { "on one core with its watcher" } else { "on any core" };
    let overhead = match unwatched {
        Some(unwatched) => format!(
            "watched {:.3} s {cores}, unwatched {:.3} s on any core: {:.2} times",
            run.elapsed.as_secs_f64(),
            unwatched.as_secs_f64(),
            run.elapsed.as_secs_f64() / unwatched.as_secs_f64().max(1e-9)
        ),
        None => format!(
            "watched {:.3} s {cores} (--compare-unwatched runs the command once more and compares)",
            run.elapsed.as_secs_f64()
        ),
    };
    if run.points == 0 {
        say("no call on a SQLite database was seen: nothing could be judged");
    }
    say(&format!(
        "{findings} findings · {} calls stopped, {} on database files · {overhead}",
        run.stops, run.points
    ));
}
