//! Which images are put together: all that a barrier epoch allows where they are few, samples by
//! a seed where they are many.
//!
//! Pure: a function of the model at one moment, its profile, and a stream of random numbers. Every
//! choice made here is one that the profile allows.

use super::compose::{Choice, FileChoice, Filler, Most, Units, Versions, units_of};
use super::model::{Change, Inode, Model};
use crate::plan::Stream;
use crate::scenario::power::Profile;
use std::collections::BTreeMap;

/// So many pending changes are put together in every combination.
const EXHAUSTIVE_MAX: usize = 9;

/// Pending changes beyond these are not each left out, or kept alone, in turn.
const SINGLED_MAX: usize = 300;

/// Where writes may be torn.
fn unit_bytes(profile: Profile) -> u64 {
    match profile {
        Profile::TornPage => 4_096,
        Profile::Strict | Profile::Ordered | Profile::LyingDisk | Profile::NoPsow => 512,
    }
}

/// The pending changes of all files, in a row.
fn row(model: &Model<'_>) -> Vec<(usize, usize)> {
    let files = model.inodes.iter().enumerate();
    files.flat_map(|(file, inode)| (0..inode.pending.len()).map(move |at| (file, at))).collect()
}

/// Subsets of whole writes at the end of an epoch: every one if they are few; else each alone, all
/// but each, and every prefix.
pub(super) fn subsets(model: &Model<'_>) -> Vec<Choice> {
    let row = row(model);
    let names = model.naming.len();
    let all = row.len() + names;
    let mut choices = Vec::new();
    if all == 0 {
        return choices;
    }
    if all <= EXHAUSTIVE_MAX {
        for mask in 0..1_u32 << all {
            choices.push(subset(model, &row, |index| mask >> index & 1 == 1));
        }
        return choices;
    }
    let single = all.min(SINGLED_MAX);
    for one in all - single..all {
        choices.push(subset(model, &row, |index| index != one));
        choices.push(subset(model, &row, |index| index == one));
        choices.push(subset(model, &row, |index| index <= one));
    }
    // One file's changes and no other's, and the other way round.
    for file in 0..model.inodes.len() {
        let of_file = |index: usize| row.get(index).is_some_and(|(of, _)| *of == file);
        choices.push(subset(model, &row, of_file));
        choices.push(subset(model, &row, |index| !of_file(index)));
    }
    choices
}

/// The choice that keeps these of the changes in the row, and of the names behind it.
fn subset(model: &Model<'_>, row: &[(usize, usize)], keeps: impl Fn(usize) -> bool) -> Choice {
    let mut names: Vec<bool> =
        (0..model.naming.len()).map(|index| keeps(row.len() + index)).collect();
    if model.profile == Profile::Ordered {
        in_order(&mut names);
    }
    let mut kept: BTreeMap<usize, Vec<bool>> = BTreeMap::new();
    for (index, (file, _)) in row.iter().enumerate() {
        kept.entry(*file).or_default().push(keeps(index));
    }
    let files = kept.into_iter().map(|(file, kept)| {
        let many = kept.iter().filter(|kept| **kept).count();
        let most = if 2 * many > kept.len() { Most::Kept } else { Most::Lost };
        let other = |kept: bool| kept != (most == Most::Kept);
        let exceptions: Vec<(usize, Units)> = kept
            .iter()
            .enumerate()
            .filter(|(_, kept)| other(**kept))
            .map(|(index, kept)| (index, if *kept { Units::All } else { Units::None }))
            .collect();
        let inode = &model.inodes[file];
        let choice = match (model.profile, exceptions.is_empty()) {
            (_, true) => FileChoice::Whole(most),
            (Profile::Ordered, false) => {
                let blocks = blocks_of(inode, exceptions.iter().map(|(index, _)| *index));
                let version = |block: usize| {
                    let older = touching(inode, block)
                        .take_while(|index| kept.get(*index).copied().unwrap_or(false))
                        .count();
                    Versions { older, newer: older, sectors: Units::None }
                };
                let exceptions = blocks.into_iter().map(|block| (block, version(block))).collect();
                FileChoice::Blocks { most, exceptions }
            }
            (_, false) => FileChoice::Writes {
                most,
                exceptions,
                unit_bytes: unit_bytes(model.profile),
                lost_beyond_end: None,
                damaged: Vec::new(),
            },
        };
        (file, choice)
    });
    Choice { names, files: files.collect(), others: Most::Lost }
}

/// Pending changes that touch a block, by their place.
fn touching(inode: &Inode, block: usize) -> impl Iterator<Item = usize> {
    let changes = inode.pending.iter().enumerate();
    changes.filter(move |(_, change)| change.blocks().contains(&block)).map(|(index, _)| index)
}

fn blocks_of(inode: &Inode, changes: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut blocks: Vec<usize> =
        changes.filter_map(|index| inode.pending.get(index)).flat_map(Change::blocks).collect();
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}

/// Keeps nothing behind the first that is not kept.
fn in_order(kept: &mut [bool]) {
    let mut so_far = true;
    for kept in kept {
        so_far &= *kept;
        *kept = so_far;
    }
}

/// One image by chance.
pub(super) fn random(model: &Model<'_>, chance: &mut Stream) -> Choice {
    let mut names: Vec<bool> = model.naming.iter().map(|_| true).collect();
    match chance.within([0, 3]) {
        0 => names.fill(false),
        1 => names.iter_mut().for_each(|kept| *kept = chance.within([0, 1]) == 1),
        _ => {}
    }
    if model.profile == Profile::Ordered {
        in_order(&mut names);
    }
    let most = |chance: &mut Stream| match chance.within([0, 1]) {
        0 => Most::Kept,
        _ => Most::Lost,
    };
    let others = most(chance);
    let mut files = Vec::new();
    for (file, inode) in model.inodes.iter().enumerate() {
        if inode.pending.is_empty() {
            continue;
        }
        let most = if chance.within([0, 3]) == 0 { most(chance) } else { others };
        let picked = pick(inode.pending.len(), chance);
        let choice = if picked.is_empty() {
            FileChoice::Whole(most)
        } else if model.profile == Profile::Ordered {
            let blocks = blocks_of(inode, picked.into_iter());
            let version = |block: usize, chance: &mut Stream| {
                let many = u32::try_from(touching(inode, block).count()).unwrap_or(u32::MAX);
                let older = chance.within([0, many]);
                let newer =
                    if chance.within([0, 1]) == 0 { older } else { chance.within([0, many]) };
                let sectors = units(8, chance);
                Versions { older: older as usize, newer: newer as usize, sectors }
            };
            let exceptions =
                blocks.into_iter().map(|block| (block, version(block, chance))).collect();
            FileChoice::Blocks { most, exceptions }
        } else {
            writes(model.profile, inode, most, picked, chance)
        };
        files.push((file, choice));
    }
    Choice { names, files, others }
}

fn writes(
    profile: Profile,
    inode: &Inode,
    most: Most,
    picked: Vec<usize>,
    chance: &mut Stream,
) -> FileChoice {
    let unit_bytes = unit_bytes(profile);
    let exceptions = picked
        .into_iter()
        .map(|index| {
            let many = match &inode.pending[index] {
                Change::Write(offset, bytes) => units_of(*offset, bytes.len(), unit_bytes),
                Change::Truncate(_) | Change::Grow(_) => 1,
            };
            let whole = many == 1 || chance.within([0, 1]) == 0;
            let kept = match (whole, most) {
                (true, Most::Kept) => Units::None,
                (true, Most::Lost) => Units::All,
                (false, _) => units(many, chance),
            };
            (index, kept)
        })
        .collect();
    let lost_beyond_end = match chance.within([0, 7]) {
        0 => Some(Filler::Zeros),
        1 => Some(Filler::Garbage(chance.bits())),
        _ => None,
    };
    let mut damaged = Vec::new();
    if profile == Profile::NoPsow {
        let last = u32::try_from(inode.pending.len() - 1).unwrap_or(u32::MAX);
        for _ in 0..chance.within([0, 2]) {
            damaged.push((chance.within([0, last]) as usize, chance.bits()));
        }
    }
    FileChoice::Writes { most, exceptions, unit_bytes, lost_beyond_end, damaged }
}

/// How a write of so many units is torn.
fn units(many: u32, chance: &mut Stream) -> Units {
    match chance.within([0, 4]) {
        0 => Units::First(chance.within([1, many.max(2) - 1])),
        1 => Units::Last(chance.within([1, many.max(2) - 1])),
        2 => Units::AllBut(chance.within([0, many.max(1) - 1])),
        _ => Units::Each(chance.bits()),
    }
}

/// Places of pending changes that are exceptions: of few each by chance, of many a handful, half of
/// them near the end, where a cut leaves most open.
fn pick(pending: usize, chance: &mut Stream) -> Vec<usize> {
    let mut picked = Vec::new();
    if pending <= 12 {
        let of_four = chance.within([1, 3]);
        picked.extend((0..pending).filter(|_| chance.within([0, 3]) < of_four));
        return picked;
    }
    let last = u32::try_from(pending - 1).unwrap_or(u32::MAX);
    for _ in 0..chance.within([0, 10]) {
        let from = if chance.within([0, 1]) == 0 { 0 } else { last.saturating_sub(24) };
        picked.push(chance.within([from, last]) as usize);
    }
    picked.sort_unstable();
    picked.dedup();
    picked
}
