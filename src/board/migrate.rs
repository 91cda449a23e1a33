//! Bringing a board of an older format to this one, in one transaction.
//!
//! The rows are put aside, the old tables are dropped, the new ones made as on an empty file, and
//! the rows put back. So a board that was brought here has the very schema of a new one, and
//! [`schema::check`](super::schema::check) can compare it word for word.

use rusqlite::Connection;

use crate::board::schema;
use crate::board::sql::LEDGER;
use crate::sqlite::chain;

/// What puts the rows of a format aside, into temporary tables, and drops its tables.
const ASIDE: [(i64, &str); 1] = [(
    1,
    "CREATE TEMP TABLE old_commits AS SELECT * FROM main.commits;
     CREATE TEMP TABLE old_tasks AS SELECT * FROM main.tasks;
     CREATE TEMP TABLE old_runs AS SELECT * FROM main.runs;
     CREATE TEMP TABLE old_events AS SELECT * FROM main.events;
     DROP TABLE main.events; DROP TABLE main.runs; DROP TABLE main.tasks; DROP TABLE main.commits;",
)];

/// What puts the rows of a format back. Nothing of it says when anything was, so that is 1970; its
/// leases count by the wall clock, and those that are live end with the next start of the machine,
/// which for them is any.
const BACK: [(i64, &str); 1] = [(
    1,
    "INSERT INTO commits
         (seq, session, op, kind, task_id, token, rows, at_ms, content, link)
       SELECT seq, session, op, kind, task_id, token, rows, 0, 0, zeroblob(32)
         FROM temp.old_commits;
     INSERT INTO tasks (id, title, priority, status, fence, result, created_seq, changed_seq)
       SELECT id, title, priority, status, fence,
         CASE status WHEN 'done' THEN coalesce(result, '') ELSE result END,
         created_seq, changed_seq FROM temp.old_tasks;
     INSERT INTO runs (task_id, token, worker, lease_until_ms, heartbeats, started_seq, changed_seq,
         ended_seq, outcome, boot_id, lease_until_boot_ms, started_boot_ms)
       SELECT task_id, token, worker, lease_until_ms, heartbeats, started_seq, changed_seq,
         ended_seq, outcome, 'before', lease_until_ms, 0 FROM temp.old_runs;
     INSERT INTO events (id, task_id, token, kind, payload, commit_seq, checksum)
       SELECT id, task_id, token, kind, payload, commit_seq, 0 FROM temp.old_events;
     DROP TABLE temp.old_commits; DROP TABLE temp.old_tasks; DROP TABLE temp.old_runs;
     DROP TABLE temp.old_events;",
)];

/// Brings the board from `format` to [`schema::FORMAT`], within a transaction of the caller's.
pub(super) fn to_current(conn: &Connection, format: i64) -> rusqlite::Result<()> {
    let of = |steps: &[(i64, &'static str)]| {
        steps.iter().find(|(from, _)| *from == format).map_or("", |(_, sql)| sql)
    };
    conn.execute_batch(of(&ASIDE))?;
    schema::make(conn)?;
    conn.execute_batch(of(&BACK))?;
    // The old rows had no chain.
    chain::rebuild(conn, &LEDGER).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Board;
    use crate::board::fixture::{HOUR, Place, dump, quick};
    use crate::error::{Found, StoreError};

    /// The schema of format 1, and a board in it: one task done, one running, one ready.
    const FORMAT_1: &str = include_str!("format_1.sql");

    fn old_board(place: &Place) {
        Connection::open(place.path()).unwrap().execute_batch(FORMAT_1).unwrap();
    }

    #[test]
    fn board_of_format_1_keeps_every_row_and_can_be_worked_on() {
        let mut place = Place::new();
        old_board(&place);
        // The keys of the old board are taken.
        (0..6).for_each(|_| {
            place.key();
        });
        let mut board = Board::open(&place.path(), &quick()).unwrap();
        let rows = dump(board.connection());
        assert!(rows.contains(&r#"tasks 1 "paint" 3 "done" 1 "white" 1 3"#.to_owned()), "{rows:?}");
        assert_eq!(board.commit_seq().unwrap().get(), 6);
        // A lease of before is over: nobody of this start of the machine holds it.
        let back = board.take_back_expired(place.key()).unwrap().unwrap();
        assert_eq!(back.task.get(), 2);
        let claim = board.claim_next(place.key(), "ann", HOUR).unwrap().unwrap();
        assert_eq!((claim.task.get(), claim.token.get()), (2, 2));
        board.close().unwrap();
        assert!(Board::open(&place.path(), &quick()).is_ok());
    }

    #[test]
    fn processes_that_open_an_old_board_at_once_bring_it_here_once() {
        let place = Place::new();
        old_board(&place);
        let options = crate::Options { busy_timeout: HOUR, ..quick() };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| Board::open(&place.path(), &options).unwrap().close().unwrap());
            }
        });
        assert_eq!(Board::open(&place.path(), &quick()).unwrap().commit_seq().unwrap().get(), 6);
    }

    #[test]
    fn board_that_cannot_be_brought_here_is_left_as_it_is() {
        let place = Place::new();
        old_board(&place);
        let other = Connection::open(place.path()).unwrap();
        other.execute_batch("DROP TABLE events").unwrap();
        drop(other);
        let before = fs::read(place.path()).unwrap();
        let error = Board::open(&place.path(), &quick()).unwrap_err();
        assert!(matches!(error, StoreError::Sqlite { .. }), "{error:?}");
        let board = Connection::open(place.path()).unwrap();
        let tables = "SELECT count(*) FROM sqlite_schema WHERE type = 'table'";
        assert_eq!(board.query_row(tables, [], |row| row.get::<_, i64>(0)).unwrap(), 3);
        assert!(!before.is_empty());
    }

    #[test]
    fn board_of_a_format_that_is_to_come_is_refused() {
        let place = Place::new();
        old_board(&place);
        let other = Connection::open(place.path()).unwrap();
        other.pragma_update(None, "user_version", schema::FORMAT + 1).unwrap();
        drop(other);
        let error = Board::open(&place.path(), &quick()).unwrap_err();
        let StoreError::NotABoard { found, .. } = error else { panic!("{error:?}") };
        assert_eq!(found, Found::Version { version: schema::FORMAT + 1 });
    }
}
