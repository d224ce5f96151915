//! From the checkpoint and the journal to a [`State`], with a finding for each structure that is not as it should be.

use std::collections::{BTreeMap, BTreeSet};

use reactor::{Buffer, Disk};

use super::findings::{Finding, Remedy, Severity, Structure};
use super::pages::{Bad, Pages, Place};
use super::state::{Known, State};
use crate::error::StoreError;
use crate::format::page::{DirectoryEntry, Page, Segment};
use crate::format::record::{Damage, LvolRecord, Record};
use crate::format::superblock::Superblock;
use crate::format::{BLOCK, Flaw, crc32c};
use crate::map::LEAF;
use crate::recovery::scan::{Found, Scan};

/// A map page that is as it should be.
struct MapPage {
    /// In blocks from the start of the area.
    block: u32,
    map: u32,
    /// The first and the last cluster of the lvol that it has an entry for.
    entries: (u64, u64),
}

/// What pages told of besides lvols and maps.
#[derive(Default)]
struct Seen {
    /// In the order of the area.
    maps: Vec<MapPage>,
    directory: BTreeMap<u32, (u64, DirectoryEntry)>,
    /// Blocks of map pages that are none.
    bad: Vec<u32>,
    /// The block behind the last one that is no page, after the maps.
    bad_end: u64,
}

/// Reads all metadata that the superblock leads to.
pub(super) async fn load(disk: &Disk, superblock: Superblock) -> Result<State, StoreError> {
    let mut state = State::new(superblock);
    let mut seen = Seen::default();
    let mut pages = Pages::new(disk, &state.superblock);
    while let Some(place) = pages.next().await {
        take(&mut state, &mut seen, place);
    }
    restore_from_directory(&mut state, &seen);
    find_lost_entries(&mut state, &seen);
    drop_orphans(&mut state);
    let expected = state.superblock.lvols;
    state.lost_lvols = expected.saturating_sub(state.lvols.len() as u32);
    if state.lvols.len() != expected as usize {
        let found = state.lvols.len();
        let text = format!(
            "the checkpoint should have {expected} lvols, and {found} can be found: neither the record nor the directory's entry of the others is left. Their clusters stay in use"
        );
        let what = "the lvols without a name are given up, and their clusters are free".to_owned();
        let remedy = Remedy::AcceptLoss { lvols: vec![uuid::Uuid::nil()], what };
        state.findings.push(Finding::new(Severity::Error, Structure::Record, text, remedy));
    }
    if !state.superblock.clean {
        replay(disk, &mut state).await?;
    }
    Ok(state)
}

fn take(state: &mut State, seen: &mut Seen, place: Place) {
    let block = (place.position / BLOCK) as u32;
    match place.page {
        Ok(Page::Map { map, segments }) => take_map(state, seen, block, map, &segments),
        Ok(Page::Lvol(record)) if !state.fits(record.size) => {
            let flaw = Flaw::Content("an lvol is larger than one can be");
            take_bad(state, seen, (place.position, place.offset), Bad::Flaw(flaw));
        }
        Ok(Page::Lvol(record)) => take_lvol(state, *record, place.offset),
        Ok(Page::Directory(entries)) => {
            let entries = entries.into_iter().filter(|entry| state.fits(entry.size));
            seen.directory.extend(entries.map(|entry| (entry.map, (place.offset, entry))));
        }
        Ok(Page::Bitmap { first, count, bits }) => take_bitmap(state, first, count, &bits),
        Ok(Page::Marks(runs)) => {
            for run in runs {
                apply_record(state, &Record::BlocksMarked { run, bad: true }, place.offset);
            }
        }
        Err(bad) => take_bad(state, seen, (place.position, place.offset), bad),
    }
}

fn take_map(state: &mut State, seen: &mut Seen, block: u32, map: u32, segments: &[Segment]) {
    let layout = state.superblock.layout;
    let leaf = u64::from(LEAF);
    for segment in segments {
        let loaded = state.map(map).map.load(segment, |cluster| layout.is_data(cluster));
        if let Err(error) = loaded {
            let start = u64::from(segment.leaf) * leaf;
            let lost = state.blocks_of(start..start + leaf);
            state.map(map).unknown.insert(lost);
            let text = format!("a page of map {map} is well sealed but wrong: {error}");
            let offset = area_offset(state) + u64::from(block) * BLOCK;
            let remedy = Remedy::Nothing;
            state.findings.push(Finding::new(Severity::Error, Structure::Map, text, remedy).at(offset));
        }
    }
    let first = |segment: &Segment| match segment.zero {
        true => 0,
        false => u64::from(segment.present.trailing_zeros()),
    };
    let last = |segment: &Segment| match segment.zero {
        true => leaf - 1,
        false => u64::from(63u32.saturating_sub(segment.present.leading_zeros())),
    };
    let start = segments.first().map(|segment| u64::from(segment.leaf) * leaf + first(segment));
    let end = segments.last().map(|segment| u64::from(segment.leaf) * leaf + last(segment));
    seen.maps.push(MapPage { block, map, entries: (start.unwrap_or(0), end.unwrap_or(0)) });
}

fn take_lvol(state: &mut State, record: LvolRecord, offset: u64) {
    let Damage { record: record_damaged, map: map_damaged } = record.damage;
    state.map(record.map);
    if map_damaged {
        // Which of its pages were lost is not known any more: what it has now it had then, all else may be missing.
        let everything = state.all_blocks();
        let known = state.map(record.map);
        known.unknown.insert(everything);
        known.damaged_before = true;
        let shape = known.map.shape();
        for index in entries(&known.map) {
            let start = u64::from(index) * u64::from(shape.blocks());
            known.unknown.remove(start..start + u64::from(shape.blocks()));
        }
    }
    let record = LvolRecord { damage: Damage::default(), ..record };
    let known = Known { nameless: record_damaged, record, offset };
    state.lvols.insert(known.record.uuid, known);
}

/// The clusters of an lvol that its map has an entry for.
pub(super) fn entries(map: &crate::map::Map) -> Vec<u32> {
    let mut entries = Vec::new();
    let mut leaf = 0;
    while let Some(segment) = map.next_segment(leaf) {
        let places = (0..LEAF).filter(|place| segment.present >> place & 1 == 1);
        entries.extend(places.map(|place| segment.leaf * LEAF + place));
        leaf = segment.leaf + 1;
    }
    entries
}

fn take_bitmap(state: &mut State, first: u64, count: u32, bits: &[u8]) {
    let layout = state.superblock.layout;
    for place in 0..u64::from(count) {
        let cluster = first.saturating_add(place);
        if layout.is_data(cluster) && bits[place as usize / 8] >> (place % 8) & 1 == 0 {
            let at = cluster - layout.first_cluster;
            state.bitmap[(at / 64) as usize] &= !(1 << (at % 64));
        }
    }
}

/// `position` and `offset`: from the start of the area and of the disk.
fn take_bad(state: &mut State, seen: &mut Seen, (position, offset): (u64, u64), bad: Bad) {
    let unreadable = matches!(bad, Bad::Unreadable(_));
    state.unreadable |= unreadable;
    let is_map = position < state.superblock.checkpoint.maps_length;
    if is_map {
        seen.bad.push((position / BLOCK) as u32);
    } else if !unreadable && position == seen.bad_end {
        // The second block of a record, whose first was told of.
        seen.bad_end = position + BLOCK;
        return;
    }
    seen.bad_end = position + BLOCK;
    let (structure, what) = match is_map {
        true => (Structure::Map, "a map page"),
        false => (Structure::Page, "a page of lvol records, of the directory or of the bitmap"),
    };
    let remedy = match unreadable {
        true => Remedy::Impossible("the disk fails: copy it to another one, then check the copy".to_owned()),
        false => Remedy::Repair("a new checkpoint is written from what is known".to_owned()),
    };
    let finding = Finding::new(Severity::Error, structure, format!("{what} is damaged: {bad}"), remedy);
    state.findings.push(finding.at(offset));
}

/// Lvols whose record is damaged but that the directory names.
fn restore_from_directory(state: &mut State, seen: &Seen) {
    for (offset, entry) in seen.directory.values() {
        if state.lvols.contains_key(&entry.uuid) {
            continue;
        }
        state.map(entry.map);
        state.lvols.insert(entry.uuid, Known { record: entry.nameless(), offset: *offset, nameless: true });
    }
}

/// Which entries stood on the pages that are damaged: pages of a map are in the order of its entries, and maps in that of
/// their numbers, so neighbours tell.
fn find_lost_entries(state: &mut State, seen: &Seen) {
    let owner = |block: u32| {
        let pages = |entry: &DirectoryEntry| entry.first_page..entry.first_page.saturating_add(entry.pages);
        seen.directory.values().find(|(_, entry)| pages(entry).contains(&block)).map(|(_, entry)| entry.map)
    };
    for &block in &seen.bad {
        let at = seen.maps.partition_point(|page| page.block < block);
        let (before, after) = (at.checked_sub(1).map(|at| &seen.maps[at]), seen.maps.get(at));
        let candidates: Vec<u32> = match owner(block) {
            Some(map) => vec![map],
            None => {
                let unnamed = state.maps.keys().copied().filter(|map| !seen.directory.contains_key(map));
                let between =
                    |map: &u32| before.is_none_or(|page| page.map <= *map) && after.is_none_or(|page| *map <= page.map);
                unnamed.filter(between).collect()
            }
        };
        for map in candidates {
            let start = before.filter(|page| page.map == map).map_or(0, |page| page.entries.1 + 1);
            let end = after.filter(|page| page.map == map).map_or(1 << 32, |page| page.entries.0);
            let lost = state.blocks_of(start..end.max(start));
            state.map(map).unknown.insert(lost);
        }
    }
    // A directory that counts other pages than there are says that pages are missing, though none is damaged.
    for (_, entry) in seen.directory.values() {
        let good = seen.maps.iter().filter(|page| page.map == entry.map).count();
        let pages = entry.first_page..entry.first_page.saturating_add(entry.pages);
        let bad = seen.bad.iter().filter(|block| pages.contains(block)).count();
        if good + bad != entry.pages as usize {
            let everything = state.all_blocks();
            state.map(entry.map).unknown.insert(everything);
        }
    }
}

/// Maps that belong to no lvol: of lvols that are lost, or that were deleted while the checkpoint was written.
fn drop_orphans(state: &mut State) {
    let owners: BTreeSet<u32> = state.lvols.values().map(|known| known.record.map).collect();
    state.maps.retain(|map, _| owners.contains(map));
}

fn area_offset(state: &State) -> u64 {
    state.superblock.layout.areas[state.superblock.checkpoint.area as usize].offset
}

/// Replays the journal, and finds out whether it ends where it should.
async fn replay(disk: &Disk, state: &mut State) -> Result<(), StoreError> {
    let superblock = state.superblock.clone();
    let journal = superblock.layout.journal.offset;
    let same_boot = superblock.boot_id == reactor::boot_id();
    let mut scan = Scan::new(disk, &superblock);
    let mut batches = Vec::new();
    let mut broken = None;
    loop {
        match scan.next().await {
            Ok(Some(batch)) => batches.push(batch),
            Ok(None) => break,
            Err(StoreError::Damaged { detail }) => {
                broken = Some(detail);
                break;
            }
            Err(error) => return Err(error),
        }
    }
    if broken.is_none() {
        match scan.check_end(same_boot).await {
            Ok(()) => {}
            Err(StoreError::Damaged { detail }) => broken = Some(detail),
            Err(error) => return Err(error),
        }
    }
    let marked = batches.iter().map(|batch| batch.head.durable_through).max().unwrap_or(0);
    let durable_through = marked.max(superblock.checkpoint.durable_through);
    for batch in &batches {
        let trusted = same_boot || batch.head.sequence <= durable_through;
        apply_batch(disk, state, batch, trusted, journal + batch.place).await?;
    }
    state.end = (scan.end().batch, scan.end().position);
    if let Some(detail) = broken {
        let later = scan.later().await?;
        distrust(state, &later);
        let place = journal + state.end.1 % superblock.layout.journal.length;
        let text = format!(
            "{detail}. What it said is lost, and nobody knows what it was: the store does not open. Lvols can be exported as they were before it"
        );
        let remedy = Remedy::Impossible(
            "export what is needed (ashlar store dump DISK --lvol UUID --to FILE), or let replicas elsewhere rebuild it, \
             then format the store anew"
                .to_owned(),
        );
        state.findings.push(Finding::new(Severity::Fatal, Structure::Journal, text, remedy).at(place));
    } else if !batches.is_empty() {
        let count = batches.len();
        let text =
            format!("the store was not closed in order: {count} batches of the journal are replayed when it is opened");
        state.findings.push(Finding::new(Severity::Note, Structure::Journal, text, Remedy::Nothing));
    }
    Ok(())
}

/// Applies a batch as an open would: first writes that were never flushed count only where their data arrived.
async fn apply_batch(
    disk: &Disk,
    state: &mut State,
    batch: &Found,
    trusted: bool,
    offset: u64,
) -> Result<(), StoreError> {
    for record in &batch.records {
        match record {
            Record::MapSet { map, index, cluster, first, checksums } if !trusted => {
                for (at, &checksum) in checksums.iter().enumerate() {
                    // A record has less than 2^16 blocks.
                    let first = first.saturating_add(at as u16);
                    if arrived(disk, state, *cluster, first, checksum).await? {
                        state.zeroes.remove(&(*cluster, first));
                        let checksums = [checksum].into_iter().collect();
                        let one = Record::MapSet { map: *map, index: *index, cluster: *cluster, first, checksums };
                        apply_record(state, &one, offset);
                    }
                }
            }
            Record::MapSetZeroed { cluster, first, count, .. } => {
                if !trusted && state.superblock.layout.is_data(*cluster) {
                    let blocks = u64::from(state.shape.blocks());
                    let end = (u64::from(*first) + u64::from(*count)).min(blocks) as u16;
                    state.zeroes.extend((*first..end).map(|block| (*cluster, block)));
                }
                apply_record(state, record, offset);
            }
            _ => apply_record(state, record, offset),
        }
    }
    Ok(())
}

/// Whether the data of a block is what its record says was written. What cannot be is for `apply` to find.
async fn arrived(disk: &Disk, state: &State, cluster: u64, block: u16, checksum: u32) -> Result<bool, StoreError> {
    let layout = &state.superblock.layout;
    if !layout.is_data(cluster) || u32::from(block) >= state.shape.blocks() {
        return Ok(true);
    }
    let offset = layout.cluster_offset(cluster) + u64::from(block) * BLOCK;
    let (result, bytes) = disk.read(offset, Buffer::new(BLOCK as usize)).await;
    result.map_err(StoreError::io("verifying what was not flushed"))?;
    Ok(crc32c(&bytes) == checksum)
}

fn apply_record(state: &mut State, record: &Record, offset: u64) {
    let Err(error) = state.apply(record, offset) else { return };
    let map = match record {
        Record::MapSet { map, .. }
        | Record::MapSetZeroed { map, .. }
        | Record::MapClear { map, .. }
        | Record::MapZero { map, .. }
        | Record::MapDrop { map }
        | Record::MapMerge { to: map, .. } => Some(*map),
        Record::LvolPut(_) | Record::LvolRemove { .. } | Record::BlocksMarked { .. } => None,
    };
    let text = format!("a journal record is well sealed but wrong: {error}");
    let finding = Finding::new(Severity::Error, Structure::Journal, text, Remedy::Nothing).at(offset);
    state.findings.push(finding);
    if let Some(map) = map {
        let everything = state.all_blocks();
        state.map(map).unknown.insert(everything);
    }
}

/// Clusters that batches behind a missing one give to somebody may have been freed by it: what older maps have there may be
/// another's data now.
fn distrust(state: &mut State, later: &[Found]) {
    let mut taken: BTreeMap<u64, BTreeSet<(u32, u32)>> = BTreeMap::new();
    for record in later.iter().flat_map(|batch| &batch.records) {
        match record {
            Record::MapSet { map, index, cluster, .. } | Record::MapSetZeroed { map, index, cluster, .. } => {
                taken.entry(*cluster).or_default().insert((*map, *index));
            }
            _ => {}
        }
    }
    for (&id, known) in &mut state.maps {
        let blocks = u64::from(known.map.shape().blocks());
        for index in entries(&known.map) {
            let cluster = known.map.entry(index).cluster;
            let owners = cluster.and_then(|cluster| taken.get(&cluster));
            if owners.is_some_and(|owners| !owners.contains(&(id, index))) {
                let start = u64::from(index) * blocks;
                known.unknown.insert(start..start + blocks);
            }
        }
    }
}
