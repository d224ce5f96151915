//! The disks and small files of a simulated world, from outside.

use std::path::Path;

use super::{NodeId, World};
use crate::driver::simulated::{Disk, DiskFault, DiskHistory, DiskImage, DiskLatency};

impl World {
    /// Gives a machine a disk of zeroes with this many bytes and this alignment (512 or 4096), which is also the unit that a
    /// power cut leaves whole. Opening a path with a size makes one too.
    ///
    /// # Panics
    /// When there is one with this path.
    pub fn add_disk(&self, node: NodeId, path: impl AsRef<Path>, size: u64, alignment: u32) {
        let mut state = self.inner.state.borrow_mut();
        let path = path.as_ref();
        assert!(state.disk(node.0, path).is_none(), "there is a disk {}", path.display());
        state.add_disk(node.0, path, Disk::new(size, alignment));
    }

    /// What a reader of the disk would see now.
    ///
    /// # Panics
    /// When there is no such disk, as for all functions here that name one.
    pub fn disk_image(&self, node: NodeId, path: impl AsRef<Path>) -> DiskImage {
        self.with_disk(node, path, |disk| disk.image().clone())
    }

    /// What is sure to be there after a power cut.
    pub fn durable_image(&self, node: NodeId, path: impl AsRef<Path>) -> DiskImage {
        self.with_disk(node, path, |disk| disk.durable_image().clone())
    }

    /// Replaces a disk's content, or adds a disk with this content.
    pub fn set_disk_image(&self, node: NodeId, path: impl AsRef<Path>, image: DiskImage) {
        let mut state = self.inner.state.borrow_mut();
        match state.disk(node.0, path.as_ref()) {
            Some(disk) => state.disks[disk].set_image(image),
            None => {
                state.add_disk(node.0, path.as_ref(), Disk::with_image(image, 512));
            }
        }
    }

    /// Turns the bits of `mask` in one byte of the medium.
    pub fn flip_bits(&self, node: NodeId, path: impl AsRef<Path>, offset: u64, mask: u8) {
        self.with_disk(node, path, |disk| disk.flip(offset, mask));
    }

    /// Adds a fault. Several act together.
    pub fn add_disk_fault(&self, node: NodeId, path: impl AsRef<Path>, fault: DiskFault) {
        self.with_disk(node, path, |disk| disk.add_fault(fault));
    }

    /// Lifts all faults of a disk. What hung goes on.
    pub fn clear_disk_faults(&self, node: NodeId, path: impl AsRef<Path>) {
        self.with_disk(node, path.as_ref(), Disk::clear_faults);
        let mut state = self.inner.state.borrow_mut();
        if let Some(disk) = state.disk(node.0, path.as_ref()) {
            state.unhang(disk);
        }
    }

    /// Sets how long operations take.
    pub fn set_disk_latency(&self, node: NodeId, path: impl AsRef<Path>, latency: DiskLatency) {
        self.with_disk(node, path, |disk| disk.set_latency(latency));
    }

    /// Lets at most this many bytes of a disk be allocated: writes that need more fail with ENOSPC.
    pub fn limit_disk_space(&self, node: NodeId, path: impl AsRef<Path>, bytes: Option<u64>) {
        self.with_disk(node, path, |disk| disk.limit_space(bytes));
    }

    /// Begins to record what is done to a disk, for [`World::disk_history`].
    pub fn record_disk(&self, node: NodeId, path: impl AsRef<Path>) {
        self.with_disk(node, path, Disk::record);
    }

    /// What was done to a disk since [`World::record_disk`].
    ///
    /// # Panics
    /// When nothing was recorded.
    pub fn disk_history(&self, node: NodeId, path: impl AsRef<Path>) -> DiskHistory {
        self.with_disk(node, path, |disk| disk.history().cloned().expect("the disk is recorded"))
    }

    /// How many steps the history of a disk has by now: notes when something was acknowledged.
    pub fn disk_steps(&self, node: NodeId, path: impl AsRef<Path>) -> usize {
        self.with_disk(node, path, |disk| disk.history().map_or(0, DiskHistory::len))
    }

    /// Makes each operation on small files of a node fail with this probability.
    pub fn fail_files(&self, node: NodeId, probability: f64) {
        self.inner.state.borrow_mut().nodes[node.0].files.set_failure(probability);
    }

    fn with_disk<T>(&self, node: NodeId, path: impl AsRef<Path>, body: impl FnOnce(&mut Disk) -> T) -> T {
        self.inner.with_disk(node, path.as_ref(), body)
    }
}

impl super::Observer {
    /// Like [`World::disk_steps`], zero when the world is gone.
    pub fn disk_steps(&self, node: NodeId, path: impl AsRef<Path>) -> usize {
        let steps = |disk: &mut Disk| disk.history().map_or(0, DiskHistory::len);
        self.0.upgrade().map_or(0, |inner| inner.with_disk(node, path.as_ref(), steps))
    }
}

impl super::Inner {
    fn with_disk<T>(&self, node: NodeId, path: &Path, body: impl FnOnce(&mut Disk) -> T) -> T {
        let mut state = self.state.borrow_mut();
        let disk = state.disk(node.0, path);
        let disk = disk.unwrap_or_else(|| panic!("node {} has no disk {}", node.0, path.display()));
        body(&mut state.disks[disk])
    }
}
