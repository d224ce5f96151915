//! The bytes of disks that are plain memory.

use std::collections::HashMap;
use std::io;

use crate::pages::Pages;
use crate::streaming::Streaming;

/// Bytes that a sparse memory keeps or leaves out together.
const PAGE: usize = 4096;

static ZEROES: [u8; PAGE] = [0; PAGE];

/// Memory that is read and written by offset. Ranges are checked by its user.
pub(crate) enum Memory {
    /// All of it.
    Dense(Box<Streaming>, Pages),
    /// Only pages that are not zero.
    Sparse(HashMap<u64, Box<[u8; PAGE]>>),
}

impl Memory {
    /// `size` bytes of zeroes.
    pub(crate) fn dense(size: u64) -> io::Result<Self> {
        Ok(Self::Dense(Box::default(), Pages::for_random_access(size)?))
    }

    /// As many zeroes as one likes.
    pub(crate) fn sparse() -> Self {
        Self::Sparse(HashMap::new())
    }

    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) {
        match self {
            Self::Dense(streaming, pages) => {
                let range = range(offset, into.len() as u64);
                streaming.touch(range.clone());
                into.copy_from_slice(&pages[range]);
            }
            Self::Sparse(pages) => {
                for (page, within, bytes) in parts(offset, into.len()) {
                    let page = pages.get(&page).map_or(&ZEROES, |page| page);
                    into[bytes].copy_from_slice(&page[within]);
                }
            }
        }
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        match self {
            // Checked, so it is a usize.
            Self::Dense(streaming, pages) => streaming.copy(pages, offset as usize, data),
            Self::Sparse(pages) => {
                for (page, within, bytes) in parts(offset, data.len()) {
                    let data = &data[bytes];
                    if data == &ZEROES[..data.len()] {
                        zero_part(pages, page, within);
                    } else {
                        pages.entry(page).or_insert_with(|| Box::new(ZEROES))[within].copy_from_slice(data);
                    }
                }
            }
        }
    }

    pub(crate) fn zero(&mut self, offset: u64, length: u64) {
        match self {
            Self::Dense(streaming, pages) => {
                let range = range(offset, length);
                streaming.touch(range.clone());
                pages[range].fill(0);
            }
            Self::Sparse(pages) if length / PAGE as u64 > pages.len() as u64 => {
                // Fewer pages than the range could have: those that are not whole in it are cut, the others go.
                let end = offset + length;
                pages.retain(|&number, page| {
                    let start = number * PAGE as u64;
                    let from = offset.clamp(start, start + PAGE as u64) - start;
                    let to = end.clamp(start, start + PAGE as u64) - start;
                    page[from as usize..to as usize].fill(0);
                    to - from < PAGE as u64
                });
            }
            // At most as long as what is in memory.
            Self::Sparse(pages) => {
                for (page, within, _) in parts(offset, length as usize) {
                    zero_part(pages, page, within);
                }
            }
        }
    }

    pub(crate) fn resize(&mut self, from: u64, to: u64) -> io::Result<()> {
        match self {
            Self::Dense(streaming, memory) => {
                streaming.touch(0..memory.len());
                let mut resized = Pages::for_random_access(to)?;
                let kept = resized.len().min(memory.len());
                resized[..kept].copy_from_slice(&memory[..kept]);
                *memory = resized;
            }
            Self::Sparse(_) if to < from => self.zero(to, from - to),
            Self::Sparse(_) => {}
        }
        Ok(())
    }
}

fn zero_part(pages: &mut HashMap<u64, Box<[u8; PAGE]>>, page: u64, within: std::ops::Range<usize>) {
    if within.len() == PAGE {
        pages.remove(&page);
    } else if let Some(page) = pages.get_mut(&page) {
        page[within].fill(0);
    }
}

/// Cuts a range at page boundaries: the page, the bytes within it, and within the range.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let start = (at % PAGE as u64) as usize;
        let count = (PAGE - start).min(length - done);
        let first = done;
        done += count;
        (count > 0).then(|| (at / PAGE as u64, start..start + count, first..first + count))
    })
}

fn range(offset: u64, length: u64) -> std::ops::Range<usize> {
    // Checked against the size of the memory, whose length is a usize.
    offset as usize..(offset + length) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 8 * PAGE as u64;

    fn content(memory: &Memory, size: u64) -> Vec<u8> {
        let mut bytes = vec![1; size as usize];
        memory.read(0, &mut bytes);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn sparse_memory_reads_as_dense_memory_does(
            steps in prop::collection::vec((0u64..64, 0u64..64, 0u8..3, prop::bool::ANY), 1..60),
        ) {
            let mut memories = [Memory::dense(SIZE).expect("mapped"), Memory::sparse()];
            for (from, to, value, discard) in steps {
                let (from, to) = (from.min(to) * 512, from.max(to) * 512);
                for memory in &mut memories {
                    match discard {
                        true => memory.zero(from, to - from),
                        false => memory.write(from, &vec![value; (to - from) as usize]),
                    }
                }
                prop_assert_eq!(content(&memories[0], SIZE), content(&memories[1], SIZE));
            }
            for memory in &mut memories {
                memory.resize(SIZE, 5000).expect("resized");
                memory.resize(5000, SIZE).expect("resized");
            }
            prop_assert_eq!(content(&memories[0], SIZE), content(&memories[1], SIZE));
        }
    }

    #[test]
    fn zeroes_take_no_memory() {
        let mut memory = Memory::sparse();
        memory.write(1 << 50, &[7; PAGE]);
        memory.write(1 << 40, &[0; 4 * PAGE]);
        let count = |memory: &Memory| match memory {
            Memory::Sparse(pages) => pages.len(),
            Memory::Dense(..) => unreachable!("made sparse"),
        };
        assert_eq!(count(&memory), 1);
        memory.zero(0, 1 << 60);
        assert_eq!(count(&memory), 0);
    }
}
