//! Limits of bytes a second: of one job, and of all that share one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// A limit of bytes a second. Whoever has a clone of it shares it, in the order of asking.
#[derive(Clone, Debug)]
pub struct Limit(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    rate: u64,
    /// When what was asked for so far is paid off.
    free: Mutex<Instant>,
}

impl Limit {
    /// This many bytes a second; 0 is no limit.
    pub fn new(rate: u64) -> Option<Self> {
        (rate > 0).then(|| Self(Arc::new(Budget { rate, free: Mutex::new(Instant::now()) })))
    }

    /// Waits until `bytes` more are within the limit.
    async fn take(&self, bytes: u64) {
        let turn = {
            let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*free).max(Instant::now());
            *free = turn + Duration::from_secs_f64(bytes as f64 / self.0.rate as f64);
            turn
        };
        sleep_until(turn).await;
    }
}

/// All limits of a job.
#[derive(Debug)]
pub(crate) struct Pace {
    own: Option<Limit>,
    shared: Option<Limit>,
}

impl Pace {
    pub(crate) fn new(rate: Option<u64>, shared: Option<Limit>) -> Self {
        Self { own: rate.and_then(Limit::new), shared }
    }

    /// Waits until `bytes` more are within all of them: a job's own one first, so that it takes nothing from others while it waits for that.
    pub(crate) async fn take(&self, bytes: u64) {
        for limit in [&self.own, &self.shared].into_iter().flatten() {
            limit.take(bytes).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_come_at_the_rate() {
        let pace = Pace::new(Some(1000), None);
        let begin = Instant::now();
        for _ in 0..11 {
            pace.take(500).await;
        }
        // The first is free, ten wait for half a second each.
        assert_eq!(begin.elapsed().as_millis() / 10, 500);
        Pace::new(None, None).take(u64::MAX).await;
        assert!(Limit::new(0).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_shares_a_limit_has_a_part_of_it_and_who_is_slow_leaves_the_rest() {
        let shared = Limit::new(1000);
        let (slow, fast) = (Pace::new(Some(100), shared.clone()), Pace::new(None, shared));
        let begin = Instant::now();
        let work = async |pace: &Pace, pieces| {
            for _ in 0..pieces {
                pace.take(100).await;
            }
            begin.elapsed().as_secs_f64()
        };
        let (slow, fast) = tokio::join!(work(&slow, 11), work(&fast, 90));
        // 1,100 bytes at 100 a second, and 9,000 with the 900 a second that are left.
        assert!((slow - 10.0).abs() < 0.3 && (fast - 10.0).abs() < 0.3, "{slow} and {fast} seconds");
    }
}
