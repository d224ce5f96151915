//! What copies may take: places on their node, and bytes a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reactor::Instant;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How much may be saved up for later while nothing is spent.
const BURST: Duration = Duration::from_millis(100);

/// How the rebuilds of one volume work; can be changed at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RebuildSettings {
    /// They stay where they are, and no other one begins.
    pub paused: bool,
    /// Bytes a second that they read or send together; 0 for no limit.
    pub rate: u64,
}

/// What the rebuilds of all volumes of a node share, on whichever reactor they are.
#[derive(Debug)]
pub struct Rebuilds {
    count: usize,
    places: Arc<Semaphore>,
    /// As many again for replicas that settle: it does not take long, and must not wait for what does.
    settling: Arc<Semaphore>,
    bucket: Bucket,
}

impl Rebuilds {
    /// At most `count` at once, others wait for their turn; together they read or send at most `rate` bytes a second, 0 for no limit.
    pub fn new(count: usize, rate: u64) -> Arc<Self> {
        let count = count.clamp(1, Semaphore::MAX_PERMITS);
        let places = || Arc::new(Semaphore::new(count));
        Arc::new(Self { count, places: places(), settling: places(), bucket: Bucket::new(rate) })
    }

    /// Changes the rate, also for those that run.
    pub fn set_rate(&self, rate: u64) {
        self.bucket.set_rate(rate);
    }

    /// The rate now.
    pub fn rate(&self) -> u64 {
        self.bucket.rate()
    }

    /// How many run at once.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many places are free for rebuilds.
    pub fn free(&self) -> usize {
        self.places.available_permits()
    }

    pub(crate) fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    fn places(&self, settles: bool) -> Arc<Semaphore> {
        Arc::clone(if settles { &self.settling } else { &self.places })
    }

    /// A place, if one is free.
    pub(crate) fn try_place(&self, settles: bool) -> Option<OwnedSemaphorePermit> {
        self.places(settles).try_acquire_owned().ok()
    }

    /// Waits for a place; those who ask first get it first. It is free again when the answer is dropped.
    pub(crate) async fn place(&self, settles: bool) -> OwnedSemaphorePermit {
        self.places(settles).acquire_owned().await.expect("the semaphore is never closed")
    }
}

/// A token bucket that lends: what was spent above the rate keeps the next one waiting. So nobody has to wait in the middle of
/// something, where others would wait for him.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Bytes a second; 0 for no limit.
    rate: AtomicU64,
    /// Until when all that was spent is paid for, in nanoseconds of the reactors' clock.
    paid: AtomicU64,
}

impl Bucket {
    pub(crate) const fn new(rate: u64) -> Self {
        Self { rate: AtomicU64::new(rate), paid: AtomicU64::new(0) }
    }

    /// Another rate. What was spent at the old one is forgiven, or a low rate would be felt long after its end.
    pub(crate) fn set_rate(&self, rate: u64) {
        if self.rate.swap(rate, Ordering::Relaxed) != rate {
            self.paid.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    /// How long the next one has to wait.
    pub(crate) fn wait(&self, now: Instant) -> Duration {
        Instant::from_nanos(self.paid.load(Ordering::Relaxed)) - now
    }

    pub(crate) fn spend(&self, bytes: u64, now: Instant) {
        let rate = self.rate();
        if rate == 0 {
            return;
        }
        let cost = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let cost = u64::try_from(cost).unwrap_or(u64::MAX);
        let earliest = now.as_nanos().saturating_sub(BURST.as_nanos() as u64);
        let later = |paid: u64| Some(paid.max(earliest).saturating_add(cost));
        // It never gives none, so it cannot fail.
        let _ = self.paid.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Instant {
        Instant::from_nanos(milliseconds * 1_000_000)
    }

    #[test]
    fn over_time_no_more_is_spent_than_the_rate() {
        let bucket = Bucket::new(1_000_000);
        let (mut now, mut spent) = (at(5_000), 0);
        while now < at(15_000) {
            bucket.spend(50_000, now);
            spent += 50_000;
            now += bucket.wait(now).max(Duration::from_millis(1));
        }
        assert!((10_000_000..=10_200_000).contains(&spent), "{spent}");
    }

    #[test]
    fn what_was_not_spent_is_saved_for_a_moment_only() {
        let bucket = Bucket::new(1_000_000);
        bucket.spend(1_000, at(1_000));
        bucket.spend(100_000, at(60_000));
        assert_eq!(bucket.wait(at(60_000)), Duration::ZERO, "a tenth of a second's worth");
        bucket.spend(100_000, at(60_000));
        assert_eq!(bucket.wait(at(60_000)), Duration::from_millis(100));
    }

    #[test]
    fn a_higher_rate_counts_at_once() {
        let bucket = Bucket::new(1);
        bucket.spend(1 << 30, at(0));
        assert!(bucket.wait(at(1)) > Duration::from_secs(1 << 29));
        bucket.set_rate(1 << 30);
        assert_eq!(bucket.wait(at(1)), Duration::ZERO);
        bucket.set_rate(0);
        bucket.spend(u64::MAX, at(1));
        assert_eq!(bucket.wait(at(1)), Duration::ZERO);
    }
}
