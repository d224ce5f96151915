//! Two lvols that claim one cluster, with maps that nobody has in memory: an open finds both and serves neither, a check says so,
//! and nobody else notices (I28).

use std::collections::{BTreeMap, BTreeSet};

use lvol::offline::{CheckOptions, Severity, check};
use lvol::{LvolState, Store, StoreError};
use reactor::simulated::DiskImage;

use super::damage::seal;
use super::{BLOCK, cool, map_pages};
use crate::operations::settle;
use crate::rig::{Rig, disk, flush, id, lvol, open, read_all, stamped, write};

const CLUSTER: u64 = 64 << 10;

const LVOLS: u128 = 4;

/// Where the first entry of a page of a map is that has no leaf in a row.
const FIRST_ENTRY: usize = 64 + 8 + 16;

/// A store with four lvols, whose maps have one page each; one more write of the last one is only in the journal unless it is closed.
fn prepared(closed: bool) -> DiskImage {
    let rig = Rig::formatted(81);
    rig.run(async move {
        let store = open().await;
        for number in 1..=LVOLS {
            store.create(&lvol(number, 1 << 20)).await.expect("created");
            let head = store.open_lvol(id(number)).await.expect("opened");
            // Not all of a cluster, so that each has an entry of its own.
            for cluster in [0, 3, 5] {
                write(&head, cluster * CLUSTER, stamped(number as u64, 8192)).await.expect("written");
            }
        }
        cool(&store).await;
        let last = store.open_lvol(id(LVOLS)).await.expect("opened");
        write(&last, 9 * CLUSTER, stamped(LVOLS as u64, 8192)).await.expect("written");
        flush(&last).await.expect("flushed");
        drop(last);
        if closed {
            store.close().await.expect("closed");
        }
    });
    rig.image()
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The page of an lvol's map: maps are in the order in which their lvols were made.
fn page_of(image: &DiskImage, number: u128) -> u64 {
    let pages = map_pages(image);
    assert_eq!(pages.len() as u128, LVOLS);
    pages[number as usize - 1].0
}

/// The cluster of the first entry of an lvol's map.
fn first_cluster(image: &DiskImage, number: u128) -> u64 {
    word(&image.bytes(page_of(image, number), BLOCK as usize), FIRST_ENTRY) >> 16
}

/// Makes entry `entry` of an lvol's map name a cluster.
fn claim_in_page(image: &mut DiskImage, number: u128, entry: usize, cluster: u64) {
    let offset = page_of(image, number);
    let mut page = image.bytes(offset, BLOCK as usize);
    let at = FIRST_ENTRY + 8 * entry;
    let claimed = cluster << 16 | word(&page, at) & 0xffff;
    page[at..at + 8].copy_from_slice(&claimed.to_le_bytes());
    seal(&mut page);
    image.write(offset, &page);
}

/// Makes the record of the last lvol's write in the journal name a cluster.
fn claim_in_journal(image: &mut DiskImage, cluster: u64) {
    let journal = (4 << 20) + BLOCK..(5 << 20);
    let mut changed = 0;
    for offset in journal.step_by(BLOCK as usize) {
        let mut batch = image.bytes(offset, BLOCK as usize);
        // The first record of a batch is at 88: its type, its length, the map, the cluster of the lvol and the one on disk.
        if batch.starts_with(b"ASHLJRNL") && batch[88] == 1 && batch[96..100] == 9u32.to_le_bytes() {
            batch[100..108].copy_from_slice(&cluster.to_le_bytes());
            seal(&mut batch);
            image.write(offset, &batch);
            changed += 1;
        }
    }
    assert_eq!(changed, 1);
}

fn content(number: u128, more: bool) -> Vec<u8> {
    let mut content = vec![0; 1 << 20];
    for cluster in [0, 3, 5].into_iter().chain((more && number == LVOLS).then_some(9)) {
        let at = (cluster * CLUSTER) as usize;
        content[at..at + 8192].copy_from_slice(&stamped(number as u64, 8192));
    }
    content
}

/// Opens each lvol: those of `damaged` are, the others have their content.
async fn serve(store: &Store, damaged: &BTreeSet<u128>) {
    for number in 1..=LVOLS {
        let Some(info) = store.lvol_info(id(number)) else {
            assert!(damaged.contains(&number), "{number} is gone");
            continue;
        };
        match store.open_lvol(id(number)).await {
            Ok(open) => {
                assert!(!damaged.contains(&number), "{number} is served");
                assert!(read_all(&open).await == content(number, true), "{number} reads wrong");
            }
            Err(StoreError::LvolDamaged { reason, .. }) => {
                assert!(damaged.contains(&number), "{number} is damaged: {reason}");
                assert!(matches!(info.state, LvolState::Damaged { .. }));
            }
            Err(other) => panic!("{number}: {other}"),
        }
    }
    assert_eq!(store.info().damaged, !damaged.is_empty());
}

/// All that a store does with lvols that claim a cluster of one another.
fn check_contested(image: &DiskImage, damaged: &[u128], what: &str) {
    check_with_orphans(image, damaged, 0, what);
}

/// The same, where so many blocks that the last of them wrote are in no map any more.
fn check_with_orphans(image: &DiskImage, damaged: &[u128], orphans: usize, what: &str) {
    check_offline(image, damaged, what);
    let rig = Rig::with_image(82, image.clone());
    let damaged: BTreeSet<u128> = damaged.iter().copied().collect();
    let mut claimed: BTreeMap<u128, usize> = damaged.iter().map(|number| (*number, blocks(image, *number))).collect();
    claimed.entry(LVOLS).and_modify(|blocks| *blocks -= orphans);
    let all = damaged.clone();
    let (store, before) = rig.run(async move {
        let store = open().await;
        assert_eq!(store.info().maps_in_memory, 0);
        serve(&store, &all).await;
        cool(&store).await;
        serve(&store, &all).await;
        store.close().await.expect("closed");
        let store = open().await;
        serve(&store, &all).await;
        let before = store.info().free;
        fill(&store, 9).await;
        (store, before)
    });
    // Nothing that one of them may have was written over, nor after the first of them is gone.
    damaged.iter().for_each(|number| assert_eq!(blocks(&rig.image(), *number), claimed[number], "{what}"));
    let Some(first) = damaged.first().copied() else { return };
    let (all, others) = (damaged.clone(), damaged.iter().skip(1).copied().collect::<Vec<_>>());
    rig.run(async move {
        store.delete(id(first)).await.expect("deleted");
        store.delete(id(9)).await.expect("deleted");
        serve(&store, &all).await;
        store.close().await.expect("closed");
        let store = open().await;
        serve(&store, &all).await;
        fill(&store, 9).await;
        store.close().await.expect("closed");
    });
    others.iter().for_each(|number| assert_eq!(blocks(&rig.image(), *number), claimed[number], "{what}"));
    let (what, claims) = (what.to_owned(), damaged.len().max(2) as u64 - 1);
    rig.run(async move {
        let store = open().await;
        store.delete(id(9)).await.expect("deleted");
        let mut named = 3 + u64::from(first == LVOLS);
        for number in others {
            named += store.lvol_info(id(number)).expect("there").used_bytes / CLUSTER;
            store.delete(id(number)).await.expect("deleted");
        }
        // Each of their clusters is free when the last one is gone that named it, and is free once.
        settle(&store).await;
        assert_eq!(store.info().free - before, (named - claims) * CLUSTER, "{what}");
        store.close().await.expect("closed");
        let store = open().await;
        assert_eq!(store.info().free - before, (named - claims) * CLUSTER, "{what}");
        store.close().await.expect("closed");
    });
}

/// A check finds at least what an open does, and writes nothing.
fn check_offline(image: &DiskImage, damaged: &[u128], what: &str) {
    let rig = Rig::with_image(83, image.clone());
    let report = rig.run(async { check(&disk(), &CheckOptions::default()).await }).expect("a store");
    assert_eq!(rig.image().hash(), image.hash(), "{what}: a check wrote something");
    let errors = report.findings.iter().filter(|finding| finding.severity >= Severity::Error);
    let text: String = errors.map(|finding| format!("{finding:?}\n")).collect();
    damaged.iter().for_each(|number| assert!(text.contains(&id(*number).to_string()), "{what}: {text}"));
    assert!(text.is_empty() == damaged.is_empty(), "{what}: {text}");
}

/// Blocks of the disk that this lvol wrote.
fn blocks(image: &DiskImage, number: u128) -> usize {
    let stamp = stamped(number as u64, 512);
    (0..image.size() / BLOCK).filter(|at| image.bytes(at * BLOCK, 512) == stamp[..]).count()
}

/// Takes all the space that there is.
async fn fill(store: &Store, number: u128) {
    store.create(&lvol(number, 64 << 20)).await.expect("created");
    let other = store.open_lvol(id(number)).await.expect("opened");
    let mut at = 0;
    while write(&other, at, stamped(99, CLUSTER as usize)).await.is_ok() {
        at += CLUSTER;
    }
    assert!(at > 0);
}

#[test]
fn nobody_claims_what_is_another_s() {
    for closed in [true, false] {
        check_contested(&prepared(closed), &[], "nothing is wrong");
    }
}

#[test]
fn two_maps_of_the_checkpoint_name_one_cluster() {
    for closed in [true, false] {
        for (one, other, entry) in [(1, 2, 0), (1, 2, 2), (3, 4, 1), (4, 1, 0)] {
            let mut image = prepared(closed);
            let cluster = first_cluster(&image, one);
            claim_in_page(&mut image, other, entry, cluster);
            check_contested(&image, &[one, other], &format!("{other} claims what {one} has, closed: {closed}"));
        }
    }
}

#[test]
fn three_maps_name_one_cluster() {
    let mut image = prepared(true);
    let cluster = first_cluster(&image, 1);
    claim_in_page(&mut image, 2, 0, cluster);
    claim_in_page(&mut image, 4, 1, cluster);
    check_contested(&image, &[1, 2, 4], "three claim one");
}

#[test]
fn two_entries_of_one_map_name_one_cluster() {
    let mut image = prepared(true);
    let cluster = first_cluster(&image, 2);
    claim_in_page(&mut image, 2, 1, cluster);
    check_contested(&image, &[2], "twice in one map");
}

/// The journal gives an lvol a cluster that a map has which nothing else brings into memory.
#[test]
fn the_journal_names_a_cluster_of_a_map_that_is_not_in_memory() {
    for one in [1, 3] {
        let mut image = prepared(false);
        let cluster = first_cluster(&image, one);
        claim_in_journal(&mut image, cluster);
        check_with_orphans(&image, &[one, LVOLS], 2, &format!("the journal gives away what {one} has"));
    }
}
