//! An open lvol's side of the data path: what all its requests share.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use block_device::{ErrorKind, Reply, Request};
use tokio::sync::Notify;

use crate::format::record::LvolRecord;
use crate::hints::ChainNumber;
use crate::locks::RangeLocks;
use crate::map::Map;

/// An open lvol. One for each lvol, however often it is opened.
pub(crate) struct Volume {
    size: Cell<u64>,
    block_size: u32,
    read_only: bool,
    /// It belongs to another lvol.
    internal: bool,
    /// The maps it reads through, its own first. Never empty.
    chain: RefCell<Vec<Rc<Map>>>,
    number: ChainNumber,
    pub(crate) locks: Rc<RangeLocks>,
    /// Clusters that first writes are filling, by cluster of the lvol: not in the map yet.
    filling: RefCell<HashMap<u32, Filling>>,
    /// Writes between submit and reply.
    writes: Cell<u64>,
    /// No write may start: a snapshot is being cut, or the lvol is being deleted.
    held: Cell<bool>,
    /// Writes that came meanwhile. Bounded by the requests in flight.
    waiting: RefCell<Vec<(Request, Reply)>>,
    drained: Notify,
    /// Clusters of the lvol, first and behind the last, whose data is on its way into other clusters: nothing may be
    /// overwritten in place there.
    moving: Cell<(u64, u64)>,
    /// The lvol is to be deleted as soon as nobody has it open.
    deleted: Cell<bool>,
    /// The lvol is gone.
    retired: Cell<bool>,
}

/// A cluster on its way into the map.
#[derive(Clone, Copy)]
struct Filling {
    cluster: u64,
    users: u32,
}

impl Volume {
    pub(crate) fn new(record: &LvolRecord, chain: Vec<Rc<Map>>) -> Self {
        Self {
            size: Cell::new(record.size),
            block_size: record.block_size,
            read_only: record.snapshot,
            internal: record.internal.is_some(),
            chain: RefCell::new(chain),
            number: ChainNumber::default(),
            locks: Rc::default(),
            filling: RefCell::default(),
            writes: Cell::new(0),
            held: Cell::new(false),
            waiting: RefCell::default(),
            drained: Notify::new(),
            moving: Cell::new((0, 0)),
            deleted: Cell::new(record.deletion.is_some()),
            retired: Cell::new(false),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size.get()
    }

    /// The lvol has grown.
    pub(crate) fn set_size(&self, size: u64) {
        self.size.set(size);
    }

    /// Nothing is overwritten in place in these clusters from now on; I/O in flight may still be.
    pub(crate) fn set_moving(&self, clusters: std::ops::Range<u64>) {
        self.moving.set((clusters.start, clusters.end));
    }

    /// Whether data of one of these clusters is moving.
    pub(crate) fn is_moving(&self, clusters: &std::ops::Range<u64>) -> bool {
        let (start, end) = self.moving.get();
        start < clusters.end && clusters.start < end
    }

    pub(crate) fn set_deleted(&self, deleted: bool) {
        self.deleted.set(deleted);
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.get()
    }

    pub(crate) const fn block_size(&self) -> u32 {
        self.block_size
    }

    pub(crate) const fn read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) const fn internal(&self) -> bool {
        self.internal
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// Calls `body` with the maps it reads through, its own first.
    pub(crate) fn with_chain<T>(&self, body: impl FnOnce(&[Rc<Map>]) -> T) -> T {
        body(&self.chain.borrow())
    }

    /// What the store's hints for that chain are kept under.
    pub(crate) const fn chain_number(&self) -> &ChainNumber {
        &self.number
    }

    /// Its own map.
    pub(crate) fn map(&self) -> Rc<Map> {
        Rc::clone(&self.chain.borrow()[0])
    }

    pub(crate) fn set_chain(&self, chain: Vec<Rc<Map>>) {
        *self.chain.borrow_mut() = chain;
        self.number.renew();
    }

    /// The lvol is deleted: nothing is served any more.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        for (_, reply) in self.waiting.take() {
            reply.fail(ErrorKind::Unavailable);
        }
    }

    /// A write may start, or it has to wait until [`Volume::release`].
    pub(crate) fn begin_write(&self, request: Request, reply: Reply) -> Option<(Request, Reply)> {
        if self.held.get() {
            self.waiting.borrow_mut().push((request, reply));
            return None;
        }
        self.writes.set(self.writes.get() + 1);
        Some((request, reply))
    }

    /// A write is over; to be called before its reply is answered.
    pub(crate) fn end_write(&self) {
        let left = self.writes.get() - 1;
        self.writes.set(left);
        if left == 0 && self.held.get() {
            self.drained.notify_waiters();
        }
    }

    /// Holds new writes back and waits until none is in flight. One caller at a time.
    pub(crate) async fn hold(&self) {
        self.held.set(true);
        while self.writes.get() > 0 {
            self.drained.notified().await;
        }
    }

    /// Lets writes start again. Returns those that waited: to be submitted again.
    pub(crate) fn release(&self) -> Vec<(Request, Reply)> {
        self.held.set(false);
        self.waiting.take()
    }

    /// The cluster that others are filling for this place; counts one user more.
    pub(crate) fn join_filling(&self, index: u32) -> Option<u64> {
        let mut filling = self.filling.borrow_mut();
        let entry = filling.get_mut(&index)?;
        entry.users += 1;
        Some(entry.cluster)
    }

    /// Begins to fill a cluster.
    pub(crate) fn start_filling(&self, index: u32, cluster: u64) {
        let before = self.filling.borrow_mut().insert(index, Filling { cluster, users: 1 });
        debug_assert!(before.is_none(), "join comes before start");
    }

    /// The cluster that is being filled for this place.
    ///
    /// # Panics
    /// When none is: whoever asks has joined or started it.
    pub(crate) fn filling_cluster(&self, index: u32) -> u64 {
        self.filling
            .borrow()
            .get(&index)
            .map(|filling| filling.cluster)
            .expect("joined or started before, and not ended")
    }

    /// One user is done. Returns the cluster when it was the last.
    pub(crate) fn end_filling(&self, index: u32) -> Option<u64> {
        let mut filling = self.filling.borrow_mut();
        let entry = filling.get_mut(&index)?;
        entry.users -= 1;
        let (users, cluster) = (entry.users, entry.cluster);
        (users == 0).then(|| {
            filling.remove(&index);
            cluster
        })
    }
}
