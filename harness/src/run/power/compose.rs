//! From a choice to an image: puts together what a power cut leaves.
//!
//! In: the [`Model`] at one moment, and a [`Choice`]. Out: the thread's [`Disk`], ready to be
//! recovered. It costs what the choice's exceptions change, not what the file holds.

use super::image::{BLOCK, BLOCK_BYTES, Layer, to_usize};
use super::model::{Change, Inode, Model, Names};
use super::vfs::{Disk, Part};
use std::collections::BTreeSet;

/// Where a whole file starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Most {
    /// Everything that is pending has reached the disk, but for the exceptions.
    Kept,
    /// Nothing has.
    Lost,
}

/// Which units of a write have reached the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Units {
    None,
    All,
    /// The first so many.
    First(u32),
    /// All but the first so many.
    Last(u32),
    /// All but this one.
    AllBut(u32),
    /// Each by a bit of its own of a number, which is used again after 64.
    Each(u64),
}

impl Units {
    fn keeps(self, unit: u64) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::First(many) => unit < u64::from(many),
            Self::Last(first) => unit >= u64::from(first),
            Self::AllBut(one) => unit != u64::from(one),
            Self::Each(bits) => bits >> (unit % 64) & 1 == 1,
        }
    }
}

/// What has become of one block of the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Versions {
    /// So many of the pending changes of the block were in it when it was last written whole.
    pub(super) older: usize,
    /// The same of the write that the cut fell into.
    pub(super) newer: usize,
    /// Which sectors are of the newer.
    pub(super) sectors: Units,
}

/// What a power cut leaves of one file.
#[derive(Clone, Debug)]
pub(super) enum FileChoice {
    /// All or nothing.
    Whole(Most),
    /// By writes: each exception is a pending change and the units of it that are kept.
    Writes {
        most: Most,
        exceptions: Vec<(usize, Units)>,
        unit_bytes: u64,
        /// The size has grown though the bytes are lost: what they are then.
        lost_beyond_end: Option<Filler>,
        /// Sectors of 4 KiB of these changes are garbage, whole.
        damaged: Vec<(usize, u64)>,
    },
    /// By blocks of the page cache.
    Blocks { most: Most, exceptions: Vec<(usize, Versions)> },
}

/// Bytes that nobody wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filler {
    Zeros,
    /// Old content of the disk, by a seed.
    Garbage(u64),
}

/// What a power cut leaves.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    /// Which of the pending changes of names are kept.
    pub(super) names: Vec<bool>,
    /// By inode; one that is not named is as `others`.
    pub(super) files: Vec<(usize, FileChoice)>,
    pub(super) others: Most,
}

impl Choice {
    /// Everything has reached the disk: what a kill leaves; or nothing that was not synced.
    pub(super) fn whole(most: Most, model: &Model<'_>) -> Self {
        let names = vec![most == Most::Kept; model.naming.len()];
        Self { names, files: Vec::new(), others: most }
    }
}

/// Puts the image on the disk.
pub(super) fn compose(model: &Model<'_>, choice: &Choice, disk: &mut Disk) {
    let mut names: Names = model.durable_names.clone();
    for (naming, kept) in model.naming.iter().zip(&choice.names) {
        if *kept {
            naming.apply(&mut names);
        }
    }
    for part in Part::ALL {
        let name = format!("{}{}", model.recording.header.database, part.suffix());
        let file = names.get(&name).and_then(|file| usize::try_from(file.0).ok());
        let inode = file.and_then(|file| Some((file, model.inodes.get(file)?)));
        let Some((file, inode)) = inode else {
            disk.begin(part, None, false);
            continue;
        };
        let whole = FileChoice::Whole(choice.others);
        let of_file = choice.files.iter().find(|(of, _)| *of == file).map(|(_, choice)| choice);
        compose_file(inode, of_file.unwrap_or(&whole), part, disk);
    }
}

fn compose_file(inode: &Inode, choice: &FileChoice, part: Part, disk: &mut Disk) {
    let most = match choice {
        FileChoice::Whole(most)
        | FileChoice::Writes { most, .. }
        | FileChoice::Blocks { most, .. } => *most,
    };
    // Shortenings that may or may not have happened are gone through one by one.
    let one_by_one = inode.shrinks && !matches!(choice, FileChoice::Whole(_));
    let base = if most == Most::Kept && !one_by_one { &inode.now } else { &inode.durable };
    disk.begin(part, Some(base.clone()), true);
    let Some(layer) = disk.file(part) else { return };
    match choice {
        FileChoice::Whole(_) => {}
        FileChoice::Writes { exceptions, unit_bytes, lost_beyond_end, damaged, .. } => {
            let kept = Kept { most, exceptions, unit_bytes: *unit_bytes, filler: *lost_beyond_end };
            if one_by_one {
                kept.all_in_order(inode, layer);
            } else {
                kept.exceptions_alone(inode, layer);
            }
            for (change, seed) in damaged {
                if let Some(change) = inode.pending.get(*change) {
                    damage(change, *seed, layer);
                }
            }
        }
        FileChoice::Blocks { exceptions, .. } => blocks(inode, most, exceptions, layer, one_by_one),
    }
}

/// A choice by writes.
struct Kept<'a> {
    most: Most,
    exceptions: &'a [(usize, Units)],
    unit_bytes: u64,
    filler: Option<Filler>,
}

impl Kept<'_> {
    fn units(&self, change: usize) -> Units {
        let found = self.exceptions.iter().find(|(index, _)| *index == change);
        match (found, self.most) {
            (Some((_, units)), _) => *units,
            (None, Most::Kept) => Units::All,
            (None, Most::Lost) => Units::None,
        }
    }

    /// Every pending change in its order, onto the durable content.
    fn all_in_order(&self, inode: &Inode, layer: &mut Layer) {
        for (index, change) in inode.pending.iter().enumerate() {
            let units = self.units(index);
            match change {
                Change::Write(offset, bytes) => {
                    self.write(*offset, bytes, units, inode.durable.len(), layer);
                }
                Change::Truncate(bytes) if units != Units::None => layer.truncate(*bytes),
                Change::Grow(bytes) if units != Units::None && *bytes > layer.len() => {
                    layer.truncate(*bytes);
                }
                Change::Truncate(_) | Change::Grow(_) => {}
            }
        }
    }

    /// Only what the exceptions touch: the rest is as most of the file.
    fn exceptions_alone(&self, inode: &Inode, layer: &mut Layer) {
        if self.most == Most::Lost {
            for (index, units) in self.exceptions {
                match inode.pending.get(*index) {
                    Some(Change::Write(offset, bytes)) => {
                        self.write(*offset, bytes, *units, inode.durable.len(), layer);
                    }
                    Some(Change::Grow(bytes) | Change::Truncate(bytes))
                        if *units != Units::None && *bytes > layer.len() =>
                    {
                        layer.truncate(*bytes);
                    }
                    Some(Change::Grow(_) | Change::Truncate(_)) | None => {}
                }
            }
            return;
        }
        let affected: BTreeSet<usize> = self
            .exceptions
            .iter()
            .filter_map(|(index, _)| inode.pending.get(*index))
            .flat_map(Change::blocks)
            .collect();
        for block in &affected {
            let durable = inode.durable.block(*block).copied().unwrap_or([0; BLOCK_BYTES]);
            *layer.block_mut(*block) = durable;
        }
        let (mut end, mut sizes) = (inode.durable.len(), Vec::new());
        for (index, change) in inode.pending.iter().enumerate() {
            let units = self.units(index);
            end = end.max(self.end_of(change, units));
            if let Change::Write(offset, bytes) = change
                && change.blocks().any(|block| affected.contains(&block))
            {
                self.write_within(*offset, bytes, units, &affected, inode.durable.len(), layer);
            }
            sizes.push(end);
        }
        layer.truncate(end);
    }

    /// The size that a change leads to, if what is kept of it does.
    fn end_of(&self, change: &Change, units: Units) -> u64 {
        match change {
            Change::Write(offset, bytes) => {
                let end = offset + bytes.len() as u64;
                if self.filler.is_some() || units == Units::All {
                    return end;
                }
                last_kept(*offset, bytes.len(), units, self.unit_bytes)
            }
            Change::Grow(bytes) | Change::Truncate(bytes) if units != Units::None => *bytes,
            Change::Grow(_) | Change::Truncate(_) => 0,
        }
    }

    fn write(&self, offset: u64, bytes: &[u8], units: Units, durable: u64, layer: &mut Layer) {
        each_unit(offset, bytes.len(), self.unit_bytes, |unit, range| {
            let at = offset + range.start as u64;
            if units.keeps(unit) {
                layer.write(at, &bytes[range]);
            } else if let Some(filler) = self.filler {
                // Within what was durable the old bytes stay.
                let from = at.max(durable.min(at + range.len() as u64));
                let length = to_usize(at + range.len() as u64 - from);
                if length > 0 && from >= layer.len() {
                    layer.write(from, &filler.bytes(from, length));
                }
            }
        });
    }

    fn write_within(
        &self,
        offset: u64,
        bytes: &[u8],
        units: Units,
        affected: &BTreeSet<usize>,
        durable: u64,
        layer: &mut Layer,
    ) {
        each_unit(offset, bytes.len(), self.unit_bytes, |unit, range| {
            let at = offset + range.start as u64;
            // A unit lies within one block.
            let block = to_usize(at / BLOCK);
            if !affected.contains(&block) {
                return;
            }
            let within = to_usize(at % BLOCK);
            let into = &mut layer.block_mut(block)[within..within + range.len()];
            if units.keeps(unit) {
                into.copy_from_slice(&bytes[range]);
            } else if let Some(Filler::Garbage(seed)) = self.filler
                && at >= durable
            {
                into.copy_from_slice(&Filler::Garbage(seed).bytes(at, range.len()));
            }
        });
    }
}

impl Filler {
    fn bytes(self, at: u64, length: usize) -> Vec<u8> {
        match self {
            Self::Zeros => vec![0; length],
            Self::Garbage(seed) => garbage(seed ^ at, length),
        }
    }
}

/// Bytes that mean nothing, the same for the same seed (splitmix64).
fn garbage(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.extend_from_slice(&(x ^ (x >> 31)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Every unit of a write: its number from the write's start, and its bytes of the write.
fn each_unit(
    offset: u64,
    length: usize,
    unit_bytes: u64,
    mut act: impl FnMut(u64, std::ops::Range<usize>),
) {
    let end = offset + length as u64;
    let first = offset / unit_bytes;
    for unit in first..end.div_ceil(unit_bytes) {
        let from = (unit * unit_bytes).max(offset) - offset;
        let to = ((unit + 1) * unit_bytes).min(end) - offset;
        act(unit - first, to_usize(from)..to_usize(to));
    }
}

/// Units of a write of so many bytes.
pub(super) fn units_of(offset: u64, length: usize, unit_bytes: u64) -> u32 {
    let units = (offset + length as u64).div_ceil(unit_bytes) - offset / unit_bytes;
    u32::try_from(units).unwrap_or(u32::MAX)
}

/// Where the last unit that is kept ends; 0 if none is.
fn last_kept(offset: u64, length: usize, units: Units, unit_bytes: u64) -> u64 {
    let mut last = 0;
    each_unit(offset, length, unit_bytes, |unit, range| {
        if units.keeps(unit) {
            last = offset + range.end as u64;
        }
    });
    last
}

/// The sectors of 4 KiB that a write touches are garbage, whole, as far as the file goes.
fn damage(change: &Change, seed: u64, layer: &mut Layer) {
    for block in change.blocks() {
        let start = block as u64 * BLOCK;
        let length = to_usize(layer.len().saturating_sub(start).min(BLOCK));
        if length > 0 {
            layer.write(start, &garbage(seed ^ start, length));
        }
    }
}

/// Blocks of the page cache, each in a version of its own; new blocks whole or not at all.
fn blocks(
    inode: &Inode,
    most: Most,
    exceptions: &[(usize, Versions)],
    layer: &mut Layer,
    one_by_one: bool,
) {
    let durable_blocks = inode.durable.len().div_ceil(BLOCK);
    if one_by_one && most == Most::Kept {
        for change in &inode.pending {
            match change {
                Change::Write(offset, bytes) => layer.write(*offset, bytes),
                Change::Truncate(bytes) => layer.truncate(*bytes),
                Change::Grow(bytes) if *bytes > layer.len() => layer.truncate(*bytes),
                Change::Grow(_) => {}
            }
        }
    }
    for (block, versions) in exceptions {
        let mut older = inode.durable.block(*block).copied().unwrap_or([0; BLOCK_BYTES]);
        let mut newer = older;
        let touching = inode.pending.iter().filter(|change| change.blocks().contains(block));
        for (number, change) in touching.enumerate() {
            if let Change::Write(offset, bytes) = change {
                for part in super::image::parts(*offset, bytes.len()) {
                    if part.block != *block {
                        continue;
                    }
                    if number < versions.older {
                        older[part.within.clone()].copy_from_slice(&bytes[part.of_whole.clone()]);
                    }
                    if number < versions.newer {
                        newer[part.within].copy_from_slice(&bytes[part.of_whole]);
                    }
                }
            }
        }
        if (*block as u64) < durable_blocks {
            for (sector, range) in (0_u64..).zip((0..BLOCK_BYTES).step_by(512)) {
                if versions.sectors.keeps(sector) {
                    older[range..range + 512].copy_from_slice(&newer[range..range + 512]);
                }
            }
        }
        *layer.block_mut(*block) = older;
    }
    // The size reaches as far as a block that is there; it is set once its bytes are.
    let there = |block: usize| {
        exceptions
            .iter()
            .find(|(of, _)| *of == block)
            .map_or(most == Most::Kept, |(_, versions)| versions.older > 0)
    };
    let last = inode
        .pending
        .iter()
        .flat_map(Change::blocks)
        .filter(|block| *block as u64 >= inode.durable.len() / BLOCK && there(*block))
        .max();
    let end = last.map_or(inode.durable.len(), |block| {
        inode.now.len().min((block as u64 + 1) * BLOCK).max(inode.durable.len())
    });
    if !one_by_one {
        layer.truncate(end);
    }
}

#[cfg(test)]
mod tests;
