//! Jobs that are killed at any point, again and again, and go on from what is durable (L4).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use backup::create::{BackupJob, BackupRequest, Options, Outcome};
use backup::format::backup::BackupConfig;
use backup::restore::{self, Base, RestoreJob, RestoreRequest};
use backup::source::OpenStore;

use crate::faults::Faulty;
use crate::memory::MemoryStore;
use crate::volume::{Snapshot, TestDevice, Volume};
use crate::{BLOCK, MIB, Random, in_time, polls, remove, target};

const SIZE: u64 = 8 * MIB;

/// How often a job is killed before it may come to its end.
const KILLS: u64 = 4;

/// What a run works with.
struct Run {
    random: Random,
    store: Arc<dyn backup::target::Store>,
    memory: Arc<MemoryStore>,
    state: tempfile::TempDir,
}

impl Run {
    fn new(seed: u64) -> Self {
        let memory = Arc::new(MemoryStore::new());
        // Every other run also has a store that fails now and then.
        let faults = if seed.is_multiple_of(2) { 0 } else { 40 };
        let store = target(&Faulty::new(Arc::clone(&memory), seed, faults));
        Self { random: Random::new(seed), store, memory, state: crate::folder() }
    }

    /// How many polls until the next kill; the last life has no end.
    fn life(&mut self, kill: u64) -> u64 {
        if kill == KILLS { u64::MAX } else { 1 + self.random.below(160) }
    }

    async fn back_up(&mut self, snapshot: &Snapshot, backup: &str, name: &str) -> Outcome {
        let folder = self.state.path().join(backup);
        let request = BackupRequest::new("test", "vol-1", backup, name);
        for kill in 0..=KILLS {
            // What is in memory ends with a life: each begins with what is on disk.
            let mut job = BackupJob::create(&folder, request.clone(), Options::default()).expect("a job");
            let life = self.life(kill);
            if let Some(outcome) = polls(life, job.run(&self.store, snapshot)).await {
                return outcome.expect("its record");
            }
        }
        panic!("the last life has no end");
    }

    async fn restore(&mut self, device: &TestDevice, backup: &str, base: Option<Base>, folder: &Path) -> Base {
        let request = RestoreRequest { base, ..RestoreRequest::new("test", "vol-1", backup, "device") };
        for kill in 0..=KILLS {
            let mut job = RestoreJob::create(folder, request.clone(), Options::default()).expect("a job");
            let life = self.life(kill);
            if let Some(outcome) = polls(life, job.run(&self.store, device)).await {
                let outcome = outcome.expect("its record");
                assert!(matches!(outcome, restore::Outcome::Complete { .. }), "{outcome:?}");
                return Base { backup: backup.to_owned(), block_size: BLOCK, list: job.list() };
            }
            if self.random.below(2) == 0 {
                device.cut_power();
            }
        }
        panic!("the last life has no end");
    }

    /// Blocks in the store, and those that its backups refer to.
    fn blocks(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let name = |key: &String| key.rsplit('/').next().unwrap_or_default().trim_end_matches(".blk").to_owned();
        let stored = self.memory.keys(".blk").iter().map(name).collect();
        let mut referred = BTreeSet::new();
        for key in self.memory.keys("/backup_") {
            let file = self.memory.content(&key).expect("a file");
            let (config, _) = BackupConfig::parse(&file[..], &mut |block| {
                referred.insert(block.checksum.to_string());
                Ok(())
            })
            .expect("a backup");
            assert!(config.is_complete(), "{key} is in progress");
        }
        (stored, referred)
    }
}

async fn run(seed: u64) {
    let mut run = Run::new(seed);
    let volume = Volume::new(SIZE);
    volume.change(&mut run.random, BLOCK);
    let first = volume.snapshot("snap-1");
    volume.change(&mut run.random, BLOCK);
    let second = volume.snapshot("snap-2");
    for (snapshot, backup, name) in [(&first, "backup-1", "snap-1"), (&second, "backup-2", "snap-2")] {
        let outcome = in_time(run.back_up(snapshot, backup, name)).await;
        assert!(matches!(outcome, Outcome::Complete { .. }), "seed {seed}: {outcome:?}");
    }
    let device = TestDevice::garbage(SIZE);
    let (one, two) = (run.state.path().join("one"), run.state.path().join("two"));
    let base = in_time(run.restore(&device, "backup-1", None, &one)).await;
    assert!(device.bytes() == first.bytes(), "seed {seed}: full");
    in_time(run.restore(&device, "backup-2", Some(base), &two)).await;
    assert!(device.bytes() == second.bytes(), "seed {seed}: incremental");
    device.cut_power();
    assert!(device.bytes() == second.bytes(), "seed {seed}: what is complete is durable");

    let target: &dyn OpenStore = &run.store;
    let removed = in_time(remove(target, "vol-1", Some("backup-1"))).await;
    assert_eq!(removed.postponed, None, "seed {seed}");
    let (stored, referred) = run.blocks();
    assert_eq!(stored, referred, "seed {seed}: what is stored is what is referred to");
    assert_eq!(run.memory.keys("/backup_").len(), 1, "seed {seed}");
}

/// Two tests, so that two processors share the runs.
async fn runs(parity: u64) {
    let seed = std::env::var("ASHLAR_SEED").ok().and_then(|seed| seed.parse().ok());
    let count = if crate::long() { 1000 } else { 50 };
    let seeds = seed.map_or(0..count, |seed: u64| seed / 2..seed / 2 + 1);
    for seed in seeds {
        run(2 * seed + parity).await;
    }
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_point_all_come_to_the_same_end() {
    runs(0).await;
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_point_beside_faults_all_come_to_the_same_end() {
    runs(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_within_one_block() {
    let mut run = Run::new(0);
    let volume = Volume::new(64 * MIB);
    (0..32).for_each(|block| volume.write(block * BLOCK, block));
    let snapshot = volume.snapshot("snap-1");
    let folder = run.state.path().join("backup");
    let request = BackupRequest::new("test", "vol-1", "backup-1", "snap-1");
    let mut stored = 0;
    // Killed after each few polls: what was stored before is never stored again.
    for life in 0.. {
        let mut job = BackupJob::create(&folder, request.clone(), Options::default()).expect("a job");
        if in_time(polls(60 + life, job.run(&run.store, &snapshot))).await.is_some() {
            break;
        }
        let now = run.memory.keys(".blk").len();
        assert!(now >= stored && life < 1000);
        stored = now;
    }
    let device = TestDevice::garbage(64 * MIB);
    let request = RestoreRequest::new("test", "vol-1", "backup-1", "device");
    let mut lives = 0;
    loop {
        lives += 1;
        let folder = run.state.path().join("restore");
        let mut job = RestoreJob::create(&folder, request.clone(), Options::default()).expect("a job");
        if in_time(polls(60 + lives, job.run(&run.store, &device))).await.is_some() {
            break;
        }
        device.cut_power();
        assert!(lives < 1000);
    }
    assert!(lives > 2 && device.bytes() == snapshot.bytes());
    // Each life writes at most two blocks that the one before wrote: one that was made durable just then, and the next.
    let blocks = device.take_written() / BLOCK;
    assert!((32..=32 + 2 * lives).contains(&blocks), "{blocks} blocks written in {lives} lives");
    run.life(0);
}
