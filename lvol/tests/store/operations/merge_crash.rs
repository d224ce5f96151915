//! Power cuts at every step while snapshots are merged into a head that is written.
//!
//! Whatever the cut left: the store opens, blocks that nobody wrote meanwhile read as before, the others as one of the
//! writes since the last flush; what was to be deleted goes when the store is open again, with the same content, and no
//! cluster is lost (I26, I27).

use std::cell::RefCell;
use std::rc::Rc;

use reactor::simulated::{Cut, Random, Survival};
use reactor::spawn;

use super::{BLOCK, PER_CLUSTER, SIZE, fill, settle, with_head};
use crate::rig::{DISK, Rig, check_space, flush, id, open, read_all, snapshot, unmap};

/// Blocks of the head that the test looks at.
const BLOCKS: u64 = 6 * PER_CLUSTER;

/// A write of one block, or a flush: the steps of the disk at which it began and was answered.
#[derive(Clone, Copy)]
struct Event {
    start: usize,
    end: usize,
    /// The block and its stamp.
    write: Option<(u64, u64)>,
}

/// Stamps of all blocks before the merge: three layers, of which the last two leave gaps and holes.
const fn base(block: u64) -> u64 {
    match block % 7 {
        _ if block >= 4 * PER_CLUSTER && block < 5 * PER_CLUSTER => 0,
        0 | 1 => 300 + block,
        2 => 200 + block,
        _ => 100 + block,
    }
}

/// The steps at which the merges were asked for and over, and what was written meanwhile.
struct Run {
    rig: Rig,
    events: Vec<Event>,
    marked: usize,
    gone: usize,
}

fn record(seed: u64) -> Run {
    let rig = Rig::formatted(seed);
    rig.run(async {
        let (store, head) = with_head().await;
        for block in 0..BLOCKS {
            fill(&head, block, block + 1, 100 + block).await;
        }
        store.snapshot(id(1), &snapshot(10)).await.expect("cut");
        unmap(&head, 4 * PER_CLUSTER * BLOCK, PER_CLUSTER * BLOCK).await.expect("unmapped");
        for block in (0..BLOCKS).filter(|block| block % 7 == 2 && base(*block) != 0) {
            fill(&head, block, block + 1, 200 + block).await;
        }
        store.snapshot(id(1), &snapshot(11)).await.expect("cut");
        for block in (0..BLOCKS).filter(|block| block % 7 < 2 && base(*block) != 0) {
            fill(&head, block, block + 1, 300 + block).await;
        }
        store.close().await.expect("closed");
    });
    rig.world.record_disk(rig.node, DISK);
    let (observer, node) = (rig.world.observer(), rig.node);
    let (events, marked, gone) = rig.run(async move {
        let steps = move || observer.disk_steps(node, DISK);
        let store = open().await;
        let head = store.open_lvol(id(1)).await.expect("opened");
        let events = Rc::new(RefCell::new(Vec::new()));
        let writer = spawn({
            let (events, steps, mut random) = (Rc::clone(&events), steps.clone(), Random::new(seed));
            async move {
                for number in 0..12 {
                    let (start, block) = (steps(), random.below(BLOCKS));
                    let write = (number % 4 != 3).then_some((block, 1000 + number));
                    match write {
                        Some((block, stamp)) => fill(&head, block, block + 1, stamp).await,
                        None => flush(&head).await.expect("flushed"),
                    }
                    events.borrow_mut().push(Event { start, end: steps(), write });
                }
            }
        });
        store.delete(id(10)).await.expect("marked");
        store.delete(id(11)).await.expect("marked");
        let marked = steps();
        settle(&store).await;
        let gone = steps();
        writer.await.expect("no panic");
        store.close().await.expect("closed");
        (events.take(), marked, gone)
    });
    Run { rig, events, marked, gone }
}

/// The stamps that a block may have after a cut.
fn allowed(events: &[Event], at: usize, block: u64) -> Vec<u64> {
    let flushes = events.iter().filter(|event| event.write.is_none() && event.end <= at);
    let settled = flushes.map(|event| event.start).max().unwrap_or(0);
    let mut stamps = vec![base(block)];
    for event in events.iter().filter(|event| event.start <= at) {
        let Some((written, stamp)) = event.write else { continue };
        if written == block {
            if event.end <= settled {
                stamps.clear();
            }
            stamps.push(stamp);
        }
    }
    stamps
}

fn check_content(content: &[u8], events: &[Event], at: usize) {
    assert_eq!(content.len() as u64, SIZE);
    for (block, bytes) in (0..BLOCKS).zip(content.chunks_exact(BLOCK as usize)) {
        let stamps = allowed(events, at, block);
        for part in bytes.chunks_exact(8) {
            let stamp = u64::from_le_bytes(part.try_into().expect("eight bytes"));
            assert!(stamps.contains(&stamp), "cut {at}: block {block} holds {stamp}, not one of {stamps:?}");
        }
    }
}

/// Opens the store on what is left and lets it finish what was begun.
fn check(run: &Run, at: usize, cut: &Cut, survival: Survival) {
    let rig = Rig::with_image(at as u64, cut.image(survival));
    finish(&rig, run, at);
}

fn finish(rig: &Rig, run: &Run, at: usize) {
    let (events, marked, gone) = (run.events.clone(), at >= run.marked, at >= run.gone);
    rig.run(async move {
        let store = open().await;
        assert!(!store.info().damaged);
        let head = store.open_lvol(id(1)).await.expect("opened");
        let before = read_all(&head).await;
        check_content(&before, &events, at);
        check_space(&store);
        let count = store.lvols().len();
        assert!(!gone || count == 1);
        settle(&store).await;
        assert!(read_all(&head).await == before, "finishing the deletions changed something");
        assert!(!marked || store.lvols().len() == 1);
        check_space(&store);
        store.close().await.expect("closed");
    });
}

#[test]
fn a_power_cut_at_every_step_of_a_merge_leaves_every_block_as_it_was() {
    let run = record(81);
    let history = run.rig.world.disk_history(run.rig.node, DISK);
    for (at, cut) in history.cuts().enumerate() {
        for survival in cut.survivals(1, at as u64) {
            check(&run, at, &cut, survival);
        }
    }
}

#[test]
fn a_second_power_cut_while_a_merge_is_finished_does_no_harm() {
    let run = record(82);
    let history = run.rig.world.disk_history(run.rig.node, DISK);
    let mut random = Random::new(82);
    for _ in 0..8 {
        let at = random.index(history.len());
        let rig = Rig::with_image(at as u64, history.cut(at).image(Survival::Random(random.next_u64())));
        rig.world.record_disk(rig.node, DISK);
        rig.run(async {
            let store = open().await;
            settle(&store).await;
        });
        let again = rig.world.disk_history(rig.node, DISK);
        for (step, cut) in again.cuts().enumerate() {
            check(&run, at, &cut, Survival::Random(step as u64));
        }
    }
}
