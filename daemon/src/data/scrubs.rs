//! Scrubs of stores on their reactor.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use lvol::{ScrubReport, Store};
use reactor::{spawn, wall_clock};
use uuid::Uuid;

use super::Inner;
use super::facts::{ScrubFacts, ScrubRun};
use super::room::room;
use super::stores::server;
use crate::control::ControlError;

/// The scrub of each open store that is under way, or else the last one.
pub(super) type Runs = BTreeMap<Uuid, Rc<RefCell<ScrubRun>>>;

/// Begins a scrub, if none is under way.
pub(super) fn start(inner: Arc<Inner>, uuid: Uuid, bytes_per_second: u64) -> Result<(), ControlError> {
    let store = server(uuid)?.store().clone();
    let under_way = room().scrubs.borrow().get(&uuid).is_some_and(|run| run.borrow().ended.is_none());
    if !under_way {
        tracing::info!(store = %uuid, bytes_per_second, "a scrub begins");
        // What scrubs found in other snapshots before stays known until this one comes to them.
        let found = ScrubReport { bad_lvols: store.bad_regions(), ..ScrubReport::default() };
        let run = ScrubRun { started: seconds_now(), ended: None, error: None, rate: bytes_per_second, found };
        go_on(inner, uuid, store, run);
    }
    Ok(())
}

/// Takes over the last scrub of a store that was just opened. One that had not ended goes on.
pub(super) fn recall(inner: Arc<Inner>, uuid: Uuid, store: &Store, run: ScrubRun) {
    if run.ended.is_none() {
        tracing::info!(store = %uuid, bytes = run.found.bytes, "a scrub goes on where it was cut off");
        return go_on(inner, uuid, store.clone(), run);
    }
    store.recall_scrub(run.found.clone());
    room().scrubs.borrow_mut().insert(uuid, Rc::new(RefCell::new(run)));
}

/// Ends the scrub under way soon, if there is one.
pub(super) fn stop(uuid: Uuid) -> Result<(), ControlError> {
    server(uuid)?.store().stop_scrub();
    Ok(())
}

/// How the hashes and scrubs of an open store are.
pub(super) fn facts(uuid: Uuid, store: &Store) -> ScrubFacts {
    let status = store.scrub_status();
    let run = room().scrubs.borrow().get(&uuid).map(|run| run.borrow().clone());
    let run = run.map(|run| match (run.ended, status.running) {
        (None, Some(found)) => ScrubRun { found, ..run },
        _ => run,
    });
    ScrubFacts {
        hash_rate: store.hash_rate(),
        snapshots: status.snapshots,
        hashed: status.hashed,
        damaged: status.marked,
        run,
        left: status.left,
        store_made: store.info().created_at.as_secs(),
    }
}

fn go_on(inner: Arc<Inner>, uuid: Uuid, store: Store, run: ScrubRun) {
    let (rate, begun) = (run.rate, run.found.clone());
    let run = Rc::new(RefCell::new(run));
    room().scrubs.borrow_mut().insert(uuid, Rc::clone(&run));
    spawn(async move {
        let result = store.resume_scrub(rate, begun).await;
        let found = store.scrub_status().last;
        let mut run = run.borrow_mut();
        run.ended = Some(seconds_now());
        run.error = result.err().map(|error| error.to_string());
        if let Some(found) = found {
            run.found = found;
        }
        log_end(uuid, &store, &run);
        inner.scrub_ended.notify_one();
    });
}

fn log_end(uuid: Uuid, store: &Store, run: &ScrubRun) {
    let found = &run.found;
    if found.bad_regions > 0 {
        tracing::error!(
            store = %uuid, regions = found.bad_regions, damaged_bytes = store.scrub_status().marked,
            "a scrub found damage: what is marked is not served until it is mended"
        );
    }
    match &run.error {
        None => tracing::info!(store = %uuid, bytes = found.bytes, unhashed = found.unknown, "a scrub ended"),
        Some(error) => tracing::warn!(store = %uuid, error, "a scrub was not through"),
    }
}

fn seconds_now() -> u64 {
    wall_clock().as_secs()
}
