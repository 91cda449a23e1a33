//! Boards that do not fit together, made by writing behind the board's back.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::NewTask;
use crate::board::fixture::{HOUR, Place, dump};

fn backup() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kept");
    (dir, path)
}

/// Writes what no write of the board does. The chain does not cover the rows that it changes.
fn spoil(board: &Board, sql: &str) {
    board.connection().execute_batch(sql).unwrap();
}

fn told(plan: &Plan) -> Vec<(i64, Action, Reason)> {
    let of = |found: &Finding| (found.task_id.get(), found.proposed_action, found.reason);
    plan.findings.iter().map(of).collect()
}

#[test]
fn board_that_only_boards_wrote_has_nothing_to_reconcile() {
    let mut place = Place::new();
    let mut board = place.board();
    let claim = place.claimed(&mut board, HOUR);
    let parents = [claim.task];
    let task = NewTask { title: "b", parents: &parents, ..NewTask::default() };
    let _made = board.create_task(place.key(), &task).unwrap();
    let _claim = place.claimed(&mut board, Duration::ZERO);
    assert_eq!(board.plan_reconciliation().unwrap().findings, []);
}

/// Two tasks that wait for nothing, one that waits for the first; the second has a completed run.
fn board(place: &mut Place) -> Board {
    let mut board = place.board();
    let first = place.create(&mut board, "a", 0);
    let second = place.claimed(&mut board, HOUR);
    let _done = board.complete(place.key(), second.task, second.token, "deep").unwrap();
    let parents = [first];
    let task = NewTask { title: "c", parents: &parents, ..NewTask::default() };
    let _made = board.create_task(place.key(), &task).unwrap();
    board
}

#[track_caller]
fn check(spoilt: &str, want: &[(i64, Action, Reason)]) {
    let mut place = Place::new();
    let board = board(&mut place);
    spoil(&board, spoilt);
    assert_eq!(told(&board.plan_reconciliation().unwrap()), want, "{spoilt}");
}

#[test]
fn each_way_not_to_fit_has_its_action_and_reason() {
    use Action::{Complete, Release, Skip};
    check(
        "UPDATE tasks SET status = 'running' WHERE id = 2",
        &[(2, Complete, Reason::RunCompleted)],
    );
    check("UPDATE tasks SET status = 'ready' WHERE id = 2", &[(2, Complete, Reason::RunCompleted)]);
    check(
        "UPDATE tasks SET status = 'running' WHERE id = 2; \
         UPDATE runs SET outcome = 'crashed'",
        &[(2, Release, Reason::RunEnded)],
    );
    check(
        "UPDATE tasks SET status = 'running' WHERE id = 2; INSERT INTO links VALUES (1, 2, 1)",
        &[(2, Skip, Reason::ParentsOpen)],
    );
    check(
        "UPDATE tasks SET status = 'blocked', reason = 'review_gate_blocked' WHERE id = 2",
        &[(2, Skip, Reason::ReviewGateBlocked)],
    );
    check(
        "UPDATE tasks SET status = 'blocked', reason = 'no money' WHERE id = 2",
        &[(2, Skip, Reason::Blocked)],
    );
    check("UPDATE tasks SET status = 'ready' WHERE id = 3", &[(3, Release, Reason::ParentsOpen)]);
    check("DELETE FROM links", &[(3, Release, Reason::ParentsDone)]);
    let live = "UPDATE runs SET ended_seq = NULL, outcome = NULL";
    check(live, &[(2, Skip, Reason::ActiveClaim)]);
    let over = format!("{live}; UPDATE runs SET lease_until_boot_ms = 0");
    check(&over, &[(2, Release, Reason::NotRunning)]);
}

#[test]
fn plan_is_carried_out_once_with_an_event_for_each_task() {
    let mut place = Place::new();
    let mut board = board(&mut place);
    spoil(&board, "UPDATE tasks SET status = 'running' WHERE id = 2; DELETE FROM links");
    let json = serde_json::to_string(&board.plan_reconciliation().unwrap()).unwrap();
    let plan: Plan = serde_json::from_str(&json).unwrap();
    let (_dir, kept) = backup();
    let before = dump(board.connection());
    let done = board.reconcile(&plan, &kept).unwrap();
    assert_eq!(done.changed, [TaskId::new(2), TaskId::new(3)]);
    let status = |task| board.task(TaskId::new(task)).unwrap().unwrap().status;
    assert_eq!((status(2), status(3)), (Status::Done, Status::Ready));
    let events = board.events(TaskId::new(2)).unwrap();
    let last = events.last().unwrap();
    assert_eq!(
        (last.kind.as_str(), last.payload.as_str()),
        ("reconciled", "complete: run_completed")
    );
    // What was there before is in the backup, whole.
    let copy = fs::read_dir(&kept).unwrap().next().unwrap().unwrap().path();
    assert_eq!(dump(&Connection::open(copy).unwrap()), before);

    let after = dump(board.connection());
    let again = board.reconcile(&plan, &kept).unwrap();
    assert!(again.commit.is_none() && again.changed.is_empty());
    assert_eq!(dump(board.connection()), after);
    assert_eq!(board.plan_reconciliation().unwrap().findings, []);
}

/// The plan is refused, and nothing is changed.
#[track_caller]
fn check_refused(board: &mut Board, plan: &Plan) -> StoreError {
    let (_dir, kept) = backup();
    let before = dump(board.connection());
    let error = board.reconcile(plan, &kept).unwrap_err();
    assert_eq!(dump(board.connection()), before);
    error
}

#[test]
fn plan_of_a_board_that_has_moved_on_is_refused() {
    let mut place = Place::new();
    let mut board = board(&mut place);
    spoil(&board, "UPDATE tasks SET status = 'running' WHERE id = 2");
    let plan = board.plan_reconciliation().unwrap();
    // Another finding has come.
    spoil(&board, "UPDATE tasks SET status = 'ready' WHERE id = 3");
    let error = check_refused(&mut board, &plan);
    assert!(matches!(error, StoreError::PlanOutdated { .. }), "{error:?}");
    // A finding has gone, because somebody holds the task now.
    let plan = board.plan_reconciliation().unwrap();
    spoil(&board, "UPDATE runs SET ended_seq = NULL, outcome = NULL");
    let error = check_refused(&mut board, &plan);
    assert!(matches!(error, StoreError::PlanOutdated { .. }), "{error:?}");
}

#[test]
fn what_has_nothing_to_do_with_the_findings_outdates_no_plan() {
    let mut place = Place::new();
    let mut board = board(&mut place);
    spoil(&board, "UPDATE tasks SET status = 'running' WHERE id = 2");
    let plan = board.plan_reconciliation().unwrap();
    place.create(&mut board, "other", 0);
    let (_dir, kept) = backup();
    assert_eq!(board.reconcile(&plan, &kept).unwrap().changed.len(), 1);
}

#[test]
fn plan_that_was_edited_or_is_of_another_board_is_refused() {
    let mut place = Place::new();
    let mut board = board(&mut place);
    spoil(&board, "UPDATE tasks SET status = 'blocked', reason = 'review' WHERE id = 2");
    let mut plan = board.plan_reconciliation().unwrap();
    plan.findings[0].proposed_action = Action::Complete;
    plan.findings[0].safe_to_apply = true;
    let error = check_refused(&mut board, &plan);
    assert!(matches!(error, StoreError::Invalid { .. }), "{error:?}");
    // Of another board, with the right digest.
    let plan = Plan::new(plan.commit_seq, "00".repeat(32), Vec::new());
    let error = check_refused(&mut board, &plan);
    assert!(matches!(error, StoreError::PlanOutdated { .. }), "{error:?}");
}

#[test]
fn board_that_is_damaged_is_not_reconciled() {
    let mut place = Place::new();
    let mut board = board(&mut place);
    spoil(&board, "UPDATE tasks SET status = 'running' WHERE id = 2");
    let plan = board.plan_reconciliation().unwrap();
    spoil(&board, "UPDATE events SET payload = 'forged' WHERE id = 1");
    let error = check_refused(&mut board, &plan);
    assert!(matches!(error, StoreError::Unsound { .. }), "{error:?}");
}
