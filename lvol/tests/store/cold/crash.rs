//! Power cuts at every step while maps come and go: lvols are opened for a few writes each, and checkpoints carry the maps over that
//! are not in memory.
//!
//! Whatever a cut left, the store opens with no map in memory, and each lvol that is opened then has what was flushed (I4, I26, I27).

use std::rc::Rc;
use std::time::Duration;

use lvol::Store;
use reactor::simulated::{Cut, Random, Survival};
use reactor::{sleep, spawn};

use super::cool;
use crate::history::{BLOCK, Event, Expectation, Log, What};
use crate::operations::settle;
use crate::rig::{DISK, Rig, check_space, id, is_long, lvol, open, read, stamped, write};

const TASKS: u128 = 3;

/// Heads that each task has for itself.
const HEADS: u128 = 2;

/// Blocks of a head: one cluster and a half.
const BLOCKS: u64 = 24;

fn heads() -> std::ops::RangeInclusive<u128> {
    1..=TASKS * HEADS
}

/// What one task does to its heads. Nothing stays open for longer than a few writes.
async fn work(log: Log, store: Store, task: u128, seed: u64, steps: u64) {
    let mut random = Random::new(seed * 100 + task as u64);
    let mut cut = Vec::new();
    for step in 0..steps {
        let head = 1 + task * HEADS + u128::from(random.below(HEADS as u64));
        let number = task as u64 + step * TASKS as u64 + seed * 1_000_000;
        match random.below(20) {
            0..=8 => write_some(&log, &store, head, number * 4, &mut random).await,
            9..=10 => {
                let open = store.open_lvol(id(head)).await.expect("opened");
                log.flush(head, &open).await;
            }
            11..=14 => log.trim(&store).await,
            15..=16 => log.label(&store, head, number).await,
            _ if cut.is_empty() => {
                let snapshot = 1000 + u128::from(number);
                log.snapshot(&store, head, snapshot).await;
                cut.push(snapshot);
            }
            _ => {
                let snapshot = cut.swap_remove(random.index(cut.len()));
                log.delete(&store, snapshot).await;
            }
        }
    }
}

async fn write_some(log: &Log, store: &Store, head: u128, stamp: u64, random: &mut Random) {
    let open = store.open_lvol(id(head)).await.expect("opened");
    for number in 1..=1 + random.below(3) {
        let first = random.below(BLOCKS);
        let last = (first + 1 + random.below(8)).min(BLOCKS);
        let stamp = if random.chance(0.2) { 0 } else { stamp + number };
        log.write(head, &open, first, last, stamp).await;
    }
}

/// A store with heads that have something, then a run of the workload on it, with no map in memory at its start.
fn record(seed: u64, steps: u64) -> (Rig, Vec<Event>) {
    let rig = Rig::formatted(seed);
    let log = Log::new(&rig);
    let events = Rc::clone(&log.events);
    rig.run({
        let log = log.clone();
        async move {
            let store = open().await;
            for head in heads() {
                let event = log.begin(head, What::Create);
                store.create(&lvol(head, BLOCKS * BLOCK)).await.expect("created");
                log.end(event);
                let open = store.open_lvol(id(head)).await.expect("opened");
                log.write(head, &open, 0, BLOCKS - head as u64, head as u64).await;
            }
            log.trim(&store).await;
            store.close().await.expect("closed");
        }
    });
    rig.world.record_disk(rig.node, DISK);
    rig.run(async move {
        let store = open().await;
        assert_eq!(store.info().maps_in_memory, 0);
        let tasks: Vec<_> = (0..TASKS).map(|task| spawn(work(log.clone(), store.clone(), task, seed, steps))).collect();
        for task in tasks {
            task.await.expect("no task panics");
        }
        settle(&store).await;
        log.trim(&store).await;
        assert_eq!(store.info().maps_in_memory, 0);
        // Freed clusters come back.
        sleep(Duration::from_secs(2)).await;
        store.close().await.expect("closed");
    });
    let events = events.borrow().clone();
    (rig, events)
}

/// Opens the store on what is left, and looks at everything twice: as it was found, and after a checkpoint that carried over what was
/// never in memory.
fn check(events: &[Event], at: usize, cut: &Cut, survival: Survival, boot: u64) {
    let rig = Rig::with_image(boot, cut.image(survival));
    let events = events.to_vec();
    rig.run(async move {
        let store = open().await;
        assert!(!store.info().damaged);
        assert_eq!(store.info().maps_in_memory, 0, "I27");
        let expectation = Expectation { events: &events, unit: 512, at };
        if at.is_multiple_of(2) {
            cool(&store).await;
        }
        check_all(&store, &expectation).await;
        settle(&store).await;
        check_space(&store);
        let before = contents(&store).await;
        cool(&store).await;
        go_on(&store, at).await;
        store.close().await.expect("closed");
        let store = open().await;
        assert!(contents(&store).await == before, "cut {at}: a checkpoint changed something");
        check_space(&store);
    });
}

async fn check_all(store: &Store, expectation: &Expectation<'_>) {
    for head in heads() {
        expectation.check_head(store, head).await;
    }
    expectation.check_snapshots(store).await;
}

async fn contents(store: &Store) -> Vec<Vec<u8>> {
    let mut contents = Vec::new();
    for head in heads() {
        let open = store.open_lvol(id(head)).await.expect("opened");
        contents.push(read(&open, 0, BLOCKS * BLOCK).await.expect("read"));
    }
    contents
}

/// The store is one like any other: new clusters are nobody's.
async fn go_on(store: &Store, at: usize) {
    store.create(&lvol(99, 1 << 20)).await.expect("created");
    let other = store.open_lvol(id(99)).await.expect("opened");
    write(&other, 0, stamped(at as u64, 200 << 10)).await.expect("written");
    assert!(read(&other, 0, 200 << 10).await.expect("read") == stamped(at as u64, 200 << 10)[..]);
}

#[test]
fn a_power_cut_at_every_step_while_maps_come_and_go() {
    let (mut labels, mut deletes) = (0, 0);
    for seed in [61, 62] {
        let (rig, events) = record(seed, 12);
        labels += events.iter().filter(|event| matches!(event.what, What::Label(_))).count();
        deletes += events.iter().filter(|event| matches!(event.what, What::Delete)).count();
        let history = rig.world.disk_history(rig.node, DISK);
        let mut random = Random::new(seed);
        let mut checked = 0;
        for (at, cut) in history.cuts().enumerate() {
            let survivals = cut.survivals(2, random.next_u64());
            let count = if is_long() { survivals.len() } else { survivals.len().min(3) };
            let first = random.index(survivals.len());
            for survival in survivals.iter().cycle().skip(first).take(count) {
                check(&events, at, &cut, *survival, 1);
                checked += 1;
            }
        }
        assert!(checked > 300, "{checked}");
    }
    assert!(labels > 0 && deletes > 0, "{labels} labels, {deletes} deletes");
}

/// The second cut is at each step of the recovery and of the first checkpoint after it, of maps that were not in memory.
#[test]
fn a_second_power_cut_during_recovery_and_the_checkpoint_after_it() {
    let (rig, events) = record(63, 12);
    let history = rig.world.disk_history(rig.node, DISK);
    let mut random = Random::new(63);
    let tries = if is_long() { 200 } else { 16 };
    for _ in 0..tries {
        let at = random.index(history.len());
        let first = history.cut(at).image(Survival::Random(random.next_u64()));
        let rig = Rig::with_image(1, first);
        rig.world.record_disk(rig.node, DISK);
        rig.run(async {
            let store = open().await;
            cool(&store).await;
        });
        let again = rig.world.disk_history(rig.node, DISK);
        for (step, cut) in again.cuts().enumerate() {
            for survival in [Survival::AllLost, Survival::AllKept, Survival::Random(step as u64)] {
                check(&events, at, &cut, survival, 2);
            }
        }
    }
}
