//! What hosts feel of copies, and how much a copy leaves them.
//!
//! A copy goes on in steps. While hosts ask for something there is one step at a time, a small one, and a break after it: the share of
//! time that copies get. Requests that met no step tell how long one in a hundred takes without a copy. Where copies make
//! more of them slow than those they share the time with are by themselves, copies get a smaller share, and a larger one otherwise.

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
const LEAST: f64 = 1.0 / 32.0;

/// No break is longer.
const LONGEST_BREAK: Duration = Duration::from_millis(100);

/// After how many requests the share is set anew.
const WINDOW: u32 = 400;
/// Of older latencies without a copy half is forgotten at this count.
const KEPT: u32 = 2048;

/// A request is slow that takes longer than the 99th percentile without a copy, times this: below the factor of 2 that is promised.
const TOLERATED: f64 = 1.5;
/// The share of all requests that copies may make slow: half of the hundredth that the promise is about.
const MAY_BE_SLOW: f64 = 0.005;

/// The latencies of a volume, and the share of time of its copies.
#[derive(Debug)]
pub(crate) struct Guard {
    /// Of requests that met no step of a copy.
    without: Latencies,
    /// What is slow since the share was set.
    slow_above: Duration,
    /// Requests since then that met no step, and those that did.
    apart: Counted,
    met: Counted,
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
            slow_above: LONGEST,
            apart: Counted::default(),
            met: Counted::default(),
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
        let (met, latency) = (self.steps > 0 || self.last_step > since, now - since);
        if !met {
            self.without.add(latency);
            if self.without.count >= KEPT {
                self.without.halve();
            }
        }
        if met && self.met.all == 0 {
            self.slow_above = self.without.p99().mul_f64(TOLERATED);
        }
        // Without a copy there is nothing to set.
        if met || self.met.all > 0 {
            let counted = if met { &mut self.met } else { &mut self.apart };
            counted.all += 1;
            counted.slow += u32::from(latency > self.slow_above);
            if self.met.all + self.apart.all >= WINDOW {
                self.set_share();
            }
        }
    }

    fn set_share(&mut self) {
        // Whatever else slows the volume down now hits both alike.
        let by_themselves = f64::from(self.met.all) * self.apart.slow_share();
        let by_copies = (f64::from(self.met.slow) - by_themselves) / f64::from(self.met.all + self.apart.all);
        let slowed = by_copies > MAY_BE_SLOW;
        self.share = if slowed { (self.share / 2.0).max(LEAST) } else { (self.share * 1.1).min(MOST) };
        (self.met, self.apart) = (Counted::default(), Counted::default());
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

/// How many requests there were, and how many of them were slow.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    all: u32,
    slow: u32,
}

impl Counted {
    fn slow_share(self) -> f64 {
        f64::from(self.slow) / f64::from(self.all.max(1))
    }
}

/// No request is slower.
const LONGEST: Duration = Duration::from_secs(1 << 20);

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

    /// The upper end of the bucket that has it; the longest time of all if nothing is known.
    fn p99(&self) -> Duration {
        let above = self.count / 100;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate().rev() {
            seen += count;
            if seen > above {
                let microseconds = 2f64.powi((index / 8) as i32) * (1.0 + (index % 8 + 1) as f64 / 8.0);
                return Duration::from_secs_f64(microseconds / 1e6);
            }
        }
        LONGEST
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
    fn a_copy_is_not_blamed_for_what_slows_down_everything() {
        // Since a moment ago one request in twenty is slow, whether it meets a step or not.
        let mut guard = Guard::new();
        let mut now = at(1_000_000);
        for request in 0..40_000u32 {
            let begins = request >= 3000 && guard.wait(now, true) == Some(Duration::ZERO);
            let began = now;
            if begins {
                guard.begin_step(now, true);
            }
            now += if request >= 3000 && request % 20 == 7 { 30 * QUICK } else { QUICK };
            guard.observe(began, now);
            if begins {
                guard.end_step(began, now);
            }
        }
        assert!(guard.share > FIRST_SHARE, "{}", guard.share);
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
        let p99 = latencies.p99().as_micros();
        assert!((9_900..=9_900 * 9 / 8).contains(&p99), "{p99}");
        assert_eq!(Latencies::new().p99(), LONGEST);
        latencies.halve();
        assert!(latencies.count < 600);
        latencies.add(Duration::MAX);
        latencies.add(Duration::ZERO);
    }
}
