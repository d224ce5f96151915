//! Real backups, written by Longhorn's own library: `tests/fixtures/MANIFEST.md`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backup::Result;
use backup::block::Compression;
use backup::create::{BackupRequest, Options, Outcome};
use backup::format::backup::BackupConfig;
use backup::format::volume::VolumeConfig;
use backup::restore::{Base, RestoreJob, RestoreRequest};
use backup::target::{FolderStore, Store};

use crate::memory::MemoryStore;
use crate::volume::{CHUNK, TestDevice, Volume};
use crate::{BLOCK, MIB, back_up, check, in_time, restore, target};

pub(crate) const SIZE: u64 = 64 * MIB;
pub(crate) const HASHES: [&str; 2] = [
    "f042d3b57d487cbf585067984508bc15268cb6b59fd9f82d52f4e11472402ff9",
    "a8cdc0ca3383f367d8898ae4135315fd48fdb0dea3383f0216841d6061324a6f",
];

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A copy of the fixtures as a target.
fn copy() -> (tempfile::TempDir, Arc<dyn Store>) {
    let folder = crate::folder();
    copy_folder(&fixtures().join("backupstore"), &folder.path().join("backupstore"));
    let store: Arc<dyn Store> = Arc::new(FolderStore::new(folder.path(), Duration::from_secs(60)));
    (folder, store)
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("listed") {
        let (from, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).expect("listed");
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            fs::copy(&from, &to).expect("copied");
        }
    }
}

pub(crate) fn sha256(device: &TestDevice) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, &device.bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All configuration files of the fixtures.
fn configs(name: &str) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut folders = vec![fixtures()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("listed") {
            let path = entry.expect("listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)) {
                found.push(fs::read(path).expect("read"));
            }
        }
    }
    found
}

#[test]
fn the_files_come_back_byte_for_byte() {
    let volumes = configs("volume.cfg");
    assert_eq!(volumes.len(), 2);
    for file in volumes {
        assert_eq!(VolumeConfig::parse(&file).expect("a volume").to_bytes(), file);
    }
    let backups = configs("backup_");
    assert_eq!(backups.len(), 4);
    for file in backups {
        let mut blocks = Vec::new();
        let (config, _) = BackupConfig::parse(&file[..], &mut |block| {
            blocks.push(block);
            Ok(())
        })
        .expect("a backup");
        let mut written = Vec::new();
        config.write(&mut written, &mut blocks.into_iter().map(Ok)).expect("memory takes it");
        assert_eq!(String::from_utf8_lossy(&written), String::from_utf8_lossy(&file));
    }
}

#[tokio::test(start_paused = true)]
async fn each_restores_bit_for_bit_in_full_and_by_difference() -> Result<()> {
    let (_folder, store) = copy();
    let state = crate::folder();
    for volume in ["vol-lz4", "vol-gzip"] {
        for (backup, hash) in ["backup-1", "backup-2"].into_iter().zip(HASHES) {
            let device = TestDevice::garbage(SIZE);
            in_time(restore(&store, &device, volume, backup)).await;
            assert_eq!(sha256(&device), hash, "{volume} {backup}");
        }
        // Forth, and back again: then blocks vanish.
        let device = TestDevice::garbage(SIZE);
        let mut base: Option<Base> = None;
        for (round, (backup, hash)) in
            [(0, 0), (1, 1), (2, 0)].map(|(round, which)| (round, (["backup-1", "backup-2"][which], HASHES[which])))
        {
            let request = RestoreRequest { base: base.take(), ..RestoreRequest::new("test", volume, backup, "device") };
            let folder = state.path().join(format!("{volume}-{round}"));
            let mut job = RestoreJob::create(&folder, request, Options::default())?;
            let outcome = in_time(job.run(&store, &device)).await?;
            let expected = backup::restore::Outcome::Complete { incremental: round > 0, block_size: BLOCK };
            assert_eq!((outcome, sha256(&device).as_str()), (expected, hash), "{volume} {backup}");
            base = Some(Base { backup: backup.to_owned(), block_size: BLOCK, list: job.list() });
        }
        assert_eq!(in_time(check(&store, volume, "backup-2")).await.bad, 0);
    }
    Ok(())
}

/// The data of the fixtures, as their manifest says it.
fn data() -> Arc<Volume> {
    let volume = Volume::new(SIZE);
    let pattern = |at: u64| ((at * 7) >> 3) as u8;
    let put = |from: u64, to: u64, byte: &dyn Fn(u64) -> u8| {
        for offset in (from..to).step_by(CHUNK as usize) {
            volume.put(offset, (offset..offset + CHUNK).map(byte).collect());
        }
    };
    put(0, 5 * MIB, &pattern);
    put(40 * MIB, 42 * MIB, &|at| pattern(at - 40 * MIB));
    volume
}

#[tokio::test(start_paused = true)]
async fn our_backup_of_the_same_data_names_the_same_blocks() -> Result<()> {
    let memory = Arc::new(MemoryStore::new());
    let store = target(&memory);
    let volume = data();
    let request = |backup: &str, snapshot: &str| BackupRequest {
        compression: Compression::Lz4,
        ..BackupRequest::new("test", "vol-lz4", backup, snapshot)
    };
    in_time(back_up(&store, &volume.snapshot("snap1"), request("backup-1", "snap1"))).await;
    for offset in (20 * MIB..23 * MIB).step_by(CHUNK as usize) {
        volume.put(offset, (offset..offset + CHUNK).map(|at| at as u8).collect());
    }
    (0..2 * MIB).step_by(CHUNK as usize).for_each(|offset| volume.put(offset, vec![0; CHUNK as usize]));
    let outcome = in_time(back_up(&store, &volume.snapshot("snap2"), request("backup-2", "snap2"))).await;
    assert!(matches!(outcome, Outcome::Complete { incremental: true, .. }), "{outcome:?}");

    let list = |file: &[u8]| {
        let mut blocks = Vec::new();
        let (config, _) = BackupConfig::parse(file, &mut |block| {
            blocks.push(block);
            Ok(())
        })
        .expect("a backup");
        (config.size, config.is_incremental, config.compression, blocks)
    };
    for name in ["backup-1", "backup-2"] {
        let path = fixtures().join(format!("backupstore/volumes/19/25/vol-lz4/backups/backup_{name}.cfg"));
        let ours = memory.content(&memory.key(&format!("backup_{name}.cfg"))).expect("ours");
        assert_eq!(list(&ours), list(&fs::read(path).expect("theirs")), "{name}");
    }
    let ours = VolumeConfig::parse(&memory.content(&memory.key("volume.cfg")).expect("ours"))?;
    assert_eq!((ours.block_count, ours.last_backup.as_str()), (5, "backup-2"));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn we_go_on_where_longhorn_left_off() -> Result<()> {
    let (folder, store) = copy();
    // The volume here still has snap2, so that the next backup builds on theirs.
    let volume = data();
    for offset in (20 * MIB..23 * MIB).step_by(CHUNK as usize) {
        volume.put(offset, (offset..offset + CHUNK).map(|at| at as u8).collect());
    }
    (0..2 * MIB).step_by(CHUNK as usize).for_each(|offset| volume.put(offset, vec![0; CHUNK as usize]));
    volume.snapshot("snap2");
    volume.write(50 * MIB, 3);
    let third = volume.snapshot("snap3");
    let request = BackupRequest::new("test", "vol-gzip", "backup-3", "snap3");
    let outcome = in_time(back_up(&store, &third, request)).await;
    assert!(matches!(outcome, Outcome::Complete { incremental: true, size, .. } if size == 7 * BLOCK), "{outcome:?}");
    let device = TestDevice::garbage(SIZE);
    in_time(restore(&store, &device, "vol-gzip", "backup-3")).await;
    assert!(device.bytes() == third.bytes());
    // Their compression won over our default, and what they wrote into the volume's file stayed.
    let config = fs::read(folder.path().join("backupstore/volumes/8b/14/vol-gzip/volume.cfg")).expect("read");
    let text = String::from_utf8(config).expect("text");
    assert!(text.contains(r#""CompressionMethod":"\"gzip\"""#), "{text}");
    assert!(text.contains(r#""StorageClassName":"\"longhorn\"""#), "{text}");
    Ok(())
}
