//! Pauses between attempts: they double up to a longest one, and vary, so that many who wait do not come at once.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use crate::error::Error;

/// The first pause and the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pauses {
    /// The first.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), longest: Duration::from_secs(300) }
    }
}

/// The pauses of one thing that is tried.
#[derive(Clone, Debug)]
pub struct Backoff {
    pauses: Pauses,
    next: Duration,
    attempt: u32,
}

impl Backoff {
    /// Before the first attempt.
    pub const fn new(pauses: Pauses) -> Self {
        Self { next: pauses.first, pauses, attempt: 0 }
    }

    /// The pause after another attempt that failed: half of it is certain, half by chance.
    #[allow(clippy::should_implement_trait, reason = "there is always a next one, unlike with iterators")]
    pub fn next(&mut self) -> Duration {
        let half = self.next / 2;
        self.next = (self.next * 2).min(self.pauses.longest);
        self.attempt = self.attempt.saturating_add(1);
        half + half.mul_f64(chance())
    }

    /// The longest pause, for what nobody expects to mend itself.
    pub fn longest(&mut self) -> Duration {
        self.next = self.pauses.longest;
        self.next()
    }

    /// The pause of one who looks every `interval` anyway and never gives up. What is terminal elsewhere may be mended, and a volume
    /// without a backup gets its first one: it looks for that about as often, or less often, but never less often than with the longest pause.
    pub fn between_looks(&mut self, error: &Error, interval: Duration) -> Duration {
        if error.is_terminal() {
            self.next = self.next.max(interval).min(self.pauses.longest);
        }
        self.next()
    }

    /// How many attempts failed.
    pub const fn attempt(&self) -> u32 {
        self.attempt
    }

    /// An attempt came further: what fails next fails for the first time.
    pub const fn reset(&mut self) {
        self.next = self.pauses.first;
        self.attempt = 0;
    }
}

/// From 0 to 1.
fn chance() -> f64 {
    // Each state of a hasher is another: that is randomness enough for pauses.
    let random = RandomState::new().build_hasher().finish() >> 32;
    random as f64 / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn pauses_double_up_to_the_longest_and_vary_by_half() {
        let mut backoff = Backoff::new(Pauses { first: Duration::from_secs(1), longest: Duration::from_secs(10) });
        for seconds in [1, 2, 4, 8, 10, 10] {
            let pause = backoff.next();
            let whole = Duration::from_secs(seconds);
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?} of {whole:?}");
        }
        assert_eq!(backoff.attempt(), 6);
        backoff.reset();
        assert!(backoff.next() <= Duration::from_secs(1));
    }

    #[test]
    fn who_looks_at_intervals_looks_no_more_often_and_not_for_ever_less() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new(Pauses { first: seconds(1), longest: seconds(10) });
        let (gone, busy) = (Error::new(Kind::NotFound, "no volume"), Error::new(Kind::Server, "no answer"));
        assert!(backoff.between_looks(&busy, seconds(6)) <= seconds(1), "as with others");
        let pause = backoff.between_looks(&gone, seconds(6));
        assert!(pause >= seconds(3) && pause <= seconds(6), "{pause:?}");
        for _ in 0..5 {
            let pause = backoff.between_looks(&gone, seconds(3600));
            assert!(pause >= seconds(5) && pause <= seconds(10), "{pause:?}");
        }
        assert_eq!(backoff.attempt(), 7);
    }

    #[test]
    fn those_who_wait_do_not_come_at_once() {
        let pauses: Vec<_> = (0..20).map(|_| Backoff::new(Pauses::default()).next()).collect();
        assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{pauses:?}");
    }
}
