//! What all parts of an open store share.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use reactor::{Buffer, Disk, DiskReply, DiskSink};

use crate::catalog::Catalog;
use crate::checkpoint::Checkpoints;
use crate::deletion::Merges;
use crate::error::StoreError;
use crate::format::layout::Layout;
use crate::format::superblock::{PLACES, Superblock};
use crate::hashes::{Hashing, Scrubs};
use crate::hints::Hints;
use crate::io::Io;
use crate::journal::Journal;
use crate::marks::Marks;
use crate::reclaim::Reclaim;
use crate::residency::Residency;
use crate::rounds::Rounds;
use crate::work::Work;

/// An open store.
pub(crate) struct Core {
    pub(crate) disk: Disk,
    layout: Cell<Layout>,
    pub(crate) format_id: [u8; 16],
    pub(crate) catalog: RefCell<Catalog>,
    pub(crate) journal: Journal,
    pub(crate) flushes: Rounds,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) reclaim: Reclaim,
    pub(crate) merges: Merges,
    pub(crate) hashing: Hashing,
    pub(crate) scrubs: Scrubs,
    pub(crate) hints: Hints,
    pub(crate) residency: Residency,
    /// The catalog's.
    pub(crate) marks: Rc<Marks>,
    pub(crate) io: Rc<Io>,
    pub(crate) work: Work,
    /// What disk operations of the data path complete into: `io`.
    pub(crate) disk_reply: DiskReply,
    /// As it is on disk.
    pub(crate) superblock: RefCell<Superblock>,
    /// One write of it at a time.
    superblock_turn: tokio::sync::Mutex<()>,
    /// One control operation at a time: each sees the outcome of the one before it.
    pub(crate) control: tokio::sync::Mutex<()>,
    pub(crate) clean_open: bool,
    /// The bitmap of the last checkpoint counts, not the maps alone: some map is damaged.
    pub(crate) damaged: Cell<bool>,
    failure: RefCell<Option<String>>,
    closed: Cell<bool>,
}

impl Core {
    pub(crate) fn new(
        disk: Disk,
        superblock: Superblock,
        catalog: Catalog,
        journal: Journal,
        opened: Opened,
    ) -> Rc<Self> {
        let io = Rc::new(Io::default());
        Rc::new(Self {
            disk,
            layout: Cell::new(superblock.layout),
            format_id: superblock.format_id,
            marks: Rc::clone(&catalog.marks),
            catalog: RefCell::new(catalog),
            journal,
            flushes: Rounds::default(),
            work: Work::default(),
            checkpoints: Checkpoints::default(),
            reclaim: Reclaim::default(),
            merges: Merges::default(),
            hashing: Hashing::default(),
            scrubs: Scrubs::default(),
            hints: Hints::default(),
            residency: Residency::default(),
            disk_reply: DiskReply::new(Rc::clone(&io) as Rc<dyn DiskSink>),
            io,
            superblock: RefCell::new(superblock),
            superblock_turn: tokio::sync::Mutex::new(()),
            control: tokio::sync::Mutex::new(()),
            clean_open: opened.clean,
            damaged: Cell::new(opened.damaged),
            failure: RefCell::new(None),
            closed: Cell::new(false),
        })
    }

    /// Where things are on the disk: what the superblock says.
    pub(crate) fn layout(&self) -> Layout {
        self.layout.get()
    }

    /// An error if nothing can be written any more.
    pub(crate) fn check_running(&self) -> Result<(), StoreError> {
        if self.closed.get() {
            return Err(StoreError::Closed);
        }
        match &*self.failure.borrow() {
            Some(detail) => Err(StoreError::Stopped { detail: detail.clone() }),
            None => Ok(()),
        }
    }

    /// Waits for a turn to change what lvols there are. None comes once the store has stopped: what is in memory may not be durable
    /// then, so that not even "it is there already" can be said (I30).
    pub(crate) async fn control_turn(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, StoreError> {
        let turn = self.control.lock().await;
        self.check_running()?;
        Ok(turn)
    }

    /// Whether the store was closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Ends all use of the store.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.merges.end();
        self.residency.end();
        self.hashing.end();
    }

    /// The first failure of a metadata write or a sync, if there was one.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    /// A write of metadata or a sync failed: what is on disk is not known any more, so nothing is acknowledged until the
    /// store is opened again and has read it.
    pub(crate) fn stop(&self, detail: &str) {
        let mut failure = self.failure.borrow_mut();
        if failure.is_none() {
            tracing::error!(store = %self.superblock.borrow().uuid, detail, "the store stopped writing");
            *failure = Some(detail.to_owned());
            self.merges.end();
            self.hashing.end();
        }
    }

    /// Makes what was written so far durable.
    pub(crate) async fn sync(&self) -> Result<(), StoreError> {
        let begun = reactor::now();
        let result = self.disk.sync().await.map_err(StoreError::io("flushing"));
        self.work.flushed(reactor::now() - begun);
        if let Err(error) = &result {
            // After a failed sync nobody knows what is on the medium: a second one that succeeds proves nothing.
            self.stop(&error.to_string());
        }
        // Nor does one that was under way meanwhile.
        match self.failure() {
            Some(detail) if result.is_ok() => Err(StoreError::Stopped { detail }),
            _ => result,
        }
    }

    /// Writes the superblock as changed by `change`, both copies, durably.
    pub(crate) async fn write_superblock(&self, change: impl FnOnce(&mut Superblock)) -> Result<(), StoreError> {
        let _turn = self.superblock_turn.lock().await;
        let mut superblock = self.superblock.borrow().clone();
        change(&mut superblock);
        superblock.generation += 1;
        let result = write_superblocks(&self.disk, &superblock).await;
        match &result {
            Ok(()) => {
                self.layout.set(superblock.layout);
                *self.superblock.borrow_mut() = superblock;
            }
            Err(error) => self.stop(&error.to_string()),
        }
        result
    }
}

/// How a store was found at open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opened {
    pub(crate) clean: bool,
    pub(crate) damaged: bool,
}

/// Writes both copies, the second only when the first is durable: at every moment one of them is whole.
pub(crate) async fn write_superblocks(disk: &Disk, superblock: &Superblock) -> Result<(), StoreError> {
    for place in PLACES {
        write_superblock_copy(disk, superblock, place).await?;
    }
    Ok(())
}

/// Writes one copy, durably.
pub(crate) async fn write_superblock_copy(disk: &Disk, superblock: &Superblock, place: u64) -> Result<(), StoreError> {
    let bytes = Buffer::copy_of(&superblock.encode(place)).freeze();
    disk.write(place, bytes).await.map_err(StoreError::io("writing the superblock"))?;
    disk.sync().await.map_err(StoreError::io("flushing the superblock"))
}
