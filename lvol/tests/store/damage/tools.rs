//! What the offline tools make of a damaged store: they agree with what an open says, change nothing unless asked to, and
//! bring back all that is there.

use std::collections::BTreeMap;
use std::ops::Range;

use lvol::offline::{CheckOptions, Export, Part, Remedy, Report, Severity, check, dump};
use lvol::{LvolState, Store, StoreError};
use reactor::simulated::DiskImage;
use uuid::Uuid;

use super::Contents;
use crate::rig::{Rig, disk, read_all};

/// How an open found a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Found {
    Whole,
    Damaged,
    Refused,
}

/// Runs a check on an image; with the image as it is afterwards.
pub(super) fn run_check(image: &DiskImage, options: &CheckOptions) -> (Result<Report, StoreError>, DiskImage) {
    let rig = Rig::with_image(11, image.clone());
    let options = options.clone();
    let report = rig.run(async move { check(&disk(), &options).await });
    (report, rig.image())
}

fn same(a: &DiskImage, b: &DiskImage) -> bool {
    a.size() == b.size() && (0..a.size() / 65536).all(|at| a.bytes(at * 65536, 65536) == b.bytes(at * 65536, 65536))
}

/// What a check says, in the words of an open.
pub(super) fn verdict(report: &Report) -> Found {
    match report.worst() {
        Severity::Note | Severity::Warning => Found::Whole,
        Severity::Error => Found::Damaged,
        Severity::Fatal => Found::Refused,
    }
}

/// What an open says, with the content of what it serves.
pub(super) fn try_open(image: &DiskImage) -> (Found, Contents) {
    let rig = Rig::with_image(12, image.clone());
    rig.run(async {
        let store = match Store::open(disk()).await {
            Ok(store) => store,
            Err(StoreError::Damaged { .. } | StoreError::NotAStore { .. }) => return (Found::Refused, Contents::new()),
            Err(other) => panic!("{other}"),
        };
        let mut contents = Contents::new();
        let mut damaged = store.info().damaged;
        for info in store.lvols() {
            damaged |= info.state != LvolState::Ready;
            if info.state == LvolState::Ready && info.deletion.is_none() {
                let lvol = store.open_lvol(info.uuid).await.expect("ready");
                contents.insert(info.uuid, read_all(&lvol).await);
            }
        }
        (if damaged { Found::Damaged } else { Found::Whole }, contents)
    })
}

/// All that the tools promise, for one damaged image. Returns how bad it is. Unless everything is to be tried, exports and
/// repairs are tried for a third of the images.
pub(super) fn agree(image: &DiskImage, contents: &Contents, what: &str) -> Found {
    let (report, after) = run_check(image, &CheckOptions::default());
    assert!(same(image, &after), "{what}: a check wrote something");
    let (found, served) = try_open(image);
    for (uuid, content) in &served {
        assert!(contents.get(uuid) == Some(content), "{what}: {uuid} reads wrong");
    }
    dump_all(image, what);
    let report = match report {
        Ok(report) => report,
        Err(StoreError::NotAStore { .. }) => {
            assert_eq!(found, Found::Refused, "{what}");
            return found;
        }
        Err(other) => panic!("{what}: {other}"),
    };
    assert_eq!(verdict(&report), found, "{what}: the check says {:#?}", report.findings);
    if long() || what.bytes().map(u32::from).sum::<u32>() % 3 == 0 {
        check_exports(image, contents, what);
        check_repairs(image, contents, &served, &report, what);
    }
    found
}

/// Whether everything is to be tried.
pub(super) fn long() -> bool {
    std::env::var_os("ASHLAR_LONG_TESTS").is_some_and(|value| value == "1")
}

fn dump_all(image: &DiskImage, what: &str) {
    let rig = Rig::with_image(13, image.clone());
    let result = rig.run(async { dump(&disk(), |_| true).await });
    assert!(matches!(result, Ok(()) | Err(StoreError::NotAStore { .. })), "{what}: {result:?}");
}

/// What an export gives is right, or said to be unknown.
fn check_exports(image: &DiskImage, contents: &Contents, what: &str) {
    let rig = Rig::with_image(14, image.clone());
    let (contents, what) = (contents.clone(), what.to_owned());
    rig.run(async move {
        let disk = disk();
        for (uuid, content) in &contents {
            let Ok(mut export) = Export::open(&disk, *uuid).await else { continue };
            let outdated = export.outdated().is_some();
            let mut at = 0;
            while let Some(part) = export.next().await {
                let range = match &part {
                    Part::Data(data) => data.offset..data.offset + data.bytes.len() as u64,
                    Part::Zeroes(range) | Part::Unknown(range, _) => range.clone(),
                };
                assert_eq!(range.start, at, "{what}: {uuid} is exported with gaps");
                at = range.end;
                let expected = &content[range.start as usize..range.end as usize];
                match part {
                    // Of an earlier moment, but of this lvol.
                    Part::Data(data) if outdated => {
                        assert!(is_of(*uuid, &data.bytes), "{what}: {uuid} has another's data at {range:?}");
                    }
                    Part::Zeroes(_) if outdated => {}
                    Part::Data(data) => {
                        assert!(data.bytes == expected, "{what}: {uuid} is exported wrong at {range:?}")
                    }
                    Part::Zeroes(_) => {
                        assert!(expected.iter().all(|byte| *byte == 0), "{what}: {uuid} at {range:?} is not zero");
                    }
                    Part::Unknown(..) => {}
                }
            }
            assert_eq!(at, content.len() as u64, "{what}: {uuid} ends too early");
        }
    });
}

/// Whether data is what was written to this lvol, or to the one it was cut from, at some time.
fn is_of(uuid: Uuid, bytes: &[u8]) -> bool {
    let number = uuid.as_u128() as u64 % 100;
    bytes.chunks_exact(8).all(|part| {
        let stamp = u64::from_le_bytes(part.try_into().expect("eight bytes"));
        stamp == 0 || stamp % 50 == number
    })
}

/// A repair loses nothing that was served before; one that may lose what is unknown leaves a store without damage, in which
/// only what was said to be unknown is zeroes.
fn check_repairs(image: &DiskImage, contents: &Contents, served: &Contents, report: &Report, what: &str) {
    let repair = CheckOptions { repair: true, ..CheckOptions::default() };
    let (repaired, after) = run_check(image, &repair);
    let repaired = repaired.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(repaired.repaired.is_empty(), same(image, &after), "{what}: {:?}", repaired.repaired);
    let (found, now) = try_open(&after);
    assert_eq!(verdict(&repaired), found, "{what}, repaired: {repaired:#?}");
    for (uuid, content) in served {
        assert!(now.get(uuid) == Some(content), "{what}: {uuid} was lost by a repair: {repaired:#?}");
    }
    for (uuid, content) in &now {
        assert!(contents.get(uuid) == Some(content), "{what}: {uuid} reads wrong after a repair: {repaired:#?}");
    }

    let asked = |finding: &lvol::offline::Finding| match &finding.remedy {
        Remedy::AcceptLoss { lvols, .. } => lvols.clone(),
        _ => Vec::new(),
    };
    let accept_loss: Vec<Uuid> = report.findings.iter().flat_map(asked).collect();
    let hopeless = |finding: &lvol::offline::Finding| {
        finding.severity >= Severity::Error && matches!(finding.remedy, Remedy::Impossible(_))
    };
    if report.findings.iter().any(hopeless) {
        return;
    }
    let (accepted, after) =
        run_check(image, &CheckOptions { repair: true, accept_loss, data: true, ..CheckOptions::default() });
    let accepted = accepted.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(verdict(&accepted), Found::Whole, "{what}, loss accepted: {accepted:#?}");
    let (found, now) = try_open(&after);
    assert_eq!(found, Found::Whole, "{what}, loss accepted: {accepted:#?}");
    let unknown = unknown_ranges(report, contents);
    for (uuid, content) in &now {
        // What it reads through may have lost something too.
        let lost = &unknown[uuid];
        let expected = contents.get(uuid).unwrap_or_else(|| panic!("{what}: {uuid} came from nowhere"));
        assert_eq!(content.len(), expected.len(), "{what}");
        for (at, (now, then)) in (0u64..).step_by(512).zip(content.chunks(512).zip(expected.chunks(512))) {
            let is_lost = lost.iter().any(|range| range.contains(&at));
            let zero = is_lost && now.iter().all(|byte| *byte == 0);
            assert!(now == then || zero, "{what}: {uuid} reads wrong at {at} after a repair: {accepted:#?}");
        }
    }
}

/// What each lvol may have lost: its own unknown ranges, and for simplicity those of all others.
fn unknown_ranges(report: &Report, contents: &Contents) -> BTreeMap<Uuid, Vec<Range<u64>>> {
    let all: Vec<Range<u64>> = report.findings.iter().flat_map(|finding| finding.unknown.clone()).collect();
    contents.keys().map(|uuid| (*uuid, all.clone())).collect()
}
