//! Every structure of a store as fields, one after the other: nothing is kept, so a store of any size can be looked into.

use reactor::Disk;
use uuid::Uuid;

use super::pages::Pages;
use super::superblocks;
use crate::error::StoreError;
use crate::format::layout::Region;
use crate::format::page::{DirectoryEntry, Page, Segment};
use crate::format::record::{Damage, LvolRecord, Record, Stage};
use crate::format::superblock::{PLACES, Superblock};
use crate::map::{LEAF, MapEntry, Shape};
use crate::marks::BlockRun;
use crate::recovery::scan::{Found, Scan};

/// A field's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
    /// Yes or no.
    Flag(bool),
    /// Several of the same.
    List(Vec<Value>),
    /// Named values.
    Fields(Vec<(&'static str, Value)>),
}

/// A structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Which: `superblock`, `batch`, `map`, `lvol`, `directory`, `bitmap`; `damaged` for what is none.
    pub kind: &'static str,
    /// Where, in bytes from the start of the disk.
    pub offset: u64,
    /// Bytes on disk.
    pub length: u64,
    /// What is in it.
    pub fields: Vec<(&'static str, Value)>,
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Uuid> for Value {
    fn from(uuid: Uuid) -> Self {
        Self::Text(uuid.to_string())
    }
}

/// Gives every structure of the store on a disk to `each`, which says whether to go on: the superblocks, the batches that an
/// open would replay, the pages of the checkpoint. What is damaged is an item too.
///
/// # Errors
/// When the disk fails, or when there is no store.
pub async fn dump(disk: &Disk, mut each: impl FnMut(Item) -> bool) -> Result<(), StoreError> {
    let found = superblocks::find(disk).await?;
    for (place, copy) in PLACES.into_iter().zip(&found.copies) {
        let item = match copy {
            Ok(superblock) => {
                Item { kind: "superblock", offset: place, length: 4096, fields: superblock_fields(superblock) }
            }
            Err(flaw) => damaged(place, 4096, flaw.to_string()),
        };
        if !each(item) {
            return Ok(());
        }
    }
    let Some(superblock) = found.superblock else { return Ok(()) };
    let shape = Shape::new(superblock.layout.cluster_size);
    let mut pages = Pages::new(disk, &superblock);
    while let Some(place) = pages.next().await {
        let (kind, fields) = match place.page {
            Ok(page) => page_fields(page, shape),
            Err(bad) => ("damaged", vec![("reason", bad.to_string().into())]),
        };
        if !each(Item { kind, offset: place.offset, length: place.length, fields }) {
            return Ok(());
        }
    }
    match superblock.clean {
        true => Ok(()),
        false => dump_journal(disk, &superblock, shape, each).await,
    }
}

async fn dump_journal(
    disk: &Disk,
    superblock: &Superblock,
    shape: Shape,
    mut each: impl FnMut(Item) -> bool,
) -> Result<(), StoreError> {
    let start = superblock.layout.journal.offset;
    let same_boot = superblock.boot_id == reactor::boot_id();
    let mut scan = Scan::new(disk, superblock);
    let end = loop {
        match scan.next().await {
            Ok(Some(batch)) => {
                let (offset, length) = (start + batch.place, batch.length);
                if !each(Item { kind: "batch", offset, length, fields: batch_fields(batch, shape) }) {
                    return Ok(());
                }
            }
            Ok(None) => break scan.check_end(same_boot).await,
            Err(error) => break Err(error),
        }
    };
    match end {
        Err(StoreError::Damaged { detail }) => {
            let place = start + scan.end().position % superblock.layout.journal.length;
            each(damaged(place, 0, detail));
            Ok(())
        }
        other => other,
    }
}

fn damaged(offset: u64, length: u64, reason: String) -> Item {
    Item { kind: "damaged", offset, length, fields: vec![("reason", reason.into())] }
}

fn superblock_fields(superblock: &Superblock) -> Vec<(&'static str, Value)> {
    let (layout, checkpoint) = (&superblock.layout, &superblock.checkpoint);
    let region =
        |region: &Region| Value::Fields(vec![("offset", region.offset.into()), ("length", region.length.into())]);
    let features = superblock.features;
    vec![
        ("generation", superblock.generation.into()),
        ("uuid", superblock.uuid.into()),
        ("name", superblock.name.clone().into()),
        ("format_id", Uuid::from_bytes(superblock.format_id).into()),
        ("compatible_features", features.compatible.into()),
        ("read_only_features", features.read_only.into()),
        ("incompatible_features", features.incompatible.into()),
        ("size", layout.size.into()),
        ("cluster_size", layout.cluster_size.into()),
        ("first_cluster", layout.first_cluster.into()),
        ("clusters", layout.clusters.into()),
        ("journal", region(&layout.journal)),
        ("areas", Value::List(layout.areas.iter().map(region).collect())),
        ("created_at_ms", superblock.created_at.into()),
        ("session", superblock.session.into()),
        ("boot_id", Uuid::from_bytes(superblock.boot_id).into()),
        ("clean", superblock.clean.into()),
        ("damaged", superblock.damaged.into()),
        ("checkpoint", checkpoint.sequence.into()),
        ("checkpoint_area", checkpoint.area.into()),
        ("checkpoint_maps_length", checkpoint.maps_length.into()),
        ("checkpoint_length", checkpoint.length.into()),
        ("start_batch", checkpoint.start_batch.into()),
        ("start_position", checkpoint.start_position.into()),
        ("durable_through", checkpoint.durable_through.into()),
        ("lvols", superblock.lvols.into()),
        ("next_map", superblock.next_map.into()),
        ("overcommit_percent", superblock.limits.overcommit_percent.into()),
        ("reserve", superblock.limits.reserve.into()),
    ]
}

fn page_fields(page: Page, shape: Shape) -> (&'static str, Vec<(&'static str, Value)>) {
    match page {
        Page::Map { map, segments } => {
            let entries = segments.iter().flat_map(|segment| segment_values(segment, shape)).collect();
            ("map", vec![("map", map.into()), ("entries", Value::List(entries))])
        }
        Page::Lvol(record) => ("lvol", lvol_fields(&record)),
        Page::Directory(entries) => {
            let entries = entries.iter().map(|entry| Value::Fields(directory_fields(entry))).collect();
            ("directory", vec![("lvols", Value::List(entries))])
        }
        Page::Bitmap { first, count, bits } => {
            let used: u32 = bits.iter().map(|byte| byte.count_ones()).sum();
            ("bitmap", vec![("first_cluster", first.into()), ("clusters", count.into()), ("in_use", used.into())])
        }
        Page::Marks(runs) => {
            let runs = runs.iter().map(|run| Value::Fields(run_fields(run))).collect();
            ("marks", vec![("bad", Value::List(runs))])
        }
    }
}

fn run_fields(run: &BlockRun) -> Vec<(&'static str, Value)> {
    vec![("first_block", run.first.into()), ("blocks", run.count.into())]
}

/// The entries of a segment, each with its cluster of the lvol; what does not fit is told as numbers.
fn segment_values(segment: &Segment, shape: Shape) -> Vec<Value> {
    let first = u64::from(segment.leaf) * u64::from(LEAF);
    if segment.zero {
        return vec![Value::Fields(vec![
            ("index", first.into()),
            ("count", u64::from(LEAF).into()),
            ("holds", "zeroes".into()),
        ])];
    }
    if segment.words.len() != segment.present.count_ones() as usize * shape.words() {
        let words = segment.words.iter().map(|word| Value::Text(format!("{word:#x}"))).collect();
        return vec![Value::Fields(vec![("index", first.into()), ("misfit_words", Value::List(words))])];
    }
    let places = (0..LEAF).filter(|place| segment.present >> place & 1 == 1);
    places
        .zip(segment.words.chunks_exact(shape.words()))
        .map(|(place, words)| {
            let entry = MapEntry::from_words(words, shape);
            let runs =
                entry.blocks.runs().iter().map(|run| Value::Text(format!("{}-{}", run.start, run.end - 1))).collect();
            let held = match entry.cluster {
                Some(cluster) => ("cluster", cluster.into()),
                None => ("holds", "zeroes".into()),
            };
            Value::Fields(vec![("index", (first + u64::from(place)).into()), held, ("blocks", Value::List(runs))])
        })
        .collect()
}

fn lvol_fields(record: &LvolRecord) -> Vec<(&'static str, Value)> {
    let Damage { record: record_damaged, map: map_damaged } = record.damage;
    let attributes = record.attributes.iter().map(|(key, value)| {
        let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
        Value::Fields(vec![("key", key.clone().into()), ("value_hex", hex.into())])
    });
    vec![
        ("uuid", record.uuid.into()),
        ("name", record.name.clone().into()),
        ("parent", record.parent.map_or_else(|| "".into(), Value::from)),
        ("role", record.internal.map_or("", |internal| internal.role.name()).into()),
        ("owner", record.internal.map_or_else(|| "".into(), |internal| Value::from(internal.owner))),
        ("size", record.size.into()),
        ("block_size", record.block_size.into()),
        ("snapshot", record.snapshot.into()),
        ("deletion", deletion(record.deletion).into()),
        ("record_damaged", record_damaged.into()),
        ("map_damaged", map_damaged.into()),
        ("created_at_ms", record.created_at.into()),
        ("map", record.map.into()),
        ("attributes", Value::List(attributes.collect())),
    ]
}

const fn deletion(stage: Option<Stage>) -> &'static str {
    match stage {
        None => "",
        Some(Stage::Marked) => "marked",
        Some(Stage::Merging) => "merging",
    }
}

fn directory_fields(entry: &DirectoryEntry) -> Vec<(&'static str, Value)> {
    vec![
        ("uuid", entry.uuid.into()),
        ("parent", entry.parent.map_or_else(|| "".into(), Value::from)),
        ("role", entry.internal.map_or("", |internal| internal.role.name()).into()),
        ("owner", entry.internal.map_or_else(|| "".into(), |internal| Value::from(internal.owner))),
        ("size", entry.size.into()),
        ("block_size", entry.block_size.into()),
        ("snapshot", entry.snapshot.into()),
        ("deletion", deletion(entry.deletion).into()),
        ("map", entry.map.into()),
        ("first_page", entry.first_page.into()),
        ("pages", entry.pages.into()),
    ]
}

fn batch_fields(batch: Found, shape: Shape) -> Vec<(&'static str, Value)> {
    let records = batch.records.iter().map(|record| Value::Fields(record_fields(record, shape))).collect();
    vec![
        ("batch", batch.head.sequence.into()),
        ("session", batch.head.session.into()),
        ("durable_through", batch.head.durable_through.into()),
        ("records", Value::List(records)),
    ]
}

fn record_fields(record: &Record, shape: Shape) -> Vec<(&'static str, Value)> {
    let range = |kind: &'static str, map: u32, first: u64, count: u64| {
        vec![("record", kind.into()), ("map", map.into()), ("first_block", first.into()), ("blocks", count.into())]
    };
    let set = |map: u32, index: u32, cluster: u64, first: u16, count: usize, zeroed: bool| {
        vec![
            ("record", "map set".into()),
            ("map", map.into()),
            ("index", index.into()),
            ("cluster", cluster.into()),
            ("first_block", u32::from(first).into()),
            ("blocks", (count as u64).into()),
            ("zeroed", zeroed.into()),
        ]
    };
    match record {
        Record::MapSet { map, index, cluster, first, checksums } => {
            set(*map, *index, *cluster, *first, checksums.len(), false)
        }
        Record::MapSetZeroed { map, index, cluster, first, count } => {
            set(*map, *index, *cluster, *first, usize::from(*count), true)
        }
        Record::MapClear { map, first, count } => range("map clear", *map, *first, *count),
        Record::MapZero { map, first, count } => range("map zero", *map, *first, *count),
        Record::MapDrop { map } => vec![("record", "map drop".into()), ("map", (*map).into())],
        Record::LvolPut(record) => {
            let mut fields = vec![("record", "lvol put".into())];
            fields.extend(lvol_fields(record));
            fields
        }
        Record::LvolRemove { uuid } => vec![("record", "lvol remove".into()), ("uuid", (*uuid).into())],
        Record::MapMerge { from, to, segment } => vec![
            ("record", "map merge".into()),
            ("from", (*from).into()),
            ("to", (*to).into()),
            ("entries", Value::List(segment_values(segment, shape))),
        ],
        Record::BlocksMarked { run, bad } => {
            let mut fields = vec![("record", "blocks marked".into()), ("bad", (*bad).into())];
            fields.extend(run_fields(run));
            fields
        }
    }
}
