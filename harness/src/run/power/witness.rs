//! Whether a crash model allows what was seen: looks for a choice of the model that gives it.
//!
//! What is found is a witness, not an opinion: the choice is put together by `compose`, which makes
//! the images of the enumeration, and the result is compared with what was seen, to the byte.
//!
//! In: the [`Model`] at one moment, and the files that a power cut left. Out: a choice, or none.

use super::compose::{Choice, FileChoice, Filler, Most, Units, Versions, compose};
use super::image::{BLOCK_BYTES, to_usize};
use super::model::{Change, Inode, Model, Names};
use super::vfs::{self, Part};
use crate::scenario::power::Profile;
use std::collections::HashMap;

/// Where writes may be torn.
const SECTOR: usize = 512;
/// Changes of names beyond these are not tried in every combination.
const NAMES_MAX: usize = 10;
/// Contents of one sector beyond these are not followed.
const CONTENTS_MAX: usize = 4_096;
/// Shortenings beyond these are not tried in every combination.
const SHORTENINGS_MAX: usize = 6;

/// The files that a power cut left, by the parts of a database.
pub(super) type Left = [Option<Vec<u8>>; 3];

/// Whether some choice of the model's profile gives these files.
pub(super) fn admits(model: &Model<'_>, left: &Left) -> bool {
    let mut known: HashMap<(usize, usize), Option<FileChoice>> = HashMap::new();
    kept_names(model).into_iter().any(|names| {
        let Some(choice) = choice(model, names, left, &mut known) else { return false };
        gives(model, &choice, left)
    })
}

/// Which changes of names may be kept together.
fn kept_names(model: &Model<'_>) -> Vec<Vec<bool>> {
    let many = model.naming.len();
    if model.profile == Profile::Ordered || many > NAMES_MAX {
        return (0..=many).map(|kept| (0..many).map(|index| index < kept).collect()).collect();
    }
    let masks = 0..1_usize << many;
    masks.map(|mask| (0..many).map(|index| mask >> index & 1 == 1).collect()).collect()
}

fn choice(
    model: &Model<'_>,
    kept: Vec<bool>,
    left: &Left,
    known: &mut HashMap<(usize, usize), Option<FileChoice>>,
) -> Option<Choice> {
    let mut names: Names = model.durable_names.clone();
    for (naming, kept) in model.naming.iter().zip(&kept) {
        if *kept {
            naming.apply(&mut names);
        }
    }
    let mut files = Vec::new();
    for (place, part) in Part::ALL.into_iter().enumerate() {
        let name = format!("{}{}", model.recording.header.database, part.suffix());
        let file = names.get(&name).map(|file| to_usize(file.0.into()));
        let (file, bytes) = match (file, &left[place]) {
            (None, None) => continue,
            (Some(file), Some(bytes)) => (file, bytes),
            _ => return None,
        };
        let inode = model.inodes.get(file)?;
        let found = known
            .entry((file, place))
            .or_insert_with(|| file_choice(inode, bytes, model.profile))
            .clone()?;
        files.push((file, found));
    }
    Some(Choice { names: kept, files, others: Most::Lost })
}

/// Whether the choice gives these files.
fn gives(model: &Model<'_>, choice: &Choice, left: &Left) -> bool {
    vfs::with_disk(|disk| {
        compose(model, choice, disk);
        let same = Part::ALL
            .into_iter()
            .zip(left)
            .all(|(part, left)| disk.file(part).map(|layer| layer.to_vec()) == *left);
        disk.release();
        same
    })
}

fn file_choice(inode: &Inode, left: &[u8], profile: Profile) -> Option<FileChoice> {
    if left == inode.now.to_vec() {
        return Some(FileChoice::Whole(Most::Kept));
    }
    let durable = inode.durable.to_vec();
    if left == durable {
        return Some(FileChoice::Whole(Most::Lost));
    }
    match profile {
        Profile::Ordered => by_blocks(inode, &durable, left),
        _ => by_writes(inode, &durable, left),
    }
}

/// A choice of writes, sector by sector.
fn by_writes(inode: &Inode, durable: &[u8], left: &[u8]) -> Option<FileChoice> {
    let shortenings: Vec<usize> = inode
        .pending
        .iter()
        .enumerate()
        .filter(|(_, change)| matches!(change, Change::Truncate(_)))
        .map(|(index, _)| index)
        .take(SHORTENINGS_MAX)
        .collect();
    (0..1_usize << shortenings.len()).find_map(|mask| {
        let kept = |index: usize| {
            shortenings.iter().position(|of| *of == index).is_some_and(|at| mask >> at & 1 == 1)
        };
        writes_with(inode, durable, left, &kept)
    })
}

/// The same when it is known which changes of the length are kept.
fn writes_with(
    inode: &Inode,
    durable: &[u8],
    left: &[u8],
    kept: &dyn Fn(usize) -> bool,
) -> Option<FileChoice> {
    let mut masks: Vec<u64> = vec![0; inode.pending.len()];
    for sector in 0..left.len().div_ceil(SECTOR) {
        for index in sector_choice(inode, durable, left, sector, kept)? {
            let Change::Write(offset, _) = &inode.pending[index] else { continue };
            let unit = sector - to_usize(*offset) / SECTOR;
            masks[index] |= 1 << (unit % 64);
        }
    }
    let mut exceptions: Vec<(usize, Units)> = Vec::new();
    let mut end = durable.len();
    for (index, change) in inode.pending.iter().enumerate() {
        match change {
            Change::Write(offset, bytes) if masks[index] != 0 => {
                end = end.max(kept_end(to_usize(*offset), bytes.len(), masks[index]));
                exceptions.push((index, Units::Each(masks[index])));
            }
            Change::Truncate(length) if kept(index) => {
                end = to_usize(*length);
                exceptions.push((index, Units::All));
            }
            Change::Write(..) | Change::Truncate(_) | Change::Grow(_) => {}
        }
    }
    let mut lost_beyond_end = None;
    if end < left.len() {
        // The size has grown, and the bytes that made it grow are lost.
        let grew = |change: &Change| match change {
            Change::Write(offset, bytes) => to_usize(*offset) + bytes.len() == left.len(),
            Change::Grow(length) => to_usize(*length) == left.len(),
            Change::Truncate(_) => false,
        };
        let index = inode.pending.iter().rposition(grew)?;
        match &inode.pending[index] {
            Change::Write(..) => lost_beyond_end = Some(Filler::Zeros),
            Change::Grow(_) | Change::Truncate(_) => {}
        }
        let units = match &inode.pending[index] {
            Change::Grow(_) => Units::All,
            Change::Write(..) | Change::Truncate(_) => Units::Each(masks[index]),
        };
        exceptions.retain(|(of, _)| *of != index);
        exceptions.push((index, units));
        exceptions.sort_by_key(|(of, _)| *of);
    }
    Some(FileChoice::Writes {
        most: Most::Lost,
        exceptions,
        unit_bytes: SECTOR as u64,
        lost_beyond_end,
        damaged: Vec::new(),
    })
}

/// Where the last kept sector of a write ends.
fn kept_end(offset: usize, length: usize, mask: u64) -> usize {
    let units = (offset + length).div_ceil(SECTOR) - offset / SECTOR;
    let last = (0..units).rev().find(|unit| mask >> (unit % 64) & 1 == 1);
    last.map_or(0, |unit| ((offset / SECTOR + unit + 1) * SECTOR).min(offset + length))
}

/// Which writes are kept in one sector, so that it is what was seen.
fn sector_choice(
    inode: &Inode,
    durable: &[u8],
    left: &[u8],
    sector: usize,
    kept: &dyn Fn(usize) -> bool,
) -> Option<Vec<usize>> {
    let start = sector * SECTOR;
    let seen = padded(left, start);
    let mut contents: HashMap<[u8; SECTOR], Vec<usize>> = HashMap::new();
    contents.insert(padded(durable, start), Vec::new());
    for (index, change) in inode.pending.iter().enumerate() {
        match change {
            Change::Write(offset, bytes) => {
                let (from, to) = (to_usize(*offset), to_usize(*offset) + bytes.len());
                let (first, last) = (from.max(start), to.min(start + SECTOR));
                if first >= last {
                    continue;
                }
                let written: Vec<_> = contents
                    .iter()
                    .map(|(content, kept)| {
                        let mut content = *content;
                        content[first - start..last - start]
                            .copy_from_slice(&bytes[first - from..last - from]);
                        (content, [kept.as_slice(), &[index]].concat())
                    })
                    .collect();
                for (content, kept) in written {
                    contents.entry(content).or_insert(kept);
                }
            }
            Change::Truncate(length) if kept(index) => {
                let end = to_usize(*length).clamp(start, start + SECTOR) - start;
                contents = contents
                    .into_iter()
                    .map(|(mut content, kept)| {
                        content[end..].fill(0);
                        (content, kept)
                    })
                    .collect();
            }
            Change::Truncate(_) | Change::Grow(_) => {}
        }
        if contents.len() > CONTENTS_MAX {
            return None;
        }
    }
    contents.remove(&seen)
}

/// One sector of a file, zeros beyond its end.
fn padded(bytes: &[u8], start: usize) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    let there = bytes.get(start..bytes.len().min(start + SECTOR)).unwrap_or(&[]);
    sector[..there.len()].copy_from_slice(there);
    sector
}

/// A choice of versions, block by block.
fn by_blocks(inode: &Inode, durable: &[u8], left: &[u8]) -> Option<FileChoice> {
    let blocks = inode.pending.iter().flat_map(Change::blocks);
    let mut touched: Vec<usize> = blocks.collect();
    touched.sort_unstable();
    touched.dedup();
    let mut exceptions = Vec::new();
    for block in 0..left.len().max(durable.len()).div_ceil(BLOCK_BYTES) {
        let seen = block_of(left, block);
        if touched.binary_search(&block).is_err() {
            if seen != block_of(durable, block) {
                return None;
            }
            continue;
        }
        let new = block >= durable.len().div_ceil(BLOCK_BYTES);
        exceptions.push((block, versions(inode, durable, block, &seen, new)?));
    }
    Some(FileChoice::Blocks { most: Most::Lost, exceptions })
}

fn block_of(bytes: &[u8], block: usize) -> [u8; BLOCK_BYTES] {
    let mut content = [0; BLOCK_BYTES];
    let start = block * BLOCK_BYTES;
    let there = bytes.get(start..bytes.len().min(start + BLOCK_BYTES)).unwrap_or(&[]);
    content[..there.len()].copy_from_slice(there);
    content
}

/// Two versions of a block of which each sector is one; of a new block one version.
fn versions(
    inode: &Inode,
    durable: &[u8],
    block: usize,
    seen: &[u8; BLOCK_BYTES],
    new: bool,
) -> Option<Versions> {
    let mut all = vec![block_of(durable, block)];
    for change in &inode.pending {
        let Change::Write(offset, bytes) = change else { continue };
        if !change.blocks().contains(&block) {
            continue;
        }
        let mut next = all.last().copied().unwrap_or([0; BLOCK_BYTES]);
        for part in super::image::parts(*offset, bytes.len()) {
            if part.block == block {
                next[part.within].copy_from_slice(&bytes[part.of_whole]);
            }
        }
        all.push(next);
    }
    let whole = all.iter().position(|version| version == seen);
    if let Some(version) = whole {
        return Some(Versions { older: version, newer: version, sectors: Units::None });
    }
    if new {
        return None;
    }
    let pairs = (0..all.len()).flat_map(|older| (0..all.len()).map(move |newer| (older, newer)));
    pairs.into_iter().find_map(|(older, newer)| {
        let mut mask = 0_u64;
        for (sector, range) in (0..BLOCK_BYTES).step_by(SECTOR).enumerate() {
            let range = range..range + SECTOR;
            if seen[range.clone()] == all[older][range.clone()] {
                continue;
            }
            if seen[range.clone()] != all[newer][range] {
                return None;
            }
            mask |= 1 << sector;
        }
        Some(Versions { older, newer, sectors: Units::Each(mask) })
    })
}

#[cfg(test)]
mod tests {
    use super::super::recording::{Entry, FileIndex, Header, Op, Recording, StartFile};
    use super::super::{choose, vfs::Disk};
    use super::*;
    use crate::plan::Stream;
    use crate::run::trace::Phase;
    use hardboard::Durability;
    use proptest::prelude::*;

    fn recording(start: Vec<u8>, ops: Vec<Op>) -> Recording {
        let entry = |op| Entry { at_us: 0, process: 0, phase: Phase::Other, op };
        Recording {
            header: Header {
                subject: String::new(),
                database: "a.db".to_owned(),
                board: None,
                check_sql: None,
                promise: Durability::Process,
                unseen: Vec::new(),
                elapsed_us: 0,
            },
            start: vec![StartFile { name: "a.db".to_owned(), bytes: start }],
            entries: ops.into_iter().map(entry).collect(),
        }
    }

    fn op() -> impl Strategy<Value = Op> {
        let file = FileIndex(0);
        let write =
            (0..20_000_u64, 1..5_000_usize, any::<u8>()).prop_map(move |(offset, n, seed)| {
                let bytes: Vec<u8> =
                    (0..251_u8).cycle().take(n).map(|i| (i ^ seed) & 0x7f).collect();
                Op::Write { file, offset, bytes: bytes.into() }
            });
        prop_oneof![8 => write, 1 => Just(Op::Sync { file })]
    }

    fn left_by(model: &Model<'_>, choice: &Choice) -> Left {
        vfs::with_disk(|disk| {
            compose(model, choice, disk);
            let left = Part::ALL.map(|part| disk.file(part).map(|layer| layer.to_vec()));
            disk.release();
            left
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 40,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn what_a_profile_makes_it_admits_and_one_changed_byte_it_does_not(
            start in prop::collection::vec(1..127_u8, 1..9_000),
            ops in prop::collection::vec(op(), 1..8),
            seed: u64,
        ) {
            let recording = recording(start, ops);
            for profile in [Profile::Strict, Profile::Ordered] {
                let mut model = Model::new(&recording, profile);
                model.advance_to(recording.entries.len());
                let mut chance = Stream::new(seed, "test");
                let mut choice = choose::random(&model, &mut chance);
                if let Some((_, FileChoice::Writes { lost_beyond_end, .. })) =
                    choice.files.first_mut()
                {
                    *lost_beyond_end = None;
                }
                let mut left = left_by(&model, &choice);
                prop_assert!(admits(&model, &left), "{profile} {choice:?}");
                if let Some(bytes) = &mut left[0]
                    && let Some(byte) = bytes.get_mut(to_usize(seed) % 512)
                {
                    // No write has this byte.
                    *byte = 0xff;
                    prop_assert!(!admits(&model, &left));
                }
            }
            vfs::with_disk(Disk::release);
        }
    }

    #[test]
    fn what_was_synced_cannot_be_missing() {
        let file = FileIndex(0);
        let write = |byte: u8| Op::Write { file, offset: 0, bytes: vec![byte; 512].into() };
        let recording = recording(vec![1; 512], vec![write(2), Op::Sync { file }, write(3)]);
        for profile in [Profile::Strict, Profile::Ordered] {
            let mut model = Model::new(&recording, profile);
            let mut admitted = |at: usize, byte: u8| {
                model.advance_to(at);
                admits(&model, &[Some(vec![byte; 512]), None, None])
            };
            assert!(admitted(1, 1) && admitted(1, 2), "{profile}");
            assert!(!admitted(2, 1) && admitted(2, 2), "{profile}");
            assert!(!admitted(3, 1) && admitted(3, 2) && admitted(3, 3), "{profile}");
            assert!(!admits(&model, &[None, None, None]), "{profile}: the file is gone");
        }
    }
}
