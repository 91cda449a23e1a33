//! Runs: what became of each claim.
//!
//! A claim makes a run, a heartbeat changes it, whatever gives the task away ends it. No run is
//! ever deleted, so they are the history of a task's tokens.
//!
//! In: a task's number. Out: its [`Run`] rows. Not here: the calls that write them.

use serde::Serialize;

use crate::board::claim::FencingToken;
use crate::board::process::Process;
use crate::board::task::TaskId;
use crate::board::{Board, CommitSeq};
use crate::error::Result;

stored_name! {
    /// How a run ended.
    RunOutcome {
        /// Its holder completed the task.
        Completed = "completed",
        /// Its holder put a result up for review.
        Submitted = "submitted",
        /// Its holder blocked the task.
        Blocked = "blocked",
        /// Its holder gave it up.
        Released = "released",
        /// Its lease expired, or a person took it back.
        TakenBack = "taken-back",
        /// Its holder said that it failed, or its process ended without a word.
        Failed = "failed",
        /// Its process is gone, and it is not known how it ended.
        Crashed = "crashed",
        /// It took longer than it may, or did not extend its lease in time, and was stopped.
        TimedOut = "timed-out",
        /// Its process could not be started.
        SpawnFailed = "spawn-failed",
        /// Its process was ended from outside: a kill that nobody here sent, a restart of the
        /// machine, a worker that asked to be tried again later. No failure of the task.
        Interrupted = "interrupted",
    }
}

/// A claim and what became of it, as it stands in the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// The task.
    #[serde(rename = "task_id")]
    pub task: TaskId,
    /// The claim's token.
    pub token: FencingToken,
    /// Who claimed it.
    pub worker: String,
    /// When the claim may be taken back, in milliseconds since 1970 on the wall clock as it was
    /// when the lease was last extended.
    pub lease_until_ms: i64,
    /// How often the lease was extended.
    pub heartbeats: i64,
    /// The commit of the claim.
    pub started_seq: CommitSeq,
    /// The commit that changed this row last.
    pub changed_seq: CommitSeq,
    /// The commit that ended it; `None`: it is live.
    pub ended_seq: Option<CommitSeq>,
    /// How it ended; `None`: it is live.
    pub outcome: Option<RunOutcome>,
    /// The start of the machine that the next two count from.
    pub boot_id: String,
    /// When the claim may be taken back, in milliseconds since then.
    pub lease_until_boot_ms: i64,
    /// When it was claimed, in milliseconds since then.
    pub started_boot_ms: i64,
    /// The process that does the work, if it was told.
    pub process: Option<Process>,
    /// The epoch of the dispatcher that started it; `None`: none did.
    pub epoch: Option<i64>,
    /// How long it may take.
    pub max_runtime_ms: Option<i64>,
    /// What its end was told with.
    pub summary: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
}

impl Board {
    /// The runs of a task, by token; none if there is no such task.
    pub fn runs(&self, task: TaskId) -> Result<Vec<Run>> {
        self.read("list the runs", |tx| tx.runs(task))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::board::fixture::{HOUR, Place};

    #[test]
    fn runs_are_the_history_of_a_tasks_tokens() {
        let mut place = Place::new();
        let mut board = place.board();
        let first = place.claimed(&mut board, Duration::ZERO);
        let _back = board.take_back_expired(place.key()).unwrap().unwrap();
        let second = board.claim(place.key(), first.task, "bob", HOUR).unwrap();
        let live = &board.runs(first.task).unwrap()[1];
        assert_eq!((live.outcome, live.ended_seq), (None, None));
        let done = board.complete(place.key(), first.task, second.token, "").unwrap();
        let runs = board.runs(first.task).unwrap();
        let told: Vec<_> =
            runs.iter().map(|run| (run.token, run.worker.as_str(), run.outcome)).collect();
        let taken_back = (first.token, "ann", Some(RunOutcome::TakenBack));
        let completed = (second.token, "bob", Some(RunOutcome::Completed));
        assert_eq!(told, [taken_back, completed]);
        assert_eq!(runs[1].ended_seq, Some(done.seq));
    }

    #[test]
    fn task_that_was_never_claimed_has_no_runs() {
        let mut place = Place::new();
        let mut board = place.board();
        let task = place.create(&mut board, "dig", 0);
        assert_eq!(board.runs(task).unwrap(), []);
    }

    #[test]
    fn outcome_has_the_same_name_in_json_and_in_the_database() {
        for outcome in RunOutcome::ALL {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.as_str());
            assert_eq!(RunOutcome::parse(outcome.as_str()), Some(*outcome));
        }
    }
}
