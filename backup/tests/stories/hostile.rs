//! Stores whose content is damaged, or made to harm.

use std::sync::Arc;

use backup::Kind;
use backup::create::BackupRequest;
use backup::restore::Outcome;

use crate::memory::MemoryStore;
use crate::volume::{TestDevice, Volume};
use crate::{BLOCK, MIB, back_up, check, in_time, restore, target};

/// A store with one backup of eight blocks.
async fn stored() -> Arc<MemoryStore> {
    let memory = Arc::new(MemoryStore::new());
    let volume = Volume::new(16 * MIB);
    (0..8).for_each(|block| volume.write(block * BLOCK, block));
    let request = BackupRequest::new("test", "vol-1", "backup-1", "snap-1");
    in_time(back_up(&target(&memory), &volume.snapshot("snap-1"), request)).await;
    memory
}

async fn outcome(memory: &Arc<MemoryStore>) -> (Kind, bool) {
    let device = TestDevice::garbage(16 * MIB);
    match in_time(restore(&target(memory), &device, "vol-1", "backup-1")).await {
        Outcome::Failed { kind, begun, .. } => (kind, begun),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_block_ends_a_restore_and_is_named_by_verify() {
    let memory = stored().await;
    let keys = memory.keys(".blk");
    let good = memory.content(&keys[3]).expect("a block");
    let other = memory.content(&keys[4]).expect("a block");
    let mut flipped = good.to_vec();
    flipped[good.len() / 2] ^= 1;
    for bad in [flipped.into(), other, good.slice(..good.len() / 2), bytes::Bytes::new(), vec![0x1f, 0x8b, 8].into()] {
        memory.set(&keys[3], bad);
        assert_eq!(outcome(&memory).await, (Kind::Checksum, true));
        let report = in_time(check(&target(&memory), "vol-1", "backup-1")).await;
        assert_eq!((report.blocks, report.bad, report.named.len()), (8, 1, 1));
        assert!(keys[3].contains(&report.named[0].1.to_string()));
    }
    memory.remove(&keys[3]);
    assert_eq!(outcome(&memory).await, (Kind::NotFound, true));
}

#[tokio::test(start_paused = true)]
async fn a_damaged_file_ends_a_restore_before_it_begins() {
    let memory = stored().await;
    let key = memory.key("backup_backup-1.cfg");
    let good = String::from_utf8(memory.content(&key).expect("a file").to_vec()).expect("text");
    for bad in [
        good[..good.len() / 2].to_owned(),
        good.replace("vol-1", "vol-2"),
        good.replace("\"backup-1\"", "\"backup-2\""),
        good.replace("\"Offset\":2097152", "\"Offset\":2097153"),
        good.replace("\"Offset\":14680064", "\"Offset\":20971520"),
        "[".repeat(1 << 20),
        String::new(),
    ] {
        assert_ne!(bad, good);
        memory.set(&key, bad);
        assert_eq!(outcome(&memory).await, (Kind::Corrupt, false));
    }
    memory.set(&key, good.replace("\"CreatedTime\":\"2", "\"CreatedTime\":\"\",\"x\":\"2"));
    assert_eq!(outcome(&memory).await, (Kind::Invalid, false), "not complete");
    memory.set(&key, good);
    memory.set(&memory.key("volume.cfg"), vec![b' '; 2 << 20]);
    assert_eq!(outcome(&memory).await, (Kind::Corrupt, false), "too large");
}

#[tokio::test(start_paused = true)]
async fn a_volume_on_an_image_that_is_not_here_is_refused() {
    let memory = stored().await;
    let key = memory.key("volume.cfg");
    let good = String::from_utf8(memory.content(&key).expect("a file").to_vec()).expect("text");
    memory.set(&key, good.replace(r#""BackingImageName":"\"\"""#, r#""BackingImageName":"\"debian\"""#));
    assert_eq!(outcome(&memory).await, (Kind::Invalid, false));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_not_found_but_nothing_at_all_is_waited_for() {
    let memory = stored().await;
    let key = memory.key("backup_backup-1.cfg");
    memory.remove(&key);
    assert_eq!(outcome(&memory).await, (Kind::NotFound, false));
    // A folder that is not mounted shows nothing at all.
    let empty = Arc::new(MemoryStore::new());
    let device = TestDevice::garbage(16 * MIB);
    let target = target(&empty);
    let waiting = restore(&target, &device, "vol-1", "backup-1");
    let day = std::time::Duration::from_secs(24 * 3600);
    assert!(tokio::time::timeout(day, waiting).await.is_err(), "it waits for a day, and longer");
}
