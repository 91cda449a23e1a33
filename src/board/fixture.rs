//! What the board's tests share: a board in a directory of its own, and its whole content as text.

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::Value;
use tempfile::TempDir;

use crate::board::claim::Claim;
use crate::board::{Board, OpKey, Session};
use crate::options::{Options, Synchronous};
use crate::{NewTask, TaskId};

pub(crate) const HOUR: Duration = Duration::from_hours(1);

/// A directory that goes away with the value, and a sender of writes.
pub(crate) struct Place {
    dir: TempDir,
    session: Session,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), session: Session::new(7) }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("board.db")
    }

    pub(crate) fn key(&mut self) -> OpKey {
        self.session.next_key()
    }

    /// A connection to the board, which is made if it is not there.
    pub(crate) fn board(&self) -> Board {
        Board::create(&self.path(), &quick()).unwrap()
    }

    pub(crate) fn create(&mut self, board: &mut Board, title: &str, priority: i64) -> TaskId {
        board.create_task(self.key(), &NewTask { title, priority, ..NewTask::default() }).unwrap().0
    }

    /// A task that was made and claimed.
    pub(crate) fn claimed(&mut self, board: &mut Board, lease: Duration) -> Claim {
        let task = self.create(board, "dig", 0);
        board.claim(self.key(), task, "ann", lease).unwrap()
    }
}

/// Options without syncs, since no test of the board itself cuts the power, and with so little
/// patience that a held lock is soon given up.
pub(crate) fn quick() -> Options {
    Options {
        synchronous: Synchronous::Off,
        busy_timeout: Duration::from_millis(40),
        ..Options::default()
    }
}

/// Every row of every table, one a line, in the order of the keys. Of the first four tables only
/// the columns that every write of them sets, but for times, which no test can know.
pub(crate) fn dump(conn: &Connection) -> Vec<String> {
    let tables = [
        ("commits", "seq, session, op, kind, task_id, token, rows", "seq"),
        ("tasks", "id, title, priority, status, fence, result, created_seq, changed_seq", "id"),
        (
            "runs",
            "task_id, token, worker, lease_until_ms, heartbeats, started_seq, changed_seq, \
             ended_seq, outcome",
            "task_id, token",
        ),
        ("events", "id, task_id, token, kind, payload, commit_seq", "id"),
        ("links", "*", "parent_id, child_id"),
        ("comments", "*", "id"),
        ("attachments", "*", "id"),
        ("subscriptions", "*", "name"),
        ("dispatcher", "*", "id"),
        ("horizon", "*", "id"),
    ];
    tables.iter().flat_map(|(table, columns, key)| rows(conn, table, columns, key)).collect()
}

fn rows(conn: &Connection, table: &str, columns: &str, key: &str) -> Vec<String> {
    let sql = format!("SELECT {columns} FROM {table} ORDER BY {key}");
    let mut statement = conn.prepare(&sql).unwrap();
    let columns = statement.column_count();
    let lines = statement.query_map([], |row| {
        let values = (0..columns).map(|column| row.get(column)).collect::<Result<Vec<_>, _>>()?;
        Ok(format!("{table} {}", values.iter().map(show).collect::<Vec<_>>().join(" ")))
    });
    lines.unwrap().collect::<Result<_, _>>().unwrap()
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Integer(number) => number.to_string(),
        Value::Text(text) => format!("{text:?}"),
        other => format!("{other:?}"),
    }
}
