//! A limit of bytes a second, for all who share it.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// A limit of bytes a second; None is no limit.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Option<u64>,
    /// When what was asked for so far is paid off.
    free: Mutex<Instant>,
}

impl Pace {
    pub(crate) fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.filter(|rate| *rate > 0), free: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` more are within the limit.
    pub(crate) async fn take(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let turn = {
            let Ok(mut free) = self.free.lock() else { return };
            let turn = (*free).max(Instant::now());
            *free = turn + Duration::from_secs_f64(bytes as f64 / rate as f64);
            turn
        };
        sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_come_at_the_rate() {
        let pace = Pace::new(Some(1000));
        let begin = Instant::now();
        for _ in 0..11 {
            pace.take(500).await;
        }
        // The first is free, ten wait for half a second each.
        assert_eq!(begin.elapsed().as_millis() / 10, 500);
        Pace::new(None).take(u64::MAX).await;
    }
}
