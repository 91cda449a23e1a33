//! What the command says when it is done: text for people, JSON for programs.
//!
//! In: values of the board. Out: an [`Answer`] with both forms. Nothing is printed here.
//!
//! A JSON answer is one line. Each number's unit is in its name, and the columns of the board keep
//! their names.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::table::table;
use crate::board::claim::Claim;
use crate::board::dispatch::tick::describe;
use crate::board::dispatch::{Deferred, Ended, Started, Tick, TickReport};
use crate::board::event::{Event, Pruned};
use crate::board::import::Import;
use crate::board::note::AttachmentId;
use crate::board::reconcile::{Plan, Reconciled};
use crate::board::run::RunOutcome;
use crate::board::subscription::Subscription;
use crate::board::task::{Status, Task, TaskId};
use crate::board::{Board, Commit};
use crate::config::Effective;
use crate::error::{Result, StoreError};
use crate::sqlite::pragma::Pragmas;

/// What to say.
pub(super) struct Answer {
    /// For people: whole lines.
    pub(super) text: String,
    /// For programs.
    pub(super) json: Value,
    /// What failed after the part that is told.
    pub(super) then: Option<StoreError>,
}

impl Answer {
    pub(super) fn new(text: String, json: Value) -> Self {
        Self { text, json, then: None }
    }

    pub(super) fn opened(path: &Path, board: &Board) -> Result<Self> {
        let seq = board.commit_seq()?;
        let path = path.display().to_string();
        let text = format!("board with {seq} commits: {}\n", one_line(&path));
        Ok(Self::new(text, json!({ "path": path, "commit_seq": seq })))
    }

    pub(super) fn wrote(deed: &str, task: TaskId, commit: &Commit) -> Self {
        let json = json!({ "task_id": task, "commit_seq": commit.seq });
        Self::new(format!("{deed} task {task}\n"), json)
    }

    pub(super) fn appended(count: usize, task: TaskId, commit: &Commit) -> Self {
        let json = json!({ "task_id": task, "events": count, "commit_seq": commit.seq });
        let events = if count == 1 { "event" } else { "events" };
        Self::new(format!("appended {count} {events} to task {task}\n"), json)
    }

    pub(super) fn claimed(claim: &Claim) -> Self {
        let Claim { task, token, lease_until_ms, commit } = claim;
        let json = json!({
            "task_id": task,
            "token": token,
            "lease_until_ms": lease_until_ms,
            "commit_seq": commit.seq,
        });
        Self::new(format!("claimed task {task} with token {token}\n"), json)
    }

    pub(super) fn ticked(report: TickReport) -> Self {
        let mut text = String::new();
        let mut taken_back = Vec::new();
        for run in &report.taken_back {
            let (task, token, worker) = (run.task, run.token, one_line(&run.worker));
            push_line(&mut text, format_args!("took back task {task}, token {token}, of {worker}"));
            taken_back.push(json!({
                "task_id": task,
                "token": token,
                "worker": run.worker,
                "commit_seq": run.commit.seq,
            }));
        }
        if text.is_empty() {
            text.push_str("no lease has expired\n");
        }
        Self { text, json: json!({ "taken_back": taken_back }), then: report.cut_short }
    }

    pub(super) fn existed(task: TaskId) -> Self {
        let json = json!({ "task_id": task, "existed": true });
        Self::new(format!("task {task} was there\n"), json)
    }

    pub(super) fn failed(task: TaskId, status: Status, commit: &Commit) -> Self {
        let json = json!({ "task_id": task, "status": status, "commit_seq": commit.seq });
        Self::new(format!("ended the claim of task {task}, which is {status} now\n"), json)
    }

    pub(super) fn attached(number: AttachmentId, task: TaskId, commit: &Commit) -> Self {
        let json = json!({ "task_id": task, "attachment": number, "commit_seq": commit.seq });
        Self::new(format!("attached file {number} to task {task}\n"), json)
    }

    pub(super) fn list(tasks: &[Task]) -> Self {
        let rows = tasks.iter().map(|task| {
            let assignee = task.assignee.clone().unwrap_or_default();
            let (id, status, priority) = (task.id, task.status, task.priority);
            vec![
                id.to_string(),
                status.to_string(),
                priority.to_string(),
                assignee,
                task.title.clone(),
            ]
        });
        let text = table(&["task", "status", "priority", "assignee", "title"], rows);
        Self::new(text, json!(tasks))
    }

    pub(super) fn show(board: &Board, task: &Task) -> Result<Self> {
        let (runs, events) = (board.runs(task.id)?, board.events(task.id)?);
        let (parents, children) = (board.parents(task.id)?, board.children(task.id)?);
        let (comments, attachments) = (board.comments(task.id)?, board.attachments(task.id)?);
        let mut text = task_line(task) + "\n";
        let said = [("body", Some(&task.body)), ("result", task.result.as_ref())];
        let said = said.into_iter().chain([("reason", task.reason.as_ref())]);
        for (name, value) in said.filter_map(|(name, value)| value.map(|value| (name, value))) {
            if !value.is_empty() {
                push_line(&mut text, format_args!("{name}: {}", one_line(value)));
            }
        }
        for (what, tasks) in [("waits for", &parents), ("is waited for by", &children)] {
            if !tasks.is_empty() {
                let tasks: Vec<_> = tasks.iter().map(TaskId::to_string).collect();
                push_line(&mut text, format_args!("{what}: {}", tasks.join(", ")));
            }
        }
        for run in &runs {
            let end = run.outcome.map_or("live", RunOutcome::as_str);
            let (token, worker) = (run.token, one_line(&run.worker));
            let beats = run.heartbeats;
            push_line(
                &mut text,
                format_args!("run {token} by {worker}: {end}, {beats} heartbeats"),
            );
        }
        for comment in &comments {
            let (author, body) = (one_line(&comment.author), one_line(&comment.body));
            push_line(&mut text, format_args!("comment {} by {author}: {body}", comment.id));
        }
        for file in &attachments {
            let (name, location) = (one_line(&file.name), one_line(&file.location));
            push_line(&mut text, format_args!("attachment {} {name}: {location}", file.id));
        }
        for event in &events {
            push_line(&mut text, format_args!("{}", event_line(event)));
        }
        let json = json!({
            "task": task, "parents": parents, "children": children, "runs": runs,
            "comments": comments, "attachments": attachments, "events": events,
        });
        Ok(Self::new(text, json))
    }

    pub(super) fn events(events: &[Event]) -> Self {
        let mut text = String::new();
        for event in events {
            push_line(&mut text, format_args!("task {} {}", event.task, event_line(event)));
        }
        Self::new(text, json!(events))
    }

    pub(super) fn pruned(pruned: Option<Pruned>) -> Self {
        let Some(pruned) = pruned else {
            return Self::new("nothing is that old\n".to_owned(), json!({ "events": 0 }));
        };
        let mut text =
            format!("took out {} events, up to {}\n", pruned.events, pruned.first_event.get() - 1);
        if let Some(name) = &pruned.held_back_by {
            push_line(&mut text, format_args!("more is held back by {}", one_line(name)));
        }
        Self::new(text, json!(pruned))
    }

    pub(super) fn subscribed(deed: &str, name: &str, commit: Option<&Commit>) -> Self {
        let seq = commit.map(|commit| commit.seq);
        let text = format!("{deed} {}\n", one_line(name));
        Self::new(text, json!({ "name": name, "commit_seq": seq }))
    }

    pub(super) fn subscriptions(all: &[Subscription]) -> Self {
        let rows = all.iter().map(|one| {
            let task = one.task.map_or_else(|| "all".to_owned(), |task| task.to_string());
            vec![one.name.clone(), task, one.delivery.to_string(), one.cursor.to_string()]
        });
        Self::new(table(&["name", "task", "delivery", "read to"], rows), json!(all))
    }

    pub(super) fn dispatched(tick: &Tick) -> Self {
        let mut text = String::new();
        for Ended { task, token, outcome, error, status, .. } in &tick.ended {
            let error = one_line(error);
            let line = format!("task {task}, run {token}: {outcome} ({error}), now {status}");
            push_line(&mut text, format_args!("{line}"));
        }
        for Deferred { task, token, pids } in &tick.deferred {
            push_line(&mut text, format_args!("task {task}, run {token}: {pids:?} do not end"));
        }
        for task in &tick.promoted {
            push_line(&mut text, format_args!("task {task}: due"));
        }
        for Started { task, token, pid } in &tick.started {
            push_line(&mut text, format_args!("task {task}, run {token}: process {pid} started"));
        }
        push_line(&mut text, format_args!("{} ready, {} running", tick.ready, tick.running));
        Self::new(text, json!(tick))
    }

    pub(super) fn plan(plan: &Plan) -> Self {
        let rows = plan.findings.iter().map(|found| {
            let evidence = &found.evidence;
            let outcome = evidence.newest_outcome.map_or("-", RunOutcome::as_str);
            vec![
                found.task_id.to_string(),
                evidence.status.to_string(),
                outcome.to_owned(),
                found.proposed_action.to_string(),
                found.reason.to_string(),
            ]
        });
        let mut text = table(&["task", "status", "last run", "action", "reason"], rows);
        let (all, do_it) = (plan.findings.len(), plan.actions());
        push_line(&mut text, format_args!("{all} found, {do_it} to be acted upon"));
        Self::new(text, json!(plan))
    }

    pub(super) fn reconciled(done: &Reconciled) -> Self {
        let text = match &done.commit {
            None => "this plan was carried out before\n".to_owned(),
            Some(_) => format!("changed {} tasks\n", done.changed.len()),
        };
        let seq = done.commit.as_ref().map(|commit| commit.seq);
        Self::new(text, json!({ "changed": done.changed, "commit_seq": seq }))
    }

    pub(super) fn import_plan(report: &Import) -> Self {
        let (found, kept) = (&report.found, &report.kept);
        let rows = [
            ("tasks", found.tasks, kept.tasks),
            ("links", found.links, kept.links),
            ("runs", found.runs, kept.runs),
            ("events", found.events, kept.events),
            ("comments", found.comments, kept.comments),
            ("attachments", found.attachments, kept.attachments),
            ("subscriptions", found.subscriptions, kept.subscriptions),
        ];
        let rows = rows
            .map(|(what, found, kept)| vec![what.to_owned(), found.to_string(), kept.to_string()]);
        let mut text = table(&["what", "there", "comes"], rows);
        for line in &report.changed {
            push_line(&mut text, format_args!("not as it is: {}", one_line(line)));
        }
        for line in &report.obstacles {
            push_line(&mut text, format_args!("in the way: {}", one_line(line)));
        }
        Self::new(text, json!(report))
    }

    pub(super) fn imported(report: &Import, commit: &Commit) -> Self {
        let text = format!("{}imported\n", Self::import_plan(report).text);
        Self::new(text, json!({ "imported": report, "commit_seq": commit.seq }))
    }

    pub(super) fn stats(board: &Board) -> Result<Self> {
        let counts = board.status_counts()?;
        let (seq, first) = (board.commit_seq()?, board.first_event()?);
        let dispatcher = board.dispatcher()?;
        let rows = counts.iter().map(|(status, many)| vec![status.to_string(), many.to_string()]);
        let mut text = table(&["status", "tasks"], rows);
        push_line(&mut text, format_args!("{seq} commits, events from {first} on"));
        let who = dispatcher.as_ref().map_or_else(|| "nobody".to_owned(), describe);
        push_line(&mut text, format_args!("{} dispatches", one_line(&who)));
        let tasks: serde_json::Map<_, _> =
            counts.iter().map(|(status, many)| (status.to_string(), json!(many))).collect();
        let json = json!({
            "tasks": tasks, "commit_seq": seq, "first_event_id": first, "dispatcher": dispatcher,
        });
        Ok(Self::new(text, json))
    }

    pub(super) fn options(all: &[Effective]) -> Self {
        let rows = all.iter().map(|one| {
            let origin = one.origin.as_str().to_owned();
            vec![one.name.to_owned(), one.value.clone(), origin, one.why.to_owned()]
        });
        Self::new(table(&["setting", "value", "from", "why"], rows), json!(all))
    }

    pub(super) fn pragmas(pragmas: &Pragmas) -> Self {
        let mut text = String::new();
        for (name, value) in pragmas.named() {
            push_line(&mut text, format_args!("{name} = {value}"));
        }
        Self::new(text, json!(pragmas))
    }
}

/// The text with its control characters escaped, so that it is one line and cannot steer a
/// terminal.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

fn task_line(task: &Task) -> String {
    let Task { id, status, priority, title, .. } = task;
    format!("{id}\t{status}\tpriority {priority}\t{}", one_line(title))
}

fn event_line(event: &Event) -> String {
    let (kind, payload) = (one_line(&event.kind), one_line(&event.payload));
    format!("event {} {kind}: {payload}", event.id)
}

fn push_line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    writeln!(text, "{line}").ok();
}
