//! Reading a checkpoint page by page, also from a disk that does not give back every block.

use std::fmt;

use reactor::{Buffer, Disk};

use crate::format::page::{MAX_PAGE, Page, PageContext};
use crate::format::superblock::Superblock;
use crate::format::{BLOCK, Flaw};

/// How many bytes are read at once.
const CHUNK: u64 = 1 << 20;

/// Why there is no page where one should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// The bytes are not the page.
    Flaw(Flaw),
    /// The disk does not give them: the page may be whole (I31).
    Unreadable(String),
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flaw(flaw) => write!(f, "{flaw}"),
            Self::Unreadable(error) => write!(f, "it cannot be read: {error}"),
        }
    }
}

/// A place in a checkpoint.
pub(super) struct Place {
    /// In bytes from the start of the area.
    pub(super) position: u64,
    /// In bytes from the start of the disk.
    pub(super) offset: u64,
    /// Bytes on disk; one block where there is no page.
    pub(super) length: u64,
    pub(super) page: Result<Page, Bad>,
}

/// The pages of the checkpoint that a superblock names, in order.
pub(super) struct Pages<'a> {
    disk: &'a Disk,
    context: PageContext,
    /// Where the area starts, in bytes.
    start: u64,
    /// Bytes of pages.
    length: u64,
    position: u64,
    chunk: Buffer,
    chunk_at: u64,
    /// Blocks of the chunk that could not be read, by their position, and why.
    holes: Vec<(u64, String)>,
}

impl<'a> Pages<'a> {
    pub(super) fn new(disk: &'a Disk, superblock: &Superblock) -> Self {
        let pointer = superblock.checkpoint;
        Self {
            disk,
            context: PageContext { format_id: superblock.format_id, checkpoint: pointer.sequence },
            start: superblock.layout.areas[pointer.area as usize].offset,
            length: pointer.length,
            position: 0,
            chunk: Buffer::new(0),
            chunk_at: 0,
            holes: Vec::new(),
        }
    }

    /// The next page, or the block where there is none.
    pub(super) async fn next(&mut self) -> Option<Place> {
        if self.position >= self.length {
            return None;
        }
        self.fill().await;
        let (position, offset) = (self.position, self.start + self.position);
        let hole = self.holes.iter().find(|(at, _)| *at == position);
        let decoded = match hole {
            Some((_, error)) => Err(Bad::Unreadable(error.clone())),
            None => {
                let bytes = &self.chunk[(position - self.chunk_at) as usize..];
                self.context.decode(bytes, offset).map_err(Bad::Flaw)
            }
        };
        let (page, length) = match decoded {
            Ok((page, length)) => (Ok(page), length as u64),
            Err(bad) => (Err(bad), BLOCK),
        };
        self.position += length;
        Some(Place { position, offset, length, page })
    }

    /// Makes the chunk hold the longest page that can be at the position.
    async fn fill(&mut self) {
        let needed = (self.position + MAX_PAGE as u64).min(self.length);
        if self.position >= self.chunk_at && needed <= self.chunk_at + self.chunk.len() as u64 {
            return;
        }
        self.chunk_at = self.position;
        let length = (self.length - self.position).min(CHUNK);
        self.holes.clear();
        let (result, chunk) = self.disk.read(self.start + self.position, Buffer::new(length as usize)).await;
        self.chunk = chunk;
        if result.is_err() {
            self.fill_by_blocks().await;
        }
    }

    /// What can be read of a chunk that cannot be read as a whole.
    async fn fill_by_blocks(&mut self) {
        for block in self.chunk.chunks_exact_mut(BLOCK as usize).zip(0..) {
            let (bytes, number): (&mut [u8], u64) = block;
            let position = self.chunk_at + number * BLOCK;
            match self.disk.read(self.start + position, Buffer::new(BLOCK as usize)).await {
                (Ok(()), read) => bytes.copy_from_slice(&read),
                (Err(error), _) => {
                    bytes.fill(0);
                    self.holes.push((position, error.to_string()));
                }
            }
        }
    }
}
