//! Stories of backups: whole jobs against stores that fail, devices that lose power, and others who use the same store.
//!
//! Time is virtual (tokio's paused clock) wherever no real socket takes part.

#![forbid(unsafe_code)]

mod basics;
mod faults;
mod fixtures;
mod folder;
mod gone;
mod hostile;
mod interleavings;
mod kills;
mod locks;
mod memory;
mod outages;
mod processes;
mod proxy;
mod radosgw;
mod removal;
mod s3;
mod s3_server;
mod s3s;
mod standby;
mod volume;

use std::sync::Arc;
use std::time::Duration;

use backup::create::{BackupJob, BackupRequest, Options, Outcome};
use backup::progress::Progress;
use backup::remove::Removed;
use backup::restore::{self, RestoreJob, RestoreRequest};
use backup::source::{Device, OpenStore, Source};
use backup::target::Store;
use backup::verify::{Report, verify};

pub(crate) const MIB: u64 = 1 << 20;

/// Bytes of a block in most stories.
pub(crate) const BLOCK: u64 = 2 * MIB;

/// A random number generator that repeats itself.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Whether tests that try a part try all.
pub(crate) fn long() -> bool {
    std::env::var_os("ASHLAR_LONG_TESTS").is_some()
}

/// A store as jobs take it.
pub(crate) fn target(store: &Arc<impl Store + 'static>) -> Arc<dyn Store> {
    Arc::clone(store) as Arc<dyn Store>
}

/// Polls a future so many times, and then drops it: None if it was not done by then.
pub(crate) async fn polls<T>(polls: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return std::task::Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// A folder that goes with its value: in memory where there is such a place, since killed jobs need no disk that outlives the machine.
pub(crate) fn folder() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a folder")
}

/// Runs a backup to its end.
pub(crate) async fn back_up(store: &dyn OpenStore, source: &dyn Source, request: BackupRequest) -> Outcome {
    let folder = folder();
    let mut job = BackupJob::create(folder.path(), request, Options::default()).expect("a job");
    job.run(store, source).await.expect("its record can be written")
}

/// Runs a full restore to its end.
pub(crate) async fn restore(
    store: &dyn OpenStore,
    device: &dyn Device,
    volume: &str,
    backup: &str,
) -> restore::Outcome {
    let folder = folder();
    let request = RestoreRequest::new("test", volume, backup, "device");
    let mut job = RestoreJob::create(folder.path(), request, Options::default()).expect("a job");
    job.run(store, device).await.expect("its record can be written")
}

/// Reads all of a backup.
pub(crate) async fn check(store: &dyn OpenStore, volume: &str, backup: &str) -> Report {
    let folder = folder();
    let (options, progress) = (Options::default(), Progress::default());
    let scratch = folder.path().join("scratch");
    let report = verify(store, volume, backup, &scratch, &options, &progress).await;
    report.expect("a store without outages")
}

/// Removes a backup, if one is given, and collects; again until locks of those who were killed have expired and outages are over.
pub(crate) async fn remove(store: &dyn OpenStore, volume: &str, backup: Option<&str>) -> Removed {
    let folder = folder();
    loop {
        match backup::remove::remove(store, volume, backup, &folder.path().join("scratch")).await {
            Ok(removed) => return removed,
            Err(error) => assert!(!error.is_terminal(), "{error}"),
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
}

/// Longer than any job of these stories takes: a story that does not come to its end fails.
pub(crate) async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(7 * 24 * 3600), future).await.expect("an end")
}
