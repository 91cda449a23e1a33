//! Every query of the board is answered from an index, whatever the size of the board.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use rusqlite::Connection;

use super::{event, link, note as notes, reconcile, run, task};
use crate::board::fixture::{HOUR, Place};
use crate::board::task::{Status, TaskFilter};
use crate::{
    Delivery, DispatchOptions, Dispatcher, Edit, EventId, Limits, NewAttachment, NewSubscription,
    NewTask, Session, StartAt, Taken,
};

thread_local! {
    static NOTED: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// Remembers a statement that was run by this thread.
pub(super) fn note(sql: &str) {
    NOTED.with_borrow_mut(|noted| {
        if !noted.contains(sql) {
            noted.insert(sql.to_owned());
        }
    });
}

/// What SQLite plans to do, step by step.
fn plan(conn: &Connection, sql: &str) -> Vec<String> {
    let mut explained = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let unbound = vec![0; explained.parameter_count()];
    let steps = explained.query_map(rusqlite::params_from_iter(unbound), |row| row.get(3));
    steps.unwrap().collect::<Result<_, _>>().unwrap()
}

#[track_caller]
fn check(sql: &str, want: &[&str]) {
    assert_eq!(plan(Place::new().board().connection(), sql), want, "{sql}");
}

#[test]
fn next_task_is_found_without_sorting() {
    check(task::NEXT_READY, &["SCAN tasks USING INDEX tasks_ready"]);
    check(task::NEXT_READY_FOR, &["SEARCH tasks USING INDEX tasks_ready_for (assignee=?)"]);
    check(task::NEXT_ASSIGNEE, &["SEARCH tasks USING COVERING INDEX tasks_ready_for (assignee>?)"]);
}

#[test]
fn expired_leases_are_found_without_sorting() {
    let range = "SEARCH runs USING INDEX runs_lease (boot_id=? AND lease_until_boot_ms<?)";
    check(run::EXPIRED, &[range]);
    check(run::LIVE, &["SCAN runs USING INDEX runs_live"]);
    for (part, sign) in run::OF_OTHER_BOOTS.into_iter().zip(["<", ">"]) {
        check(part, &[&format!("SEARCH runs USING INDEX runs_lease (boot_id{sign}?)")]);
    }
}

#[test]
fn lists_of_tasks_start_at_their_page() {
    for status in [None, Some(Status::Ready)] {
        for assignee in [None, Some("ann")] {
            for tenant in [None, Some("t")] {
                let filter = TaskFilter { status, assignee, tenant, ..TaskFilter::default() };
                let sql = task::list(&filter);
                let steps = plan(Place::new().board().connection(), &sql);
                assert_eq!(steps.len(), 1, "{sql}: {steps:?}");
                assert!(steps[0].starts_with("SEARCH tasks USING"), "{sql}: {steps:?}");
                let by = if status.or(assignee.map(|_| Status::Ready)).is_none() && tenant.is_none()
                {
                    "INTEGER PRIMARY KEY (rowid>?)"
                } else {
                    "=? AND rowid>?)"
                };
                assert!(steps[0].ends_with(by) || steps[0].ends_with("id>?)"), "{sql}: {steps:?}");
            }
        }
    }
}

#[test]
fn due_tasks_and_counts_are_read_from_an_index() {
    check(task::DUE, &["SEARCH tasks USING COVERING INDEX tasks_due (due_ms>? AND due_ms<?)"]);
    check(task::COUNTS, &["SCAN tasks USING COVERING INDEX tasks_status"]);
}

#[test]
fn what_belongs_to_a_task_is_found_by_its_number() {
    check(event::OF_TASK, &["SEARCH events USING INDEX events_task (task_id=? AND id>?)"]);
    check(notes::COMMENTS, &["SEARCH comments USING INDEX comments_task (task_id=?)"]);
    check(notes::ATTACHMENTS, &["SEARCH attachments USING INDEX attachments_task (task_id=?)"]);
}

#[test]
fn links_are_followed_by_index_in_both_directions() {
    for sql in [link::PARENTS_OPEN, link::IS_BELOW] {
        let steps = plan(Place::new().board().connection(), sql);
        let scans: BTreeSet<_> = steps
            .iter()
            .filter(|step| step.starts_with("SCAN") && !step.contains("below"))
            .filter(|step| !step.contains("CONSTANT ROW"))
            .collect();
        assert!(scans.is_empty(), "{sql}: {steps:?}");
    }
}

#[test]
fn no_call_of_the_board_reads_a_table_from_end_to_end() {
    NOTED.with_borrow_mut(BTreeSet::clear);
    let mut place = Place::new();
    let board = every_call(&mut place);
    let noted = NOTED.take();
    assert!(noted.len() > 60, "only {} statements", noted.len());
    // One row, or one a reader.
    let small = ["SCAN horizon", "SCAN dispatcher", "SCAN subscriptions"];
    for sql in noted {
        for step in plan(board.connection(), &sql) {
            let whole = step.starts_with("SCAN ") && !step.contains(" USING ");
            let fine = small.contains(&step.as_str())
                || step == "SCAN CONSTANT ROW"
                || step == "SCAN below"
                || step.starts_with("SCAN (");
            assert!(!whole || fine, "{sql}: {step}");
            assert!(!step.contains("TEMP B-TREE") || sql == reconcile::SUSPECTS, "{sql}: {step}");
        }
    }
}

/// Calls everything once that a board can do.
fn every_call(place: &mut Place) -> crate::Board {
    let mut board = place.board();
    let parent = place.create(&mut board, "a", 0);
    let task = NewTask {
        title: "b",
        idempotency_key: Some("k"),
        parents: &[parent],
        assignee: Some("ann"),
        ..NewTask::default()
    };
    let (child, _) = board.create_task(place.key(), &task).unwrap();
    let _commit = board.edit_task(place.key(), child, &Edit::default()).unwrap();
    let other = place.create(&mut board, "c", 0);
    let _commit = board.link(place.key(), other, child).unwrap();
    let _commit = board.unlink(place.key(), other, child).unwrap();
    let claim = board.claim_next(place.key(), "bob", Duration::ZERO).unwrap().unwrap();
    let token = Some(claim.token);
    let _beat = board.heartbeat(place.key(), parent, claim.token, Duration::ZERO).unwrap();
    let _commit = board.comment(place.key(), parent, token, "bob", "x").unwrap();
    let file = NewAttachment::default();
    let (file, _) = board.attach(place.key(), parent, token, &file).unwrap();
    let _commit = board.detach(place.key(), parent, token, file).unwrap();
    let _back = board.take_back_expired(place.key()).unwrap().unwrap();
    let claim = board.claim(place.key(), parent, "bob", HOUR).unwrap();
    let _commit = board.submit(place.key(), parent, claim.token, "r").unwrap();
    let _commit = board.approve(place.key(), parent, claim.token).unwrap();
    let claim = board.claim(place.key(), child, "ann", HOUR).unwrap();
    let limits = Limits::default();
    let _commit = board.fail(place.key(), child, claim.token, "e", &limits).unwrap();
    assert!(board.promote_due(place.key(), 1).unwrap().is_none());
    let _commit = board.promote(place.key(), child).unwrap();
    let claim = board.claim(place.key(), child, "ann", HOUR).unwrap();
    let _commit = board.complete(place.key(), child, claim.token, "r").unwrap();
    let _commit = board.block(place.key(), other, None, "w").unwrap();
    let _commit = board.unblock(place.key(), other, "w").unwrap();
    let claim = board.claim(place.key(), other, "ann", HOUR).unwrap();
    let _back = board.take_back(place.key(), other, claim.token, "w").unwrap();
    let new = NewSubscription {
        name: "s",
        task: None,
        delivery: Delivery::AtMostOnce,
        target: "",
        from: StartAt::Oldest,
    };
    let _commit = board.subscribe(place.key(), &new).unwrap();
    assert!(!board.deliver(place.key(), "s", 9).unwrap().events.is_empty());
    let _commit = board.acknowledge(place.key(), "s", EventId::new(1)).unwrap();
    assert_eq!(board.subscriptions().unwrap().len(), 1);
    let _commit = board.unsubscribe(place.key(), "s").unwrap();
    board.clock().pass(HOUR * 3);
    let _commit = board.append_events(place.key(), other, None, &[]).unwrap();
    assert!(board.prune_events(place.key(), HOUR).unwrap().is_some());
    let _commit = board.archive(place.key(), child).unwrap();
    for list in [board.runs(child).unwrap().len(), board.events(other).unwrap().len()] {
        assert!(list > 0);
    }
    assert!(board.comments(child).unwrap().is_empty());
    assert!(board.attachments(child).unwrap().is_empty());
    assert!(board.parents(child).unwrap().len() + board.children(parent).unwrap().len() == 2);
    assert_eq!(board.status_counts().unwrap().len(), Status::ALL.len());
    assert!(board.plan_reconciliation().unwrap().findings.is_empty());
    dispatch(place);
    board
}

/// A dispatcher's two rounds, the second of which finds how the worker of the first ended.
fn dispatch(place: &Place) {
    let worker = vec!["false".to_owned()];
    let options = DispatchOptions { worker, ..DispatchOptions::default() };
    let taken = Dispatcher::take(place.board(), Session::new(66), "me", options).unwrap();
    let Taken::Ours(mut dispatcher) = taken else { panic!("{taken:?}") };
    let first = dispatcher.tick().unwrap();
    assert_eq!(first.started.len(), 1);
    while dispatcher.tick().unwrap().ended.is_empty() {}
    dispatcher.resign(true).unwrap();
}
