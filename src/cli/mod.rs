//! The `hardboard` command: one call of the board for each run of the process.
//!
//! Programs read stdout, people both. An error is one line on stderr that says what failed, where,
//! and what to do, and the exit code says the same to a program.
//!
//! In: arguments, variables of the environment, two writers. Out: an [`Exit`].
//! Not here: any rule of the board.

mod answer;
mod arguments;
mod dispatch;
mod perform;
mod store;
mod table;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

use crate::board::dispatch::tick::describe;
use crate::board::{Board, Session};
use crate::config::Config;
use crate::error::{Found, StoreError};
use crate::options::Options;
use answer::{Answer, one_line};
use arguments::{Arguments, Command};
use dispatch::Once;

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
    if let Command::Completions { shell } = arguments.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Arguments::command(), "hardboard", &mut script);
        return deliver(out, &String::from_utf8_lossy(&script));
    }
    let nowhere = |error: &StoreError| complaint(error, Path::new("settings"));
    let config = Config::new(options).load(arguments.config.as_deref(), &variable);
    let mut config = config.map_err(|error| nowhere(&error))?;
    let named = variable(DATABASE_VARIABLE).filter(|path| !path.is_empty());
    let database = arguments.db.or_else(|| named.map(PathBuf::from));
    if matches!(arguments.command, Command::Options) && database.is_none() {
        return give(out, Answer::options(&config.effective()), arguments.json, Path::new(""));
    }
    let database = database.ok_or_else(no_database)?;
    if let Command::Dispatch(how) = &arguments.command {
        return self::dispatch(how, &database, &config, arguments.json, out);
    }
    let answer = perform(arguments.command, &database, &mut config, &variable)
        .map_err(|error| complaint(&error, &database))?
        .ok_or_else(|| nothing_ready(&database))?;
    give(out, answer, arguments.json, &database)
}

/// Says what was done, and then what failed after that, if anything did.
fn give(
    out: &mut impl Write,
    answer: Answer,
    json: bool,
    database: &Path,
) -> Result<(), Complaint> {
    deliver(out, &if json { format!("{}\n", answer.json) } else { answer.text })?;
    answer.then.map_or(Ok(()), |error| Err(complaint(&error, database)))
}

fn no_database() -> Complaint {
    Complaint {
        exit: Exit::Usage,
        what: "no database is named".to_owned(),
        place: format!("--db and {DATABASE_VARIABLE}"),
        advice: "set one of them",
    }
}

fn nothing_ready(database: &Path) -> Complaint {
    Complaint {
        exit: Exit::Refused,
        what: "no task is ready".to_owned(),
        place: database.display().to_string(),
        advice: "create one, or try again later",
    }
}

fn dispatch(
    how: &arguments::Dispatch,
    database: &Path,
    config: &Config,
    json: bool,
    out: &mut impl Write,
) -> Result<(), Complaint> {
    let told = |error: StoreError| complaint(&error, database);
    if how.daemon {
        return dispatch::daemon(how, database, config, json, out).map_err(told);
    }
    match dispatch::once(how, database, config).map_err(told)? {
        Once::Ticked(answer) => give(out, answer, json, database),
        Once::Theirs(held) => Err(Complaint {
            exit: Exit::Busy,
            what: format!("{} dispatches", describe(&held)),
            place: database.display().to_string(),
            advice: "leave it to that one, or try again later",
        }),
    }
}

/// Makes the one call. `None`: there was nothing to claim.
fn perform(
    command: Command,
    database: &Path,
    config: &mut Config,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<Answer>, StoreError> {
    let mut session = new_session();
    match command {
        Command::Init => {
            let board = Board::create(database, &config.options)?;
            return Answer::opened(database, &board).map(Some);
        }
        Command::Keep(command) => return store::perform(command, database, config).map(Some),
        Command::Import { from, apply } => {
            let key = session.next_key();
            return perform::import(&from, apply, database, config, key).map(Some);
        }
        _ => {}
    }
    let mut board = Board::open(database, &config.options)?;
    if board.is_imported()? && config.take_hermes(variable)? {
        drop(board);
        board = Board::open(database, &config.options)?;
    }
    // The board is dropped, not closed: no failure to close may hide what was written.
    perform::call(command, &mut board, config, &mut session, variable)
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
        StoreError::NotClaimable { .. } | StoreError::NotForYou { .. } => {
            (Exit::Refused, "choose another task")
        }
        StoreError::NotAllowed { .. }
        | StoreError::Cycle { .. }
        | StoreError::NoSuchLink { .. }
        | StoreError::NoSuchAttachment { .. }
        | StoreError::TaskExists { .. }
        | StoreError::AlreadyWritten { .. } => (Exit::Refused, "see hardboard show"),
        StoreError::NoSuchSubscription { .. } | StoreError::SubscriptionExists { .. } => {
            (Exit::Refused, "see hardboard subscribe list")
        }
        StoreError::WorkerLives { .. } => (Exit::Refused, "stop the worker first"),
        StoreError::StaleDispatcher { .. } => (Exit::Refused, "stop this dispatcher"),
        StoreError::File { .. } => (Exit::Failed, "look at its place and permissions"),
        StoreError::PlanOutdated { .. } => (Exit::Refused, "make the plan again"),
        StoreError::Unsound { .. } => (Exit::Damaged, "stop all writers and see hardboard verify"),
        StoreError::Import { .. } => (Exit::Refused, "see hardboard import --help"),
        StoreError::Config { .. } => (Exit::Usage, "change the file"),
        StoreError::Invalid { .. } => (Exit::Usage, "see hardboard --help"),
        StoreError::Full { .. } => (Exit::Failed, "make room, then try again"),
        StoreError::Io { .. } => (Exit::Failed, "look at the disk, then try again"),
        StoreError::Beside { .. } => (Exit::Failed, "see that its directory can be written"),
        StoreError::Engine { .. } => {
            (Exit::Failed, "upgrade it, or accept it with HARDBOARD_ACCEPT_ENGINE")
        }
        StoreError::Moved { .. } => (Exit::Damaged, "see which file is the right one"),
        StoreError::RolledBack { .. } => {
            (Exit::Damaged, "put the right file back, or see hardboard recover --dry-run")
        }
        StoreError::Quarantined { .. } => (Exit::Damaged, "see hardboard recover --dry-run"),
        StoreError::OtherProcess { .. } => (Exit::Failed, "open it in this process"),
        StoreError::BrokenLog { .. } => {
            (Exit::Damaged, "stop all its processes at once, then hardboard recover")
        }
        StoreError::Corrupt { .. } => {
            (Exit::Damaged, "stop all writers and keep the file with its -wal and -shm")
        }
        StoreError::Indeterminate { .. } => (Exit::Unknown, "look before writing it again"),
        StoreError::Place { .. } | StoreError::PragmaRefused { .. } => {
            (Exit::Failed, "put the board on a local disk")
        }
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
