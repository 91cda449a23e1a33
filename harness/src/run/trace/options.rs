//! What a run watches and how long it may take.

use std::time::Duration;

use super::calls::CallSet;
use super::files::Databases;

/// What becomes of processes that outlive the commands that were spawned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// The run goes on until they end, or until the deadline.
    WaitFor,
    /// They are killed.
    Kill,
}

/// The settings of a supervisor.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which calls stop.
    pub calls: CallSet,
    /// Which files are databases.
    pub databases: Databases,
    /// The longest that a run may take; everything is killed then.
    pub deadline: Duration,
    /// What becomes of processes that outlive the spawned commands.
    pub leftovers: Leftovers,
    /// Whether the lock model is kept. Costs a second stop for every lock that is asked for.
    pub track_locks: bool,
    /// Whether the stack is taken wherever a database file is opened.
    pub open_stacks: bool,
    /// Whether stops at files that belong to no database are told to the driver too.
    pub other_files: bool,
}

impl Options {
    /// Stops at `calls` on `databases`, for at most a minute.
    #[must_use]
    pub fn new(calls: CallSet, databases: Databases) -> Self {
        Self {
            calls,
            databases,
            deadline: Duration::from_mins(1),
            leftovers: Leftovers::WaitFor,
            track_locks: false,
            open_stacks: false,
            other_files: false,
        }
    }

    /// Sets the longest that a run may take.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets what becomes of processes that outlive the spawned commands.
    #[must_use]
    pub fn leftovers(mut self, leftovers: Leftovers) -> Self {
        self.leftovers = leftovers;
        self
    }

    /// Keeps the lock model.
    #[must_use]
    pub fn track_locks(mut self) -> Self {
        self.track_locks = true;
        self
    }

    /// Takes the stack wherever a database file is opened.
    #[must_use]
    pub fn open_stacks(mut self) -> Self {
        self.open_stacks = true;
        self
    }

    /// Tells the driver of stops at other files too.
    #[must_use]
    pub fn other_files(mut self) -> Self {
        self.other_files = true;
        self
    }
}
