//! The statements that write rows as another application left them.

use rusqlite::params;

use super::Tx;
use crate::board::CommitSeq;
use crate::board::claim::FencingToken;
use crate::board::import::Counts;
use crate::board::run::RunOutcome;
use crate::board::task::{Status, TaskId, Workspace};

/// A task as it was elsewhere. Its fence is the number of its runs.
pub(in crate::board) struct ImportedTask {
    pub(in crate::board) id: TaskId,
    pub(in crate::board) title: String,
    pub(in crate::board) priority: i64,
    pub(in crate::board) status: Status,
    pub(in crate::board) result: Option<String>,
    pub(in crate::board) body: String,
    pub(in crate::board) assignee: Option<String>,
    pub(in crate::board) tenant: Option<String>,
    pub(in crate::board) created_by: String,
    pub(in crate::board) idempotency_key: Option<String>,
    pub(in crate::board) workspace: Workspace,
    pub(in crate::board) due_ms: Option<i64>,
    pub(in crate::board) reason: Option<String>,
    pub(in crate::board) failures: i64,
    pub(in crate::board) failure_limit: Option<i64>,
    pub(in crate::board) max_runtime_ms: Option<i64>,
    pub(in crate::board) fence: i64,
    pub(in crate::board) extra: String,
}

/// A run as it was elsewhere; without an outcome it is live.
pub(in crate::board) struct ImportedRun {
    pub(in crate::board) task: TaskId,
    pub(in crate::board) token: FencingToken,
    pub(in crate::board) worker: String,
    pub(in crate::board) lease_until_ms: i64,
    pub(in crate::board) outcome: Option<RunOutcome>,
    pub(in crate::board) summary: Option<String>,
    pub(in crate::board) error: Option<String>,
}

impl Tx<'_> {
    pub(in crate::board) fn import_task(
        self,
        task: &ImportedTask,
        seq: CommitSeq,
    ) -> rusqlite::Result<()> {
        self.run(
            "INSERT INTO tasks (id, title, priority, status, fence, result, created_seq, \
             changed_seq, body, assignee, tenant, created_by, idempotency_key, workspace_kind, \
             workspace_path, due_ms, reason, failures, failure_limit, max_runtime_ms, extra) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, \
             ?17, ?18, ?19, ?20)",
            params![
                task.id,
                task.title,
                task.priority,
                task.status,
                task.fence,
                task.result,
                seq,
                task.body,
                task.assignee,
                task.tenant,
                task.created_by,
                task.idempotency_key,
                task.workspace.kind(),
                task.workspace.path(),
                task.due_ms,
                task.reason,
                task.failures,
                task.failure_limit,
                task.max_runtime_ms,
                task.extra,
            ],
        )
        .map(|_| ())
    }

    /// Its lease counts by a start of the machine that no machine had, so a live one is over.
    pub(in crate::board) fn import_run(
        self,
        run: &ImportedRun,
        seq: CommitSeq,
    ) -> rusqlite::Result<()> {
        self.run(
            "INSERT INTO runs (task_id, token, worker, lease_until_ms, started_seq, changed_seq, \
             ended_seq, outcome, boot_id, lease_until_boot_ms, started_boot_ms, summary, error) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7, 'before', ?4, 0, ?8, ?9)",
            params![
                run.task,
                run.token,
                run.worker,
                run.lease_until_ms,
                seq,
                run.outcome.map(|_| seq),
                run.outcome,
                run.summary,
                run.error,
            ],
        )
        .map(|_| ())
    }

    /// How many rows of each sort there are.
    pub(in crate::board) fn row_counts(self) -> rusqlite::Result<Counts> {
        self.one(
            "SELECT (SELECT count(*) FROM tasks), (SELECT count(*) FROM links), \
             (SELECT count(*) FROM runs), (SELECT count(*) FROM events), \
             (SELECT count(*) FROM comments), (SELECT count(*) FROM attachments), \
             (SELECT count(*) FROM subscriptions)",
            [],
            |row| {
                let count = |index| -> rusqlite::Result<usize> {
                    row.get::<_, i64>(index).map(|count| usize::try_from(count).unwrap_or(0))
                };
                Ok(Counts {
                    tasks: count(0)?,
                    links: count(1)?,
                    runs: count(2)?,
                    events: count(3)?,
                    comments: count(4)?,
                    attachments: count(5)?,
                    subscriptions: count(6)?,
                })
            },
        )
    }
}
