//! The statements about tasks.

use rusqlite::{Row, named_params, params};

use super::Tx;
use crate::board::CommitSeq;
use crate::board::claim::FencingToken;
use crate::board::task::{Edit, NewTask, Status, Task, TaskFilter, TaskId, Workspace};

/// What decides what may be done with a task.
#[derive(Clone, Copy, Debug)]
pub(in crate::board) struct Standing {
    pub(in crate::board) status: Status,
    pub(in crate::board) fence: FencingToken,
}

/// What the breaker counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::board) struct Counts {
    pub(in crate::board) failures: i64,
    pub(in crate::board) interruptions: i64,
    pub(in crate::board) failure_limit: Option<i64>,
}

const COLUMNS: &str = "id, title, priority, status, fence, result, created_seq, changed_seq, \
     body, assignee, tenant, created_by, idempotency_key, workspace_kind, workspace_path, due_ms, \
     reason, failures, interruptions, failure_limit, max_runtime_ms, extra";

/// The ready task that nobody is named for, to claim next.
pub(super) const NEXT_READY: &str = "SELECT id, fence, priority FROM tasks \
     INDEXED BY tasks_ready WHERE status = 'ready' AND assignee IS NULL \
     ORDER BY priority DESC, id LIMIT 1";

/// The ready task that one worker is named for, to claim next.
pub(super) const NEXT_READY_FOR: &str = "SELECT id, fence, priority FROM tasks \
     INDEXED BY tasks_ready_for WHERE status = 'ready' AND assignee = ?1 \
     ORDER BY priority DESC, id LIMIT 1";

/// The next one after that worker for whom a task is ready.
pub(super) const NEXT_ASSIGNEE: &str = "SELECT assignee FROM tasks \
     INDEXED BY tasks_ready_for WHERE status = 'ready' AND assignee IS NOT NULL AND assignee > ?1 \
     ORDER BY assignee LIMIT 1";

/// The tasks whose time has come.
pub(super) const DUE: &str = "SELECT id FROM tasks INDEXED BY tasks_due \
     WHERE due_ms IS NOT NULL AND due_ms <= ?1 ORDER BY due_ms, id LIMIT ?2";

/// How many tasks stand how.
pub(super) const COUNTS: &str = "SELECT status, count(*) FROM tasks GROUP BY status";

type Candidate = (TaskId, FencingToken, i64);

impl Tx<'_> {
    /// The number of the next task.
    pub(in crate::board) fn next_task_id(self) -> rusqlite::Result<TaskId> {
        self.one("SELECT coalesce(max(id), 0) + 1 FROM tasks", [], |row| row.get(0))
    }

    pub(in crate::board) fn insert_task(
        self,
        id: TaskId,
        task: &NewTask<'_>,
        status: Status,
        seq: CommitSeq,
    ) -> rusqlite::Result<()> {
        let max_runtime_ms = task.max_runtime.map(crate::board::clock::milliseconds);
        self.run(
            "INSERT INTO tasks (id, title, priority, status, created_seq, changed_seq, body, \
             assignee, tenant, created_by, idempotency_key, workspace_kind, workspace_path, \
             due_ms, reason, failure_limit, max_runtime_ms, extra) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, \
             ?17)",
            params![
                id,
                task.title,
                task.priority,
                status,
                seq,
                task.body,
                task.assignee,
                task.tenant,
                task.created_by,
                task.idempotency_key,
                task.workspace.kind(),
                task.workspace.path(),
                task.due_ms.filter(|_| status == Status::Scheduled),
                task.blocked,
                task.failure_limit,
                max_runtime_ms,
                task.extra,
            ],
        )
        .map(|_| ())
    }

    pub(in crate::board) fn standing(self, task: TaskId) -> rusqlite::Result<Option<Standing>> {
        self.maybe("SELECT status, fence FROM tasks WHERE id = ?1", [task], |row| {
            Ok(Standing { status: row.get(0)?, fence: row.get(1)? })
        })
    }

    pub(in crate::board) fn task(self, id: TaskId) -> rusqlite::Result<Option<Task>> {
        self.maybe(&format!("SELECT {COLUMNS} FROM tasks WHERE id = ?1"), [id], task_of)
    }

    pub(in crate::board) fn task_of_key(self, key: &str) -> rusqlite::Result<Option<TaskId>> {
        self.maybe("SELECT id FROM tasks WHERE idempotency_key = ?1", [key], |row| row.get(0))
    }

    pub(in crate::board) fn tasks(self, filter: &TaskFilter<'_>) -> rusqlite::Result<Vec<Task>> {
        let limit = filter.limit.map_or(-1, i64::from);
        let mut statement = self.conn.prepare_cached(&list(filter))?;
        let mut bind = |name: &str, value: &dyn rusqlite::ToSql| -> rusqlite::Result<()> {
            match statement.parameter_index(name)? {
                Some(index) => statement.raw_bind_parameter(index, value),
                None => Ok(()),
            }
        };
        bind(":after", &filter.after)?;
        bind(":status", &filter.status)?;
        bind(":assignee", &filter.assignee)?;
        bind(":tenant", &filter.tenant)?;
        bind(":limit", &limit)?;
        statement.raw_query().mapped(task_of).collect()
    }

    /// The ready task to claim next by that worker: one that names it or nobody.
    pub(in crate::board) fn next_ready(
        self,
        worker: &str,
    ) -> rusqlite::Result<Option<(TaskId, FencingToken)>> {
        let open = self.maybe(NEXT_READY, [], candidate_of)?;
        let own = self.maybe(NEXT_READY_FOR, [worker], candidate_of)?;
        Ok(better(open, own).map(|(task, fence, _)| (task, fence)))
    }

    /// The ready task to start next, whoever it is for.
    pub(in crate::board) fn next_ready_for_anybody(self) -> rusqlite::Result<Option<TaskId>> {
        let mut best = self.maybe(NEXT_READY, [], candidate_of)?;
        let mut assignee = String::new();
        while let Some(next) = self.maybe(NEXT_ASSIGNEE, [&assignee], |row| row.get(0))? {
            assignee = next;
            best = better(best, self.maybe(NEXT_READY_FOR, [&assignee], candidate_of)?);
        }
        Ok(best.map(|(task, _, _)| task))
    }

    pub(in crate::board) fn set_running(
        self,
        task: TaskId,
        token: FencingToken,
        seq: CommitSeq,
    ) -> rusqlite::Result<()> {
        self.run(
            "UPDATE tasks SET fence = ?2, status = 'running', changed_seq = ?3 WHERE id = ?1",
            (task, token, seq),
        )
        .map(|_| ())
    }

    pub(in crate::board) fn set_done(
        self,
        task: TaskId,
        result: &str,
        seq: CommitSeq,
    ) -> rusqlite::Result<()> {
        self.run(
            "UPDATE tasks SET status = 'done', result = ?2, due_ms = NULL, reason = NULL, \
             failures = 0, interruptions = 0, changed_seq = ?3 WHERE id = ?1",
            (task, result, seq),
        )
        .map(|_| ())
    }

    /// `due_ms` goes with [`Status::Scheduled`] alone; `reason` is why it is blocked or the like.
    pub(in crate::board) fn set_status(
        self,
        task: TaskId,
        status: Status,
        (due_ms, reason): (Option<i64>, Option<&str>),
        seq: CommitSeq,
    ) -> rusqlite::Result<()> {
        self.run(
            "UPDATE tasks SET status = ?2, due_ms = ?3, reason = ?4, changed_seq = ?5 \
             WHERE id = ?1",
            (task, status, due_ms, reason, seq),
        )
        .map(|_| ())
    }

    pub(in crate::board) fn set_result(self, task: TaskId, result: &str) -> rusqlite::Result<()> {
        self.run("UPDATE tasks SET result = ?2 WHERE id = ?1", (task, result)).map(|_| ())
    }

    pub(in crate::board) fn counts(self, task: TaskId) -> rusqlite::Result<Counts> {
        self.one(
            "SELECT failures, interruptions, failure_limit FROM tasks WHERE id = ?1",
            [task],
            |row| {
                Ok(Counts {
                    failures: row.get(0)?,
                    interruptions: row.get(1)?,
                    failure_limit: row.get(2)?,
                })
            },
        )
    }

    pub(in crate::board) fn set_counts(
        self,
        task: TaskId,
        counts: Counts,
        seq: CommitSeq,
    ) -> rusqlite::Result<()> {
        self.run(
            "UPDATE tasks SET failures = ?2, interruptions = ?3, changed_seq = ?4 WHERE id = ?1",
            (task, counts.failures, counts.interruptions, seq),
        )
        .map(|_| ())
    }

    pub(in crate::board) fn edit_task(
        self,
        task: TaskId,
        edit: &Edit<'_>,
        seq: CommitSeq,
    ) -> rusqlite::Result<()> {
        self.run(
            "UPDATE tasks SET title = coalesce(:title, title), body = coalesce(:body, body), \
             priority = coalesce(:priority, priority), \
             assignee = CASE WHEN :reassign THEN :assignee ELSE assignee END, \
             changed_seq = :seq WHERE id = :task",
            named_params! {
                ":task": task,
                ":title": edit.title,
                ":body": edit.body,
                ":priority": edit.priority,
                ":reassign": edit.assignee.is_some(),
                ":assignee": edit.assignee.flatten(),
                ":seq": seq,
            },
        )
        .map(|_| ())
    }

    /// At most `limit` scheduled tasks whose time has come, by that.
    pub(in crate::board) fn due(self, now_ms: i64, limit: u32) -> rusqlite::Result<Vec<TaskId>> {
        self.all(DUE, (now_ms, limit), |row| row.get(0))
    }

    /// How many tasks stand how; those that none stands are left out.
    pub(in crate::board) fn status_counts(self) -> rusqlite::Result<Vec<(Status, i64)>> {
        self.all(COUNTS, [], |row| Ok((row.get(0)?, row.get(1)?)))
    }
}

/// The statement that lists the tasks which pass the filter.
pub(super) fn list(filter: &TaskFilter<'_>) -> String {
    let mut sql = format!("SELECT {COLUMNS} FROM tasks WHERE id > :after");
    let conditions = [
        (filter.status.is_some(), " AND status = :status"),
        (filter.assignee.is_some(), " AND assignee = :assignee"),
        (filter.tenant.is_some(), " AND tenant = :tenant"),
    ];
    for (wanted, condition) in conditions {
        sql.push_str(if wanted { condition } else { "" });
    }
    sql + " ORDER BY id LIMIT :limit"
}

fn better(one: Option<Candidate>, other: Option<Candidate>) -> Option<Candidate> {
    one.into_iter()
        .chain(other)
        .min_by_key(|(task, _, priority)| (std::cmp::Reverse(*priority), *task))
}

fn candidate_of(row: &Row<'_>) -> rusqlite::Result<Candidate> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

fn task_of(row: &Row<'_>) -> rusqlite::Result<Task> {
    Ok(Task {
        id: row.get(0)?,
        title: row.get(1)?,
        priority: row.get(2)?,
        status: row.get(3)?,
        fence: row.get(4)?,
        result: row.get(5)?,
        created_seq: row.get(6)?,
        changed_seq: row.get(7)?,
        body: row.get(8)?,
        assignee: row.get(9)?,
        tenant: row.get(10)?,
        created_by: row.get(11)?,
        idempotency_key: row.get(12)?,
        workspace: Workspace::stored(row.get(13)?, row.get(14)?),
        due_ms: row.get(15)?,
        reason: row.get(16)?,
        failures: row.get(17)?,
        interruptions: row.get(18)?,
        failure_limit: row.get(19)?,
        max_runtime_ms: row.get(20)?,
        extra: row.get(21)?,
    })
}
