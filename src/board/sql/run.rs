//! The statements about runs.

use rusqlite::{Row, params};

use super::Tx;
use crate::board::CommitSeq;
use crate::board::claim::FencingToken;
use crate::board::process::{Liveness, Process};
use crate::board::run::{Run, RunOutcome};
use crate::board::task::TaskId;

/// A run to be made.
#[derive(Clone, Copy, Debug)]
pub(in crate::board) struct NewRun<'a> {
    pub(in crate::board) task: TaskId,
    pub(in crate::board) token: FencingToken,
    pub(in crate::board) worker: &'a str,
    pub(in crate::board) boot_id: &'a str,
    pub(in crate::board) lease_until_ms: i64,
    pub(in crate::board) lease_until_boot_ms: i64,
    pub(in crate::board) started_boot_ms: i64,
    pub(in crate::board) process: Option<Process>,
    pub(in crate::board) epoch: Option<i64>,
    pub(in crate::board) max_runtime_ms: Option<i64>,
}

/// What a dispatcher has to know of a run that is live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::board) struct LiveRun {
    pub(in crate::board) task: TaskId,
    pub(in crate::board) token: FencingToken,
    pub(in crate::board) worker: String,
    pub(in crate::board) boot_id: String,
    pub(in crate::board) lease_until_boot_ms: i64,
    pub(in crate::board) started_boot_ms: i64,
    pub(in crate::board) process: Option<Process>,
    pub(in crate::board) epoch: Option<i64>,
    pub(in crate::board) orphaned: bool,
    pub(in crate::board) max_runtime_ms: Option<i64>,
}

impl LiveRun {
    /// Whether its lease is over, and its process, if it is known and can be seen, is gone.
    pub(in crate::board) fn is_over(&self, boot_id: &str, boot_ms: i64) -> bool {
        let alive = self.process.is_some_and(|process| process.liveness() == Liveness::Alive);
        self.boot_id != boot_id || (self.lease_until_boot_ms <= boot_ms && !alive)
    }
}

/// How a run ended, beside its outcome.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::board) struct Ending<'a> {
    pub(in crate::board) summary: Option<&'a str>,
    pub(in crate::board) error: Option<&'a str>,
}

const LIVE_COLUMNS: &str = "task_id, token, worker, boot_id, lease_until_boot_ms, \
     started_boot_ms, pid, pid_started_ticks, pid_namespace, epoch, orphaned, max_runtime_ms";

/// The live runs of this start of the machine whose lease is over.
pub(super) const EXPIRED: &str = "SELECT task_id, token, worker, boot_id, lease_until_boot_ms, \
     started_boot_ms, pid, pid_started_ticks, pid_namespace, epoch, orphaned, max_runtime_ms \
     FROM runs INDEXED BY runs_lease \
     WHERE ended_seq IS NULL AND boot_id = ?1 AND lease_until_boot_ms <= ?2 \
     ORDER BY lease_until_boot_ms, task_id";

/// The live runs of other starts of the machine, in two parts.
pub(super) const OF_OTHER_BOOTS: [&str; 2] = [
    "SELECT task_id, token, worker, boot_id, lease_until_boot_ms, started_boot_ms, pid, \
     pid_started_ticks, pid_namespace, epoch, orphaned, max_runtime_ms \
     FROM runs INDEXED BY runs_lease WHERE ended_seq IS NULL AND boot_id < ?1",
    "SELECT task_id, token, worker, boot_id, lease_until_boot_ms, started_boot_ms, pid, \
     pid_started_ticks, pid_namespace, epoch, orphaned, max_runtime_ms \
     FROM runs INDEXED BY runs_lease WHERE ended_seq IS NULL AND boot_id > ?1",
];

/// The live runs.
pub(super) const LIVE: &str = "SELECT task_id, token, worker, boot_id, lease_until_boot_ms, \
     started_boot_ms, pid, pid_started_ticks, pid_namespace, epoch, orphaned, max_runtime_ms \
     FROM runs WHERE ended_seq IS NULL ORDER BY task_id";

impl Tx<'_> {
    pub(in crate::board) fn insert_run(
        self,
        run: &NewRun<'_>,
        seq: CommitSeq,
    ) -> rusqlite::Result<()> {
        self.run(
            "INSERT INTO runs (task_id, token, worker, lease_until_ms, started_seq, changed_seq, \
             boot_id, lease_until_boot_ms, started_boot_ms, pid, pid_started_ticks, \
             pid_namespace, epoch, max_runtime_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            params![
                run.task,
                run.token,
                run.worker,
                run.lease_until_ms,
                seq,
                run.boot_id,
                run.lease_until_boot_ms,
                run.started_boot_ms,
                run.process.map(|process| process.pid),
                run.process.map(|process| process.started_ticks),
                run.process.map(|process| process.namespace),
                run.epoch,
                run.max_runtime_ms,
            ],
        )
        .map(|_| ())
    }

    /// Whether that claim is the live one, and so was extended.
    pub(in crate::board) fn extend_run(
        self,
        (task, token): (TaskId, FencingToken),
        lease_until_ms: i64,
        (boot_id, lease_until_boot_ms): (&str, i64),
        seq: CommitSeq,
    ) -> rusqlite::Result<bool> {
        self.run(
            "UPDATE runs SET heartbeats = heartbeats + 1, lease_until_ms = ?3, boot_id = ?4, \
             lease_until_boot_ms = ?5, changed_seq = ?6 \
             WHERE task_id = ?1 AND token = ?2 AND ended_seq IS NULL",
            (task, token, lease_until_ms, boot_id, lease_until_boot_ms, seq),
        )
        .map(|changed| changed > 0)
    }

    /// Whether that claim was the live one, and so was ended.
    pub(in crate::board) fn end_run(
        self,
        (task, token): (TaskId, FencingToken),
        outcome: RunOutcome,
        ending: Ending<'_>,
        seq: CommitSeq,
    ) -> rusqlite::Result<bool> {
        self.run(
            "UPDATE runs SET ended_seq = ?3, changed_seq = ?3, outcome = ?4, summary = ?5, \
             error = ?6 WHERE task_id = ?1 AND token = ?2 AND ended_seq IS NULL",
            (task, token, seq, outcome, ending.summary, ending.error),
        )
        .map(|changed| changed > 0)
    }

    /// Whether that claim is the live one.
    pub(in crate::board) fn is_live(
        self,
        task: TaskId,
        token: FencingToken,
    ) -> rusqlite::Result<bool> {
        self.one(
            "SELECT EXISTS (SELECT 1 FROM runs \
             WHERE task_id = ?1 AND token = ?2 AND ended_seq IS NULL)",
            (task, token),
            |row| row.get(0),
        )
    }

    /// The epoch of the dispatcher that started a run; `None`: none did.
    pub(in crate::board) fn epoch_of(
        self,
        task: TaskId,
        token: FencingToken,
    ) -> rusqlite::Result<Option<i64>> {
        self.one("SELECT epoch FROM runs WHERE task_id = ?1 AND token = ?2", (task, token), |row| {
            row.get(0)
        })
    }

    /// Whose process works under a claim, told after the claim was made.
    pub(in crate::board) fn set_process(
        self,
        (task, token): (TaskId, FencingToken),
        process: Process,
        seq: CommitSeq,
    ) -> rusqlite::Result<bool> {
        self.run(
            "UPDATE runs SET pid = ?3, pid_started_ticks = ?4, pid_namespace = ?5, \
             changed_seq = ?6 WHERE task_id = ?1 AND token = ?2 AND ended_seq IS NULL",
            (task, token, process.pid, process.started_ticks, process.namespace, seq),
        )
        .map(|changed| changed > 0)
    }

    /// The live run of a task.
    pub(in crate::board) fn live_run(self, task: TaskId) -> rusqlite::Result<Option<LiveRun>> {
        let sql =
            format!("SELECT {LIVE_COLUMNS} FROM runs WHERE ended_seq IS NULL AND task_id = ?1");
        self.maybe(&sql, [task], live_of)
    }

    /// All live runs, by task.
    pub(in crate::board) fn live_runs(self) -> rusqlite::Result<Vec<LiveRun>> {
        self.all(LIVE, [], live_of)
    }

    /// The live runs whose lease is over: those of earlier starts of the machine, then by the time
    /// since when.
    pub(in crate::board) fn expired_runs(
        self,
        boot_id: &str,
        now_boot_ms: i64,
    ) -> rusqlite::Result<Vec<LiveRun>> {
        let [less, greater] = OF_OTHER_BOOTS;
        let mut runs = self.all(less, [boot_id], live_of)?;
        runs.extend(self.all(greater, [boot_id], live_of)?);
        runs.extend(self.all(EXPIRED, (boot_id, now_boot_ms), live_of)?);
        Ok(runs)
    }

    /// Marks the live runs that a dispatcher started which ended without giving up its lease.
    pub(in crate::board) fn orphan_runs(self, epoch: i64, seq: CommitSeq) -> rusqlite::Result<()> {
        self.run(
            "UPDATE runs SET orphaned = 1, changed_seq = ?2 \
             WHERE ended_seq IS NULL AND epoch = ?1",
            (epoch, seq),
        )
        .map(|_| ())
    }

    pub(in crate::board) fn runs(self, task: TaskId) -> rusqlite::Result<Vec<Run>> {
        self.all(
            "SELECT task_id, token, worker, lease_until_ms, heartbeats, started_seq, \
             changed_seq, ended_seq, outcome, boot_id, lease_until_boot_ms, started_boot_ms, \
             pid, pid_started_ticks, pid_namespace, epoch, max_runtime_ms, summary, error \
             FROM runs WHERE task_id = ?1 ORDER BY token",
            [task],
            run_of,
        )
    }
}

fn live_of(row: &Row<'_>) -> rusqlite::Result<LiveRun> {
    Ok(LiveRun {
        task: row.get(0)?,
        token: row.get(1)?,
        worker: row.get(2)?,
        boot_id: row.get(3)?,
        lease_until_boot_ms: row.get(4)?,
        started_boot_ms: row.get(5)?,
        process: process_of(row, 6)?,
        epoch: row.get(9)?,
        orphaned: row.get(10)?,
        max_runtime_ms: row.get(11)?,
    })
}

/// The process in three columns from the one of that index on.
pub(super) fn process_of(row: &Row<'_>, from: usize) -> rusqlite::Result<Option<Process>> {
    let pid: Option<i32> = row.get(from)?;
    pid.map(|pid| {
        Ok(Process { pid, started_ticks: row.get(from + 1)?, namespace: row.get(from + 2)? })
    })
    .transpose()
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
        boot_id: row.get(9)?,
        lease_until_boot_ms: row.get(10)?,
        started_boot_ms: row.get(11)?,
        process: process_of(row, 12)?,
        epoch: row.get(15)?,
        max_runtime_ms: row.get(16)?,
        summary: row.get(17)?,
        error: row.get(18)?,
    })
}
