//! Scrubs of the node's stores: when they are due, and how far they are over a restart.
//!
//! ```text
//!            due, or asked for                through, stopped or failed
//!   (none) ───────────────────▶ under way ──────────────────────────────▶ ended ──┐
//!                               ▲   │ the daemon ends                             │ due, or
//!                 store is open └───┘ on record: how far it was                   │ asked for
//!                               ▲─────────────────────────────────────────────────┘
//! ```
//! A scrub runs on the reactor of its store and knows what it found ([`crate::data`]). Here is its record in the state directory,
//! written every few seconds while it is under way and at its end, and the one task that writes them and begins what is due. Stores in
//! memory have no record, and are scrubbed when asked for only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lvol::{BadRegion, ScrubPosition, ScrubReport};
use proto::v1;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Notify};
use uuid::Uuid;

use super::error::ControlError;
use super::stores::{OpenStore, Stores};
use crate::data::{DataPath, ScrubFacts, ScrubRun};
use crate::state::{Records, StateError};

/// Between two writes of how far a scrub is: what a kill makes it read again.
const SAVED_EVERY: Duration = Duration::from_secs(2);
/// Between two looks at what is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// A scheduled scrub that was stopped or failed begins again after this, or after a whole interval if that is shorter.
const AGAIN_AFTER: u64 = DAY;

pub(crate) const DAY: u64 = 24 * 60 * 60;

/// When stores are scrubbed, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// Seconds from the end of one scrub to the next; none for never.
    pub(crate) interval: Option<u64>,
    /// Bytes a second of a scrub when nobody says another rate.
    pub(crate) rate: u64,
}

impl Schedule {
    /// When the next scrub of a store is due, in seconds since the Unix epoch; none if none is, or one is under way.
    pub(super) fn due(&self, facts: &ScrubFacts) -> Option<u64> {
        let interval = self.interval?;
        let (since, pause) = match &facts.run {
            None => (facts.store_made, interval),
            Some(run) => (run.ended?, if run.error.is_some() { interval.min(AGAIN_AFTER) } else { interval }),
        };
        (facts.snapshots > 0).then(|| since.saturating_add(pause))
    }
}

/// The last scrub of a store as the state directory knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ScrubRecord {
    /// Seconds since the Unix epoch.
    started: u64,
    /// The same; none while it is under way, also if the daemon is not.
    ended: Option<u64>,
    error: Option<String>,
    bytes_per_second: u64,
    snapshots: u64,
    regions: u64,
    bytes: u64,
    unhashed_regions: u64,
    bad_regions: u64,
    /// Snapshots and offsets.
    bad: Vec<(Uuid, u64)>,
    bad_lvols: BTreeMap<Uuid, u64>,
    /// A snapshot, and its first region that was not compared, if it is not done.
    position: Option<(Uuid, Option<u64>)>,
    milliseconds: u64,
}

/// The records of all stores' last scrubs.
pub(crate) struct ScrubRecords {
    records: Records<ScrubRecord>,
    pub(super) schedule: Schedule,
    /// What is in the state directory. Held over a write, so that none overtakes another.
    saved: Mutex<BTreeMap<Uuid, ScrubRecord>>,
}

impl ScrubRecords {
    pub(crate) fn load(records: Records<ScrubRecord>, schedule: Schedule) -> Result<Arc<Self>, StateError> {
        let loaded = records.load()?;
        for error in loaded.failed {
            tracing::error!(%error, "the record of a scrub is left out: it is as if there had been none");
        }
        Ok(Arc::new(Self { records, schedule, saved: Mutex::new(loaded.records) }))
    }

    /// The last scrub of a store.
    pub(super) async fn last(&self, store: Uuid) -> Option<ScrubRun> {
        self.saved.lock().await.get(&store).map(ScrubRecord::run)
    }

    /// The store is not there any more.
    pub(super) async fn remove(&self, store: Uuid) -> Result<(), StateError> {
        let mut saved = self.saved.lock().await;
        self.records.remove(store).await?;
        saved.remove(&store);
        Ok(())
    }

    /// Writes how far a scrub is, if that is news and the store still `lasts`.
    async fn save(&self, store: Uuid, run: &ScrubRun, lasts: impl Fn() -> bool) -> Result<(), StateError> {
        let record = ScrubRecord::of(run);
        let mut saved = self.saved.lock().await;
        if saved.get(&store) != Some(&record) && lasts() {
            self.records.store(store, &record).await?;
            saved.insert(store, record);
        }
        Ok(())
    }
}

/// Begins, ends and records scrubs.
pub(crate) struct Scrubs {
    data: DataPath,
    stores: Arc<Stores>,
    records: Arc<ScrubRecords>,
    /// A scrub has begun.
    begun: Notify,
}

impl Scrubs {
    /// Sets a task on what is due.
    pub(crate) fn start(data: DataPath, stores: Arc<Stores>, records: Arc<ScrubRecords>) -> Arc<Self> {
        let scrubs = Arc::new(Self { data, stores, records, begun: Notify::new() });
        tokio::spawn(Arc::clone(&scrubs).work());
        scrubs
    }

    /// Begins a scrub, if none is under way. It is on record when this returns.
    pub(crate) async fn begin(&self, request: v1::StartScrubRequest) -> Result<v1::Store, ControlError> {
        let open = self.stores.open_store_soon(&request.store).await?;
        let rate = match request.bytes_per_second {
            0 => self.records.schedule.rate,
            rate => rate,
        };
        self.begin_at(&open, rate).await?;
        self.stores.describe(open.uuid).await
    }

    /// Ends the scrub under way soon, if there is one.
    pub(crate) async fn stop(&self, request: v1::StopScrubRequest) -> Result<v1::Store, ControlError> {
        let open = self.stores.open_store_soon(&request.store).await?;
        self.data.stop_scrub(open.home, open.uuid).await?;
        self.stores.describe(open.uuid).await
    }

    async fn begin_at(&self, open: &OpenStore, rate: u64) -> Result<(), ControlError> {
        self.data.start_scrub(open.home, open.uuid, rate).await?;
        self.look_at(open).await?;
        self.begun.notify_one();
        Ok(())
    }

    async fn work(self: Arc<Self>) {
        let mut changed = self.stores.changes();
        loop {
            // What is sent from here on is news.
            changed.mark_unchanged();
            let pause = if self.look().await { SAVED_EVERY } else { LOOK_EVERY };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.begun.notified() => {}
                () = self.data.scrub_ended() => {}
                sent = changed.changed() => if sent.is_err() { return },
            }
        }
    }

    /// Records all scrubs and begins those that are due. Returns whether one is under way.
    async fn look(&self) -> bool {
        let mut busy = false;
        for open in self.stores.open_stores() {
            match self.look_or_begin(&open).await {
                Ok(under_way) => busy |= under_way,
                Err(error) => tracing::warn!(store = %open.uuid, %error, "its scrub is not looked after now"),
            }
        }
        busy
    }

    async fn look_or_begin(&self, open: &OpenStore) -> Result<bool, ControlError> {
        let Some(facts) = self.look_at(open).await? else { return Ok(false) };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        if self.stores.lasts(open.uuid) && self.records.schedule.due(&facts).is_some_and(|due| due <= now) {
            tracing::info!(store = %open.uuid, "a scrub is due");
            self.data.start_scrub(open.home, open.uuid, self.records.schedule.rate).await?;
            self.look_at(open).await?;
            return Ok(true);
        }
        Ok(facts.run.is_some_and(|run| run.ended.is_none()))
    }

    /// Records how the scrub of a store is.
    async fn look_at(&self, open: &OpenStore) -> Result<Option<ScrubFacts>, ControlError> {
        let facts = self.data.stores(open.home).await?.remove(&open.uuid).map(|facts| facts.scrub);
        if let Some(run) = facts.as_ref().and_then(|facts| facts.run.as_ref()) {
            self.records.save(open.uuid, run, || self.stores.lasts(open.uuid)).await?;
        }
        Ok(facts)
    }
}

impl ScrubRecord {
    fn of(run: &ScrubRun) -> Self {
        let found = &run.found;
        Self {
            started: run.started,
            ended: run.ended,
            error: run.error.clone(),
            bytes_per_second: run.rate,
            snapshots: found.snapshots,
            regions: found.regions,
            bytes: found.bytes,
            unhashed_regions: found.unknown,
            bad_regions: found.bad_regions,
            bad: found.bad.iter().map(|bad| (bad.lvol, bad.offset)).collect(),
            bad_lvols: found.bad_lvols.clone(),
            position: found.position.map(|position| (position.lvol, position.region)),
            milliseconds: u64::try_from(found.duration.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn run(&self) -> ScrubRun {
        let found = ScrubReport {
            snapshots: self.snapshots,
            regions: self.regions,
            bytes: self.bytes,
            unknown: self.unhashed_regions,
            bad_regions: self.bad_regions,
            bad: self.bad.iter().map(|&(lvol, offset)| BadRegion { lvol, offset }).collect(),
            bad_lvols: self.bad_lvols.clone(),
            position: self.position.map(|(lvol, region)| ScrubPosition { lvol, region }),
            duration: Duration::from_millis(self.milliseconds),
        };
        ScrubRun {
            started: self.started,
            ended: self.ended,
            error: self.error.clone(),
            rate: self.bytes_per_second,
            found,
        }
    }
}

/// What is known to be wrong with the data of a store that serves.
pub(super) fn damage(facts: &ScrubFacts) -> String {
    match facts.damaged {
        0 => String::new(),
        bytes => format!("{bytes} bytes of its data are damaged: reads of them fail until they are mended"),
    }
}

pub(super) fn describe(facts: &ScrubFacts, schedule: &Schedule, is_volatile: bool) -> v1::StoreScrub {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    v1::StoreScrub {
        hash_bytes_per_second: facts.hash_rate,
        snapshots: count(facts.snapshots),
        hashed_snapshots: count(facts.hashed),
        damaged_bytes: facts.damaged,
        run: facts.run.as_ref().map(|run| describe_run(run, facts.left)),
        next_at: schedule.due(facts).filter(|_| !is_volatile).unwrap_or(0),
    }
}

fn describe_run(run: &ScrubRun, left: u64) -> v1::ScrubRun {
    let found = &run.found;
    let bad = found.bad.iter().map(|bad| v1::BadRegion { lvol_uuid: bad.lvol.to_string(), offset_bytes: bad.offset });
    v1::ScrubRun {
        started_at: run.started,
        ended_at: run.ended.unwrap_or(0),
        error: run.error.clone().unwrap_or_default(),
        snapshots: found.snapshots,
        bytes: found.bytes,
        unhashed_regions: found.unknown,
        bad_regions: found.bad_regions,
        bad: bad.collect(),
        bytes_per_second: run.rate,
        left_bytes: if run.ended.is_none() { left } else { 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ended: Option<u64>, error: Option<&str>) -> ScrubRun {
        let lvol = Uuid::from_u128(7);
        let found = ScrubReport {
            snapshots: 1,
            regions: 2,
            bytes: 3,
            unknown: 4,
            bad_regions: 5,
            bad: vec![BadRegion { lvol, offset: 65536 }],
            bad_lvols: BTreeMap::from([(lvol, 5)]),
            position: Some(ScrubPosition { lvol, region: Some(9) }),
            duration: Duration::from_millis(6),
        };
        ScrubRun { started: 1, ended, error: error.map(str::to_owned), rate: 8, found }
    }

    fn facts(snapshots: usize, run: Option<ScrubRun>) -> ScrubFacts {
        ScrubFacts { hash_rate: 0, snapshots, hashed: 0, damaged: 0, run, left: 0, store_made: 1000 }
    }

    #[test]
    fn a_record_has_all_of_a_scrub() {
        let record = ScrubRecord::of(&run(None, None));
        let text = serde_json::to_string(&record).expect("JSON");
        let read: ScrubRecord = serde_json::from_str(&text).expect("read");
        assert_eq!(read, record);
        let (found, before) = (read.run(), run(None, None));
        assert_eq!((found.started, found.ended, found.rate, found.found), (1, None, 8, before.found));
    }

    #[test]
    fn scrubs_are_due_an_interval_after_the_last_and_sooner_after_one_that_was_not_through() {
        let schedule = Schedule { interval: Some(30 * DAY), rate: 1 };
        assert_eq!(schedule.due(&facts(1, None)), Some(1000 + 30 * DAY));
        assert_eq!(schedule.due(&facts(1, Some(run(Some(5), None)))), Some(5 + 30 * DAY));
        assert_eq!(schedule.due(&facts(1, Some(run(Some(5), Some("stopped"))))), Some(5 + DAY));
        assert_eq!(schedule.due(&facts(1, Some(run(None, None)))), None);
        assert_eq!(schedule.due(&facts(0, None)), None);
        assert_eq!(Schedule { interval: None, rate: 1 }.due(&facts(1, None)), None);
    }
}
