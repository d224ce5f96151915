//! Power cuts at every write of a repair: what could be read before can be read after, and the repair can be done again.

use std::collections::BTreeSet;

use lvol::offline::{CheckOptions, Remedy, Report, check};
use reactor::simulated::{DiskFault, DiskFaultKind, DiskImage, Random, Survival};
use uuid::Uuid;

use super::tools::{Found, run_check, try_open, verdict};
use super::{BLOCK, Contents, metadata_blocks, prepared, prepared_from};
use crate::rig::{DISK, Rig, disk, is_long};

/// Where the superblocks are.
const SUPERBLOCKS: [u64; 2] = [0, 4 << 20];

/// A store to be repaired.
struct Case {
    image: DiskImage,
    /// What is served before.
    served: Contents,
    options: CheckOptions,
    /// What is served after a repair that nothing cuts off.
    repaired: Contents,
    what: String,
}

impl Case {
    /// `None` if nothing can be repaired.
    fn new(image: DiskImage, what: String) -> Option<Self> {
        let (report, _) = run_check(&image, &CheckOptions::default());
        let accept_loss = asked(&report.expect("a store"));
        let options =
            CheckOptions { repair: true, accept_loss: accept_loss.into_iter().collect(), ..CheckOptions::default() };
        let (report, after) = run_check(&image, &options);
        if report.expect("a store").repaired.is_empty() {
            return None;
        }
        let ((_, served), (found, repaired)) = (try_open(&image), try_open(&after));
        assert_eq!(found, Found::Whole, "{what}");
        Some(Self { image, served, options, repaired, what })
    }

    /// Cuts the power at every step of the repair. Returns how many disks were looked at.
    fn cut_everywhere(&self, random: &mut Random) -> usize {
        let rig = Rig::with_image(21, self.image.clone());
        rig.world.record_disk(rig.node, DISK);
        let options = self.options.clone();
        rig.run(async move { check(&disk(), &options).await }).expect("repaired");
        let mut tried = 0;
        for (at, cut) in rig.world.disk_history(rig.node, DISK).cuts().enumerate() {
            let survivals = cut.survivals(1, random.next_u64());
            let count = if is_long() { survivals.len() } else { survivals.len().min(3) };
            let first = random.index(survivals.len());
            for survival in survivals.iter().cycle().skip(first).take(count) {
                let what = format!("{}, repair cut off at {at}, {survival:?}", self.what);
                self.check_cut(&cut.image(*survival), *survival, &what);
                tried += 1;
            }
        }
        tried
    }

    fn check_cut(&self, image: &DiskImage, survival: Survival, what: &str) {
        let (found, now) = try_open(image);
        for (uuid, content) in &self.served {
            // What was served before could be told apart from what was not: only a repair brings back more.
            assert!(now.get(uuid) == Some(content), "{what}: {uuid} was served before, and now the store is {found:?}");
        }
        for (uuid, content) in &now {
            assert!(self.repaired.get(uuid) == Some(content), "{what}: {uuid} reads wrong");
        }
        let (report, after) = run_check(image, &self.options);
        let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(verdict(&report), Found::Whole, "{what}: it cannot be repaired again: {report:#?}");
        assert_eq!(try_open(&after), (Found::Whole, self.repaired.clone()), "{what}, {survival:?}, repaired again");
    }
}

/// The lvols that a repair would cost something.
fn asked(report: &Report) -> BTreeSet<Uuid> {
    let lvols = report.findings.iter().filter_map(|finding| match &finding.remedy {
        Remedy::AcceptLoss { lvols, .. } => Some(lvols.clone()),
        _ => None,
    });
    lvols.flatten().collect()
}

/// Cuts repairs off of as many damaged stores as the function makes of a good one.
fn cut_repairs_off(closed: bool, damaged: impl Fn(&DiskImage) -> Vec<(DiskImage, String)>) {
    let (image, _) = prepared(closed);
    let mut random = Random::new(31);
    let (mut cases, mut tried) = (0, 0);
    for (image, what) in damaged(&image) {
        if let Some(case) = Case::new(image, format!("{what}, closed: {closed}")) {
            cases += 1;
            tried += case.cut_everywhere(&mut random);
        }
    }
    assert!(cases > 1 && tried > 10 * cases, "{tried} disks of {cases} repairs");
}

#[test]
fn a_power_cut_at_every_write_of_a_repair_of_one_block() {
    for closed in [true, false] {
        cut_repairs_off(closed, |image| {
            let flipped = |block: u64| {
                let mut image = image.clone();
                image.flip(block * BLOCK + 100, 1);
                (image, format!("block {block} flipped"))
            };
            let step = if is_long() { 1 } else { 2 };
            metadata_blocks(image).into_iter().step_by(step).map(flipped).collect()
        });
    }
}

#[test]
fn a_power_cut_at_every_write_of_a_repair_of_superblocks() {
    let (other, _) = prepared_from(2, false);
    cut_repairs_off(true, |image| {
        let mut cases = Vec::new();
        for place in SUPERBLOCKS {
            let mut zeroed = image.clone();
            zeroed.write(place, &[0; BLOCK as usize]);
            cases.push((zeroed, format!("no superblock at {place}")));
            let mut exchanged = image.clone();
            exchanged.write(place, &other.bytes(place, BLOCK as usize));
            cases.push((exchanged, format!("another store's superblock at {place}")));
        }
        cases
    });
}

/// A disk may spoil all of the block that it was writing: of the superblocks the one that serves is written last.
#[test]
fn a_superblock_that_a_repair_spoils_is_not_the_only_one() {
    let (image, contents) = prepared(true);
    for (gone, spoiled) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let mut damaged = image.clone();
        damaged.write(SUPERBLOCKS[gone], &[0; BLOCK as usize]);
        let rig = Rig::with_image(22, damaged);
        let place = SUPERBLOCKS[spoiled];
        rig.world.add_disk_fault(
            rig.node,
            DISK,
            DiskFault::new(DiskFaultKind::FailWrites).within(place..place + BLOCK),
        );
        let options = CheckOptions { repair: true, ..CheckOptions::default() };
        rig.run(async move { check(&disk(), &options).await }).expect_err("a write fails");
        let mut after = rig.image();
        after.write(place, &[0xa5; BLOCK as usize]);
        assert_eq!(try_open(&after), (Found::Whole, contents.clone()), "{gone} gone, {spoiled} spoiled");
    }
}
