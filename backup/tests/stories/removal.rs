//! Removal and garbage collection.

use std::sync::Arc;

use backup::Result;
use backup::create::BackupRequest;
use backup::inspect;

use crate::faults::Faulty;
use crate::memory::MemoryStore;
use crate::volume::{TestDevice, Volume};
use crate::{BLOCK, MIB, Random, back_up, in_time, polls, remove, restore, target};

async fn back_up_all(memory: &Arc<MemoryStore>, volume: &Arc<Volume>, count: u64) {
    for number in 1..=count {
        volume.write((number % 8) * BLOCK, number + 100);
        let (backup, snapshot) = (format!("backup-{number}"), format!("snap-{number}"));
        let request = BackupRequest::new("test", "vol-1", &backup, &snapshot);
        in_time(back_up(&target(memory), &volume.snapshot(&snapshot), request)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn only_blocks_without_a_reference_go() -> Result<()> {
    let memory = Arc::new(MemoryStore::new());
    let volume = Volume::new(16 * MIB);
    volume.write(15 * MIB, 1);
    back_up_all(&memory, &volume, 3).await;
    let target = target(&memory);
    assert_eq!(memory.keys(".blk").len(), 4);
    let removed = in_time(remove(&target, "vol-1", Some("backup-2"))).await;
    // Its block is part of the third, too.
    assert_eq!((removed.existed, removed.blocks, removed.kept), (true, 0, 4));
    let removed = in_time(remove(&target, "vol-1", Some("backup-3"))).await;
    assert_eq!((removed.blocks, removed.kept), (2, 2));
    let config = inspect::volume(&target, "vol-1").await?;
    assert_eq!((config.last_backup.as_str(), config.block_count), ("backup-1", 2));
    // I42: again it finds success.
    let removed = in_time(remove(&target, "vol-1", Some("backup-3"))).await;
    assert_eq!((removed.existed, removed.blocks, removed.kept), (false, 0, 2));
    let removed = in_time(remove(&target, "vol-1", Some("backup-1"))).await;
    assert_eq!((removed.blocks, removed.kept), (2, 0));
    let config = inspect::volume(&target, "vol-1").await?;
    assert_eq!((config.last_backup.as_str(), config.last_backup_at.as_str(), config.block_count), ("", "", 0));
    assert_eq!(in_time(remove(&target, "vol-2", Some("backup-1"))).await, backup::remove::Removed::default());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn nothing_is_collected_beside_a_backup_that_is_in_progress_or_unreadable() {
    let memory = Arc::new(MemoryStore::new());
    let volume = Volume::new(16 * MIB);
    back_up_all(&memory, &volume, 2).await;
    let target = target(&memory);
    let file = memory.key("backup_backup-1.cfg").replace("backup-1", "foreign");
    let in_progress = r#"{"Name":"foreign","VolumeName":"vol-1","SnapshotName":"x","CreatedTime":""}"#;
    for bad in [in_progress, "{", r#"{"Name":"other","VolumeName":"vol-1","CreatedTime":"2026-01-01T00:00:00Z"}"#] {
        memory.set(&file, bad);
        let removed = in_time(remove(&target, "vol-1", Some("backup-9"))).await;
        assert!(removed.postponed.is_some_and(|why| why.contains("foreign")), "{bad}");
        assert_eq!(memory.keys(".blk").len(), 2);
    }
    // Given up by a person it is out of the way.
    let removed = in_time(remove(&target, "vol-1", Some("foreign"))).await;
    assert_eq!((removed.existed, removed.postponed), (true, None));
}

#[tokio::test(start_paused = true)]
async fn a_removal_that_is_killed_loses_nothing_and_is_done_again() {
    for seed in 0..10 {
        let memory = Arc::new(MemoryStore::new());
        let volume = Volume::new(16 * MIB);
        back_up_all(&memory, &volume, 3).await;
        let faulty = target(&Faulty::new(Arc::clone(&memory), seed, 30));
        let mut random = Random::new(seed);
        for _ in 0..4 {
            in_time(polls(random.below(80), remove(&faulty, "vol-1", Some("backup-3")))).await;
        }
        in_time(remove(&faulty, "vol-1", Some("backup-3"))).await;
        let removed = in_time(remove(&target(&memory), "vol-1", None)).await;
        assert_eq!((removed.postponed, removed.blocks, memory.keys(".blk").len()), (None, 0, 2), "seed {seed}");
        let device = TestDevice::garbage(16 * MIB);
        in_time(restore(&target(&memory), &device, "vol-1", "backup-2")).await;
        assert!(device.bytes() == volume.bytes("snap-2"), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn files_of_others_among_the_blocks_stay() {
    let memory = Arc::new(MemoryStore::new());
    let volume = Volume::new(16 * MIB);
    back_up_all(&memory, &volume, 1).await;
    let block = memory.key(".blk");
    let stray = block.replace(".blk", ".txt");
    memory.set(&stray, "a note");
    let (folder, name) = block.rsplit_once('/').expect("a folder");
    let misplaced = format!("{folder}/x/{name}");
    memory.set(&misplaced, "another place");
    in_time(remove(&target(&memory), "vol-1", Some("backup-1"))).await;
    assert_eq!(memory.keys(&block), [""; 0]);
    assert!(memory.content(&stray).is_some() && memory.content(&misplaced).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_lacks_what_is_there_removes_nothing() {
    let memory = Arc::new(MemoryStore::new());
    let volume = Volume::new(16 * MIB);
    back_up_all(&memory, &volume, 3).await;
    let faulty = Faulty::new(Arc::clone(&memory), 1, 0);
    faulty.forget_in_listings("/backups");
    let scratch = crate::folder();
    let (target, scratch) = (target(&faulty), scratch.path().join("scratch"));
    let removed = backup::remove::remove(&target, "vol-1", Some("backup-1"), &scratch);
    assert_eq!(in_time(removed).await.expect_err("a listing of nothing").kind(), backup::Kind::Server);
    assert_eq!(memory.keys(".blk").len(), 3);
}
