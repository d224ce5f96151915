//! How fast a replica reads, as far as the choice between replicas needs to know.

use std::cell::Cell;
use std::time::Duration;

use reactor::Instant;

/// Longer reads count as several of this length.
const UNIT: u64 = 64 << 10;

/// How much of the average a new figure replaces.
const WEIGHT: u64 = 4;

/// A replica below this is never slow, whatever others do.
const SLOW: Duration = Duration::from_millis(5);

/// How many times as long as another one a slow replica takes.
const MUCH: u64 = 4;

/// A figure of this age may be wrong by now.
const OLD: Duration = Duration::from_secs(1);

/// A decaying average of how long reads take. Cells: it is written on the path of each read.
#[derive(Debug, Default)]
pub(crate) struct Latency {
    /// Nanoseconds; zero before the first read.
    average: Cell<u64>,
    /// When a read was sent whose answer enters the average.
    asked: Cell<Option<Instant>>,
}

impl Latency {
    /// A read of so many bytes was sent.
    pub(crate) fn ask(&self, now: Instant) {
        self.asked.set(Some(now));
    }

    /// A read took so long, or was given up after that.
    pub(crate) fn note(&self, took: Duration, length: u64) {
        let took = took.as_nanos() as u64 / length.div_ceil(UNIT).max(1);
        let average = match self.average.get() {
            0 => took,
            before => before - before / WEIGHT + took / WEIGHT,
        };
        self.average.set(average.max(1));
    }

    /// Nanoseconds, for comparisons: zero before the first read, so that everyone gets a chance.
    pub(crate) fn figure(&self) -> u64 {
        self.average.get()
    }

    /// How long a read of so many bytes usually takes.
    pub(crate) fn expected(&self, length: u64) -> Duration {
        Duration::from_nanos(self.average.get().saturating_mul(length.div_ceil(UNIT).max(1)))
    }

    /// Whether it is slow enough for others to be compared with it.
    pub(crate) fn is_slow(&self) -> bool {
        u128::from(self.average.get()) > SLOW.as_nanos()
    }

    /// Whether another one is so much faster that distance does not matter.
    pub(crate) fn is_much_slower_than(&self, other: &Self) -> bool {
        self.is_slow() && self.average.get() > other.average.get().saturating_mul(MUCH)
    }

    /// Whether nobody knows how fast it is now.
    pub(crate) fn is_old(&self, now: Instant) -> bool {
        self.asked.get().is_none_or(|asked| now - asked >= OLD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_average_follows_what_is_measured_and_forgets_it_again() {
        let latency = Latency::default();
        assert_eq!(latency.figure(), 0, "never asked");
        latency.note(ms(1), 4096);
        assert_eq!(latency.expected(4096), ms(1));
        (0..20).for_each(|_| latency.note(ms(100), 4096));
        assert!(latency.is_slow() && latency.expected(4096) > ms(90));
        (0..20).for_each(|_| latency.note(ms(1), 4096));
        assert!(!latency.is_slow());
    }

    #[test]
    fn long_reads_may_take_longer() {
        let latency = Latency::default();
        latency.note(ms(16), 1 << 20);
        assert_eq!(latency.expected(65536), ms(1));
        assert_eq!(latency.expected(65537), ms(2));
    }

    #[test]
    fn a_fast_one_is_never_much_slower() {
        let (one, other) = (Latency::default(), Latency::default());
        one.note(ms(4), 4096);
        assert!(!one.is_much_slower_than(&other), "4 ms are fine, whatever others take");
        (0..20).for_each(|_| one.note(ms(20), 4096));
        assert!(one.is_much_slower_than(&other), "who was never asked may be faster");
        (0..20).for_each(|_| other.note(ms(10), 4096));
        assert!(!one.is_much_slower_than(&other));
        assert!(!other.is_much_slower_than(&one));
    }
}
