//! What the command takes.
//!
//! Plain data and its help texts. Not here: what the commands do.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::board::task::Status;

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   refused: a stale claim, a task not ready or not there, nothing to claim
  2   bad arguments or options
  3   busy: another process held the lock for too long, try again
  4   unknown outcome: the write is wholly there or wholly absent
  5   the database is damaged, or is not a board
  70  anything else: it cannot be opened, the disk is full or fails

Environment:
  HARDBOARD_DB                 the database, if --db does not name it
  HARDBOARD_SYNCHRONOUS        normal, full (default) or extra
  HARDBOARD_WAL_AUTOCHECKPOINT pages in the log before a commit checkpoints it (default 1000)";

/// A task board in one SQLite file, for many processes at the same time
#[derive(Debug, Parser)]
#[command(name = "hardboard", version, after_help = EXIT_CODES)]
pub(super) struct Arguments {
    /// The database file
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) db: Option<PathBuf>,

    /// Answer with one line of JSON
    #[arg(long, global = true)]
    pub(super) json: bool,

    #[command(subcommand)]
    pub(super) command: Command,
}

/// One call of the board.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a board, or see that there is one
    Init,
    /// Make a task
    Create {
        /// What is to be done
        title: String,
        /// The greater one is claimed first
        #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_name = "N")]
        priority: i64,
    },
    /// List the tasks
    List {
        /// Only those that stand so: ready, running or done
        #[arg(long, value_parser = parse_status, value_name = "S")]
        status: Option<Status>,
    },
    /// Show a task with its runs and events
    Show {
        /// The number of the task
        #[arg(allow_negative_numbers = true)]
        task: i64,
    },
    /// Claim a task, or the ready one of the highest priority
    Claim {
        /// The number of the task
        #[arg(allow_negative_numbers = true)]
        task: Option<i64>,
        /// Who claims it
        #[arg(long, value_name = "W")]
        worker: String,
        /// How long before the claim may be taken back
        #[arg(long, value_name = "N")]
        lease_ms: u64,
    },
    /// Say that the holder of a claim is alive
    Heartbeat {
        /// The number of the task
        #[arg(allow_negative_numbers = true)]
        task: i64,
        /// The token of the claim
        #[arg(long, allow_negative_numbers = true, value_name = "T")]
        token: i64,
        /// How long from now before the claim may be taken back
        #[arg(long, value_name = "N")]
        lease_ms: u64,
    },
    /// Append one event for each payload, all or none
    Event {
        /// The number of the task
        #[arg(allow_negative_numbers = true)]
        task: i64,
        /// What sort of event it is
        #[arg(long, value_name = "K")]
        kind: String,
        /// What there is to say
        #[arg(required = true)]
        payload: Vec<String>,
        /// Only if this is the token of the live claim
        #[arg(long, allow_negative_numbers = true, value_name = "T")]
        token: Option<i64>,
    },
    /// Complete a task
    Complete {
        /// The number of the task
        #[arg(allow_negative_numbers = true)]
        task: i64,
        /// The token of the claim
        #[arg(long, allow_negative_numbers = true, value_name = "T")]
        token: i64,
        /// What came of it
        #[arg(long, default_value = "", value_name = "R")]
        result: String,
    },
    /// Take back every claim whose lease has expired
    Tick,
    /// Print the settings in effect, read back from SQLite
    Pragmas,
}

fn parse_status(name: &str) -> Result<Status, &'static str> {
    Status::parse(name).ok_or("understood are ready, running and done")
}
