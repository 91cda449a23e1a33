//! An old board with everything that its tables let through.

use std::fs;
use std::path::PathBuf;

use rusqlite::Connection;

use super::*;
use crate::board::fixture::{HOUR, Place, dump};
use crate::board::reconcile::{Action, Reason};
use crate::board::task::{Status, TaskId, Workspace};
use crate::{EventId, RunOutcome};

const KANBAN: &str = include_str!("kanban.sql");

fn old_board(place: &Place, then: &str) -> PathBuf {
    let path = place.path().with_file_name("kanban.db");
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    conn.execute_batch(KANBAN).unwrap();
    conn.execute_batch(then).unwrap();
    path
}

fn counts(tasks: usize, links: usize, events: usize, comments: usize) -> Counts {
    Counts { tasks, links, runs: 5, events, comments, attachments: 1, subscriptions: 1 }
}

#[test]
fn dry_run_counts_and_says_what_cannot_come_as_it_is() {
    let place = Place::new();
    let from = old_board(&place, "");
    let before = fs::read(&from).unwrap();
    let plan = Import::plan(&from).unwrap();
    assert_eq!(plan.found, counts(7, 4, 4, 2));
    assert_eq!(plan.kept, counts(7, 2, 3, 1));
    assert_eq!(
        plan.changed,
        [
            "task t_0000000c: idempotency key \"do\" is taken",
            "task t_0000000f: status \"limbo\" is not known, now triage",
            "link t_0000000a to t_gone: no such task",
            "link t_0000000d to t_0000000b: a cycle",
            "event 7: no task t_gone",
            "a comment: no task t_gone",
        ]
    );
    assert_eq!(plan.obstacles, [] as [String; 0]);
    assert_eq!(plan.statuses["running"], 2);
    assert_eq!(fs::read(&from).unwrap(), before);
}

#[test]
fn board_that_came_has_every_row_and_can_be_worked_on() {
    let mut place = Place::new();
    let from = old_board(&place, "");
    let mut board = place.board();
    let (report, _commit) = board.import(place.key(), &from).unwrap();
    assert_eq!(report, Import::plan(&from).unwrap());
    assert!(board.is_imported().unwrap());

    let plan = board.task(TaskId::new(1)).unwrap().unwrap();
    assert_eq!((plan.title.as_str(), plan.priority), ("write the plan", 2));
    assert_eq!((plan.status, plan.result.as_deref()), (Status::Done, Some("written")));
    assert_eq!(plan.workspace, Workspace::Dir(Some("/srv/plan".to_owned())));
    assert_eq!((plan.max_runtime_ms, plan.failure_limit), (Some(600_000), Some(5)));
    let extra: serde_json::Value = serde_json::from_str(&plan.extra.unwrap()).unwrap();
    assert_eq!(
        (&extra["kanban_id"], &extra["skills"]),
        (&"t_0000000a".into(), &"[\"prose\"]".into())
    );

    let events = board.events(TaskId::new(1)).unwrap();
    assert_eq!(events.len(), 2);
    assert_eq!(events[0].payload, r#"{"at":1000,"payload":{"by":"bob"}}"#);
    assert_eq!(events[1].token.map(crate::FencingToken::get), Some(1));
    // Of its events those up to number 7 had been read: here the first two.
    assert_eq!(board.subscriptions().unwrap()[0].cursor, EventId::new(2));

    // The claim of a process that is gone is taken back at the first look, and claimed anew.
    let back = board.take_back_expired(place.key()).unwrap().unwrap();
    assert_eq!((back.task.get(), back.token.get()), (2, 2));
    let claim = board.claim(place.key(), back.task, "ann", HOUR).unwrap();
    assert_eq!(claim.token.get(), 3);
    let outcomes: Vec<_> =
        board.runs(back.task).unwrap().into_iter().map(|run| run.outcome).collect();
    assert_eq!(outcomes, [Some(RunOutcome::Crashed), Some(RunOutcome::TakenBack), None]);
}

#[test]
fn what_the_old_board_left_undone_is_reconciled() {
    let mut place = Place::new();
    let from = old_board(&place, "");
    let mut board = place.board();
    let _commit = board.import(place.key(), &from).unwrap();
    let plan = board.plan_reconciliation().unwrap();
    let told: Vec<_> = plan
        .findings
        .iter()
        .map(|found| (found.task_id.get(), found.proposed_action, found.reason))
        .collect();
    let gate = (3, Action::Skip, Reason::ReviewGateBlocked);
    assert_eq!(told, [gate, (7, Action::Complete, Reason::RunCompleted)]);
    let backup = place.path().with_file_name("backup");
    let done = board.reconcile(&plan, &backup).unwrap();
    assert_eq!(done.changed, [TaskId::new(7)]);
    let row = board.task(TaskId::new(7)).unwrap().unwrap();
    assert_eq!((row.status, row.result.as_deref()), (Status::Done, Some("the other half")));
}

#[test]
fn board_that_is_not_empty_is_left_as_it_is() {
    let mut place = Place::new();
    let from = old_board(&place, "");
    let mut board = place.board();
    place.create(&mut board, "dig", 0);
    let before = dump(board.connection());
    let error = board.import(place.key(), &from).unwrap_err();
    assert!(matches!(error, StoreError::Import { .. }), "{error:?}");
    assert_eq!(dump(board.connection()), before);
}

#[test]
fn board_whose_workers_are_at_work_is_not_imported() {
    let mut place = Place::new();
    let live = format!(
        "UPDATE tasks SET worker_pid = {}, claim_expires = 99999999999 WHERE id = 't_0000000b'",
        std::process::id()
    );
    let from = old_board(&place, &live);
    let plan = Import::plan(&from).unwrap();
    assert_eq!(plan.obstacles.len(), 1, "{plan:?}");
    let error = place.board().import(place.key(), &from).unwrap_err();
    assert!(error.to_string().contains("stop the application first"), "{error}");
}

#[test]
fn what_is_no_such_board_is_refused() {
    let place = Place::new();
    let path = place.path().with_file_name("other.db");
    assert!(matches!(Import::plan(&path), Err(StoreError::Import { .. })));
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(matches!(Import::plan(&path), Err(StoreError::Import { .. })));
    fs::write(&path, [7; 5000]).unwrap();
    assert!(matches!(Import::plan(&path), Err(StoreError::Open { .. })));
}
