//! Whether a profile allows what was really found: the check of the profiles themselves.
//!
//! In: the [`Model`] at the moment of a cut, and the files that a real disk and file system have
//! after it. Out: nothing, or the first place that no choice of the profile could have left. A
//! state that was seen and is [`Impossible`] is a fault of the profile, not of the file system.

use super::image::{BLOCK, to_usize};
use super::model::{Change, Inode, Model, Names};
use crate::scenario::power::Profile;
use std::collections::BTreeMap;

/// Bytes that a disk writes whole.
const SECTOR: u64 = 512;
/// Changes of one sector, or of names, that are tried in every combination.
const EVERY_SUBSET_MAX: usize = 10;

/// Why a profile does not allow a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// A file is there that cannot be, or is not there and must be.
    #[error("{name}: no order of its names gives this: it is {}", if *there { "there" } else { "missing" })]
    Name {
        /// The file.
        name: String,
        /// Whether it was found.
        there: bool,
    },
    /// A file has a length that it could not have.
    #[error("{name}: {bytes} bytes long, and it could be {least} to {most}")]
    Length {
        /// The file.
        name: String,
        /// As it was found.
        bytes: u64,
        /// The least that it could be.
        least: u64,
        /// The most.
        most: u64,
    },
    /// Bytes are there that no choice of the unsynced writes leaves.
    #[error("{name}: the bytes at {offset} are those of no choice of the unsynced writes")]
    Bytes {
        /// The file.
        name: String,
        /// Where the sector or block begins.
        offset: u64,
    },
}

impl Model<'_> {
    /// Whether the profile allows that a power cut at this moment leaves `files`, by their names in
    /// the database's directory. Names that are not the database's are not looked at.
    ///
    /// # Errors
    ///
    /// The first place that is impossible under the names that come nearest.
    pub fn admits(&self, files: &BTreeMap<String, Vec<u8>>) -> Result<(), Impossible> {
        let mut nearest: Option<Impossible> = None;
        for names in self.possible_names() {
            match self.admits_under(&names, files) {
                Ok(()) => return Ok(()),
                Err(impossible) => {
                    let names_fit = !matches!(impossible, Impossible::Name { .. });
                    if names_fit || nearest.is_none() {
                        nearest = Some(impossible);
                    }
                }
            }
        }
        nearest.map_or(Ok(()), Err)
    }

    /// What names may mean after the cut.
    fn possible_names(&self) -> Vec<Names> {
        let count = self.naming.len();
        let under = |keeps: &dyn Fn(usize) -> bool| {
            let mut names = self.durable_names.clone();
            for (index, naming) in self.naming.iter().enumerate() {
                if keeps(index) {
                    naming.apply(&mut names);
                }
            }
            names
        };
        if self.profile == Profile::Ordered || count > EVERY_SUBSET_MAX {
            return (0..=count).map(|kept| under(&|index| index < kept)).collect();
        }
        (0..1_u32 << count).map(|mask| under(&|index| mask >> index & 1 == 1)).collect()
    }

    fn admits_under(
        &self,
        names: &Names,
        files: &BTreeMap<String, Vec<u8>>,
    ) -> Result<(), Impossible> {
        for suffix in ["", "-wal", "-journal"] {
            let name = format!("{}{suffix}", self.recording.header.database);
            let inode = names.get(&name).and_then(|file| self.inodes.get(file.0 as usize));
            match (inode, files.get(&name)) {
                (None, None) => {}
                (Some(inode), Some(bytes)) => self.admits_file(&name, inode, bytes)?,
                (_, found) => return Err(Impossible::Name { name, there: found.is_some() }),
            }
        }
        Ok(())
    }

    fn admits_file(&self, name: &str, inode: &Inode, found: &[u8]) -> Result<(), Impossible> {
        let bytes = found.len() as u64;
        let lengths = lengths(inode);
        let least = lengths.iter().copied().min().unwrap_or(0);
        let most = lengths.iter().copied().max().unwrap_or(0);
        let on_the_way = match self.profile {
            Profile::Ordered => lengths.contains(&bytes) || bytes.is_multiple_of(BLOCK),
            _ => true,
        };
        if !(least..=most).contains(&bytes) || !on_the_way {
            return Err(Impossible::Length { name: name.to_owned(), bytes, least, most });
        }
        let unit = match self.profile {
            Profile::TornPage => BLOCK,
            _ => SECTOR,
        };
        let mut offset = 0;
        while offset < bytes {
            // In `ordered` a new block of the page cache is whole.
            let new = offset >= inode.durable.len().next_multiple_of(BLOCK);
            let unit = if self.profile == Profile::Ordered && new { BLOCK } else { unit };
            let end = (offset + unit).min(bytes);
            if !self.admits_unit(inode, offset, &found[to_usize(offset)..to_usize(end)]) {
                return Err(Impossible::Bytes { name: name.to_owned(), offset });
            }
            offset = end;
        }
        Ok(())
    }

    fn admits_unit(&self, inode: &Inode, offset: u64, found: &[u8]) -> bool {
        let end = offset + found.len() as u64;
        let touching: Vec<&Change> =
            inode.pending.iter().filter(|change| touches(change, offset, end)).collect();
        let durable = unit_of(inode, offset, found.len());
        let block = offset / BLOCK * BLOCK;
        let written = |change: &&Change| matches!(change, Change::Write(..));
        if self.profile == Profile::NoPsow
            && inode.pending.iter().filter(written).any(|c| touches(c, block, block + BLOCK))
        {
            return true;
        }
        if touching.is_empty() {
            // A file that grew without being written there reads as zeros.
            return found == durable;
        }
        if self.profile != Profile::Ordered && offset >= inode.durable.len() {
            return true;
        }
        let under = |keeps: &dyn Fn(usize) -> bool| {
            let mut unit = durable.clone();
            for (index, change) in touching.iter().enumerate() {
                if keeps(index) {
                    apply(change, offset, &mut unit);
                }
            }
            unit == found
        };
        let count = touching.len();
        if self.profile == Profile::Ordered || count > EVERY_SUBSET_MAX {
            return (0..=count).any(|kept| under(&|index| index < kept));
        }
        (0..1_u32 << count).any(|mask| under(&|index| mask >> index & 1 == 1))
    }
}

/// The lengths that the file had on its way.
fn lengths(inode: &Inode) -> Vec<u64> {
    let mut bytes = inode.durable.len();
    let mut lengths = vec![bytes];
    for change in &inode.pending {
        bytes = match change {
            Change::Write(offset, written) => bytes.max(offset + written.len() as u64),
            Change::Truncate(to) => *to,
            Change::Grow(to) => bytes.max(*to),
        };
        lengths.push(bytes);
    }
    lengths
}

fn touches(change: &Change, from: u64, to: u64) -> bool {
    match change {
        Change::Write(offset, bytes) => *offset < to && offset + bytes.len() as u64 > from,
        Change::Truncate(bytes) => *bytes < to,
        Change::Grow(_) => false,
    }
}

fn unit_of(inode: &Inode, offset: u64, length: usize) -> Vec<u8> {
    let within = to_usize(offset % BLOCK);
    let block = inode.durable.block(to_usize(offset / BLOCK));
    block.map_or_else(|| vec![0; length], |block| block[within..within + length].to_vec())
}

/// What a change makes of the bytes at `offset`.
fn apply(change: &Change, offset: u64, unit: &mut [u8]) {
    let end = offset + unit.len() as u64;
    match change {
        Change::Write(at, bytes) => {
            let from = offset.max(*at);
            let to = end.min(at + bytes.len() as u64);
            if from < to {
                unit[to_usize(from - offset)..to_usize(to - offset)]
                    .copy_from_slice(&bytes[to_usize(from - at)..to_usize(to - at)]);
            }
        }
        Change::Truncate(bytes) => {
            let from = (*bytes).clamp(offset, end);
            unit[to_usize(from - offset)..].fill(0);
        }
        Change::Grow(_) => {}
    }
}
