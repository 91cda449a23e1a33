//! A hash for the numbers of processes, threads and files.
//!
//! Every stop looks several of them up. They come from the kernel and not from an adversary, so a
//! multiplication does what the standard hash does for ten times the price.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map by small numbers.
pub(super) type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

/// Multiplies and folds each word.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NumberHasher(u64);

impl NumberHasher {
    fn add(&mut self, word: u64) {
        // An odd number without pattern: the fraction of the golden ratio.
        self.0 = (self.0.rotate_left(26) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.add(u64::from(byte));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.add(u64::from(word));
    }

    fn write_i32(&mut self, word: i32) {
        self.add(u64::from(word.cast_unsigned()));
    }

    fn write_u64(&mut self, word: u64) {
        self.add(word);
    }

    fn finish(&self) -> u64 {
        // The map takes its bucket from the low bits, which the multiplication mixes least.
        self.0.rotate_left(32)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn neighbouring_numbers_fall_into_different_buckets() {
        let hasher = BuildHasherDefault::<NumberHasher>::default();
        let buckets: HashSet<_> = (0_i32..64).map(|number| hasher.hash_one(number) & 63).collect();
        assert!(buckets.len() > 32, "{}", buckets.len());
    }
}
