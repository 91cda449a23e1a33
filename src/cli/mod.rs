//! The `hardboard` command: one call of the board for each run of the process.
//!
//! Programs read stdout, people both. An error is one line on stderr that says what failed, where,
//! and what to do, and the exit code says the same to a program.
//!
//! In: arguments, variables of the environment, two writers. Out: an [`Exit`].
//! Not here: any rule of the board.

mod answer;
mod arguments;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use clap::error::ErrorKind;

use crate::board::{Board, Session};
use crate::error::{Found, StoreError};
use crate::options::Options;
use crate::{FencingToken, NewEvent, NewTask, TaskFilter, TaskId};
use answer::{Answer, one_line};
use arguments::{Arguments, Command};

/// The variable that names the database when `--db` does not.
pub const DATABASE_VARIABLE: &str = "HARDBOARD_DB";

/// How a run of the command ends. The numbers are those of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// What was asked for is done.
    Done = 0,
    /// The board's rules forbid it: a stale claim, a task that is not ready or not there, nothing
    /// to claim.
    Refused = 1,
    /// Bad arguments or options.
    Usage = 2,
    /// Another process held the lock for too long. Try again.
    Busy = 3,
    /// The write is wholly there or wholly absent, and it is not known which.
    Unknown = 4,
    /// The database is damaged, or is not a board.
    Damaged = 5,
    /// Anything else: it cannot be opened, the disk is full or fails, the answer was not taken.
    Failed = 70,
}

impl Exit {
    /// The exit code.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Refused => 1,
            Self::Usage => 2,
            Self::Busy => 3,
            Self::Unknown => 4,
            Self::Damaged => 5,
            Self::Failed => 70,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Runs the command.
///
/// `arguments` starts with the program's own name, and `variable` looks one up in the environment.
/// The answer goes to `out` and an error to `err`; if `err` does not take it, the exit code alone
/// tells.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Exit {
    run_with(Options::default(), arguments, variable, out, err)
}

/// As [`run`], with other options than the default ones for the environment to override.
fn run_with(
    options: Options,
    arguments: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Exit {
    match attempt(options, arguments, variable, out) {
        Ok(()) => Exit::Done,
        Err(complaint) => {
            writeln!(err, "hardboard: {complaint}").ok();
            complaint.exit
        }
    }
}

/// Why the command did not do what was asked for.
struct Complaint {
    exit: Exit,
    what: String,
    place: String,
    advice: &'static str,
}

impl fmt::Display for Complaint {
    /// One line, whatever the parts hold.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, place) = (one_line(&self.what), one_line(&self.place));
        write!(f, "{what}: {place}: {}", self.advice)
    }
}

fn attempt(
    options: Options,
    arguments: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
    out: &mut impl Write,
) -> Result<(), Complaint> {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) if !error.use_stderr() => return deliver(out, &error.render().to_string()),
        Err(error) => return Err(bad_arguments(&error)),
    };
    let database = arguments
        .db
        .or_else(|| variable(DATABASE_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from))
        .ok_or_else(|| Complaint {
            exit: Exit::Usage,
            what: "no database is named".to_owned(),
            place: format!("--db and {DATABASE_VARIABLE}"),
            advice: "set one of them",
        })?;
    let answer = options
        .with_overrides(variable)
        .and_then(|options| perform(arguments.command, &database, &options))
        .map_err(|error| complaint(&error, &database))?
        .ok_or_else(|| Complaint {
            exit: Exit::Refused,
            what: "no task is ready".to_owned(),
            place: database.display().to_string(),
            advice: "create one, or try again later",
        })?;
    let text = if arguments.json { format!("{}\n", answer.json) } else { answer.text };
    deliver(out, &text)?;
    answer.then.map_or(Ok(()), |error| Err(complaint(&error, &database)))
}

/// Makes the one call. `None`: there was nothing to claim.
fn perform(
    command: Command,
    database: &Path,
    options: &Options,
) -> Result<Option<Answer>, StoreError> {
    if matches!(command, Command::Init) {
        let board = Board::create(database, options)?;
        return Answer::opened(database, &board).map(Some);
    }
    let mut board = Board::open(database, options)?;
    // The board is dropped, not closed: no failure to close may hide what was written.
    call(command, &mut board)
}

fn call(command: Command, board: &mut Board) -> Result<Option<Answer>, StoreError> {
    let mut session = new_session();
    let key = session.next_key();
    Ok(Some(match command {
        Command::Init => return Ok(None),
        Command::Create { title, priority } => {
            let (task, commit) = board.create_task(key, &NewTask { title: &title, priority })?;
            Answer::wrote("created", task, &commit)
        }
        Command::List { status } => Answer::list(&board.tasks(TaskFilter { status })?),
        Command::Show { task } => {
            let task = TaskId::new(task);
            board.at_one_moment(|board| {
                let row = board.task(task)?.ok_or(StoreError::NoSuchTask { task })?;
                Ok(Answer::show(&row, &board.runs(task)?, &board.events(task)?))
            })?
        }
        Command::Claim { task, worker, lease_ms } => {
            let lease = Duration::from_millis(lease_ms);
            let claim = match task {
                Some(task) => Some(board.claim(key, TaskId::new(task), &worker, lease)?),
                None => board.claim_next(key, &worker, lease)?,
            };
            return Ok(claim.map(|claim| Answer::claimed(&claim)));
        }
        Command::Heartbeat { task, token, lease_ms } => {
            let (task, token) = (TaskId::new(task), FencingToken::new(token));
            let commit = board.heartbeat(key, task, token, Duration::from_millis(lease_ms))?;
            Answer::wrote("extended the claim of", task, &commit)
        }
        Command::Event { task, kind, payload, token } => {
            let task = TaskId::new(task);
            let events: Vec<_> =
                payload.iter().map(|payload| NewEvent { kind: &kind, payload }).collect();
            let token = token.map(FencingToken::new);
            let commit = board.append_events(key, task, token, &events)?;
            Answer::appended(events.len(), task, &commit)
        }
        Command::Complete { task, token, result } => {
            let (task, token) = (TaskId::new(task), FencingToken::new(token));
            let commit = board.complete(key, task, token, &result)?;
            Answer::wrote("completed", task, &commit)
        }
        Command::Tick => Answer::ticked(board.tick(&mut session)?),
        Command::Pragmas => Answer::pragmas(&board.pragmas()?),
    }))
}

/// A session that no other process had: the time in milliseconds, and the process id for those
/// that start in the same one.
fn new_session() -> Session {
    const PID_BITS: u32 = 22;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    let pid = i64::from(process::id()) & ((1 << PID_BITS) - 1);
    Session::new(((time << PID_BITS) | pid) & i64::MAX)
}

fn deliver(out: &mut impl Write, text: &str) -> Result<(), Complaint> {
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| Complaint {
        exit: Exit::Failed,
        what: format!("done, but the answer was not taken ({error})"),
        place: "standard output".to_owned(),
        advice: "look before doing it again",
    })
}

fn bad_arguments(error: &clap::Error) -> Complaint {
    let rendered = error.render().to_string();
    // The first paragraph says what is wrong, the others how to call the command.
    let first: Vec<_> =
        rendered.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let what = if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        "a command is missing".to_owned()
    } else {
        let first = first.join(" ");
        first.strip_prefix("error: ").unwrap_or(&first).to_owned()
    };
    Complaint {
        exit: Exit::Usage,
        what,
        place: "command line".to_owned(),
        advice: "see hardboard --help",
    }
}

/// Says what the error means to whoever called the command.
fn complaint(error: &StoreError, database: &Path) -> Complaint {
    let (exit, advice) = match error {
        StoreError::Busy { .. } => (Exit::Busy, "try again"),
        StoreError::StaleClaim { .. } => (Exit::Refused, "stop the work on this task"),
        StoreError::NoSuchTask { .. } => (Exit::Refused, "see hardboard list"),
        StoreError::NotClaimable { .. } => (Exit::Refused, "choose another task"),
        StoreError::Full { .. } => (Exit::Failed, "make room, then try again"),
        StoreError::Io { .. } => (Exit::Failed, "look at the disk, then try again"),
        StoreError::Beside { .. } => (Exit::Failed, "see that its directory can be written"),
        StoreError::BrokenLog { .. } => {
            (Exit::Damaged, "stop all its processes at once, then hardboard recover")
        }
        StoreError::Corrupt { .. } => {
            (Exit::Damaged, "stop all writers and keep the file with its -wal and -shm")
        }
        StoreError::Indeterminate { .. } => (Exit::Unknown, "look before writing it again"),
        StoreError::PragmaRefused { .. } => (Exit::Failed, "put the board on a local disk"),
        StoreError::Option { .. } => (Exit::Usage, "change it or unset it"),
        StoreError::Open { .. } => {
            (Exit::Failed, "make one with hardboard init, or name a file that can be written")
        }
        StoreError::NotABoard { found: Found::Empty, .. } => {
            (Exit::Damaged, "make it one with hardboard init")
        }
        StoreError::NotABoard { .. } => (Exit::Damaged, "name another file"),
        StoreError::Poisoned | StoreError::Sqlite { .. } => (Exit::Failed, "try again"),
    };
    Complaint { exit, what: what(error), place: database.display().to_string(), advice }
}

/// The error and its source, without the path, which has a place of its own in the line.
fn what(error: &StoreError) -> String {
    let text = match error {
        StoreError::Corrupt { .. } => "the database is damaged".to_owned(),
        StoreError::Open { .. } => "cannot open the database".to_owned(),
        StoreError::NotABoard { found, .. } => format!("not a board, {found}"),
        _ => error.to_string(),
    };
    match error.source().and_then(|source| source.downcast_ref()) {
        Some(rusqlite::Error::SqliteFailure(failure, Some(message))) => {
            format!("{text} ({message}, SQLite code {})", failure.extended_code)
        }
        Some(source) => format!("{text} ({source})"),
        None => text,
    }
}
