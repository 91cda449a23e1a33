//! A task board on SQLite that many processes write, and that says for every write what a crash
//! may do to it.
//!
//! # What is promised
//!
//! A [`Commit`] that a call of [`Board`] returned survives the process being killed at any later
//! instruction. Where its [`Durability`] is [`Power`](Durability::Power), the default, it also
//! survives the machine losing power, and with it every commit before it; else what survives of
//! the board is then a prefix of its commits. Each call may choose ([`Board::at`]).
//!
//! An error says which of two things it means. [`Outcome::Refused`]: nothing was written.
//! [`Outcome::Unknown`]: the write is wholly there or wholly absent, never in part, and a later
//! look at the board finds out which.
//!
//! A task has at most one live claim, and each claim has a [`FencingToken`] greater than all
//! before it. A write under any token but that of the live claim changes nothing.
//!
//! # What is not promised
//!
//! Nothing above holds on a disk that reports a sync it did not make, nor for a file whose
//! sidecars (`-wal`, `-shm`) somebody deletes, or which somebody opens and closes by hand in a
//! process that has the board open: POSIX drops every lock of the process when any descriptor of
//! the file is closed.
//!
//! # What is deliberately absent
//!
//! - No global state: two boards on two files never share anything.
//! - No background thread: every byte is written inside a call that the caller made.
//! - No retry that outlives its deadline, and no retry of a write whose outcome is unknown.
//! - No file of the database is opened but by SQLite, so none of its locks is ever dropped by this
//!   crate. A dispatcher locks a file of its own beside it.
//!
//! # Example
//!
//! ```
//! use std::time::Duration;
//! use hardboard::{Board, NewTask, Options, Session};
//!
//! # fn main() -> hardboard::Result<()> {
//! # let dir = tempfile::tempdir().expect("a temporary directory");
//! # let path = dir.path().join("board.db");
//! let mut board = Board::create(&path, &Options::default())?;
//! let mut me = Session::new(1);
//!
//! let fence = NewTask { title: "paint the fence", ..NewTask::default() };
//! let (task, created) = board.create_task(me.next_key(), &fence)?;
//! assert_eq!(created.seq.get(), 1);
//!
//! let lease = Duration::from_secs(60);
//! let claim = board.claim_next(me.next_key(), "tom", lease)?.expect("one task is ready");
//! assert_eq!(claim.task, task);
//! let done = board.complete(me.next_key(), task, claim.token, "white")?;
//! assert_eq!(done.seq, board.commit_seq()?);
//! # Ok(())
//! # }
//! ```

pub mod error;
pub mod options;
pub mod config;
pub mod sqlite;
pub mod board;
pub mod cli;

pub use board::claim::{Claim, Claimant, FencingToken, TakenBack};
pub use board::clock::{Clock, Now};
pub use board::dispatch::{DispatchOptions, Dispatcher, Limits, Taken, Tick, TickReport};
pub use board::event::{Event, EventId, NewEvent, Pruned};
pub use board::note::{Attachment, AttachmentId, Comment, CommentId, NewAttachment};
pub use board::process::{Liveness, Process};
pub use board::run::{Run, RunOutcome};
pub use board::subscription::{Delivered, Delivery, NewSubscription, StartAt, Subscription};
pub use board::task::{Edit, NewTask, Status, Task, TaskFilter, TaskId, Workspace};
pub use board::{At, Board, Commit, CommitSeq, OpKey, Session};
pub use error::{Found, Outcome, Result, StoreError};
pub use options::{Options, Synchronous};
pub use sqlite::durability::Durability;
pub use sqlite::pragma::Pragmas;
pub use sqlite::transaction::Timing;
