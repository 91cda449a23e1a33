//! The open descriptors of one process, as far as they matter.
//!
//! A table is filled as descriptors are met: one that has never been met is looked up when a call
//! uses it, and forgotten when it is closed. Processes that share one table (`CLONE_FILES`) share
//! one here.

use std::path::PathBuf;
use std::rc::Rc;

use super::super::ProcessId;
use super::super::stack::Stack;
use super::{FileId, FileRef};

/// Descriptors above this number are looked up each time.
const NUMBER_MAX: usize = 1 << 16;

/// A descriptor of a file that matters.
#[derive(Clone, Debug)]
pub struct Descriptor {
    /// The file.
    pub file: FileRef,
    /// The path that it was opened by.
    pub path: PathBuf,
    /// Whether a lock was ever asked for through it and got: whether SQLite uses it.
    pub locked: bool,
    /// Whether such a lock was one of the open file (`F_OFD_*`), which the lock model leaves out.
    pub locked_as_open_file: bool,
    /// From where it came, if by a fork.
    pub inherited: Option<Inherited>,
    /// Where in the program it was opened, if stacks were asked for.
    pub opened: Option<Rc<Stack>>,
}

/// How a descriptor came to a process by a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// The process that forked.
    pub from: ProcessId,
    /// Whether that process had locked through it before.
    pub locked: bool,
}

/// What is known of one number.
#[derive(Clone, Debug, Default)]
pub(in super::super) enum Slot {
    /// Never met, or closed since.
    #[default]
    Unknown,
    /// Open, and nothing to us.
    NotOurs,
    /// An empty file that may become a database, and where it was opened.
    Undecided(Option<Rc<Stack>>),
    /// A file that matters.
    Open(Descriptor),
}

/// The descriptors of one process.
#[derive(Clone, Debug, Default)]
pub struct FdTable {
    slots: Vec<Slot>,
}

impl FdTable {
    /// The descriptors that matter, by number.
    pub fn descriptors(&self) -> impl Iterator<Item = (i32, &Descriptor)> {
        self.slots.iter().zip(0_i32..).filter_map(|(slot, fd)| match slot {
            Slot::Open(descriptor) => Some((fd, descriptor)),
            Slot::Unknown | Slot::NotOurs | Slot::Undecided(_) => None,
        })
    }

    /// The descriptors of one file.
    pub fn of_file(&self, id: FileId) -> impl Iterator<Item = (i32, &Descriptor)> {
        self.descriptors().filter(move |(_, descriptor)| descriptor.file.id == id)
    }

    /// A descriptor that matters.
    #[must_use]
    pub fn get(&self, fd: i32) -> Option<&Descriptor> {
        match self.slot(fd) {
            Slot::Open(descriptor) => Some(descriptor),
            Slot::Unknown | Slot::NotOurs | Slot::Undecided(_) => None,
        }
    }

    pub(in super::super) fn get_mut(&mut self, fd: i32) -> Option<&mut Descriptor> {
        match usize::try_from(fd).ok().and_then(|index| self.slots.get_mut(index)) {
            Some(Slot::Open(descriptor)) => Some(descriptor),
            _ => None,
        }
    }

    pub(in super::super) fn slot(&self, fd: i32) -> &Slot {
        const UNKNOWN: Slot = Slot::Unknown;
        usize::try_from(fd).ok().and_then(|index| self.slots.get(index)).unwrap_or(&UNKNOWN)
    }

    pub(in super::super) fn set(&mut self, fd: i32, slot: Slot) {
        let Ok(index) = usize::try_from(fd) else { return };
        if index >= NUMBER_MAX {
            return;
        }
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, Slot::default);
        }
        self.slots[index] = slot;
    }

    /// Notes where a descriptor was opened.
    pub(in super::super) fn set_opened(&mut self, fd: i32, stack: Rc<Stack>) {
        match usize::try_from(fd).ok().and_then(|index| self.slots.get_mut(index)) {
            Some(Slot::Open(descriptor)) => descriptor.opened = Some(stack),
            Some(Slot::Undecided(opened)) => *opened = Some(stack),
            Some(Slot::Unknown | Slot::NotOurs) | None => {}
        }
    }

    pub(in super::super) fn forget(&mut self, fd: i32) {
        let index = usize::try_from(fd).ok();
        if let Some(slot) = index.and_then(|index| self.slots.get_mut(index)) {
            *slot = Slot::Unknown;
        }
    }

    /// Forgets a range, both ends included.
    pub(in super::super) fn forget_range(&mut self, first: u32, last: u32) {
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        let last = usize::try_from(last).unwrap_or(usize::MAX);
        for slot in self.slots.iter_mut().take(last.saturating_add(1)).skip(first) {
            *slot = Slot::Unknown;
        }
    }

    /// Another program was executed: what it was given is its own, and all else is looked up
    /// again when used.
    pub(in super::super) fn begin_anew(&mut self) {
        for slot in &mut self.slots {
            match slot {
                Slot::Open(descriptor) => descriptor.inherited = None,
                Slot::Unknown | Slot::NotOurs | Slot::Undecided(_) => *slot = Slot::Unknown,
            }
        }
    }

    /// The table that a child gets by `fork` from `parent`.
    pub(in super::super) fn inherited(&self, parent: ProcessId) -> Self {
        let mut table = self.clone();
        for slot in &mut table.slots {
            if let Slot::Open(descriptor) = slot {
                let locked = descriptor.locked;
                descriptor.inherited.get_or_insert(Inherited { from: parent, locked });
            }
        }
        table
    }
}
