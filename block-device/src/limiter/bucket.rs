//! Token buckets, without a clock of their own.
//!
//! A level is in billionths of a token, so that a rate in tokens a second times nanoseconds is a whole number: nothing is ever rounded.

use std::time::Duration;

use reactor::{Instant, bug};

use super::Limits;
use crate::Request;

/// What a bucket holds at least: a timer may be that late, and nothing is lost to the volume.
const LEAST_SAVED: Duration = Duration::from_millis(10);

/// What it holds at least while something waits, which is when a reactor was late.
const LEAST_SAVED_FOR_WAITING: Duration = Duration::from_millis(100);

/// Parts of a token.
const PARTS: i128 = 1_000_000_000;

/// What a request takes out of the buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    bytes: u64,
}

impl Cost {
    /// None if the request is not counted.
    pub(super) fn of(request: &Request) -> Option<Self> {
        match request {
            Request::Flush => None,
            counted => Some(Self { bytes: counted.transfer() }),
        }
    }
}

/// The buckets of a volume.
#[derive(Debug)]
pub(super) struct Buckets {
    limits: Limits,
    commands: Bucket,
    bytes: Bucket,
    /// Up to when they are filled.
    filled: Instant,
}

impl Buckets {
    /// Buckets that nothing was saved in yet but for the least.
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        let mut new = Self {
            limits,
            commands: Bucket::new(limits.iops),
            bytes: Bucket::new(limits.bytes_per_second),
            filled: now,
        };
        new.each(|bucket| bucket.level = bucket.worth(LEAST_SAVED));
        new
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Other limits: what was owed is forgiven, or a low limit would be felt long after its end.
    pub(super) fn set_limits(&mut self, limits: Limits, now: Instant) {
        if limits == self.limits {
            return;
        }
        self.fill(now, false);
        let mut saved = [self.commands.saved_for(), self.bytes.saved_for()];
        if bug!("fill-the-burst-with-other-limits") {
            saved = [limits.burst; 2];
        }
        *self = Self::new(limits, now);
        for (bucket, saved) in [&mut self.commands, &mut self.bytes].into_iter().zip(saved) {
            bucket.level = bucket.worth(saved.min(limits.burst)).max(bucket.level);
        }
    }

    /// What has accrued since the last time.
    pub(super) fn fill(&mut self, now: Instant, something_waits: bool) {
        let elapsed = now - self.filled;
        self.filled = self.filled.max(now);
        let least = if something_waits { LEAST_SAVED_FOR_WAITING } else { LEAST_SAVED };
        let most = self.limits.burst.max(least);
        self.each(|bucket| bucket.fill(elapsed, most));
    }

    /// Whether a request may be passed on now.
    pub(super) fn are_open(&self) -> bool {
        self.commands.is_open() && self.bytes.is_open()
    }

    /// A request is passed on.
    pub(super) fn spend(&mut self, cost: Cost) {
        self.commands.spend(1);
        self.bytes.spend(cost.bytes);
    }

    /// How long until one may be passed on, from when they were filled last.
    pub(super) fn wait(&self) -> Duration {
        self.commands.wait().max(self.bytes.wait())
    }

    fn each(&mut self, mut change: impl FnMut(&mut Bucket)) {
        change(&mut self.commands);
        change(&mut self.bytes);
    }
}

#[derive(Debug)]
struct Bucket {
    /// Tokens a second; 0 for no limit.
    rate: u64,
    /// In parts of a token; what is owed when it is negative.
    level: i128,
}

impl Bucket {
    const fn new(rate: u64) -> Self {
        Self { rate, level: 0 }
    }

    /// What accrues in so long, but at least a token.
    fn worth(&self, time: Duration) -> i128 {
        accrued(self.rate, time).max(PARTS)
    }

    /// For how long it was filled without being taken from. One without a limit saves nothing.
    fn saved_for(&self) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let nanoseconds = self.level.max(0) / i128::from(self.rate);
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    fn fill(&mut self, elapsed: Duration, most: Duration) {
        self.level = (self.level + accrued(self.rate, elapsed)).min(self.worth(most));
    }

    const fn is_open(&self) -> bool {
        self.rate == 0 || self.level > 0
    }

    fn spend(&mut self, tokens: u64) {
        self.level -= i128::from(tokens) * PARTS;
    }

    fn wait(&self) -> Duration {
        if self.is_open() {
            return Duration::ZERO;
        }
        // Until there is a part more than none.
        let nanoseconds = -self.level / i128::from(self.rate) + 1;
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

fn accrued(rate: u64, time: Duration) -> i128 {
    // 36 years, at which the product of both still is far from the end.
    let nanoseconds = time.as_nanos().min(1 << 60);
    i128::from(rate) * nanoseconds as i128
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Slice;

    fn at(microseconds: u64) -> Instant {
        Instant::from_nanos(microseconds * 1_000)
    }

    fn limits(iops: u64, bytes_per_second: u64, burst_ms: u64) -> Limits {
        Limits { iops, bytes_per_second, burst: Duration::from_millis(burst_ms) }
    }

    const BLOCK: Cost = Cost { bytes: 4096 };

    /// How many blocks are passed on at one moment.
    fn at_once(buckets: &mut Buckets) -> u64 {
        let mut passed = 0;
        while buckets.are_open() {
            buckets.spend(BLOCK);
            passed += 1;
        }
        passed
    }

    #[test]
    fn what_moves_no_data_costs_a_command_and_a_flush_nothing() {
        let write = Request::write(0, Slice::zeroes(8192));
        assert_eq!(Cost::of(&write), Some(Cost { bytes: 8192 }));
        assert_eq!(Cost::of(&Request::read(0, 512)), Some(Cost { bytes: 512 }));
        let zeroes = Request::WriteZeroes { range: crate::Range { offset: 0, length: 4096 }, unmap: true, fua: false };
        assert_eq!(Cost::of(&zeroes), Some(Cost { bytes: 0 }));
        assert_eq!(Cost::of(&Request::Flush), None);
    }

    #[test]
    fn an_idle_bucket_saves_the_burst_and_no_more() {
        let mut buckets = Buckets::new(limits(1_000, 0, 3_000), at(0));
        assert_eq!(at_once(&mut buckets), 10, "nothing was saved yet");
        buckets.fill(at(1_000_000), false);
        assert_eq!(at_once(&mut buckets), 1_000);
        buckets.fill(at(100_000_000), false);
        assert_eq!(at_once(&mut buckets), 3_000);
    }

    #[test]
    fn a_low_rate_still_holds_one_command() {
        let mut buckets = Buckets::new(limits(10, 0, 0), at(0));
        buckets.fill(at(60_000_000), false);
        assert_eq!(at_once(&mut buckets), 1);
        assert_eq!(buckets.wait(), Duration::from_nanos(1), "it owes nothing");
        buckets.fill(at(60_000_001), false);
        assert_eq!(at_once(&mut buckets), 1);
        assert_eq!(buckets.wait(), Duration::from_nanos(99_999_001));
    }

    #[test]
    fn a_large_command_is_passed_on_and_paid_for_afterwards() {
        let mut buckets = Buckets::new(limits(0, 1 << 20, 0), at(0));
        buckets.spend(Cost { bytes: 8 << 20 });
        assert!(!buckets.are_open());
        let owed = (8 << 20) - (1 << 20) / 100;
        let pause = Duration::from_secs_f64(owed as f64 / f64::from(1 << 20));
        assert!(buckets.wait().abs_diff(pause) < Duration::from_micros(1), "{:?}", buckets.wait());
    }

    #[test]
    fn both_limits_have_to_be_kept() {
        let mut buckets = Buckets::new(limits(1_000_000, 1 << 20, 0), at(0));
        assert_eq!(at_once(&mut buckets), 3, "10 ms' worth of bytes are two and a half blocks");
        let mut buckets = Buckets::new(limits(100, 1 << 40, 0), at(0));
        assert_eq!(at_once(&mut buckets), 1);
    }

    #[test]
    fn other_limits_forgive_what_is_owed_and_keep_what_is_saved() {
        let mut buckets = Buckets::new(limits(10, 0, 0), at(0));
        (0..100).for_each(|_| buckets.spend(BLOCK));
        buckets.set_limits(limits(1_000, 0, 0), at(1));
        assert_eq!(at_once(&mut buckets), 10);
        let mut buckets = Buckets::new(limits(1_000, 0, 2_000), at(0));
        buckets.fill(at(10_000_000), false);
        buckets.set_limits(limits(500, 0, 1_000), at(10_000_000));
        assert_eq!(at_once(&mut buckets), 500, "of two seconds one is left");
        buckets.set_limits(limits(500, 0, 1_000), at(10_000_001));
        assert_eq!(at_once(&mut buckets), 0, "the same limits change nothing");
    }

    #[test]
    fn a_limit_that_was_not_there_has_saved_nothing() {
        let mut buckets = Buckets::new(limits(0, 1 << 20, 2_000), at(0));
        buckets.set_limits(limits(1_000, 1 << 30, 2_000), at(10_000_000));
        assert_eq!(at_once(&mut buckets), 10, "but for the least");
    }

    #[test]
    fn while_something_waits_a_late_reactor_loses_nothing_soon() {
        let mut buckets = Buckets::new(limits(1_000, 0, 0), at(0));
        at_once(&mut buckets);
        buckets.fill(at(90_000), true);
        assert_eq!(at_once(&mut buckets), 90);
        buckets.fill(at(10_000_000), true);
        assert_eq!(at_once(&mut buckets), 100, "but not for ever");
    }

    /// Beyond any rate that can be set, and times beyond any that a machine runs.
    #[test]
    fn the_arithmetic_does_not_overflow() {
        let mut buckets = Buckets::new(limits(u64::MAX, u64::MAX, u64::MAX / 1_000), at(0));
        buckets.fill(Instant::from_nanos(u64::MAX), true);
        buckets.spend(Cost { bytes: u64::MAX });
        buckets.fill(Instant::from_nanos(u64::MAX), false);
        assert!(buckets.are_open());
        let mut buckets = Buckets::new(limits(1, 1, 0), at(0));
        (0..1_000).for_each(|_| buckets.spend(Cost { bytes: u64::MAX }));
        assert_eq!(buckets.wait(), Duration::from_nanos(u64::MAX));
    }
}
