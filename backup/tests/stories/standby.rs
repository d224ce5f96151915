//! Standby volumes (L4): they follow, they wait, and activation always gives the last complete backup.

use std::sync::Arc;
use std::time::Duration;

use backup::Kind;
use backup::create::{BackupRequest, Options, Outcome};
use backup::follow::{FollowRequest, Follower, Phase};

use crate::faults::Faulty;
use crate::memory::MemoryStore;
use crate::volume::{Snapshot, TestDevice, Volume};
use crate::{BLOCK, MIB, Random, back_up, in_time, polls, remove, target};

const SIZE: u64 = 16 * MIB;

fn follow(folder: &std::path::Path) -> Follower {
    follow_every(folder, 600)
}

/// Looks for news that often.
fn follow_every(folder: &std::path::Path, interval_seconds: u64) -> Follower {
    let request = FollowRequest {
        target: "test".to_owned(),
        volume: "vol-1".to_owned(),
        device: "device".to_owned(),
        interval_seconds,
    };
    Follower::create(folder, request, Options::default()).expect("a standby")
}

/// Follows for so long.
async fn follow_for(
    follower: &mut Follower,
    seconds: u64,
    store: &Arc<impl backup::target::Store + 'static>,
    device: &TestDevice,
) {
    let ran = tokio::time::timeout(Duration::from_secs(seconds), follower.run(&target(store), device)).await;
    assert!(ran.is_err(), "it ended: {ran:?}");
}

async fn store_backup(memory: &Arc<MemoryStore>, volume: &Arc<Volume>, number: u64) -> Snapshot {
    let (backup, name) = (format!("backup-{number}"), format!("snap-{number}"));
    let snapshot = volume.snapshot(&name);
    let request = BackupRequest::new("test", "vol-1", &backup, &name);
    let outcome = in_time(back_up(&target(memory), &snapshot, request)).await;
    assert!(matches!(outcome, Outcome::Complete { .. }), "{outcome:?}");
    snapshot
}

fn a_volume() -> Arc<Volume> {
    let volume = Volume::new(SIZE);
    (0..6).for_each(|block| volume.write(block * BLOCK, block));
    volume
}

#[tokio::test(start_paused = true)]
async fn it_follows_the_newest_backup_and_reads_only_differences() {
    let (memory, volume) = (Arc::new(MemoryStore::new()), a_volume());
    let folder = crate::folder();
    let device = TestDevice::garbage(SIZE);
    let mut follower = follow(folder.path());
    let first = store_backup(&memory, &volume, 1).await;
    follow_for(&mut follower, 60, &memory, &device).await;
    assert_eq!(follower.status().complete.as_deref(), Some("backup-1"));
    assert!(matches!(follower.status().phase, Phase::Idle { .. }));
    assert!(device.bytes() == first.bytes());
    device.take_written();
    volume.write(0, 77);
    let second = store_backup(&memory, &volume, 2).await;
    follow_for(&mut follower, 700, &memory, &device).await;
    assert!(device.bytes() == second.bytes());
    assert_eq!((device.take_written(), device.marks()), (BLOCK, vec!["backup-2".to_owned()]));
    // The base may go from the store: its list is here.
    volume.write(2 * BLOCK, 78);
    let third = store_backup(&memory, &volume, 3).await;
    in_time(remove(&target(&memory), "vol-1", Some("backup-2"))).await;
    follow_for(&mut follower, 700, &memory, &device).await;
    assert!(device.bytes() == third.bytes());
    assert_eq!(device.take_written(), BLOCK);
}

/// The phase after half an hour or, where that ends in the middle of a look, after another: pauses are of random length.
async fn until_waiting(
    follower: &mut Follower,
    store: &Arc<impl backup::target::Store + 'static>,
    device: &TestDevice,
) -> Phase {
    for _ in 0..20 {
        follow_for(follower, 1800, store, device).await;
        if follower.status().phase != Phase::Looking {
            break;
        }
    }
    follower.status().phase
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_waiting_with_its_reason_and_never_a_fault() {
    let (memory, volume) = (Arc::new(MemoryStore::new()), a_volume());
    let store = Faulty::new(Arc::clone(&memory), 1, 0);
    let folder = crate::folder();
    let device = TestDevice::garbage(SIZE);
    let mut follower = follow(folder.path());
    // Not even keys that are refused, or a store that shows nothing, are the end of it.
    for kind in [Kind::Resolve, Kind::Connect, Kind::TimedOut, Kind::Auth, Kind::Server] {
        store.set_outage(Some(kind));
        let Phase::Waiting { kind: shown, attempt, .. } = until_waiting(&mut follower, &store, &device).await else {
            panic!("{:?}", follower.status())
        };
        assert!(shown == kind && attempt > 1, "{:?}", follower.status());
    }
    store.set_outage(None);
    let phase = until_waiting(&mut follower, &store, &device).await;
    assert!(matches!(phase, Phase::Waiting { kind: Kind::Empty, .. }), "{phase:?}");
    // A volume that a listing does not have is not found, and looked for again.
    memory.set("backupstore/volumes/00/00/other/volume.cfg", "{}");
    let phase = until_waiting(&mut follower, &store, &device).await;
    assert!(matches!(phase, Phase::Waiting { kind: Kind::NotFound, .. }), "{phase:?}");
    let snapshot = store_backup(&memory, &volume, 1).await;
    follow_for(&mut follower, 1800, &store, &device).await;
    assert!(device.bytes() == snapshot.bytes());
}

#[tokio::test(start_paused = true)]
async fn a_first_backup_is_had_as_soon_as_any_other() {
    let (memory, volume) = (Arc::new(MemoryStore::new()), a_volume());
    // It is not found, rather than that nothing is.
    memory.set("backupstore/volumes/00/00/other/volume.cfg", "{}");
    let folder = crate::folder();
    let device = TestDevice::garbage(SIZE);
    let mut follower = follow_every(folder.path(), 10);
    follow_for(&mut follower, 5, &memory, &device).await;
    assert!(matches!(follower.status().phase, Phase::Waiting { kind: Kind::NotFound, .. }), "{:?}", follower.status());
    let looks = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        store_backup(&memory, &volume, 1).await
    };
    let (snapshot, ()) = tokio::join!(looks, follow_for(&mut follower, 60, &memory, &device));
    assert!(device.bytes() == snapshot.bytes(), "{:?}", follower.status());
}

#[tokio::test(start_paused = true)]
async fn activation_gives_the_last_complete_backup_without_any_storage() {
    for seed in 0..6 {
        let (memory, volume) = (Arc::new(MemoryStore::new()), a_volume());
        let store = Faulty::new(Arc::clone(&memory), seed, 0);
        let folder = crate::folder();
        let device = TestDevice::garbage(SIZE);
        let mut follower = follow(folder.path());
        let refused = follower.activate(&device).await.expect_err("nothing is complete");
        assert_eq!(refused.kind(), Kind::Invalid);
        let first = store_backup(&memory, &volume, 1).await;
        follow_for(&mut follower, 60, &store, &device).await;
        (0..8).for_each(|block| volume.write(block * BLOCK, 100 + block));
        let second = store_backup(&memory, &volume, 2).await;
        // Stopped somewhere in the middle of the second.
        let mut random = Random::new(seed);
        let mut follower = follow(folder.path());
        in_time(polls(20 + random.below(200), follower.run(&target(&store), &device))).await;
        store.set_outage(Some(Kind::Connect));
        // Killed in the middle of the activation, too.
        let mut activated = None;
        while activated.is_none() {
            let mut follower = follow(folder.path());
            activated = in_time(polls(1 + random.below(6), follower.activate(&device))).await;
        }
        let activated = activated.expect("it came to its end").expect("activated");
        let expected = if activated == "backup-2" { second.bytes() } else { first.bytes() };
        assert!(device.bytes() == expected && device.is_active(), "seed {seed}: {activated}");
        // It is active from then on, and never touched again.
        let mut follower = follow(folder.path());
        assert_eq!(follower.status().phase, Phase::Active);
        in_time(follower.run(&target(&store), &device)).await.expect("nothing to do");
        assert_eq!(follower.activate(&device).await, Ok(activated));
    }
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_point_it_comes_to_the_newest_backup() {
    for seed in 0..if crate::long() { 500 } else { 6 } {
        let (memory, volume) = (Arc::new(MemoryStore::new()), a_volume());
        let store = Faulty::new(Arc::clone(&memory), seed, if seed % 3 == 0 { 50 } else { 0 });
        let mut random = Random::new(seed);
        let folder = crate::folder();
        let device = TestDevice::garbage(SIZE);
        let mut newest = store_backup(&memory, &volume, 1).await;
        for number in 2..5 {
            for _ in 0..3 {
                let mut follower = follow(folder.path());
                polls(1 + random.below(250), follower.run(&target(&store), &device)).await;
                if random.below(2) == 0 {
                    device.cut_power();
                }
            }
            volume.change(&mut random, BLOCK);
            newest = store_backup(&memory, &volume, number).await;
            // The one that is being restored may go, with the blocks that only it had.
            if random.below(2) == 0 {
                in_time(remove(&target(&memory), "vol-1", Some(&format!("backup-{}", number - 1)))).await;
            }
        }
        let mut follower = follow(folder.path());
        follow_for(&mut follower, 3 * 3600, &store, &device).await;
        assert_eq!(follower.status().complete.as_deref(), Some("backup-4"), "seed {seed}");
        assert!(device.bytes() == newest.bytes(), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_newest_backup_leaves_the_last_complete_one_and_the_next_is_taken() {
    let (memory, volume) = (Arc::new(MemoryStore::new()), a_volume());
    let folder = crate::folder();
    let device = TestDevice::garbage(SIZE);
    let mut follower = follow(folder.path());
    let first = store_backup(&memory, &volume, 1).await;
    follow_for(&mut follower, 60, &memory, &device).await;
    let before = memory.keys(".blk");
    volume.write(0, 50);
    volume.write(5 * BLOCK, 51);
    store_backup(&memory, &volume, 2).await;
    let new: Vec<_> = memory.keys(".blk").into_iter().filter(|key| !before.contains(key)).collect();
    memory.set(&new[1], "damaged");
    follow_for(&mut follower, 1800, &memory, &device).await;
    assert!(matches!(follower.status().phase, Phase::Waiting { kind: Kind::Checksum, .. }), "{:?}", follower.status());
    assert!(device.bytes() == first.bytes(), "taken back");
    // The next backup has other blocks there.
    volume.write(0, 60);
    volume.write(5 * BLOCK, 61);
    let third = store_backup(&memory, &volume, 3).await;
    follow_for(&mut follower, 1800, &memory, &device).await;
    assert_eq!(follower.status().complete.as_deref(), Some("backup-3"));
    assert!(device.bytes() == third.bytes());
}
