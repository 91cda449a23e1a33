//! What people and workers leave with a task: comments, and the files that belong to it.
//!
//! A file is known by what is said of it; its content lies elsewhere and is never touched here.

use serde::Serialize;

use crate::board::claim::FencingToken;
use crate::board::task::TaskId;
use crate::board::write::Kind;
use crate::board::{Board, Commit, CommitSeq, OpKey};
use crate::error::{Result, StoreError};

stored_integer! {
    /// The number of a comment on the board.
    CommentId
}

stored_integer! {
    /// The number of an attachment on the board.
    AttachmentId
}

/// A comment, as it stands in the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Comment {
    /// Its number.
    pub id: CommentId,
    /// The task.
    #[serde(rename = "task_id")]
    pub task: TaskId,
    /// The claim under which it was written; `None`: without one.
    pub token: Option<FencingToken>,
    /// Who wrote it.
    pub author: String,
    /// What it says.
    pub body: String,
    /// The commit that wrote it.
    pub commit_seq: CommitSeq,
}

/// A file to be attached.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewAttachment<'a> {
    /// What people call it.
    pub name: &'a str,
    /// Where its content lies: a path, or whatever the application understands.
    pub location: &'a str,
    /// Its media type, as `text/plain`.
    pub media_type: Option<&'a str>,
    /// How long it is.
    pub bytes: u32,
    /// A digest of its content, as the application makes it.
    pub digest: Option<&'a str>,
    /// Who attaches it.
    pub added_by: &'a str,
}

/// An attachment, as it stands in the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// Its number.
    pub id: AttachmentId,
    /// The task.
    #[serde(rename = "task_id")]
    pub task: TaskId,
    /// What people call it.
    pub name: String,
    /// Where its content lies.
    pub location: String,
    /// Its media type.
    pub media_type: Option<String>,
    /// How long it is.
    pub bytes: i64,
    /// A digest of its content.
    pub digest: Option<String>,
    /// Who attached it.
    pub added_by: String,
    /// The commit that attached it.
    pub commit_seq: CommitSeq,
}

impl Board {
    /// Comments on a task, and appends an event `commented` with the author as its payload. With a
    /// token, only while that token is the live claim.
    ///
    /// # Errors
    ///
    /// As [`heartbeat`](Self::heartbeat).
    pub fn comment(
        &mut self,
        key: OpKey,
        task: TaskId,
        token: Option<FencingToken>,
        author: &str,
        body: &str,
    ) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Comment, key, |w| {
            w.may_write(task, token)?;
            w.about(task, token);
            w.tx.insert_comment((task, token), author, body, w.seq)?;
            w.event(task, token, "commented", author)
        })?;
        Ok(commit)
    }

    /// The comments on a task, in the order of writing.
    pub fn comments(&self, task: TaskId) -> Result<Vec<Comment>> {
        self.read("list the comments", |tx| tx.comments(task))
    }

    /// Attaches a file to a task, and appends an event `attached` with its name as the payload.
    /// With a token, only while that token is the live claim.
    ///
    /// # Errors
    ///
    /// As [`heartbeat`](Self::heartbeat).
    pub fn attach(
        &mut self,
        key: OpKey,
        task: TaskId,
        token: Option<FencingToken>,
        file: &NewAttachment<'_>,
    ) -> Result<(AttachmentId, Commit)> {
        self.write(Kind::Attach, key, |w| {
            w.may_write(task, token)?;
            w.about(task, token);
            let id = w.tx.insert_attachment(task, file, w.seq)?;
            w.event(task, token, "attached", file.name)?;
            Ok(id)
        })
    }

    /// Takes an attachment off its task; what was said of it stays in the database.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSuchAttachment`]. Others as [`heartbeat`](Self::heartbeat).
    pub fn detach(
        &mut self,
        key: OpKey,
        task: TaskId,
        token: Option<FencingToken>,
        attachment: AttachmentId,
    ) -> Result<Commit> {
        let ((), commit) = self.write(Kind::Detach, key, |w| {
            w.may_write(task, token)?;
            w.about(task, token);
            if !w.tx.remove_attachment(task, attachment, w.seq)? {
                return Err(StoreError::NoSuchAttachment { task, attachment }.into());
            }
            w.event(task, token, "detached", &attachment.to_string())
        })?;
        Ok(commit)
    }

    /// The attachments of a task, in the order of attaching.
    pub fn attachments(&self, task: TaskId) -> Result<Vec<Attachment>> {
        self.read("list the attachments", |tx| tx.attachments(task))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::fixture::{HOUR, Place, dump};

    #[test]
    fn comments_keep_their_order_and_their_claim() {
        let mut place = Place::new();
        let mut board = place.board();
        let claim = place.claimed(&mut board, HOUR);
        let (task, token) = (claim.task, Some(claim.token));
        let _commit = board.comment(place.key(), task, token, "ann", "deep").unwrap();
        let _commit = board.comment(place.key(), task, None, "bob", "too deep").unwrap();
        let comments = board.comments(task).unwrap();
        let told: Vec<_> = comments.iter().map(|c| (c.token, c.body.as_str())).collect();
        assert_eq!(told, [(token, "deep"), (None, "too deep")]);
        assert_eq!(board.events(task).unwrap()[2].kind, "commented");
    }

    #[test]
    fn attachment_that_was_taken_off_is_not_listed_and_cannot_be_taken_off_again() {
        let mut place = Place::new();
        let mut board = place.board();
        let task = place.create(&mut board, "dig", 0);
        let other = place.create(&mut board, "rest", 0);
        let file = NewAttachment { name: "plan", location: "a/b", bytes: 7, ..Default::default() };
        let (id, _) = board.attach(place.key(), task, None, &file).unwrap();
        assert_eq!(board.attachments(task).unwrap()[0].location, "a/b");
        let before = dump(board.connection());
        let error = board.detach(place.key(), other, None, id).unwrap_err();
        assert!(matches!(error, StoreError::NoSuchAttachment { .. }), "{error:?}");
        assert_eq!(dump(board.connection()), before);
        let _commit = board.detach(place.key(), task, None, id).unwrap();
        assert_eq!(board.attachments(task).unwrap(), []);
        assert!(board.detach(place.key(), task, None, id).is_err());
    }
}
