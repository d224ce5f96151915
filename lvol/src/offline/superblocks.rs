//! Which of the two superblocks counts, and what is wrong with the other.

use reactor::Disk;

use super::findings::{Finding, Remedy, Severity, Structure};
use super::pages::Pages;
use crate::error::StoreError;
use crate::format::Flaw;
use crate::format::superblock::{PLACES, Superblock};
use crate::recovery::{check_usable, read_superblocks};

/// What the two places have.
pub(super) struct Found {
    /// The one to go by.
    pub(super) superblock: Option<Superblock>,
    pub(super) copies: [Result<Superblock, Flaw>; 2],
    pub(super) findings: Vec<Finding>,
}

/// Reads both and chooses.
pub(super) async fn find(disk: &Disk) -> Result<Found, StoreError> {
    let copies = read_superblocks(disk).await?;
    let mut findings = Vec::new();
    let superblock = match &copies {
        [Ok(first), Ok(second)] if first.format_id != second.format_id => {
            let text = format!(
                "the two superblocks are of different stores, {} and {}: the store does not open",
                first.uuid, second.uuid
            );
            let chosen = choose(disk, first, second).await;
            let remedy = match &chosen {
                Some(chosen) => {
                    Remedy::Repair(format!("the one of {} is kept: the checkpoint is its own", chosen.uuid))
                }
                None => Remedy::Impossible("nothing on the disk tells which of the two is right".to_owned()),
            };
            findings.push(Finding::new(Severity::Fatal, Structure::Superblock, text, remedy).at(PLACES[0]));
            chosen
        }
        [Ok(first), Ok(second)] => {
            if first.generation.abs_diff(second.generation) > 1 {
                let older = if first.generation < second.generation { PLACES[0] } else { PLACES[1] };
                let text = "this superblock is older than it can be; the other one serves";
                let what = "it is written anew".to_owned();
                let remedy = Remedy::Repair(what);
                findings.push(Finding::new(Severity::Warning, Structure::Superblock, text, remedy).at(older));
            }
            Some(if first.generation >= second.generation { first.clone() } else { second.clone() })
        }
        [Ok(only), Err(flaw)] => {
            findings.push(unusable(PLACES[1], flaw));
            Some(only.clone())
        }
        [Err(flaw), Ok(only)] => {
            findings.push(unusable(PLACES[0], flaw));
            Some(only.clone())
        }
        [Err(Flaw::Empty | Flaw::Magic), Err(Flaw::Empty | Flaw::Magic)] => {
            return Err(StoreError::NotAStore { detail: "no superblock was found".to_owned() });
        }
        [Err(first), Err(second)] => {
            let text = format!("both superblocks are unusable ({first}; {second}): the store does not open");
            let what = "restore the first 8 MiB of the disk from a backup, or let replicas elsewhere rebuild it";
            let remedy = Remedy::Impossible(what.to_owned());
            findings.push(Finding::new(Severity::Fatal, Structure::Superblock, text, remedy).at(PLACES[0]));
            None
        }
    };
    Ok(Found { superblock, copies, findings })
}

fn unusable(place: u64, flaw: &Flaw) -> Finding {
    let text = format!("this superblock is unusable ({flaw}); the other one serves");
    let remedy = Remedy::Repair("it is written anew".to_owned());
    Finding::new(Severity::Warning, Structure::Superblock, text, remedy).at(place)
}

/// Why the store of this superblock cannot be opened, if it is for the disk.
pub(super) fn cut_off(disk: &Disk, superblock: &Superblock) -> Result<Option<Finding>, StoreError> {
    match check_usable(superblock, disk) {
        Ok(()) => Ok(None),
        Err(StoreError::Damaged { detail }) => {
            let what = "copy it to a disk of that size, then check the copy".to_owned();
            let text = format!("{detail}: the store does not open");
            Ok(Some(Finding::new(Severity::Fatal, Structure::Superblock, text, Remedy::Impossible(what))))
        }
        Err(error) => Err(error),
    }
}

/// The one of two superblocks whose checkpoint is there.
async fn choose(disk: &Disk, first: &Superblock, second: &Superblock) -> Option<Superblock> {
    match (is_at_home(disk, first).await, is_at_home(disk, second).await) {
        (true, false) => Some(first.clone()),
        (false, true) => Some(second.clone()),
        _ => None,
    }
}

/// Whether the checkpoint that a superblock names has any page of its store.
async fn is_at_home(disk: &Disk, superblock: &Superblock) -> bool {
    if superblock.layout.size > disk.size() {
        return false;
    }
    let mut pages = Pages::new(disk, superblock);
    while let Some(place) = pages.next().await {
        if place.page.is_ok() {
            return true;
        }
    }
    false
}
