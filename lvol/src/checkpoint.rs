//! Checkpoints: all metadata, streamed into the area that the last one did not use.
//!
//! A checkpoint is fuzzy: changes go on while it is written, so its pages are of different moments. Replay starts at the
//! batch that was next when it began; records say what is true after them, so it does not matter which of them a page
//! has already.

use std::cell::Cell;
use std::rc::Rc;

use reactor::{Buffer, Disk, spawn};

use crate::core::Core;
use crate::error::StoreError;
use crate::format::BLOCK;
use crate::format::layout::{Layout, Region};
use crate::format::page::{
    BITMAP_CLUSTERS, Counts, DIRECTORY_ENTRIES, DirectoryEntry, MARKS_ENTRIES, MapPages, PageContext,
};
use crate::format::record::LvolRecord;
use crate::format::superblock::{AREAS_AMONG_CLUSTERS, CheckpointPointer};
use crate::map::Map;
use crate::maps::{Origin, Place};
use crate::reading::ReadAhead;
use crate::rounds::Rounds;

/// How many bytes of pages are gathered for one write: bounds the time that I/O of this reactor waits.
const STREAM: usize = 256 << 10;

/// Checkpoints that are asked for.
#[derive(Default)]
pub(crate) struct Checkpoints {
    rounds: Rounds,
    /// The layout that the next one changes to.
    growth: Cell<Option<Layout>>,
}

impl Core {
    /// Writes a checkpoint that begins after this call.
    pub(crate) async fn checkpoint(self: &Rc<Self>) -> Result<(), StoreError> {
        let end = self.checkpoints.rounds.join();
        self.start_checkpoint();
        end.wait().await
    }

    /// Writes a checkpoint into the areas of a larger layout, and changes to that layout and the checkpoint in one superblock:
    /// the store has both or neither.
    pub(crate) async fn checkpoint_grown(self: &Rc<Self>, layout: Layout) -> Result<(), StoreError> {
        self.checkpoints.growth.set(Some(layout));
        self.checkpoint().await
    }

    /// Makes sure that a checkpoint is under way or begins.
    pub(crate) fn start_checkpoint(self: &Rc<Self>) {
        if self.checkpoints.rounds.ask_unless_running() {
            spawn(run_checkpoints(Rc::clone(self)));
        }
    }

    async fn checkpoint_once(self: &Rc<Self>, growth: Option<Layout>) -> Result<(), StoreError> {
        self.check_running()?;
        let layout = growth.unwrap_or(self.layout());
        // What changes from here on is in the journal from its start.
        let start = self.journal.replay_start();
        let (era, maps) = self.catalog.borrow_mut().maps.begin_checkpoint();
        let last = self.superblock.borrow().checkpoint;
        let mut pointer = CheckpointPointer {
            area: 1 - last.area,
            sequence: last.sequence + 1,
            start_batch: start.batch,
            start_position: start.position,
            ..CheckpointPointer::default()
        };
        let (lvols, places) = self.stream(&layout, &mut pointer, maps).await?;
        // What the pages have seen is durable with this sync, and so is the data that it speaks of.
        let covered = self.journal.completed();
        self.sync().await?;
        pointer.durable_through = covered;
        let next_map = self.catalog.borrow().next_map;
        let damaged = self.damaged.get();
        self.write_superblock(|superblock| {
            superblock.checkpoint = pointer;
            superblock.lvols = lvols;
            superblock.next_map = next_map;
            superblock.damaged = damaged;
            if growth.is_some() {
                superblock.layout = layout;
                superblock.features.incompatible |= AREAS_AMONG_CLUSTERS;
            }
        })
        .await?;
        self.catalog.borrow_mut().maps.finish_checkpoint(era, &places);
        self.residency.count_anew();
        if growth.is_some() {
            // Only now: until both superblocks say so, nothing may be written where the old one's checkpoint is.
            self.catalog.borrow_mut().grow(layout);
        }
        self.journal.release_to(start);
        self.journal.set_durable(covered);
        self.journal.set_marked(covered);
        self.reclaim.synced_through(covered);
        self.work.wrote_checkpoint();
        Ok(())
    }

    /// Writes all pages: maps first, since the directory at the end says where they are. Returns how many lvols there are in
    /// it, and where the maps are.
    async fn stream(
        &self,
        layout: &Layout,
        pointer: &mut CheckpointPointer,
        maps: Vec<(u32, Origin)>,
    ) -> Result<(u32, Vec<(u32, Place)>), StoreError> {
        let context = PageContext { format_id: self.format_id, checkpoint: pointer.sequence };
        let area = layout.areas[pointer.area as usize];
        let mut stream = Stream { disk: &self.disk, area, context, written: 0, bytes: Vec::new() };
        let maps = self.stream_maps(&mut stream, maps).await?;
        pointer.maps_length = stream.position();
        let lvols = self.stream_lvols(&mut stream, &maps).await?;
        self.stream_bitmap(&mut stream, layout).await?;
        self.stream_marks(&mut stream).await?;
        stream.write().await?;
        pointer.length = stream.position();
        Ok((lvols, maps))
    }

    /// Writes the pages of all maps: from memory, or from where the last checkpoint has them. Returns where they are.
    async fn stream_maps(
        &self,
        stream: &mut Stream<'_>,
        maps: Vec<(u32, Origin)>,
    ) -> Result<Vec<(u32, Place)>, StoreError> {
        let old = self.superblock.borrow().checkpoint;
        let old_end = self.layout().areas[old.area as usize].offset + old.maps_length;
        let mut old_pages = ReadAhead::new(&self.disk, old_end);
        let mut places = Vec::new();
        for (id, origin) in maps {
            let (offset, first) = (stream.area.offset + stream.position(), stream.block());
            let counts = match origin {
                Origin::Memory(map) => self.stream_map(stream, &map).await?,
                Origin::Disk(place) => self.carry(stream, &mut old_pages, id, place).await?,
            };
            let pages = stream.block() - first;
            places.push((id, Place { checkpoint: stream.context.checkpoint, offset, pages, counts }));
        }
        Ok(places)
    }

    async fn stream_map(&self, stream: &mut Stream<'_>, map: &Map) -> Result<Counts, StoreError> {
        let mut counts = Counts::default();
        let mut leaf = 0;
        while let Some(next) = stream.put_map_part(map, leaf, &mut counts) {
            leaf = next;
            stream.write().await?;
        }
        stream.write_if_long().await?;
        Ok(counts)
    }

    /// Carries the pages of a map that is not in memory over from the last checkpoint. What is wrong with one of them is found
    /// here, and the others are kept.
    async fn carry(
        &self,
        stream: &mut Stream<'_>,
        old_pages: &mut ReadAhead,
        id: u32,
        place: Place,
    ) -> Result<Counts, StoreError> {
        let context = PageContext { checkpoint: place.checkpoint, ..stream.context };
        let mut offset = place.offset;
        let end = offset + u64::from(place.pages) * BLOCK;
        while offset < end {
            let Some(pages) = old_pages.at_or_lost(offset).await? else {
                // I28: one lvol is given up, so that a bad sector does not keep all others from ever being saved.
                self.lose_page(id, offset, "a page of its map cannot be read");
                offset += BLOCK;
                continue;
            };
            for page in pages.chunks_exact(BLOCK as usize) {
                match context.open_map(page, offset) {
                    Ok(found) if found.map == id => stream.put_page(page),
                    _ => self.lose_page(id, offset, "a page of its map is damaged"),
                }
                offset += BLOCK;
                if offset == end || stream.bytes.len() >= STREAM {
                    break;
                }
            }
            stream.write_if_long().await?;
        }
        Ok(place.counts)
    }

    /// A page of a map is not carried over. It does not matter when the map is gone by now.
    fn lose_page(&self, map: u32, offset: u64, reason: &str) {
        tracing::error!(map, offset, reason, "a page is not carried over");
        let mut catalog = self.catalog.borrow_mut();
        if catalog.maps.contains(map) {
            catalog.maps.damage(map, reason);
            self.damaged.set(true);
        }
    }

    async fn stream_lvols(&self, stream: &mut Stream<'_>, maps: &[(u32, Place)]) -> Result<u32, StoreError> {
        let records = self.catalog.borrow().checkpointed_records();
        for record in &records {
            stream.put(|context, address, bytes| context.put_lvol(record, address, bytes));
            stream.write_if_long().await?;
        }
        let area = stream.area;
        let entry = |record: &LvolRecord| {
            // A map made after its turn had come has no pages: the journal has all of it.
            let place = maps.binary_search_by_key(&record.map, |&(map, ..)| map).map(|place| maps[place].1);
            directory_entry(record, place.ok(), area)
        };
        for chunk in records.chunks(DIRECTORY_ENTRIES) {
            let entries: Vec<DirectoryEntry> = chunk.iter().map(entry).collect();
            stream.put(|context, address, bytes| context.put_directory(&entries, address, bytes));
            stream.write_if_long().await?;
        }
        // The reserve for metadata ends long before 2^32 lvols.
        Ok(records.len() as u32)
    }

    async fn stream_bitmap(&self, stream: &mut Stream<'_>, layout: &Layout) -> Result<(), StoreError> {
        let grown = (*layout != self.layout()).then(|| self.catalog.borrow().grown_allocator(layout));
        let mut done = 0;
        while done < layout.clusters {
            let count = (layout.clusters - done).min(BITMAP_CLUSTERS);
            let first = layout.first_cluster + done;
            let bits = match &grown {
                Some(allocator) => allocator.bits(first, count),
                None => self.catalog.borrow().allocator.bits(first, count),
            };
            // At most BITMAP_CLUSTERS: fits.
            let count32 = count as u32;
            stream.put(|context, address, bytes| context.put_bitmap(first, count32, &bits, address, bytes));
            stream.write_if_long().await?;
            done += count;
        }
        Ok(())
    }

    async fn stream_marks(&self, stream: &mut Stream<'_>) -> Result<(), StoreError> {
        for runs in self.marks.runs().chunks(MARKS_ENTRIES) {
            stream.put(|context, address, bytes| context.put_marks(runs, address, bytes));
            stream.write_if_long().await?;
        }
        Ok(())
    }
}

fn directory_entry(record: &LvolRecord, place: Option<Place>, area: Region) -> DirectoryEntry {
    DirectoryEntry {
        uuid: record.uuid,
        parent: record.parent,
        internal: record.internal,
        size: record.size,
        block_size: record.block_size,
        snapshot: record.snapshot,
        deletion: record.deletion,
        map: record.map,
        // Areas are shorter than 2^32 blocks.
        first_page: place.map_or(0, |place| ((place.offset - area.offset) / BLOCK) as u32),
        pages: place.map_or(0, |place| place.pages),
        counts: place.map_or(Counts::default(), |place| place.counts),
    }
}

/// Pages on their way into an area.
struct Stream<'a> {
    disk: &'a Disk,
    area: Region,
    context: PageContext,
    /// Bytes of the area that are on disk.
    written: u64,
    /// What comes after them.
    bytes: Vec<u8>,
}

impl Stream<'_> {
    fn position(&self) -> u64 {
        self.written + self.bytes.len() as u64
    }

    /// The position in blocks; areas are shorter than 2^32 of them.
    fn block(&self) -> u32 {
        (self.position() / BLOCK) as u32
    }

    fn put(&mut self, put: impl FnOnce(&PageContext, u64, &mut Vec<u8>)) {
        let address = self.area.offset + self.position();
        // Pages are put at the end of a vector of their own: their address is that of its start.
        let mut page = Vec::new();
        put(&self.context, address, &mut page);
        self.bytes.append(&mut page);
    }

    /// Puts leaves of a map from `leaf` on until enough is gathered: then returns the next leaf.
    fn put_map_part(&mut self, map: &Map, mut leaf: u32, counts: &mut Counts) -> Option<u32> {
        let address = self.area.offset + self.written;
        let mut pages = MapPages::new(self.context, map.id(), map.shape().words(), address, &mut self.bytes);
        while let Some(put) = map.put_leaf(leaf, &mut pages, counts) {
            leaf = put + 1;
            if pages.length() >= STREAM {
                pages.finish();
                return Some(leaf);
            }
        }
        pages.finish();
        None
    }

    /// Puts a map page of an older checkpoint.
    fn put_page(&mut self, page: &[u8]) {
        let (at, address) = (self.bytes.len(), self.area.offset + self.position());
        self.bytes.extend_from_slice(page);
        self.context.carry(&mut self.bytes[at..], address);
    }

    async fn write_if_long(&mut self) -> Result<(), StoreError> {
        match self.bytes.len() >= STREAM {
            true => self.write().await,
            false => Ok(()),
        }
    }

    async fn write(&mut self) -> Result<(), StoreError> {
        if self.position() > self.area.length {
            return Err(StoreError::NoSpace { detail: "the metadata does not fit a checkpoint area" });
        }
        if self.bytes.is_empty() {
            return Ok(());
        }
        let bytes = Buffer::copy_of(&self.bytes).freeze();
        let write = self.disk.write(self.area.offset + self.written, bytes).await;
        write.map_err(StoreError::io("writing a checkpoint"))?;
        self.written += self.bytes.len() as u64;
        self.bytes.clear();
        Ok(())
    }
}

/// Writes checkpoints as long as someone wants one.
async fn run_checkpoints(core: Rc<Core>) {
    while let Some(round) = core.checkpoints.rounds.next() {
        let growth = core.checkpoints.growth.take();
        let result = core.checkpoint_once(growth).await;
        if let Err(error) = &result {
            // The last checkpoint and the journal since are whole. The journal stops when it is full.
            tracing::error!(%error, "no checkpoint could be written");
        }
        round.end(&result);
    }
}
