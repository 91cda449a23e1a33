//! What is known of a board apart from its file, for when the file is damaged.
//!
//! The board's own numbers say how many rows there were: commits, tasks and events are numbered
//! without a hole, and a task's newest token is the number of its runs. So what a recovery could
//! not save can be counted.

use std::path::Path;

use crate::board::schema;
use crate::board::sql::LEDGER;
use crate::error::Result;
use crate::options::Options;
use crate::sqlite::backup::Restored;
use crate::sqlite::recover::{Census, Known, Recovery, Request, recover as recover_database};

/// How many rows each table must have. What was removed again, as a link, leaves no number, so of
/// those tables it cannot be told.
const CENSUS: [Census; 7] = [
    Census {
        table: "commits",
        expected: "SELECT max(?1, (SELECT coalesce(max(seq), 0) FROM commits), \
             (SELECT coalesce(max(commit_seq), 0) FROM events), \
             (SELECT coalesce(max(changed_seq), 0) FROM tasks), \
             (SELECT coalesce(max(changed_seq), 0) FROM runs))",
    },
    Census {
        table: "tasks",
        expected: "SELECT max(?1 * 0, (SELECT coalesce(max(id), 0) FROM tasks), \
             (SELECT coalesce(max(task_id), 0) FROM commits), \
             (SELECT coalesce(max(task_id), 0) FROM runs), \
             (SELECT coalesce(max(task_id), 0) FROM events))",
    },
    Census {
        table: "runs",
        expected: "SELECT coalesce(sum(newest), 0) + ?1 * 0 FROM (SELECT max(token) AS newest FROM \
             (SELECT id AS task_id, fence AS token FROM tasks \
              UNION ALL SELECT task_id, token FROM runs \
              UNION ALL SELECT task_id, token FROM commits WHERE token IS NOT NULL \
              UNION ALL SELECT task_id, token FROM events WHERE token IS NOT NULL) \
             GROUP BY task_id)",
    },
    Census {
        table: "events",
        expected: "SELECT max(?1 * 0, (SELECT coalesce(max(id), 0) FROM events), \
             (SELECT coalesce(sum(rows), 0) FROM commits)) \
             - coalesce((SELECT first_event_id - 1 FROM horizon), 0)",
    },
    Census {
        table: "comments",
        expected: "SELECT max(?1 * 0, (SELECT coalesce(max(id), 0) FROM comments), \
             (SELECT count(*) FROM commits WHERE kind = 'comment'))",
    },
    Census {
        table: "attachments",
        expected: "SELECT max(?1 * 0, (SELECT coalesce(max(id), 0) FROM attachments), \
             (SELECT count(*) FROM commits WHERE kind = 'attach'))",
    },
    Census {
        table: "horizon",
        expected: "SELECT (SELECT count(*) > 0 FROM commits WHERE kind = 'prune') + ?1 * 0",
    },
];

/// Rows that refer to a task that was lost get one that says so; a task whose run was lost waits
/// for a person; a run without its task, or whose task says otherwise, is over.
const MEND: [&str; 3] = [
    "INSERT INTO tasks
       (id, title, priority, status, fence, reason, created_seq, changed_seq)
     SELECT task_id, '(lost, and made anew by a recovery)', 0, 'blocked', max(token),
         'lost in a recovery', min(seq), max(seq)
       FROM (SELECT task_id, coalesce(token, 0) AS token, commit_seq AS seq FROM events
         UNION ALL SELECT task_id, token, changed_seq FROM runs
         UNION ALL SELECT task_id, coalesce(token, 0), seq FROM commits WHERE task_id > 0
         UNION ALL SELECT task_id, 0, commit_seq FROM comments
         UNION ALL SELECT task_id, 0, commit_seq FROM attachments
         UNION ALL SELECT parent_id, 0, commit_seq FROM links
         UNION ALL SELECT child_id, 0, commit_seq FROM links
         UNION ALL SELECT task_id, 0, changed_seq FROM subscriptions WHERE task_id IS NOT NULL)
       WHERE task_id NOT IN (SELECT id FROM tasks) GROUP BY task_id",
    "UPDATE tasks SET status = 'blocked', reason = 'its run was lost in a recovery'
       WHERE status = 'running' AND NOT EXISTS
         (SELECT 1 FROM runs WHERE task_id = tasks.id AND ended_seq IS NULL)",
    "UPDATE runs SET ended_seq = changed_seq, outcome = 'interrupted'
       WHERE ended_seq IS NULL AND task_id IN (SELECT id FROM tasks WHERE status <> 'running')",
];

/// What is known of every board.
pub(crate) const KNOWN: Known<'static> = Known {
    schema: &schema::OBJECTS,
    application_id: schema::APPLICATION_ID,
    user_version: schema::FORMAT,
    ledger: Some(&LEDGER),
    census: &CENSUS,
    mend: &MEND,
};

/// Recovers a damaged board, or says what that would do: see [`crate::sqlite::recover`].
pub fn recover(path: &Path, options: &Options, request: &Request<'_>) -> Result<Recovery> {
    recover_database(path, &KNOWN, options, request)
}

/// Puts a backup in the place of the board at `path`: see [`crate::sqlite::backup::restore`].
pub fn restore(path: &Path, backup: &Path, options: &Options) -> Result<Restored> {
    crate::sqlite::backup::restore(path, backup, Some(&LEDGER), options)
}
