//! A machine with one disk and the store on it.

use std::future::Future;
use std::path::Path;
use std::rc::Rc;

use block_device::{BlockDevice, Error, ErrorKind, Request, Slice, execute};
use lvol::{CreateLvol, FormatOptions, Lvol, SnapshotSpec, Store, StoreError};
use reactor::simulated::{DiskImage, NodeId, World};
use reactor::{Disk, DiskOptions};
use uuid::Uuid;

pub(crate) const DISK: &str = "/disk";

/// Bytes of the disks here, unless a test needs others.
pub(crate) const SIZE: u64 = 16 << 20;

/// Whether to try all that could be tried instead of a part: `ASHLAR_LONG_TESTS=1`, or `cargo xtask test --long`.
pub(crate) fn is_long() -> bool {
    std::env::var_os("ASHLAR_LONG_TESTS").is_some_and(|value| value == "1")
}

/// One simulated machine with one disk.
pub(crate) struct Rig {
    pub(crate) world: World,
    pub(crate) node: NodeId,
}

impl Rig {
    /// A machine with an empty disk of 512-byte alignment.
    pub(crate) fn new(seed: u64) -> Self {
        Self::with_disk(seed, SIZE, 512)
    }

    pub(crate) fn with_disk(seed: u64, size: u64, alignment: u32) -> Self {
        let world = World::new(seed);
        let node = world.add_node([10, 0, 0, 1].into());
        world.add_disk(node, DISK, size, alignment);
        Self { world, node }
    }

    /// Another machine, later: with this disk, after a boot.
    pub(crate) fn with_image(seed: u64, image: DiskImage) -> Self {
        // Boot ids come from the seed: worlds that the disk comes from have smaller ones.
        let world = World::new(seed + (1 << 32));
        let node = world.add_node([10, 0, 0, 1].into());
        world.set_disk_image(node, DISK, image);
        Self { world, node }
    }

    /// A machine with an empty store.
    pub(crate) fn formatted(seed: u64) -> Self {
        Self::formatted_with(seed, SIZE)
    }

    /// A machine with an empty store on a disk of this many bytes.
    pub(crate) fn formatted_with(seed: u64, size: u64) -> Self {
        let rig = Self::with_disk(seed, size, 512);
        rig.run(async { format(&disk()).await.expect("formatted") });
        rig
    }

    pub(crate) fn run<F>(&self, future: F) -> F::Output
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.world.block_on(self.node, future)
    }

    pub(crate) fn image(&self) -> DiskImage {
        self.world.disk_image(self.node, DISK)
    }
}

pub(crate) fn disk() -> Disk {
    Disk::open(Path::new(DISK), &DiskOptions::default()).expect("the disk opens")
}

pub(crate) async fn format(disk: &Disk) -> Result<(), StoreError> {
    Store::format(disk, &options()).await
}

pub(crate) fn options() -> FormatOptions {
    FormatOptions::new(Uuid::from_u128(0x5707e), "quarry")
}

pub(crate) async fn open() -> Store {
    Store::open(disk()).await.expect("the store opens")
}

pub(crate) fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

pub(crate) fn lvol(number: u128, size: u64) -> CreateLvol {
    let name = format!("lvol-{number}");
    CreateLvol { uuid: id(number), name, size, block_size: 4096, attributes: Default::default() }
}

pub(crate) fn snapshot(number: u128) -> SnapshotSpec {
    SnapshotSpec { uuid: id(number), name: format!("snapshot-{number}"), attributes: Default::default() }
}

/// Data that tells where it belongs: each 512 bytes repeat the stamp.
pub(crate) fn stamped(stamp: u64, length: usize) -> Slice {
    Slice::from(&stamp.to_le_bytes().repeat(length / 8)[..])
}

pub(crate) async fn write(lvol: &Rc<Lvol>, offset: u64, data: Slice) -> Result<(), Error> {
    execute(&**lvol, Request::write(offset, data)).await.map(drop)
}

pub(crate) async fn read(lvol: &Rc<Lvol>, offset: u64, length: u64) -> Result<Vec<u8>, Error> {
    let segments = execute(&**lvol, Request::read(offset, length)).await?;
    let pieces: Vec<&[u8]> = segments.iter().map(|slice| &slice[..]).collect();
    Ok(pieces.concat())
}

pub(crate) async fn read_all(lvol: &Rc<Lvol>) -> Vec<u8> {
    let size = lvol.geometry().size();
    let mut content = Vec::new();
    while (content.len() as u64) < size {
        let length = (size - content.len() as u64).min(1 << 20);
        content.extend(read(lvol, content.len() as u64, length).await.expect("read"));
    }
    content
}

pub(crate) async fn flush(lvol: &Rc<Lvol>) -> Result<(), Error> {
    execute(&**lvol, Request::Flush).await.map(drop)
}

pub(crate) async fn unmap(lvol: &Rc<Lvol>, offset: u64, length: u64) -> Result<(), Error> {
    let ranges = [block_device::Range { offset, length }].into_iter().collect();
    execute(&**lvol, Request::Unmap { ranges }).await.map(drop)
}

pub(crate) async fn write_zeroes(lvol: &Rc<Lvol>, offset: u64, length: u64) -> Result<(), Error> {
    let range = block_device::Range { offset, length };
    execute(&**lvol, Request::WriteZeroes { range, unmap: true, fua: false }).await.map(drop)
}

pub(crate) fn kind<T>(result: Result<T, Error>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

/// No cluster is lost and none has two owners (I26).
pub(crate) fn check_space(store: &Store) {
    let info = store.info();
    let used: u64 = store.lvols().iter().map(|lvol| lvol.used_bytes).sum();
    assert_eq!(used + info.internal_bytes + info.free, info.size, "clusters are lost or used twice: {info:?}");
}
