//! Somebody who asks all the time whether the daemon is live.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use integration::probe;

const PAUSE: Duration = Duration::from_millis(20);

/// A thread that probes until its end.
pub(super) struct Prober {
    ended: Arc<AtomicBool>,
    probes: Arc<Mutex<Probes>>,
    thread: JoinHandle<()>,
}

/// What probes met.
#[derive(Clone, Debug, Default)]
pub(super) struct Probes {
    /// How long each took, in milliseconds.
    took: Vec<f64>,
    failed: usize,
}

impl Prober {
    pub(super) fn start(health: SocketAddr) -> Self {
        let (ended, probes) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Probes>>::default());
        let (end, into) = (Arc::clone(&ended), Arc::clone(&probes));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let live = probe(health, "/livez").is_ok_and(|page| page.status == 200);
                locked(&into).add(begun.elapsed(), live);
                std::thread::sleep(PAUSE);
            }
        });
        Self { ended, probes, thread }
    }

    pub(super) fn so_far(&self) -> Probes {
        locked(&self.probes).clone()
    }

    pub(super) fn end(self) -> anyhow::Result<Probes> {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the thread that probes panicked"))?;
        Ok(locked(&self.probes).clone())
    }
}

fn locked(probes: &Mutex<Probes>) -> MutexGuard<'_, Probes> {
    probes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Probes {
    fn add(&mut self, took: Duration, is_live: bool) {
        self.took.push(took.as_secs_f64() * 1000.0);
        self.failed += usize::from(!is_live);
    }

    pub(super) fn count(&self) -> usize {
        self.took.len()
    }

    pub(super) fn failed(&self) -> usize {
        self.failed
    }

    /// Milliseconds that so many of a hundred probes did not take longer than. Without any probe that is for ever.
    pub(super) fn percentile(&self, percent: f64) -> f64 {
        let mut took = self.took.clone();
        took.sort_by(f64::total_cmp);
        // From 0 to their number.
        let rank = (took.len() as f64 * percent / 100.0).ceil() as usize;
        took.get(rank.saturating_sub(1)).copied().unwrap_or(f64::INFINITY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_all_probes() {
        let mut probes = Probes::default();
        assert_eq!(probes.percentile(99.9), f64::INFINITY, "nobody was asked");
        (1..=1000).for_each(|ms| probes.add(Duration::from_millis(ms), ms != 7));
        assert_eq!([50.0, 99.9, 100.0].map(|percent| probes.percentile(percent)), [500.0, 999.0, 1000.0]);
        assert_eq!((probes.count(), probes.failed()), (1000, 1));
    }
}
