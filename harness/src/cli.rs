//! The command line: what a person may ask for, and how a failure is told.

use crate::command::{self, CommandError};
use crate::exit::Exit;
use crate::report::tune::{LatencyBudget, LossBudget};
use crate::run::power::realfs::FileSystem;
use crate::scenario::power::Profile;
use clap::{Args, Parser, Subcommand, ValueEnum};
use hardboard::Durability;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// Kills real SQLite writers, and judges what survived.
///
/// Exit codes: 0 every scenario gave the verdict that it expects; 1 a promise was broken; 2 bad
/// arguments or scenario file; 3 inconclusive; 4 the harness is blind (a canary went unnoticed);
/// 70 the harness itself failed.
#[derive(Debug, Parser)]
#[command(name = "killpoint", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs scenario files, and judges every cycle.
    Run(Run),
    /// Compares pragma settings on one workload, in one table.
    Tune(Tune),
    /// Strikes one script at every point of it: kills, torn writes, failing calls.
    Sweep(Sweep),
    /// Runs any command as the victim: strikes it again and again, and judges what is left.
    Exec(Box<Exec>),
    /// Watches any command for breaches of the rules that SQLite relies on; strikes nothing.
    Watch(Watch),
    /// Records a run, and judges every state that a power cut could leave of it.
    Power(Box<Power>),
    /// Puts a real file system under power scenarios, and checks the crash models against it.
    RealFs(RealFs),
    /// Lists the builds of SQLite that processes can run on, and builds them.
    Engines(Engines),
    /// Runs a failing schedule again, from its bundle.
    Replay(Replay),
    /// Finds the smallest schedule with the finding of a bundle, and explains it.
    Shrink(Shrink),
    /// Judges a stored history again.
    Judge(Judge),
    /// Lists the scenarios that are built in.
    List,
}

/// What `run` and `tune` have in common.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// Seed of every random choice; decimal, or hexadecimal with 0x. Drawn anew if not given.
    #[arg(long, value_parser = parse_seed)]
    pub(crate) seed: Option<u64>,
    /// Go on with fresh seeds until this time is up: 60s, 10m.
    #[arg(long, value_parser = parse_budget)]
    pub(crate) budget: Option<Duration>,
    /// Directory under which the databases lie while they are under test.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// Directory for report.json, history.jsonl, SUMMARY.md and evidence.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// What goes to stdout: text for people, or one JSON object a line for programs.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// What goes to stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Jsonl,
}

#[derive(Args, Debug)]
pub(crate) struct Run {
    /// Scenario files.
    pub(crate) files: Vec<PathBuf>,
    /// Run the built-in controls first: each must be caught with its stated finding.
    #[arg(long)]
    pub(crate) canaries: bool,
    /// Cycles of each setting, in place of the scenario's own number.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub(crate) cycles: Option<u32>,
    /// Databases under test at once; one and a half times as many as there are cores if not given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) jobs: Option<u16>,
    /// Write JUnit XML to this file.
    #[arg(long)]
    pub(crate) junit: Option<PathBuf>,
    /// Print the plan of the first cycles as JSON lines, and do nothing.
    #[arg(long)]
    pub(crate) plan_only: bool,
    #[command(flatten)]
    pub(crate) engine: EngineChoice,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Tune {
    /// A scenario file with the settings to compare; the built-in matrix if not given.
    pub(crate) file: Option<PathBuf>,
    /// What a power cut may cost: 0, 10commits, 50ms (the commits of so long).
    #[arg(long, default_value = "0")]
    pub(crate) loss_budget: LossBudget,
    /// How long a commit may take: p99=5ms; also p50, p999, max.
    #[arg(long)]
    pub(crate) latency_budget: Option<LatencyBudget>,
    #[command(flatten)]
    pub(crate) engine: EngineChoice,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Sweep {
    /// Sweep files.
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Strikes at once; as many as there are cores if not given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) jobs: Option<u16>,
    /// Write JUnit XML to this file.
    #[arg(long)]
    pub(crate) junit: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) engine: EngineChoice,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Exec {
    /// Where to kill: a phase, with :N for its N-th point only (commit-page, wal-sync:2). May be
    /// given several times; commit-frame, commit-page and wal-sync if no fault is given.
    #[arg(long, value_name = "PHASE[:N]")]
    pub(crate) kill: Vec<String>,
    /// Where to kill inside a write, half of it done.
    #[arg(long, value_name = "PHASE[:N]")]
    pub(crate) tear: Vec<String>,
    /// Where to have a call fail: EIO@wal-sync.
    #[arg(long, value_name = "ERROR@PHASE[:N]")]
    pub(crate) fail: Vec<String>,
    /// Where to stop a process for so long: 500ms@commit-page.
    #[arg(long, value_name = "TIME@PHASE[:N]")]
    pub(crate) pause: Vec<String>,
    /// Copies that run at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) copies: u32,
    /// Cycles: each is one run with one fault.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cycles: u32,
    /// Cycles that a directory goes through before a new one takes its place.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) per_database: u32,
    /// The database, relative to the command's directory; found by itself if not given.
    #[arg(long)]
    pub(crate) db: Vec<PathBuf>,
    /// A shell command to run first in each new directory.
    #[arg(long)]
    pub(crate) setup: Option<String>,
    /// A query with the token as its parameter ?1: gives something if what was acknowledged is
    /// there.
    #[arg(long)]
    pub(crate) check_sql: Option<String>,
    /// A shell command that ends with 0 if all is there; acknowledged tokens stand line by line in
    /// the file named in `KILLPOINT_ACKS`, refused ones in `KILLPOINT_REFUSED`.
    #[arg(long)]
    pub(crate) check: Option<String>,
    /// How long one run may take: 60s.
    #[arg(long, value_parser = parse_budget)]
    pub(crate) deadline: Option<Duration>,
    /// Write JUnit XML to this file.
    #[arg(long)]
    pub(crate) junit: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) common: Common,
    /// The command; it runs in an empty directory of its own. A word of it that names a file from
    /// here is made absolute.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

#[derive(Args, Debug)]
pub(crate) struct Watch {
    /// The database; found by itself if not given.
    #[arg(long)]
    pub(crate) db: Vec<PathBuf>,
    /// Copies that run at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) copies: u32,
    /// How long the command may take: 10m.
    #[arg(long, value_parser = parse_budget)]
    pub(crate) deadline: Option<Duration>,
    /// Run the command unwatched first, and compare the times.
    #[arg(long)]
    pub(crate) compare_unwatched: bool,
    /// Leave a program of one thread on any core. Else it shares one with its watcher, where a stop
    /// costs half, while there is no second thread
    #[arg(long)]
    pub(crate) any_core: bool,
    /// Take each acknowledgement for a promise that the commit survives a power cut.
    #[arg(long)]
    pub(crate) acks_promise_power_safety: bool,
    /// What goes to stdout: text for people, or one JSON object a line for programs.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    /// The command.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// Which SQLite the processes run on.
#[derive(Args, Clone, Debug)]
pub(crate) struct EngineChoice {
    /// SQLite for all processes, in place of what the scenario says: a name that `killpoint
    /// engines` lists, or a libsqlite3 by path. What looks at their files stays the bundled one.
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) engine: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct RealFs {
    /// Power scenarios: their runs are recorded on the file system. Needs root.
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// The file system: ext4, xfs, btrfs; may be given several times. All that are there if not
    /// given.
    #[arg(long)]
    pub(crate) on: Vec<FileSystem>,
    /// Power cuts of each setting and file system; a quarter as many on a lying disk, as a control.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(4..))]
    pub(crate) cuts: u32,
    #[command(flatten)]
    pub(crate) engine: EngineChoice,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct Engines {
    /// Build these first; all if none is named.
    #[arg(long, value_name = "NAME", num_args = 0..)]
    pub(crate) build: Option<Vec<String>>,
    /// What goes to stdout: text for people, or one JSON object a line for programs.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

#[derive(Args, Debug)]
pub(crate) struct Power {
    /// Power scenarios: their runs are recorded and enumerated.
    pub(crate) files: Vec<PathBuf>,
    /// Run the built-in controls of power loss: each must be caught with its stated finding.
    #[arg(long)]
    pub(crate) canaries: bool,
    /// A recording that was kept: it is enumerated again, and nothing is run.
    #[arg(long)]
    pub(crate) recording: Vec<PathBuf>,
    /// The crash model, in place of the scenario's own: strict, ordered, torn-page, lying-disk,
    /// no-psow. May be given several times.
    #[arg(long)]
    pub(crate) profile: Vec<Profile>,
    /// Different images of each recording and profile beyond its prefixes, in place of the
    /// scenario's own number.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) states: Option<u32>,
    /// Threads; as many as there are cores if not given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) jobs: Option<u16>,
    /// Keep the recording in this file; with --out it is kept there anyway.
    #[arg(long)]
    pub(crate) save: Option<PathBuf>,
    /// The database of a command, relative to the command's directory.
    #[arg(long)]
    pub(crate) db: Option<PathBuf>,
    /// A query with the token as its parameter ?1: gives something if what was acknowledged is
    /// there.
    #[arg(long)]
    pub(crate) check_sql: Option<String>,
    /// What an acknowledgement of a command promises to survive, if it does not say so itself:
    /// power or process.
    #[arg(long, default_value_t = Durability::Power)]
    pub(crate) acks_promise: Durability,
    /// Copies of a command that run at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) copies: u32,
    /// A shell command to run first in the command's directory.
    #[arg(long)]
    pub(crate) setup: Option<String>,
    /// How long a command may take: 60s.
    #[arg(long, value_parser = parse_budget)]
    pub(crate) deadline: Option<Duration>,
    #[command(flatten)]
    pub(crate) engine: EngineChoice,
    #[command(flatten)]
    pub(crate) common: Common,
    /// A command to record; it runs in an empty directory of its own. A word of it that names a
    /// file from here is made absolute.
    #[arg(last = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

#[derive(Args, Debug)]
pub(crate) struct Replay {
    /// What `run` wrote.
    pub(crate) bundle: PathBuf,
    /// How often.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) times: u32,
    /// Run it although it was made with another engine version or worker build.
    #[arg(long)]
    pub(crate) any_build: bool,
    /// Directory under which the database lies; memory if there is such a place.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) engine: EngineChoice,
}

#[derive(Args, Debug)]
pub(crate) struct Shrink {
    /// What `run` wrote.
    pub(crate) bundle: PathBuf,
    /// How long it may take: 2m.
    #[arg(long, value_parser = parse_budget)]
    pub(crate) budget: Option<Duration>,
    /// The smaller bundle; beside the first if not given.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// A scenario of its own to write, as for `scenarios/regression/`.
    #[arg(long)]
    pub(crate) scenario: Option<PathBuf>,
    /// Shrink it although it was made with another engine version or worker build.
    #[arg(long)]
    pub(crate) any_build: bool,
    /// Directory under which the database lies; memory if there is such a place.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
}

/// Where no disk is waited for, if there is such a place.
fn memory_place(dir: Option<&PathBuf>) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    dir.cloned().unwrap_or_else(|| if memory.is_dir() { memory } else { std::env::temp_dir() })
}

impl Replay {
    /// Where the database lies.
    pub(crate) fn place(&self) -> PathBuf {
        memory_place(self.dir.as_ref())
    }
}

impl Shrink {
    /// Where the database lies.
    pub(crate) fn place(&self) -> PathBuf {
        memory_place(self.dir.as_ref())
    }
}

#[derive(Args, Debug)]
pub(crate) struct Judge {
    /// A history.jsonl.
    pub(crate) history: PathBuf,
}

fn parse_seed(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(&digits.replace('_', ""), 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "a seed is a number of 64 bits: 1234 or 0x5eed".to_owned())
}

fn parse_budget(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(budget) if budget.is_zero() => Err("a budget of no time runs nothing".to_owned()),
        Ok(budget) => Ok(budget),
        Err(error) => Err(format!("{error}; write 60s or 10m")),
    }
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let wrong = error.use_stderr();
            // Nothing can be told if the terminal is gone.
            drop(error.print());
            return if wrong { Exit::Usage } else { Exit::AsExpected };
        }
    };
    let done = match cli.command {
        Command::Run(run) => command::run(&run),
        Command::Tune(tune) => command::tune(&tune),
        Command::Sweep(sweep) => command::sweep(&sweep),
        Command::Exec(exec) => command::exec(&exec),
        Command::Watch(watch) => command::watch(&watch),
        Command::Power(power) => command::power(&power),
        Command::RealFs(real_fs) => command::real_fs(&real_fs),
        Command::Engines(engines) => command::engines(&engines),
        Command::Replay(replay) => command::replay(&replay),
        Command::Shrink(shrink) => command::shrink(&shrink),
        Command::Judge(judge) => command::judge(&judge),
        Command::List => command::list(),
    };
    done.unwrap_or_else(|error| {
        tell(&error);
        error.exit()
    })
}

/// One line on stderr, whatever the error's text holds.
fn tell(error: &CommandError) {
    let text = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    drop(writeln!(std::io::stderr(), "killpoint: {text}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn seeds_are_read_in_both_bases() {
        assert_eq!(parse_seed("0x5eed"), Ok(0x5eed));
        assert_eq!(parse_seed("17"), Ok(17));
        assert!(parse_seed("seed").is_err());
    }

    #[test]
    fn budgets_are_read_with_their_unit() {
        assert_eq!(parse_budget("60s"), Ok(Duration::from_mins(1)));
        assert_eq!(parse_budget("10m"), Ok(Duration::from_mins(10)));
        assert!(parse_budget("0s").is_err());
        assert!(parse_budget("ten").is_err());
    }
}
