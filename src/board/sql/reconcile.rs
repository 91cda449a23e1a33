//! The statements that find what does not fit together.

use rusqlite::OptionalExtension as _;

use super::Tx;
use crate::board::CommitSeq;
use crate::board::run::RunOutcome;
use crate::board::task::TaskId;

/// Tasks that may not stand where they should: running ones without a live run, those with a live
/// run that are not running, those whose newest run was completed and that are open, those that
/// are ready while a parent is open, and those that wait for nothing. Each part starts at an index.
pub(super) const SUSPECTS: &str = "\
    SELECT tasks.id FROM tasks WHERE status = 'running' AND NOT EXISTS \
      (SELECT 1 FROM runs WHERE runs.task_id = tasks.id AND ended_seq IS NULL) \
    UNION \
    SELECT task_id FROM runs JOIN tasks ON tasks.id = runs.task_id \
      WHERE ended_seq IS NULL AND status <> 'running' \
    UNION \
    SELECT tasks.id FROM tasks JOIN runs ON runs.task_id = tasks.id AND runs.token = tasks.fence \
      WHERE status IN ('triage', 'todo', 'scheduled', 'ready', 'blocked') \
      AND outcome = 'completed' \
    UNION \
    SELECT tasks.id FROM tasks WHERE status = 'ready' AND EXISTS \
      (SELECT 1 FROM links JOIN tasks AS parent ON parent.id = links.parent_id \
       WHERE links.child_id = tasks.id AND parent.status NOT IN ('done', 'archived')) \
    UNION \
    SELECT tasks.id FROM tasks WHERE status = 'todo' AND NOT EXISTS \
      (SELECT 1 FROM links JOIN tasks AS parent ON parent.id = links.parent_id \
       WHERE links.child_id = tasks.id AND parent.status NOT IN ('done', 'archived')) \
    ORDER BY 1";

impl Tx<'_> {
    pub(in crate::board) fn suspects(self) -> rusqlite::Result<Vec<TaskId>> {
        self.all(SUSPECTS, [], |row| row.get(0))
    }

    /// Outcome and summary of the newest run of a task.
    pub(in crate::board) fn newest_outcome(
        self,
        task: TaskId,
    ) -> rusqlite::Result<Option<(Option<RunOutcome>, Option<String>)>> {
        self.maybe(
            "SELECT outcome, summary FROM runs WHERE task_id = ?1 ORDER BY token DESC LIMIT 1",
            [task],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
    }

    /// The link of a commit in the chain, in hexadecimal digits.
    pub(in crate::board) fn link_text(self, seq: CommitSeq) -> rusqlite::Result<Option<String>> {
        self.conn
            .prepare_cached("SELECT lower(hex(link)) FROM commits WHERE seq = ?1")?
            .query_row([seq], |row| row.get(0))
            .optional()
    }

    /// Whether the first commit brought a board of the seed's application here.
    pub(in crate::board) fn is_imported(self) -> rusqlite::Result<bool> {
        self.one(
            "SELECT EXISTS (SELECT 1 FROM commits WHERE seq = 1 AND kind = 'import')",
            [],
            |row| row.get(0),
        )
    }
}
