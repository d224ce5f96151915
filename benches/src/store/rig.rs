//! Stores to measure, on files and in memory, and what they do to their disks.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use anyhow::Context;
use block_device::FileDevice;
use lvol::{CreateLvol, FormatOptions, Lvol, SnapshotSpec, Store};
use reactor::{Buffer, Disk, DiskAction, DiskOptions};
use uuid::Uuid;

use super::load::{self, BLOCK};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;

/// Bytes of a cluster of all stores here.
pub(super) const CLUSTER: u64 = FormatOptions::DEFAULT_CLUSTER_SIZE as u64;

/// Room of a store beside its data: superblocks, journal, checkpoints.
pub(super) const OVERHEAD: u64 = 256 * MIB;

/// A new file of this size, all of it written, so that nobody pays for its first allocation.
pub(crate) async fn written_file(path: &Path, size: u64) -> anyhow::Result<Disk> {
    let disk = open_file(path, Some(size))?;
    disk.write_zeroes(0, size).await.context("cannot allocate the file")?;
    load::fill(&FileDevice::new(disk.clone(), BLOCK as u32)?, 0..size, MIB).await?;
    disk.sync().await?;
    Ok(disk)
}

pub(crate) fn open_file(path: &Path, create: Option<u64>) -> anyhow::Result<Disk> {
    // Tests may have their temporary folder on tmpfs, which has no O_DIRECT.
    let options = DiskOptions { create, buffered: cfg!(test), ..DiskOptions::default() };
    Disk::open(path, &options).with_context(|| format!("cannot open {}", path.display()))
}

/// An empty store.
pub(super) async fn format(disk: &Disk) -> anyhow::Result<Store> {
    Store::format(disk, &FormatOptions::new(Uuid::from_u128(1), "bench")).await?;
    Ok(Store::open(disk.clone()).await?)
}

pub(super) fn id(number: u64) -> Uuid {
    Uuid::from_u128(u128::from(number) + 1)
}

/// A new lvol of 4 KiB blocks.
pub(super) async fn create(store: &Store, number: u64, size: u64) -> anyhow::Result<Rc<Lvol>> {
    let name = format!("lvol-{number}");
    let spec = CreateLvol { uuid: id(number), name, size, block_size: BLOCK as u32, attributes: Default::default() };
    store.create(&spec).await?;
    open(store, number).await
}

pub(super) async fn open(store: &Store, number: u64) -> anyhow::Result<Rc<Lvol>> {
    open_id(store, id(number)).await
}

pub(super) async fn open_id(store: &Store, id: Uuid) -> anyhow::Result<Rc<Lvol>> {
    Ok(store.open_lvol(id).await?)
}

pub(super) async fn snapshot(store: &Store, head: u64, number: u64) -> anyhow::Result<()> {
    let spec = SnapshotSpec { uuid: id(number), name: format!("snapshot-{number}"), attributes: Default::default() };
    store.snapshot(id(head), &spec).await?;
    Ok(())
}

/// Where the data begins on a store's disk.
pub(super) async fn data_start(disk: &Disk) -> anyhow::Result<u64> {
    let (result, superblock) = disk.read(0, Buffer::new(BLOCK as usize)).await;
    result?;
    data_start_in(&superblock)
}

/// The same, from its superblock, which names the first data cluster (`docs/on-disk-format.md`).
pub(crate) fn data_start_in(superblock: &[u8]) -> anyhow::Result<u64> {
    const FIRST_DATA_CLUSTER: usize = 168;
    let bytes = superblock.get(FIRST_DATA_CLUSTER..FIRST_DATA_CLUSTER + 8).context("a superblock that is cut off")?;
    Ok(u64::from_le_bytes(bytes.try_into()?) * CLUSTER)
}

/// What a disk was asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Bytes of data read.
    pub(super) data_read: u64,
    /// Bytes of data written, zeroes too.
    pub(super) data_written: u64,
    /// Bytes of everything else read.
    pub(super) metadata_read: u64,
    /// Bytes of everything else written.
    pub(super) metadata_written: u64,
    /// Writes of everything else.
    pub(super) metadata_writes: u64,
}

/// Counts what a disk is asked to do from here on.
pub(super) struct Counter(Rc<RefCell<Counted>>);

impl Counter {
    /// Data lies from `data` on.
    pub(super) fn start(disk: &Disk, data: u64) -> Self {
        let counted = Rc::new(RefCell::new(Counted::default()));
        let counter = Self(Rc::clone(&counted));
        disk.watch(move |action| {
            let mut counted = counted.borrow_mut();
            match action {
                DiskAction::Read { offset, length } if offset >= data => counted.data_read += length,
                DiskAction::Read { length, .. } => counted.metadata_read += length,
                DiskAction::Write { offset, length } | DiskAction::WriteZeroes { offset, length } if offset >= data => {
                    counted.data_written += length;
                }
                DiskAction::Write { length, .. } | DiskAction::WriteZeroes { length, .. } => {
                    counted.metadata_written += length;
                    counted.metadata_writes += 1;
                }
                DiskAction::Discard { .. } | DiskAction::Sync => {}
            }
        });
        counter
    }

    /// What was counted since the last time.
    pub(super) fn take(&self) -> Counted {
        self.0.take()
    }
}

#[cfg(test)]
mod tests {
    use reactor::Reactor;

    use super::*;

    #[test]
    fn data_and_metadata_are_told_apart() {
        Reactor::run(&reactor::Config::default(), async {
            let disk = Disk::memory(64 * MIB).expect("memory");
            let store = format(&disk).await.expect("formatted");
            let lvol = create(&store, 1, MIB).await.expect("created");
            let data = data_start(&disk).await.expect("formatted");
            let counter = Counter::start(&disk, data);
            load::fill(&*lvol, 0..MIB, CLUSTER).await.expect("written");
            let first = counter.take();
            assert_eq!((first.data_written, first.data_read), (MIB, 0));
            assert!(first.metadata_writes > 0);
            load::fill(&*lvol, 0..MIB, CLUSTER).await.expect("written");
            let again = Counted { data_written: MIB, ..Counted::default() };
            assert_eq!(counter.take(), again, "an overwrite is no metadata");
            load::read_at(&*lvol, [0, 4096]).await.expect("read");
            assert_eq!(counter.take().data_read, 2 * BLOCK);
        })
        .expect("a reactor");
    }
}
