//! Backups of snapshots that are gone (L3).

use std::process::Command;
use std::sync::Arc;

use backup::Kind;
use backup::create::{BackupJob, BackupRequest, Options, Outcome, prune};
use backup::progress::Phase;

use crate::faults::Faulty;
use crate::memory::MemoryStore;
use crate::volume::Volume;
use crate::{BLOCK, MIB, in_time, polls, remove, target};

fn request(backup: &str) -> BackupRequest {
    BackupRequest::new("test", "vol-1", backup, "snap-1")
}

/// The file with the memory of this process.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// Says to the process of a test that it is alone in there.
const ALONE: &str = "ASHLAR_TEST_ALONE";

/// In a process of its own, since the memory of all that run in one is measured: this program once more.
#[test]
fn thousands_end_at_once_and_leave_nothing_but_some_records() {
    if std::env::var_os(ALONE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        return runtime.expect("a runtime").block_on(thousands());
    }
    let mut alone = Command::new(std::env::current_exe().expect("this program"));
    alone.args(["--exact", "gone::thousands_end_at_once_and_leave_nothing_but_some_records", "--nocapture"]);
    let output = alone.env(ALONE, "1").output().expect("this program");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("KiB at the end"), "{said}");
}

async fn thousands() {
    let store = Faulty::new(Arc::new(MemoryStore::new()), 1, 0);
    // Not even an outage keeps them: the store is not asked.
    store.set_outage(Some(Kind::Resolve));
    let target = target(&store);
    let snapshot = Volume::new(16 * MIB).snapshot("snap-1");
    snapshot.volume.delete_snapshot("snap-1");
    let folder = crate::folder();
    let count = if crate::long() { 5000 } else { 500 };
    let begin = tokio::time::Instant::now();
    let mut before = 0;
    for index in 0..count {
        let path = folder.path().join(format!("job-{index}"));
        let mut job = BackupJob::create(&path, request(&format!("backup-{index}")), Options::default()).expect("a job");
        let outcome = job.run(&target, &snapshot).await.expect("its record");
        assert!(matches!(outcome, Outcome::Failed { kind: Kind::NotFound, .. }), "{outcome:?}");
        assert!(matches!(job.progress().state().phase, Phase::Failed(error) if error.kind() == Kind::NotFound));
        if index % 100 == 99 {
            prune(folder.path(), 10).expect("pruned");
        }
        if index == count / 5 {
            before = resident_kib();
        }
    }
    // Nothing waited, in virtual time, and nobody asked the store.
    assert_eq!((begin.elapsed().as_secs(), store.requests()), (0, 0));
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 10);
    let after = resident_kib();
    println!("{after} KiB at the end");
    assert!(after <= before + before / 20, "{before} KiB became {after} KiB");
}

#[tokio::test(start_paused = true)]
async fn one_that_vanishes_in_the_middle_leaves_no_file_in_progress() {
    let memory = Arc::new(MemoryStore::new());
    let target = target(&memory);
    let volume = Volume::new(16 * MIB);
    (0..8).for_each(|block| volume.write(block * BLOCK, block));
    let snapshot = volume.snapshot("snap-1");
    let folder = crate::folder();
    let mut job = BackupJob::create(folder.path(), request("backup-1"), Options::default()).expect("a job");
    let mut steps = 10;
    while memory.keys(".blk").len() < 2 {
        steps += 1;
        assert!(polls(steps, job.run(&target, &snapshot)).await.is_none(), "it came to its end");
    }
    assert_eq!(memory.keys("backup_backup-1.cfg").len(), 1);
    volume.delete_snapshot("snap-1");
    let mut job = BackupJob::open(folder.path(), Options::default()).expect("readable").expect("a job");
    let outcome = in_time(job.run(&target, &snapshot)).await.expect("its record");
    assert!(matches!(outcome, Outcome::Failed { kind: Kind::NotFound, .. }), "{outcome:?}");
    assert_eq!(memory.keys("backup_backup-1.cfg"), [""; 0]);
    let removed = in_time(remove(&target, "vol-1", None)).await;
    assert_eq!((removed.postponed, removed.kept), (None, 0));
    assert_eq!(memory.keys(".blk"), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_given_up_leaves_no_file_in_progress() {
    let memory = Arc::new(MemoryStore::new());
    let target = target(&memory);
    let volume = Volume::new(16 * MIB);
    (0..8).for_each(|block| volume.write(block * BLOCK, block));
    let snapshot = volume.snapshot("snap-1");
    let folder = crate::folder();
    let mut job = BackupJob::create(folder.path(), request("backup-1"), Options::default()).expect("a job");
    let mut steps = 10;
    while memory.keys(".blk").is_empty() {
        steps += 1;
        assert!(polls(steps, job.run(&target, &snapshot)).await.is_none(), "it came to its end");
    }
    job.discard().expect("recorded");
    assert!(matches!(job.outcome(), Outcome::Failing { .. }));
    let outcome = in_time(job.run(&target, &snapshot)).await.expect("its record");
    assert!(matches!(outcome, Outcome::Failed { kind: Kind::Invalid, .. }), "{outcome:?}");
    assert_eq!(memory.keys("backup_backup-1.cfg"), [""; 0]);
}
