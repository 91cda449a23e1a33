//! The machine up to one moment: what is durable, and what a power cut may still take back.
//!
//! Per inode a durable [`Content`], the one that processes see, and the changes between the two in
//! their order; per directory the names that are durable, those that are seen, and the changes
//! between. [`Model::advance`] makes the next entry of the recording happen. What a [`Choice`]
//! leaves of it is put together by `compose`; which choices a [`Profile`] allows is known to
//! `choose` and `admits`.

use super::image::{Content, parts};
use super::recording::{Bytes, FileIndex, Op, Recording};
use crate::scenario::power::Profile;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Changes that a lying disk holds in its cache.
const LYING_CACHE_MAX: usize = 256;

/// A change of a file that is not durable yet.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Bytes at an offset.
    Write(u64, Bytes),
    /// The length set.
    Truncate(u64),
    /// The length at least this.
    Grow(u64),
}

impl Change {
    /// The blocks that it may change.
    pub(super) fn blocks(&self) -> std::ops::Range<usize> {
        match self {
            Self::Write(offset, bytes) => {
                let mut blocks = parts(*offset, bytes.len()).map(|part| part.block);
                match (blocks.next(), blocks.last()) {
                    (Some(first), Some(last)) => first..last + 1,
                    (Some(only), None) => only..only + 1,
                    (None, _) => 0..0,
                }
            }
            Self::Truncate(_) | Self::Grow(_) => 0..0,
        }
    }

    pub(super) fn apply(&self, to: &mut Content) {
        match self {
            Self::Write(offset, bytes) => to.write(*offset, bytes),
            Self::Truncate(bytes) => to.truncate(*bytes),
            Self::Grow(bytes) => to.grow(*bytes),
        }
    }
}

/// One file by its inode.
#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    /// What is safe.
    pub(super) durable: Arc<Content>,
    /// What processes see.
    pub(super) now: Arc<Content>,
    /// What leads from the one to the other, in order.
    pub(super) pending: Vec<Change>,
    /// Whether a pending change makes the file shorter: then an image is put together from all of
    /// them in order.
    pub(super) shrinks: bool,
}

impl Inode {
    fn change(&mut self, change: Change) {
        match &change {
            // SQLite sets the size of a database that has it already.
            Change::Truncate(bytes) if *bytes == self.now.len() => return,
            Change::Grow(bytes) if *bytes <= self.now.len() => return,
            Change::Truncate(bytes) if *bytes < self.now.len() => self.shrinks = true,
            Change::Truncate(_) | Change::Grow(_) | Change::Write(..) => {}
        }
        change.apply(Arc::make_mut(&mut self.now));
        self.pending.push(change);
    }

    /// All that was changed is durable.
    fn sync(&mut self) {
        if self.shrinks {
            self.durable = Arc::clone(&self.now);
        } else {
            let durable = Arc::make_mut(&mut self.durable);
            for change in &self.pending {
                for block in change.blocks() {
                    durable.take_block(&self.now, block);
                }
            }
            durable.take_length(&self.now);
        }
        self.shrinks = false;
        self.pending.clear();
    }

    /// The oldest change has left the disk's cache.
    fn write_back_oldest(&mut self) {
        let oldest = self.pending.remove(0);
        oldest.apply(Arc::make_mut(&mut self.durable));
        self.shrinks = self.pending.iter().any(|change| matches!(change, Change::Truncate(_)));
    }
}

/// A change of a name that is not durable yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// The name means this file from now on.
    Set(String, FileIndex),
    /// The name means nothing.
    Clear(String),
    /// The second name means what the first did, and the first nothing.
    Move(String, String),
}

impl Naming {
    pub(super) fn apply(&self, names: &mut Names) {
        match self {
            Self::Set(name, file) => {
                names.insert(name.clone(), *file);
            }
            Self::Clear(name) => {
                names.remove(name);
            }
            Self::Move(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
        }
    }
}

/// Which file a name means.
pub(super) type Names = BTreeMap<String, FileIndex>;

/// The machine after the first so many entries of a recording.
#[derive(Clone, Debug)]
pub struct Model<'r> {
    pub(super) recording: &'r Recording,
    pub(super) profile: Profile,
    /// Entries that have happened.
    pub(super) at: usize,
    pub(super) inodes: Vec<Inode>,
    pub(super) durable_names: Names,
    pub(super) names: Names,
    pub(super) naming: Vec<Naming>,
}

impl<'r> Model<'r> {
    /// The machine before anything happened.
    #[must_use]
    pub fn new(recording: &'r Recording, profile: Profile) -> Self {
        let inodes = recording.start.iter().map(|file| {
            let durable = Arc::new(Content::new(&file.bytes));
            Inode { now: Arc::clone(&durable), durable, pending: Vec::new(), shrinks: false }
        });
        let names: Names =
            recording.start.iter().zip(0..).map(|(f, n)| (f.name.clone(), FileIndex(n))).collect();
        Self {
            recording,
            profile,
            at: 0,
            inodes: inodes.collect(),
            durable_names: names.clone(),
            names,
            naming: Vec::new(),
        }
    }

    /// How many entries have happened.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }

    /// Makes entries happen until `at` have.
    pub fn advance_to(&mut self, at: usize) {
        while self.at < at.min(self.recording.entries.len()) {
            self.advance();
        }
    }

    /// Makes the next entry happen, if there is one.
    pub fn advance(&mut self) {
        let recording = self.recording;
        let Some(entry) = recording.entries.get(self.at) else { return };
        self.at += 1;
        match &entry.op {
            Op::Write { file, offset, bytes } => {
                self.change(*file, Change::Write(*offset, Arc::clone(bytes)));
            }
            Op::Truncate { file, length } => self.change(*file, Change::Truncate(*length)),
            Op::Allocate { file, offset, length } => {
                self.change(*file, Change::Grow(offset.saturating_add(*length)));
            }
            Op::Sync { file } => self.sync(*file),
            Op::SyncDirectory => {
                if self.profile != Profile::LyingDisk {
                    self.sync_names();
                }
            }
            Op::Create { file, name } => {
                self.inode(*file);
                self.name(Naming::Set(name.clone(), *file));
            }
            Op::Unlink { name } => self.name(Naming::Clear(name.clone())),
            Op::Rename { from, to } => self.name(Naming::Move(from.clone(), to.clone())),
            Op::Ack(_) => {}
        }
    }

    fn inode(&mut self, file: FileIndex) -> &mut Inode {
        let index = usize::try_from(file.0).unwrap_or(0);
        if index >= self.inodes.len() {
            self.inodes.resize_with(index + 1, Inode::default);
        }
        &mut self.inodes[index]
    }

    fn change(&mut self, file: FileIndex, change: Change) {
        let lying = self.profile == Profile::LyingDisk;
        let inode = self.inode(file);
        inode.change(change);
        if lying && inode.pending.len() > LYING_CACHE_MAX {
            inode.write_back_oldest();
        }
    }

    fn sync(&mut self, file: FileIndex) {
        match self.profile {
            Profile::LyingDisk => {}
            Profile::Strict | Profile::TornPage | Profile::NoPsow => self.inode(file).sync(),
            Profile::Ordered => {
                self.inode(file).sync();
                // A sync of any file commits the journal, which holds all changes of names.
                self.sync_names();
            }
        }
    }

    fn sync_names(&mut self) {
        self.durable_names.clone_from(&self.names);
        self.naming.clear();
    }

    fn name(&mut self, naming: Naming) {
        naming.apply(&mut self.names);
        self.naming.push(naming);
    }

    /// Changes of files that are not durable, all together.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.inodes.iter().map(|inode| inode.pending.len()).sum::<usize>() + self.naming.len()
    }

    /// What processes see of a file, by its name.
    #[must_use]
    pub fn seen(&self, name: &str) -> Option<&Content> {
        let file = self.names.get(name)?;
        self.inodes.get(usize::try_from(file.0).ok()?).map(|inode| &*inode.now)
    }

    /// What is safe of a file, by the name that is.
    #[must_use]
    pub fn durable(&self, name: &str) -> Option<&Content> {
        let file = self.durable_names.get(name)?;
        self.inodes.get(usize::try_from(file.0).ok()?).map(|inode| &*inode.durable)
    }
}
