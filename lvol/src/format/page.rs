//! Pages: what a checkpoint is made of. Each stands alone, so that damage to one costs what is in it and no more (I28).

use std::collections::BTreeMap;

use uuid::Uuid;

use super::fields::{Reader, put_u16, put_u32, put_u64, u32_at, u64_at};
use super::record::{Damage, Internal, LvolRecord, Stage};
use super::{BLOCK, Flaw, HEADER, Header, LENGTH_AT};
use crate::marks::BlockRun;

const MAGIC: [u8; 8] = *b"ASHLPAGE";

const MAP: u16 = 1;
const LVOL: u16 = 2;
const DIRECTORY: u16 = 3;
const BITMAP: u16 = 4;
const MARKS: u16 = 5;

/// Bytes before the first segment of a map page.
const MAP_HEADER: usize = HEADER + 8;

/// Bytes of a segment's own header.
const SEGMENT_HEADER: usize = 16;

/// A segment whose entries are all wholly zero and not listed.
const SEGMENT_ZERO: u32 = 1;

/// A segment whose entries are all whole, in clusters in a row: only the first is listed.
const SEGMENT_RUN: u32 = 2;

/// What one cluster more is in the first word of an entry.
const NEXT_CLUSTER: u64 = 1 << 16;

const DIRECTORY_ENTRY: usize = 72;

/// Lvols a directory page names.
pub(crate) const DIRECTORY_ENTRIES: usize = (BLOCK as usize - HEADER - 8) / DIRECTORY_ENTRY;

const BITMAP_HEADER: usize = HEADER + 16;

/// Clusters a bitmap page tells of.
pub(crate) const BITMAP_CLUSTERS: u64 = (BLOCK - BITMAP_HEADER as u64) * 8;

const MARK_ENTRY: usize = 16;

/// Runs of marked blocks that a page names.
pub(crate) const MARKS_ENTRIES: usize = (BLOCK as usize - HEADER - 8) / MARK_ENTRY;

/// The longest page: an lvol record with all its attributes needs two blocks.
pub(crate) const MAX_PAGE: usize = 2 * BLOCK as usize;

/// Which checkpoint pages belong to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageContext {
    pub(crate) format_id: [u8; 16],
    pub(crate) checkpoint: u64,
}

/// What a page holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Page {
    Map { map: u32, segments: Vec<Segment> },
    Lvol(Box<LvolRecord>),
    Directory(Vec<DirectoryEntry>),
    Bitmap { first: u64, count: u32, bits: Vec<u8> },
    Marks(Vec<BlockRun>),
}

/// Entries of one leaf of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Which leaf: entries 64 × leaf to 64 × leaf + 63.
    pub(crate) leaf: u32,
    /// Every entry of the leaf is wholly zero; nothing is listed.
    pub(crate) zero: bool,
    /// Which of the 64 entries are listed.
    pub(crate) present: u64,
    /// The listed entries in order, each of as many words as the map's shape says.
    pub(crate) words: Vec<u64>,
}

/// What can be told of an lvol when its own page is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectoryEntry {
    pub(crate) uuid: Uuid,
    pub(crate) parent: Option<Uuid>,
    pub(crate) internal: Option<Internal>,
    pub(crate) size: u64,
    pub(crate) block_size: u32,
    pub(crate) snapshot: bool,
    /// How far its deletion is: what is half merged must not be taken for a whole snapshot.
    pub(crate) deletion: Option<Stage>,
    pub(crate) map: u32,
    /// Its first map page, in blocks from the start of the area.
    pub(crate) first_page: u32,
    pub(crate) pages: u32,
    pub(crate) counts: Counts,
}

impl DirectoryEntry {
    /// As much of the lvol's record as this tells: name, attributes and age are lost.
    pub(crate) fn nameless(&self) -> LvolRecord {
        LvolRecord {
            uuid: self.uuid,
            parent: self.parent,
            internal: self.internal,
            size: self.size,
            block_size: self.block_size,
            snapshot: self.snapshot,
            damage: Damage::default(),
            deletion: self.deletion,
            created_at: 0,
            map: self.map,
            name: String::new(),
            attributes: BTreeMap::new(),
        }
    }
}

/// How much is in a map: what can be told of one that is not in memory, and what its pages are checked against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Entries with a cluster.
    pub(crate) clusters: u32,
    /// Entries that are not empty, outside of zero leaves.
    pub(crate) entries: u32,
    /// Leaves that are not empty.
    pub(crate) leaves: u32,
}

/// What a page of a map holds, as it lies there.
pub(crate) struct MapPage<'a> {
    pub(crate) map: u32,
    words: usize,
    segments: u16,
    body: Reader<'a>,
}

/// A segment of a page, as it lies there.
#[derive(Clone, Copy)]
pub(crate) struct RawSegment<'a> {
    pub(crate) leaf: u32,
    pub(crate) form: Form,
    /// Which of the 64 entries it tells of.
    pub(crate) present: u64,
    bytes: &'a [u8],
}

/// How a segment tells of its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// It lists them.
    Entries,
    /// All are wholly zero.
    Zero,
    /// All are whole, in clusters in a row; it lists the first.
    Run,
}

impl<'a> MapPage<'a> {
    /// The next segment; `None` after the last.
    pub(crate) fn next_segment(&mut self) -> Result<Option<RawSegment<'a>>, Flaw> {
        if self.segments == 0 {
            return Ok(None);
        }
        self.segments -= 1;
        let (leaf, flags, present) = (self.body.u32()?, self.body.u32()?, self.body.u64()?);
        let (form, listed) = match flags {
            0 => (Form::Entries, present.count_ones() as usize),
            SEGMENT_ZERO => (Form::Zero, 0),
            SEGMENT_RUN => (Form::Run, 1),
            _ => return Err(Flaw::Content("a map segment has unknown flags")),
        };
        let bytes = self.body.bytes(listed * self.words * 8)?;
        Ok(Some(RawSegment { leaf, form, present, bytes }))
    }

    /// Words an entry.
    pub(crate) const fn words(&self) -> usize {
        self.words
    }
}

impl RawSegment<'_> {
    /// The words of the entries that are listed.
    pub(crate) fn words(&self) -> impl ExactSizeIterator<Item = u64> {
        self.bytes.chunks_exact(8).map(|bytes| u64_at(bytes, 0))
    }

    fn to_segment(self, words: usize) -> Segment {
        let (leaf, present, zero) = (self.leaf, self.present, self.form == Form::Zero);
        let mut listed: Vec<u64> = self.words().collect();
        if self.form == Form::Run {
            for place in 1..64 {
                let first = listed[0].wrapping_add(place * NEXT_CLUSTER);
                listed.push(first);
                listed.extend_from_within(1..words);
            }
        }
        Segment { leaf, zero, present, words: listed }
    }
}

impl PageContext {
    fn reseal(&self, kind: u16, address: u64, page: &mut [u8]) {
        let header = Header { magic: MAGIC, kind, address, sequence: self.checkpoint, format_id: self.format_id };
        header.seal(page);
    }

    fn seal(&self, kind: u16, address: u64, bytes: &mut Vec<u8>, start: usize) {
        self.reseal(kind, address, &mut bytes[start..]);
        let end = start + (bytes.len() - start).next_multiple_of(BLOCK as usize);
        bytes.resize(end, 0);
    }

    /// Appends an lvol's page.
    pub(crate) fn put_lvol(&self, record: &LvolRecord, address: u64, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.resize(start + HEADER, 0);
        record.encode(bytes);
        self.seal(LVOL, address, bytes, start);
    }

    /// Appends a directory page of at most [`DIRECTORY_ENTRIES`].
    pub(crate) fn put_directory(&self, entries: &[DirectoryEntry], address: u64, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.resize(start + HEADER + 8, 0);
        put_u32(bytes, start + HEADER, entries.len() as u32);
        put_u32(bytes, start + HEADER + 4, DIRECTORY_ENTRY as u32);
        for entry in entries {
            let at = bytes.len();
            bytes.resize(at + DIRECTORY_ENTRY, 0);
            bytes[at..at + 16].copy_from_slice(entry.uuid.as_bytes());
            let (link, role) = Internal::link(entry.parent, entry.internal);
            bytes[at + 16..at + 32].copy_from_slice(link.as_bytes());
            put_u64(bytes, at + 32, entry.size);
            put_u32(bytes, at + 40, entry.block_size);
            let flags = u32::from(entry.snapshot) | Stage::flags(entry.deletion) | role;
            put_u32(bytes, at + 44, flags);
            put_u32(bytes, at + 48, entry.map);
            put_u32(bytes, at + 52, entry.first_page);
            put_u32(bytes, at + 56, entry.pages);
            put_u32(bytes, at + 60, entry.counts.clusters);
            put_u32(bytes, at + 64, entry.counts.entries);
            put_u32(bytes, at + 68, entry.counts.leaves);
        }
        self.seal(DIRECTORY, address, bytes, start);
    }

    /// Appends a bitmap page for `count` clusters from `first`, at most [`BITMAP_CLUSTERS`].
    pub(crate) fn put_bitmap(&self, first: u64, count: u32, bits: &[u8], address: u64, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.resize(start + BITMAP_HEADER, 0);
        put_u64(bytes, start + HEADER, first);
        put_u32(bytes, start + HEADER + 8, count);
        bytes.extend_from_slice(bits);
        self.seal(BITMAP, address, bytes, start);
    }

    /// Appends a page of at most [`MARKS_ENTRIES`] runs of marked blocks.
    pub(crate) fn put_marks(&self, runs: &[BlockRun], address: u64, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.resize(start + HEADER + 8, 0);
        put_u32(bytes, start + HEADER, runs.len() as u32);
        for run in runs {
            let at = bytes.len();
            bytes.resize(at + MARK_ENTRY, 0);
            put_u64(bytes, at, run.first);
            put_u32(bytes, at + 8, run.count);
        }
        self.seal(MARKS, address, bytes, start);
    }

    /// Reads the page that starts at `bytes[0]`, found at the disk offset `address`. Returns it with its bytes on disk.
    pub(crate) fn decode(&self, bytes: &[u8], address: u64) -> Result<(Page, usize), Flaw> {
        let (kind, mut body, length) = self.open(bytes, address)?;
        let page = match kind {
            MAP => decode_map(body)?,
            LVOL => Page::Lvol(Box::new(LvolRecord::decode(&mut body)?)),
            DIRECTORY => decode_directory(&mut body)?,
            BITMAP => decode_bitmap(&mut body)?,
            MARKS => decode_marks(&mut body)?,
            _ => return Err(Flaw::Content("a page has an unknown kind")),
        };
        Ok((page, length))
    }

    /// Looks into the page of a map that starts at `bytes[0]`, one block long, found at the disk offset `address`.
    pub(crate) fn open_map<'a>(&self, bytes: &'a [u8], address: u64) -> Result<MapPage<'a>, Flaw> {
        match self.open(bytes, address)? {
            (MAP, body, _) => open_map(body),
            _ => Err(Flaw::Content("it is no page of a map")),
        }
    }

    /// Makes a page that was opened as one of another checkpoint one of this, in another place.
    pub(crate) fn carry(&self, page: &mut [u8], address: u64) {
        let length = u32_at(page, LENGTH_AT) as usize;
        self.reseal(MAP, address, &mut page[..length]);
    }

    /// The kind, the body and the bytes on disk of the page that starts at `bytes[0]`.
    fn open<'a>(&self, bytes: &'a [u8], address: u64) -> Result<(u16, Reader<'a>, usize), Flaw> {
        let (header, length) = Header::open(&bytes[..bytes.len().min(MAX_PAGE)], MAGIC, address)?;
        if header.format_id != self.format_id {
            return Err(Flaw::FormatId);
        }
        if header.sequence != self.checkpoint {
            return Err(Flaw::Content("it is of another checkpoint"));
        }
        let on_disk = length.next_multiple_of(BLOCK as usize);
        Ok((header.kind, Reader::new(&bytes[HEADER..length]), on_disk))
    }
}

/// Packs segments of one map into pages.
pub(crate) struct MapPages<'a> {
    context: PageContext,
    map: u32,
    words: usize,
    /// The disk offset of `bytes[0]`.
    address: u64,
    bytes: &'a mut Vec<u8>,
    /// Where the open page starts, and how many segments it has.
    open: Option<(usize, u16)>,
}

impl<'a> MapPages<'a> {
    /// Appends pages of `map`, whose entries have `words` words, to `bytes`, which starts at the disk offset `address`.
    pub(crate) fn new(context: PageContext, map: u32, words: usize, address: u64, bytes: &'a mut Vec<u8>) -> Self {
        Self { context, map, words, address, bytes, open: None }
    }

    /// A leaf of which every entry is wholly zero.
    pub(crate) fn put_zero_leaf(&mut self, leaf: u32) {
        self.segment(leaf, SEGMENT_ZERO, u64::MAX, &[]);
    }

    /// A leaf of which every entry is whole, in clusters in a row: of these words the first.
    pub(crate) fn put_run(&mut self, leaf: u32, first: &[u64]) {
        self.segment(leaf, SEGMENT_RUN, u64::MAX, first);
    }

    /// Some entries of a leaf, as many pages as they need.
    pub(crate) fn put_entries(&mut self, leaf: u32, mut present: u64, mut words: &[u64]) {
        while present != 0 {
            let room = self.room().saturating_sub(SEGMENT_HEADER) / (8 * self.words);
            if room == 0 {
                self.finish();
                continue;
            }
            let (now, later) = split_bits(present, room as u32);
            let (now_words, later_words) = words.split_at(now.count_ones() as usize * self.words);
            self.segment(leaf, 0, now, now_words);
            (present, words) = (later, later_words);
        }
    }

    /// Bytes gathered so far.
    pub(crate) const fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Closes the last page.
    pub(crate) fn finish(&mut self) {
        let Some((start, segments)) = self.open.take() else { return };
        put_u16(self.bytes, start + HEADER + 4, segments);
        self.context.seal(MAP, self.address + start as u64, self.bytes, start);
    }

    fn room(&self) -> usize {
        match self.open {
            Some((start, _)) => BLOCK as usize - (self.bytes.len() - start),
            None => BLOCK as usize - MAP_HEADER,
        }
    }

    fn segment(&mut self, leaf: u32, flags: u32, present: u64, words: &[u64]) {
        if self.room() < SEGMENT_HEADER + 8 * words.len() {
            self.finish();
        }
        let (start, segments) = self.open.unwrap_or_else(|| (self.begin(), 0));
        self.open = Some((start, segments + 1));
        self.bytes.extend_from_slice(&leaf.to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&present.to_le_bytes());
        for word in words {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
    }

    fn begin(&mut self) -> usize {
        let start = self.bytes.len();
        self.bytes.resize(start + MAP_HEADER, 0);
        put_u32(self.bytes, start + HEADER, self.map);
        put_u16(self.bytes, start + HEADER + 6, self.words as u16);
        start
    }
}

/// The lowest `count` set bits, and the others.
fn split_bits(bits: u64, count: u32) -> (u64, u64) {
    let mut rest = bits;
    for _ in 0..count.min(bits.count_ones()) {
        rest &= rest - 1;
    }
    (bits ^ rest, rest)
}

fn open_map(mut body: Reader<'_>) -> Result<MapPage<'_>, Flaw> {
    let (map, segments, words) = (body.u32()?, body.u16()?, usize::from(body.u16()?));
    match words {
        1..=17 => Ok(MapPage { map, words, segments, body }),
        _ => Err(Flaw::Content("a map page has entries of an impossible width")),
    }
}

fn decode_map(body: Reader<'_>) -> Result<Page, Flaw> {
    let mut page = open_map(body)?;
    let (map, words) = (page.map, page.words);
    let mut segments = Vec::new();
    while let Some(segment) = page.next_segment()? {
        segments.push(segment.to_segment(words));
    }
    Ok(Page::Map { map, segments })
}

fn decode_directory(body: &mut Reader<'_>) -> Result<Page, Flaw> {
    let (count, length) = (body.u32()?, body.u32()? as usize);
    if length != DIRECTORY_ENTRY {
        return Err(Flaw::Content("a directory page has entries of another length"));
    }
    let mut entries = Vec::new();
    for _ in 0..count {
        let uuid = Uuid::from_bytes(body.array()?);
        let link = Uuid::from_bytes(body.array()?);
        let (size, block_size, flags) = (body.u64()?, body.u32()?, body.u32()?);
        let (map, first_page, pages) = (body.u32()?, body.u32()?, body.u32()?);
        let counts = Counts { clusters: body.u32()?, entries: body.u32()?, leaves: body.u32()? };
        let (parent, internal) = Internal::unlink(link, flags)?;
        entries.push(DirectoryEntry {
            uuid,
            parent,
            internal,
            size,
            block_size,
            snapshot: flags & 1 != 0,
            deletion: Stage::from_flags(flags)?,
            map,
            first_page,
            pages,
            counts,
        });
    }
    Ok(Page::Directory(entries))
}

fn decode_marks(body: &mut Reader<'_>) -> Result<Page, Flaw> {
    let (count, _reserved) = (body.u32()?, body.u32()?);
    let mut runs = Vec::new();
    for _ in 0..count {
        let (first, count, _reserved) = (body.u64()?, body.u32()?, body.u32()?);
        runs.push(BlockRun { first, count });
    }
    Ok(Page::Marks(runs))
}

fn decode_bitmap(body: &mut Reader<'_>) -> Result<Page, Flaw> {
    let (first, count, _reserved) = (body.u64()?, body.u32()?, body.u32()?);
    if u64::from(count) > BITMAP_CLUSTERS {
        return Err(Flaw::Content("a bitmap page covers too much"));
    }
    let bits = body.bytes((count as usize).div_ceil(8))?.to_vec();
    Ok(Page::Bitmap { first, count, bits })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::info::Role;

    const CONTEXT: PageContext = PageContext { format_id: [4; 16], checkpoint: 6 };

    fn decode_all(bytes: &[u8], address: u64) -> Vec<Page> {
        let mut pages = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let (page, length) = CONTEXT.decode(&bytes[at..], address + at as u64).expect("just encoded");
            pages.push(page);
            at += length;
        }
        pages
    }

    #[test]
    fn map_pages_hold_what_was_put_in_across_their_borders() {
        for words in if cfg!(miri) { &[2][..] } else { &[1, 2, 17] } {
            let words = *words;
            let mut bytes = Vec::new();
            let mut pages = MapPages::new(CONTEXT, 11, words, 65536, &mut bytes);
            let entries: Vec<u64> = (0..64 * words as u64).collect();
            for leaf in 0..20 {
                pages.put_entries(leaf, u64::MAX, &entries);
            }
            pages.put_zero_leaf(20);
            pages.finish();
            let mut found = vec![Vec::new(); 20];
            let mut present = [0; 20];
            for page in decode_all(&bytes, 65536) {
                let Page::Map { map: 11, segments } = page else { panic!("another page") };
                for segment in segments {
                    if segment.zero {
                        assert_eq!(segment.leaf, 20);
                        continue;
                    }
                    assert_eq!(present[segment.leaf as usize] & segment.present, 0);
                    present[segment.leaf as usize] |= segment.present;
                    found[segment.leaf as usize].extend(segment.words);
                }
            }
            assert!(present.iter().all(|&bits| bits == u64::MAX));
            assert!(found.iter().all(|words| *words == entries));
            // Packed: at most one entry's room is lost a page.
            assert!(bytes.len() <= (20 * (64 * words * 8 + 32)) * 4096 / (4096 - 72 - 16 - words * 8) + 4096);
        }
    }

    #[test]
    fn a_directory_and_a_bitmap_come_back_as_they_were() {
        let entry = DirectoryEntry {
            uuid: Uuid::from_u128(1),
            parent: None,
            internal: Some(Internal { owner: Uuid::from_u128(7), role: Role::Hashes }),
            size: 2,
            block_size: 512,
            snapshot: false,
            deletion: Some(Stage::Merging),
            map: 3,
            first_page: 4,
            pages: 5,
            counts: Counts { clusters: 6, entries: 7, leaves: 8 },
        };
        let mut bytes = Vec::new();
        CONTEXT.put_directory(&[entry; DIRECTORY_ENTRIES], 0, &mut bytes);
        assert_eq!(bytes.len(), 4096);
        CONTEXT.put_bitmap(100, 12, &[0xff, 0x0f], 4096, &mut bytes);
        let run = BlockRun { first: 8, count: 9 };
        CONTEXT.put_marks(&[run; MARKS_ENTRIES], 8192, &mut bytes);
        assert_eq!(bytes.len(), 3 * 4096);
        let pages = decode_all(&bytes, 0);
        assert_eq!(pages[0], Page::Directory(vec![entry; DIRECTORY_ENTRIES]));
        assert_eq!(pages[1], Page::Bitmap { first: 100, count: 12, bits: vec![0xff, 0x0f] });
        assert_eq!(pages[2], Page::Marks(vec![run; MARKS_ENTRIES]));
    }

    #[test]
    fn pages_of_another_checkpoint_or_place_are_refused() {
        let mut bytes = Vec::new();
        CONTEXT.put_bitmap(0, 8, &[1], 4096, &mut bytes);
        assert!(CONTEXT.decode(&bytes, 8192).is_err());
        assert!(PageContext { checkpoint: 7, ..CONTEXT }.decode(&bytes, 4096).is_err());
        assert!(PageContext { format_id: [0; 16], ..CONTEXT }.decode(&bytes, 4096).is_err());
    }

    #[test]
    fn a_count_larger_than_the_page_is_a_flaw_and_no_panic() {
        let mut bytes = vec![0; HEADER + 8];
        put_u32(&mut bytes, HEADER, u32::MAX);
        put_u32(&mut bytes, HEADER + 4, DIRECTORY_ENTRY as u32);
        CONTEXT.seal(DIRECTORY, 0, &mut bytes, 0);
        assert!(CONTEXT.decode(&bytes, 0).is_err());
        let mut bytes = vec![0; HEADER + 8];
        put_u16(&mut bytes, HEADER + 4, 9);
        put_u16(&mut bytes, HEADER + 6, 1);
        CONTEXT.seal(MAP, 0, &mut bytes, 0);
        assert!(CONTEXT.decode(&bytes, 0).is_err());
    }
}
