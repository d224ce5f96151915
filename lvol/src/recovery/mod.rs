//! Opening: from the bytes on disk to a catalog that is right, whatever happened before.
//!
//! 1. Take the superblock of the higher generation. Before anything else is written the other copy becomes the same.
//! 2. Look through the journal from where the checkpoint says, up to the first batch that is not there: which maps it changes.
//! 3. Read the checkpoint. What is damaged of it damages lvols, not the store (I28). Of the maps, those that the journal
//!    changes stay in memory; the others only say which clusters they have.
//! 4. Replay the journal. Newly valid blocks that no durable marker covers are verified first if the machine has booted since.
//! 5. Derive which clusters are in use.
//! 6. Unless the store was closed in order: write a checkpoint, so that what was decided here is decided once. Only then
//!    is anything else written.
//! 7. Remove internal lvols that belong to nobody.
//!
//! A failed read is an error of its own at every step, never taken for damage or for the end of the journal (I31); but for single pages
//! of maps that a disk does not give back, again and again, while it gives others: they are damaged (I28).

mod load;
mod replay;
pub(crate) mod scan;

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::rc::Rc;

use reactor::{Buffer, Disk, spawn};

use crate::catalog::Catalog;
use crate::core::{Core, Opened, write_superblock_copy};
use crate::error::StoreError;
use crate::format::superblock::{AREAS_AMONG_CLUSTERS, PLACES, Superblock};
use crate::format::{BLOCK, Flaw};
use crate::journal::{Journal, ReplayStart};
use crate::residency;

/// Feature bits that this program knows.
const KNOWN_INCOMPATIBLE: u64 = AREAS_AMONG_CLUSTERS;
const KNOWN_READ_ONLY: u64 = 0;

/// Opens the store on `disk`.
pub(crate) async fn open(disk: Disk) -> Result<Rc<Core>, StoreError> {
    // A killed process may have left what reads back but is not stable yet; what is decided here must rest on what stays.
    disk.sync().await.map_err(StoreError::io("flushing what was found"))?;
    let Copies { superblock, stale } = read_superblock(&disk).await?;
    check_usable(&superblock, &disk)?;
    let clean = superblock.clean;
    let mut catalog = Catalog::new(superblock.layout);
    catalog.next_map = superblock.next_map.max(1);
    catalog.reserve = superblock.limits.reserve;
    let mut start =
        ReplayStart { batch: superblock.checkpoint.start_batch, position: superblock.checkpoint.start_position };
    let mut contested;
    let found;
    if clean {
        (found, contested) = load::load_checkpoint(&disk, &superblock, &mut catalog, &BTreeSet::new()).await?;
    } else {
        let outlook = replay::look(&disk, &superblock).await?;
        (found, contested) = load::load_checkpoint(&disk, &superblock, &mut catalog, &outlook.touched).await?;
        replay::replay(&disk, &superblock, &mut catalog, &outlook).await?;
        start = outlook.end;
    }
    claim_clusters(&mut catalog, &mut contested);
    if !contested.is_empty() {
        damage_owners(&disk, &superblock, &mut catalog, &contested).await?;
    }
    let damaged = catalog.is_damaged() || found.damaged || superblock.damaged;
    if damaged {
        found.keep_clusters(&mut catalog);
    }
    catalog.drop_old_marks();
    let journal = Journal::new(superblock.layout.journal, superblock.session + 1, start);
    let core = Core::new(disk, superblock, catalog, journal, Opened { clean, damaged });
    if let Some(place) = stale {
        // It names what the next checkpoint overwrites, and may be all that can be read the next time.
        let superblock = core.superblock.borrow().clone();
        write_superblock_copy(&core.disk, &superblock, place).await?;
    }
    begin_session(&core, clean).await?;
    // What the journal touched is in the checkpoint now.
    core.release_maps(true);
    core.drop_unowned().await;
    spawn(residency::watch(&core));
    Ok(core)
}

/// The superblock that counts, and where the copy is that says something else or nothing.
struct Copies {
    superblock: Superblock,
    stale: Option<u64>,
}

/// Makes what recovery found durable, and a new session with it. Until this is done the disk is as it was found, so a
/// crash in between finds the same again.
async fn begin_session(core: &Rc<Core>, clean: bool) -> Result<(), StoreError> {
    let boot_id = reactor::boot_id();
    {
        // Written by the checkpoint together with its pointer, in one superblock.
        let mut superblock = core.superblock.borrow_mut();
        superblock.session += 1;
        superblock.boot_id = boot_id;
        superblock.clean = false;
    }
    match clean {
        true => core.write_superblock(|_| {}).await,
        false => core.checkpoint().await,
    }
}

/// What was read at each of the superblocks' places.
pub(crate) async fn read_superblocks(disk: &Disk) -> Result<[Result<Superblock, Flaw>; 2], StoreError> {
    let mut found = [Err(Flaw::Empty), Err(Flaw::Empty)];
    let mut failure = None;
    for (place, found) in PLACES.into_iter().zip(&mut found) {
        if place + BLOCK > disk.size() {
            continue;
        }
        match disk.read(place, Buffer::new(BLOCK as usize)).await {
            (Ok(()), bytes) => *found = Superblock::decode(&bytes, place),
            (Err(error), _) => failure = Some(error),
        }
    }
    match failure {
        // One copy is enough when the other cannot be read; but "cannot be read" is not "not there".
        Some(error) if found.iter().all(Result::is_err) => Err(StoreError::io("reading the superblock")(error)),
        _ => Ok(found),
    }
}

async fn read_superblock(disk: &Disk) -> Result<Copies, StoreError> {
    let unusable = |superblock: Superblock, flaw: Flaw, place: u64| {
        tracing::warn!(store = %superblock.uuid, %flaw, "one superblock is unusable; the other one serves");
        Ok(Copies { superblock, stale: Some(place) })
    };
    match read_superblocks(disk).await? {
        // Which of the two is at home here, an open cannot say, and the wrong one would have the other's data overwritten.
        [Ok(first), Ok(second)] if first.format_id != second.format_id => Err(StoreError::damaged(format!(
            "its two superblocks are of different stores, {} and {}",
            first.uuid, second.uuid
        ))),
        [Ok(first), Ok(second)] => Ok(match first.generation.cmp(&second.generation) {
            Ordering::Less => Copies { superblock: second, stale: Some(PLACES[0]) },
            Ordering::Equal => Copies { superblock: first, stale: None },
            Ordering::Greater => Copies { superblock: first, stale: Some(PLACES[1]) },
        }),
        [Ok(first), Err(flaw)] => unusable(first, flaw, PLACES[1]),
        [Err(flaw), Ok(second)] => unusable(second, flaw, PLACES[0]),
        [Err(Flaw::Empty | Flaw::Magic), Err(Flaw::Empty | Flaw::Magic)] => {
            Err(StoreError::NotAStore { detail: "no superblock was found".to_owned() })
        }
        [Err(first), Err(second)] => {
            Err(StoreError::damaged(format!("both superblocks are unusable: {first}; {second}")))
        }
    }
}

/// Whether this program may open the store, and the disk has all of it.
pub(crate) fn check_usable(superblock: &Superblock, disk: &Disk) -> Result<(), StoreError> {
    let features = superblock.features;
    let unknown = features.incompatible & !KNOWN_INCOMPATIBLE | features.read_only & !KNOWN_READ_ONLY;
    if unknown != 0 {
        return Err(StoreError::Unsupported { features: unknown });
    }
    if disk.size() < superblock.layout.size {
        let (has, needs) = (disk.size(), superblock.layout.size);
        return Err(StoreError::damaged(format!("the disk has {has} bytes and the store {needs}: it was cut off")));
    }
    Ok(())
}

/// Marks the clusters of the maps in memory as used; those of the others are. What was used before goes to `contested`.
fn claim_clusters(catalog: &mut Catalog, contested: &mut BTreeSet<u64>) {
    let allocator = &mut catalog.allocator;
    for map in catalog.maps.in_memory() {
        map.each_cluster(|cluster| {
            if !allocator.claim(cluster) {
                contested.insert(cluster);
            }
        });
    }
}

/// A cluster with two owners damages both: neither may read what may be the other's.
async fn damage_owners(
    disk: &Disk,
    superblock: &Superblock,
    catalog: &mut Catalog,
    contested: &BTreeSet<u64>,
) -> Result<(), StoreError> {
    let mut owners = load::owners(disk, superblock, catalog, contested).await?;
    for map in catalog.maps.in_memory() {
        map.each_cluster(|cluster| {
            if contested.contains(&cluster) {
                owners.entry(map.id()).or_default().push(cluster);
            }
        });
    }
    for (map, clusters) in owners {
        catalog.maps.contest(map, &clusters);
    }
    Ok(())
}
