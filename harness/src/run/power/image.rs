//! File contents as shared blocks, and layers over them that cost only what they change.
//!
//! A [`Content`] is a file at one moment: blocks of 4 KiB that other moments share. A [`Layer`] is
//! one crash image of it, or what recovery makes of one: it holds the blocks that differ and points
//! to the content for all others. Both have a [`Sum`] that is kept up to date block by block, so
//! that two images are compared without being read.
//!
//! The sum of a file is the exclusive or of BLAKE3 over (index, block), taken over all its blocks.
//! Equal files have equal sums whatever way they came about; unequal ones have unequal sums unless
//! BLAKE3 collides in 256 bits, since an index occurs once.

use std::sync::{Arc, OnceLock};

/// Bytes of a block.
pub(super) const BLOCK_BYTES: usize = 4096;

/// The same, for offsets.
pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;

/// Bytes that a layer may spend on remembering the sums of blocks that it has met.
const MEMO_BYTES_MAX: usize = 48 << 20;

/// Different contents of one block that are remembered.
const MEMO_EACH_MAX: usize = 3;

type Bytes = [u8; BLOCK_BYTES];

/// An order-free sum of block hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Sum([u64; 4]);

impl Sum {
    /// Of one block at `index`.
    fn of(index: usize, bytes: &Bytes) -> Self {
        let mut hash = blake3::Hasher::new();
        // The index behind the block, so that the block itself stays aligned for the hash.
        hash.update(bytes);
        hash.update(&(index as u64).to_le_bytes());
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(hash.finalize().as_bytes().chunks_exact(8)) {
            *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        Self(words)
    }

    /// Adds `other`, or takes it away again.
    fn toggle(&mut self, other: Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine ^= theirs;
        }
    }

    /// Its bytes, to be hashed further.
    pub(super) fn words(self) -> [u64; 4] {
        self.0
    }
}

/// Some bytes of a file, with their sum once it was asked for.
#[derive(Debug)]
struct Block {
    bytes: Bytes,
    sum: OnceLock<Sum>,
}

impl Block {
    fn new(bytes: &Bytes) -> Arc<Self> {
        Arc::new(Self { bytes: *bytes, sum: OnceLock::new() })
    }

    fn sum(&self, index: usize) -> Sum {
        *self.sum.get_or_init(|| Sum::of(index, &self.bytes))
    }
}

/// Block number and place in it of the parts of `offset..offset + length`.
pub(super) fn parts(offset: u64, length: usize) -> impl Iterator<Item = Part> {
    let first = offset / BLOCK;
    let last = (offset + length as u64).div_ceil(BLOCK);
    (first..last).map(move |block| {
        let start = block * BLOCK;
        let from = offset.max(start);
        let to = (offset + length as u64).min(start + BLOCK);
        Part {
            block: to_usize(block),
            within: to_usize(from - start)..to_usize(to - start),
            of_whole: to_usize(from - offset)..to_usize(to - offset),
        }
    })
}

/// The part of a range that lies in one block.
pub(super) struct Part {
    /// Which block.
    pub(super) block: usize,
    /// Where in the block.
    pub(super) within: std::ops::Range<usize>,
    /// Where in the range.
    pub(super) of_whole: std::ops::Range<usize>,
}

/// Files here are in memory, so their offsets fit.
pub(super) fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A file at one moment.
#[derive(Clone, Debug, Default)]
pub struct Content {
    blocks: Vec<Arc<Block>>,
    bytes: u64,
    sum: Sum,
}

impl Content {
    /// A file of these bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        content.write(0, bytes);
        content
    }

    /// Its length.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The whole file.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out: Vec<u8> =
            self.blocks.iter().flat_map(|block| block.bytes.iter().copied()).collect();
        out.truncate(to_usize(self.bytes));
        out
    }

    pub(super) fn block(&self, index: usize) -> Option<&Bytes> {
        self.blocks.get(index).map(|block| &block.bytes)
    }

    /// Writes, and fills a gap before it with zeros.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.grow(offset + bytes.len() as u64);
        for part in parts(offset, bytes.len()) {
            self.change(part.block, |block| {
                block[part.within.clone()].copy_from_slice(&bytes[part.of_whole.clone()]);
            });
        }
    }

    /// Makes it at least this long, with zeros.
    pub(super) fn grow(&mut self, bytes: u64) {
        if bytes <= self.bytes {
            return;
        }
        self.bytes = bytes;
        while (self.blocks.len() as u64) * BLOCK < bytes {
            let block = Block::new(&[0; BLOCK_BYTES]);
            self.sum.toggle(block.sum(self.blocks.len()));
            self.blocks.push(block);
        }
    }

    /// Makes it exactly this long.
    pub(super) fn truncate(&mut self, bytes: u64) {
        self.grow(bytes);
        if bytes == self.bytes {
            return;
        }
        self.bytes = bytes;
        let keep = to_usize(bytes.div_ceil(BLOCK));
        for (index, block) in self.blocks.iter().enumerate().skip(keep) {
            self.sum.toggle(block.sum(index));
        }
        self.blocks.truncate(keep);
        let rest = to_usize(bytes % BLOCK);
        if rest > 0 {
            self.change(keep - 1, |block| block[rest..].fill(0));
        }
    }

    /// Takes the block and, once for all blocks, [`take_length`](Self::take_length) of `from`.
    pub(super) fn take_block(&mut self, from: &Self, index: usize) {
        let Some(theirs) = from.blocks.get(index) else { return };
        self.grow((index as u64 + 1) * BLOCK);
        let mine = &mut self.blocks[index];
        self.sum.toggle(mine.sum(index));
        self.sum.toggle(theirs.sum(index));
        *mine = Arc::clone(theirs);
    }

    pub(super) fn take_length(&mut self, from: &Self) {
        self.truncate(from.bytes);
    }

    fn change(&mut self, index: usize, change: impl FnOnce(&mut Bytes)) {
        let block = &mut self.blocks[index];
        self.sum.toggle(block.sum(index));
        let mut bytes = block.bytes;
        change(&mut bytes);
        *block = Block::new(&bytes);
        self.sum.toggle(block.sum(index));
    }
}

/// An image over a content, or over nothing.
///
/// It is made for being used again and again: [`begin`](Self::begin) costs what was changed before.
#[derive(Debug, Default)]
pub(super) struct Layer {
    base: Option<Arc<Content>>,
    /// Bytes of the base that may still be seen: less than all after a truncation.
    visible: u64,
    bytes: u64,
    slots: Vec<Option<Box<Bytes>>>,
    touched: Vec<usize>,
    spare: Vec<Box<Bytes>>,
    memo: Vec<Vec<(Box<Bytes>, Sum)>>,
    memo_bytes: usize,
    zeros: Zeros,
}

/// Sums of blocks of zeros: of all those before an index.
#[derive(Debug)]
struct Zeros(Vec<Sum>);

impl Default for Zeros {
    fn default() -> Self {
        Self(vec![Sum::default()])
    }
}

impl Zeros {
    fn grow(&mut self, blocks: usize) {
        while self.0.len() <= blocks {
            let mut sum = self.0[self.0.len() - 1];
            sum.toggle(Sum::of(self.0.len() - 1, &[0; BLOCK_BYTES]));
            self.0.push(sum);
        }
    }

    fn between(&self, from: usize, to: usize) -> Sum {
        let mut sum = self.0[from];
        sum.toggle(self.0[to]);
        sum
    }
}

impl Layer {
    /// Becomes the content, unchanged.
    pub(super) fn begin(&mut self, base: Option<Arc<Content>>) {
        for index in self.touched.drain(..) {
            if let Some(block) = self.slots[index].take() {
                self.spare.push(block);
            }
        }
        self.spare.truncate(4_096);
        self.bytes = base.as_ref().map_or(0, |base| base.bytes);
        self.visible = self.bytes;
        self.base = base;
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes
    }

    fn base_block(&self, index: usize) -> Option<&Arc<Block>> {
        let seen = (index as u64) * BLOCK < self.visible;
        self.base.as_ref().filter(|_| seen).and_then(|base| base.blocks.get(index))
    }

    /// The bytes of a block; zeros where nothing was ever written.
    pub(super) fn block(&self, index: usize) -> Option<&Bytes> {
        match self.slots.get(index) {
            Some(Some(block)) => Some(block),
            _ => self.base_block(index).map(|block| &block.bytes),
        }
    }

    /// The block to be changed. Its index may lie beyond the end.
    pub(super) fn block_mut(&mut self, index: usize) -> &mut Bytes {
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        if self.slots[index].is_none() {
            let mut block = self.spare.pop().unwrap_or_else(|| Box::new([0; BLOCK_BYTES]));
            match self.base_block(index) {
                Some(base) => *block = base.bytes,
                None => block.fill(0),
            }
            self.slots[index] = Some(block);
            self.touched.push(index);
        }
        self.slots[index].get_or_insert_with(|| Box::new([0; BLOCK_BYTES]))
    }

    /// Fills `buffer`, and says how many of its bytes the file has.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let there = to_usize(self.bytes.saturating_sub(offset)).min(buffer.len());
        let (within, beyond) = buffer.split_at_mut(there);
        beyond.fill(0);
        for part in parts(offset, within.len()) {
            match self.block(part.block) {
                Some(block) => within[part.of_whole].copy_from_slice(&block[part.within]),
                None => within[part.of_whole].fill(0),
            }
        }
        there
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for part in parts(offset, bytes.len()) {
            self.block_mut(part.block)[part.within].copy_from_slice(&bytes[part.of_whole]);
        }
        self.bytes = self.bytes.max(offset + bytes.len() as u64);
    }

    /// Sets the length; what is beyond is gone, what is new is zero.
    pub(super) fn truncate(&mut self, bytes: u64) {
        if bytes < self.bytes {
            let keep = to_usize(bytes.div_ceil(BLOCK));
            for index in &self.touched {
                if *index >= keep
                    && let Some(block) = self.slots[*index].take()
                {
                    self.spare.push(block);
                }
            }
            self.touched.retain(|index| *index < keep);
            let rest = to_usize(bytes % BLOCK);
            if rest > 0 {
                self.block_mut(keep - 1)[rest..].fill(0);
            }
            self.visible = self.visible.min(bytes);
        }
        self.bytes = bytes;
    }

    /// The sum of the first `bytes` bytes, which must be no more than there are. Where they end
    /// within a block, what follows in it counts as zero.
    pub(super) fn sum(&mut self, bytes: u64) -> Sum {
        let whole = to_usize(bytes / BLOCK);
        let mut sum = Sum::default();
        // What the base gives: its own sum, less the blocks that are cut off or hidden.
        let mut of_base = 0;
        if let Some(base) = &self.base {
            sum = base.sum;
            of_base = to_usize(self.visible.div_ceil(BLOCK)).min(whole).min(base.blocks.len());
            for (index, block) in base.blocks.iter().enumerate().skip(of_base) {
                sum.toggle(block.sum(index));
            }
        }
        let touched = std::mem::take(&mut self.touched);
        let mut beyond_base = 0;
        for index in touched.iter().copied().filter(|index| *index < whole) {
            match self.base_block(index) {
                Some(block) if index < of_base => sum.toggle(block.sum(index)),
                _ => beyond_base += 1,
            }
            sum.toggle(self.remembered(index));
        }
        self.touched = touched;
        // Holes: blocks that are in the file and in neither.
        if beyond_base < whole - of_base {
            self.zeros.grow(whole);
            sum.toggle(self.zeros.between(of_base, whole));
            for index in self.touched.iter().filter(|index| (of_base..whole).contains(*index)) {
                sum.toggle(self.zeros.between(*index, *index + 1));
            }
        }
        let rest = to_usize(bytes % BLOCK);
        if rest > 0 {
            let mut last = self.block(whole).copied().unwrap_or([0; BLOCK_BYTES]);
            last[rest..].fill(0);
            sum.toggle(Sum::of(whole, &last));
        }
        sum
    }

    /// The sum of a changed block, from memory if it was the same lately: from one crash image to
    /// the next most blocks that recovery writes are the same.
    fn remembered(&mut self, index: usize) -> Sum {
        let Some(Some(block)) = self.slots.get(index) else { return Sum::default() };
        if index >= self.memo.len() {
            self.memo.resize_with(index + 1, Vec::new);
        }
        if let Some((_, sum)) = self.memo[index].iter().find(|(known, _)| known == block) {
            return *sum;
        }
        let sum = Sum::of(index, block);
        if self.memo_bytes >= MEMO_BYTES_MAX {
            self.memo.iter_mut().for_each(Vec::clear);
            self.memo_bytes = 0;
        }
        if self.memo[index].len() >= MEMO_EACH_MAX {
            self.memo[index].remove(0);
        } else {
            self.memo_bytes += BLOCK_BYTES;
        }
        self.memo[index].push((block.clone(), sum));
        sum
    }

    /// The whole file.
    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut out = vec![0; to_usize(self.bytes)];
        self.read(0, &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Change {
        Write(u64, Vec<u8>),
        Truncate(u64),
    }

    fn change() -> impl Strategy<Value = Change> {
        let near = 0..40_000_u64;
        prop_oneof![
            3 => (near.clone(), prop::collection::vec(any::<u8>(), 1..9_000))
                .prop_map(|(at, bytes)| Change::Write(at, bytes)),
            1 => near.prop_map(Change::Truncate),
        ]
    }

    fn apply(to: &mut Vec<u8>, change: &Change) {
        match change {
            Change::Write(at, bytes) => {
                let (at, end) = (to_usize(*at), to_usize(*at) + bytes.len());
                if to.len() < end {
                    to.resize(end, 0);
                }
                to[at..end].copy_from_slice(bytes);
            }
            Change::Truncate(bytes) => to.resize(to_usize(*bytes), 0),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            cases: 64,
            ..ProptestConfig::default()
        })]

        #[test]
        fn content_and_layer_hold_what_a_plain_file_would_and_their_sums_say_so(
            first in prop::collection::vec(change(), 0..6),
            second in prop::collection::vec(change(), 0..6),
            cut in 0..40_000_u64,
        ) {
            let mut plain = Vec::new();
            let mut content = Content::default();
            for change in &first {
                apply(&mut plain, change);
                match change {
                    Change::Write(at, bytes) => content.write(*at, bytes),
                    Change::Truncate(bytes) => content.truncate(*bytes),
                }
            }
            prop_assert_eq!(&content.to_vec(), &plain);
            prop_assert_eq!(content.sum, Content::new(&plain).sum);
            let mut layer = Layer::default();
            layer.begin(Some(Arc::new(content)));
            for change in &second {
                apply(&mut plain, change);
                match change {
                    Change::Write(at, bytes) => layer.write(*at, bytes),
                    Change::Truncate(bytes) => layer.truncate(*bytes),
                }
                let bytes = layer.len();
                prop_assert_eq!(&layer.to_vec(), &plain);
                prop_assert_eq!(layer.sum(bytes), Content::new(&plain).sum);
            }
            let cut = cut.min(layer.len());
            plain.truncate(to_usize(cut));
            prop_assert_eq!(layer.sum(cut), Content::new(&plain).sum);
        }
    }
}
