//! Comparing snapshots with their hashes while no store is open.

use lvol::REGION;
use lvol::offline::{CheckOptions, Finding, Report, Severity, check};
use reactor::simulated::DiskImage;

use super::{layers, place, stamp};
use crate::rig::{Rig, disk, id};

fn check_data(image: DiskImage) -> (Report, DiskImage) {
    let rig = Rig::with_image(61, image);
    let options = CheckOptions { data: true, ..CheckOptions::default() };
    let report = rig.run(async move { check(&disk(), &options).await.expect("checked") });
    (report, rig.image())
}

#[test]
fn a_check_compares_snapshots_with_their_hashes() {
    for closed in [true, false] {
        let rig = Rig::formatted(60);
        rig.run(async move {
            let store = layers().await;
            store.flush().await.expect("flushed");
            if closed {
                store.close().await.expect("closed");
            }
        });
        let (report, _) = check_data(rig.image());
        assert_eq!(report.worst(), Severity::Note, "{report:#?}");
        let compared = report.findings.iter().find(|finding| finding.text.contains("compared")).expect("told");
        assert!(compared.text.starts_with("8 regions of 2 snapshots"), "{compared:?}");

        // Region 1 is that of snapshot 10, which 11 reads too but has no value for; 33 is the head's, which has none.
        let mut image = rig.image();
        for stamp in [stamp(1, 20), stamp(3, 33), stamp(2, 92)] {
            let at = place(&image, stamp);
            image.flip(at + 5, 0x10);
        }
        let (report, after) = check_data(image.clone());
        assert_eq!(report.worst(), Severity::Error);
        let bad = report.findings.iter().filter(|finding| finding.severity == Severity::Error);
        let place =
            |finding: &Finding| (finding.lvol.expect("of an lvol"), finding.unknown[0].start, finding.unknown.len());
        let bad: Vec<_> = bad.map(place).collect();
        assert_eq!(bad, [(id(10), REGION, 1), (id(11), 5 * REGION, 1)]);
        assert!((0..image.size()).step_by(4096).all(|at| image.bytes(at, 4096) == after.bytes(at, 4096)), "it wrote");
    }
}

/// Damage to hashes is no damage to data.
#[test]
fn a_damaged_block_of_hashes_says_nothing_about_data() {
    let rig = Rig::formatted(62);
    rig.run(async { layers().await.close().await.expect("closed") });
    let mut image = rig.image();
    let blocks = (0..image.size()).step_by(4096).filter(|at| image.bytes(*at, 8) == *b"ASHLHASH").collect::<Vec<_>>();
    assert!(blocks.len() >= 4, "{blocks:?}");
    blocks.iter().for_each(|at| image.flip(at + 300, 1));
    let (report, _) = check_data(image);
    assert_eq!(report.worst(), Severity::Note, "{report:#?}");
    assert!(report.findings.iter().any(|finding| finding.text.starts_with("0 regions of 0 snapshots")), "{report:#?}");
}
