//! What hosts feel of copies, and how much a copy leaves them.
//!
//! A copy goes on in steps. While hosts ask for something there is one step at a time, a small one, and a break after it: the share of
//! time that copies get. Requests that met no step tell how fast the volume is without a copy, all of them how fast it is with one. Where
//! the one is much slower than the other copies get a smaller share, and a larger one otherwise.

use std::time::Duration;

use reactor::Instant;

use crate::regions::REGION;

/// Bytes of a step while hosts ask for something: what one of their requests may have to wait for.
const SMALL_STEP: u64 = 128 << 10;

/// For how long after a request hosts count as active.
const ACTIVE: Duration = Duration::from_millis(50);

/// The share of time that copies get beside active hosts: at first, at most, at least. The least is what a rebuild comes to its end with.
const FIRST_SHARE: f64 = 0.125;
const MOST: f64 = 0.5;
const LEAST: f64 = 1.0 / 64.0;

/// No break is longer.
const LONGEST_BREAK: Duration = Duration::from_millis(500);

/// After how many requests the share is set anew.
const WINDOW: u32 = 400;
/// Fewer that met no copy tell nothing.
const ENOUGH: u32 = 50;
/// Of older ones half is forgotten at this count.
const KEPT: u32 = 8192;

/// What is compared: one request of so many takes longer. The promise is about one of 100.
const RARE: u32 = 200;
/// That may grow to this by copies, below the factor of 2 that is promised.
const TOLERATED: f64 = 1.5;

/// The latencies of a volume, and the share of time of its copies.
#[derive(Debug)]
pub(crate) struct Guard {
    /// Of requests that met no step of a copy.
    without: Latencies,
    /// Of all since the share was set.
    all: Latencies,
    /// Steps under way.
    steps: u32,
    /// The end of the last one.
    last_step: Instant,
    last_request: Instant,
    share: f64,
    /// When the next step may begin beside active hosts.
    next: Instant,
}

impl Guard {
    pub(crate) fn new() -> Self {
        Self {
            without: Latencies::new(),
            all: Latencies::new(),
            steps: 0,
            last_step: Instant::default(),
            last_request: Instant::default(),
            share: FIRST_SHARE,
            next: Instant::default(),
        }
    }

    /// A request of a host has ended.
    pub(crate) fn observe(&mut self, since: Instant, now: Instant) {
        self.last_request = now;
        let met = self.steps > 0 || self.last_step > since;
        if !met {
            self.without.add(now - since);
            if self.without.count >= KEPT {
                self.without.halve();
            }
        }
        // Without a copy there is nothing to set.
        if met || self.all.count > 0 {
            self.all.add(now - since);
            if self.all.count >= WINDOW {
                self.set_share();
            }
        }
    }

    fn set_share(&mut self) {
        let slowed = self.without.count < ENOUGH || self.all.tail() > self.without.tail() * TOLERATED;
        self.share = if slowed { (self.share / 2.0).max(LEAST) } else { (self.share * 1.1).min(MOST) };
        self.all = Latencies::new();
    }

    /// How long the next step has to wait; none if it waits for the end of another one.
    pub(crate) fn wait(&self, now: Instant, in_flight: bool) -> Option<Duration> {
        match (self.is_active(now, in_flight), self.steps) {
            (false, _) => Some(Duration::ZERO),
            (true, 0) => Some(self.next - now),
            (true, _) => None,
        }
    }

    /// Bytes of the step that begins now.
    pub(crate) fn begin_step(&mut self, now: Instant, in_flight: bool) -> u64 {
        self.steps += 1;
        if self.is_active(now, in_flight) { SMALL_STEP } else { REGION }
    }

    pub(crate) fn end_step(&mut self, begun: Instant, now: Instant) {
        self.steps -= 1;
        self.last_step = now;
        let rest = (now - begun).mul_f64(1.0 / self.share - 1.0);
        self.next = now + rest.min(LONGEST_BREAK);
    }

    fn is_active(&self, now: Instant, in_flight: bool) -> bool {
        in_flight || (self.last_request != Instant::default() && now - self.last_request < ACTIVE)
    }
}

/// Eight to an octave, from a microsecond on.
const BUCKETS: usize = 8 * 25;

/// How many requests took how long.
#[derive(Debug)]
struct Latencies {
    counts: [u32; BUCKETS],
    count: u32,
}

impl Latencies {
    const fn new() -> Self {
        Self { counts: [0; BUCKETS], count: 0 }
    }

    fn add(&mut self, latency: Duration) {
        let microseconds = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
        let octave = microseconds.ilog2() as usize;
        // The three bits below the highest one.
        let eighth = ((u128::from(microseconds) << 3 >> octave) & 7) as usize;
        self.counts[(octave * 8 + eighth).min(BUCKETS - 1)] += 1;
        self.count += 1;
    }

    /// What one of [`RARE`] exceeds, in microseconds: the upper end of its bucket.
    fn tail(&self) -> f64 {
        let above = self.count / RARE;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate().rev() {
            seen += count;
            if seen > above {
                return 2f64.powi((index / 8) as i32) * (1.0 + (index % 8 + 1) as f64 / 8.0);
            }
        }
        0.0
    }

    fn halve(&mut self) {
        self.counts.iter_mut().for_each(|count| *count /= 2);
        self.count = self.counts.iter().sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_micros(100);

    fn at(microseconds: u64) -> Instant {
        Instant::from_nanos(microseconds * 1000)
    }

    /// One request after the other, one step after the other, each as soon as it may, from `start` for `length`. A request that meets a step takes
    /// `slow`. Gives the share of time that steps had and the share of requests that met one.
    fn run(guard: &mut Guard, start: Instant, length: Duration, slow: Duration) -> (f64, f64) {
        let step = Duration::from_micros(500);
        let (mut now, mut copied, mut requests, mut met) = (start, Duration::ZERO, 0.0, 0.0);
        while now - start < length {
            let begins = guard.wait(now, true) == Some(Duration::ZERO);
            let began = now;
            if begins {
                assert_eq!(guard.begin_step(now, true), SMALL_STEP);
                assert_eq!(guard.wait(now, true), None, "one at a time");
                copied += step;
                met += 1.0;
            }
            now += if begins { slow } else { QUICK };
            guard.observe(began, now);
            requests += 1.0;
            if begins {
                guard.end_step(began, began + step);
            }
        }
        (copied.as_secs_f64() / length.as_secs_f64(), met / requests)
    }

    #[test]
    fn a_copy_that_slows_hosts_down_leaves_them_nearly_all_of_the_time() {
        let mut guard = Guard::new();
        run(&mut guard, at(1_000_000), Duration::from_secs(2), 20 * QUICK);
        let (share, met) = run(&mut guard, at(4_000_000), Duration::from_secs(4), 20 * QUICK);
        assert!(met < 0.01, "{met}");
        assert!(share > 0.01, "it comes to its end all the same: {share}");
    }

    #[test]
    fn a_copy_that_hosts_do_not_feel_gets_half_of_the_time() {
        let mut guard = Guard::new();
        run(&mut guard, at(1_000_000), Duration::from_secs(2), QUICK);
        let (share, _) = run(&mut guard, at(4_000_000), Duration::from_secs(4), QUICK);
        assert!(share > 0.3, "{share}");
    }

    #[test]
    fn without_hosts_steps_are_large_and_have_no_breaks() {
        let mut guard = Guard::new();
        let now = at(5_000_000);
        assert_eq!(guard.begin_step(now, false), REGION);
        assert_eq!(guard.wait(now, false), Some(Duration::ZERO), "beside another one");
        guard.end_step(now, at(5_100_000));
        assert_eq!(guard.wait(at(5_100_000), false), Some(Duration::ZERO));
        guard.observe(at(5_100_000), at(5_100_100));
        assert!(guard.wait(at(5_100_200), false) > Some(Duration::ZERO), "a host was here just now");
        assert_eq!(guard.wait(at(5_200_000), false), Some(Duration::ZERO));
    }

    #[test]
    fn percentiles_are_right_within_an_eighth() {
        let mut latencies = Latencies::new();
        (1..=1000u64).for_each(|number| latencies.add(Duration::from_micros(number * 10)));
        let tail = latencies.tail();
        assert!((9_950.0..=9_950.0 * 1.125).contains(&tail), "{tail}");
        latencies.halve();
        assert!(latencies.count < 600);
        latencies.add(Duration::MAX);
        latencies.add(Duration::ZERO);
    }
}
