//! Scrubs of stores on their reactor.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use lvol::{ScrubReport, Store};
use reactor::{spawn, wall_clock};
use uuid::Uuid;

use super::facts::{ScrubFacts, ScrubRun};
use super::room::room;
use super::stores::server;
use crate::control::ControlError;

/// The last scrub of each store since it was opened.
pub(super) type Runs = BTreeMap<Uuid, Rc<RefCell<Run>>>;

/// When a scrub ran, and how it ended. What it finds is known to the store.
#[derive(Debug)]
pub(super) struct Run {
    /// In seconds since the Unix epoch.
    started: u64,
    /// The same; none while it is under way.
    ended: Option<u64>,
    /// Why it ended before it was through.
    error: Option<String>,
}

/// Begins a scrub, if none is under way.
pub(super) fn start(uuid: Uuid, bytes_per_second: u64) -> Result<(), ControlError> {
    let store = server(uuid)?.store().clone();
    let room = room();
    let mut runs = room.scrubs.borrow_mut();
    if runs.get(&uuid).is_some_and(|run| run.borrow().ended.is_none()) {
        return Ok(());
    }
    let run = Rc::new(RefCell::new(Run { started: seconds_now(), ended: None, error: None }));
    runs.insert(uuid, Rc::clone(&run));
    spawn(async move {
        let error = scrub(uuid, &store, bytes_per_second).await.err();
        let mut run = run.borrow_mut();
        (run.ended, run.error) = (Some(seconds_now()), error);
    });
    Ok(())
}

/// Ends the scrub under way soon, if there is one.
pub(super) fn stop(uuid: Uuid) -> Result<(), ControlError> {
    server(uuid)?.store().stop_scrub();
    Ok(())
}

/// How the hashes and scrubs of an open store are.
pub(super) fn facts(uuid: Uuid, store: &Store) -> ScrubFacts {
    let status = store.scrub_status();
    let run = room().scrubs.borrow().get(&uuid).cloned();
    let run = run.map(|run| {
        let run = run.borrow();
        // Until the scrub has begun, what the one before found is not its own.
        let found = if run.ended.is_none() { status.running } else { status.last };
        ScrubRun { started: run.started, ended: run.ended, error: run.error.clone(), found: found.unwrap_or_default() }
    });
    ScrubFacts {
        hash_rate: store.hash_rate(),
        snapshots: status.snapshots,
        hashed: status.hashed,
        damaged: status.marked,
        run,
    }
}

async fn scrub(uuid: Uuid, store: &Store, bytes_per_second: u64) -> Result<ScrubReport, String> {
    tracing::info!(store = %uuid, bytes_per_second, "a scrub begins");
    let result = store.scrub(bytes_per_second).await;
    match &result {
        Ok(report) if report.bad_regions > 0 => tracing::error!(
            store = %uuid, regions = report.bad_regions, damaged_bytes = store.scrub_status().marked,
            "a scrub found damage: what is marked is not served until it is mended"
        ),
        Ok(report) => tracing::info!(store = %uuid, bytes = report.bytes, unhashed = report.unknown, "a scrub ended"),
        Err(error) => tracing::warn!(store = %uuid, %error, "a scrub was not through"),
    }
    result.map_err(|error| error.to_string())
}

fn seconds_now() -> u64 {
    wall_clock().as_secs()
}
