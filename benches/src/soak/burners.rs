//! Threads that want all the processor time that they can get.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Context;

/// The kernel counts the time of all cores in hundredths of a second.
const TICKS: f64 = 100.0;

/// They end when it is dropped.
pub(super) struct Burners {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Burners {
    pub(super) fn start(count: usize) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let burn = |_| {
            let ended = Arc::clone(&ended);
            std::thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..count).map(burn).collect();
        Self { ended, threads }
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // They do not panic.
            let _ = thread.join();
        }
    }
}

/// Seconds that the machine's cores had nothing to do, together, since it was started. Waiting for a disk is nothing to do.
pub(super) fn idle_time() -> anyhow::Result<f64> {
    let all = fs::read_to_string("/proc/stat").context("the kernel does not tell what its cores do")?;
    parse_idle(&all).context("/proc/stat begins with no line for all cores")
}

fn parse_idle(stat: &str) -> Option<f64> {
    let mut fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().skip(3);
    let (idle, waiting): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((idle + waiting) as f64 / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_what_the_first_line_says() {
        let stat = "cpu  100 5 50 900 100 0 3 0 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(parse_idle(stat), Some(10.0));
        assert_eq!(parse_idle("intr 1 2"), None);
    }
}
