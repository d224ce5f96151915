//! What a process uses, as the kernel counts it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::thread::ProcessorTime;

/// By thread, since it began.
type Used = BTreeMap<String, (ProcessorTime, u64)>;

/// What was used in a while.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    /// Of one core.
    pub(super) share: f64,
    /// A second, all threads together.
    pub(super) wakeups: f64,
}

/// Watches a process for a while.
pub(super) async fn watch(pid: u32, time: Duration) -> anyhow::Result<Usage> {
    let (before, begun) = (used(pid)?, Instant::now());
    tokio::time::sleep(time).await;
    let (after, seconds) = (used(pid)?, begun.elapsed().as_secs_f64());
    let (mut processor, mut sleeps) = (Duration::ZERO, 0);
    // Of a thread that has ended meanwhile nobody knows any more what it used.
    for (thread, (time, slept)) in after {
        let (time_before, slept_before) = before.get(&thread).copied().unwrap_or_default();
        processor += (time - time_before).total;
        sleeps += slept - slept_before.min(slept);
    }
    Ok(Usage { share: processor.as_secs_f64() / seconds, wakeups: sleeps as f64 / seconds })
}

/// Waits until a process has little to do: what was asked of it before is over. A minute at most.
pub(super) async fn settle(pid: u32) -> anyhow::Result<()> {
    const LITTLE: f64 = 2.0;
    for _ in 0..12 {
        if watch(pid, Duration::from_secs(5)).await?.wakeups < LITTLE {
            break;
        }
    }
    Ok(())
}

/// Mebibytes of memory that a process has.
pub(super) fn resident(pid: u32) -> anyhow::Result<f64> {
    let status = read(&PathBuf::from(format!("/proc/{pid}/status")))?;
    let kib = number_after(&status, "VmRSS:").context("the kernel does not tell the resident memory")?;
    Ok(kib as f64 / 1024.0)
}

/// What each thread has used: its processor time, and how often it went to sleep, which is how often it woke.
fn used(pid: u32) -> anyhow::Result<Used> {
    let mut all = Used::default();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).context("the daemon does not run")? {
        let folder = thread?.path();
        // One that has ended since it was listed.
        let Ok(status) = read(&folder.join("status")) else { continue };
        let Ok(time) = ProcessorTime::of_thread(&folder) else { continue };
        let sleeps = number_after(&status, "\nvoluntary_ctxt_switches:").context("no count of switches")?;
        all.insert(folder.display().to_string(), (time, sleeps));
    }
    Ok(all)
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn number_after(text: &str, key: &str) -> Option<u64> {
    text.split_once(key)?.1.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_keys() {
        let status = "Name:\tx\nVmRSS:\t    2048 kB\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t9\n";
        assert_eq!(number_after(status, "VmRSS:"), Some(2048));
        assert_eq!(number_after(status, "\nvoluntary_ctxt_switches:"), Some(7));
        assert_eq!(number_after(status, "VmSwap:"), None);
    }

    #[test]
    fn a_process_that_sleeps_has_woken_once_more() {
        let own = fs::canonicalize("/proc/thread-self").expect("a thread").display().to_string();
        let before = used(std::process::id()).expect("our own")[&own];
        std::thread::sleep(Duration::from_millis(1));
        let after = used(std::process::id()).expect("our own")[&own];
        assert!(after.1 > before.1, "{before:?} {after:?}");
        assert!(resident(std::process::id()).expect("our own") > 0.5);
    }
}
