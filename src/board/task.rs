//! Tasks: making them and looking at them.
//!
//! In: a title and a priority. Out: [`Task`] rows. Not here: who works on a task (`claim`), and
//! what happened to it (`event`).

use std::fmt;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row};
use serde::{Deserialize, Serialize};

use crate::board::claim::FencingToken;
use crate::board::event::insert_event;
use crate::board::{Board, Commit, CommitSeq, Kind, OpKey, Stop};
use crate::error::{Result, StoreError};

stored_integer! {
    /// The number of a task. The first of a board is 1.
    TaskId
}

/// A task to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewTask<'a> {
    /// What is to be done; any text.
    pub title: &'a str,
    /// The greater one is claimed first.
    pub priority: i64,
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It waits for somebody to claim it.
    Ready,
    /// It has a live claim, whose lease may have expired.
    Running,
    /// It has a result. It stays so.
    Done,
}

impl Status {
    /// The name, as the database has it: `ready`, `running` or `done`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Done => "done",
        }
    }

    /// The status of exactly that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Ready, Self::Running, Self::Done].into_iter().find(|status| status.as_str() == name)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromSql for Status {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let name = value.as_str()?;
        Self::parse(name).ok_or_else(|| FromSqlError::Other(format!("status {name:?}").into()))
    }
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
    /// What came of it, once it is done.
    pub result: Option<String>,
    /// The commit that made it.
    pub created_seq: CommitSeq,
    /// The commit that changed this row last.
    pub changed_seq: CommitSeq,
}

/// Which tasks to list. The default is all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// Only those that stand so.
    pub status: Option<Status>,
}

const COLUMNS: &str = "id, title, priority, status, fence, result, created_seq, changed_seq";

impl Board {
    /// Makes a task that is ready to be claimed, and an event of the kind `created` with the title
    /// as its payload.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Full`], [`StoreError::Io`], [`StoreError::Corrupt`]:
    /// nothing was written. [`StoreError::Indeterminate`]: the task and its event are both there
    /// or both absent.
    pub fn create_task(&mut self, key: OpKey, task: &NewTask<'_>) -> Result<(TaskId, Commit)> {
        self.write(Kind::Create, key, |conn| {
            // The number is chosen before the row that needs it is written.
            let (seq, id): (CommitSeq, TaskId) = conn
                .prepare_cached(
                    "INSERT INTO commits (session, op, kind, task_id, token, rows) \
                     VALUES (?, ?, ?, (SELECT coalesce(max(id), 0) + 1 FROM tasks), NULL, 1) \
                     RETURNING seq, task_id",
                )?
                .query_row((key.session, key.op, Kind::Create.as_str()), |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?;
            conn.prepare_cached(
                "INSERT INTO tasks (id, title, priority, status, created_seq, changed_seq) \
                 VALUES (?1, ?2, ?3, 'ready', ?4, ?4)",
            )?
            .execute((id, task.title, task.priority, seq))?;
            insert_event(conn, id, None, "created", task.title, seq)?;
            Ok((id, seq))
        })
    }

    /// The task of that number, if there is one.
    pub fn task(&self, id: TaskId) -> Result<Option<Task>> {
        self.read("read a task", |conn| {
            conn.prepare_cached(&format!("SELECT {COLUMNS} FROM tasks WHERE id = ?"))?
                .query_row([id], task_of)
                .optional()
        })
    }

    /// The tasks that pass the filter, by number.
    pub fn tasks(&self, filter: TaskFilter) -> Result<Vec<Task>> {
        self.read("list the tasks", |conn| {
            conn.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM tasks WHERE ?1 IS NULL OR status = ?1 ORDER BY id"
            ))?
            .query_map([filter.status.map(Status::as_str)], task_of)?
            .collect()
        })
    }
}

/// What decides whether and how a task may be claimed.
pub(super) struct Standing {
    pub(super) status: Status,
    pub(super) fence: FencingToken,
}

/// The standing of a task that must be there.
pub(super) fn standing(conn: &Connection, task: TaskId) -> Result<Standing, Stop> {
    conn.prepare_cached("SELECT status, fence FROM tasks WHERE id = ?")?
        .query_row([task], |row| Ok(Standing { status: row.get(0)?, fence: row.get(1)? }))
        .optional()?
        .ok_or(Stop::Rule(StoreError::NoSuchTask { task }))
}

fn task_of(row: &Row<'_>) -> rusqlite::Result<Task> {
    Ok(Task {
        id: row.get(0)?,
        title: row.get(1)?,
        priority: row.get(2)?,
        status: row.get(3)?,
        fence: row.get(4)?,
        result: row.get(5)?,
        created_seq: row.get(6)?,
        changed_seq: row.get(7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::fixture::{HOUR, Place, dump};

    #[test]
    fn made_task_is_ready_and_has_one_event_with_its_title() {
        let mut place = Place::new();
        let mut board = place.board();
        let task = NewTask { title: "dig", priority: -4 };
        let (id, commit) = board.create_task(place.key(), &task).unwrap();
        assert_eq!((id.get(), commit.seq.get()), (1, 1));
        let rows = [
            r#"commits 1 7 1 "create" 1 - 1"#,
            r#"tasks 1 "dig" -4 "ready" 0 - 1 1"#,
            r#"events 1 1 - "created" "dig" 1"#,
        ];
        assert_eq!(dump(board.connection()), rows);
    }

    #[test]
    fn any_text_is_kept_as_it_was_given() {
        let mut place = Place::new();
        let mut board = place.board();
        for title in ["", "a\0b", "two\nlines", "\u{1F980} '; DROP TABLE tasks; --"] {
            let id = place.create(&mut board, title, i64::MIN);
            assert_eq!(board.task(id).unwrap().unwrap().title, title);
            assert_eq!(board.events(id).unwrap()[0].payload, title);
        }
    }

    #[test]
    fn task_that_is_not_there_is_none() {
        let place = Place::new();
        assert_eq!(place.board().task(TaskId::new(1)).unwrap(), None);
    }

    #[test]
    fn tasks_are_listed_by_number_and_by_where_they_stand() {
        let mut place = Place::new();
        let mut board = place.board();
        let first = place.create(&mut board, "a", 0);
        let second = place.create(&mut board, "b", 5);
        let claim = board.claim(place.key(), second, "ann", HOUR).unwrap();
        let list = |board: &Board, status| -> Vec<TaskId> {
            let tasks = board.tasks(TaskFilter { status }).unwrap();
            tasks.into_iter().map(|task| task.id).collect()
        };
        assert_eq!(list(&board, None), [first, second]);
        assert_eq!(list(&board, Some(Status::Ready)), [first]);
        assert_eq!(list(&board, Some(Status::Running)), [second]);
        let _done = board.complete(place.key(), second, claim.token, "").unwrap();
        assert_eq!(list(&board, Some(Status::Done)), [second]);
    }

    #[test]
    fn status_that_no_board_writes_is_reported_as_damage() {
        let mut place = Place::new();
        let mut board = place.board();
        let id = place.create(&mut board, "dig", 0);
        let spoil = "PRAGMA ignore_check_constraints = ON; UPDATE tasks SET status = 'lost'";
        board.connection().execute_batch(spoil).unwrap();
        let error = board.task(id).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        let error = board.claim(place.key(), id, "ann", HOUR).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    }

    #[test]
    fn name_of_each_status_is_read_back_as_that_status() {
        for status in [Status::Ready, Status::Running, Status::Done] {
            assert_eq!(Status::parse(status.as_str()), Some(status));
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
        assert_eq!(Status::parse("Ready"), None);
    }
}
