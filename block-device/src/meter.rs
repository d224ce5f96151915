//! What goes through a device: counts, bytes, latencies, and how long the oldest request has been under way.
//!
//! One thread writes, any may read, and neither waits for the other: each number is an atomic that only its writer
//! changes, so a change is a load, an addition and a store.
//!
//! The age of the oldest request needs no list. Requests under way are of two generations:
//!
//! ```text
//!   begin ──▶ the older one, if there is none under way ──▶ else the younger
//!   all of the older have ended: the younger is the older now, and the next younger is empty
//! ```
//! What is published is when the older generation began. So the age is never too small, and too large by no more than
//! the time that the older generation before took to end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reactor::Instant;

use crate::{Limits, Request};

/// What kinds of requests are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Request::Read`]
    Read,
    /// [`Request::Write`]
    Write,
    /// [`Request::Flush`]
    Flush,
    /// [`Request::Unmap`] and [`Request::WriteZeroes`]
    Discard,
    /// [`Request::Compare`]
    Compare,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Flush, Self::Discard, Self::Compare];

    /// That of a request.
    pub const fn of(request: &Request) -> Self {
        match request {
            Request::Read { .. } => Self::Read,
            Request::Write { .. } => Self::Write,
            Request::Flush => Self::Flush,
            Request::Unmap { .. } | Request::WriteZeroes { .. } => Self::Discard,
            Request::Compare { .. } => Self::Compare,
        }
    }
}

/// Classes of latencies: class `k` has those of up to 2^k microseconds, the last one all that take longer.
pub const CLASSES: usize = 25;

/// The meter of one device.
#[derive(Debug, Default)]
pub struct Meter {
    kinds: [KindMeter; Kind::ALL.len()],
    generations: Generations,
    waiting: AtomicU64,
    /// Nanoseconds, as all times here; 0 for none.
    waiting_since: AtomicU64,
    limited: LimitedMeter,
}

#[derive(Debug, Default)]
struct LimitedMeter {
    iops: AtomicU64,
    bytes_per_second: AtomicU64,
    /// How many wait now, and how many have waited.
    waiting: AtomicU64,
    waited: AtomicU64,
    nanoseconds: AtomicU64,
}

#[derive(Debug, Default)]
struct KindMeter {
    latencies: [AtomicU64; CLASSES],
    nanoseconds: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

#[derive(Debug, Default)]
struct Generations {
    older: AtomicU64,
    younger: AtomicU64,
    /// When the older one began; 0 while nothing is under way. What others read.
    since: AtomicU64,
    younger_since: AtomicU64,
    /// The first number that is not of the older one.
    border: AtomicU64,
    /// The highest number so far.
    newest: AtomicU64,
}

impl Meter {
    /// A request begins. `number` is higher than that of any before.
    pub fn begin(&self, number: u64, now: Instant) {
        let all = &self.generations;
        let now = now.as_nanos().max(1);
        all.newest.store(number, Ordering::Relaxed);
        if get(&all.older) == 0 {
            all.border.store(number + 1, Ordering::Relaxed);
            all.since.store(now, Ordering::Relaxed);
            return all.older.store(1, Ordering::Relaxed);
        }
        if get(&all.younger) == 0 {
            all.younger_since.store(now, Ordering::Relaxed);
        }
        add(&all.younger, 1);
    }

    /// The request of this number is over: it is answered.
    pub fn end(&self, number: u64) {
        let all = &self.generations;
        if number >= get(&all.border) {
            return all.younger.store(get(&all.younger) - 1, Ordering::Relaxed);
        }
        let older = get(&all.older) - 1;
        if older > 0 {
            return all.older.store(older, Ordering::Relaxed);
        }
        let younger = get(&all.younger);
        all.older.store(younger, Ordering::Relaxed);
        all.younger.store(0, Ordering::Relaxed);
        all.border.store(get(&all.newest) + 1, Ordering::Relaxed);
        all.since.store(if younger > 0 { get(&all.younger_since) } else { 0 }, Ordering::Relaxed);
    }

    /// A request of this kind was answered after this time; `bytes` moved, or none if it failed.
    pub fn answer(&self, kind: Kind, took: Duration, bytes: Option<u64>) {
        let meter = &self.kinds[kind as usize];
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        add(&meter.latencies[class_of(nanoseconds)], 1);
        add(&meter.nanoseconds, nanoseconds);
        match bytes {
            Some(bytes) => add(&meter.bytes, bytes),
            None => add(&meter.errors, 1),
        }
    }

    /// A request waits for the device to come up.
    pub fn wait(&self, now: Instant) {
        if get(&self.waiting) == 0 {
            self.waiting_since.store(now.as_nanos().max(1), Ordering::Relaxed);
        }
        add(&self.waiting, 1);
    }

    /// So many requests do not wait any more. Those that do seem no younger for it.
    pub fn stop_waiting(&self, requests: u64) {
        let left = get(&self.waiting) - requests;
        self.waiting.store(left, Ordering::Relaxed);
        if left == 0 {
            self.waiting_since.store(0, Ordering::Relaxed);
        }
    }

    /// Nothing waits any more.
    pub fn end_waiting(&self) {
        self.waiting.store(0, Ordering::Relaxed);
        self.waiting_since.store(0, Ordering::Relaxed);
    }

    /// What hosts may do from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.limited.iops.store(limits.iops, Ordering::Relaxed);
        self.limited.bytes_per_second.store(limits.bytes_per_second, Ordering::Relaxed);
    }

    /// A request waits because of the limits. It is not under way yet.
    pub fn begin_limited(&self) {
        add(&self.limited.waiting, 1);
    }

    /// One that waited so is passed on or cancelled.
    pub fn end_limited(&self, waited: Duration) {
        let limited = &self.limited;
        limited.waiting.store(get(&limited.waiting) - 1, Ordering::Relaxed);
        add(&limited.waited, 1);
        add(&limited.nanoseconds, u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The limits, and what they did.
    pub fn limited(&self) -> Limited {
        let limited = &self.limited;
        Limited {
            iops: get(&limited.iops),
            bytes_per_second: get(&limited.bytes_per_second),
            waiting: get(&limited.waiting),
            waited: get(&limited.waited),
            time: Duration::from_nanos(get(&limited.nanoseconds)),
        }
    }

    /// How many requests are under way or wait for the device.
    pub fn in_flight(&self) -> u64 {
        get(&self.generations.older) + get(&self.generations.younger) + get(&self.waiting)
    }

    /// Since when the oldest of them has been there: then or a little later.
    pub fn oldest(&self) -> Option<Instant> {
        let since = [get(&self.generations.since), get(&self.waiting_since)];
        since.into_iter().filter(|since| *since > 0).min().map(Instant::from_nanos)
    }

    /// What requests of a kind came to.
    pub fn reading(&self, kind: Kind) -> Reading {
        let meter = &self.kinds[kind as usize];
        Reading {
            latencies: std::array::from_fn(|class| get(&meter.latencies[class])),
            time: Duration::from_nanos(get(&meter.nanoseconds)),
            bytes: get(&meter.bytes),
            errors: get(&meter.errors),
        }
    }
}

/// What requests of one kind came to, since the meter was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// How many took so long, by class. All together are all that were answered.
    pub latencies: [u64; CLASSES],
    /// All their latencies together.
    pub time: Duration,
    /// That those moved that were answered well.
    pub bytes: u64,
    /// How many were answered with an error.
    pub errors: u64,
}

/// The limits of a device, and what they did since the meter was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    /// Commands a second; 0 for no limit.
    pub iops: u64,
    /// Bytes a second; 0 for no limit.
    pub bytes_per_second: u64,
    /// How many requests wait now.
    pub waiting: u64,
    /// How many have waited.
    pub waited: u64,
    /// How long these waited, all together.
    pub time: Duration,
}

impl Reading {
    /// How many were answered.
    pub fn count(&self) -> u64 {
        self.latencies.iter().sum()
    }
}

/// The class of a latency.
fn class_of(nanoseconds: u64) -> usize {
    let microseconds = nanoseconds.div_ceil(1000).max(1);
    let class = u64::BITS - (microseconds - 1).leading_zeros();
    (class as usize).min(CLASSES - 1)
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Only one thread writes, so a plain addition does.
fn add(counter: &AtomicU64, count: u64) {
    counter.store(get(counter).wrapping_add(count), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(nanoseconds: u64) -> Instant {
        Instant::from_nanos(nanoseconds)
    }

    #[test]
    fn latencies_are_in_the_class_of_the_next_power_of_two() {
        let microsecond = 1000;
        for (nanoseconds, class) in [(0, 0), (1, 0), (1000, 0), (1001, 1), (2000, 1), (2001, 2), (4000, 2), (4001, 3)] {
            assert_eq!(class_of(nanoseconds), class, "{nanoseconds} ns");
        }
        assert_eq!(class_of((1 << 23) * microsecond), 23);
        assert_eq!(class_of((1 << 23) * microsecond + 1), 24);
        assert_eq!(class_of(u64::MAX), CLASSES - 1);
    }

    #[test]
    fn the_age_is_that_of_the_oldest_request() {
        let meter = Meter::default();
        assert_eq!((meter.in_flight(), meter.oldest()), (0, None));
        meter.begin(1, at(10));
        meter.begin(5, at(20));
        meter.begin(6, at(30));
        assert_eq!((meter.in_flight(), meter.oldest()), (3, Some(at(10))));
        meter.end(5);
        assert_eq!((meter.in_flight(), meter.oldest()), (2, Some(at(10))));
        meter.end(1);
        // Since 20 rather than 30: the younger generation began then.
        assert_eq!((meter.in_flight(), meter.oldest()), (1, Some(at(20))));
        meter.begin(7, at(40));
        meter.end(6);
        assert_eq!((meter.in_flight(), meter.oldest()), (1, Some(at(40))));
        meter.end(7);
        assert_eq!((meter.in_flight(), meter.oldest()), (0, None));
    }

    /// Against a list, with any order of ends: never too young, and too old by at most the longest request.
    #[test]
    fn the_age_is_never_too_small_and_hardly_too_large() {
        let meter = Meter::default();
        let (mut under_way, mut random, mut longest) = (Vec::<(u64, u64)>::new(), 1_u64, 0);
        for number in 1..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let now = number * 10;
            if under_way.is_empty() || (random >> 33) % 2 == 0 {
                meter.begin(number, at(now));
                under_way.push((number, now));
            } else {
                // Often one of the first, so that the oldest do not stay for ever.
                let index = (random >> 40) as usize % under_way.len().min(1 + (random >> 60) as usize);
                let (ended, since) = under_way.remove(index);
                longest = longest.max(now - since);
                meter.end(ended);
            }
            let oldest = under_way.iter().map(|(_, since)| *since).min();
            longest = longest.max(oldest.map_or(0, |oldest| now - oldest));
            assert_eq!(meter.in_flight(), under_way.len() as u64);
            match (oldest, meter.oldest()) {
                (None, None) => {}
                (Some(oldest), Some(told)) => {
                    assert!(told.as_nanos() <= oldest && oldest - told.as_nanos() <= longest, "{number}");
                }
                (oldest, told) => panic!("{number}: {oldest:?}, told {told:?}"),
            }
        }
    }

    #[test]
    fn what_waits_for_the_device_counts() {
        let meter = Meter::default();
        meter.wait(at(5));
        meter.wait(at(9));
        assert_eq!((meter.in_flight(), meter.oldest()), (2, Some(at(5))));
        meter.begin(1, at(20));
        meter.end_waiting();
        assert_eq!((meter.in_flight(), meter.oldest()), (1, Some(at(20))));
    }

    #[test]
    fn answers_are_counted_by_kind() {
        let meter = Meter::default();
        meter.answer(Kind::Read, Duration::from_micros(3), Some(4096));
        meter.answer(Kind::Read, Duration::from_micros(100), Some(4096));
        meter.answer(Kind::Write, Duration::from_micros(1), None);
        let reads = meter.reading(Kind::Read);
        assert_eq!((reads.count(), reads.bytes, reads.errors), (2, 8192, 0));
        assert_eq!((reads.latencies[2], reads.latencies[7]), (1, 1));
        assert_eq!(reads.time, Duration::from_micros(103));
        let writes = meter.reading(Kind::Write);
        assert_eq!((writes.count(), writes.bytes, writes.errors), (1, 0, 1));
    }
}
