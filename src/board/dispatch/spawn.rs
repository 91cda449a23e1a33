//! Starting a worker, and how it ended.
//!
//! A worker is a program that is told by its environment what to work on, and speaks to the board
//! by the command or the library. It leads a process group of its own, so that a signal to the
//! dispatcher's group does not reach it.
//!
//! | variable               | what                                                       |
//! |------------------------|------------------------------------------------------------|
//! | `HARDBOARD_DB`         | the board                                                  |
//! | `HARDBOARD_TASK`       | the number of the task                                     |
//! | `HARDBOARD_TOKEN`      | the claim's token, which goes with every write             |
//! | `HARDBOARD_WORKER`     | the name that the claim is made under                      |
//! | `HARDBOARD_LEASE_MS`   | how long a heartbeat should lease the claim for            |
//! | `HARDBOARD_WORKSPACE`  | where to work, if that is settled                          |
//! | `HARDBOARD_CLAIM`      | names the claim; whoever carries it belongs to the worker  |
//!
//! It ends by completing, submitting, blocking, failing or releasing its claim, and then exits. A
//! worker that exits with [`TRY_AGAIN`] asks to be tried again later without a failure.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::DispatchOptions;
use super::breaker::Fault;
use super::stop::CLAIM_VARIABLE;
use crate::board::claim::FencingToken;
use crate::board::clock::milliseconds;
use crate::board::run::RunOutcome;
use crate::board::task::TaskId;

/// The exit code of a worker that is to be tried again: `EX_TEMPFAIL` of sysexits.h.
pub const TRY_AGAIN: i32 = 75;

/// What a worker is started for.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) task: TaskId,
    pub(super) token: FencingToken,
    pub(super) worker: String,
    pub(super) workspace: Option<String>,
}

/// How a run whose process is gone is to be ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) outcome: RunOutcome,
    pub(super) fault: Fault,
    pub(super) error: String,
}

impl Verdict {
    pub(super) fn new(outcome: RunOutcome, fault: Fault, error: impl Into<String>) -> Self {
        Self { outcome, fault, error: error.into() }
    }

    /// Of a worker that ended so, and left its claim behind.
    pub(super) fn of(status: ExitStatus) -> Self {
        use rustix::process::Signal;
        let outside = [Signal::KILL, Signal::TERM, Signal::HUP, Signal::INT].map(Signal::as_raw);
        match (status.code(), status.signal()) {
            (Some(0), _) => Self::new(RunOutcome::Failed, Fault::Task, "ended without a word"),
            (Some(TRY_AGAIN), _) => {
                Self::new(RunOutcome::Interrupted, Fault::Outside, "asked to be tried again")
            }
            (_, Some(signal)) if outside.contains(&signal) => {
                let text = format!("ended from outside by signal {signal}");
                Self::new(RunOutcome::Interrupted, Fault::Outside, text)
            }
            (_, Some(signal)) => {
                Self::new(RunOutcome::Failed, Fault::Task, format!("died of signal {signal}"))
            }
            (code, None) => {
                let text = format!("exited with code {}", code.unwrap_or(-1));
                Self::new(RunOutcome::Failed, Fault::Task, text)
            }
        }
    }
}

/// The value of `HARDBOARD_CLAIM`.
pub(super) fn claim_name(board: &Path, task: TaskId, token: FencingToken) -> String {
    format!("{}#{task}#{token}", board.display())
}

/// Starts the worker.
pub(super) fn spawn(board: &Path, job: &Job, options: &DispatchOptions) -> io::Result<Child> {
    let (program, arguments) = options
        .worker
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no worker is named"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("HARDBOARD_DB", board)
        .env("HARDBOARD_TASK", job.task.to_string())
        .env("HARDBOARD_TOKEN", job.token.to_string())
        .env("HARDBOARD_WORKER", &job.worker)
        .env("HARDBOARD_LEASE_MS", milliseconds(options.claim_lease).to_string())
        .env(CLAIM_VARIABLE, claim_name(board, job.task, job.token))
        .stdin(Stdio::null())
        .process_group(0);
    if let Some(workspace) = &job.workspace {
        command.env("HARDBOARD_WORKSPACE", workspace);
    } else {
        command.env_remove("HARDBOARD_WORKSPACE");
    }
    let (out, err) = match &options.log_dir {
        None => (Stdio::null(), Stdio::null()),
        Some(dir) => {
            fs::create_dir_all(dir)?;
            let log = File::create(dir.join(format!("{}-{}.log", job.task, job.token)))?;
            (Stdio::from(log.try_clone()?), Stdio::from(log))
        }
    };
    command.stdout(out).stderr(err).spawn()
}
