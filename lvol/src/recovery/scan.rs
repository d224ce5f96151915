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
pub(super) struct Found {
    pub(super) head: BatchHead,
    pub(super) records: Vec<Record>,
}

/// Reads batches in order.
pub(super) struct Scan<'a> {
    disk: &'a Disk,
    superblock: &'a Superblock,
    /// The batch that comes next, and where it should be.
    next: ReplayStart,
    window: Buffer,
    /// The position of the window in the ring.
    window_at: u64,
}

impl<'a> Scan<'a> {
    pub(super) fn new(disk: &'a Disk, superblock: &'a Superblock) -> Self {
        let pointer = superblock.checkpoint;
        let next = ReplayStart { batch: pointer.start_batch, position: pointer.start_position };
        Self { disk, superblock, next, window: Buffer::new(0), window_at: 0 }
    }

    /// The batch after the last one found and its place.
    pub(super) const fn end(&self) -> ReplayStart {
        self.next
    }

    /// The next batch; `None` where the journal ends.
    pub(super) async fn next(&mut self) -> Result<Option<Found>, StoreError> {
        let length = self.superblock.layout.journal.length;
        let here = self.next.position % length;
        // A batch that did not fit at the end of the ring went to its start.
        let places = if here == 0 { [Some(0), None] } else { [Some(here), Some(0)] };
        for place in places.into_iter().flatten() {
            self.fill(place).await?;
            let Ok(batch) = self.open(place) else { continue };
            if batch.head.sequence != self.next.batch || batch.head.session != self.superblock.session {
                continue;
            }
            let head = batch.head;
            let next = ReplayStart { batch: head.sequence + 1, position: (place + batch.length) % length };
            let records = batch.records().map_err(|flaw| {
                StoreError::damaged(format!("journal batch {} is well sealed but wrong: {flaw}", head.sequence))
            })?;
            self.next = next;
            return Ok(Some(Found { head, records }));
        }
        Ok(None)
    }

    /// Looks at the whole ring for a batch that was written when the missing one was already safe: durable, or, without a
    /// boot since, just written, as batches are written one after the other. Then it was not lost but damaged later, and
    /// leaving out what follows would break promises silently.
    pub(super) async fn check_end(&mut self, same_boot: bool) -> Result<(), StoreError> {
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
