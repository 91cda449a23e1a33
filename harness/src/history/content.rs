//! The rows of a board, and digests of them that two sides can compare.
//!
//! A digest of a table is the sum of its rows' digests, so it depends on which rows there are and
//! not on their order, and a change of one row changes it without the others being read again. The
//! lease's end and the events' own numbers are left out: no model can know the former, nothing
//! refers to the latter.

use serde::{Deserialize, Serialize};

/// Rows and digest of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// Rows.
    pub rows: u64,
    /// The sum of the rows' digests.
    pub digest: Digest,
}

/// Sum of row digests; hexadecimal in files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u128);

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{:032x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        u128::from_str_radix(&text, 16).map(Self).map_err(serde::de::Error::custom)
    }
}

impl Total {
    /// With one more row.
    pub fn add(&mut self, row: Digest) {
        self.rows += 1;
        self.digest.0 = self.digest.0.wrapping_add(row.0);
    }

    /// With one row less.
    pub fn remove(&mut self, row: Digest) {
        self.rows = self.rows.saturating_sub(1);
        self.digest.0 = self.digest.0.wrapping_sub(row.0);
    }
}

/// All tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Totals {
    /// Table `commits`.
    pub commits: Total,
    /// Table `tasks`.
    pub tasks: Total,
    /// Table `runs`.
    pub runs: Total,
    /// Table `events`.
    pub events: Total,
}

/// A row of `commits`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CommitRow {
    /// Its place in the commit order, from 1.
    pub seq: i64,
    /// Who sent it.
    pub session: i64,
    /// Its how-manieth operation it was.
    pub op: i64,
    /// The column's text, which may be anything in a damaged file.
    pub kind: String,
    /// The task.
    pub task: i64,
    /// The token, 0 for none.
    pub token: i64,
    /// Events that it says it appended.
    pub rows: i64,
}

/// A row of `tasks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TaskRow {
    /// Its number.
    pub id: i64,
    /// Its title.
    pub title: String,
    /// Higher is sooner.
    pub priority: i64,
    /// ready, running, done.
    pub status: String,
    /// The newest token handed out.
    pub fence: i64,
    /// What it was completed with.
    pub result: Option<String>,
    /// The commit that created it.
    pub created_seq: i64,
    /// The commit that changed it last.
    pub changed_seq: i64,
}

/// A row of `runs`, the lease's end left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RunRow {
    /// The task.
    pub task: i64,
    /// The token.
    pub token: i64,
    /// Who claimed it.
    pub worker: String,
    /// How often it beat.
    pub heartbeats: i64,
    /// The commit that began it.
    pub started_seq: i64,
    /// The commit that changed it last.
    pub changed_seq: i64,
    /// The commit that ended it.
    pub ended_seq: Option<i64>,
    /// completed, taken-back.
    pub outcome: Option<String>,
}

/// The events of one commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EventGroup {
    /// The commit.
    pub seq: i64,
    /// How many, and their digest.
    pub total: Total,
}

/// Collects one row's columns.
struct Columns(blake3::Hasher);

impl Columns {
    fn of(table: &str) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(table.as_bytes());
        Self(hash)
    }

    fn number(mut self, value: i64) -> Self {
        self.0.update(&value.to_le_bytes());
        self
    }

    fn maybe(self, value: Option<i64>) -> Self {
        match value {
            Some(value) => self.number(1).number(value),
            None => self.number(0),
        }
    }

    fn text(mut self, value: &str) -> Self {
        // The length first, so that neighbours cannot trade bytes.
        self.0.update(&value.len().to_le_bytes());
        self.0.update(value.as_bytes());
        self
    }

    fn digest(self) -> Digest {
        let mut half = [0; 16];
        half.copy_from_slice(&self.0.finalize().as_bytes()[..16]);
        Digest(u128::from_le_bytes(half))
    }
}

impl CommitRow {
    /// The digest of the row.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Columns::of("commits")
            .number(self.seq)
            .number(self.session)
            .number(self.op)
            .text(&self.kind)
            .number(self.task)
            .number(self.token)
            .number(self.rows)
            .digest()
    }
}

impl TaskRow {
    /// The digest of the row.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Columns::of("tasks")
            .number(self.id)
            .text(&self.title)
            .number(self.priority)
            .text(&self.status)
            .number(self.fence)
            .maybe(self.result.as_ref().map(|_| 1))
            .text(self.result.as_deref().unwrap_or(""))
            .number(self.created_seq)
            .number(self.changed_seq)
            .digest()
    }
}

impl RunRow {
    /// The digest of the row.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Columns::of("runs")
            .number(self.task)
            .number(self.token)
            .text(&self.worker)
            .number(self.heartbeats)
            .number(self.started_seq)
            .number(self.changed_seq)
            .maybe(self.ended_seq)
            .text(self.outcome.as_deref().unwrap_or(""))
            .digest()
    }
}

/// The digest of a row of `events`.
#[must_use]
pub fn event_digest(task: i64, token: i64, kind: &str, payload: &str, seq: i64) -> Digest {
    Columns::of("events").number(task).number(token).text(kind).text(payload).number(seq).digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_rows_does_not_matter_and_a_row_can_be_taken_out() {
        let rows: Vec<Digest> = (0..5).map(|seq| event_digest(1, 2, "k", "p", seq)).collect();
        let mut forth = Total::default();
        let mut back = Total::default();
        for (first, last) in rows.iter().zip(rows.iter().rev()) {
            forth.add(*first);
            back.add(*last);
        }
        assert_eq!(forth, back);
        forth.remove(rows[2]);
        assert_ne!(forth, back);
        forth.add(rows[2]);
        assert_eq!(forth, back);
    }

    #[test]
    fn neighbouring_texts_cannot_trade_bytes() {
        assert_ne!(event_digest(1, 2, "ab", "c", 3), event_digest(1, 2, "a", "bc", 3));
    }

    #[test]
    fn a_digest_comes_back_from_its_text() {
        let digest = event_digest(1, 2, "ab", "c", 3);
        let text = serde_json::to_string(&digest).unwrap();
        assert_eq!(serde_json::from_str::<Digest>(&text).unwrap(), digest);
    }
}
