//! The parsers of what is on disk, for fuzzers: any bytes in, nothing out but a panic when something is wrong with us.

use crate::format::batch::Batch;
use crate::format::fields::Reader;
use crate::format::layout::Layout;
use crate::format::page::{Page, PageContext};
use crate::format::record::Record;
use crate::format::superblock::{CheckpointPointer, Features, Limits, PLACES, Superblock};
use crate::format::{BLOCK, reseal};

/// The identity of all structures here.
const FORMAT_ID: [u8; 16] = [0xf0; 16];

/// Blocks that one record may touch here: a record about a whole lvol of the largest size takes gigabytes by right.
const MOST_BLOCKS: u64 = 1 << 20;

/// A superblock of these bytes, with a header that fits: what is read is what is written again.
pub fn superblock(bytes: &[u8]) {
    for place in PLACES {
        let sealed = sealed(bytes, *b"ASHLSUPB", place, BLOCK as usize);
        if let Ok(superblock) = Superblock::decode(&sealed, place) {
            assert_eq!(Superblock::decode(&superblock.encode(place), place), Ok(superblock));
        }
        let _ = Superblock::decode(bytes, place);
    }
}

/// A batch of these bytes, with a header that fits, and what replaying it on an empty store comes to.
pub fn batch(bytes: &[u8]) {
    let _ = Batch::open(bytes, FORMAT_ID, 0);
    let length = bytes.len().clamp(88, 64 << 10);
    let sealed = sealed(bytes, *b"ASHLJRNL", 0, length);
    if let Ok(batch) = Batch::open(&sealed, FORMAT_ID, 0)
        && let Ok(records) = batch.records()
    {
        replay(&records);
    }
}

/// Records one after the other: what is read is what is written again.
pub fn records(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    let mut records = Vec::new();
    while let Ok(record) = Record::decode(&mut reader) {
        let Some(record) = record else { continue };
        let mut again = Vec::new();
        record.encode(&mut again);
        assert_eq!(again.len(), record.length());
        assert_eq!(Record::decode(&mut Reader::new(&again)).as_ref(), Ok(&Some(record.clone())));
        records.push(record);
    }
    replay(&records);
}

/// A page of each kind of these bytes, with a header that fits.
pub fn page(bytes: &[u8]) {
    let context = PageContext { format_id: FORMAT_ID, checkpoint: 7 };
    let _ = context.decode(bytes, 0);
    for kind in 0..6 {
        let length = bytes.len().clamp(64, 8192);
        let mut page = sealed(bytes, *b"ASHLPAGE", 4096, length);
        page[10] = kind;
        reseal(&mut page, 4096);
        if let Ok((Page::Map { map, segments }, _)) = context.decode(&page, 4096) {
            let records = segments.into_iter().map(|segment| Record::MapMerge { from: map, to: map, segment });
            replay(&records.collect::<Vec<_>>());
        }
    }
}

/// Seals the structure that starts at `bytes[0]` again, as one that belongs at `address`: nothing if there is none.
pub fn seal(bytes: &mut [u8], address: u64) {
    reseal(bytes, address);
}

fn replay(records: &[Record]) {
    let modest = |record: &&Record| match record {
        Record::MapClear { count, .. } | Record::MapZero { count, .. } => *count <= MOST_BLOCKS,
        _ => true,
    };
    let modest: Vec<Record> = records.iter().filter(modest).cloned().collect();
    for cluster_size in [16 << 10, 64 << 10, 4 << 20] {
        crate::offline::replay_all(empty(cluster_size), &modest);
    }
}

/// The superblock of an empty store.
fn empty(cluster_size: u32) -> Superblock {
    Superblock {
        generation: 1,
        format_id: FORMAT_ID,
        uuid: uuid::Uuid::from_u128(1),
        name: "fuzz".to_owned(),
        features: Features::default(),
        limits: Limits { overcommit_percent: 0, reserve: 0 },
        layout: Layout::plan(1 << 30, cluster_size).expect("large enough"),
        created_at: 0,
        session: 1,
        boot_id: [0; 16],
        clean: true,
        damaged: false,
        checkpoint: CheckpointPointer { area: 1, start_batch: 1, ..CheckpointPointer::default() },
        lvols: 0,
        next_map: 1,
    }
}

/// `length` bytes that begin with a header that fits, and go on with `bytes`.
fn sealed(bytes: &[u8], magic: [u8; 8], address: u64, length: usize) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    sealed.resize(length, 0);
    let sequence = 7u64.to_le_bytes();
    sealed[..8].copy_from_slice(&magic);
    sealed[8..12].copy_from_slice(&[1, 0, 0, 0]);
    sealed[24..32].copy_from_slice(&sequence);
    sealed[32..48].copy_from_slice(&FORMAT_ID);
    // At most MAX_BATCH.
    sealed[48..52].copy_from_slice(&(length as u32).to_le_bytes());
    reseal(&mut sealed, address);
    sealed
}
