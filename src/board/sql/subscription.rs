//! The statements about who reads events.

use rusqlite::Row;

use super::Tx;
use crate::board::CommitSeq;
use crate::board::event::EventId;
use crate::board::subscription::{NewSubscription, Subscription};

const COLUMNS: &str = "name, task_id, delivery, target, cursor, created_seq, changed_seq";

impl Tx<'_> {
    /// Whether there was no subscription of that name.
    pub(in crate::board) fn insert_subscription(
        self,
        new: &NewSubscription<'_>,
        cursor: EventId,
        seq: CommitSeq,
    ) -> rusqlite::Result<bool> {
        self.run(
            "INSERT INTO subscriptions (name, task_id, delivery, target, cursor, created_seq, \
             changed_seq) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6) ON CONFLICT DO NOTHING",
            (new.name, new.task, new.delivery, new.target, cursor, seq),
        )
        .map(|changed| changed > 0)
    }

    pub(in crate::board) fn subscription(
        self,
        name: &str,
    ) -> rusqlite::Result<Option<Subscription>> {
        self.maybe(
            &format!("SELECT {COLUMNS} FROM subscriptions WHERE name = ?1"),
            [name],
            subscription_of,
        )
    }

    pub(in crate::board) fn subscriptions(self) -> rusqlite::Result<Vec<Subscription>> {
        self.all(&format!("SELECT {COLUMNS} FROM subscriptions ORDER BY name"), [], subscription_of)
    }

    pub(in crate::board) fn set_cursor(
        self,
        name: &str,
        cursor: EventId,
        seq: CommitSeq,
    ) -> rusqlite::Result<()> {
        self.run(
            "UPDATE subscriptions SET cursor = ?2, changed_seq = ?3 WHERE name = ?1",
            (name, cursor, seq),
        )
        .map(|_| ())
    }

    /// Whether there was one of that name.
    pub(in crate::board) fn delete_subscription(self, name: &str) -> rusqlite::Result<bool> {
        self.run("DELETE FROM subscriptions WHERE name = ?1", [name]).map(|changed| changed > 0)
    }
}

fn subscription_of(row: &Row<'_>) -> rusqlite::Result<Subscription> {
    Ok(Subscription {
        name: row.get(0)?,
        task: row.get(1)?,
        delivery: row.get(2)?,
        target: row.get(3)?,
        cursor: row.get(4)?,
        created_seq: row.get(5)?,
        changed_seq: row.get(6)?,
    })
}
