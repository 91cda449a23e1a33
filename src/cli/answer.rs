//! What the command says when it is done: text for people, JSON for programs.
//!
//! In: values of the board. Out: an [`Answer`] with both forms. Nothing is printed here.
//!
//! A JSON answer is one line. Each number's unit is in its name, and the columns of the board keep
//! their names.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::board::claim::Claim;
use crate::board::dispatch::TickReport;
use crate::board::event::Event;
use crate::board::run::Run;
use crate::board::task::{Task, TaskId};
use crate::board::{Board, Commit};
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
    fn new(text: String, json: Value) -> Self {
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

    pub(super) fn list(tasks: &[Task]) -> Self {
        let mut text = String::new();
        for task in tasks {
            push_line(&mut text, format_args!("{}", task_line(task)));
        }
        Self::new(text, json!(tasks))
    }

    pub(super) fn show(task: &Task, runs: &[Run], events: &[Event]) -> Self {
        let mut text = task_line(task) + "\n";
        if let Some(result) = &task.result {
            push_line(&mut text, format_args!("result: {}", one_line(result)));
        }
        for run in runs {
            let end = run.outcome.map_or("live", |outcome| outcome.as_str());
            let (token, worker) = (run.token, one_line(&run.worker));
            let beats = run.heartbeats;
            push_line(
                &mut text,
                format_args!("run {token} by {worker}: {end}, {beats} heartbeats"),
            );
        }
        for event in events {
            let (kind, payload) = (one_line(&event.kind), one_line(&event.payload));
            push_line(&mut text, format_args!("event {} {kind}: {payload}", event.id));
        }
        Self::new(text, json!({ "task": task, "runs": runs, "events": events }))
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

fn push_line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    writeln!(text, "{line}").ok();
}
