//! Stores: each structure by itself, and whole images.
//!
//! An image is not made of the fuzzer's bytes, which would never pass a checksum: they are a list of changes to a good image, whose
//! structures are sealed again afterwards. So what is wrong is what they say, and where they stand.

use std::path::Path;
use std::rc::Rc;
use std::sync::OnceLock;

use block_device::{BlockDevice, Request, Slice, execute};
use lvol::offline::{CheckOptions, Export, Remedy, check, dump};
use lvol::{CreateLvol, FormatOptions, Lvol, SnapshotSpec, Store};
use reactor::simulated::{DiskImage, World};
use reactor::{Disk, DiskOptions};
use uuid::Uuid;

const DISK: &str = "/disk";
const SIZE: u64 = 16 << 20;
const BLOCK: u64 = 4096;
const CLUSTER: u64 = 64 << 10;

/// Bytes of one change.
const CHANGE: usize = 12;

/// The most changes to one image.
const CHANGES: usize = 16;

/// Each parser on the same bytes.
pub(super) fn structures(bytes: &[u8]) {
    let Some((&which, bytes)) = bytes.split_first() else { return };
    match which % 4 {
        0 => lvol::fuzzing::superblock(bytes),
        1 => lvol::fuzzing::batch(bytes),
        2 => lvol::fuzzing::records(bytes),
        _ => lvol::fuzzing::page(bytes),
    }
}

/// The metadata of good images, each structure for each parser; records are found at the end of a batch's header.
pub(super) fn structure_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for good in images() {
        for &offset in &good.structures {
            let block = good.image.bytes(offset, 2 * BLOCK as usize);
            let (which, start) = match &block[..8] {
                b"ASHLSUPB" => (0, 0),
                b"ASHLJRNL" => {
                    seeds.push([&[2], &block[88..1024]].concat());
                    (1, 0)
                }
                _ => (3, 0),
            };
            seeds.push([&[which], &block[start..BLOCK as usize]].concat());
        }
    }
    seeds
}

/// A good image, and where its structures are.
struct Good {
    image: DiskImage,
    structures: Vec<u64>,
}

/// A store that was closed, one that was killed, and one in which snapshots are being merged.
fn images() -> &'static [Good] {
    static IMAGES: OnceLock<Vec<Good>> = OnceLock::new();
    IMAGES.get_or_init(|| vec![prepared(true, false), prepared(false, false), prepared(false, true)])
}

fn prepared(closed: bool, merging: bool) -> Good {
    let world = World::new(1);
    let node = world.add_node([10, 0, 0, 1].into());
    world.add_disk(node, DISK, SIZE, 512);
    world.block_on(node, async move {
        let disk = open_disk();
        Store::format(&disk, &FormatOptions::new(id(99), "fuzz")).await.expect("formatted");
        let store = Store::open(disk).await.expect("opened");
        fill(&store).await;
        store.clone().close().await.expect("closed");
        drop(store);
        let store = Store::open(open_disk()).await.expect("opened");
        if merging {
            store.delete(id(11)).await.expect("marked");
        }
        let lvol = store.open_lvol(id(1)).await.expect("opened");
        write(&lvol, 5 * CLUSTER, 3 * CLUSTER).await;
        execute(&*lvol, Request::Flush).await.expect("flushed");
        if closed {
            store.close().await.expect("closed");
        }
    });
    let image = world.disk_image(node, DISK);
    let blocks = (0..image.size() / BLOCK).map(|block| block * BLOCK);
    let structures = blocks.filter(|offset| image.bytes(*offset, 4) == b"ASHL").collect();
    Good { image, structures }
}

/// A chain of three, a clone, another lvol, zeroes and holes.
async fn fill(store: &Store) {
    for number in [1, 2] {
        let attributes = [("key".to_owned(), vec![1, 2, 3])].into();
        let lvol = CreateLvol { uuid: id(number), name: "head".to_owned(), size: 1 << 20, block_size: 512, attributes };
        store.create(&lvol).await.expect("created");
    }
    let (one, two) = (store.open_lvol(id(1)).await.expect("opened"), store.open_lvol(id(2)).await.expect("opened"));
    write(&one, 0, 4 * CLUSTER).await;
    write(&two, CLUSTER, CLUSTER).await;
    for number in [10, 11] {
        let spec = SnapshotSpec { uuid: id(number), name: "snapshot".to_owned(), attributes: Default::default() };
        store.snapshot(id(1), &spec).await.expect("cut");
        write(&one, u64::try_from(number).expect("small") % 3 * CLUSTER + BLOCK, 2 * CLUSTER).await;
    }
    let range = block_device::Range { offset: 8 * CLUSTER, length: 4 * CLUSTER };
    execute(&*one, Request::WriteZeroes { range, unmap: true, fua: false }).await.expect("zeroed");
}

async fn write(lvol: &Rc<Lvol>, offset: u64, length: u64) {
    let data = Slice::from(&vec![offset as u8 | 1; length as usize][..]);
    execute(&**lvol, Request::write(offset, data)).await.expect("written");
}

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn open_disk() -> Disk {
    Disk::open(Path::new(DISK), &DiskOptions::default()).expect("the disk opens")
}

/// Changes a good image as the bytes say, then looks into it, opens, uses, repairs and opens it again.
pub(super) fn image(bytes: &[u8]) {
    let Some((&which, changes)) = bytes.split_first() else { return };
    let good = &images()[usize::from(which) % images().len()];
    let mut image = good.image.clone();
    for change in changes.chunks_exact(CHANGE).take(CHANGES) {
        apply(change, good, &mut image);
    }
    let as_found = image.clone();
    in_world(image, async {
        look(&open_disk()).await;
        use_store().await;
    });
    in_world(as_found, async {
        repair(&open_disk()).await;
        use_store().await;
    });
}

pub(super) fn image_seeds() -> Vec<Vec<u8>> {
    let image = |which: u8| (0..6).map(move |kind| vec![which, kind, which * 7 + kind, 0, 100, 0, 0, 0, 1, 0, 0, 0, 0]);
    (0..3).flat_map(image).collect()
}

/// One change: kind, structure (2 bytes), place in it (1, or 2 for what is longer), value (8).
fn apply(change: &[u8], good: &Good, image: &mut DiskImage) {
    let (kind, which) = (change[0], usize::from(u16::from_le_bytes([change[1], change[2]])));
    let offset = good.structures[which % good.structures.len()];
    // Most of what matters is at the start of a structure.
    let at = match kind & 0x40 {
        0 => 52 + u64::from(change[3]) % 204,
        _ => u64::from(change[3]) * 16,
    };
    let value: [u8; 8] = change[4..12].try_into().expect("eight bytes");
    let other = good.structures[usize::from(value[0]) % good.structures.len()];
    match kind % 6 {
        0 => image.write(offset + at, &value),
        1 => image.write(offset + at, &value[..4]),
        2 => image.write(offset + at, &value[..1]),
        3 => image.write(offset, &[0; BLOCK as usize]),
        4 => image.write(offset, &image.bytes(other, BLOCK as usize)),
        _ => image.flip(offset + at, value[0] | 1),
    }
    if kind & 0x80 == 0 {
        let mut bytes = image.bytes(offset, (128 << 10).min((image.size() - offset) as usize));
        lvol::fuzzing::seal(&mut bytes, offset);
        image.write(offset, &bytes[..64]);
    }
}

fn in_world(image: DiskImage, work: impl Future<Output = ()> + 'static) {
    let world = World::new(2);
    let node = world.add_node([10, 0, 0, 1].into());
    world.set_disk_image(node, DISK, image);
    world.block_on(node, work);
}

/// Looking changes nothing and reads everything.
async fn look(disk: &Disk) {
    let _ = check(disk, &CheckOptions { data: true, ..CheckOptions::default() }).await;
    let _ = dump(disk, |_| true).await;
    for number in [1, 2, 10, 11] {
        if let Ok(mut export) = Export::open(disk, id(number)).await {
            let limit = 64;
            for _ in 0..limit {
                if export.next().await.is_none() {
                    break;
                }
            }
        }
    }
}

/// Repairs everything, whatever it costs.
async fn repair(disk: &Disk) {
    let Ok(report) = check(disk, &CheckOptions::default()).await else { return };
    let accept = |finding: &lvol::offline::Finding| match &finding.remedy {
        Remedy::AcceptLoss { lvols, .. } => lvols.clone(),
        _ => Vec::new(),
    };
    let accept_loss = report.findings.iter().flat_map(accept).collect();
    let _ = check(disk, &CheckOptions { repair: true, accept_loss, ..CheckOptions::default() }).await;
}

/// Opens the store, reads and writes what there is, closes it, and opens it once more.
async fn use_store() {
    let Ok(store) = Store::open(open_disk()).await else { return };
    for info in store.lvols() {
        let _ = store.extents(info.uuid, block_device::Range { offset: 0, length: u64::MAX }, 100).await;
        let Ok(lvol) = store.open_lvol(info.uuid).await else { continue };
        let size = lvol.geometry().size().min(1 << 20);
        let _ = execute(&*lvol, Request::read(0, size & !4095)).await;
        let data = Slice::from(&[7; 8192][..]);
        let _ = execute(&*lvol, Request::write(0, data)).await;
        let range = block_device::Range { offset: 0, length: size & !4095 };
        let _ = execute(&*lvol, Request::Unmap { ranges: [range].into_iter().collect() }).await;
    }
    let spec = SnapshotSpec { uuid: id(77), name: "last".to_owned(), attributes: Default::default() };
    let _ = store.snapshot(id(1), &spec).await;
    let _ = store.delete(id(10)).await;
    let _ = store.flush().await;
    let _ = store.close().await;
    if let Ok(store) = Store::open(open_disk()).await {
        let _ = store.lvols();
    }
}
