//! Parts of another store where they do not belong: what a copy that stopped half way, or a second format of a device, leaves.

use lvol::offline::{CheckOptions, Severity};
use lvol::{FormatOptions, Store, StoreError};
use reactor::simulated::DiskImage;
use uuid::Uuid;

use super::{BLOCK, LVOL, tools};
use crate::rig::{Rig, disk, id, lvol, open, options, read_all, stamped, write};

const SECOND: u64 = 4 << 20;

/// A store with one lvol of this content.
fn store(seed: u64, options: FormatOptions, stamp: u64) -> DiskImage {
    let rig = Rig::new(seed);
    rig.run(async move {
        Store::format(&disk(), &options).await.expect("formatted");
        let store = open().await;
        store.create(&lvol(1, LVOL)).await.expect("created");
        let head = store.open_lvol(id(1)).await.expect("opened");
        write(&head, 0, stamped(stamp, LVOL as usize)).await.expect("written");
        store.close().await.expect("closed");
    });
    rig.image()
}

fn put(image: &mut DiskImage, at: u64, bytes: &[u8]) {
    for (offset, (new, old)) in (at..).zip(bytes.iter().zip(image.bytes(at, bytes.len()))) {
        image.flip(offset, new ^ old);
    }
}

/// Neither is served: which of the two is at home here, an open cannot say. A check can, by the checkpoint.
#[test]
fn superblocks_of_two_stores_are_refused_and_the_one_at_home_can_be_kept() {
    let ours = store(51, options(), 1);
    // The same identity, formatted a second time, is another store too.
    for other in [FormatOptions::new(Uuid::from_u128(0xabc), "other"), options()] {
        let theirs = store(52, other.clone(), 2);
        for place in [0, SECOND] {
            let mut image = ours.clone();
            put(&mut image, place, &theirs.bytes(place, BLOCK as usize));
            let rig = Rig::with_image(53, image.clone());
            let error = rig.run(async { Store::open(disk()).await }).err().expect("refused");
            assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("superblocks are of different stores"), "{text}");
            assert!(text.contains(&options().uuid.to_string()) && text.contains(&other.uuid.to_string()), "{text}");
            assert!(
                rig.image().bytes(place, BLOCK as usize) == theirs.bytes(place, BLOCK as usize),
                "nothing was written"
            );

            let (report, _) = tools::run_check(&image, &CheckOptions::default());
            assert_eq!(report.expect("checked").worst(), Severity::Fatal);
            let (report, image) = tools::run_check(&image, &CheckOptions { repair: true, ..CheckOptions::default() });
            let report = report.expect("repaired");
            assert!(report.worst() < Severity::Warning, "{report:#?}");
            Rig::with_image(54, image).run(async {
                let store = open().await;
                assert!(
                    read_all(&store.open_lvol(id(1)).await.expect("opened")).await == stamped(1, LVOL as usize)[..]
                );
            });
        }
    }
}
