//! Reading a checkpoint: page by page, each on its own.

use std::collections::{BTreeMap, BTreeSet};

use reactor::{Buffer, Disk};

use crate::catalog::Catalog;
use crate::error::StoreError;
use crate::format::BLOCK;
use crate::format::page::{DirectoryEntry, MAX_PAGE, Page, PageContext, Segment};
use crate::format::record::{Damage, LvolRecord};
use crate::format::superblock::Superblock;

/// How many bytes of a checkpoint are read at once.
const CHUNK: u64 = 1 << 20;

/// What a checkpoint held besides what went into the catalog.
#[derive(Default)]
pub(crate) struct Found {
    /// Something is missing or disagrees.
    pub(crate) damaged: bool,
    /// Clusters in use by the bitmap.
    used: Vec<(u64, u32, Vec<u8>)>,
    /// Clusters that the bitmap told of.
    told: u64,
    clusters: u64,
    directory: BTreeMap<u32, DirectoryEntry>,
    /// Map pages seen, and maps with a segment that cannot be.
    pages: BTreeMap<u32, u32>,
    bad_maps: BTreeMap<u32, &'static str>,
    /// Blocks of the area that hold no good page.
    bad_blocks: BTreeSet<u32>,
    owners: BTreeSet<u32>,
}

/// Reads the checkpoint that the superblock names into the catalog.
pub(super) async fn load_checkpoint(
    disk: &Disk,
    superblock: &Superblock,
    catalog: &mut Catalog,
) -> Result<Found, StoreError> {
    let pointer = superblock.checkpoint;
    let context = PageContext { format_id: superblock.format_id, checkpoint: pointer.sequence };
    let area = superblock.layout.areas[pointer.area as usize];
    let mut found = Found { clusters: superblock.layout.clusters, ..Found::default() };
    let mut segments = Vec::new();
    let mut at = 0;
    while at < pointer.length {
        // The last page of a chunk may go on in the next: then that page begins the next chunk.
        let length = (pointer.length - at).min(CHUNK);
        let (result, bytes) = disk.read(area.offset + at, Buffer::new(length as usize)).await;
        result.map_err(StoreError::io("reading a checkpoint"))?;
        let last = at + length == pointer.length;
        let mut place = 0;
        while place < bytes.len() && (last || bytes.len() - place >= MAX_PAGE) {
            let position = at + place as u64;
            match context.decode(&bytes[place..], area.offset + position) {
                Ok((page, page_length)) => {
                    found.take(page, catalog, &mut segments);
                    place += page_length;
                }
                Err(flaw) => {
                    tracing::error!(offset = area.offset + position, %flaw, "a checkpoint page is damaged");
                    found.damaged = true;
                    found.bad_blocks.insert((position / BLOCK) as u32);
                    place += BLOCK as usize;
                }
            }
        }
        at += place as u64;
    }
    found.finish(superblock, catalog);
    Ok(found)
}

impl Found {
    fn take(&mut self, page: Page, catalog: &mut Catalog, segments: &mut Vec<Segment>) {
        match page {
            Page::Map { map, segments: more } => {
                *self.pages.entry(map).or_default() += 1;
                segments.extend(more);
                self.load_segments(map, segments, catalog);
            }
            Page::Lvol(record) if !catalog.layout().fits_lvol(record.size) => {
                tracing::error!(lvol = %record.uuid, size = record.size, "an lvol is larger than one can be");
                self.damaged = true;
            }
            Page::Lvol(record) => self.take_lvol(*record, catalog),
            Page::Directory(entries) => {
                let entries = entries.into_iter().filter(|entry| catalog.layout().fits_lvol(entry.size));
                self.directory.extend(entries.map(|entry| (entry.map, entry)));
            }
            Page::Bitmap { first, count, bits } => {
                self.told += u64::from(count);
                self.used.push((first, count, bits));
            }
        }
    }

    fn load_segments(&mut self, map: u32, segments: &mut Vec<Segment>, catalog: &mut Catalog) {
        let layout = *catalog.layout();
        let target = catalog.add_map(map);
        for segment in segments.drain(..) {
            if let Err(error) = target.load(&segment, |cluster| layout.is_data(cluster)) {
                self.bad_maps.insert(map, error.0);
            }
        }
    }

    fn take_lvol(&mut self, record: LvolRecord, catalog: &mut Catalog) {
        let Damage { record: record_damaged, map: map_damaged } = record.damage;
        self.damaged |= record_damaged || map_damaged;
        if map_damaged {
            catalog.damage_map(record.map, "its map was found damaged earlier");
        }
        let damage = record_damaged.then(|| "its record was found damaged earlier".to_owned());
        self.owners.insert(record.map);
        catalog.add_map(record.map);
        catalog.insert(LvolRecord { damage: Damage::default(), ..record }, damage);
    }

    /// Draws the conclusions from what is missing.
    fn finish(&mut self, superblock: &Superblock, catalog: &mut Catalog) {
        self.restore_from_directory(catalog);
        let map_blocks = (superblock.checkpoint.maps_length / BLOCK) as u32;
        let bad_map_blocks = self.bad_blocks.range(..map_blocks).count();
        for map in catalog.maps.keys().copied().collect::<Vec<_>>() {
            let reason = match self.directory.get(&map) {
                Some(entry) if self.pages.get(&map).copied().unwrap_or(0) != entry.pages => {
                    "a page of its map is damaged"
                }
                // Nobody can say whose pages the damaged ones were.
                None if bad_map_blocks > 0 => "a page of its map may be damaged, and the directory is",
                _ => self.bad_maps.get(&map).copied().unwrap_or(""),
            };
            if !reason.is_empty() {
                self.damaged = true;
                catalog.damage_map(map, reason);
            }
        }
        self.drop_orphans(catalog);
        if catalog.lvols.len() != superblock.lvols as usize {
            tracing::error!(found = catalog.lvols.len(), expected = superblock.lvols, "lvols are missing");
            self.damaged = true;
        }
    }

    /// Lvols whose record is damaged but that the directory names: they are told of, and others can read through them.
    fn restore_from_directory(&mut self, catalog: &mut Catalog) {
        for entry in self.directory.values().copied().collect::<Vec<_>>() {
            if catalog.lvols.contains_key(&entry.uuid) {
                continue;
            }
            let record = LvolRecord {
                uuid: entry.uuid,
                parent: entry.parent,
                internal: entry.internal,
                size: entry.size,
                block_size: entry.block_size,
                snapshot: entry.snapshot,
                damage: Damage::default(),
                deletion: entry.deletion,
                created_at: 0,
                map: entry.map,
                name: String::new(),
                attributes: BTreeMap::new(),
            };
            tracing::error!(lvol = %entry.uuid, "the record of an lvol is damaged");
            self.damaged = true;
            self.owners.insert(entry.map);
            catalog.add_map(entry.map);
            catalog.insert(record, Some("its record is damaged".to_owned()));
        }
    }

    /// Maps without an lvol: those of lvols that are lost, whose clusters stay in use by the bitmap, or those of lvols that
    /// were deleted while the checkpoint was written, which are free.
    fn drop_orphans(&mut self, catalog: &mut Catalog) {
        catalog.maps.retain(|map, _| self.owners.contains(map));
    }

    /// Keeps every cluster in use that the bitmap has in use or does not tell of: with a map damaged, that is the only way
    /// not to give its clusters to another lvol.
    pub(super) fn keep_clusters(&self, catalog: &mut Catalog) {
        let layout = *catalog.layout();
        let mut free = vec![false; self.clusters as usize];
        for (first, count, bits) in &self.used {
            for place in 0..u64::from(*count) {
                let cluster = first.saturating_add(place);
                if layout.is_data(cluster) && bits[place as usize / 8] >> (place % 8) & 1 == 0 {
                    free[(cluster - layout.first_cluster) as usize] = true;
                }
            }
        }
        for (place, _) in free.iter().enumerate().filter(|(_, free)| !**free) {
            catalog.allocator.claim(layout.first_cluster + place as u64);
        }
    }
}
