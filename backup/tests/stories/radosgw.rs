//! S3 as Ceph's object gateway speaks it: signatures, listings in pages, times of its own clock, and a gateway that dies.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backup::create::{BackupJob, BackupRequest, Options, Outcome};
use backup::format::layout::VolumeFolder;
use backup::format::lock::LockFile;
use backup::progress::Phase;
use backup::restore::{Base, RestoreJob, RestoreRequest};
use backup::target::check::check as try_out;
use backup::target::{Content, Credentials, Settings, Store, TargetUrl, open};
use backup::{Kind, inspect};
use ceph::{Ceph, SECRET};
use futures_util::{StreamExt, TryStreamExt};

use crate::fixtures::{self, HASHES, fixtures, sha256};
use crate::volume::{TestDevice, Volume};
use crate::{BLOCK, MIB, back_up, check, remove, restore};

const SIZE: u64 = 16 * MIB;

/// More than a page of a listing.
const MANY: usize = 1100;

/// Long enough for a machine that does other things, too.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

fn url() -> TargetUrl {
    Ceph::url().parse().expect("a target")
}

fn credentials(ceph: &Ceph, secret: &str) -> Credentials {
    Credentials::new(ceph.credentials(secret))
}

fn store(ceph: &Ceph, secret: &str) -> Arc<dyn Store> {
    open(&url(), &credentials(ceph, secret), &Settings::default()).expect("a target").store
}

/// All stories at once, each with a volume of its own: one Ceph does for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stories_against_a_real_gateway() {
    let Some(ceph) = Ceph::start().await else { return };
    let (url, credentials) = (url(), credentials(&ceph, SECRET));
    let all = async {
        tokio::join!(of_any_server(&url, &credentials), other_keys_are_refused(&ceph));
        // Last, since all others would see it.
        a_gateway_that_dies(&ceph, &store(&ceph, SECRET)).await;
    };
    tokio::time::timeout(LIMIT, all).await.expect("an end");
}

/// Any other server of S3, when one is given: `ASHLAR_S3_URL`, with a prefix below which nothing is, and in the file `ASHLAR_S3_CREDENTIALS` lines
/// of `NAME=value`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stories_against_another_server() {
    let Ok(url) = std::env::var("ASHLAR_S3_URL") else { return };
    let file = std::env::var_os("ASHLAR_S3_CREDENTIALS").expect("ASHLAR_S3_CREDENTIALS");
    let lines = fs::read_to_string(file).expect("a file of credentials");
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    let credentials = Credentials::new(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let url = url.parse().expect("a URL");
    tokio::time::timeout(LIMIT, of_any_server(&url, &credentials)).await.expect("an end");
}

/// What each server can.
pub(crate) async fn of_any_server(url: &TargetUrl, credentials: &Credentials) {
    let store = open(url, credentials, &Settings::default()).expect("a target").store;
    a_check_finds_all_good(url, credentials).await;
    tokio::join!(
        there_and_back(&store),
        longhorn_s_own(&store),
        locks_exclude(&store),
        a_long_listing(&store),
        a_large_file(&store),
        damage_is_found(&store)
    );
    let left = store.list("backupstore").try_collect::<Vec<_>>().await.expect("listed");
    assert!(left.iter().all(|object| !object.key.ends_with(".lck")), "locks are removed: {left:?}");
}

async fn a_check_finds_all_good(url: &TargetUrl, credentials: &Credentials) {
    let report = try_out(url, credentials, &Settings::default()).await.expect("a target");
    assert!(report.is_good() && report.skew_seconds.is_some_and(|skew| skew.abs() < 60), "{report:?}");
    // Which of both depends on its version; that it was found out does not.
    assert!(report.conditional_put.is_some(), "{report:?}");
}

/// Full, incremental, back, onto garbage; removal, and what is left is what is referred to.
async fn there_and_back(store: &Arc<dyn Store>) {
    let volume = Volume::new(SIZE);
    (0..4).for_each(|block| volume.write(block * BLOCK, block));
    let first = volume.snapshot("snap-1");
    volume.write(BLOCK, 77);
    volume.unmap(2 * BLOCK, BLOCK);
    let second = volume.snapshot("snap-2");
    for (snapshot, backup, name) in [(&first, "backup-1", "snap-1"), (&second, "backup-2", "snap-2")] {
        let outcome = back_up(store, snapshot, BackupRequest::new("test", "there-and-back", backup, name)).await;
        let is_second = backup == "backup-2";
        assert!(matches!(outcome, Outcome::Complete { incremental, .. } if incremental == is_second), "{outcome:?}");
    }
    let (device, state) = (TestDevice::garbage(SIZE), crate::folder());
    let mut base = None;
    for (snapshot, backup) in [(&first, "backup-1"), (&second, "backup-2")] {
        let request = RestoreRequest { base, ..RestoreRequest::new("test", "there-and-back", backup, "device") };
        let mut job = RestoreJob::create(&state.path().join(backup), request, Options::default()).expect("a job");
        job.run(store, &device).await.expect("its record");
        assert!(device.bytes() == snapshot.bytes(), "{backup}");
        base = Some(Base { backup: backup.to_owned(), block_size: BLOCK, list: job.list() });
    }
    assert_eq!(check(store, "there-and-back", "backup-2").await.bad, 0);
    let removed = remove(store, "there-and-back", Some("backup-1")).await;
    // What was written over, and what was unmapped.
    assert_eq!((removed.blocks, removed.kept), (2, 3), "{removed:?}");
    let config = inspect::volume(store, "there-and-back").await.expect("a volume");
    assert_eq!((config.last_backup.as_str(), config.block_count), ("backup-2", 3));
    let removed = remove(store, "there-and-back", Some("backup-2")).await;
    assert_eq!((removed.blocks, removed.kept), (3, 0));
}

/// What Longhorn's own library wrote, from there.
async fn longhorn_s_own(store: &Arc<dyn Store>) {
    let mut folders = vec![fixtures().join("backupstore")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("listed") {
            let path = entry.expect("listed").path();
            match path.is_dir() {
                true => folders.push(path),
                false => store.put(&key(&path), Content::File(path)).await.expect("stored"),
            }
        }
    }
    for (backup, hash) in ["backup-1", "backup-2"].into_iter().zip(HASHES) {
        let device = TestDevice::garbage(fixtures::SIZE);
        restore(store, &device, "vol-lz4", backup).await;
        assert_eq!(sha256(&device), hash, "{backup}");
    }
}

fn key(path: &Path) -> String {
    path.strip_prefix(fixtures()).expect("below it").to_string_lossy().into_owned()
}

/// A lock of another type that is held keeps a removal away, by the gateway's own clock.
async fn locks_exclude(store: &Arc<dyn Store>) {
    let volume = Volume::new(SIZE);
    volume.write(0, 1);
    let request = BackupRequest::new("test", "locked", "backup-1", "snap-1");
    back_up(store, &volume.snapshot("snap-1"), request).await;
    let folder = VolumeFolder::new("locked").expect("a name");
    let (name, scratch) = ("lock-00000000000000aa".to_owned(), crate::folder());
    let key = folder.lock(&name);
    let held = LockFile { name, kind: 1, acquired: true };
    store.put(&key, Content::from(held.to_bytes())).await.expect("stored");
    let removed = backup::remove::remove(store, "locked", Some("backup-1"), scratch.path()).await;
    assert_eq!(removed.expect_err("held").kind(), Kind::Locked);
    store.delete(&key).await.expect("removed");
    let removed = backup::remove::remove(store, "locked", Some("backup-1"), scratch.path()).await.expect("free");
    assert!(removed.existed && removed.blocks == 1, "{removed:?}");
}

/// Blocks that nobody refers to, on more than one page: a collection finds them all.
async fn a_long_listing(store: &Arc<dyn Store>) {
    let volume = Volume::new(SIZE);
    volume.write(0, 2);
    let request = BackupRequest::new("test", "long", "backup-1", "snap-1");
    back_up(store, &volume.snapshot("snap-1"), request).await;
    let folder = VolumeFolder::new("long").expect("a name");
    let orphans = (0..MANY).map(|number| {
        let checksum = backup::block::Checksum::of(&number.to_le_bytes());
        let key = folder.block(&checksum);
        async move { store.put(&key, Content::from(b"nobody's".to_vec())).await }
    });
    let stored: Vec<_> = futures_util::stream::iter(orphans).buffer_unordered(8).collect().await;
    assert!(stored.iter().all(Result::is_ok), "{stored:?}");
    let listed = store.list(&folder.blocks()).try_collect::<Vec<_>>().await.expect("listed");
    assert_eq!(listed.len(), MANY + 1);
    let removed = remove(store, "long", None).await;
    assert_eq!((removed.blocks, removed.kept), (MANY as u64, 1), "{removed:?}");
    assert_eq!(check(store, "long", "backup-1").await.bad, 0);
}

/// A file that is too large for memory goes there in parts, and is one object.
async fn a_large_file(store: &Arc<dyn Store>) {
    let folder = crate::folder();
    let path = folder.path().join("large");
    // Not a multiple of anything.
    let bytes: Vec<u8> = (0..(35 << 20) + 77_u64).map(|at| (at ^ (at >> 13)) as u8).collect();
    fs::write(&path, &bytes).expect("written");
    store.put("large", Content::File(path)).await.expect("stored");
    let read = store.get("large").await.expect("there");
    let read: Vec<_> = read.try_collect::<Vec<_>>().await.expect("read").concat();
    assert!(read == bytes, "{} bytes of {}", read.len(), bytes.len());
    store.delete("large").await.expect("removed");
    let missing = store.put("large", Content::File(folder.path().join("none"))).await;
    assert_eq!(missing.expect_err("no such file").kind(), Kind::Local);
    assert_eq!(store.head("large").await, Ok(None));
}

/// A block with another content, and one that is gone.
async fn damage_is_found(store: &Arc<dyn Store>) {
    let volume = Volume::new(SIZE);
    (0..3).for_each(|block| volume.write(block * BLOCK, 10 + block));
    let request = BackupRequest::new("test", "damaged", "backup-1", "snap-1");
    back_up(store, &volume.snapshot("snap-1"), request).await;
    let folder = VolumeFolder::new("damaged").expect("a name");
    let listed = store.list(&folder.blocks()).try_collect::<Vec<_>>().await.expect("listed");
    store.put(&listed[0].key, Content::from(b"something else".to_vec())).await.expect("stored");
    store.delete(&listed[1].key).await.expect("removed");
    let report = check(store, "damaged", "backup-1").await;
    assert_eq!((report.blocks, report.bad), (3, 2), "{report:?}");
    let mut kinds: Vec<_> = report.named.iter().map(|(_, _, error)| error.kind().name()).collect();
    kinds.sort_unstable();
    assert!(kinds[1] == "not_found" && ["checksum", "corrupt"].contains(&kinds[0]), "{kinds:?}");
}

async fn other_keys_are_refused(ceph: &Ceph) {
    let wrong = "not-the-secret";
    let volume = Volume::new(SIZE);
    volume.write(0, 3);
    let request = BackupRequest::new("test", "refused", "backup-1", "snap-1");
    let outcome = back_up(&store(ceph, wrong), &volume.snapshot("snap-1"), request).await;
    assert!(matches!(&outcome, Outcome::Failed { kind: Kind::Auth, .. }), "{outcome:?}");
    assert!(!format!("{outcome:?}").contains(wrong), "{outcome:?}");
    let other = "s3://elsewhere@us-east-1/".parse().expect("a URL");
    let report = try_out(&other, &credentials(ceph, SECRET), &Settings::default()).await.expect("a target");
    assert!(!report.is_good(), "a bucket that is not there: {report:?}");
}

/// The gateway is killed in the middle of a backup, and comes back.
async fn a_gateway_that_dies(ceph: &Ceph, store: &Arc<dyn Store>) {
    let volume = Volume::new(SIZE);
    (0..8).for_each(|block| volume.write(block * BLOCK, 20 + block));
    let snapshot = volume.snapshot("snap-1");
    let (state, request) = (crate::folder(), BackupRequest::new("test", "killed", "backup-1", "snap-1"));
    let options = Options { concurrency: 1, rate: Some(8 * MIB), ..Options::default() };
    let mut job = BackupJob::create(state.path(), request, options).expect("a job");
    let mut progress = job.progress().subscribe();
    let death = async {
        progress.wait_for(|state| state.done > 0).await.expect("under way");
        ceph.kill_gateway();
        let waiting = progress.wait_for(|state| matches!(state.phase, Phase::Waiting(_))).await.expect("waits").clone();
        let Phase::Waiting(waiting) = waiting.phase else { unreachable!() };
        assert!(matches!(waiting.kind, Kind::Connect | Kind::Interrupted), "{waiting:?}");
        ceph.start_gateway();
    };
    let (outcome, ()) = tokio::join!(job.run(store, &snapshot), death);
    assert!(matches!(outcome, Ok(Outcome::Complete { .. })), "{outcome:?}");
    let device = TestDevice::garbage(SIZE);
    restore(store, &device, "killed", "backup-1").await;
    assert!(device.bytes() == snapshot.bytes());
}
