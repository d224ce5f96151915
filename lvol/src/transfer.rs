//! Whole lvols out of a store and into one.
//!
//! ```text
//!          import            write …           finish
//! (none) ──────────▶ incomplete ─────▶ incomplete ──────▶ an lvol like any
//!                       │   ▲ import again: empty, from the start
//!                       └───┴─ delete
//! ```
//! What says that an lvol is incomplete is an attribute of its record, from the batch that makes it to the one that is written when
//! all its data is durable. Until then it is listed and can be deleted, and nobody can open it: a crash leaves nothing that is
//! taken for more than it is, and nothing that nobody sees.

use std::rc::Rc;

use block_device::{BlockDevice, Range, Request, Segments, Slice, execute};
use reactor::yield_now;
use uuid::Uuid;

use crate::chain::{Piece, Source};
use crate::deletion::is_open;
use crate::error::StoreError;
use crate::info::{CreateLvol, LvolInfo};
use crate::lvol::Lvol;
use crate::store::Store;

/// The attribute of an lvol that is not complete.
pub(crate) const INCOMPLETE: &str = "incomplete";

/// The most bytes that an export reads at once.
pub(crate) const PIECE: u64 = 512 << 10;

/// How many places without data are passed over before others have their turn.
const TURN: u32 = 256;

/// Reads all data of an lvol, in order. What lies between its pieces is zeroes.
///
/// A snapshot stays while it is exported, unless it is deleted altogether.
pub struct Export {
    runs: DataRuns,
}

/// A piece of an lvol's data.
#[derive(Debug)]
pub struct ExportPiece {
    /// Bytes from the start of the lvol.
    pub offset: u64,
    /// The data: at most 512 KiB.
    pub data: Segments,
}

/// Fills a new lvol.
pub struct Import {
    store: Store,
    lvol: Rc<Lvol>,
    uuid: Uuid,
}

impl Store {
    /// Begins to read an lvol, through its chain.
    ///
    /// # Errors
    /// [`StoreError::InUse`] for a head that someone has open: what it has would be of no single moment.
    pub async fn export(&self, id: Uuid) -> Result<Export, StoreError> {
        self.check_at_rest(id)?;
        Ok(Export { runs: DataRuns::new(self.open_lvol(id).await?) })
    }

    /// Begins to fill a new lvol, or one whose import did not end: from the start then. `None` when it is there and complete.
    ///
    /// # Errors
    /// As for [`Store::create`]; [`StoreError::InUse`] when another import of it is under way.
    pub async fn import(&self, spec: &CreateLvol) -> Result<Option<Import>, StoreError> {
        let mut spec = spec.clone();
        spec.attributes.insert(INCOMPLETE.to_owned(), Vec::new());
        let uuid = spec.uuid;
        let found = self.create(&spec).await?;
        if !found.incomplete {
            return Ok(None);
        }
        self.check_unused(uuid)?;
        let lvol = Rc::new(self.core.open_lvol(uuid).await?);
        let import = Import { store: self.clone(), lvol, uuid };
        let ranges = [Range { offset: 0, length: found.size }].into_iter().collect();
        import.perform(Request::Unmap { ranges }).await?;
        Ok(Some(import))
    }

    fn check_at_rest(&self, id: Uuid) -> Result<(), StoreError> {
        let read_only = self.core.catalog.borrow().users_lvol(id).is_some_and(|node| node.record.snapshot);
        if read_only { Ok(()) } else { self.check_unused(id) }
    }

    fn check_unused(&self, uuid: Uuid) -> Result<(), StoreError> {
        match self.core.catalog.borrow().users_lvol(uuid) {
            Some(node) if is_open(node.volume.as_ref()) => Err(StoreError::InUse { uuid }),
            _ => Ok(()),
        }
    }
}

impl Export {
    /// Bytes of the lvol.
    pub fn size(&self) -> u64 {
        self.runs.lvol.geometry().size()
    }

    /// The next piece of data; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<ExportPiece>, StoreError> {
        let Some(Range { offset, length }) = self.runs.next(PIECE).await else { return Ok(None) };
        let data = execute(&*self.runs.lvol, Request::read(offset, length)).await.map_err(StoreError::of_request)?;
        Ok(Some(ExportPiece { offset, data }))
    }
}

impl Import {
    /// Writes a piece: whole blocks of the lvol, at most 4 MiB. What is never written reads as zeroes.
    pub async fn write(&self, offset: u64, data: Slice) -> Result<(), StoreError> {
        self.perform(Request::write(offset, data)).await
    }

    /// The lvol is complete: when this returns it is durable with all that was written, and one like any other.
    pub async fn finish(self) -> Result<LvolInfo, StoreError> {
        // The record must not be there without the data that it vouches for.
        self.store.flush().await?;
        self.store.set_attributes(self.uuid, &[(INCOMPLETE.to_owned(), None)]).await?;
        self.store.lvol_info(self.uuid).ok_or(StoreError::NotFound { uuid: self.uuid })
    }

    async fn perform(&self, request: Request) -> Result<(), StoreError> {
        execute(&*self.lvol, request).await.map(drop).map_err(StoreError::of_request)
    }
}

/// Where an lvol reads as data, in order.
pub(crate) struct DataRuns {
    lvol: Rc<Lvol>,
    at: u64,
}

impl DataRuns {
    pub(crate) const fn new(lvol: Rc<Lvol>) -> Self {
        Self { lvol, at: 0 }
    }

    /// The next bytes in a row that are data, at most `max` of them (a multiple of 4 KiB).
    pub(crate) async fn next(&mut self, max: u64) -> Option<Range> {
        let mut passed = 0;
        loop {
            let within = self.window(max)?;
            self.at = within.end();
            if let Some(run) = self.first_run(within) {
                self.at = run.end();
                return Some(run);
            }
            passed += 1;
            if passed % TURN == 0 {
                yield_now().await;
            }
        }
    }

    /// The next bytes that someone in the chain may hold.
    fn window(&self, max: u64) -> Option<Range> {
        let (volume, cluster) = (self.lvol.volume(), u64::from(self.lvol.core().layout().cluster_size));
        if self.at >= volume.size() {
            return None;
        }
        // An lvol has at most 2^32 clusters.
        let index = (self.at / cluster) as u32;
        let used = volume.with_chain(|chain| chain.iter().filter_map(|map| map.next_used(index)).min())?;
        let offset = self.at.max(u64::from(used) * cluster);
        let length = volume.size().checked_sub(offset)?.min(max);
        (length > 0).then_some(Range { offset, length })
    }

    fn first_run(&self, within: Range) -> Option<Range> {
        let pieces = self.lvol.resolve(within);
        let is_data = |piece: &&Piece| matches!(piece.source, Source::Disk(_));
        let before: u64 = pieces.iter().take_while(|piece| !is_data(piece)).map(|piece| piece.length).sum();
        let rest = pieces.iter().skip_while(|piece| !is_data(piece));
        let length: u64 = rest.take_while(is_data).map(|piece| piece.length).sum();
        // The disk may need more than the end of a small lvol.
        let length = length.min(within.length.saturating_sub(before));
        (length > 0).then_some(Range { offset: within.offset + before, length })
    }
}
