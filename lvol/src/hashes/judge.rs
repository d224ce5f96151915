//! What a region that does not hash to its value, or cannot be read, means for the blocks that it is made of.
//!
//! Data is immutable below a snapshot, but it moves when ancestors are merged; so a verdict is a control operation: nothing
//! moves meanwhile, and what is marked is where the wrong bytes are.

use std::rc::Rc;

use block_device::{Error, ErrorKind, Range};
use reactor::Buffer;
use uuid::Uuid;

use super::table::Table;
use super::{Hash, REGION, hash};
use crate::chain::{Piece, Source, find, resolve};
use crate::core::Core;
use crate::error::StoreError;
use crate::format::BLOCK;
use crate::format::record::Record;
use crate::lvol::Lvol;
use crate::marks::BlockRun;

/// What came of looking at a region again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It hashes to its value, and marks that it had are gone.
    Good,
    /// It does not, or cannot be read; the blocks that may be why are marked.
    Bad,
}

/// A region as it is on disk, marked or not.
pub(super) struct Found {
    /// Bytes up to the end of the lvol.
    pub(super) content: Vec<u8>,
    /// 4 KiB pieces that are on disk, with their place in the content.
    pub(super) blocks: Vec<OnDisk>,
    /// Those that the medium does not give back: zeroes in the content.
    pub(super) unreadable: Vec<OnDisk>,
}

/// One 4 KiB block of a region on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OnDisk {
    pub(super) within: usize,
    pub(super) place: u64,
}

impl Core {
    /// Looks at a region again and marks or unmarks its blocks, durably.
    pub(super) async fn judge(
        self: &Rc<Self>,
        id: Uuid,
        region: u64,
        value: Option<Hash>,
    ) -> Result<Verdict, StoreError> {
        let _one = self.control.lock().await;
        self.check_running()?;
        let lvol = self.open_snapshot(id).await?;
        let found = self.read_region(&lvol, region).await?;
        if !found.unreadable.is_empty() {
            self.mark(&found.unreadable, true).await?;
            self.scrubs.damage.found(id, region);
            return Ok(Verdict::Bad);
        }
        if value.is_none_or(|value| hash(&found.content) == value) {
            if value.is_some() {
                self.mark(&found.blocks, false).await?;
            }
            self.scrubs.damage.is_good(id, region);
            return Ok(Verdict::Good);
        }
        let vouched = self.vouched(id, region).await?;
        let suspects: Vec<OnDisk> =
            found.blocks.iter().copied().filter(|block| !vouched.contains(&block.place)).collect();
        tracing::error!(snapshot = %id, region, blocks = suspects.len(), "a region of a snapshot is damaged");
        self.mark(&suspects, true).await?;
        self.scrubs.damage.found(id, region);
        Ok(Verdict::Bad)
    }

    /// The blocks on disk that are right since the nearest ancestor that has a value for the region agrees with it.
    async fn vouched(self: &Rc<Self>, id: Uuid, region: u64) -> Result<Vec<u64>, StoreError> {
        let parent = |id: Uuid| self.catalog.borrow().users_lvol(id).and_then(|node| node.record.parent);
        let mut next = parent(id);
        while let Some(ancestor) = next {
            next = parent(ancestor);
            if !self.is_immutable(ancestor) {
                continue;
            }
            let Some(table) = Table::open(self, ancestor).await? else { continue };
            let Some(value) = table.value(region).await? else { continue };
            let lvol = self.open_snapshot(ancestor).await?;
            let found = self.read_region(&lvol, region).await?;
            if found.unreadable.is_empty() && hash(&found.content) == value {
                return Ok(found.blocks.iter().map(|block| block.place).collect());
            }
        }
        Ok(Vec::new())
    }

    /// Reads a region past all marks, block by block where the medium fails. To be called as a control operation.
    pub(super) async fn read_region(&self, lvol: &Lvol, region: u64) -> Result<Found, StoreError> {
        let mut found = Found { content: Vec::new(), blocks: Vec::new(), unreadable: Vec::new() };
        let (offset, size) = (region * REGION, lvol.volume().size());
        let length = REGION.min(size.saturating_sub(offset));
        // Beyond the end of the lvol the last block is nobody's.
        let range = Range { offset, length: length.next_multiple_of(BLOCK) };
        let pieces = lvol.volume().with_chain(|chain| {
            resolve(self.layout().cluster_size, range, |index, first, count| find(chain, index, first, count))
        });
        for piece in pieces {
            self.read_piece(piece, &mut found).await?;
        }
        found.content.truncate(length as usize);
        Ok(found)
    }

    async fn read_piece(&self, piece: Piece, found: &mut Found) -> Result<(), StoreError> {
        let start = found.content.len();
        found.content.resize(start + piece.length as usize, 0);
        let Source::Disk(place) = piece.source else { return Ok(()) };
        for at in (0..piece.length).step_by(BLOCK as usize) {
            found.blocks.push(OnDisk { within: start + at as usize, place: place + at });
        }
        if self.read_into(place, &mut found.content[start..]).await? {
            return Ok(());
        }
        for at in (0..piece.length).step_by(BLOCK as usize) {
            let within = start + at as usize;
            if !self.read_into(place + at, &mut found.content[within..within + BLOCK as usize]).await? {
                found.content[within..within + BLOCK as usize].fill(0);
                found.unreadable.push(OnDisk { within, place: place + at });
            }
        }
        Ok(())
    }

    /// False if the medium does not give the bytes back.
    async fn read_into(&self, place: u64, into: &mut [u8]) -> Result<bool, StoreError> {
        let busy = || StoreError::from(Error::new(ErrorKind::Busy));
        let buffer = Buffer::try_new(into.len()).ok_or_else(busy)?;
        let (result, bytes) = self.disk.read(place, buffer).await;
        if result.is_ok() {
            into.copy_from_slice(&bytes);
        }
        Ok(result.is_ok())
    }

    /// Marks blocks as bad, or as good again, durably. What is so already costs nothing.
    pub(super) async fn mark(self: &Rc<Self>, blocks: &[OnDisk], bad: bool) -> Result<(), StoreError> {
        let changed = |block: &&OnDisk| self.marks.touches(Range { offset: block.place, length: BLOCK }) != bad;
        let runs = blocks.iter().filter(changed).map(|block| BlockRun { first: block.place / BLOCK, count: 1 });
        let records: Vec<Record> = runs.map(|run| Record::BlocksMarked { run, bad }).collect();
        if records.is_empty() {
            return Ok(());
        }
        if bad && !self.catalog.borrow().has_room_for_marks(records.len()) {
            return Err(StoreError::NoSpace { detail: "there are as many damaged blocks as can be noted" });
        }
        self.commit(records).await?;
        self.flush().await
    }
}
