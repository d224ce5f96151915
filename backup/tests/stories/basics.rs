//! Backups and restores where nothing goes wrong.

use std::sync::Arc;

use backup::block::Compression;
use backup::create::{BackupJob, BackupRequest, Options, Outcome};
use backup::inspect;
use backup::progress::Phase;
use backup::restore::{Base, Outcome as Restored, RestoreJob, RestoreRequest};
use backup::{Kind, Limit, Result};

use crate::faults::Faulty;
use crate::memory::MemoryStore;
use crate::volume::{CHUNK, Snapshot, TestDevice, Volume};
use crate::{BLOCK, MIB, back_up, check, in_time, restore, target};

fn request(backup: &str, snapshot: &str) -> BackupRequest {
    BackupRequest::new("test", "vol-1", backup, snapshot)
}

#[tokio::test(start_paused = true)]
async fn each_compression_and_size_comes_back() {
    let volume = Volume::new(32 * MIB);
    for at in [0, 3, 40, 511] {
        volume.write(at * CHUNK, at + 1);
    }
    let snapshot = volume.snapshot("snap-1");
    for compression in [Compression::None, Compression::Gzip, Compression::Lz4] {
        for block_size in [2 * MIB, 16 * MIB] {
            let store = target(&Arc::new(MemoryStore::new()));
            let request = BackupRequest { compression, block_size, ..request("backup-1", "snap-1") };
            let outcome = in_time(back_up(&store, &snapshot, request)).await;
            let blocks = if block_size == 2 * MIB { 3 } else { 2 };
            assert!(
                matches!(outcome, Outcome::Complete { incremental: false, size, .. } if size == blocks * block_size),
                "{outcome:?}"
            );
            let device = TestDevice::garbage(32 * MIB);
            let outcome = in_time(restore(&store, &device, "vol-1", "backup-1")).await;
            assert_eq!(outcome, Restored::Complete { incremental: false, block_size });
            assert!(device.bytes() == snapshot.bytes(), "{compression:?} {block_size}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_incremental_backup_reads_what_changed_and_is_whole_by_itself() -> Result<()> {
    let store = target(&Arc::new(MemoryStore::new()));
    let volume = Volume::new(16 * MIB);
    (0..8).for_each(|block| volume.write(block * BLOCK, block));
    let first = volume.snapshot("snap-1");
    in_time(back_up(&store, &first, request("backup-1", "snap-1"))).await;
    volume.write(3 * BLOCK, 100);
    volume.unmap(5 * BLOCK, BLOCK);
    let second = volume.snapshot("snap-2");

    let folder = crate::folder();
    let mut job = BackupJob::create(folder.path(), request("backup-2", "snap-2"), Options::default())?;
    let outcome = in_time(job.run(&store, &second)).await?;
    assert!(matches!(outcome, Outcome::Complete { incremental: true, size, .. } if size == 8 * BLOCK), "{outcome:?}");
    let state = job.progress().state();
    assert_eq!((state.phase, state.total, state.done), (Phase::Complete, 2 * BLOCK, 2 * BLOCK));

    // Each backup can go without the other.
    backup::remove::remove(&store, "vol-1", Some("backup-1"), &folder.path().join("scratch")).await?;
    let device = TestDevice::garbage(16 * MIB);
    in_time(restore(&store, &device, "vol-1", "backup-2")).await;
    assert!(device.bytes() == second.bytes());
    let report = in_time(check(&store, "vol-1", "backup-2")).await;
    assert_eq!((report.blocks, report.bad), (8, 0));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_incremental_restore_writes_what_changed_and_zeroes_what_vanished() -> Result<()> {
    let memory = Arc::new(MemoryStore::new());
    let store = target(&memory);
    let volume = Volume::new(16 * MIB);
    (0..4).for_each(|block| volume.write(block * BLOCK, block + 1));
    let first = volume.snapshot("snap-1");
    in_time(back_up(&store, &first, request("backup-1", "snap-1"))).await;
    // A full backup of a volume that lost a block has one block less.
    volume.unmap(2 * BLOCK, BLOCK);
    volume.write(7 * BLOCK, 9);
    let second = volume.snapshot("snap-2");
    let full = BackupRequest { full: true, ..request("backup-2", "snap-2") };
    let outcome = in_time(back_up(&store, &second, full)).await;
    assert!(matches!(outcome, Outcome::Complete { incremental: false, size, .. } if size == 4 * BLOCK), "{outcome:?}");

    let folder = crate::folder();
    let device = TestDevice::garbage(16 * MIB);
    let one = RestoreRequest::new("test", "vol-1", "backup-1", "device");
    let mut one = RestoreJob::create(&folder.path().join("one"), one, Options::default())?;
    in_time(one.run(&store, &device)).await?;
    device.take_written();
    let base = Base { backup: "backup-1".to_owned(), block_size: BLOCK, list: one.list() };
    let two = RestoreRequest { base: Some(base), ..RestoreRequest::new("test", "vol-1", "backup-2", "device") };
    let mut two = RestoreJob::create(&folder.path().join("two"), two, Options::default())?;
    let outcome = in_time(two.run(&store, &device)).await?;
    assert_eq!(outcome, Restored::Complete { incremental: true, block_size: BLOCK });
    assert!(device.bytes() == second.bytes());
    assert_eq!(device.take_written(), BLOCK, "one block differs");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn equal_blocks_are_stored_once_and_counted_once() -> Result<()> {
    let memory = Arc::new(MemoryStore::new());
    let store = target(&memory);
    let volume = Volume::new(16 * MIB);
    (0..8).for_each(|block| volume.write(block * BLOCK, 7));
    let outcome = in_time(back_up(&store, &volume.snapshot("snap-1"), request("backup-1", "snap-1"))).await;
    let blocks = memory.keys(".blk");
    assert_eq!(blocks.len(), 1);
    let stored = memory.content(&blocks[0]).expect("a block").len() as u64;
    assert!(matches!(outcome, Outcome::Complete { uploaded, .. } if uploaded == stored), "{outcome:?}");
    assert_eq!(inspect::volume(&store, "vol-1").await?.block_count, 1);
    // In full mode what is there is stored again, and is no new block.
    let full = BackupRequest { full: true, ..request("backup-2", "snap-2") };
    in_time(back_up(&store, &volume.snapshot("snap-2"), full)).await;
    assert_eq!(inspect::volume(&store, "vol-1").await?.block_count, 1);
    let listed = inspect::backups(&store, "vol-1").await?;
    let second = listed[1].config.as_ref().expect("readable");
    assert_eq!((second.newly_uploaded, second.reuploaded), (0, 8 * stored));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_is_there_is_listed() -> Result<()> {
    let memory = Arc::new(MemoryStore::new());
    let store = target(&memory);
    let volume = Volume::new(16 * MIB);
    volume.write(0, 1);
    let labels = [("RecurringJob".to_owned(), "daily & <x>".to_owned())].into();
    let labelled = BackupRequest { labels, ..request("backup-1", "snap-1") };
    in_time(back_up(&store, &volume.snapshot("snap-1"), labelled.clone())).await;
    memory.set(&memory.key("backup_backup-1.cfg").replace("backup-1", "backup-0"), "{\"half");
    memory.set("backupstore/volumes/00/11/stray/volume.cfg", "{}");
    assert_eq!(inspect::volumes(&store).await?, ["vol-1"]);
    let listed = in_time(inspect::backups(&store, "vol-1")).await?;
    assert_eq!(listed.iter().map(|backup| backup.name.as_str()).collect::<Vec<_>>(), ["backup-0", "backup-1"]);
    assert_eq!(listed[0].config.as_ref().expect_err("half of a file").kind(), Kind::Corrupt);
    let config = listed[1].config.as_ref().expect("a whole file");
    assert_eq!((config.labels.as_ref(), listed[1].blocks), (Some(&labelled.labels), 1));
    let shown = inspect::volume(&store, "vol-1").await?;
    assert_eq!((shown.last_backup.as_str(), shown.size, shown.labels), ("backup-1", 16 * MIB, Some(labelled.labels)));
    assert_eq!(inspect::volume(&store, "vol-2").await.expect_err("none").kind(), Kind::NotFound);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn asked_for_again_a_job_is_the_same_and_another_request_is_refused() -> Result<()> {
    let store = target(&Arc::new(MemoryStore::new()));
    let volume = Volume::new(16 * MIB);
    volume.write(0, 1);
    let snapshot = volume.snapshot("snap-1");
    let folder = crate::folder();
    let mut job = BackupJob::create(folder.path(), request("backup-1", "snap-1"), Options::default())?;
    let outcome = in_time(job.run(&store, &snapshot)).await?;
    // I30
    let again = BackupJob::create(folder.path(), request("backup-1", "snap-1"), Options::default())?;
    assert_eq!(*again.outcome(), outcome);
    let other = BackupJob::create(folder.path(), request("backup-1", "snap-2"), Options::default());
    assert_eq!(other.expect_err("another request").kind(), Kind::Invalid);
    // A backup of that name is there already, of another snapshot.
    let taken = in_time(back_up(&store, &volume.snapshot("snap-2"), request("backup-1", "snap-2"))).await;
    assert!(matches!(taken, Outcome::Failed { kind: Kind::Invalid, .. }), "{taken:?}");
    assert_eq!(inspect::backups(&store, "vol-1").await?[0].config.as_ref().expect("whole").snapshot, "snap-1");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn requests_that_make_no_sense_are_refused_before_anything_happens() {
    let memory = Arc::new(MemoryStore::new());
    let store = target(&memory);
    let folder = crate::folder();
    for bad in [
        request("../x", "snap-1"),
        request("backup-1", ""),
        BackupRequest { volume: "a/b".to_owned(), ..request("backup-1", "snap-1") },
        BackupRequest { block_size: 4 * MIB, ..request("backup-1", "snap-1") },
    ] {
        let refused = BackupJob::create(folder.path(), bad.clone(), Options::default());
        assert_eq!(refused.expect_err("no sense").kind(), Kind::Invalid, "{bad:?}");
    }
    let odd = Volume::new(5 * MIB).snapshot("snap-1");
    let outcome = in_time(back_up(&store, &odd, request("backup-1", "snap-1"))).await;
    assert!(matches!(outcome, Outcome::Failed { kind: Kind::Invalid, .. }), "{outcome:?}");
    assert_eq!(memory.keys(""), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_too_small_is_refused_and_untouched() {
    let store = target(&Arc::new(MemoryStore::new()));
    let volume = Volume::new(16 * MIB);
    volume.write(0, 1);
    in_time(back_up(&store, &volume.snapshot("snap-1"), request("backup-1", "snap-1"))).await;
    let device = TestDevice::garbage(14 * MIB);
    let outcome = in_time(restore(&store, &device, "vol-1", "backup-1")).await;
    assert!(matches!(outcome, Restored::Failed { kind: Kind::Invalid, begun: false, .. }), "{outcome:?}");
    assert!(device.bytes().iter().all(|byte| *byte == 0xa5));
}

#[tokio::test(start_paused = true)]
async fn a_list_again_reads_only_what_was_written_since() {
    let memory = Arc::new(MemoryStore::new());
    let faulty = Faulty::new(Arc::clone(&memory), 0, 0);
    let store = target(&faulty);
    let volume = Volume::new(16 * MIB);
    volume.write(0, 1);
    for name in ["backup-1", "backup-2", "backup-3"] {
        in_time(back_up(&store, &volume.snapshot(name), request(name, name))).await;
    }
    let mut known = inspect::Known::default();
    let first = in_time(known.look(&store, "vol-1")).await.expect("listed");
    assert_eq!(first, inspect::backups(&store, "vol-1").await.expect("listed"));
    let before = faulty.requests();
    assert_eq!(in_time(known.look(&store, "vol-1")).await.expect("listed"), first);
    assert_eq!(faulty.requests() - before, 1, "a listing");
    // One is gone, one is damaged, and for as long as it is it is looked at.
    memory.remove(&memory.key("backup_backup-1.cfg"));
    memory.set(&memory.key("backup_backup-2.cfg"), "{");
    for _ in 0..2 {
        let listed = in_time(known.look(&store, "vol-1")).await.expect("listed");
        let shown: Vec<_> = listed.iter().map(|found| (found.name.as_str(), found.config.is_ok())).collect();
        assert_eq!(shown, [("backup-2", false), ("backup-3", true)]);
    }
    // An outage takes nothing away of what is known.
    faulty.set_outage(Some(Kind::Connect));
    assert!(in_time(known.look(&store, "vol-1")).await.is_err());
    faulty.set_outage(None);
    memory.remove(&memory.key("backup_backup-2.cfg"));
    let before = faulty.requests();
    assert_eq!(in_time(known.look(&store, "vol-1")).await.expect("listed"), first[2..]);
    assert_eq!(faulty.requests() - before, 1, "a listing");
}

/// All jobs that share a limit come to no more than that, restores too.
#[tokio::test(start_paused = true)]
async fn a_shared_rate_is_kept_by_all_together() {
    let store = target(&Arc::new(MemoryStore::new()));
    let options = Options { shared: Limit::new(2 * MIB), ..Options::default() };
    let volumes = ["vol-1", "vol-2", "vol-3"].map(|name| {
        let volume = Volume::new(16 * MIB);
        (0..8).for_each(|block| volume.write(block * BLOCK, block));
        (name, volume.snapshot("snap-1"))
    });
    let back_up = async |(name, snapshot): &(&str, Snapshot)| {
        let (folder, request) = (crate::folder(), BackupRequest::new("test", name, "backup-1", "snap-1"));
        let mut job = BackupJob::create(folder.path(), request, options.clone()).expect("a job");
        job.run(&store, snapshot).await.expect("its record");
    };
    let begin = tokio::time::Instant::now();
    in_time(async { tokio::join!(back_up(&volumes[0]), back_up(&volumes[1]), back_up(&volumes[2])) }).await;
    // 48 MiB, of which the first block is free, and the locks' 2 s.
    assert_eq!(begin.elapsed().as_secs(), 25);
    let restore = async |name: &str| {
        let (folder, request) = (crate::folder(), RestoreRequest::new("test", name, "backup-1", "device"));
        let device = TestDevice::garbage(16 * MIB);
        let mut job = RestoreJob::create(folder.path(), request, options.clone()).expect("a job");
        job.run(&store, &device).await.expect("its record");
    };
    let begin = tokio::time::Instant::now();
    in_time(async { tokio::join!(restore("vol-1"), restore("vol-2")) }).await;
    assert_eq!(begin.elapsed().as_secs(), 17);
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_kept() {
    let store = target(&Arc::new(MemoryStore::new()));
    let volume = Volume::new(16 * MIB);
    (0..8).for_each(|block| volume.write(block * BLOCK, block));
    let snapshot = volume.snapshot("snap-1");
    let folder = crate::folder();
    let options = Options { rate: Some(MIB), ..Options::default() };
    let mut job = BackupJob::create(folder.path(), request("backup-1", "snap-1"), options).expect("a job");
    let begin = tokio::time::Instant::now();
    in_time(job.run(&store, &snapshot)).await.expect("its record");
    // 16 MiB, of which the first block is free, and the lock's 2 s. Virtual time: no machine is too slow for this.
    assert_eq!(begin.elapsed().as_secs(), 16);
}
