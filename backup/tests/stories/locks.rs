//! Locks of two daemons and of a client that is not ours.

use std::sync::Arc;
use std::time::Duration;

use backup::create::{BackupRequest, Outcome};
use backup::format::lock::LockFile;
use backup::target::{Content, Store};
use backup::{Kind, Result};
use futures_util::StreamExt;

use crate::faults::Faulty;
use crate::memory::MemoryStore;
use crate::volume::{TestDevice, Volume};
use crate::{BLOCK, MIB, Random, back_up, in_time, remove, restore, target};

const LOCKS: &str = "/locks/";

fn request(backup: &str, snapshot: &str) -> BackupRequest {
    BackupRequest::new("test", "vol-1", backup, snapshot)
}

/// A store with one backup, and the folder of its locks.
async fn stored() -> (Arc<MemoryStore>, Arc<Volume>, String) {
    let memory = Arc::new(MemoryStore::new());
    let volume = Volume::new(16 * MIB);
    (0..3).for_each(|block| volume.write(block * BLOCK, block));
    in_time(back_up(&target(&memory), &volume.snapshot("snap-1"), request("backup-1", "snap-1"))).await;
    assert_eq!(memory.keys(LOCKS), [""; 0], "locks are removed");
    let folder = memory.key("volume.cfg").replace("volume.cfg", "locks");
    (memory, volume, folder)
}

fn lock(kind: u32, acquired: bool, name: &str) -> Vec<u8> {
    LockFile { name: name.to_owned(), kind, acquired }.to_bytes()
}

async fn try_remove(memory: &Arc<MemoryStore>) -> Result<()> {
    let folder = crate::folder();
    backup::remove::remove(&target(memory), "vol-1", None, &folder.path().join("scratch")).await.map(|_| ())
}

#[tokio::test(start_paused = true)]
async fn a_lock_of_another_type_goes_first_until_it_expires() {
    let (memory, _, folder) = stored().await;
    let key = format!("{folder}/lock-00000000000000aa.lck");
    memory.set(&key, lock(1, true, "lock-00000000000000aa"));
    assert_eq!(try_remove(&memory).await.expect_err("held").kind(), Kind::Locked);
    assert_eq!(memory.keys(LOCKS), std::slice::from_ref(&key), "ours is removed");
    tokio::time::sleep(Duration::from_secs(140)).await;
    assert_eq!(try_remove(&memory).await.expect_err("not expired").kind(), Kind::Locked);
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(try_remove(&memory).await, Ok(()), "expired");
}

#[tokio::test(start_paused = true)]
async fn the_order_is_acquired_then_time_then_name() {
    let (memory, _, folder) = stored().await;
    // One that is written after ours and not acquired goes second.
    let later = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        memory.set(&format!("{folder}/lock-0000000000000001.lck"), lock(1, false, "lock-0000000000000001"));
    };
    assert_eq!(tokio::join!(try_remove(&memory), later).0, Ok(()));
    // One that is acquired goes first, whenever it was written.
    let acquired = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        memory.set(&format!("{folder}/lock-0000000000000001.lck"), lock(1, true, "lock-0000000000000001"));
    };
    assert_eq!(tokio::join!(try_remove(&memory), acquired).0.expect_err("acquired").kind(), Kind::Locked);
}

#[tokio::test(start_paused = true)]
async fn locks_of_one_type_go_together_and_unknown_types_exclude() {
    let (memory, volume, folder) = stored().await;
    let key = format!("{folder}/lock-0000000000000001.lck");
    memory.set(&key, lock(1, true, "lock-0000000000000001"));
    let outcome = in_time(back_up(&target(&memory), &volume.snapshot("snap-2"), request("backup-2", "snap-2"))).await;
    assert!(matches!(outcome, Outcome::Complete { .. }), "{outcome:?}");
    memory.set(&key, lock(2, true, "lock-0000000000000001"));
    assert_eq!(try_remove(&memory).await, Ok(()));
    memory.set(&key, lock(9, true, "lock-0000000000000001"));
    assert_eq!(try_remove(&memory).await.expect_err("unknown").kind(), Kind::Locked);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_or_listed_means_not_acquired() {
    let (memory, _, folder) = stored().await;
    let key = format!("{folder}/lock-0000000000000001.lck");
    memory.set(&key, "{\"half");
    assert_eq!(try_remove(&memory).await.expect_err("unreadable").kind(), Kind::Locked);
    memory.remove(&key);
    let faulty = Faulty::new(Arc::clone(&memory), 1, 0);
    faulty.set_outage_of("/locks", Kind::Server);
    let scratch = crate::folder();
    let failed = backup::remove::remove(&target(&faulty), "vol-1", None, &scratch.path().join("scratch")).await;
    assert_eq!(failed.expect_err("not listed").kind(), Kind::Server);
    assert_eq!(memory.keys(".blk").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_backup_waits_for_a_removal_that_is_under_way() {
    let (memory, volume, folder) = stored().await;
    let key = format!("{folder}/lock-0000000000000001.lck");
    memory.set(&key, lock(2, true, "lock-0000000000000001"));
    let snapshot = volume.snapshot("snap-2");
    let target = target(&memory);
    let begin = tokio::time::Instant::now();
    let outcome = in_time(back_up(&target, &snapshot, request("backup-2", "snap-2"))).await;
    assert!(matches!(outcome, Outcome::Complete { .. }), "{outcome:?}");
    assert!(begin.elapsed() > Duration::from_secs(148), "its owner is dead, and it has expired");
}

/// A client that is not ours and follows the rules: it backs up one block that it finds or stores.
pub(crate) async fn foreign_backup(
    store: &dyn Store,
    folder: &str,
    backup: &str,
    random: &mut Random,
    template: &str,
) -> Result<bool> {
    let name = format!("lock-{:016x}", random.next());
    let key = format!("{folder}/locks/{name}.lck");
    store.put(&key, Content::from(lock(1, false, &name))).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let listed = store.folder(&format!("{folder}/locks")).await?.objects;
    let own = listed.iter().find(|object| object.key == key).map(|object| object.modified);
    for other in listed.iter().filter(|object| object.key != key) {
        let Ok(mut body) = store.get(&other.key).await else { continue };
        let mut bytes = Vec::new();
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece?);
        }
        let theirs = LockFile::parse(&bytes)?;
        let earlier = theirs.acquired || Some(other.modified) < own || (Some(other.modified) == own && other.key < key);
        if theirs.kind != 1 && earlier {
            store.delete(&key).await?;
            return Ok(false);
        }
    }
    store.put(&key, Content::from(lock(1, true, &name))).await?;
    let in_progress = template.replace("backup-1", backup);
    let file = format!("{folder}/backups/backup_{backup}.cfg");
    let created = in_progress.find("\"CreatedTime\":\"").expect("a time") + 15;
    let empty = format!("{}{}", &in_progress[..created], &in_progress[created + 20..]);
    let empty = &empty[..empty.find("\"Blocks\"").expect("blocks")];
    store.put(&file, Content::from(format!("{empty}\"SingleFile\":{{\"FilePath\":\"\"}}}}").into_bytes())).await?;
    tokio::time::sleep(Duration::from_millis(random.below(4000))).await;
    // It refers to blocks that it finds; if one is gone it gives up.
    let listed = store.folder(&format!("{folder}/backups")).await?.objects;
    let source = listed.iter().find(|object| object.key.ends_with("backup_backup-1.cfg"));
    if source.is_some() {
        store.put(&file, Content::from(in_progress.into_bytes())).await?;
    } else {
        store.delete(&file).await?;
    }
    store.delete(&key).await?;
    Ok(source.is_some())
}

/// Two daemons and another client back up and remove at random times. Whatever the interleaving is, all that is complete is whole.
async fn interleaving(seed: u64) {
    let (memory, volume, _) = stored().await;
    let folder = memory.key("volume.cfg").trim_end_matches("/volume.cfg").to_owned();
    let file = memory.content(&memory.key("backup_backup-1.cfg")).expect("a file");
    let template = String::from_utf8(file.to_vec()).expect("text");
    let mut random = Random::new(seed);
    volume.change(&mut random, BLOCK);
    let snapshots = ["snap-2", "snap-3"].map(|name| volume.snapshot(name));
    let delays: Vec<_> = (0..4).map(|_| Duration::from_millis(random.below(6000))).collect();
    // Each has its own faults, and its own view of when things happen.
    let stores: Vec<_> =
        (0..3).map(|daemon| target(&Faulty::new(Arc::clone(&memory), seed * 3 + daemon, 60))).collect();
    let one = async {
        tokio::time::sleep(delays[0]).await;
        back_up(&stores[0], &snapshots[0], request("backup-2", "snap-2")).await
    };
    let two = async {
        tokio::time::sleep(delays[1]).await;
        remove(&stores[1], "vol-1", Some("backup-1")).await
    };
    let three = async {
        tokio::time::sleep(delays[2]).await;
        back_up(&stores[2], &snapshots[1], request("backup-3", "snap-3")).await
    };
    let foreign = async {
        tokio::time::sleep(delays[3]).await;
        foreign_backup(&*memory, &folder, "foreign-1", &mut random, &template).await
    };
    let (one, _, three, foreign) = in_time(async { tokio::join!(one, two, three, foreign) }).await;
    assert!(
        matches!(one, Outcome::Complete { .. }) && matches!(three, Outcome::Complete { .. }),
        "seed {seed}: {one:?} {three:?}"
    );
    let target = target(&memory);
    for (backup, snapshot) in [("backup-2", &snapshots[0]), ("backup-3", &snapshots[1])] {
        let device = TestDevice::garbage(16 * MIB);
        in_time(restore(&target, &device, "vol-1", backup)).await;
        assert!(device.bytes() == snapshot.bytes(), "seed {seed}: {backup}");
    }
    if foreign.expect("its store is sound") {
        let device = TestDevice::garbage(16 * MIB);
        in_time(restore(&target, &device, "vol-1", "foreign-1")).await;
        assert!(device.bytes() == volume.bytes("snap-1"), "seed {seed}: foreign-1");
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_the_interleaving_no_block_that_is_referred_to_is_lost() {
    for seed in 0..if crate::long() { 2000 } else { 8 } {
        interleaving(seed).await;
    }
}
