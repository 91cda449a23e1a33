//! Every query of the board is answered from an index, whatever the size of the board.

use std::collections::BTreeSet;

use rusqlite::Connection;

use super::{event, link, note, run, task};
use crate::board::fixture::Place;
use crate::board::task::{Status, TaskFilter};

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
    check(note::COMMENTS, &["SEARCH comments USING INDEX comments_task (task_id=?)"]);
    check(note::ATTACHMENTS, &["SEARCH attachments USING INDEX attachments_task (task_id=?)"]);
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
