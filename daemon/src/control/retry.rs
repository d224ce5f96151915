//! Waiting between attempts: longer each time, never in step with others.

use std::time::Duration;

/// Pauses that double up to a limit, each shortened at random by up to a half.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// The first pause is `first` at most, none is longer than `longest`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// Waits for the next pause.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.pause()).await;
    }

    /// How long the next pause is.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.longest);
        let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
        pause - (pause / 2).mul_f64(random as f64 / u64::MAX as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(300));
        for longest in [100, 200, 300, 300] {
            let pause = backoff.pause();
            let longest = Duration::from_millis(longest);
            assert!((longest / 2..=longest).contains(&pause), "{pause:?} for {longest:?}");
        }
    }
}
