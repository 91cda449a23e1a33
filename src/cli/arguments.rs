//! What the command takes.
//!
//! Plain data and its help texts. Not here: what the commands do.

#![expect(clippy::doc_markdown, reason = "these are texts of the help, which has no markup")]

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::store::Keep;
use crate::board::subscription::Delivery;
use crate::board::task::Status;

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   refused: a stale claim, a task not ready or not there, nothing to claim, a plan outdated
  2   bad arguments or options
  3   busy: another process held the lock for too long or dispatches, try again
  4   unknown outcome: the write is wholly there or wholly absent
  5   the database is damaged, or is not a board
  70  anything else: it cannot be opened, the disk is full or fails

Environment:
  HARDBOARD_DB      the database, if --db does not name it
  HARDBOARD_CONFIG  the file with the settings, if --config does not name it
  HARDBOARD_TASK    the task, where a command that a worker uses is given none
  HARDBOARD_TOKEN   the token that goes with it
  and a variable for each setting: see hardboard options";

/// A task board in one SQLite file, for many processes at the same time
#[derive(Debug, Parser)]
#[command(name = "hardboard", version, after_help = EXIT_CODES)]
pub(super) struct Arguments {
    /// The database file
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) db: Option<PathBuf>,

    /// A file with settings, in TOML
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// Answer with one line of JSON
    #[arg(long, global = true)]
    pub(super) json: bool,

    #[command(subcommand)]
    pub(super) command: Command,
}

/// The claim that a worker writes under.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Held {
    /// The number of the task [default: HARDBOARD_TASK]
    #[arg(allow_negative_numbers = true)]
    pub(super) task: Option<i64>,
    /// The token of the claim [default: HARDBOARD_TOKEN, where the task is that of HARDBOARD_TASK]
    #[arg(long, allow_negative_numbers = true, value_name = "T")]
    pub(super) token: Option<i64>,
}

/// What a new task says.
#[derive(Debug, Args)]
pub(super) struct New {
    /// What is to be done
    pub(super) title: String,
    /// The greater one is claimed first
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_name = "N")]
    pub(super) priority: i64,
    /// What else there is to say
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub(super) body: String,
    /// The only worker who may claim it
    #[arg(long, value_name = "W")]
    pub(super) assignee: Option<String>,
    /// Whose task it is, where several parties share a board
    #[arg(long, value_name = "T")]
    pub(super) tenant: Option<String>,
    /// Who makes it
    #[arg(long, default_value = "", value_name = "WHO")]
    pub(super) by: String,
    /// Make no second task of this key: answer with the one that is there
    #[arg(long, value_name = "KEY")]
    pub(super) idempotency_key: Option<String>,
    /// A task that must be done first; may be given again
    #[arg(long = "after", value_name = "TASK")]
    pub(super) parents: Vec<i64>,
    /// Not before this, in milliseconds since 1970
    #[arg(long, value_name = "MS")]
    pub(super) due_ms: Option<i64>,
    /// Put it into triage first
    #[arg(long)]
    pub(super) triage: bool,
    /// Block it from the start, for this reason
    #[arg(long, value_name = "WHY")]
    pub(super) blocked: Option<String>,
    /// Where the work is done: an existing directory
    #[arg(long, value_name = "DIR")]
    pub(super) workspace: Option<String>,
    /// After how many failures in a row it is given up
    #[arg(long, value_name = "N")]
    pub(super) failure_limit: Option<u32>,
    /// How long one run may take
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) max_runtime_ms: Option<u64>,
}

/// One call of the board.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a board, or see that there is one
    Init,
    /// Make a task
    Create(Box<New>),
    /// Change what a task says
    Edit {
        /// The number of the task
        task: i64,
        /// What is to be done
        #[arg(long, value_name = "TEXT")]
        title: Option<String>,
        /// What else there is to say
        #[arg(long, value_name = "TEXT")]
        body: Option<String>,
        /// The greater one is claimed first
        #[arg(long, allow_negative_numbers = true, value_name = "N")]
        priority: Option<i64>,
        /// The only worker who may claim it; empty: any
        #[arg(long, value_name = "W")]
        assignee: Option<String>,
    },
    /// List tasks
    List {
        /// Only those that stand so
        #[arg(long, value_parser = parse_status, value_name = "S")]
        status: Option<Status>,
        /// Only those that this worker is named for
        #[arg(long, value_name = "W")]
        assignee: Option<String>,
        /// Only those of this party
        #[arg(long, value_name = "T")]
        tenant: Option<String>,
        /// Only those of a greater number: the last of the page before
        #[arg(long, default_value_t = 0, value_name = "TASK")]
        after: i64,
        /// So many at most
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: u32,
    },
    /// Show a task with all that belongs to it
    Show {
        /// The number of the task
        #[arg(allow_negative_numbers = true)]
        task: i64,
    },
    /// Let a task wait for another
    Link {
        /// The task that must be done first
        parent: i64,
        /// The task that waits
        child: i64,
        /// Let it wait no longer
        #[arg(long)]
        remove: bool,
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
        #[arg(long, default_value_t = 900_000, value_name = "N")]
        lease_ms: u64,
        /// The process that does the work: while it lives its claim is not given away
        #[arg(long, value_name = "PID")]
        pid: Option<i32>,
    },
    /// Say that the holder of a claim is alive
    Heartbeat {
        #[command(flatten)]
        held: Held,
        /// How long from now before the claim may be taken back
        #[arg(long, default_value_t = 900_000, value_name = "N")]
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
    /// Comment on a task
    Comment {
        /// The number of the task
        task: i64,
        /// What there is to say
        body: String,
        /// Who says it
        #[arg(long, default_value = "", value_name = "WHO")]
        author: String,
        /// Only if this is the token of the live claim
        #[arg(long, allow_negative_numbers = true, value_name = "T")]
        token: Option<i64>,
    },
    /// Attach a file to a task: what is known of it, not its content
    Attach {
        /// The number of the task
        task: i64,
        /// Where its content lies
        location: String,
        /// What people call it; else its location
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Who attaches it
        #[arg(long, default_value = "", value_name = "WHO")]
        by: String,
        /// Take attachment N off instead; the location is not looked at
        #[arg(long, value_name = "N")]
        remove: Option<i64>,
    },
    /// Complete a task
    Complete {
        #[command(flatten)]
        held: Held,
        /// What came of it
        #[arg(long, default_value = "", value_name = "R")]
        result: String,
    },
    /// Give a claim up: the task can be claimed again at once
    Release {
        #[command(flatten)]
        held: Held,
        /// Why
        #[arg(long, default_value = "", value_name = "WHY")]
        reason: String,
        /// Take the claim of somebody else back, whose process is gone or not known
        #[arg(long)]
        take_back: bool,
    },
    /// End a claim because the work failed
    Fail {
        #[command(flatten)]
        held: Held,
        /// What went wrong
        #[arg(long, default_value = "", value_name = "WHAT")]
        error: String,
    },
    /// Block a task until somebody unblocks it; a running one with the token of its claim
    Block {
        #[command(flatten)]
        held: Held,
        /// Why
        #[arg(long, value_name = "WHY")]
        reason: String,
    },
    /// End a block, and forget the failures of the task
    Unblock {
        /// The number of the task
        task: i64,
        /// Why
        #[arg(long, default_value = "", value_name = "WHY")]
        reason: String,
    },
    /// Have a task wait for a time
    Schedule {
        /// The number of the task
        task: i64,
        /// In milliseconds since 1970
        due_ms: i64,
    },
    /// End triage, or the wait for a time
    Promote {
        /// The number of the task
        task: i64,
    },
    /// Put a result up for review, approve it, or send it back
    #[command(subcommand)]
    Review(Review),
    /// Put a task out of sight
    Archive {
        /// The number of the task
        task: i64,
    },
    /// List events, of one task or of all
    Events {
        /// Only those of this task
        #[arg(long, value_name = "TASK")]
        task: Option<i64>,
        /// Only those of a greater number
        #[arg(long, default_value_t = 0, value_name = "EVENT")]
        after: i64,
        /// So many at most
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: u32,
    },
    /// Take out events that are old, but none that a subscription has yet to read
    Prune {
        /// How old
        #[arg(long, value_name = "N")]
        days: u32,
    },
    /// Read events, and have the board remember how far
    #[command(subcommand)]
    Subscribe(Subscribe),
    /// Take back every claim whose lease has expired and whose process is not seen alive
    Tick,
    /// Start workers, and look after what becomes of them
    Dispatch(Dispatch),
    /// Find tasks that do not stand where their runs and parents say, and print a plan
    Reconcile {
        /// Carry this plan out: all of it, or nothing where the board has moved on
        #[arg(long, value_name = "PLAN.json")]
        apply: Option<PathBuf>,
        /// Where the backup goes that is made before; else beside the board
        #[arg(long, value_name = "DIR")]
        backup: Option<PathBuf>,
    },
    /// Bring a board of the Hermes agent into a new one; without --apply only say what would come
    Import {
        /// Its kanban.db
        #[arg(long, value_name = "PATH")]
        from: PathBuf,
        /// Do it
        #[arg(long)]
        apply: bool,
    },
    /// Count what there is, and say who dispatches
    Stats,
    #[command(flatten)]
    Keep(Keep),
    /// Print every setting, its value, where that is from, and why one would touch it
    Options,
    /// Print the settings of SQLite in effect, read back from it
    Pragmas,
    /// Print a completion script
    Completions {
        /// For which shell
        shell: Shell,
    },
}

/// What is done about a result.
#[derive(Debug, Subcommand)]
pub(super) enum Review {
    /// End the claim, and have the result wait for approval
    Submit {
        #[command(flatten)]
        held: Held,
        /// What came of it
        #[arg(long, default_value = "", value_name = "R")]
        result: String,
    },
    /// The task is done
    Approve {
        /// The number of the task
        task: i64,
        /// The newest token of the task as you saw it: no other result is approved
        #[arg(long, value_name = "T")]
        seen: i64,
    },
    /// The task is to be claimed again
    SendBack {
        /// The number of the task
        task: i64,
        /// The newest token of the task as you saw it
        #[arg(long, value_name = "T")]
        seen: i64,
        /// Why
        #[arg(long, default_value = "", value_name = "WHY")]
        reason: String,
    },
}

/// What is done about a subscription.
#[derive(Debug, Subcommand)]
pub(super) enum Subscribe {
    /// Make one
    Add {
        /// Its name
        name: String,
        /// Only the events of this task
        #[arg(long, value_name = "TASK")]
        task: Option<i64>,
        /// at-most-once or at-least-once
        #[arg(long, default_value = "at-least-once", value_parser = parse_delivery)]
        delivery: Delivery,
        /// Where they are to go, as you understand it
        #[arg(long, default_value = "", value_name = "T")]
        target: String,
        /// Begin with the oldest event that is kept, not with the next one
        #[arg(long)]
        from_oldest: bool,
    },
    /// End one
    Remove {
        /// Its name
        name: String,
    },
    /// List all
    List,
    /// Print what it has yet to read; at most once: and move on
    Next {
        /// Its name
        name: String,
        /// So many at most
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: u32,
    },
    /// At least once: move on past this event
    Ack {
        /// Its name
        name: String,
        /// The last event that was dealt with
        event: i64,
    },
}

/// How to dispatch.
#[derive(Debug, Args)]
pub(super) struct Dispatch {
    /// One round
    #[arg(long, required_unless_present = "daemon", conflicts_with = "daemon")]
    pub(super) once: bool,
    /// Round after round, until SIGTERM or SIGINT; where another dispatches, wait for its end
    #[arg(long)]
    pub(super) daemon: bool,
    /// The name to dispatch under; else the process id
    #[arg(long, value_name = "NAME")]
    pub(super) holder: Option<String>,
    /// The program that works on a task, and its arguments; else that of the settings
    #[arg(last = true, value_name = "WORKER")]
    pub(super) worker: Vec<String>,
}

fn parse_status(name: &str) -> Result<Status, String> {
    Status::parse(name).ok_or_else(|| {
        let known: Vec<_> = Status::ALL.iter().map(|status| status.as_str()).collect();
        format!("understood are {}", known.join(", "))
    })
}

fn parse_delivery(name: &str) -> Result<Delivery, &'static str> {
    Delivery::parse(name).ok_or("understood are at-most-once and at-least-once")
}
