//! The statements about comments and attachments.

use rusqlite::params;

use super::Tx;
use crate::board::CommitSeq;
use crate::board::claim::FencingToken;
use crate::board::note::{Attachment, AttachmentId, Comment, NewAttachment};
use crate::board::task::TaskId;

/// The comments of a task.
pub(super) const COMMENTS: &str = "SELECT id, task_id, token, author, body, commit_seq \
     FROM comments WHERE task_id = ?1 ORDER BY id";

/// The attachments of a task that were not removed.
pub(super) const ATTACHMENTS: &str = "SELECT id, task_id, name, location, media_type, bytes, \
     digest, added_by, commit_seq FROM attachments \
     WHERE task_id = ?1 AND removed_seq IS NULL ORDER BY id";

impl Tx<'_> {
    pub(in crate::board) fn insert_comment(
        self,
        (task, token): (TaskId, Option<FencingToken>),
        author: &str,
        body: &str,
        seq: CommitSeq,
    ) -> rusqlite::Result<()> {
        self.run(
            "INSERT INTO comments (task_id, token, author, body, commit_seq) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
            (task, token, author, body, seq),
        )
        .map(|_| ())
    }

    pub(in crate::board) fn comments(self, task: TaskId) -> rusqlite::Result<Vec<Comment>> {
        self.all(COMMENTS, [task], |row| {
            Ok(Comment {
                id: row.get(0)?,
                task: row.get(1)?,
                token: row.get(2)?,
                author: row.get(3)?,
                body: row.get(4)?,
                commit_seq: row.get(5)?,
            })
        })
    }

    pub(in crate::board) fn insert_attachment(
        self,
        task: TaskId,
        new: &NewAttachment<'_>,
        seq: CommitSeq,
    ) -> rusqlite::Result<AttachmentId> {
        self.one(
            "INSERT INTO attachments (task_id, name, location, media_type, bytes, digest, \
             added_by, commit_seq) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) RETURNING id",
            params![
                task,
                new.name,
                new.location,
                new.media_type,
                new.bytes,
                new.digest,
                new.added_by,
                seq
            ],
            |row| row.get(0),
        )
    }

    /// Whether the task had that attachment.
    pub(in crate::board) fn remove_attachment(
        self,
        task: TaskId,
        attachment: AttachmentId,
        seq: CommitSeq,
    ) -> rusqlite::Result<bool> {
        self.run(
            "UPDATE attachments SET removed_seq = ?3 \
             WHERE id = ?2 AND task_id = ?1 AND removed_seq IS NULL",
            (task, attachment, seq),
        )
        .map(|changed| changed > 0)
    }

    pub(in crate::board) fn attachments(self, task: TaskId) -> rusqlite::Result<Vec<Attachment>> {
        self.all(ATTACHMENTS, [task], |row| {
            Ok(Attachment {
                id: row.get(0)?,
                task: row.get(1)?,
                name: row.get(2)?,
                location: row.get(3)?,
                media_type: row.get(4)?,
                bytes: row.get(5)?,
                digest: row.get(6)?,
                added_by: row.get(7)?,
                commit_seq: row.get(8)?,
            })
        })
    }
}
