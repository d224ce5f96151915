//! What can be done with a store that is not open: check it, repair it, look into it, and get data out of it.
//!
//! For an administrator whose daemon does not work, or whose store it does not open. Everything reads the disk itself, with
//! the decoders of `format`; only a repair writes. The disk is opened as a store opens it, so that none can be in use.
//!
//! - `pages`, `load`: from the disk to a `State`, which keeps account of what is not known;
//! - `rules`: what must be true of it as a whole;
//! - `reader`, `verify`: reading lvols through their chains, and comparing snapshots with their hashes;
//! - `repair`: making it true again;
//! - `dump`, `export`: looking at it.

mod dump;
mod export;
mod findings;
mod load;
mod pages;
mod ranges;
mod reader;
mod repair;
mod rules;
mod state;
mod superblocks;
mod verify;

use reactor::{Buffer, Disk};
use uuid::Uuid;

pub use self::dump::{Item, Value, dump};
pub use self::export::{Export, Part};
pub use self::findings::{Finding, Remedy, Report, Severity, StoreSummary, Structure};

use self::rules::Owners;
use self::state::State;
use crate::error::StoreError;
use crate::map::Held;

/// How to check a store.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// Repair what can be repaired without losing what could be read before.
    pub repair: bool,
    /// Repair also what costs these lvols something; the nil UUID stands for all that are lost without a name.
    pub accept_loss: Vec<Uuid>,
    /// What they lost reads as zeroes for everybody, also in a replica: these lvols do not carry the mark that says so ([`crate::LOST`]).
    pub serve_zeroes: bool,
    /// Read all data of all lvols too, and compare that of snapshots with their hashes.
    pub data: bool,
}

/// Checks the store on a disk, and repairs it if asked to. Without a repair nothing is written.
///
/// # Errors
/// When the disk fails, or when there is no store. What is wrong with the store is no error but in the report.
pub async fn check(disk: &Disk, options: &CheckOptions) -> Result<Report, StoreError> {
    let mut report = Report::default();
    let found = superblocks::find(disk).await?;
    report.findings.extend(found.findings);
    let Some(superblock) = found.superblock else { return Ok(report) };
    if let Some(finding) = superblocks::cut_off(disk, &superblock)? {
        report.findings.push(finding);
        return Ok(report);
    }
    let mut state = load::load(disk, superblock).await?;
    let owners = rules::check(&mut state);
    report.store = Some(summary(&state, &owners));
    if options.data {
        check_data(disk, &mut state).await?;
        verify::check_hashes(disk, &mut state).await;
    }
    report.findings.append(&mut state.findings.clone());
    if options.repair {
        report.repaired = repair::repair(disk, state, &found.copies, &report.findings, options).await?;
        if !report.repaired.is_empty() {
            let again = CheckOptions { repair: false, ..options.clone() };
            let after = Box::pin(check(disk, &again)).await?;
            (report.left, report.store) = (after.findings, after.store);
        }
    }
    Ok(report)
}

/// What records come to on an empty store, for fuzzers: they are applied as in a replay, and the result is checked.
#[cfg(feature = "fuzzing")]
pub(crate) fn replay_all(superblock: crate::format::superblock::Superblock, records: &[crate::format::record::Record]) {
    let mut state = State::new(superblock);
    for record in records {
        // What does not fit is refused.
        let _ = state.apply(record, 0);
    }
    rules::check(&mut state);
}

fn summary(state: &State, owners: &Owners) -> StoreSummary {
    let layout = &state.superblock.layout;
    let cluster = u64::from(layout.cluster_size);
    StoreSummary {
        uuid: state.superblock.uuid,
        name: state.superblock.name.clone(),
        size: layout.data_clusters() * cluster,
        free: (layout.data_clusters() - owners.used) * cluster,
        lvols: state.lvols.values().filter(|known| known.record.internal.is_none()).count(),
    }
}

/// Reads every cluster that an lvol has.
async fn check_data(disk: &Disk, state: &mut State) -> Result<(), StoreError> {
    let layout = state.superblock.layout;
    let mut found = Vec::new();
    for (uuid, known) in &state.lvols {
        let Some(own) = state.maps.get(&known.record.map) else { continue };
        let mut unreadable = ranges::Ranges::default();
        let mut last_error = None;
        for index in load::entries(&own.map) {
            let Held::Data(cluster) = own.map.kind(index) else { continue };
            let buffer = Buffer::new(layout.cluster_size as usize);
            if let (Err(error), _) = disk.read(layout.cluster_offset(cluster), buffer).await {
                let start = u64::from(index) * u64::from(layout.cluster_size);
                unreadable.insert(start..start + u64::from(layout.cluster_size));
                last_error = Some(error.to_string());
            }
        }
        if let Some(error) = last_error {
            let text = format!("some of its data cannot be read: {error}");
            let what = "the disk fails: copy what can be read to another one".to_owned();
            let finding = Finding::new(Severity::Error, Structure::Data, text, Remedy::Impossible(what)).of(*uuid);
            found.push(Finding { unknown: unreadable.below(known.record.size).collect(), ..finding });
        }
    }
    state.findings.append(&mut found);
    Ok(())
}
