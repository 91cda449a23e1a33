//! Events: what is to be remembered about a task, in the order in which it was written.
//!
//! A heartbeat is no event: it changes its run, so a worker that is alive for a year leaves one
//! row.
//!
//! In: kinds and payloads, any text. Out: [`Event`] rows. Not here: their meaning, which is the
//! application's; only `created` is written by the board itself.

use rusqlite::{Connection, Row};
use serde::Serialize;

use crate::board::claim::FencingToken;
use crate::board::run::require_live;
use crate::board::task::{TaskId, standing};
use crate::board::{Board, Commit, CommitSeq, Kind, OpKey, record};
use crate::error::Result;

stored_integer! {
    /// The number of an event on the board: a later one has a greater number.
    EventId
}

/// An event to be appended.
#[derive(Clone, Copy, Debug)]
pub struct NewEvent<'a> {
    /// What sort of event it is; any text.
    pub kind: &'a str,
    /// What there is to say about it; any text.
    pub payload: &'a str,
}

/// An event, as it stands in the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Its number.
    pub id: EventId,
    /// The task.
    #[serde(rename = "task_id")]
    pub task: TaskId,
    /// The claim under which it was written; `None`: without one.
    pub token: Option<FencingToken>,
    /// What sort of event it is.
    pub kind: String,
    /// What there is to say about it.
    pub payload: String,
    /// The commit that wrote it.
    pub commit_seq: CommitSeq,
}

impl Board {
    /// Appends the events in one transaction and in this order: after a crash all of them are
    /// there or none.
    ///
    /// With a token, only while that token is the live claim. Without one anybody may, at any
    /// time. No event at all is a write too, and uses up a commit number.
    ///
    /// # Errors
    ///
    /// As [`heartbeat`](Self::heartbeat).
    pub fn append_events(
        &mut self,
        key: OpKey,
        task: TaskId,
        token: Option<FencingToken>,
        events: &[NewEvent<'_>],
    ) -> Result<Commit> {
        let rows = i64::try_from(events.len()).unwrap_or(i64::MAX);
        let ((), commit) = self.write(Kind::Events, key, |conn| {
            if let Some(token) = token {
                require_live(conn, task, token)?;
            } else {
                standing(conn, task)?;
            }
            let seq = record(conn, Kind::Events, key, task, token, rows)?;
            for event in events {
                insert_event(conn, task, token, event.kind, event.payload, seq)?;
            }
            Ok(((), seq))
        })?;
        Ok(commit)
    }

    /// The events of a task in the order of writing; none if there is no such task.
    pub fn events(&self, task: TaskId) -> Result<Vec<Event>> {
        self.read("list the events", |conn| {
            conn.prepare_cached(
                "SELECT id, task_id, token, kind, payload, commit_seq FROM events \
                 WHERE task_id = ? ORDER BY id",
            )?
            .query_map([task], event_of)?
            .collect()
        })
    }
}

pub(super) fn insert_event(
    conn: &Connection,
    task: TaskId,
    token: Option<FencingToken>,
    kind: &str,
    payload: &str,
    seq: CommitSeq,
) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT INTO events (task_id, token, kind, payload, commit_seq) VALUES (?, ?, ?, ?, ?)",
    )?
    .execute((task, token, kind, payload, seq))?;
    Ok(())
}

fn event_of(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        id: row.get(0)?,
        task: row.get(1)?,
        token: row.get(2)?,
        kind: row.get(3)?,
        payload: row.get(4)?,
        commit_seq: row.get(5)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::fixture::{HOUR, Place, dump};

    const DUG: NewEvent<'_> = NewEvent { kind: "dug", payload: "1 m" };

    #[test]
    fn events_of_one_write_keep_their_order_and_name_their_commit_and_claim() {
        let mut place = Place::new();
        let mut board = place.board();
        let claim = place.claimed(&mut board, HOUR);
        let before = dump(board.connection());
        let events = [DUG, NewEvent { kind: "rested", payload: "" }, DUG];
        let commit =
            board.append_events(place.key(), claim.task, Some(claim.token), &events).unwrap();
        assert_eq!(commit.seq.get(), 3);
        let mut expected = before;
        expected.insert(2, r#"commits 3 7 3 "events" 1 1 3"#.to_owned());
        expected.extend([
            r#"events 2 1 1 "dug" "1 m" 3"#.to_owned(),
            r#"events 3 1 1 "rested" "" 3"#.to_owned(),
            r#"events 4 1 1 "dug" "1 m" 3"#.to_owned(),
        ]);
        assert_eq!(dump(board.connection()), expected);
    }

    #[test]
    fn anybody_may_append_without_a_claim_even_when_the_task_is_done() {
        let mut place = Place::new();
        let mut board = place.board();
        let claim = place.claimed(&mut board, HOUR);
        let _commit = board.append_events(place.key(), claim.task, None, &[DUG]).unwrap();
        let _done = board.complete(place.key(), claim.task, claim.token, "").unwrap();
        let _commit = board.append_events(place.key(), claim.task, None, &[DUG]).unwrap();
        let events = board.events(claim.task).unwrap();
        assert_eq!(events.len(), 3);
        assert!(events.iter().all(|event| event.token.is_none()));
    }

    #[test]
    fn no_event_at_all_still_uses_up_a_commit_number() {
        let mut place = Place::new();
        let mut board = place.board();
        let task = place.create(&mut board, "dig", 0);
        let commit = board.append_events(place.key(), task, None, &[]).unwrap();
        assert_eq!(commit.seq.get(), 2);
        assert_eq!(dump(board.connection())[1], r#"commits 2 7 2 "events" 1 - 0"#);
    }

    #[test]
    fn events_of_other_tasks_are_not_listed() {
        let mut place = Place::new();
        let mut board = place.board();
        let first = place.create(&mut board, "dig", 0);
        let second = place.create(&mut board, "rest", 0);
        assert_eq!(board.events(second).unwrap().len(), 1);
        assert_eq!(board.events(second).unwrap()[0].task, second);
        assert_eq!(board.events(first).unwrap()[0].payload, "dig");
        assert_eq!(board.events(TaskId::new(9)).unwrap(), []);
    }
}
