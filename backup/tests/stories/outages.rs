//! Outages of every kind, in virtual time.

use std::sync::Arc;
use std::time::Duration;

use backup::Kind;
use backup::create::{BackupJob, BackupRequest, Options, Outcome};
use backup::progress::{Phase, Progress, Waiting};
use backup::restore::{Outcome as Restored, RestoreJob, RestoreRequest};

use crate::faults::Faulty;
use crate::memory::MemoryStore;
use crate::volume::{TestDevice, Volume};
use crate::{BLOCK, MIB, back_up, in_time, restore, target};

const HALF_HOUR: Duration = Duration::from_secs(1800);

fn request() -> BackupRequest {
    BackupRequest::new("test", "vol-1", "backup-1", "snap-1")
}

fn volume() -> Arc<Volume> {
    let volume = Volume::new(32 * MIB);
    (0..16).for_each(|block| volume.write(block * BLOCK, block));
    volume
}

/// Runs a job that is slowed down, so that outages come in the middle of it.
fn slowly() -> Options {
    Options { rate: Some(MIB), ..Options::default() }
}

/// What it waits for, once no attempt is under way: pauses are of random length.
async fn waiting(progress: &Progress) -> Waiting {
    let mut states = progress.subscribe();
    let state = states.wait_for(|state| matches!(state.phase, Phase::Waiting(_))).await.expect("told").clone();
    let Phase::Waiting(waiting) = state.phase else { unreachable!() };
    waiting
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_is_dead_for_half_an_hour_is_waited_for() {
    let store = Faulty::new(Arc::new(MemoryStore::new()), 1, 0);
    let target = target(&store);
    let snapshot = volume().snapshot("snap-1");
    let folder = crate::folder();
    let mut job = BackupJob::create(&folder.path().join("backup"), request(), slowly()).expect("a job");
    let mut device = TestDevice::garbage(32 * MIB);
    let progress = job.progress().clone();
    let outage = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        store.set_outage(Some(Kind::Resolve));
        tokio::time::sleep(HALF_HOUR).await;
        let waiting = waiting(&progress).await;
        assert_eq!(waiting.kind, Kind::Resolve);
        assert!(waiting.attempt > 5 && waiting.reason.contains("injected"), "{waiting:?}");
        store.set_outage(None);
    };
    let (outcome, ()) = in_time(async { tokio::join!(job.run(&target, &snapshot), outage) }).await;
    assert!(matches!(outcome, Ok(Outcome::Complete { .. })), "{outcome:?}");

    let request = RestoreRequest::new("test", "vol-1", "backup-1", "device");
    let mut job = RestoreJob::create(&folder.path().join("restore"), request, slowly()).expect("a job");
    let progress = job.progress().clone();
    let outage = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        store.set_outage(Some(Kind::Resolve));
        tokio::time::sleep(HALF_HOUR).await;
        let waiting = waiting(&progress).await;
        assert_eq!(waiting.kind, Kind::Resolve);
        store.set_outage(None);
    };
    let begin = tokio::time::Instant::now();
    let (outcome, ()) = in_time(async { tokio::join!(job.run(&target, &device), outage) }).await;
    assert!(matches!(outcome, Ok(Restored::Complete { .. })), "{outcome:?}");
    assert!(device.bytes() == snapshot.bytes());
    // The longest pause is five minutes: nobody waits much longer than the outage.
    assert!(begin.elapsed() < HALF_HOUR + Duration::from_secs(400), "{:?}", begin.elapsed());
    // What was written before the outage was not written again.
    let blocks = device.take_written() / BLOCK;
    assert!(blocks <= 16 + 1, "{blocks}");
    device = TestDevice::garbage(32 * MIB);
    drop(device);
}

#[tokio::test(start_paused = true)]
async fn every_outage_is_waited_for() {
    for kind in
        [Kind::Resolve, Kind::Connect, Kind::TimedOut, Kind::Throttled, Kind::Server, Kind::Interrupted, Kind::NoSpace]
    {
        let store = Faulty::new(Arc::new(MemoryStore::new()), 1, 0);
        let target = target(&store);
        let snapshot = volume().snapshot("snap-1");
        let outage = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            store.set_outage(Some(kind));
            tokio::time::sleep(Duration::from_secs(7200)).await;
            store.set_outage(None);
        };
        let (outcome, ()) = in_time(async { tokio::join!(back_up(&target, &snapshot, request()), outage) }).await;
        assert!(matches!(outcome, Outcome::Complete { .. }), "{kind}: {outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_refused_end_a_job_at_once() {
    let store = Faulty::new(Arc::new(MemoryStore::new()), 1, 0);
    let target = target(&store);
    store.set_outage(Some(Kind::Auth));
    let snapshot = volume().snapshot("snap-1");
    let outcome = in_time(back_up(&target, &snapshot, request())).await;
    assert!(matches!(outcome, Outcome::Failed { kind: Kind::Auth, .. }), "{outcome:?}");
    let device = TestDevice::garbage(32 * MIB);
    let outcome = in_time(restore(&target, &device, "vol-1", "backup-1")).await;
    assert!(matches!(outcome, Restored::Failed { kind: Kind::Auth, begun: false, .. }), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn faults_of_all_kinds_again_and_again_are_survived() {
    for seed in 0..if crate::long() { 200 } else { 2 } {
        let store = Faulty::new(Arc::new(MemoryStore::new()), seed, 6);
        let target = target(&store);
        let snapshot = volume().snapshot("snap-1");
        let outcome = in_time(back_up(&target, &snapshot, request())).await;
        assert!(matches!(outcome, Outcome::Complete { .. }), "seed {seed}: {outcome:?}");
        // A block that is wrong three times in a row is taken for damaged: fewer faults now.
        store.set_rate(20);
        let device = TestDevice::garbage(32 * MIB);
        let outcome = in_time(restore(&target, &device, "vol-1", "backup-1")).await;
        assert!(matches!(outcome, Restored::Complete { .. }), "seed {seed}: {outcome:?}");
        assert!(device.bytes() == snapshot.bytes(), "seed {seed}");
        assert_eq!(store.inner.keys("/locks/").len(), store.inner.keys(".lck").len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_ran_out_in_an_outage_is_got_again() {
    let store = Faulty::new(Arc::new(MemoryStore::new()), 1, 0);
    let target = target(&store);
    let snapshot = volume().snapshot("snap-1");
    // Only the lock's folder fails: blocks could go on, and must not.
    let folder = crate::folder();
    let options = Options { rate: Some(128 << 10), ..Options::default() };
    let mut job = BackupJob::create(folder.path(), request(), options).expect("a job");
    let progress = job.progress().clone();
    let outage = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        store.set_outage_of("/locks", Kind::Server);
        tokio::time::sleep(Duration::from_secs(130)).await;
        let stored = store.inner.keys(".blk").len();
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(store.inner.keys(".blk").len(), stored, "nothing is stored without a lock");
        waiting(&progress).await;
        store.set_outage(None);
    };
    let (outcome, ()) = in_time(async { tokio::join!(job.run(&target, &snapshot), outage) }).await;
    assert!(matches!(outcome, Ok(Outcome::Complete { .. })), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_busy_is_waited_for() {
    let target = target(&Arc::new(MemoryStore::new()));
    let snapshot = volume().snapshot("snap-1");
    in_time(back_up(&target, &snapshot, request())).await;
    let device = TestDevice::garbage(32 * MIB);
    device.set_busy(true);
    let free = async {
        tokio::time::sleep(HALF_HOUR).await;
        device.set_busy(false);
    };
    let (outcome, ()) = in_time(async { tokio::join!(restore(&target, &device, "vol-1", "backup-1"), free) }).await;
    assert!(matches!(outcome, Restored::Complete { .. }), "{outcome:?}");
    assert!(device.bytes() == snapshot.bytes());
}
