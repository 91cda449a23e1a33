//! The statements about events.

use rusqlite::Row;

use super::Tx;
use crate::board::CommitSeq;
use crate::board::claim::FencingToken;
use crate::board::event::{Event, EventId, NewEvent};
use crate::board::task::TaskId;
use crate::sqlite::chain::Entry;

const COLUMNS: &str = "id, task_id, token, kind, payload, commit_seq";

/// The events of one task.
pub(super) const OF_TASK: &str = "SELECT id, task_id, token, kind, payload, commit_seq \
     FROM events WHERE task_id = ?1 AND id > ?2 ORDER BY id LIMIT ?3";

impl Tx<'_> {
    pub(in crate::board) fn insert_events(
        self,
        (task, token): (TaskId, Option<FencingToken>),
        events: &[NewEvent<'_>],
        entry: &mut Entry<'_>,
    ) -> rusqlite::Result<()> {
        let seq = entry.seq();
        let mut insert = self.prepared(
            "INSERT INTO events (task_id, token, kind, payload, commit_seq, checksum) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        for NewEvent { kind, payload } in events {
            let checksum = entry.row(&[&task, &token, kind, payload, &seq]);
            insert.execute((task, token, kind, payload, seq, checksum))?;
        }
        Ok(())
    }

    /// At most `limit` events after `after`: of one task, or of all.
    pub(in crate::board) fn events(
        self,
        task: Option<TaskId>,
        after: EventId,
        limit: Option<u32>,
    ) -> rusqlite::Result<Vec<Event>> {
        let limit = limit.map_or(-1, i64::from);
        match task {
            Some(task) => self.all(OF_TASK, (task, after, limit), event_of),
            None => self.all(
                &format!("SELECT {COLUMNS} FROM events WHERE id > ?1 ORDER BY id LIMIT ?2"),
                (after, limit),
                event_of,
            ),
        }
    }

    /// The number of the newest event; 0: there is none.
    pub(in crate::board) fn last_event(self) -> rusqlite::Result<EventId> {
        self.one("SELECT coalesce(max(id), 0) FROM events", [], |row| row.get(0))
    }

    /// The number of the oldest event that is kept: all before it were taken out.
    pub(in crate::board) fn first_event(self) -> rusqlite::Result<EventId> {
        self.one("SELECT coalesce(max(first_event_id), 1) FROM horizon", [], |row| row.get(0))
    }

    /// The newest commit that was made at that time or before; 0: there is none.
    ///
    /// The wall clock may have been set back, so that times do not grow with the numbers. Then the
    /// search ends at a commit that some later one precedes in time, which keeps more and not less.
    pub(in crate::board) fn last_commit_before(self, at_ms: i64) -> rusqlite::Result<CommitSeq> {
        let (mut low, mut high) = (0, self.last_commit()?.get());
        while low < high {
            let middle = low + (high - low + 1) / 2;
            let time: Option<i64> = self.maybe(
                "SELECT at_ms FROM commits WHERE seq <= ?1 ORDER BY seq DESC LIMIT 1",
                [middle],
                |row| row.get(0),
            )?;
            if time.is_some_and(|time| time > at_ms) {
                high = middle - 1;
            } else {
                low = middle;
            }
        }
        Ok(CommitSeq::new(low))
    }

    /// The number of the first event that a later commit wrote than that one; 0: there is none.
    pub(in crate::board) fn first_event_after(self, seq: CommitSeq) -> rusqlite::Result<EventId> {
        let (mut low, mut high) = (self.first_event()?.get(), self.last_event()?.get() + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let of: Option<CommitSeq> =
                self.maybe("SELECT commit_seq FROM events WHERE id = ?1", [middle], |row| {
                    row.get(0)
                })?;
            if of.is_some_and(|of| of <= seq) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(EventId::new(low))
    }

    /// Takes out all events before `first`, and gives how many there were.
    pub(in crate::board) fn prune_events(
        self,
        first: EventId,
        seq: CommitSeq,
    ) -> rusqlite::Result<usize> {
        self.run(
            "INSERT INTO horizon (id, first_event_id, changed_seq) VALUES (1, ?1, ?2) \
             ON CONFLICT (id) DO UPDATE SET first_event_id = ?1, changed_seq = ?2",
            (first, seq),
        )?;
        self.run("DELETE FROM events WHERE id < ?1", [first])
    }
}

pub(super) fn event_of(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        id: row.get(0)?,
        task: row.get(1)?,
        token: row.get(2)?,
        kind: row.get(3)?,
        payload: row.get(4)?,
        commit_seq: row.get(5)?,
    })
}
