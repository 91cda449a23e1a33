//! Runs: what became of each claim.
//!
//! A claim makes a run, a heartbeat changes it, completing the task or taking the claim back ends
//! it. No run is ever deleted, so they are the history of a task's tokens.
//!
//! In: a task's number. Out: its [`Run`] rows. Not here: the calls that write them.

use std::fmt;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row};
use serde::{Deserialize, Serialize};

use crate::board::claim::{FencingToken, stale};
use crate::board::task::TaskId;
use crate::board::{Board, CommitSeq, Stop};
use crate::error::Result;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunOutcome {
    /// Its holder completed the task.
    Completed,
    /// Its lease expired and a dispatcher took it back.
    TakenBack,
}

impl RunOutcome {
    /// The name, as the database has it: `completed` or `taken-back`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::TakenBack => "taken-back",
        }
    }
}

impl fmt::Display for RunOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromSql for RunOutcome {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let name = value.as_str()?;
        [Self::Completed, Self::TakenBack]
            .into_iter()
            .find(|outcome| outcome.as_str() == name)
            .ok_or_else(|| FromSqlError::Other(format!("outcome {name:?}").into()))
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
    /// When the claim may be taken back, in milliseconds since 1970 on the wall clock.
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
}

impl Board {
    /// The runs of a task, by token; none if there is no such task.
    pub fn runs(&self, task: TaskId) -> Result<Vec<Run>> {
        self.read("list the runs", |conn| {
            conn.prepare_cached(
                "SELECT task_id, token, worker, lease_until_ms, heartbeats, started_seq, \
                 changed_seq, ended_seq, outcome FROM runs WHERE task_id = ? ORDER BY token",
            )?
            .query_map([task], run_of)?
            .collect()
        })
    }
}

/// Goes on only if the token is that of the task's live run.
pub(super) fn require_live(
    conn: &Connection,
    task: TaskId,
    token: FencingToken,
) -> Result<(), Stop> {
    conn.prepare_cached("SELECT 1 FROM runs WHERE task_id = ? AND token = ? AND ended_seq IS NULL")?
        .query_row([task.get(), token.get()], |_| Ok(()))
        .optional()?
        .ok_or_else(|| stale(conn, task, token))
}

fn run_of(row: &Row<'_>) -> rusqlite::Result<Run> {
    Ok(Run {
        task: row.get(0)?,
        token: row.get(1)?,
        worker: row.get(2)?,
        lease_until_ms: row.get(3)?,
        heartbeats: row.get(4)?,
        started_seq: row.get(5)?,
        changed_seq: row.get(6)?,
        ended_seq: row.get(7)?,
        outcome: row.get(8)?,
    })
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
        for outcome in [RunOutcome::Completed, RunOutcome::TakenBack] {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.as_str());
        }
    }
}
