//! Structures exchanged for others that are whole in themselves: older generations of the same, ones of another place, and ones of
//! another store. As with any other damage: a clear error or full service, and never another's data (I28).

use std::collections::BTreeMap;

use lvol::Store;
use reactor::simulated::DiskImage;

use super::{BLOCK, Contents, change, fill, serve};
use crate::rig::{Rig, id, is_long, open};

/// Commits that make the journal begin again at its start, where older batches are.
const ROUND: usize = 300;

/// Where a structure lies, and what the first bytes of its header say it is.
#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    /// In whole blocks.
    length: usize,
    kind: [u8; 12],
}

/// Images of one store after each of its sessions, the youngest last, and what that one holds.
fn generations(seed: u64, closed: bool) -> (Vec<DiskImage>, Contents) {
    let rig = Rig::formatted(seed);
    let mut images = Vec::new();
    for session in 0..4u128 {
        rig.run(async move {
            let store = open().await;
            fill(&store, session + 1..=session + 1).await;
            store.trim().await.expect("a checkpoint");
            relabel(&store, session, ROUND / 3).await;
            store.close().await.expect("closed");
        });
        images.push(rig.image());
    }
    let contents = rig.run(async move {
        let store = open().await;
        fill(&store, 5..=5).await;
        change(store, closed).await
    });
    images.push(rig.image());
    (images, contents)
}

/// Commits that change nothing but a name.
async fn relabel(store: &Store, session: u128, times: usize) {
    for time in 0..times {
        store.rename(id(session + 1), &format!("name {session} {time}")).await.expect("renamed");
    }
}

/// All structures that a disk has, also those that nothing leads to any more.
fn structures(image: &DiskImage) -> Vec<Place> {
    let mut found = Vec::new();
    let mut offset = 0;
    while offset < image.size() {
        let header = image.bytes(offset, 64);
        let word = u32::from_le_bytes(header[48..52].try_into().expect("four bytes"));
        let length = (word as usize).next_multiple_of(BLOCK as usize);
        if header.starts_with(b"ASHL") {
            found.push(Place { offset, length, kind: header[..12].try_into().expect("twelve bytes") });
            offset += length as u64;
        } else {
            offset += BLOCK;
        }
    }
    assert!(found.len() > 20);
    found
}

/// Those to try: of the journal's batches, which are many, a part.
fn chosen(image: &DiskImage) -> Vec<Place> {
    let mut batches = 0;
    let mut places = structures(image);
    places.retain(|place| {
        batches += usize::from(place.kind.starts_with(b"ASHLJRNL"));
        !place.kind.starts_with(b"ASHLJRNL") || is_long() || batches % 16 == 0
    });
    places
}

/// Puts `bytes` where a structure is, and looks what becomes of the store. Returns whether it was refused.
fn exchange(image: &DiskImage, contents: &Contents, place: Place, bytes: &[u8], what: &str) -> bool {
    let mut exchanged = image.clone();
    exchanged.write(place.offset, bytes);
    serve(exchanged, contents, &format!("{what} at {}", place.offset)).is_none()
}

#[test]
fn an_older_generation_of_the_same() {
    for closed in [true, false] {
        let (mut images, contents) = generations(51, closed);
        let youngest = images.pop().expect("five sessions");
        let mut tried = BTreeMap::new();
        for place in chosen(&youngest) {
            let now = youngest.bytes(place.offset, place.length);
            for older in images.iter().rev() {
                let then = older.bytes(place.offset, place.length);
                if then != now && then.starts_with(b"ASHL") {
                    let refused = exchange(&youngest, &contents, place, &then, "an older generation");
                    assert!(!(closed && refused), "a closed store has two of whatever it needs to open");
                    *tried.entry(place.kind).or_insert(0) += 1;
                    break;
                }
            }
        }
        // Superblocks, the journal, and pages of maps and lvols.
        assert!(tried.len() >= 4, "{tried:?}");
    }
}

#[test]
fn one_of_another_place() {
    for closed in [true, false] {
        let (mut images, contents) = generations(52, closed);
        let youngest = images.pop().expect("five sessions");
        let all = structures(&youngest);
        let mut tried = 0;
        for place in chosen(&youngest) {
            let same_kind = all.iter().filter(|other| other.kind == place.kind && other.offset != place.offset);
            // The nearest, and the one furthest away.
            let mut others: Vec<&Place> = same_kind.collect();
            others.sort_by_key(|other| other.offset.abs_diff(place.offset));
            let far = others.last().copied();
            for other in others.into_iter().take(1).chain(far) {
                let bytes = youngest.bytes(other.offset, other.length);
                let refused = exchange(&youngest, &contents, place, &bytes, "a structure of another place");
                assert!(!(closed && refused));
                tried += 1;
            }
        }
        assert!(tried > 30, "{tried}");
    }
}

#[test]
fn one_of_another_store() {
    for closed in [true, false] {
        let (mut images, contents) = generations(53, closed);
        let youngest = images.pop().expect("five sessions");
        // The same identity, the same names and numbers, the same places.
        let (mut others, _) = generations(54, closed);
        let other = others.pop().expect("five sessions");
        let mut tried = 0;
        for place in chosen(&youngest) {
            let bytes = other.bytes(place.offset, place.length);
            if bytes.starts_with(b"ASHL") {
                let refused = exchange(&youngest, &contents, place, &bytes, "a structure of another store");
                let superblock = place.kind.starts_with(b"ASHLSUPB");
                assert!(!closed || refused == superblock, "only of superblocks nobody can say which is at home");
                tried += 1;
            }
        }
        assert!(tried > 20, "{tried}");
    }
}
