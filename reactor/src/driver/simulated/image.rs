//! The bytes of a simulated disk: sparse, and cheap to copy.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, LazyLock};

use super::trace::hash_bytes;

const PAGE: usize = 4096;

/// A page of zeroes to read from where nothing was written.
static ZEROES: [u8; PAGE] = [0; PAGE];

/// The page of all that was zeroed and not written since.
static ZERO_PAGE: LazyLock<Arc<[u8; PAGE]>> = LazyLock::new(|| Arc::new(ZEROES));

/// The content of a disk. Copies share their pages until one of them is written, so that an image for each step of a
/// run costs little.
#[derive(Clone, PartialEq, Eq)]
pub struct DiskImage {
    size: u64,
    /// By page number; a page that is not here is zeroes.
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

impl fmt::Debug for DiskImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskImage({} bytes, {} allocated, hash {:016x})", self.size, self.allocated(), self.hash())
    }
}

impl DiskImage {
    /// A disk of zeroes, with this many bytes.
    pub fn new(size: u64) -> Self {
        Self { size, pages: BTreeMap::new() }
    }

    /// A disk with this content.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut image = Self::new(bytes.len() as u64);
        image.write(0, bytes);
        image
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that take up space: written and not given back since.
    pub fn allocated(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }

    /// A hash of the content; equal for equal bytes, whatever is allocated.
    pub fn hash(&self) -> u64 {
        let pages = self.pages.iter().filter(|(_, page)| ***page != ZEROES);
        pages.fold(self.size, |hash, (number, page)| {
            hash_bytes(&[hash.to_le_bytes(), number.to_le_bytes(), hash_bytes(&page[..]).to_le_bytes()].concat())
        })
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// When the range ends beyond the disk.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        for part in self.parts(offset, into.len() as u64) {
            let page = self.pages.get(&part.page).map_or(&ZEROES, |page| page);
            into[part.bytes].copy_from_slice(&page[part.within]);
        }
    }

    /// Bytes of a range.
    ///
    /// # Panics
    /// When the range ends beyond the disk.
    pub fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.read(offset, &mut bytes);
        bytes
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// When the range ends beyond the disk.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for part in self.parts(offset, data.len() as u64) {
            let page = self.pages.entry(part.page).or_insert_with(|| Arc::new(ZEROES));
            Arc::make_mut(page)[part.within].copy_from_slice(&data[part.bytes]);
        }
    }

    /// Makes a range read as zeroes and gives its whole pages back.
    ///
    /// # Panics
    /// When the range ends beyond the disk.
    pub fn punch(&mut self, offset: u64, length: u64) {
        self.check(offset, length);
        let end = offset + length;
        let whole = offset.div_ceil(PAGE as u64)..end / PAGE as u64;
        // Where whole pages begin and end; if there are none, all of the range lies before that.
        let first = (whole.start * PAGE as u64).min(end);
        let last = (whole.end * PAGE as u64).max(first);
        for part in self.parts(offset, first - offset).chain(self.parts(last, end - last)) {
            if let Some(page) = self.pages.get_mut(&part.page) {
                Arc::make_mut(page)[part.within].fill(0);
            }
        }
        if whole.is_empty() {
            return;
        }
        let inside: Vec<u64> = self.pages.range(whole).map(|(number, _)| *number).collect();
        for number in inside {
            self.pages.remove(&number);
        }
    }

    /// Makes a range read as zeroes that take up space.
    ///
    /// # Panics
    /// When the range ends beyond the disk.
    pub fn zero(&mut self, offset: u64, length: u64) {
        self.punch(offset, length);
        for part in self.parts(offset, length) {
            self.pages.entry(part.page).or_insert_with(|| Arc::clone(&ZERO_PAGE));
        }
    }

    /// Turns the bits of `mask` in one byte, as a failing medium would.
    ///
    /// # Panics
    /// When the byte is beyond the disk.
    pub fn flip(&mut self, offset: u64, mask: u8) {
        let byte = self.bytes(offset, 1)[0];
        self.write(offset, &[byte ^ mask]);
    }

    /// Changes the size; new bytes are zeroes.
    pub fn resize(&mut self, size: u64) {
        if size < self.size {
            let kept = size.div_ceil(PAGE as u64);
            let tail = (kept * PAGE as u64).min(self.size);
            self.punch(size, tail - size);
            drop(self.pages.split_off(&kept));
        }
        self.size = size;
    }

    /// What must be changed in `other`, a disk of the same size, to make it this one.
    pub(crate) fn changes_from(&self, other: &Self, sector: u64) -> Vec<Change> {
        let numbers: BTreeSet<u64> = self.pages.keys().chain(other.pages.keys()).copied().collect();
        let differs = |number: &u64| match (self.pages.get(number), other.pages.get(number)) {
            (Some(own), Some(others)) => !Arc::ptr_eq(own, others) && own != others,
            _ => true,
        };
        let change = |number: u64| {
            let offset = number * PAGE as u64;
            let length = (self.size - offset).min(PAGE as u64);
            let page = self.pages.get(&number);
            let content = page.map_or(Content::Hole, |page| Content::Bytes(page[..length as usize].into()));
            Change { offset, length, sector, content }
        };
        numbers.into_iter().filter(differs).map(change).collect()
    }

    /// How many bytes of new space a write to this range would take.
    pub(crate) fn growth(&self, offset: u64, length: u64) -> u64 {
        let new = self.parts(offset, length).filter(|part| !self.pages.contains_key(&part.page));
        new.count() as u64 * PAGE as u64
    }

    fn check(&self, offset: u64, length: u64) {
        let end = offset.checked_add(length).filter(|&end| end <= self.size);
        assert!(end.is_some(), "{length} bytes at {offset} of a disk of {}", self.size);
    }

    /// Cuts a range at page boundaries.
    fn parts(&self, offset: u64, length: u64) -> impl Iterator<Item = Part> + use<> {
        self.check(offset, length);
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = offset + done;
            let start = (at % PAGE as u64) as usize;
            let count = (PAGE - start).min(usize::try_from(length - done).unwrap_or(PAGE));
            if count == 0 {
                return None;
            }
            let first = done as usize;
            done += count as u64;
            Some(Part { page: at / PAGE as u64, within: start..start + count, bytes: first..first + count })
        })
    }
}

/// A piece of a range within one page.
struct Part {
    page: u64,
    within: std::ops::Range<usize>,
    bytes: std::ops::Range<usize>,
}

/// One change of a disk's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// What the disk writes whole or not at all, in bytes. Changes are aligned to it.
    pub(crate) sector: u64,
    pub(crate) content: Content,
}

/// What a range reads as after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Bytes(Box<[u8]>),
    /// Zeroes that take up space.
    Zeroes,
    /// Zeroes, with the space given back.
    Hole,
}

impl Change {
    /// How many sectors it touches.
    pub(crate) fn sectors(&self) -> u64 {
        self.length / self.sector
    }

    /// Applies all of it.
    pub(crate) fn apply(&self, image: &mut DiskImage) {
        self.apply_part(image, 0, self.length);
    }

    /// Applies some sectors of it: `count` from the `first` on.
    pub(crate) fn apply_sectors(&self, image: &mut DiskImage, first: u64, count: u64) {
        self.apply_part(image, first * self.sector, count * self.sector);
    }

    fn apply_part(&self, image: &mut DiskImage, from: u64, length: u64) {
        match &self.content {
            Content::Bytes(data) => image.write(self.offset + from, &data[from as usize..(from + length) as usize]),
            Content::Zeroes => image.zero(self.offset + from, length),
            Content::Hole => image.punch(self.offset + from, length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_zeroed_takes_space_and_what_is_punched_gives_it_back() {
        let mut image = DiskImage::new(64 << 10);
        image.write(4096, &[7; 4096]);
        image.zero(2048, 10 << 10);
        assert_eq!((image.allocated(), image.bytes(0, 16 << 10)), (3 * 4096, vec![0; 16 << 10]));
        image.punch(0, 8192);
        assert_eq!(image.allocated(), 4096);
    }

    #[test]
    fn writes_across_pages_read_back_and_copies_are_independent() {
        let mut image = DiskImage::new(64 << 10);
        image.write(4000, &[7; 5000]);
        let copy = image.clone();
        image.write(4096, &[8; 4096]);
        assert_eq!(copy.bytes(4000, 5000), [7; 5000]);
        assert_eq!(copy.bytes(0, 4000), [0; 4000]);
        assert_eq!(image.bytes(4096, 4096), [8; 4096]);
        assert_eq!(copy.allocated(), 3 * 4096);
    }

    #[test]
    fn punched_ranges_are_zero_and_free_whole_pages_only() {
        let mut image = DiskImage::from_bytes(&[1; 16 << 10]);
        image.punch(2048, 8192);
        assert_eq!(image.allocated(), 3 * 4096);
        assert_eq!(image.bytes(2048, 8192), [0; 8192]);
        assert_eq!(image.bytes(0, 2048), [1; 2048]);
        assert_eq!(image.bytes(10240, 6144), [1; 6144]);
    }

    #[test]
    fn shrinking_forgets_what_was_beyond() {
        let mut image = DiskImage::from_bytes(&[1; 16 << 10]);
        image.resize(5000);
        image.resize(16 << 10);
        assert_eq!(image.bytes(5000, 100), [0; 100]);
        assert_eq!(image.bytes(8192, 8192), [0; 8192]);
    }

    #[test]
    fn differences_lead_from_one_image_to_the_other() {
        let mut old = DiskImage::from_bytes(&[1; 20_480]);
        let mut new = old.clone();
        new.write(4000, &[2; 200]);
        new.punch(8192, 4096);
        let changes = new.changes_from(&old, 512);
        assert_eq!(changes.len(), 3);
        changes.iter().for_each(|change| change.apply(&mut old));
        assert_eq!(old, new);
    }

    #[test]
    fn the_hash_is_of_bytes_not_of_allocation() {
        let mut written = DiskImage::new(1 << 20);
        written.write(0, &[0; 4096]);
        assert_eq!(written.hash(), DiskImage::new(1 << 20).hash());
        written.flip(9, 1);
        assert_ne!(written.hash(), DiskImage::new(1 << 20).hash());
    }

    #[test]
    #[should_panic(expected = "8 bytes at 4090 of a disk of 4096")]
    fn a_range_beyond_the_end_is_our_mistake() {
        DiskImage::new(4096).write(4090, &[0; 8]);
    }
}
