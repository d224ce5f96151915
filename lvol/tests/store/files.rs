//! The same on a real file through the kernel.

use std::rc::Rc;
use std::time::Duration;

use block_device::BlockDevice;
use lvol::Store;
use reactor::{Disk, DiskOptions, Reactor};

use crate::rig::{check_space, flush, format, id, lvol, read, read_all, snapshot, stamped, unmap, write};

const CLUSTER: u64 = 64 << 10;

fn options() -> DiskOptions {
    // Build machines may have their temporary folder on tmpfs, which has no O_DIRECT.
    DiskOptions { create: Some(64 << 20), buffered: true, ..DiskOptions::default() }
}

#[test]
fn a_store_on_a_file_survives_being_dropped() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store");
    let same = path.clone();
    Reactor::run(&reactor::Config::default(), async move {
        let disk = Disk::open(&same, &options()).expect("opened");
        format(&disk).await.expect("formatted");
        let store = Store::open(disk).await.expect("opened");
        store.create(&lvol(1, 16 << 20)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        assert_eq!(head.geometry().size(), 16 << 20);
        let writers: Vec<_> = (0..64u64)
            .map(|writer| {
                let head = Rc::clone(&head);
                reactor::spawn(async move {
                    for piece in 0..16 {
                        let block = piece * 64 + writer;
                        write(&head, block * 4096, stamped(1 + block, 4096)).await.expect("written");
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.expect("no writer panics");
        }
        store.snapshot(id(1), &snapshot(2)).await.expect("cut");
        unmap(&head, 0, CLUSTER).await.expect("unmapped");
        flush(&head).await.expect("flushed");
        write(&head, 8 * CLUSTER, stamped(9999, CLUSTER as usize)).await.expect("written");
        // Neither flushed nor closed: as after a kill.
    })
    .expect("a reactor");

    Reactor::run(&reactor::Config::default(), async move {
        let store = Store::open(Disk::open(&path, &options()).expect("opened")).await.expect("recovered");
        assert!(!store.info().clean_open);
        let head = store.open_lvol(id(1)).await.expect("opened");
        assert!(read(&head, 0, CLUSTER).await.expect("read") == vec![0; CLUSTER as usize]);
        assert!(read(&head, 8 * CLUSTER, CLUSTER).await.expect("read") == stamped(9999, CLUSTER as usize)[..]);
        let old = read_all(&store.open_lvol(id(2)).await.expect("opened")).await;
        for block in 0..1024u64 {
            assert!(old[block as usize * 4096..][..4096] == stamped(1 + block, 4096)[..], "block {block}");
        }
        check_space(&store);
        store.delete(id(1)).await.expect("deleted");
        store.delete(id(2)).await.expect("deleted");
        reactor::sleep(Duration::from_millis(50)).await;
        assert_eq!(store.info().free, store.info().size);
        store.close().await.expect("closed");
    })
    .expect("a reactor");
    let metadata = std::fs::metadata(folder.path().join("store")).expect("there");
    let allocated = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
    assert!(allocated < 4 << 20, "{allocated} bytes are still taken");
}

#[test]
fn a_second_store_on_the_same_file_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store");
    Reactor::run(&reactor::Config::default(), async move {
        let disk = Disk::open(&path, &options()).expect("opened");
        format(&disk).await.expect("formatted");
        let _store = Store::open(disk).await.expect("opened");
        let again = Disk::open(&path, &options()).err().expect("in use");
        assert_eq!(again.kind(), std::io::ErrorKind::WouldBlock);
    })
    .expect("a reactor");
}
