//! Reading the maps of a checkpoint: from front to back, with the next piece under way while the last one is looked at.

use std::io;
use std::time::Duration;

use reactor::{Buffer, Disk, JoinHandle, sleep, spawn};

use crate::error::StoreError;
use crate::format::layout::Layout;
use crate::format::page::{MapPage, PageContext};
use crate::format::superblock::PLACES;
use crate::format::{BLOCK, Flaw};
use crate::map::{Inconsistent, Loader, Map};
use crate::maps::Place;

/// Bytes of one read.
const PIECE: u64 = 1 << 20;

/// How often a block that cannot be read is tried, and how long after the last time.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);

/// With more blocks than these it is the disk that fails, not some sectors.
const MOST_LOST: u32 = 16;

type Read = (io::Result<()>, Buffer);

/// Blocks of a part of the disk, in rising order.
pub(crate) struct ReadAhead {
    disk: Disk,
    end: u64,
    /// Where the piece that is here begins.
    start: u64,
    piece: Buffer,
    /// The piece after it.
    next: Option<JoinHandle<Read>>,
    /// Blocks before this place are read one by one: the piece with them cannot be read.
    single_to: u64,
    /// Blocks that the disk did not give back.
    lost: u32,
}

impl ReadAhead {
    /// Nothing is read at `end` or beyond.
    pub(crate) fn new(disk: &Disk, end: u64) -> Self {
        Self { disk: disk.clone(), end, start: 0, piece: Buffer::new(0), next: None, single_to: 0, lost: 0 }
    }

    /// The bytes from `offset`, a block at least.
    pub(crate) async fn at(&mut self, offset: u64) -> Result<&[u8], StoreError> {
        while !(self.start..self.here()).contains(&offset) {
            self.advance(offset).await.map_err(StoreError::io("reading a checkpoint"))?;
        }
        Ok(&self.piece[(offset - self.start) as usize..])
    }

    /// The same; but `None` for a block that the disk does not give back, again and again, while it does give the superblocks. A disk
    /// that gives back next to nothing is an error, and no word on what it holds (I31).
    pub(crate) async fn at_or_lost(&mut self, offset: u64) -> Result<Option<&[u8]>, StoreError> {
        if offset >= self.single_to {
            if self.at(offset).await.is_ok() {
                return Ok(Some(&self.piece[(offset - self.start) as usize..]));
            }
            self.single_to = offset + PIECE;
        }
        match self.read_single(offset).await? {
            None => Ok(None),
            Some(block) => {
                (self.start, self.piece, self.next) = (offset, block, None);
                Ok(Some(&self.piece))
            }
        }
    }

    async fn read_single(&mut self, offset: u64) -> Result<Option<Buffer>, StoreError> {
        let mut failure = None;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                sleep(PAUSE).await;
            }
            match self.disk.read(offset, Buffer::new(BLOCK as usize)).await {
                (Ok(()), block) => return Ok(Some(block)),
                (Err(error), _) => failure = Some(error),
            }
        }
        self.lost += 1;
        for place in PLACES {
            let (result, _) = self.disk.read(place, Buffer::new(BLOCK as usize)).await;
            result.map_err(StoreError::io("reading a checkpoint"))?;
        }
        match failure {
            Some(error) if self.lost > MOST_LOST => Err(StoreError::io("reading a checkpoint")(error)),
            _ => Ok(None),
        }
    }

    fn here(&self) -> u64 {
        self.start + self.piece.len() as u64
    }

    async fn advance(&mut self, offset: u64) -> io::Result<()> {
        let next = (self.here()..self.here() + PIECE).contains(&offset);
        let (start, read) = match self.next.take() {
            Some(read) if next => (self.here(), read),
            _ => (offset, self.read(offset)?),
        };
        // What failed is not here: it is read again when it is asked for again.
        (self.start, self.piece) = (offset, Buffer::new(0));
        let (result, piece) = read.await.map_err(|_| io::Error::other("a read was given up"))?;
        result?;
        (self.start, self.piece) = (start, piece);
        self.next = (self.here() < self.end).then(|| self.read(self.here())).transpose()?;
        Ok(())
    }

    fn read(&self, offset: u64) -> io::Result<JoinHandle<Read>> {
        let length = self.end.saturating_sub(offset).min(PIECE);
        let buffer = Buffer::try_new(length as usize).ok_or(io::ErrorKind::OutOfMemory)?;
        let disk = self.disk.clone();
        Ok(spawn(async move { disk.read(offset, buffer).await }))
    }
}

/// What to do about a block that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// An error: it can be tried again later.
    Refused,
    /// It counts as damaged, if others can be read.
    Lost,
}

/// Calls `visit` with the place and the content of each block of a part of a checkpoint that has map pages.
pub(crate) async fn each_map_page(
    disk: &Disk,
    context: &PageContext,
    part: std::ops::Range<u64>,
    unreadable: Unreadable,
    mut visit: impl FnMut(u64, Result<MapPage<'_>, Flaw>),
) -> Result<(), StoreError> {
    let mut pages = ReadAhead::new(disk, part.end);
    let mut offset = part.start;
    while offset < part.end {
        let here = match unreadable {
            Unreadable::Refused => Some(pages.at(offset).await?),
            Unreadable::Lost => pages.at_or_lost(offset).await?,
        };
        let Some(here) = here else {
            visit(offset, Err(Flaw::Content("it cannot be read")));
            offset += BLOCK;
            continue;
        };
        for block in here.chunks_exact(BLOCK as usize) {
            visit(offset, context.open_map(block, offset));
            offset += BLOCK;
        }
    }
    Ok(())
}

/// Reads a map from its place. With what can be read of it comes what is wrong, if something is.
pub(crate) async fn read_map(
    disk: &Disk,
    layout: &Layout,
    format_id: [u8; 16],
    id: u32,
    place: Place,
) -> Result<(Map, Result<(), Inconsistent>), StoreError> {
    let context = PageContext { format_id, checkpoint: place.checkpoint };
    let mut loader = Loader::new(id, layout, true);
    let mut result = Ok(());
    let part = place.offset..place.offset + u64::from(place.pages) * BLOCK;
    each_map_page(disk, &context, part, Unreadable::Refused, |_, page| {
        let taken = match page {
            Ok(page) if page.map == id => loader.take(page, |_| {}),
            _ => Err(Inconsistent("a page of its map is damaged")),
        };
        if result.is_ok() {
            result = taken;
        }
    })
    .await?;
    if result.is_ok() && loader.seen() != (place.pages, place.counts) {
        result = Err(Inconsistent("its map is not what the directory says"));
    }
    let map = loader.into_map().unwrap_or_else(|| unreachable!("asked for"));
    Ok((map, result))
}
