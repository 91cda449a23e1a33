//! Tasks: making them, changing what they say, and looking at them.
//!
//! In: what is to be done. Out: [`Task`] rows. Not here: who works on a task (`claim`), what it
//! waits for (`link`), where it goes (`transition`), and what happened to it (`event`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::board::claim::FencingToken;
use crate::board::write::{Kind, Stop, Writing};
use crate::board::{Board, Commit, CommitSeq, OpKey};
use crate::error::{Result, StoreError};

stored_integer! {
    /// The number of a task. The first of a board is 1.
    TaskId
}

stored_name! {
    /// Where a task stands.
    ///
    /// | status      | leaves it by                                                    |
    /// |-------------|-----------------------------------------------------------------|
    /// | `triage`    | promote                                                         |
    /// | `todo`      | its last open parent being done or archived                     |
    /// | `scheduled` | its time, promote                                               |
    /// | `ready`     | claim                                                           |
    /// | `running`   | complete, submit, block, release, fail; being taken back        |
    /// | `blocked`   | unblock                                                         |
    /// | `review`    | approve, send back                                              |
    /// | `done`      | archive                                                         |
    /// | `archived`  | it stays so                                                     |
    ///
    /// Any but a running one can be archived, and any that is neither running, done nor archived
    /// can be blocked and scheduled.
    Status {
        /// Somebody has to look at it before it is work.
        Triage = "triage",
        /// It waits for other tasks.
        Todo = "todo",
        /// It waits for a time.
        Scheduled = "scheduled",
        /// It waits for somebody to claim it.
        Ready = "ready",
        /// It has a live claim, whose lease may have expired.
        Running = "running",
        /// It waits for a person or a cause.
        Blocked = "blocked",
        /// Its result waits for approval.
        Review = "review",
        /// It has a result.
        Done = "done",
        /// It is out of sight, and nothing waits for it.
        Archived = "archived",
    }
}

impl Status {
    /// Whether tasks that wait for one which stands so wait no longer.
    #[must_use]
    pub const fn is_settled(self) -> bool {
        matches!(self, Self::Done | Self::Archived)
    }
}

/// Where the work on a task is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", content = "path")]
pub enum Workspace {
    /// In a directory that is made for it and thrown away.
    #[default]
    Scratch,
    /// In a work tree of a repository.
    Worktree(Option<String>),
    /// In a directory that is there.
    Dir(Option<String>),
}

impl Workspace {
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Scratch => "scratch",
            Self::Worktree(_) => "worktree",
            Self::Dir(_) => "dir",
        }
    }

    /// Where it lies, if that is settled.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Scratch => None,
            Self::Worktree(path) | Self::Dir(path) => path.as_deref(),
        }
    }

    /// Of a kind that is one of the three, by the table's own check.
    #[expect(clippy::needless_pass_by_value, reason = "a column is read as a value")]
    pub(super) fn stored(kind: String, path: Option<String>) -> Self {
        match kind.as_str() {
            "worktree" => Self::Worktree(path),
            "dir" => Self::Dir(path),
            _ => Self::Scratch,
        }
    }
}

/// A task to be made. The default has no title and is ready at once.
#[derive(Clone, Debug, Default)]
pub struct NewTask<'a> {
    /// What is to be done; any text.
    pub title: &'a str,
    /// The greater one is claimed first.
    pub priority: i64,
    /// What else there is to say.
    pub body: &'a str,
    /// The only worker who may claim it; `None`: any.
    pub assignee: Option<&'a str>,
    /// Whose task it is, where several parties share a board.
    pub tenant: Option<&'a str>,
    /// Who makes it.
    pub created_by: &'a str,
    /// Only one task of a board can ever have the same key.
    pub idempotency_key: Option<&'a str>,
    /// Where the work is done.
    pub workspace: Workspace,
    /// The tasks that must be done first.
    pub parents: &'a [TaskId],
    /// Not before this, in milliseconds since 1970.
    pub due_ms: Option<i64>,
    /// It goes to triage first.
    pub triage: bool,
    /// It is blocked from the start, for that reason.
    pub blocked: Option<&'a str>,
    /// After how many failures in a row it is blocked; `None`: as the dispatcher says.
    pub failure_limit: Option<u32>,
    /// How long one run may take, at least 1 ms; `None`: as the dispatcher says.
    pub max_runtime: Option<Duration>,
    /// What an application wants to keep beside it, as JSON.
    pub extra: Option<&'a str>,
}

/// A task, as it stands in the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Task {
    /// Its number.
    pub id: TaskId,
    /// What is to be done.
    pub title: String,
    /// The greater one is claimed first.
    pub priority: i64,
    /// Where it stands.
    pub status: Status,
    /// The newest token that was handed out for it; 0: it was never claimed.
    pub fence: FencingToken,
    /// What came of it, once it is done or in review.
    pub result: Option<String>,
    /// The commit that made it.
    pub created_seq: CommitSeq,
    /// The commit that changed this row last.
    pub changed_seq: CommitSeq,
    /// What else there is to say.
    pub body: String,
    /// The only worker who may claim it.
    pub assignee: Option<String>,
    /// Whose task it is.
    pub tenant: Option<String>,
    /// Who made it.
    pub created_by: String,
    /// No other task has the same.
    pub idempotency_key: Option<String>,
    /// Where the work is done.
    pub workspace: Workspace,
    /// When it becomes ready, if it is scheduled.
    pub due_ms: Option<i64>,
    /// Why it is blocked, or was sent back.
    pub reason: Option<String>,
    /// Runs that a dispatcher started for it and that count against it: failed in a row, and the
    /// one that is live.
    pub failures: i64,
    /// Runs that were ended from outside in a row.
    pub interruptions: i64,
    /// After how many failures in a row it is blocked.
    pub failure_limit: Option<i64>,
    /// How long one run may take.
    pub max_runtime_ms: Option<i64>,
    /// What an application keeps beside it.
    pub extra: Option<String>,
}

/// What to change of a task; `None` leaves it as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Edit<'a> {
    /// What is to be done.
    pub title: Option<&'a str>,
    /// What else there is to say.
    pub body: Option<&'a str>,
    /// The greater one is claimed first.
    pub priority: Option<i64>,
    /// The only worker who may claim it; `Some(None)`: any.
    pub assignee: Option<Option<&'a str>>,
}

/// Which tasks to list, in the order of their numbers. The default is all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskFilter<'a> {
    /// Only those that stand so.
    pub status: Option<Status>,
    /// Only those that one is named for.
    pub assignee: Option<&'a str>,
    /// Only those of one party.
    pub tenant: Option<&'a str>,
    /// Only those of a greater number: the last one of the page before.
    pub after: TaskId,
    /// So many at most.
    pub limit: Option<u32>,
}

impl Default for TaskId {
    /// No task: the number before the first.
    fn default() -> Self {
        Self::new(0)
    }
}

impl Board {
    /// Makes a task, and an event of the kind `created` with the title as its payload.
    ///
    /// It stands where its fields say: in triage, blocked, waiting for its parents, scheduled, or
    /// ready, the first of these that applies.
    ///
    /// # Errors
    ///
    /// - [`StoreError::TaskExists`]: a task of that idempotency key is there; it is named.
    /// - [`StoreError::NoSuchTask`]: a parent is not there.
    /// - [`StoreError::Busy`], [`StoreError::Full`], [`StoreError::Io`], [`StoreError::Corrupt`],
    ///   [`StoreError::AlreadyWritten`].
    ///
    /// After any of these nothing was written. [`StoreError::Indeterminate`]: the task and its
    /// event are both there or both absent.
    pub fn create_task(&mut self, key: OpKey, task: &NewTask<'_>) -> Result<(TaskId, Commit)> {
        self.write(Kind::Create, key, |w| create(w, task))
    }

    /// Changes what a task says, and appends an event `edited`. A running task can be edited too;
    /// its worker is not told.
    ///
    /// # Errors
    ///
    /// - [`StoreError::NoSuchTask`]; [`StoreError::NotAllowed`]: it is archived.
    /// - Others as [`create_task`](Self::create_task).
    pub fn edit_task(&mut self, key: OpKey, task: TaskId, edit: &Edit<'_>) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Edit, key, |w| {
            let status = w.standing(task)?.status;
            if status == Status::Archived {
                return Err(StoreError::NotAllowed { task, status, deed: "edited" }.into());
            }
            w.about(task, None);
            w.tx.edit_task(task, edit, w.seq)?;
            w.event(task, None, "edited", "")
        })?;
        Ok(commit)
    }

    /// The task of that number, if there is one.
    pub fn task(&self, id: TaskId) -> Result<Option<Task>> {
        self.read("read a task", |tx| tx.task(id))
    }

    /// The tasks that pass the filter, by number.
    pub fn tasks(&self, filter: TaskFilter<'_>) -> Result<Vec<Task>> {
        self.read("list the tasks", |tx| tx.tasks(&filter))
    }

    /// How many tasks stand how, all of [`Status::ALL`].
    pub fn status_counts(&self) -> Result<Vec<(Status, i64)>> {
        let counts = self.read("count the tasks", |tx| tx.status_counts())?;
        let of = |status| counts.iter().find(|(of, _)| *of == status).map_or(0, |(_, many)| *many);
        Ok(Status::ALL.iter().map(|status| (*status, of(*status))).collect())
    }
}

fn create(w: &mut Writing<'_>, task: &NewTask<'_>) -> Result<TaskId, Stop> {
    if let Some(key) = task.idempotency_key
        && let Some(task) = w.tx.task_of_key(key)?
    {
        return Err(StoreError::TaskExists { task, key: key.to_owned() }.into());
    }
    let mut waits = false;
    for parent in task.parents {
        waits |= !w.standing(*parent)?.status.is_settled();
    }
    let id = w.tx.next_task_id()?;
    let status = initial_status(task, waits, w.now.wall_ms);
    w.about(id, None);
    w.tx.insert_task(id, task, status, w.seq)?;
    for parent in task.parents {
        w.tx.insert_link(*parent, id, w.seq)?;
    }
    w.event(id, None, "created", task.title)?;
    Ok(id)
}

/// Where a new task stands. Whatever else keeps it from being ready is looked at again when that
/// ends, so the first that applies will do.
fn initial_status(task: &NewTask<'_>, waits: bool, now_ms: i64) -> Status {
    if task.blocked.is_some() {
        Status::Blocked
    } else if task.triage {
        Status::Triage
    } else if task.due_ms.is_some_and(|due| due > now_ms) {
        Status::Scheduled
    } else if waits {
        Status::Todo
    } else {
        Status::Ready
    }
}
