//! From the rows of the old board to those of this one.
//!
//! | the old board has                  | this one has                                           |
//! |------------------------------------|--------------------------------------------------------|
//! | `tasks.id`, `t_` and digits        | a number in the order of making; the name in `extra`   |
//! | `blocked` without a reason         | the last error as the reason, or that there was none   |
//! | `scheduled`, without a time        | `scheduled` for the last day of the year 9999          |
//! | runs by number, no tokens          | the how-manieth of its task is the token               |
//! | a run that has not ended           | it is live; the first look at leases takes it back     |
//! | events with a time of their own    | the time within the payload                            |
//! | notifications, marked before sent  | subscriptions, at most once                            |

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{Counts, Import};
use crate::board::claim::FencingToken;
use crate::board::event::EventId;
use crate::board::note::NewAttachment;
use crate::board::process::Process;
use crate::board::run::RunOutcome;
use crate::board::sql::kanban::{self, Row};
use crate::board::sql::{ImportedRun, ImportedTask};
use crate::board::subscription::{Delivery, NewSubscription, StartAt};
use crate::board::task::{Status, TaskId, Workspace};
use crate::error::{Result, StoreError};

/// The last moment of the year 9999, in milliseconds since 1970.
const FAR_OFF_MS: i64 = 253_402_300_799_999;

/// Columns of a task that this board has a place for.
const TASK_COLUMNS: [&str; 17] = [
    "title",
    "body",
    "assignee",
    "status",
    "priority",
    "created_by",
    "workspace_kind",
    "workspace_path",
    "tenant",
    "result",
    "idempotency_key",
    "consecutive_failures",
    "max_runtime_seconds",
    "max_retries",
    "claim_lock",
    "claim_expires",
    "current_run_id",
];

/// All rows of an old board, as this one has them.
pub(super) struct Converted {
    pub(super) report: Import,
    pub(super) tasks: Vec<ImportedTask>,
    pub(super) links: Vec<(TaskId, TaskId)>,
    pub(super) runs: Vec<ImportedRun>,
    pub(super) events: Vec<Event>,
    pub(super) comments: Vec<Comment>,
    pub(super) attachments: Vec<Attachment>,
    pub(super) subscriptions: Vec<Subscription>,
}

pub(super) struct Event {
    pub(super) task: TaskId,
    pub(super) token: Option<FencingToken>,
    pub(super) kind: String,
    pub(super) payload: String,
}

pub(super) struct Comment {
    pub(super) task: TaskId,
    pub(super) author: String,
    pub(super) body: String,
}

pub(super) struct Attachment {
    pub(super) task: TaskId,
    name: String,
    location: String,
    media_type: Option<String>,
    bytes: u32,
    added_by: String,
}

impl Attachment {
    pub(super) fn as_new(&self) -> NewAttachment<'_> {
        NewAttachment {
            name: &self.name,
            location: &self.location,
            media_type: self.media_type.as_deref(),
            bytes: self.bytes,
            digest: None,
            added_by: &self.added_by,
        }
    }
}

pub(super) struct Subscription {
    name: String,
    task: TaskId,
    target: String,
    pub(super) cursor: EventId,
}

impl Subscription {
    pub(super) fn as_new(&self) -> NewSubscription<'_> {
        NewSubscription {
            name: &self.name,
            task: Some(self.task),
            delivery: Delivery::AtMostOnce,
            target: &self.target,
            from: StartAt::Oldest,
        }
    }
}

/// The tables of an old board, as they are.
struct Tables {
    tasks: Vec<Row>,
    links: Vec<Row>,
    runs: Vec<Row>,
    events: Vec<Row>,
    comments: Vec<Row>,
    attachments: Vec<Row>,
    subscriptions: Vec<Row>,
    damage: Vec<String>,
}

/// Reads an old board whole and converts it.
pub(super) fn convert(from: &Path) -> Result<Converted> {
    if !from.is_file() {
        return Err(StoreError::Import { what: format!("{} is no file", from.display()) });
    }
    let tables = read(from).map_err(|source| StoreError::Open { path: from.into(), source })?;
    let Some(tables) = tables else {
        let what = format!("{} is no board of that application", from.display());
        return Err(StoreError::Import { what });
    };
    let mut work = Work::default();
    let mut tasks = work.tasks(&tables.tasks);
    let links = work.links(&tables.links);
    let runs = work.runs(&tables.runs);
    let mut fences: HashMap<TaskId, i64> = HashMap::new();
    for run in &runs {
        fences.insert(run.task, run.token.get());
    }
    for task in &mut tasks {
        task.fence = fences.get(&task.id).copied().unwrap_or(0);
        if task.status == Status::Running && task.fence == 0 {
            let name = &task.title;
            work.changed.push(format!("task {name:?}: running without a run, now ready"));
            task.status = Status::Ready;
        }
    }
    let events = work.events(&tables.events);
    let comments = work.comments(&tables.comments);
    let attachments = work.attachments(&tables.attachments);
    let subscriptions = work.subscriptions(&tables.subscriptions);
    work.obstacles.extend(tables.damage.iter().map(|line| format!("it is damaged: {line}")));
    let found = Counts {
        tasks: tables.tasks.len(),
        links: tables.links.len(),
        runs: tables.runs.len(),
        events: tables.events.len(),
        comments: tables.comments.len(),
        attachments: tables.attachments.len(),
        subscriptions: tables.subscriptions.len(),
    };
    let kept = Counts {
        tasks: tasks.len(),
        links: links.len(),
        runs: runs.len(),
        events: events.len(),
        comments: comments.len(),
        attachments: attachments.len(),
        subscriptions: subscriptions.len(),
    };
    let mut statuses = BTreeMap::new();
    for task in &tasks {
        *statuses.entry(task.status.to_string()).or_default() += 1;
    }
    let Work { changed, obstacles, .. } = work;
    let report = Import { found, kept, statuses, changed, obstacles };
    Ok(Converted { report, tasks, links, runs, events, comments, attachments, subscriptions })
}

fn read(from: &Path) -> rusqlite::Result<Option<Tables>> {
    let conn = kanban::open(from)?;
    let (Some(tasks), Some(events)) = (
        kanban::rows(&conn, "tasks", "created_at, rowid")?,
        kanban::rows(&conn, "task_events", "id")?,
    ) else {
        return Ok(None);
    };
    let table = |name, order| kanban::rows(&conn, name, order).map(Option::unwrap_or_default);
    Ok(Some(Tables {
        tasks,
        events,
        links: table("task_links", "parent_id, child_id")?,
        runs: table("task_runs", "id")?,
        comments: table("task_comments", "id")?,
        attachments: table("task_attachments", "id")?,
        subscriptions: table("kanban_notify_subs", "rowid")?,
        damage: kanban::complaints(&conn)?,
    }))
}

/// What is known while the tables are converted one after the other.
#[derive(Default)]
struct Work {
    numbers: HashMap<String, TaskId>,
    statuses: HashMap<TaskId, Status>,
    current_runs: HashMap<TaskId, i64>,
    tokens: HashMap<i64, (TaskId, FencingToken)>,
    event_ids: Vec<i64>,
    changed: Vec<String>,
    obstacles: Vec<String>,
}

impl Work {
    fn tasks(&mut self, rows: &[Row]) -> Vec<ImportedTask> {
        let mut keys = BTreeSet::new();
        rows.iter()
            .zip(1_i64..)
            .map(|(row, number)| {
                let id = TaskId::new(number);
                let name = text(row, "id").unwrap_or_default();
                self.numbers.insert(name.clone(), id);
                let task = self.task(id, &name, row, &mut keys);
                self.statuses.insert(id, task.status);
                self.current_runs.extend(integer(row, "current_run_id").map(|run| (id, run)));
                task
            })
            .collect()
    }

    fn task(
        &mut self,
        id: TaskId,
        name: &str,
        row: &Row,
        keys: &mut BTreeSet<String>,
    ) -> ImportedTask {
        let named = text(row, "status").unwrap_or_default();
        let status = Status::parse(&named).unwrap_or_else(|| {
            self.changed.push(format!("task {name}: status {named:?} is not known, now triage"));
            Status::Triage
        });
        let idempotency_key = text(row, "idempotency_key").filter(|key| {
            let first = keys.insert(key.clone());
            if !first {
                self.changed.push(format!("task {name}: idempotency key {key:?} is taken"));
            }
            first
        });
        if status == Status::Running && holder_may_live(row) {
            self.obstacles.push(format!(
                "task {name} is running, and its lease is not over: stop the application first"
            ));
        }
        let reason = (status == Status::Blocked).then(|| {
            text(row, "last_failure_error").unwrap_or_else(|| "blocked before the import".into())
        });
        let path = text(row, "workspace_path");
        let workspace = match text(row, "workspace_kind").as_deref() {
            Some("worktree") => Workspace::Worktree(path),
            Some("dir") => Workspace::Dir(path),
            _ => Workspace::Scratch,
        };
        let positive = |column| integer(row, column).filter(|number| *number > 0);
        ImportedTask {
            id,
            title: text(row, "title").unwrap_or_default(),
            priority: integer(row, "priority").unwrap_or(0),
            status,
            fence: 0,
            result: text(row, "result").or((status == Status::Done).then(String::new)),
            body: text(row, "body").unwrap_or_default(),
            assignee: text(row, "assignee"),
            tenant: text(row, "tenant"),
            created_by: text(row, "created_by").unwrap_or_default(),
            idempotency_key,
            workspace,
            due_ms: (status == Status::Scheduled).then_some(FAR_OFF_MS),
            reason,
            failures: integer(row, "consecutive_failures").unwrap_or(0).max(0),
            failure_limit: positive("max_retries"),
            max_runtime_ms: positive("max_runtime_seconds").map(|s| s.saturating_mul(1000)),
            extra: extra(name, row),
        }
    }

    fn links(&mut self, rows: &[Row]) -> Vec<(TaskId, TaskId)> {
        let mut links: Vec<(TaskId, TaskId)> = Vec::new();
        let mut below: HashMap<TaskId, Vec<TaskId>> = HashMap::new();
        for row in rows {
            let ends = ["parent_id", "child_id"].map(|end| text(row, end).unwrap_or_default());
            let [Some(parent), Some(child)] = [0, 1].map(|end| self.number(&ends[end])) else {
                self.changed.push(format!("link {} to {}: no such task", ends[0], ends[1]));
                continue;
            };
            if reaches(&below, child, parent) {
                self.changed.push(format!("link {} to {}: a cycle", ends[0], ends[1]));
                continue;
            }
            below.entry(parent).or_default().push(child);
            links.push((parent, child));
        }
        links
    }

    fn runs(&mut self, rows: &[Row]) -> Vec<ImportedRun> {
        let mut newest: HashMap<TaskId, i64> = HashMap::new();
        let mut runs = Vec::new();
        for row in rows {
            let (number, name) = (integer(row, "id").unwrap_or(0), text(row, "task_id"));
            let Some(task) = name.as_deref().and_then(|name| self.number(name)) else {
                self.changed.push(format!("run {number}: no such task"));
                continue;
            };
            let token = newest.entry(task).and_modify(|token| *token += 1).or_insert(1);
            let token = FencingToken::new(*token);
            self.tokens.insert(number, (task, token));
            let live = self.statuses.get(&task) == Some(&Status::Running)
                && self.current_runs.get(&task) == Some(&number)
                && integer(row, "ended_at").is_none();
            let outcome = (!live).then(|| outcome_of(row));
            let seconds = |column| integer(row, column).unwrap_or(0);
            runs.push(ImportedRun {
                task,
                token,
                worker: text(row, "profile").unwrap_or_else(|| "unknown".to_owned()),
                lease_until_ms: seconds("claim_expires").saturating_mul(1000),
                outcome,
                summary: text(row, "summary"),
                error: text(row, "error"),
            });
        }
        runs
    }

    fn events(&mut self, rows: &[Row]) -> Vec<Event> {
        let mut events = Vec::new();
        for row in rows {
            let number = integer(row, "id").unwrap_or(0);
            let name = text(row, "task_id").unwrap_or_default();
            let Some(task) = self.number(&name) else {
                self.changed.push(format!("event {number}: no task {name}"));
                continue;
            };
            let token = integer(row, "run_id").and_then(|run| self.tokens.get(&run));
            let payload = text(row, "payload").map_or(Value::Null, |text| {
                serde_json::from_str(&text).unwrap_or(Value::String(text))
            });
            let payload = json!({ "at": integer(row, "created_at"), "payload": payload });
            self.event_ids.push(number);
            events.push(Event {
                task,
                token: token.filter(|(of, _)| *of == task).map(|(_, token)| *token),
                kind: text(row, "kind").unwrap_or_default(),
                payload: payload.to_string(),
            });
        }
        events
    }

    fn comments(&mut self, rows: &[Row]) -> Vec<Comment> {
        let mut comments = Vec::new();
        for row in rows {
            let name = text(row, "task_id").unwrap_or_default();
            let Some(task) = self.number(&name) else {
                self.changed.push(format!("a comment: no task {name}"));
                continue;
            };
            comments.push(Comment {
                task,
                author: text(row, "author").unwrap_or_default(),
                body: text(row, "body").unwrap_or_default(),
            });
        }
        comments
    }

    fn attachments(&mut self, rows: &[Row]) -> Vec<Attachment> {
        let mut attachments = Vec::new();
        for row in rows {
            let name = text(row, "task_id").unwrap_or_default();
            let Some(task) = self.number(&name) else {
                self.changed.push(format!("an attachment: no task {name}"));
                continue;
            };
            attachments.push(Attachment {
                task,
                name: text(row, "filename").unwrap_or_default(),
                location: text(row, "stored_path").unwrap_or_default(),
                media_type: text(row, "content_type"),
                bytes: integer(row, "size").and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
                added_by: text(row, "uploaded_by").unwrap_or_default(),
            });
        }
        attachments
    }

    fn subscriptions(&mut self, rows: &[Row]) -> Vec<Subscription> {
        let mut subscriptions = Vec::new();
        for row in rows {
            let of = |column| text(row, column).unwrap_or_default();
            let name = of("task_id");
            let Some(task) = self.number(&name) else {
                self.changed.push(format!("a subscription: no task {name}"));
                continue;
            };
            let read = integer(row, "last_event_id").unwrap_or(0);
            // As many of the events that came are of that number or before it.
            let cursor = self.event_ids.partition_point(|id| *id <= read);
            let place = [of("platform"), of("chat_id"), of("thread_id")].join(":");
            subscriptions.push(Subscription {
                name: format!("{name}:{place}"),
                task,
                target: Value::Object(row.clone()).to_string(),
                cursor: EventId::new(i64::try_from(cursor).unwrap_or(i64::MAX)),
            });
        }
        subscriptions
    }

    fn number(&self, name: &str) -> Option<TaskId> {
        self.numbers.get(name).copied()
    }
}

/// Whether `to` is `from` or below it.
fn reaches(below: &HashMap<TaskId, Vec<TaskId>>, from: TaskId, to: TaskId) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = vec![from];
    while let Some(task) = next.pop() {
        if task == to {
            return true;
        }
        if seen.insert(task) {
            next.extend(below.get(&task).into_iter().flatten());
        }
    }
    false
}

fn outcome_of(row: &Row) -> RunOutcome {
    let named = text(row, "outcome").or_else(|| text(row, "status")).unwrap_or_default();
    match named.as_str() {
        "completed" | "done" => RunOutcome::Completed,
        "blocked" => RunOutcome::Blocked,
        "crashed" => RunOutcome::Crashed,
        "timed_out" => RunOutcome::TimedOut,
        "spawn_failed" => RunOutcome::SpawnFailed,
        "failed" | "gave_up" => RunOutcome::Failed,
        "released" => RunOutcome::Released,
        "reclaimed" => RunOutcome::TakenBack,
        // It neither ended nor is the current one.
        _ => RunOutcome::Interrupted,
    }
}

/// Whether somebody may still be at work on it: its lease is not over and its process is there.
fn holder_may_live(row: &Row) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let leased = integer(row, "claim_expires").is_some_and(|until| until.cast_unsigned() > now);
    let pid = integer(row, "worker_pid").and_then(|pid| i32::try_from(pid).ok());
    leased && pid.is_none_or(|pid| Process::of(pid).is_ok())
}

/// What this board has no place for, and the name that the task had.
fn extra(name: &str, row: &Row) -> String {
    let mut extra = Row::new();
    extra.insert("kanban_id".to_owned(), name.into());
    for (column, value) in row {
        if column != "id" && !value.is_null() && !TASK_COLUMNS.contains(&column.as_str()) {
            extra.insert(column.clone(), value.clone());
        }
    }
    Value::Object(extra).to_string()
}

fn text(row: &Row, column: &str) -> Option<String> {
    match row.get(column)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn integer(row: &Row, column: &str) -> Option<i64> {
    match row.get(column)? {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().map(whole)),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a cast from a float saturates")]
fn whole(number: f64) -> i64 {
    number as i64
}
