//! Walking the journal: batch after batch, until the first that is not there.

use reactor::{Buffer, Disk};

use crate::error::StoreError;
use crate::format::batch::{Batch, BatchHead, MAX_BATCH};
use crate::format::record::Record;
use crate::format::superblock::Superblock;
use crate::format::{BLOCK, Flaw};
use crate::journal::ReplayStart;

/// How many bytes are read at once, at least one batch.
const WINDOW: u64 = 1 << 20;

/// A batch of the journal.
pub(crate) struct Found {
    pub(crate) head: BatchHead,
    pub(crate) records: Vec<Record>,
    /// Where it is, from the start of the journal, and how long, in bytes.
    pub(crate) place: u64,
    pub(crate) length: u64,
}

/// Reads batches in order.
pub(crate) struct Scan<'a> {
    disk: &'a Disk,
    superblock: &'a Superblock,
    /// The batch that comes next, and where it should be.
    next: ReplayStart,
    window: Buffer,
    /// The position of the window in the ring.
    window_at: u64,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(disk: &'a Disk, superblock: &'a Superblock) -> Self {
        let pointer = superblock.checkpoint;
        let next = ReplayStart { batch: pointer.start_batch, position: pointer.start_position };
        Self { disk, superblock, next, window: Buffer::new(0), window_at: 0 }
    }

    /// The batch after the last one found and its place.
    pub(crate) const fn end(&self) -> ReplayStart {
        self.next
    }

    /// The next batch; `None` where the journal ends.
    pub(crate) async fn next(&mut self) -> Result<Option<Found>, StoreError> {
        let ring = self.superblock.layout.journal.length;
        let here = self.next.position % ring;
        // A batch that did not fit at the end of the ring went to its start.
        let places = if here == 0 { [Some(0), None] } else { [Some(here), Some(0)] };
        for place in places.into_iter().flatten() {
            self.fill(place).await?;
            let Ok(batch) = self.open(place) else { continue };
            if batch.head.sequence != self.next.batch || batch.head.session != self.superblock.session {
                continue;
            }
            let head = batch.head;
            let length = batch.length;
            let next = ReplayStart { batch: head.sequence + 1, position: (place + length) % ring };
            let records = batch.records().map_err(|flaw| {
                StoreError::damaged(format!("journal batch {} is well sealed but wrong: {flaw}", head.sequence))
            })?;
            self.next = next;
            return Ok(Some(Found { head, records, place, length }));
        }
        Ok(None)
    }

    /// Looks at the whole ring for a batch that was written when the missing one was already safe: durable, or, without a
    /// boot since, just written, as batches are written one after the other. Then it was not lost but damaged later, and
    /// leaving out what follows would break promises silently.
    pub(crate) async fn check_end(&mut self, same_boot: bool) -> Result<(), StoreError> {
        let mut place = 0;
        while place < self.superblock.layout.journal.length {
            self.fill(place).await?;
            if let Ok(batch) = self.open(place)
                && batch.head.session == self.superblock.session
                && (batch.head.durable_through >= self.next.batch
                    || (same_boot && batch.head.sequence > self.next.batch))
            {
                let (missing, later) = (self.next.batch, batch.head.sequence);
                return Err(StoreError::damaged(format!(
                    "journal batch {missing} is damaged; batch {later} was written after it was safe"
                )));
            }
            place += BLOCK;
        }
        Ok(())
    }

    /// Batches of this session anywhere in the ring whose number is that of the missing one or higher: what was written after
    /// it was lost.
    pub(crate) async fn later(&mut self) -> Result<Vec<Found>, StoreError> {
        let mut found = Vec::new();
        let mut place = 0;
        while place < self.superblock.layout.journal.length {
            self.fill(place).await?;
            let mut step = BLOCK;
            if let Ok(batch) = self.open(place)
                && batch.head.session == self.superblock.session
                && batch.head.sequence >= self.next.batch
            {
                let (head, length) = (batch.head, batch.length);
                found.extend(batch.records().ok().map(|records| Found { head, records, place, length }));
                step = length;
            }
            place += step;
        }
        found.sort_by_key(|batch| batch.head.sequence);
        Ok(found)
    }

    fn open(&self, place: u64) -> Result<Batch<'_>, Flaw> {
        let bytes = &self.window[(place - self.window_at) as usize..];
        let bytes = &bytes[..bytes.len().min(MAX_BATCH)];
        Batch::open(bytes, self.superblock.format_id, self.superblock.layout.journal.offset + place)
    }

    /// Makes the window hold a batch at `place`, as long as one can be.
    async fn fill(&mut self, place: u64) -> Result<(), StoreError> {
        let journal = self.superblock.layout.journal;
        let needed = (place + MAX_BATCH as u64).min(journal.length);
        if place >= self.window_at && needed <= self.window_at + self.window.len() as u64 {
            return Ok(());
        }
        let length = (journal.length - place).min(WINDOW);
        let (result, window) = self.disk.read(journal.offset + place, Buffer::new(length as usize)).await;
        result.map_err(StoreError::io("reading the journal"))?;
        (self.window, self.window_at) = (window, place);
        Ok(())
    }
}
