//! The statements about which task waits for which.

use super::Tx;
use crate::board::CommitSeq;
use crate::board::task::TaskId;

/// Whether some parent of a task is neither done nor archived.
pub(super) const PARENTS_OPEN: &str = "SELECT EXISTS (SELECT 1 FROM links \
     JOIN tasks ON tasks.id = links.parent_id \
     WHERE links.child_id = ?1 AND tasks.status NOT IN ('done', 'archived'))";

/// Whether one task is below another: its child, or a child of one that is.
pub(super) const IS_BELOW: &str = "WITH RECURSIVE below (id) AS (SELECT ?1 UNION \
     SELECT links.child_id FROM below JOIN links ON links.parent_id = below.id) \
     SELECT EXISTS (SELECT 1 FROM below WHERE id = ?2)";

impl Tx<'_> {
    pub(in crate::board) fn parents_open(self, task: TaskId) -> rusqlite::Result<bool> {
        self.one(PARENTS_OPEN, [task], |row| row.get(0))
    }

    pub(in crate::board) fn parents(self, task: TaskId) -> rusqlite::Result<Vec<TaskId>> {
        self.all("SELECT parent_id FROM links WHERE child_id = ?1 ORDER BY 1", [task], |row| {
            row.get(0)
        })
    }

    pub(in crate::board) fn children(self, task: TaskId) -> rusqlite::Result<Vec<TaskId>> {
        self.all("SELECT child_id FROM links WHERE parent_id = ?1 ORDER BY 1", [task], |row| {
            row.get(0)
        })
    }

    /// Whether `task` is `root`, or somewhere below it.
    pub(in crate::board) fn is_below(self, root: TaskId, task: TaskId) -> rusqlite::Result<bool> {
        self.one(IS_BELOW, (root, task), |row| row.get(0))
    }

    /// Whether the link was not there yet.
    pub(in crate::board) fn insert_link(
        self,
        parent: TaskId,
        child: TaskId,
        seq: CommitSeq,
    ) -> rusqlite::Result<bool> {
        self.run(
            "INSERT INTO links (parent_id, child_id, commit_seq) VALUES (?1, ?2, ?3) \
             ON CONFLICT DO NOTHING",
            (parent, child, seq),
        )
        .map(|changed| changed > 0)
    }

    /// Whether the link was there.
    pub(in crate::board) fn delete_link(
        self,
        parent: TaskId,
        child: TaskId,
    ) -> rusqlite::Result<bool> {
        self.run("DELETE FROM links WHERE parent_id = ?1 AND child_id = ?2", (parent, child))
            .map(|changed| changed > 0)
    }
}
