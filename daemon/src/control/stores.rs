//! The node's stores: records in the state directory, open stores on the reactors.
//!
//! ```text
//!            create                 open               delete
//!   (none) ─▶ CREATING ─▶ OPENING ───────────▶ READY ──────────▶ (none)
//!     start ─────────────▲ │ ▲                   ▲
//!                          │ └ create again ─┐   │ create again
//!                          └──────────────▶ FAILED ──────────────▶ (none)
//!                             cannot be read, with the reason        delete
//! ```
//! Changes of one store wait for one another; one whose disk hangs holds up none of another.

mod extend;
mod states;
mod unopened;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proto::v1::{self, EventSubject, StoreState};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedMutexGuard, watch};
use uuid::Uuid;

use self::extend::extend_file;
use super::error::{Comparison, ControlError};
use super::events::{Events, Happened};
use super::locks::KeyedLocks;
use super::request;
use super::scrubs::{self, Schedule, ScrubRecords};
use crate::data::{Backing, DataPath, StoreFacts, StoreSpec, WantedLimits};
use crate::state::{Records, StateError, Unchanged};

/// What a path starts with that is memory.
const MEMORY: &str = "memory:";
const CUT_OFF: &str = "its creation was cut off; send the same command again to finish it, or delete the store";
const DEFAULT_CLUSTER_SIZE: u32 = 64 << 10;
/// How long calls wait for a store that is being opened: after a start that takes a moment. For one that takes longer nobody waits.
const OPEN_LIMIT: Duration = Duration::from_secs(5);

/// A store as the state directory knows it. Memory stores have no record: their content does not outlive the process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StoreRecord {
    uuid: Uuid,
    name: String,
    path: PathBuf,
    cluster_size: u32,
    /// Whether it was formatted. If not, the creation was cut off and can be repeated.
    formatted: bool,
}

/// All stores of the node.
pub(crate) struct Stores {
    data: DataPath,
    records: Records<StoreRecord>,
    scrubs: Arc<ScrubRecords>,
    entries: Mutex<BTreeMap<Uuid, Entry>>,
    /// One change at a time for each name.
    changes: KeyedLocks<String>,
    /// Sent to when a store's state changes.
    changed: watch::Sender<()>,
    events: Arc<Events>,
}

#[derive(Clone)]
struct Entry {
    spec: StoreSpec,
    /// The reactor that owns it.
    home: usize,
    state: State,
    /// When it got into that state.
    since: Instant,
}

#[derive(Clone, PartialEq, Eq)]
enum State {
    /// Its disk is made and formatted: nothing is in it yet, and its name, UUID and path are taken.
    Creating,
    Opening,
    Ready,
    Failed(String),
}

/// Why a store was not made.
struct Unmade {
    error: ControlError,
    /// It is on record: the same command again ends its creation.
    leaves_record: bool,
}

/// A store that is open, and where.
#[derive(Clone, Debug)]
pub(crate) struct OpenStore {
    pub(crate) uuid: Uuid,
    pub(crate) home: usize,
}

impl Stores {
    /// Reads the records and starts to open the stores, all at once. Returns before they are open.
    pub(crate) fn start(
        data: DataPath,
        records: Records<StoreRecord>,
        scrubs: Arc<ScrubRecords>,
        events: Arc<Events>,
    ) -> Result<Arc<Self>, StateError> {
        let loaded = records.load()?;
        for error in loaded.failed {
            tracing::error!(%error, "a store's record is left out");
        }
        let stores = Arc::new(Self {
            data,
            records,
            scrubs,
            entries: Mutex::default(),
            changes: KeyedLocks::default(),
            changed: watch::Sender::new(()),
            events,
        });
        for record in loaded.records.into_values() {
            stores.take_in(record);
        }
        Ok(stores)
    }

    fn take_in(self: &Arc<Self>, record: StoreRecord) {
        let spec = record.spec();
        let home = self.next_home(&self.entries());
        let state = if record.formatted { State::Opening } else { State::Failed(CUT_OFF.to_owned()) };
        self.entries().insert(spec.uuid, Entry::new(spec.clone(), home, state));
        if record.formatted {
            let stores = Arc::clone(self);
            tokio::spawn(async move {
                // The state says how it went.
                let _ = stores.open(&spec, home).await;
            });
        }
    }

    async fn open(&self, spec: &StoreSpec, home: usize) -> Result<(), ControlError> {
        self.set_state(spec.uuid, State::Opening);
        let opened = self.data.open_store(home, spec, self.scrubs.last(spec.uuid).await).await;
        match &opened {
            Ok(_) => {
                tracing::info!(store = %spec.name, reactor = home, "store is open");
                self.set_state(spec.uuid, State::Ready);
            }
            Err(error) => {
                tracing::error!(store = %spec.name, %error, "a store cannot be opened; the others go on");
                self.set_state(spec.uuid, State::Failed(error.to_string()));
            }
        }
        opened.map(drop)
    }

    /// Makes a store, or returns the one that is there (I30).
    pub(crate) async fn create(&self, request: v1::CreateStoreRequest) -> Result<v1::Store, ControlError> {
        let wanted = Wanted::parse(&request)?;
        let _change = self.changes.lock(wanted.name.clone()).await;
        let existing = self.entries().values().find(|entry| entry.spec.name == wanted.name).cloned();
        let uuid = match existing {
            Some(entry) => self.create_again(&wanted, entry).await?,
            None => self.create_new(wanted).await?,
        };
        self.describe(uuid).await
    }

    async fn create_again(&self, wanted: &Wanted, entry: Entry) -> Result<Uuid, ControlError> {
        let spec = entry.spec;
        let size = match (&spec.backing, wanted.size) {
            (Backing::Memory { size }, Some(wanted)) => Comparison::default().field("size_bytes", *size, wanted),
            _ => Comparison::default(),
        };
        size.field("path", path_text(&spec.backing), path_text(&wanted.backing))
            .field("cluster_size_bytes", spec.cluster_size, wanted.cluster_size)
            .optional("uuid", spec.uuid, wanted.uuid)
            .finish("store", &spec.name)?;
        if let State::Failed(_) | State::Creating = entry.state {
            let spec = StoreSpec { backing: wanted.backing.clone(), ..spec.clone() };
            self.format_if_cut_off(&spec, wanted.limits, entry.home).await?;
            self.open(&spec, entry.home).await?;
        }
        // They are known from the store itself.
        if let Some(facts) = self.data.stores(entry.home).await?.get(&spec.uuid) {
            wanted.limits.compare(&spec.name, facts.limits, facts.cluster_size)?;
        }
        Ok(spec.uuid)
    }

    /// Finishes a creation that a crash cut off between the record and the format.
    async fn format_if_cut_off(&self, spec: &StoreSpec, limits: WantedLimits, home: usize) -> Result<(), ControlError> {
        let Some(mut record) = self.records.load()?.records.remove(&spec.uuid) else { return Ok(()) };
        if !record.formatted {
            self.data.format_store(home, spec, limits).await?;
            record.formatted = true;
            self.records.store(spec.uuid, &record).await?;
        }
        Ok(())
    }

    async fn create_new(&self, wanted: Wanted) -> Result<Uuid, ControlError> {
        let spec = StoreSpec {
            uuid: wanted.uuid.unwrap_or_else(Uuid::new_v4),
            name: wanted.name,
            backing: wanted.backing,
            cluster_size: wanted.cluster_size,
        };
        let home = self.reserve(&spec)?;
        if let Err(unmade) = self.make(&spec, wanted.limits, home).await {
            if unmade.leaves_record {
                // As the next start would find it.
                self.set_state(spec.uuid, State::Failed(CUT_OFF.to_owned()));
            } else {
                self.entries().remove(&spec.uuid);
                self.changed.send_replace(());
            }
            return Err(unmade.error);
        }
        self.open(&spec, home).await?;
        Ok(spec.uuid)
    }

    /// Takes the name, the UUID and the path of a store, which are unique among all; returns the reactor that it gets.
    fn reserve(&self, spec: &StoreSpec) -> Result<usize, ControlError> {
        let mut entries = self.entries();
        check_unused(&entries, spec)?;
        let home = self.next_home(&entries);
        entries.insert(spec.uuid, Entry::new(spec.clone(), home, State::Creating));
        Ok(home)
    }

    /// The record comes first, so that a crash in the middle leaves a store that a repeated call can finish, under the
    /// same UUID.
    async fn make(&self, spec: &StoreSpec, limits: WantedLimits, home: usize) -> Result<(), Unmade> {
        // Once it is on record nobody looks at what is there any more: half a format looks like anything.
        let unused = self.data.check_unused(home, spec, limits).await;
        unused.map_err(|error| Unmade { error, leaves_record: false })?;
        let mut record = StoreRecord::of(spec);
        if let Some(record) = &record {
            let recorded = self.records.change(spec.uuid, None, record).await;
            recorded
                .map_err(|Unchanged { error, in_doubt }| Unmade { error: error.into(), leaves_record: in_doubt })?;
        }
        if let Err(error) = self.data.format_store(home, spec, limits).await {
            // What was not refused may have happened: the same command again finds out, under the same UUID.
            let in_doubt = !error.is_refusal() && record.is_some();
            let leaves_record = in_doubt || self.records.remove(spec.uuid).await.is_err();
            return Err(Unmade { error, leaves_record });
        }
        if let Some(record) = &mut record {
            record.formatted = true;
            let recorded = self.records.store(spec.uuid, record).await;
            recorded.map_err(|error| Unmade { error: error.into(), leaves_record: true })?;
        }
        Ok(())
    }

    /// Closes a store and forgets it. An absent one is a success (I42).
    pub(crate) async fn delete(&self, request: v1::DeleteStoreRequest) -> Result<(), ControlError> {
        let expected = request::optional_uuid("expected_uuid", &request.expected_uuid)?;
        if self.find(&request.store).is_err() {
            return Ok(());
        }
        let _change = self.turn(&request.store).await?;
        let Ok(entry) = self.find(&request.store) else { return Ok(()) };
        let spec = entry.spec;
        if expected.is_some_and(|expected| expected != spec.uuid) {
            return Err(ControlError::other_uuid("store", &spec.name, spec.uuid));
        }
        match entry.state {
            State::Creating | State::Opening => return Err(still_opening(&spec.name)),
            State::Failed(_) => {}
            State::Ready => self.close_empty(&spec, entry.home).await?,
        }
        if let Err(error) = self.forget(spec.uuid).await {
            self.set_state(
                spec.uuid,
                State::Failed(format!("it is closed, and still on record: {error}; delete it again")),
            );
            return Err(error.into());
        }
        self.entries().remove(&spec.uuid);
        self.changed.send_replace(());
        Ok(())
    }

    /// The store's record goes last: what belongs to it is never without.
    async fn forget(&self, store: Uuid) -> Result<(), StateError> {
        self.scrubs.remove(store).await?;
        self.records.remove(store).await
    }

    /// Makes a store larger. A file is made larger first, when a size is given.
    pub(crate) async fn grow(&self, request: v1::GrowStoreRequest) -> Result<v1::Store, ControlError> {
        let _change = self.turn(&request.store).await?;
        let open = self.open_store(&request.store)?;
        let spec = self.find(&request.store)?.spec;
        let size = (request.size_bytes > 0).then_some(request.size_bytes);
        let Backing::Path { path, .. } = &spec.backing else {
            let text = format!("store `{}` lives in memory, and keeps its size", spec.name);
            return Err(ControlError::precondition("VOLATILE", text));
        };
        if let Some(size) = size {
            extend_file(path.clone(), size).await?;
        }
        self.data.grow_store(open.home, open.uuid, size).await?;
        self.describe(open.uuid).await
    }

    /// Sets how far the space of a store may be used.
    pub(crate) async fn set_limits(&self, request: v1::SetStoreLimitsRequest) -> Result<v1::Store, ControlError> {
        let _change = self.turn(&request.store).await?;
        let open = self.open_store(&request.store)?;
        let limits = WantedLimits { overcommit_percent: request.overcommit_percent, reserve: request.reserve_bytes };
        self.data.set_store_limits(open.home, open.uuid, limits).await?;
        self.describe(open.uuid).await
    }

    async fn close_empty(&self, spec: &StoreSpec, home: usize) -> Result<(), ControlError> {
        let lvols = self.data.stores(home).await?.get(&spec.uuid).map_or(0, |facts| facts.lvols);
        if lvols > 0 {
            let text =
                format!("store `{}` holds {lvols} logical volumes: delete them, or their volumes, first", spec.name);
            return Err(ControlError::precondition("STORE_NOT_EMPTY", text).with("lvols", lvols));
        }
        self.data.close_store(home, spec.uuid).await
    }

    /// All stores, in order of their names.
    pub(crate) async fn list(&self) -> Result<Vec<v1::Store>, ControlError> {
        let entries: Vec<_> = self.entries().values().cloned().collect();
        let mut facts = BTreeMap::new();
        for home in 0..self.data.reactors() {
            facts.extend(self.data.stores(home).await?);
        }
        let describe = |entry: &Entry| entry.describe(facts.get(&entry.spec.uuid), &self.scrubs.schedule);
        let mut stores: Vec<_> = entries.iter().map(describe).collect();
        stores.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(stores)
    }

    /// One store by name or UUID.
    pub(crate) async fn get(&self, store: &str) -> Result<v1::Store, ControlError> {
        let uuid = self.find(store)?.spec.uuid;
        self.describe(uuid).await
    }

    /// One store, open or not.
    pub(super) async fn describe(&self, uuid: Uuid) -> Result<v1::Store, ControlError> {
        let entry = self.find(&uuid.to_string())?;
        let facts = self.data.stores(entry.home).await?;
        Ok(entry.describe(facts.get(&uuid), &self.scrubs.schedule))
    }

    /// The stores that are open. The caller hears of it when others may hold what it looks for.
    pub(crate) fn open_stores(&self) -> Vec<OpenStore> {
        let entries = self.entries();
        let open = entries.values().filter(|entry| entry.state == State::Ready);
        open.map(Entry::open).collect()
    }

    /// An open store by name or UUID.
    pub(crate) fn open_store(&self, store: &str) -> Result<OpenStore, ControlError> {
        let entry = self.find(store)?;
        match &entry.state {
            State::Ready => Ok(entry.open()),
            State::Creating | State::Opening => Err(still_opening(&entry.spec.name)),
            State::Failed(reason) => {
                let text = format!("store `{}` is not open: {reason}", entry.spec.name);
                Err(ControlError::precondition("STORE_FAILED", text))
            }
        }
    }

    /// An open store by name or UUID; waits for it if it is being opened.
    pub(crate) async fn open_store_soon(&self, store: &str) -> Result<OpenStore, ControlError> {
        let uuid = self.find(store)?.spec.uuid;
        self.wait_while_opening(|entry| entry.spec.uuid == uuid).await;
        self.open_store(store)
    }

    /// Waits for stores that are being opened; an error if there is still one.
    pub(crate) async fn none_opening(&self) -> Result<(), ControlError> {
        self.wait_while_opening(|_| true).await;
        let opening = self.first_in(|state| *state == State::Opening);
        opening.map_or(Ok(()), |entry| Err(still_opening(&entry.spec.name)))
    }

    /// Waits for stores that are being opened, each until [`OPEN_LIMIT`] after that began.
    async fn wait_while_opening(&self, which: impl Fn(&Entry) -> bool) {
        let left = || {
            let entries = self.entries();
            let opening = entries.values().filter(|entry| entry.state == State::Opening && which(entry));
            opening.map(|entry| OPEN_LIMIT.saturating_sub(entry.since.elapsed())).max().unwrap_or_default()
        };
        let mut changed = self.changed.subscribe();
        while !left().is_zero() {
            // Whatever ends the wait, the states are looked at.
            let _ = tokio::time::timeout(left(), changed.changed()).await;
        }
    }

    fn first_in(&self, wanted: impl Fn(&State) -> bool) -> Option<Entry> {
        self.entries().values().find(|entry| wanted(&entry.state)).cloned()
    }

    /// The reactor that owns a store, open or not.
    pub(crate) fn home(&self, store: Uuid) -> Option<usize> {
        self.entries().get(&store).map(|entry| entry.home)
    }

    /// The name of a store, open or not.
    pub(crate) fn name(&self, store: Uuid) -> String {
        self.entries().get(&store).map_or_else(String::new, |entry| entry.spec.name.clone())
    }

    /// Waits until a store is open or has failed. `Err` says why it is not open.
    pub(crate) fn opened(&self, store: Uuid) -> impl Future<Output = Result<(), String>> + Send {
        let mut changed = self.changed.subscribe();
        async move {
            loop {
                match self.entries().get(&store).map(|entry| entry.state.clone()) {
                    Some(State::Ready) => return Ok(()),
                    Some(State::Failed(reason)) => return Err(reason),
                    None => return Err("its store is not on this node".to_owned()),
                    Some(State::Creating | State::Opening) => {}
                }
                if changed.changed().await.is_err() {
                    return Err("the daemon is stopping".to_owned());
                }
            }
        }
    }

    /// Whether a store has a file or device, and so a record of its own in the state directory.
    pub(super) fn lasts(&self, store: Uuid) -> bool {
        self.entries().get(&store).is_some_and(|entry| !entry.is_volatile())
    }

    /// Sent to when a store's state changes.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// How many stores there are, whatever their state.
    pub(crate) fn count(&self) -> usize {
        self.entries().len()
    }

    fn find(&self, store: &str) -> Result<Entry, ControlError> {
        let uuid = Uuid::try_parse(store).ok();
        let entries = self.entries();
        let matches = |entry: &&Entry| Some(entry.spec.uuid) == uuid || entry.spec.name == store;
        entries.values().find(matches).cloned().ok_or_else(|| ControlError::not_found("store", store))
    }

    /// Waits for a turn to change a store, but not for a disk that may hang (I42).
    async fn turn(&self, store: &str) -> Result<OwnedMutexGuard<()>, ControlError> {
        let entry = self.find(store)?;
        match entry.state {
            State::Creating | State::Opening => Err(still_opening(&entry.spec.name)),
            State::Ready | State::Failed(_) => Ok(self.changes.lock(entry.spec.name).await),
        }
    }

    /// The reactor with the fewest stores.
    fn next_home(&self, entries: &BTreeMap<Uuid, Entry>) -> usize {
        let stores_of = |home: &usize| entries.values().filter(|entry| entry.home == *home).count();
        (0..self.data.reactors()).min_by_key(stores_of).unwrap_or(0)
    }

    fn set_state(&self, uuid: Uuid, state: State) {
        let name = self.entries().get(&uuid).map(|entry| entry.spec.name.clone()).unwrap_or_default();
        let what = match &state {
            State::Creating | State::Opening => None,
            State::Ready => Some(("ready", "")),
            State::Failed(reason) => Some(("failed", reason.as_str())),
        };
        if let Some((what, why)) = what {
            self.events.note(Happened::of(EventSubject::Store, &name, uuid, what, why));
        }
        if let Some(entry) = self.entries().get_mut(&uuid) {
            debug_assert!(entry.state.may_become(&state), "store {name} cannot get there");
            (entry.state, entry.since) = (state, Instant::now());
        }
        self.changed.send_replace(());
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Uuid, Entry>> {
        // Poisoned or not, the map is whole: no change of it has several steps.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error if another store has the UUID or the path.
fn check_unused(entries: &BTreeMap<Uuid, Entry>, spec: &StoreSpec) -> Result<(), ControlError> {
    if let Some(other) = entries.get(&spec.uuid) {
        return Comparison::default().field("name", &other.spec.name, &spec.name).finish("store", spec.uuid);
    }
    let same_path = |entry: &&Entry| match (&entry.spec.backing, &spec.backing) {
        (Backing::Path { path, .. }, Backing::Path { path: wanted, .. }) => path == wanted,
        _ => false,
    };
    match entries.values().find(same_path) {
        None => Ok(()),
        Some(other) => {
            let text = format!("{} is used by store `{}`", path_text(&spec.backing), other.spec.name);
            Err(ControlError::precondition("PATH_IN_USE", text).with("store", &other.spec.name))
        }
    }
}

fn still_opening(name: &str) -> ControlError {
    ControlError::unavailable("STORE_OPENING", format!("store `{name}` is still being read; try again soon"))
}

fn path_text(backing: &Backing) -> String {
    match backing {
        Backing::Path { path, .. } => path.display().to_string(),
        Backing::Memory { .. } => MEMORY.to_owned(),
    }
}

impl State {
    /// Whether the store may hold what is in no list.
    fn may_hide(&self) -> bool {
        matches!(self, Self::Opening | Self::Failed(_))
    }
}

impl Entry {
    fn new(spec: StoreSpec, home: usize, state: State) -> Self {
        Self { spec, home, state, since: Instant::now() }
    }

    fn unopened(&self) -> v1::UnopenedStore {
        let (state, reason) = match &self.state {
            State::Failed(reason) => (StoreState::Failed, reason.clone()),
            State::Creating | State::Opening | State::Ready => {
                (StoreState::Opening, "it is still being read".to_owned())
            }
        };
        v1::UnopenedStore {
            uuid: self.spec.uuid.to_string(),
            name: self.spec.name.clone(),
            state: state.into(),
            reason,
        }
    }

    fn is_volatile(&self) -> bool {
        matches!(self.spec.backing, Backing::Memory { .. })
    }

    fn open(&self) -> OpenStore {
        OpenStore { uuid: self.spec.uuid, home: self.home }
    }

    fn describe(&self, facts: Option<&StoreFacts>, schedule: &Schedule) -> v1::Store {
        let (state, reason) = match &self.state {
            State::Creating => (StoreState::Opening, "it is being made".to_owned()),
            State::Opening => (StoreState::Opening, String::new()),
            State::Ready => match facts.and_then(|facts| facts.failure.clone()) {
                None => (StoreState::Ready, facts.map_or_else(String::new, |facts| scrubs::damage(&facts.scrub))),
                Some(reason) => (StoreState::Failed, reason),
            },
            State::Failed(reason) => (StoreState::Failed, reason.clone()),
        };
        v1::Store {
            uuid: self.spec.uuid.to_string(),
            name: self.spec.name.clone(),
            path: path_text(&self.spec.backing),
            state: state.into(),
            reason,
            size_bytes: facts.map_or(0, |facts| facts.size),
            free_bytes: facts.map_or(0, |facts| facts.free),
            cluster_size_bytes: facts.map_or(self.spec.cluster_size, |facts| facts.cluster_size),
            lvols: facts.map_or(0, |facts| facts.lvols),
            // Far fewer than u32 can count.
            reactor: self.home as u32,
            disk_bytes: facts.map_or(0, |facts| facts.disk_size),
            provisioned_bytes: facts.map_or(0, |facts| facts.provisioned),
            overcommit_percent: facts.map_or(0, |facts| facts.limits.overcommit_percent),
            reserve_bytes: facts.map_or(0, |facts| facts.limits.reserve),
            metadata_bytes: facts.map_or(0, |facts| facts.metadata),
            metadata_room_bytes: facts.map_or(0, |facts| facts.metadata_room),
            scrub: facts.map(|facts| scrubs::describe(&facts.scrub, schedule, self.is_volatile())),
            is_volatile: self.is_volatile(),
            work: facts.map(|facts| describe_work(&facts.work)),
        }
    }
}

fn describe_work(work: &lvol::StoreWork) -> v1::StoreWork {
    v1::StoreWork {
        flushes: work.flushes,
        flush_us: u64::try_from(work.flush_time.as_micros()).unwrap_or(u64::MAX),
        journal_batches: work.batches,
        journal_written_bytes: work.batch_bytes,
        checkpoints: work.checkpoints,
        journal_bytes: work.journal_used,
        journal_size_bytes: work.journal_size,
    }
}

impl StoreRecord {
    /// The record of a store that is about to be formatted; none for memory.
    fn of(spec: &StoreSpec) -> Option<Self> {
        let Backing::Path { path, .. } = &spec.backing else { return None };
        Some(Self {
            uuid: spec.uuid,
            name: spec.name.clone(),
            path: path.clone(),
            cluster_size: spec.cluster_size,
            formatted: false,
        })
    }

    fn spec(&self) -> StoreSpec {
        // A file that is missing is not made again: an empty store in its place would hide the loss.
        let backing = Backing::Path { path: self.path.clone(), create: None };
        StoreSpec { uuid: self.uuid, name: self.name.clone(), backing, cluster_size: self.cluster_size }
    }
}

/// A checked request.
struct Wanted {
    uuid: Option<Uuid>,
    name: String,
    backing: Backing,
    size: Option<u64>,
    cluster_size: u32,
    limits: WantedLimits,
}

impl Wanted {
    fn parse(request: &v1::CreateStoreRequest) -> Result<Self, ControlError> {
        let size = (request.size_bytes > 0).then_some(request.size_bytes);
        let cluster_size = match request.cluster_size_bytes {
            0 => DEFAULT_CLUSTER_SIZE,
            size if size.is_power_of_two() && (16 << 10..=4 << 20).contains(&size) => size,
            size => {
                let problem = format!("{size} is not a power of two from 16 KiB to 4 MiB");
                return Err(ControlError::invalid("cluster_size_bytes", problem));
            }
        };
        Ok(Self {
            uuid: request::optional_uuid("uuid", &request.uuid)?,
            name: request::name("name", &request.name)?,
            backing: backing(&request.path, size)?,
            size,
            cluster_size,
            limits: WantedLimits { overcommit_percent: request.overcommit_percent, reserve: request.reserve_bytes },
        })
    }
}

fn backing(path: &str, size: Option<u64>) -> Result<Backing, ControlError> {
    if path.starts_with(MEMORY) {
        let size = size.ok_or_else(|| ControlError::invalid("size_bytes", "a store in memory needs a size"))?;
        return Ok(Backing::Memory { size });
    }
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        let problem = format!("`{}` is neither an absolute path nor `{MEMORY}`", path.display());
        return Err(ControlError::invalid("path", problem));
    }
    Ok(Backing::Path { path, create: size })
}
