//! Random numbers for one purpose, repeatable on every machine and with every later version.

use rand::{Rng, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// The random numbers of one purpose.
#[derive(Clone, Debug)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of (`seed`, `label`): a purpose gets the same numbers whatever others draw.
    #[must_use]
    pub fn new(seed: u64, label: &str) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(&seed.to_le_bytes());
        hash.update(label.as_bytes());
        Self(ChaCha8Rng::from_seed(*hash.finalize().as_bytes()))
    }

    /// From `least` to `most`, both included; `least` if that is nothing.
    pub fn within(&mut self, [least, most]: [u32; 2]) -> u32 {
        if most <= least { least } else { self.0.random_range(least..=most) }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// The generator itself, for a library that wants one.
    pub fn rng(&mut self) -> &mut impl Rng {
        &mut self.0
    }
}

/// The seed of the `round`-th round (from 0) of a run that began with `seed`.
///
/// Round 0 has the seed itself, so that what a first run prints can be repeated as it stands.
#[must_use]
pub fn round_seed(seed: u64, round: u64) -> u64 {
    if round == 0 { seed } else { Stream::new(seed, &format!("round/{round}")).bits() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_with_other_labels_are_unrelated() {
        let draw = |label| Stream::new(5, label).bits();
        assert_eq!(draw("a"), draw("a"));
        assert_ne!(draw("a"), draw("b"));
    }

    #[test]
    fn first_numbers_never_change() {
        // A stored seed must mean the same run after an update of a dependency.
        assert_eq!(Stream::new(0x5eed, "kill-time").bits(), 6_379_695_371_876_528_129);
    }

    #[test]
    fn round_0_is_the_seed_itself() {
        assert_eq!(round_seed(77, 0), 77);
        assert_ne!(round_seed(77, 1), round_seed(77, 2));
    }
}
