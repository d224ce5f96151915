//! Randomness from a seed: the only source of chance in a simulated world.

use std::ops::RangeInclusive;
use std::time::Duration;

/// A generator of the SplitMix64 family: one word of state, every seed is good, the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts from a seed; nearby seeds give unrelated sequences.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x5EED_A51A_A500_0001))
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number from zero up to, not including, `limit`; zero if `limit` is zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        // The high half of a product is spread evenly enough for any limit that a test uses.
        ((u128::from(self.next_u64()) * u128::from(limit)) >> 64) as u64
    }

    /// An index of a collection of `length` elements; zero if it is empty.
    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        // 53 bits are what a double holds exactly.
        ((self.next_u64() >> 11) as f64) < probability * (1_u64 << 53) as f64
    }

    /// True once in `count` times on average.
    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// A duration of the range, evenly.
    pub fn duration(&mut self, range: &RangeInclusive<Duration>) -> Duration {
        let (low, high) = (nanoseconds(*range.start()), nanoseconds(*range.end()));
        Duration::from_nanos(low + self.below(high.saturating_sub(low).saturating_add(1)))
    }

    /// An independent generator, so that one part's use of chance does not shift another's.
    pub fn fork(&mut self) -> Self {
        Self(self.next_u64())
    }
}

/// The whole nanoseconds of a duration, at most `u64::MAX`.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Spreads every bit of `value` over all 64 of the result; also what trace hashes are made with.
pub(crate) const fn mix(mut value: u64) -> u64 {
    value ^= value >> 30;
    value = value.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value ^= value >> 27;
    value = value.wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_below_their_limit_and_reach_all_of_it() {
        let mut random = Random::new(1);
        let mut seen = [false; 7];
        for _ in 0..1000 {
            seen[random.index(7)] = true;
        }
        assert_eq!(seen, [true; 7]);
        assert_eq!(random.below(0), 0);
    }

    #[test]
    fn certain_and_impossible_are_exact() {
        let mut random = Random::new(2);
        assert!((0..1000).all(|_| random.chance(1.0) && !random.chance(0.0)));
    }

    #[test]
    fn a_fork_does_not_depend_on_later_use_of_its_parent() {
        let mut parent = Random::new(3);
        let mut child = parent.fork();
        let mut again = Random::new(3).fork();
        parent.next_u64();
        assert_eq!(child.next_u64(), again.next_u64());
    }
}
