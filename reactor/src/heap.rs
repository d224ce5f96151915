//! Memory that was freed and that the allocator keeps.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Whether someone is at it.
static BUSY: AtomicBool = AtomicBool::new(false);

/// Gives freed memory back to the system, on a thread of its own: the allocator keeps what lies between things that are still
/// used, which can be all of it after many small ones are freed. For those who have freed a lot and will not need it soon.
///
/// Takes some milliseconds for 100 MiB, in which this thread's allocations may wait. Does nothing where the allocator has no such call.
pub fn give_back_freed_memory() {
    if BUSY.swap(true, Ordering::Relaxed) {
        return;
    }
    let started = thread::Builder::new().name("heap".to_owned()).spawn(|| {
        trim();
        BUSY.store(false, Ordering::Relaxed);
    });
    if started.is_err() {
        // Too many threads: it stays with the allocator until the next time.
        BUSY.store(false, Ordering::Relaxed);
    }
}

#[cfg(all(target_env = "gnu", not(miri)))]
fn trim() {
    // SAFETY: touches free memory only; glibc locks each arena.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_env = "gnu", not(miri))))]
fn trim() {}

#[cfg(all(test, target_env = "gnu", not(miri)))]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn what_was_freed_between_things_in_use_is_given_back() {
        const BLOCKS: usize = 60_000;
        let mut blocks: Vec<Option<Box<[u8]>>> = (0..BLOCKS).map(|_| Some(vec![1; 1000].into())).collect();
        // Every 64 KB something stays.
        blocks.iter_mut().enumerate().filter(|(index, _)| index % 64 != 0).for_each(|(_, block)| *block = None);
        let before = resident();
        let limit = Instant::now() + Duration::from_secs(60);
        while resident() > before - (BLOCKS as u64 * 1000) / 2 {
            assert!(Instant::now() < limit, "{} of {before} bytes are still here", resident());
            give_back_freed_memory();
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(blocks.iter().flatten().map(|block| u64::from(block[0])).sum::<u64>(), BLOCKS.div_ceil(64) as u64);
    }

    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux 4.5");
        line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10
    }
}
