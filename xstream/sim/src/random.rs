//! The run's randomness: streams that depend on the seed and on nothing else.

use std::cell::Cell;

/// A stream of pseudo-random numbers. SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators,
/// 2014): one word of state, and streams of different names are unrelated.
pub(crate) struct Random(Cell<u64>);

impl Random {
    /// The stream `name` of the run `seed`.
    pub fn new(seed: u64, name: u64) -> Self {
        let stream = Self(Cell::new(seed ^ name.wrapping_mul(0xd6e8_feb8_6659_fd93)));
        // Neighbouring seeds differ in few bits; step away from that.
        let start = stream.next();
        Self(Cell::new(start))
    }

    pub fn next(&self) -> u64 {
        self.0.set(self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let mut word = self.0.get();
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Uniform below `bound`, which is not 0.
    pub fn below(&self, bound: u64) -> u64 {
        // Multiply-shift (Lemire, 2019); its bias of at most bound / 2^64 does not matter here.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// True in `parts` of a million cases.
    pub fn chance(&self, parts_per_million: u32) -> bool {
        parts_per_million > 0 && self.below(1_000_000) < u64::from(parts_per_million)
    }

    /// Between `least` and `most`, skewed: mostly near `least`, at times far out, as latencies are.
    pub fn latency(&self, (least, most): (u64, u64)) -> u64 {
        let span = most.saturating_sub(least) + 1;
        let part = self.below(1 << 20);
        least + ((u128::from(span) * u128::from(part) * u128::from(part) * u128::from(part)) >> 60) as u64
    }
}
