//! Single lvols on their reactor.

use block_device::Range;
use lvol::{CreateLvol, Store, StoreError, Usage};
use reactor::Slice;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::errors::lvol_error;
use super::room::room;
use super::stores::server;
use super::{LvolChange, LvolFacts, LvolPiece};
use crate::control::ControlError;
use crate::failpoint;

/// Bytes that are copied and written at once: others have their turn in between.
const STEP: usize = 256 << 10;

/// Damaged ranges of an lvol that are told.
const MOST_DAMAGED: usize = 1000;

/// All lvols in the open stores of this reactor, without what stores keep for themselves.
pub(super) fn facts() -> Vec<LvolFacts> {
    let room = room();
    let stores = room.stores.borrow();
    stores.iter().flat_map(|(uuid, server)| facts_of(*uuid, server.store())).collect()
}

/// Those in one store.
pub(super) fn facts_in(store: Uuid) -> Result<Vec<LvolFacts>, ControlError> {
    Ok(facts_of(store, server(store)?.store()))
}

/// Those in the open stores that are to be deleted. Of a replica's snapshot only the replica is known.
pub(super) fn deleting() -> Vec<LvolFacts> {
    let room = room();
    let stores = room.stores.borrow();
    stores.iter().flat_map(|(uuid, server)| facts_among(*uuid, server.store(), server.store().deleting())).collect()
}

fn facts_of(store: Uuid, open: &Store) -> Vec<LvolFacts> {
    facts_among(store, open, open.lvols())
}

fn facts_among(store: Uuid, open: &Store, lvols: Vec<lvol::LvolInfo>) -> Vec<LvolFacts> {
    let owners = replica::owners(&lvols);
    let bad = open.bad_regions();
    let facts = |info: lvol::LvolInfo| {
        let owner = owners.get(&info.uuid).copied();
        let bad_regions = bad.get(&info.uuid).copied().unwrap_or(0);
        LvolFacts { store, info, owner, usage: None, internal: Vec::new(), bad_regions, damaged: Vec::new() }
    };
    lvols.into_iter().map(facts).collect()
}

/// The lvol that an internal one of this reactor's stores belongs to.
pub(super) fn owner_of_internal(id: Uuid) -> Option<Uuid> {
    let room = room();
    let stores = room.stores.borrow();
    stores.values().find_map(|server| Some(server.store().internal_info(id)?.owner))
}

/// One lvol with all there is to know; none if it is gone. What it takes is looked up when asked for and possible.
pub(super) async fn look(store: Uuid, id: Uuid, with_usage: bool) -> Result<Option<LvolFacts>, ControlError> {
    let open = server(store)?.store().clone();
    let (usage, damaged) = match with_usage {
        true => match measure(&open, id).await {
            Ok((usage, damaged)) => (Some(usage), damaged),
            Err(StoreError::LvolDamaged { .. } | StoreError::NotFound { .. }) => (None, Vec::new()),
            Err(error) => return Err(lvol_error(error)),
        },
        false => (None, Vec::new()),
    };
    let found = facts_of(store, &open).into_iter().find(|facts| facts.info.uuid == id);
    Ok(found.map(|facts| LvolFacts { usage, internal: open.internal_lvols(id), damaged, ..facts }))
}

async fn measure(open: &Store, id: Uuid) -> Result<(Usage, Vec<Range>), StoreError> {
    Ok((open.usage(id).await?, open.damaged_ranges(id, MOST_DAMAGED).await?))
}

/// Changes an lvol, or makes one.
pub(super) async fn change(store: Uuid, change: LvolChange) -> Result<(), ControlError> {
    let open = server(store)?.store().clone();
    failpoint::pass("an lvol is changed", false)?;
    let changed = match change {
        LvolChange::Create(spec) => open.create(&spec).await.map(drop),
        LvolChange::BeginImport(spec) => open.import(&spec).await.map(drop),
        LvolChange::Delete(id) => open.delete(id).await,
        LvolChange::CancelDelete(id) => match open.cancel_delete(id).await {
            Err(StoreError::Invalid { detail }) => return Err(ControlError::precondition("MERGING", detail)),
            other => other,
        },
        LvolChange::Snapshot { head, spec } => open.snapshot(head, &spec).await.map(drop),
        LvolChange::Clone { snapshot, spec } => open.clone_snapshot(snapshot, &spec).await.map(drop),
        LvolChange::Revert { head, snapshot } => open.revert(head, snapshot).await.map(drop),
        LvolChange::Grow { id, size } => open.grow(id, size).await.map(drop),
        LvolChange::Rename { id, name } => open.rename(id, &name).await.map(drop),
    };
    changed.map_err(lvol_error)?;
    Ok(failpoint::pass("an lvol is changed", true)?)
}

/// Sends an lvol's data, in order, until nobody takes it any more.
pub(super) async fn export(store: Uuid, id: Uuid, pieces: mpsc::Sender<LvolPiece>) -> Result<(), ControlError> {
    let open = server(store)?.store().clone();
    let begun = async { open.export(id).await.map_err(lvol_error) };
    let mut export = failpoint::step("an export begins", begun).await?;
    loop {
        let next = async { export.next().await.map_err(lvol_error) };
        let Some(piece) = failpoint::step("a piece is read", next).await? else { return Ok(()) };
        let piece = LvolPiece { offset: piece.offset, data: piece.data.to_vec() };
        if pieces.send(piece).await.is_err() {
            return Ok(());
        }
    }
}

/// Fills an lvol with what comes until `whole` says that it was all. False if it was there and complete: nothing is taken then.
pub(super) async fn import(
    store: Uuid,
    spec: CreateLvol,
    mut pieces: mpsc::Receiver<LvolPiece>,
    whole: oneshot::Receiver<()>,
) -> Result<bool, ControlError> {
    let open = server(store)?.store().clone();
    let begun = async { open.import(&spec).await.map_err(lvol_error) };
    let Some(import) = failpoint::step("an import begins", begun).await? else { return Ok(false) };
    while let Some(piece) = pieces.recv().await {
        for (step, offset) in piece.data.chunks(STEP).zip((piece.offset..).step_by(STEP)) {
            let written = async { import.write(offset, Slice::from(step)).await.map_err(lvol_error) };
            failpoint::step("a piece is written", written).await?;
        }
    }
    match whole.await {
        Ok(()) => {
            let finished = async { import.finish().await.map(|_| true).map_err(lvol_error) };
            failpoint::step("an import ends", finished).await
        }
        // Dropped without a word: the lvol stays incomplete.
        Err(_) => Err(ControlError::unavailable("INCOMPLETE", "the import was cut off")),
    }
}
