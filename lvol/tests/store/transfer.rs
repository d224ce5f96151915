//! Lvols out of a store and into it: what is exported is what is read, what is imported is whole or said to be incomplete.

use lvol::{CreateLvol, Store, StoreError};
use reactor::Slice;
use reactor::simulated::Survival;

use crate::rig::{
    DISK, Rig, check_space, id, lvol, open, read, read_all, snapshot, stamped, unmap, write, write_zeroes,
};

const CLUSTER: u64 = 64 << 10;
const SIZE: u64 = 2 << 20;

/// An lvol put together from its export, and how many bytes that had.
pub(crate) async fn exported(store: &Store, uuid: uuid::Uuid) -> (Vec<u8>, u64) {
    let mut export = store.export(uuid).await.expect("at rest");
    let (mut content, mut bytes) = (vec![0; export.size() as usize], 0);
    let mut end = 0;
    while let Some(piece) = export.next().await.expect("read") {
        assert!(piece.offset >= end && piece.data.length() <= 512 << 10);
        let mut at = piece.offset as usize;
        for slice in piece.data.iter() {
            content[at..at + slice.len()].copy_from_slice(slice);
            at += slice.len();
        }
        end = at as u64;
        bytes += end - piece.offset;
    }
    (content, bytes)
}

#[test]
fn an_export_has_the_data_of_the_chain_and_no_holes() {
    let rig = Rig::formatted(1);
    rig.run(async {
        let store = open().await;
        store.create(&CreateLvol { block_size: 512, ..lvol(1, 1 << 40) }).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        write(&head, 0, stamped(1, 4 * CLUSTER as usize)).await.expect("written");
        write(&head, (1 << 40) - 512, stamped(2, 512)).await.expect("written");
        store.snapshot(id(1), &snapshot(2)).await.expect("cut");
        write(&head, 8192, stamped(3, 4096)).await.expect("written");
        write_zeroes(&head, CLUSTER, CLUSTER).await.expect("zeroed");
        write(&head, 1 << 39, stamped(4, 1 << 20)).await.expect("written");
        store.snapshot(id(1), &snapshot(3)).await.expect("cut");
        unmap(&head, 0, 4 * CLUSTER).await.expect("unmapped");

        let refused = store.export(id(1)).await.err().expect("it is open");
        assert!(matches!(refused, StoreError::InUse { .. }), "{refused}");
        let mut export = store.export(id(3)).await.expect("a snapshot");
        let mut found = Vec::new();
        while let Some(piece) = export.next().await.expect("read") {
            let bytes: Vec<u8> = piece.data.iter().flat_map(|slice| slice.to_vec()).collect();
            found.push((piece.offset, bytes));
        }
        let (first, last) = (
            [stamped(1, 8192), stamped(3, 4096), stamped(1, CLUSTER as usize - 12288)]
                .map(|part| part.to_vec())
                .concat(),
            1 << 40,
        );
        let middle = stamped(4, 512 << 10).to_vec();
        let mut tail = vec![0; 4096];
        tail[3584..].copy_from_slice(&stamped(2, 512));
        let expected = [
            (0, first),
            (2 * CLUSTER, stamped(1, 2 * CLUSTER as usize).to_vec()),
            (1 << 39, middle.clone()),
            ((1 << 39) + (512 << 10), middle),
            (last - 4096, tail),
        ];
        assert!(
            found == expected,
            "{:?}",
            found.iter().map(|(offset, data)| (*offset, data.len())).collect::<Vec<_>>()
        );
        drop(head);
        let mut head = store.export(id(1)).await.expect("at rest");
        assert_eq!(head.next().await.expect("read").expect("a piece").offset, 1 << 39);
    });
}

#[test]
fn an_import_is_incomplete_until_it_is_finished() {
    let rig = Rig::formatted(2);
    rig.run(async {
        let store = open().await;
        let spec = lvol(1, SIZE);
        let import = store.import(&spec).await.expect("begun").expect("not there yet");
        import.write(0, stamped(1, CLUSTER as usize)).await.expect("written");
        import.write(SIZE - 4096, stamped(2, 4096)).await.expect("written");
        assert!(matches!(import.write(100, stamped(2, 4096)).await, Err(StoreError::Invalid { .. })));
        assert!(store.lvol_info(id(1)).expect("listed").incomplete);
        for refused in [
            store.open_lvol(id(1)).await.err(),
            store.snapshot(id(1), &snapshot(2)).await.err(),
            store.grow(id(1), 2 * SIZE).await.err(),
            store.export(id(1)).await.err().filter(|error| !matches!(error, StoreError::InUse { .. })),
        ] {
            assert!(refused.is_none_or(|error| matches!(error, StoreError::Incomplete { .. })));
        }
        assert!(matches!(store.import(&spec).await, Err(StoreError::InUse { .. })), "one at a time");
        // Cut off, and begun again: what the first one wrote is gone.
        drop(import);
        let import = store.import(&spec).await.expect("begun").expect("not complete");
        import.write(CLUSTER, stamped(3, CLUSTER as usize)).await.expect("written");
        let whole = import.finish().await.expect("finished");
        assert_eq!((whole.incomplete, whole.used_bytes, whole.attributes.len()), (false, CLUSTER, 0));
        let content = read_all(&store.open_lvol(id(1)).await.expect("opened")).await;
        assert!(content[CLUSTER as usize..2 * CLUSTER as usize] == stamped(3, CLUSTER as usize)[..]);
        assert!(content.iter().filter(|byte| **byte != 0).count() <= CLUSTER as usize);
        assert!(store.import(&spec).await.expect("the same again").is_none(), "I30");
        let other = store.import(&lvol(1, 2 * SIZE)).await.err().expect("another size");
        assert!(matches!(other, StoreError::Conflict { .. }), "{other}");
        // One that nobody wants any more.
        let import = store.import(&lvol(5, SIZE)).await.expect("begun").expect("not there yet");
        import.write(0, stamped(1, CLUSTER as usize)).await.expect("written");
        store.delete(id(5)).await.expect("deleted");
        import.write(0, stamped(1, CLUSTER as usize)).await.expect_err("it is gone");
        import.finish().await.expect_err("it is gone");
        check_space(&store);
    });
}

/// After a power cut at any step the lvol is not there, incomplete, or complete with every byte (I4, I26).
#[test]
fn a_power_cut_during_an_import_leaves_nothing_half_made_that_looks_whole() {
    let rig = Rig::formatted(3);
    rig.world.record_disk(rig.node, DISK);
    let (observer, node) = (rig.world.observer(), rig.node);
    let finished = rig.run(async move {
        let store = open().await;
        let import = store.import(&lvol(1, SIZE)).await.expect("begun").expect("not there yet");
        for piece in 0..4 {
            import.write(piece * 3 * CLUSTER, content_of(piece)).await.expect("written");
        }
        import.finish().await.expect("finished");
        observer.disk_steps(node, DISK)
    });
    let history = rig.world.disk_history(rig.node, DISK);
    let mut seen = [0; 3];
    for (at, cut) in history.cuts().enumerate() {
        for survival in cut.survivals(1, at as u64).into_iter().take(6) {
            let rig = Rig::with_image(at as u64, cut.image(survival));
            seen[rig.run(check_import(at >= finished))] += 1;
            assert!(!matches!(survival, Survival::AllKept) || at < finished || seen[2] > 0);
        }
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

fn content_of(piece: u64) -> Slice {
    stamped(10 + piece, 2 * CLUSTER as usize)
}

/// Whether the import is not there, incomplete or complete.
async fn check_import(finished: bool) -> usize {
    let store = open().await;
    check_space(&store);
    let state = match store.lvol_info(id(1)) {
        None => 0,
        Some(info) if info.incomplete => 1,
        Some(_) => 2,
    };
    assert!(!finished || state == 2);
    if state < 2 {
        // Again, from the start.
        let import = store.import(&lvol(1, SIZE)).await.expect("begun").expect("not complete");
        for piece in 0..4 {
            import.write(piece * 3 * CLUSTER, content_of(piece)).await.expect("written");
        }
        import.finish().await.expect("finished");
    }
    let head = store.open_lvol(id(1)).await.expect("complete");
    for piece in 0..4 {
        let found = read(&head, piece * 3 * CLUSTER, 2 * CLUSTER).await.expect("read");
        assert!(found == content_of(piece)[..], "piece {piece}");
    }
    check_space(&store);
    state
}
