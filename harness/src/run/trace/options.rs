//! What a run watches and how long it may take.

use std::time::Duration;

use super::calls::CallSet;
use super::files::Databases;
use super::world::World;

/// What becomes of processes that outlive the commands that were spawned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// The run goes on until they end, or until the deadline.
    WaitFor,
    /// They are killed.
    Kill,
}

/// The settings of a supervisor.
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
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
    /// Whether, for a victim of one thread, the kernel is asked for the outcome of a lock in place
    /// of that second stop.
    pub ask_for_locks: bool,
    /// Whether the stack is taken wherever a database file is opened.
    pub open_stacks: bool,
    /// Whether stops at files that belong to no database are told to the driver too.
    pub other_files: bool,
    /// Whether a thread stands still from its birth on until the driver lets it go, so that no two
    /// need ever run at once. See [`Driver::choose`](super::Driver::choose).
    pub one_at_a_time: bool,
    /// Whether the supervisor and a victim of one thread share a core, while there is no second
    /// thread.
    pub one_core: bool,
    /// Whether a stop is followed on the core that the supervisor is on: then it blocks for news at
    /// once, where it would look for some first.
    pub same_core: bool,
    /// What the victims are told of chance, time and themselves; none is the truth.
    pub world: Option<World>,
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
            ask_for_locks: false,
            open_stacks: false,
            other_files: false,
            one_at_a_time: false,
            one_core: false,
            same_core: false,
            world: None,
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

    /// Asks the kernel for the outcome of a lock where it can tell.
    #[must_use]
    pub fn ask_for_locks(mut self) -> Self {
        self.ask_for_locks = true;
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

    /// Has threads stand still from their birth on until the driver lets them go.
    #[must_use]
    pub fn one_at_a_time(mut self) -> Self {
        self.one_at_a_time = true;
        self
    }

    /// Has the supervisor and a victim of one thread share a core.
    #[must_use]
    pub fn one_core(mut self) -> Self {
        self.one_core = true;
        self
    }

    /// Says that the caller has put itself and its victims on one core.
    #[must_use]
    pub fn same_core(mut self) -> Self {
        self.same_core = true;
        self
    }

    /// Has the victims live in `world`.
    #[must_use]
    pub fn world(mut self, world: World) -> Self {
        self.world = Some(world);
        self
    }
}
