//! Latencies in constant space and time.

/// Each power of two is divided into this many buckets (as a power of two), so that a value is known to 1.6 %.
const PRECISION_BITS: u32 = 6;

/// Buckets for every `u64`.
const BUCKETS: usize = (64 - PRECISION_BITS as usize + 1) << PRECISION_BITS;

/// A log-linear histogram of nanoseconds.
#[derive(Clone)]
pub struct Histogram {
    counts: Box<[u64]>,
    count: u64,
    /// In 128 bits: a long run's sum may pass 2^64 ns.
    sum: u128,
    min: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), count: 0, sum: 0, min: u64::MAX, max: 0 }
    }
}

impl Histogram {
    /// Counts one value.
    pub fn record(&mut self, nanoseconds: u64) {
        self.counts[bucket_of(nanoseconds)] += 1;
        self.count += 1;
        self.sum += u128::from(nanoseconds);
        self.min = self.min.min(nanoseconds);
        self.max = self.max.max(nanoseconds);
    }

    /// Adds all values of another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (own, others) in self.counts.iter_mut().zip(&other.counts) {
            *own += others;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        (self.count, self.sum, self.min, self.max) = (0, 0, u64::MAX, 0);
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The least value, zero without any.
    pub fn min(&self) -> u64 {
        if self.count == 0 { 0 } else { self.min }
    }

    /// The greatest value, exactly.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean, zero without values.
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }

    /// The value that `percent` of all values do not exceed (nearest rank), to the histogram's precision; zero
    /// without values.
    pub fn percentile(&self, percent: f64) -> u64 {
        let rank = ((percent / 100.0 * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                // The bounds of a bucket may lie outside of what was seen.
                return highest_of(bucket).clamp(self.min, self.max);
            }
        }
        0
    }
}

fn bucket_of(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(PRECISION_BITS + 1);
    ((shift as usize) << PRECISION_BITS) + (value >> shift) as usize
}

/// The greatest value that falls into `bucket`.
fn highest_of(bucket: usize) -> u64 {
    let shift = (bucket >> PRECISION_BITS).saturating_sub(1);
    let position = (bucket - (shift << PRECISION_BITS)) as u128;
    (((position + 1) << shift) - 1) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_lies_in_a_bucket_that_is_at_most_its_64th_wide() {
        let powers = (0..64).map(|shift| 1u64 << shift);
        for value in powers.flat_map(|power| [power - 1, power, power + power / 3]).chain([u64::MAX]) {
            let bucket = bucket_of(value);
            let highest = highest_of(bucket);
            assert!(highest >= value, "{value}");
            assert!(highest - value <= value / 64, "{value} {highest}");
            assert!(bucket == 0 || highest_of(bucket - 1) < value, "{value}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_of_known_values() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.percentile(50.0), histogram.min(), histogram.max()), (0, 0, 0));
        (1..=100).for_each(|value| histogram.record(value));
        assert_eq!(histogram.percentile(0.0), 1);
        assert_eq!(histogram.percentile(50.0), 50);
        assert_eq!(histogram.percentile(99.0), 99);
        assert_eq!(histogram.percentile(100.0), 100);
        assert_eq!(histogram.mean(), 50.5);
    }

    #[test]
    fn merging_is_the_same_as_recording_all() {
        let (mut low, mut high) = (Histogram::default(), Histogram::default());
        low.record(7);
        high.record(1_000_000);
        low.merge(&high);
        assert_eq!((low.count(), low.min(), low.max()), (2, 7, 1_000_000));
        assert_eq!(low.percentile(50.0), 7);
        low.clear();
        assert_eq!((low.count(), low.percentile(99.9)), (0, 0));
    }
}
