//! One write as its rules see it: what it is, who sends it, and what it leaves in the log.
//!
//! The number of the commit is the greatest so far plus one, read under the write lock that is
//! held until the commit: so there is no hole, and no number twice. The row in `commits` is written
//! last, when it is known how many events the write appended.

use crate::board::claim::FencingToken;
use crate::board::clock::{Clock, Now};
use crate::board::event::NewEvent;
use crate::board::sql::{CommitRow, Standing, Tx};
use crate::board::task::TaskId;
use crate::board::{CommitSeq, OpKey};
use crate::error::StoreError;
use crate::sqlite::chain::Entry;
use crate::sqlite::transaction::Transaction;

/// Declares the kinds of writes: the name in `commits`, and what was being done, for an error's
/// text ("SQLite failed to ...").
macro_rules! kinds {
    ($($kind:ident = $name:literal, $deed:literal;)+) => {
        /// What a write is, as the `kind` column of `commits` has it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Kind {
            $($kind,)+
        }

        impl Kind {
            pub(super) const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                }
            }

            pub(super) const fn deed(self) -> &'static str {
                match self {
                    $(Self::$kind => $deed,)+
                }
            }
        }
    };
}

kinds! {
    Create = "create", "create a task";
    Edit = "edit", "edit a task";
    Link = "link", "link two tasks";
    Unlink = "unlink", "unlink two tasks";
    Claim = "claim", "claim a task";
    Heartbeat = "heartbeat", "extend a claim";
    Events = "events", "append events";
    Complete = "complete", "complete a task";
    Submit = "submit", "submit a task for review";
    Release = "release", "release a claim";
    TakeBack = "take-back", "take a claim back";
    Fail = "fail", "end a run that failed";
    Block = "block", "block a task";
    Unblock = "unblock", "unblock a task";
    Schedule = "schedule", "schedule a task";
    Promote = "promote", "promote a task";
    Approve = "approve", "approve a task";
    SendBack = "send-back", "send a task back";
    Archive = "archive", "archive a task";
    Comment = "comment", "comment on a task";
    Attach = "attach", "attach a file to a task";
    Detach = "detach", "detach a file from a task";
    Subscribe = "subscribe", "subscribe to events";
    Unsubscribe = "unsubscribe", "end a subscription";
    Deliver = "deliver", "deliver events";
    Lease = "lease", "take the dispatcher's lease";
    Renew = "renew", "renew the dispatcher's lease";
    Resign = "resign", "give the dispatcher's lease up";
    Spawn = "spawn", "start a worker";
    Started = "started", "tell whose process works on a task";
    Reconcile = "reconcile", "reconcile the board";
    Import = "import", "import a board";
    Prune = "prune", "take old events out";
}

/// Why the body of a write ended it.
#[derive(Debug)]
pub(super) enum Stop {
    /// The board's own rules forbid the write.
    Rule(StoreError),
    /// SQLite failed.
    Sqlite(rusqlite::Error),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Rule(error)
    }
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// A write that has begun: the write lock is held.
#[derive(Debug)]
pub(super) struct Writing<'a> {
    /// The board.
    pub(super) tx: Tx<'a>,
    /// The number that the write's commit will have.
    pub(super) seq: CommitSeq,
    /// The clocks, read after the lock was got.
    pub(super) now: Now,
    /// Names this start of the machine.
    pub(super) boot_id: &'a str,
    kind: Kind,
    key: OpKey,
    about: (TaskId, Option<FencingToken>),
    appended: i64,
    entry: Entry<'a>,
}

impl<'a> Writing<'a> {
    /// Begins the write that `key` names, unless it is there already.
    pub(super) fn begin(
        open: &Transaction<'a>,
        clock: &'a Clock,
        kind: Kind,
        key: OpKey,
    ) -> Result<Self, Stop> {
        let tx = Tx::new(open.connection());
        if let Some(seq) = tx.commit_of(key)? {
            return Err(StoreError::AlreadyWritten { key, seq }.into());
        }
        let entry = open.entry()?;
        let seq = CommitSeq::new(entry.seq());
        Ok(Self {
            tx,
            seq,
            now: clock.now(),
            boot_id: clock.boot_id(),
            kind,
            key,
            about: (TaskId::new(0), None),
            appended: 0,
            entry,
        })
    }

    /// Says what the write is about, for its row in `commits`. Task 0: about none.
    pub(super) fn about(&mut self, task: TaskId, token: Option<FencingToken>) {
        self.about = (task, token);
    }

    /// Appends an event.
    pub(super) fn event(
        &mut self,
        task: TaskId,
        token: Option<FencingToken>,
        kind: &str,
        payload: &str,
    ) -> Result<(), Stop> {
        self.events(task, token, &[NewEvent { kind, payload }])
    }

    /// Appends events.
    pub(super) fn events(
        &mut self,
        task: TaskId,
        token: Option<FencingToken>,
        events: &[NewEvent<'_>],
    ) -> Result<(), Stop> {
        self.tx.insert_events((task, token), events, &mut self.entry)?;
        self.appended += i64::try_from(events.len()).unwrap_or(i64::MAX);
        Ok(())
    }

    /// The standing of a task that must be there.
    pub(super) fn standing(&self, task: TaskId) -> Result<Standing, Stop> {
        self.tx.standing(task)?.ok_or(Stop::Rule(StoreError::NoSuchTask { task }))
    }

    /// Goes on only if the token is that of the task's live claim.
    pub(super) fn require_live(&self, task: TaskId, token: FencingToken) -> Result<(), Stop> {
        if self.tx.is_live(task, token)? { Ok(()) } else { Err(self.stale(task, token)) }
    }

    /// Goes on only if the task is there and, where a token is given, that is the live claim's.
    pub(super) fn may_write(&self, task: TaskId, token: Option<FencingToken>) -> Result<(), Stop> {
        match token {
            Some(token) => self.require_live(task, token),
            None => self.standing(task).map(|_| ()),
        }
    }

    /// Why no live claim has that token.
    pub(super) fn stale(&self, task: TaskId, token: FencingToken) -> Stop {
        match self.standing(task) {
            Ok(Standing { fence, .. }) => {
                StoreError::StaleClaim { task, token, newest: fence }.into()
            }
            Err(stop) => stop,
        }
    }

    /// Writes the row in `commits`, and gives its number.
    pub(super) fn end(self) -> Result<CommitSeq, Stop> {
        let (task, token) = self.about;
        let row = CommitRow {
            key: self.key,
            kind: self.kind.as_str(),
            task,
            token,
            rows: self.appended,
            at_ms: self.now.wall_ms,
        };
        self.tx.insert_commit(self.entry, row)?;
        Ok(self.seq)
    }
}
