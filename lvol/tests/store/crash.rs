//! Power cuts at every step of a run, with every kind of loss, and kills.
//!
//! Several tasks write, unmap, flush and snapshot on one lvol, each on blocks of its own that share clusters with those of
//! the others. The disk records each step. Then, for each point at which the power may have gone and each way in which
//! the disk may have kept, lost, reordered or torn what was not synced, the store is opened on what is left: it
//! opens (I27), everything flushed is there and nothing that was never written (I4), snapshots are there or not but whole
//! (I26), and no space is lost (I26).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use block_device::BlockDevice;
use lvol::{Lvol, Store};
use reactor::simulated::{Cut, DiskFault, DiskFaultKind, Random, Survival};
use reactor::{sleep, spawn};
use uuid::Uuid;

use crate::history::{BLOCK, Event, Expectation, Log, What};
use crate::rig::{
    DISK, Rig, SIZE, check_space, disk, flush, format, id, is_long, lvol, open, read, read_all, stamped, unmap, write,
};

/// Blocks that one task writes: one cluster and a half, so that neighbours share one.
const REGION: u64 = 24;
const TASKS: u64 = 3;

const HEAD: u128 = 1;

/// Of up to so many unsynced writes long tests try each subset; of more of them each write alone, missing, last and torn, and mixtures.
const SUBSETS: usize = 10;

/// What the smallest disks write whole, in bytes.
const SECTOR: u64 = 512;

/// What was done in one run, and what the head announced that a power cut leaves whole, in bytes (I29).
#[derive(Clone)]
struct Run {
    events: Vec<Event>,
    unit: u64,
}

/// What one task does on its region.
async fn work(log: Log, store: Store, task: u64, seed: u64, steps: u64) {
    let head = store.open_lvol(id(HEAD)).await.expect("opened");
    let mut random = Random::new(seed * 100 + task);
    for step in 0..steps {
        let first = task * REGION + random.below(REGION);
        let last = (first + 1 + random.below(6)).min((task + 1) * REGION);
        let stamp = 1 + task + step * TASKS + seed * 1_000_000;
        match random.below(20) {
            0..=11 => log.write(HEAD, &head, first, last, stamp).await,
            12..=13 => log.write(HEAD, &head, task * REGION, (task + 1) * REGION, 0).await,
            14..=15 => log.write(HEAD, &head, first, last, 0).await,
            16..=18 => log.flush(HEAD, &head).await,
            _ => log.snapshot(&store, HEAD, 1000 + u128::from(stamp)).await,
        }
    }
}

/// A run of the workload on a fresh store, from creating the lvol to deleting it, closing the store and opening it again in
/// between.
fn record(seed: u64, disk_size: u64, steps: u64) -> (Rig, Run) {
    record_on(Rig::with_disk(seed, disk_size, SECTOR as u32), seed, steps)
}

fn record_on(rig: Rig, seed: u64, steps: u64) -> (Rig, Run) {
    rig.run(async { format(&disk()).await.expect("formatted") });
    rig.world.record_disk(rig.node, DISK);
    let log = Log::new(&rig);
    let events = Rc::clone(&log.events);
    let unit = rig.run(async move {
        let mut unit = 0;
        for part in 0..2 {
            let store = open().await;
            if part == 0 {
                let event = log.begin(HEAD, What::Create);
                store.create(&lvol(HEAD, TASKS * REGION * BLOCK)).await.expect("created");
                log.end(event);
                unit = store.open_lvol(id(HEAD)).await.expect("opened").geometry().atomic_write;
            }
            let tasks: Vec<_> =
                (0..TASKS).map(|task| spawn(work(log.clone(), store.clone(), task, seed * 2 + part, steps))).collect();
            for task in tasks {
                task.await.expect("no task panics");
            }
            if part == 1 {
                log.delete(&store, HEAD).await;
                // Freed clusters come back.
                sleep(Duration::from_secs(2)).await;
            }
            store.close().await.expect("closed");
        }
        u64::from(unit)
    });
    let events = events.borrow().clone();
    (rig, Run { events, unit })
}

/// Opens the store on what is left, checks everything, goes on using it. Returns what happened to the disk meanwhile.
fn check(run: &Run, at: usize, cut: &Cut, survival: Survival) {
    let rig = Rig::with_image(at as u64, cut.image(survival));
    check_rig(&rig, run, at);
}

fn check_rig(rig: &Rig, run: &Run, at: usize) {
    let Run { events, unit } = run.clone();
    rig.run(async move {
        let store = open().await;
        let expectation = Expectation { events: &events, unit, at };
        assert!(!store.info().damaged);
        expectation.check_head(&store, HEAD).await;
        expectation.check_snapshots(&store).await;
        check_space(&store);
        go_on(store).await;
    });
}

/// The recovered store is a store like any other.
async fn go_on(store: Store) {
    store.create(&lvol(99, 1 << 20)).await.expect("created");
    let other = store.open_lvol(id(99)).await.expect("opened");
    assert!(read_all(&other).await == vec![0; 1 << 20]);
    write(&other, 0, stamped(7, 100 << 10)).await.expect("written");
    assert!(read(&other, 0, 100 << 10).await.expect("read") == stamped(7, 100 << 10)[..]);
    store.close().await.expect("closed");
}

#[test]
fn a_power_cut_at_every_step_loses_nothing_flushed() {
    for seed in 1..3 {
        let (rig, run) = record(seed, SIZE, 5);
        let history = rig.world.disk_history(rig.node, DISK);
        let mut random = Random::new(seed);
        let mut checked = 0;
        for (at, cut) in history.cuts().enumerate() {
            let mut survivals = cut.survivals(2, random.next_u64());
            let first = random.index(survivals.len());
            if is_long() {
                survivals.extend(cut.subsets(SUBSETS));
            }
            let count = if is_long() { survivals.len() } else { survivals.len().min(4) };
            for survival in survivals.iter().cycle().skip(first).take(count) {
                check(&run, at, &cut, *survival);
                checked += 1;
            }
        }
        println!("seed {seed}: {checked} disks that {} power cuts leave", history.len() + 1);
        assert!(checked > 500, "{checked}");
    }
}

/// What is announced as atomic is what the disk writes whole, and each such unit is one write's or the other's.
#[test]
fn a_power_cut_tears_no_announced_unit() {
    for (alignment, unit) in [(512, 512), (4096, 4096)] {
        let (rig, run) = record_on(Rig::with_disk(5, SIZE, alignment), 5, 6);
        assert_eq!(run.unit, unit);
        let history = rig.world.disk_history(rig.node, DISK);
        let mut random = Random::new(5);
        for (at, cut) in history.cuts().enumerate() {
            check(&run, at, &cut, Survival::Random(random.next_u64()));
        }
    }
}

/// Long enough for checkpoints while everything goes on, at cuts chosen at random.
#[test]
fn a_power_cut_around_checkpoints_loses_nothing_flushed() {
    let (rig, run) = record(11, 128 << 20, 120);
    let history = rig.world.disk_history(rig.node, DISK);
    let mut random = Random::new(11);
    for _ in 0..150 {
        let at = random.index(history.len());
        let cut = history.cut(at);
        let survivals = cut.survivals(3, random.next_u64());
        for _ in 0..3 {
            check(&run, at, &cut, survivals[random.index(survivals.len())]);
        }
    }
}

#[test]
fn a_second_power_cut_during_recovery_loses_nothing_either() {
    let (rig, run) = record(21, SIZE, 8);
    let history = rig.world.disk_history(rig.node, DISK);
    let mut random = Random::new(21);
    for _ in 0..25 {
        let at = random.index(history.len());
        let first = history.cut(at).image(Survival::Random(random.next_u64()));
        let rig = Rig::with_image(at as u64, first);
        rig.world.record_disk(rig.node, DISK);
        rig.run(async { drop(open().await) });
        let again = rig.world.disk_history(rig.node, DISK);
        for (step, cut) in again.cuts().enumerate() {
            for survival in [Survival::AllLost, Survival::AllKept, Survival::Random(step as u64)] {
                check(&run, at, &cut, survival);
            }
        }
    }
}

/// Power cuts while a checkpoint's superblocks are written and again while that is recovered, and then the first copy does not
/// read: the second one leads to everything, too.
#[test]
fn after_two_power_cuts_either_superblock_leads_to_everything() {
    let rig = Rig::formatted(23);
    rig.world.record_disk(rig.node, DISK);
    let store = rig.run(async {
        let store = open().await;
        store.create(&lvol(HEAD, 1 << 20)).await.expect("created");
        let head = store.open_lvol(id(HEAD)).await.expect("opened");
        write(&head, 0, stamped(1, CLUSTER as usize)).await.expect("written");
        drop(head);
        store.close().await.expect("closed");
        // What it has is in a checkpoint, which the next one does not touch, but the one after it does.
        open().await
    });
    let begun = rig.world.disk_steps(rig.node, DISK);
    rig.run(async move { store.close().await.expect("closed") });
    let history = rig.world.disk_history(rig.node, DISK);
    for first in (begun..history.len()).map(|at| history.cut(at).image(Survival::AllKept)) {
        let rig = Rig::with_image(23, first);
        rig.world.record_disk(rig.node, DISK);
        rig.run(async { drop(open().await) });
        for second in rig.world.disk_history(rig.node, DISK).cuts() {
            let rig = Rig::with_image(24, second.image(Survival::AllKept));
            let fault = DiskFault::new(DiskFaultKind::FailReads).within(0..BLOCK);
            rig.world.add_disk_fault(rig.node, DISK, fault);
            rig.run(async {
                let store = open().await;
                let head = store.open_lvol(id(HEAD)).await.expect("the lvol is there");
                assert!(read(&head, 0, CLUSTER).await.expect("read") == stamped(1, CLUSTER as usize)[..]);
                assert!(!store.info().damaged);
            });
        }
    }
}

/// A cluster that one lvol freed and another wrote: after a power cut the first one never reads the other's data, whatever
/// became of the record that freed it.
#[test]
fn a_power_cut_around_a_reused_cluster_mixes_nothing_up() {
    let rig = Rig::formatted(25);
    let free = rig.run(async {
        let store = open().await;
        for number in [1, 2] {
            store.create(&lvol(number, 64 << 20)).await.expect("created");
        }
        let first = store.open_lvol(id(1)).await.expect("opened");
        let free = store.info().free_clusters;
        write_clusters(&first, 0..free, 1).await;
        flush(&first).await.expect("flushed");
        free
    });
    rig.world.record_disk(rig.node, DISK);
    rig.run(async move {
        let store = open().await;
        let (first, second) =
            (store.open_lvol(id(1)).await.expect("opened"), store.open_lvol(id(2)).await.expect("opened"));
        for round in 0..4 {
            unmap(&first, round * 4 * CLUSTER, 4 * CLUSTER).await.expect("unmapped");
            // There is no other space: these are the clusters just freed.
            write_clusters(&second, round * 4..round * 4 + 4, 2).await;
        }
        store.delete(id(1)).await.expect("deleted");
        write_clusters(&second, 20..30, 2).await;
    });
    let history = rig.world.disk_history(rig.node, DISK);
    for (at, cut) in history.cuts().enumerate() {
        // A write that overtook the records before it shows whether they had to be stable first.
        let alone = (0..cut.unsynced()).map(Survival::Only);
        let all = [Survival::AllLost, Survival::AllKept, Survival::Random(1), Survival::Random(2)];
        for survival in all.into_iter().chain(alone) {
            let rig = Rig::with_image(at as u64, cut.image(survival));
            rig.run(async move {
                let store = open().await;
                check_stamps(&store, id(1), free.min(20), &[0, 1]).await;
                check_stamps(&store, id(2), 30, &[0, 2]).await;
                check_space(&store);
            });
        }
    }
}

const CLUSTER: u64 = 64 << 10;

async fn write_clusters(lvol: &Rc<Lvol>, clusters: std::ops::Range<u64>, stamp: u64) {
    for cluster in clusters {
        write(lvol, cluster * CLUSTER, stamped(stamp, CLUSTER as usize)).await.expect("written");
    }
}

/// Each sector of the first clusters, if the lvol is there, holds one of the stamps.
async fn check_stamps(store: &Store, uuid: Uuid, clusters: u64, stamps: &[u64]) {
    let Ok(lvol) = store.open_lvol(uuid).await else { return };
    for cluster in 0..clusters {
        let content = read(&lvol, cluster * CLUSTER, CLUSTER).await.expect("read");
        for sector in content.chunks_exact(SECTOR as usize) {
            let stamp = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
            assert!(stamps.contains(&stamp), "{uuid} holds {stamp} in cluster {cluster}");
        }
    }
}

/// A kill of the process loses no write that was answered, flushed or not.
#[test]
fn a_kill_loses_nothing_answered() {
    for seed in 31..61 {
        let rig = Rig::formatted(seed);
        rig.world.record_disk(rig.node, DISK);
        rig.run(async {
            let store = open().await;
            store.create(&lvol(HEAD, TASKS * REGION * BLOCK)).await.expect("created");
            store.close().await.expect("closed");
        });
        let log = Log::new(&rig);
        let events = Rc::clone(&log.events);
        log.events.borrow_mut().push(Event { start: 0, end: 0, lvol: id(HEAD), what: What::Create });
        rig.world.spawn(rig.node, async move {
            let store = open().await;
            for task in 0..TASKS {
                spawn(work(log.clone(), store.clone(), task, seed, 1000));
            }
        });
        rig.world.run_for(Duration::from_micros(500 + Random::new(seed).below(30_000)));
        let at = rig.world.disk_steps(rig.node, DISK);
        rig.world.kill(rig.node);
        let mut events = events.borrow().clone();
        // Answered is as good as flushed.
        let answered = Event { start: at, end: at, lvol: id(HEAD), what: What::Flush };
        events.push(answered);
        check_rig(&rig, &Run { events, unit: SECTOR }, at);
    }
}

/// Stamps of blocks that several tasks write tell nothing about order: this is what the expectations rely on.
#[test]
fn tasks_write_blocks_of_their_own() {
    let (_rig, Run { events, .. }) = record(71, SIZE, 20);
    let mut owners: BTreeMap<u64, u64> = BTreeMap::new();
    for event in &events {
        if let What::Write(first, last, stamp) = event.what
            && stamp > 0
        {
            let task = (stamp - 1) % 1_000_000 % TASKS;
            for block in first..last {
                assert_eq!(*owners.entry(block).or_insert(task), task);
            }
        }
    }
    assert!(events.iter().any(|event| matches!(event.what, What::Snapshot(_))));
}
