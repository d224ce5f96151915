//! Reading a checkpoint: page by page, each on its own. First what comes last, so that it is known whose the pages of maps are; then
//! those, in one stream: most maps are only looked at, and stay where they are.

use std::collections::{BTreeMap, BTreeSet};

use reactor::{Buffer, Disk};

use crate::catalog::Catalog;
use crate::error::StoreError;
use crate::format::BLOCK;
use crate::format::page::{DirectoryEntry, MAX_PAGE, Page, PageContext};
use crate::format::record::{Damage, LvolRecord};
use crate::format::superblock::Superblock;
use crate::map::Loader;
use crate::maps::Place;
use crate::reading::{Unreadable, each_map_page};

/// How many bytes of lvols, directory and bitmap are read at once.
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
    /// Blocks among the pages of maps that hold no good page.
    bad_blocks: u64,
    /// Maps that an lvol has.
    owners: BTreeSet<u32>,
}

/// Reads the checkpoint that the superblock names into the catalog. Of the maps, those of `touched` are brought into memory. The
/// clusters of the others are claimed; those that are claimed already are returned too.
pub(super) async fn load_checkpoint(
    disk: &Disk,
    superblock: &Superblock,
    catalog: &mut Catalog,
    touched: &BTreeSet<u32>,
) -> Result<(Found, BTreeSet<u64>), StoreError> {
    let mut found = Found { clusters: superblock.layout.clusters, ..Found::default() };
    read_rest(disk, superblock, catalog, &mut found).await?;
    found.restore_from_directory(catalog);
    let mut contested = BTreeSet::new();
    found.read_maps(disk, superblock, catalog, touched, &mut contested).await?;
    found.finish(superblock, catalog);
    Ok((found, contested))
}

/// Which maps that are not in memory name one of these clusters, each as often as it does.
pub(super) async fn owners(
    disk: &Disk,
    superblock: &Superblock,
    catalog: &Catalog,
    clusters: &BTreeSet<u64>,
) -> Result<BTreeMap<u32, Vec<u64>>, StoreError> {
    let (context, maps) = map_pages(superblock);
    let mut loaders: BTreeMap<u32, Loader> = BTreeMap::new();
    let mut owners: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    each_map_page(disk, &context, maps, Unreadable::Lost, |_, page| {
        let Ok(page) = page else { return };
        let id = page.map;
        if catalog.maps.cold(id).is_some() {
            let loader = loaders.entry(id).or_insert_with(|| Loader::new(id, &superblock.layout, false));
            // What is wrong with it was found before.
            let _ = loader.take(page, |cluster| {
                if clusters.contains(&cluster) {
                    owners.entry(id).or_default().push(cluster);
                }
            });
        }
    })
    .await?;
    Ok(owners)
}

/// The pages of maps of the checkpoint that the superblock names.
fn map_pages(superblock: &Superblock) -> (PageContext, std::ops::Range<u64>) {
    let pointer = superblock.checkpoint;
    let start = superblock.layout.areas[pointer.area as usize].offset;
    let context = PageContext { format_id: superblock.format_id, checkpoint: pointer.sequence };
    (context, start..start + pointer.maps_length)
}

/// Reads what comes after the maps: lvols, the directory and the bitmap.
async fn read_rest(
    disk: &Disk,
    superblock: &Superblock,
    catalog: &mut Catalog,
    found: &mut Found,
) -> Result<(), StoreError> {
    let pointer = superblock.checkpoint;
    let (context, maps) = map_pages(superblock);
    let start = maps.start;
    let mut at = pointer.maps_length;
    while at < pointer.length {
        // The last page of a chunk may go on in the next: then that page begins the next chunk.
        let length = (pointer.length - at).min(CHUNK);
        let (result, bytes) = disk.read(start + at, Buffer::new(length as usize)).await;
        result.map_err(StoreError::io("reading a checkpoint"))?;
        let last = at + length == pointer.length;
        let mut place = 0;
        while place < bytes.len() && (last || bytes.len() - place >= MAX_PAGE) {
            let position = at + place as u64;
            match context.decode(&bytes[place..], start + position) {
                Ok((page, page_length)) => {
                    found.take(page, catalog);
                    place += page_length;
                }
                Err(flaw) => {
                    tracing::error!(offset = start + position, %flaw, "a checkpoint page is damaged");
                    found.damaged = true;
                    place += BLOCK as usize;
                }
            }
        }
        at += place as u64;
    }
    Ok(())
}

/// A map of which pages were seen.
struct Seen {
    /// Where the first one is.
    offset: u64,
    loader: Loader,
    wrong: Option<&'static str>,
}

impl Found {
    fn take(&mut self, page: Page, catalog: &mut Catalog) {
        match page {
            // Its place is before those that are read here.
            Page::Map { .. } => self.damaged = true,
            Page::Lvol(record) if !catalog.layout().fits_lvol(record.size) => {
                tracing::error!(lvol = %record.uuid, size = record.size, "an lvol is larger than one can be");
                self.damaged = true;
            }
            Page::Lvol(record) => self.take_lvol(*record, catalog),
            Page::Marks(runs) => {
                for run in runs {
                    if catalog.mark(run, true).is_err() {
                        tracing::error!(?run, "a mark names blocks that hold no data");
                        self.damaged = true;
                    }
                }
            }
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

    async fn read_maps(
        &mut self,
        disk: &Disk,
        superblock: &Superblock,
        catalog: &mut Catalog,
        touched: &BTreeSet<u32>,
        contested: &mut BTreeSet<u64>,
    ) -> Result<(), StoreError> {
        let (context, part) = map_pages(superblock);
        let mut seen: BTreeMap<u32, Seen> = BTreeMap::new();
        let allocator = &mut catalog.allocator;
        let (owners, bad_blocks) = (&self.owners, &mut self.bad_blocks);
        each_map_page(disk, &context, part, Unreadable::Lost, |offset, page| {
            let page = match page {
                Ok(page) => page,
                Err(flaw) => {
                    tracing::error!(offset, %flaw, "a page of a map is damaged");
                    *bad_blocks += 1;
                    return;
                }
            };
            // Maps without an lvol: those of lvols that are lost, whose clusters stay in use by the bitmap, or those of lvols
            // that were deleted while the checkpoint was written, which are free.
            if !owners.contains(&page.map) {
                return;
            }
            let keep = touched.contains(&page.map);
            let map = seen.entry(page.map).or_insert_with(|| {
                let loader = Loader::new(page.map, &superblock.layout, keep);
                Seen { offset, loader, wrong: None }
            });
            let taken = map.loader.take(page, |cluster| {
                if !keep && !allocator.claim(cluster) {
                    contested.insert(cluster);
                }
            });
            map.wrong = map.wrong.or(taken.err().map(|error| error.0));
        })
        .await?;
        for id in self.owners.clone() {
            let seen = seen.remove(&id);
            self.place_map(id, seen, superblock, catalog, touched.contains(&id));
        }
        Ok(())
    }

    /// Notes where a map is, and what is wrong with it.
    fn place_map(&mut self, id: u32, seen: Option<Seen>, superblock: &Superblock, catalog: &mut Catalog, keep: bool) {
        let (context, part) = map_pages(superblock);
        let (pages, counts) = seen.as_ref().map_or_else(Default::default, |seen| seen.loader.seen());
        let wrong = match self.directory.get(&id) {
            Some(entry) if entry.pages != pages => Some("a page of its map is damaged"),
            // Nobody can say whose pages the damaged ones were.
            None if self.bad_blocks > 0 => Some("a page of its map may be damaged, and the directory is"),
            Some(entry) if entry.counts != counts => Some("its map is not what the directory says"),
            _ => None,
        };
        if let Some(reason) = wrong.or(seen.as_ref().and_then(|seen| seen.wrong)) {
            self.damaged = true;
            catalog.maps.damage(id, reason);
        }
        let offset = match (self.directory.get(&id), &seen) {
            (Some(entry), _) => part.start + u64::from(entry.first_page) * BLOCK,
            (None, Some(seen)) => seen.offset,
            (None, None) => part.start,
        };
        let pages = self.directory.get(&id).map_or(pages, |entry| entry.pages);
        let fits = offset.saturating_add(u64::from(pages) * BLOCK) <= part.end;
        let (offset, pages) = if fits { (offset, pages) } else { (part.start, 0) };
        let place = Place { checkpoint: context.checkpoint, offset, pages, counts };
        let map = match seen {
            _ if !keep => None,
            Some(seen) => seen.loader.into_map(),
            None => Loader::new(id, &superblock.layout, true).into_map(),
        };
        catalog.see_map(id);
        catalog.maps.add_saved(id, place, map);
    }

    fn take_lvol(&mut self, record: LvolRecord, catalog: &mut Catalog) {
        let Damage { record: record_damaged, map: map_damaged } = record.damage;
        self.damaged |= record_damaged || map_damaged;
        if map_damaged {
            catalog.maps.damage(record.map, "its map was found damaged earlier");
        }
        let damage = record_damaged.then(|| "its record was found damaged earlier".to_owned());
        self.owners.insert(record.map);
        catalog.insert(LvolRecord { damage: Damage::default(), ..record }, damage);
    }

    /// Draws the conclusions from what is missing.
    fn finish(&mut self, superblock: &Superblock, catalog: &Catalog) {
        self.damaged |= self.bad_blocks > 0;
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
            tracing::error!(lvol = %entry.uuid, "the record of an lvol is damaged");
            self.damaged = true;
            self.owners.insert(entry.map);
            catalog.insert(entry.nameless(), Some("its record is damaged".to_owned()));
        }
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
