//! Open disks, sockets and listeners, and the places of disks in the ring's table of registered files.
//!
//! Sockets are not in it. What the table has stays open until the kernel has taken the ring apart, which it does in the background when a process
//! is killed, and takes a tenth of a second for: for so long whoever is connected to it would not hear that it is gone.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{Submitter, squeue, types};
use slab::Slab;
use smallvec::SmallVec;

use super::{disks, sockets};
use crate::driver::{OperationId, ResourceId};

/// How many descriptors have a place in the table at most. Those beyond, and sockets, work all the same, with a reference count
/// for each operation.
const TABLE: u64 = 8192;

/// How many operations of one disk the kernel has at most; more wait here. Most disks have no use for more. One that hangs can keep a thread of the
/// kernel busy with each of them, and the others need some as well: see [`Descriptors::threads`].
const DISK_DEPTH: usize = 256;

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file; the page cache is used unless `direct`.
    File {
        direct: bool,
    },
    BlockDevice,
    Socket,
    Listener,
}

/// An open descriptor.
pub(super) struct Resource {
    pub(super) file: OwnedFd,
    pub(super) kind: Kind,
    /// Operations in flight; the descriptor stays open until there are none.
    users: usize,
    /// The operations in flight on a socket or listener, to cancel at close.
    cancellable: SmallVec<[OperationId; 2]>,
    /// Operations of a disk that the kernel does not have yet, in order. They are in flight, too.
    parked: VecDeque<OperationId>,
    closing: bool,
}

impl Resource {
    fn is_disk(&self) -> bool {
        matches!(self.kind, Kind::File { .. } | Kind::BlockDevice)
    }

    /// Whether the kernel has as many operations of it as it may.
    fn is_full(&self) -> bool {
        self.is_disk() && self.users - self.parked.len() >= DISK_DEPTH
    }
}

/// How an entry of the submission queue names its file.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) number: types::Fd,
    pub(super) flags: squeue::Flags,
}

/// All open descriptors of one driver.
pub(super) struct Descriptors {
    open: Slab<Resource>,
    /// Disks with a smaller identifier have the table's place of that number.
    registered: usize,
}

impl Descriptors {
    /// Makes the table of registered files, or does without where the limit on open files is too low for one.
    pub(super) fn new(submitter: &Submitter<'_>) -> Self {
        let places = open_files_limit().min(TABLE);
        // At most TABLE, so nothing is cut off.
        let registered = match submitter.register_files_sparse(places as u32) {
            Ok(()) => places as usize,
            Err(error) => {
                tracing::warn!(%error, "files cannot be registered with io_uring; I/O costs a little more");
                0
            }
        };
        Self { open: Slab::new(), registered }
    }

    /// Takes a descriptor in.
    pub(super) fn add(&mut self, submitter: &Submitter<'_>, file: OwnedFd, kind: Kind) -> io::Result<ResourceId> {
        let entry = self.open.vacant_entry();
        let id = entry.key();
        if has_place(self.registered, id, kind) {
            // Below TABLE.
            submitter.register_files_update(id as u32, &[file.as_raw_fd()])?;
        }
        entry.insert(Resource {
            file,
            kind,
            users: 0,
            cancellable: SmallVec::new(),
            parked: VecDeque::new(),
            closing: false,
        });
        Ok(id)
    }

    /// How many threads the kernel may need for what blocks, so that a disk that hangs leaves enough to the others.
    pub(super) fn threads(&self) -> u32 {
        let disks = self.open.iter().filter(|(_, resource)| resource.is_disk()).count();
        u32::try_from((disks + 1) * DISK_DEPTH).unwrap_or(u32::MAX)
    }

    /// An open resource that is not being closed.
    pub(super) fn get(&self, id: ResourceId) -> io::Result<&Resource> {
        let resource = self.open.get(id).filter(|resource| !resource.closing);
        resource.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// How to name a resource that has operations in flight.
    pub(super) fn target(&self, id: ResourceId) -> Target {
        if has_place(self.registered, id, self.open[id].kind) {
            // Below TABLE.
            return Target { number: types::Fd(id as i32), flags: squeue::Flags::FIXED_FILE };
        }
        Target { number: types::Fd(self.open[id].file.as_raw_fd()), flags: squeue::Flags::empty() }
    }

    /// The kind of a resource that has operations in flight.
    pub(super) fn kind(&self, id: ResourceId) -> Kind {
        self.open[id].kind
    }

    /// Counts an operation that starts.
    pub(super) fn begin(&mut self, id: ResourceId, operation: OperationId) {
        let resource = &mut self.open[id];
        resource.users += 1;
        if matches!(resource.kind, Kind::Socket | Kind::Listener) {
            resource.cancellable.push(operation);
        }
    }

    /// Whether an operation of this resource has to wait for others before the kernel gets it.
    pub(super) fn is_full(&self, id: ResourceId) -> bool {
        self.open[id].is_full()
    }

    /// Keeps an operation that has begun until the kernel may have it.
    pub(super) fn park(&mut self, id: ResourceId, operation: OperationId) {
        self.open[id].parked.push_back(operation);
    }

    /// Takes an operation out that was kept; false if it was not.
    pub(super) fn unpark(&mut self, id: ResourceId, operation: OperationId) -> bool {
        let parked = &mut self.open[id].parked;
        let place = parked.iter().position(|&other| other == operation);
        place.is_some_and(|place| parked.remove(place).is_some())
    }

    /// The next operation of this resource that the kernel may have, if one was kept.
    pub(super) fn next_parked(&mut self, id: ResourceId) -> Option<OperationId> {
        let resource = self.open.get_mut(id).filter(|resource| !resource.is_full())?;
        resource.parked.pop_front()
    }

    /// Counts an operation that has ended; the last one of a closed resource closes the descriptor.
    pub(super) fn end(&mut self, submitter: &Submitter<'_>, id: ResourceId, operation: OperationId) {
        let resource = &mut self.open[id];
        resource.users -= 1;
        if let Some(place) = resource.cancellable.iter().position(|&other| other == operation) {
            resource.cancellable.swap_remove(place);
        }
        if resource.closing && resource.users == 0 {
            self.remove(submitter, id);
        }
    }

    /// Closes a resource, now or when its last operation ends. Returns the operations to cancel.
    pub(super) fn close(&mut self, submitter: &Submitter<'_>, id: ResourceId) -> SmallVec<[OperationId; 2]> {
        let Some(resource) = self.open.get_mut(id) else { return SmallVec::new() };
        if resource.users == 0 {
            self.remove(submitter, id);
            return SmallVec::new();
        }
        resource.closing = true;
        if resource.kind == Kind::Listener {
            sockets::end_listening(&resource.file);
        }
        resource.cancellable.clone()
    }

    /// Takes a resource without operations in flight out of the driver.
    ///
    /// # Panics
    /// When there is no such resource or it is in use.
    pub(super) fn remove(&mut self, submitter: &Submitter<'_>, id: ResourceId) -> OwnedFd {
        assert_eq!(self.open[id].users, 0, "a descriptor in use stays open");
        let resource = self.open.remove(id);
        if resource.is_disk() {
            disks::unlock(&resource.file);
        }
        if has_place(self.registered, id, resource.kind)
            && let Err(error) = submitter.register_files_update(id as u32, &[-1])
        {
            tracing::error!(%error, id, "a file cannot be taken out of the ring's table");
        }
        resource.file
    }
}

/// Whether a descriptor is in a table of so many places.
fn has_place(places: usize, id: ResourceId, kind: Kind) -> bool {
    id < places && matches!(kind, Kind::File { .. } | Kind::BlockDevice)
}

fn open_files_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call fills the structure it is given.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } {
        0 => limit.rlim_cur,
        _ => 0,
    }
}
