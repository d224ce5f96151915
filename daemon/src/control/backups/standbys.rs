//! Standby volumes: a record and a task each. The library follows the backups, and keeps what it knows in a folder of its own.
//!
//! ```text
//!          create            the target says how large             activate
//!  (none) ───────▶ WAITING ─────────────────────────▶ FOLLOWING ─────────────▶ ACTIVE ──delete──▶ (none): the volume stays
//!                     └──────────── delete ───────────────┴──▶ DELETING ──────▶ (none): the volume goes
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use backup::backoff::{Backoff, Pauses};
use backup::create::Options;
use backup::follow::{FollowRequest, Follower, Phase, Status};
use backup::progress::Progress;
use backup::{Error, Kind, inspect};
use proto::v1::{self, StandbyState};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::check_backup_volume;
use super::device::StandbyDevice;
use super::errors::{control_error, of_node};
use super::job::milliseconds;
use super::targets::Targets;
use crate::control::error::{Comparison, ControlError};
use crate::control::locks::KeyedLocks;
use crate::control::pages::{self, Wanted};
use crate::control::streams::{ChangeStream, Told, stream};
use crate::control::versions::{Change, Versions};
use crate::control::volumes::Hold;
use crate::control::{Engines, Volumes, panics, request};
use crate::state::{Records, StateError};

/// Seconds between two looks, unless somebody says otherwise, and at most.
const INTERVAL: u32 = 300;
const LONGEST_INTERVAL: u32 = 24 * 60 * 60;
/// Standbys of a node.
const MOST: usize = 256;
/// After what ended the task of one: a panic, or our own disk.
const PAUSE: Duration = Duration::from_secs(10);
/// Changes that come within this are one.
const GATHERED: Duration = Duration::from_millis(50);
/// Between two looks at a restore that somebody follows.
const PROGRESS: Duration = Duration::from_secs(1);

/// A standby as the state directory knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StandbyRecord {
    /// Its volume has the same.
    uuid: Uuid,
    name: String,
    pub(super) target: Uuid,
    target_name: String,
    url: String,
    backup_volume: String,
    interval_seconds: u32,
    nodes: Vec<String>,
    replica_count: u32,
    store: String,
    /// Milliseconds since the Unix epoch.
    created_at: i64,
    #[serde(default)]
    is_deleting: bool,
}

/// All standbys of the node.
pub(crate) struct Standbys {
    records: Records<StandbyRecord>,
    folder: PathBuf,
    targets: Arc<Targets>,
    volumes: Arc<Volumes>,
    engines: Arc<Engines>,
    options: Options,
    known: Mutex<BTreeMap<Uuid, Entry>>,
    versions: Arc<Versions<v1::Standby>>,
    /// One of them may have changed.
    told: Notify,
    locks: KeyedLocks<()>,
}

struct Entry {
    record: StandbyRecord,
    now: Now,
    task: Option<JoinHandle<()>>,
}

/// What is known of one in this run.
enum Now {
    /// There is no volume yet: what it waits for.
    Preparing(Status),
    /// The library tells.
    Following(watch::Receiver<Status>, Progress),
}

impl Standbys {
    pub(super) fn load(
        records: Records<StandbyRecord>,
        folder: PathBuf,
        targets: Arc<Targets>,
        (volumes, engines): (Arc<Volumes>, Arc<Engines>),
        options: Options,
        run: u64,
    ) -> Result<Arc<Self>, StateError> {
        let loaded = records.load()?;
        for error in loaded.failed {
            tracing::error!(%error, "a standby's record is left out");
        }
        let known = loaded.records.into_iter().map(|(uuid, record)| (uuid, Entry::new(record))).collect();
        let (known, locks, told) = (Mutex::new(known), KeyedLocks::default(), Notify::new());
        let versions = Versions::new(run);
        Ok(Arc::new(Self { records, folder, targets, volumes, engines, options, known, versions, told, locks }))
    }

    /// Goes on with all of them.
    pub(super) fn resume(self: &Arc<Self>) {
        let all: Vec<_> = self.known().keys().copied().collect();
        all.into_iter().for_each(|uuid| self.spawn(uuid));
        tokio::spawn(Arc::clone(self).observe());
    }

    /// Looks at them when one may have changed, and while somebody follows a restore.
    async fn observe(self: Arc<Self>) {
        loop {
            self.look();
            tokio::select! {
                () = self.told.notified() => tokio::time::sleep(GATHERED).await,
                () = tokio::time::sleep(PROGRESS), if self.versions.is_followed() && self.is_restoring() => {}
            }
        }
    }

    /// Takes in how all of them are now.
    fn look(&self) {
        // Both at once: nobody else's older look comes after this one.
        let known = self.known();
        for gone in self.versions.all().iter().filter(|seen| !known.keys().any(|uuid| uuid.to_string() == seen.uuid)) {
            self.versions.remove(&gone.uuid);
        }
        known.iter().for_each(|(uuid, entry)| self.versions.set(&uuid.to_string(), entry.describe()));
    }

    fn is_restoring(&self) -> bool {
        self.known().values().any(|entry| matches!(entry.status().phase, Phase::Restoring(_)))
    }

    /// The standbys that there are, then what becomes of them.
    pub(crate) fn watch(
        &self,
        request: &v1::WatchStandbysRequest,
    ) -> Result<ChangeStream<v1::StandbyChange>, ControlError> {
        let only = request::optional_uuid("standby_uuid", &request.standby_uuid)?.map(|uuid| uuid.to_string());
        self.look();
        let follower = self.versions.follow(&request.resource_version)?;
        // From now on progress counts.
        self.told.notify_one();
        Ok(stream(follower, move |Change { kind, object, version }| match &object {
            Some(standby) if only.as_ref().is_some_and(|only| *only != standby.uuid) => Told::Nothing,
            _ => Told::Message(v1::StandbyChange { kind: kind.into(), standby: object, resource_version: version }),
        }))
    }

    /// Ends all watches.
    pub(super) fn end_watches(&self) {
        self.versions.end();
    }

    pub(super) async fn create(
        self: &Arc<Self>,
        request: v1::CreateStandbyRequest,
    ) -> Result<v1::Standby, ControlError> {
        let name = request::name("name", &request.name)?;
        let target = self.targets.find(&request.target)?;
        check_backup_volume(&request.backup_volume)?;
        let uuid = request::optional_uuid("uuid", &request.uuid)?;
        let interval = if request.interval_seconds == 0 { INTERVAL } else { request.interval_seconds };
        if interval > LONGEST_INTERVAL {
            return Err(ControlError::invalid("interval_seconds", format!("at most {LONGEST_INTERVAL}")));
        }
        let record = StandbyRecord {
            uuid: uuid.unwrap_or_else(Uuid::new_v4),
            name: name.clone(),
            target: target.uuid,
            target_name: target.name.clone(),
            url: target.url.clone(),
            backup_volume: request.backup_volume,
            interval_seconds: interval,
            nodes: request.nodes,
            replica_count: request.replica_count,
            store: request.store,
            created_at: request::unix_milliseconds(),
            is_deleting: false,
        };
        let _lock = self.locks.lock(()).await;
        if let Ok(existing) = self.find(&name) {
            existing.compare(&record, uuid)?;
            return self.get(&name);
        }
        if self.volumes.uuid_of(&name).is_ok()
            || self.volumes.contains(record.uuid)
            || self.known().contains_key(&record.uuid)
        {
            let text = format!("a volume or standby has the name `{name}` or this UUID already");
            return Err(ControlError::precondition("EXISTS", text).with("volume", &name));
        }
        if self.known().len() >= MOST {
            return Err(ControlError::invalid("name", format!("there are {MOST} standbys already")));
        }
        self.records.change(record.uuid, None, &record).await.map_err(|unchanged| unchanged.error)?;
        let uuid = record.uuid;
        self.known().insert(uuid, Entry::new(record));
        self.told.notify_one();
        self.spawn(uuid);
        self.get(&name)
    }

    pub(crate) fn list(&self, request: v1::ListStandbysRequest) -> Result<v1::ListStandbysResponse, ControlError> {
        self.look();
        let resource_version = self.versions.version();
        let mut standbys = self.versions.all();
        standbys.sort_by(|one, other| (&one.name, &one.uuid).cmp(&(&other.name, &other.uuid)));
        let wanted = Wanted { size: request.page_size, token: request.page_token };
        let (standbys, next_page_token) =
            pages::page("standbys", standbys, |standby: &v1::Standby| [&standby.name, &standby.uuid], &wanted)?;
        Ok(v1::ListStandbysResponse { standbys, next_page_token, resource_version })
    }

    pub(crate) fn get(&self, standby: &str) -> Result<v1::Standby, ControlError> {
        let uuid = self.find(standby)?.uuid;
        let known = self.known();
        known.get(&uuid).map(Entry::describe).ok_or_else(|| ControlError::not_found("standby", standby))
    }

    /// Makes it a volume like others. What is not through yet goes on by itself.
    pub(crate) async fn activate(self: &Arc<Self>, standby: &str) -> Result<v1::Standby, ControlError> {
        let _lock = self.locks.lock(()).await;
        let record = self.find(standby)?;
        if record.is_deleting {
            return Err(ControlError::precondition("DELETING", format!("standby `{}` is being deleted", record.name)));
        }
        self.stop(record.uuid).await;
        let activated = self.activate_now(&record).await;
        self.told.notify_one();
        self.spawn(record.uuid);
        activated?;
        self.get(standby)
    }

    async fn activate_now(&self, record: &StandbyRecord) -> Result<(), ControlError> {
        let none = || {
            let text = format!("no backup was restored completely to standby `{}` yet", record.name);
            ControlError::precondition("NO_BACKUP", text)
        };
        let opened = Follower::open(&self.folder_of(record.uuid), self.options.clone());
        let mut follower = opened.map_err(|error| control_error(&error))?.ok_or_else(none)?;
        if follower.status().complete.is_none() {
            return Err(none());
        }
        self.show(record.uuid, &follower);
        let activated = follower.activate(&self.device(record)).await;
        activated.map(drop).map_err(|error| {
            let text = format!("{}; it is recorded, and goes on by itself", error.reason());
            ControlError::unavailable("ENGINE_STARTING", text)
        })
    }

    /// Ends a standby, and its volume with it unless it was activated. An absent one is a success (I42).
    pub(crate) async fn delete(self: &Arc<Self>, request: v1::DeleteStandbyRequest) -> Result<(), ControlError> {
        let expected = request::optional_uuid("expected_uuid", &request.expected_uuid)?;
        let _lock = self.locks.lock(()).await;
        let Ok(record) = self.find(&request.standby) else { return Ok(()) };
        if expected.is_some_and(|expected| expected != record.uuid) {
            return Err(ControlError::other_uuid("standby", &record.name, record.uuid));
        }
        if !record.is_deleting {
            let deleting = StandbyRecord { is_deleting: true, ..record.clone() };
            let kept = self.records.change(record.uuid, Some(&record), &deleting).await;
            kept.map_err(|unchanged| unchanged.error)?;
            if let Some(entry) = self.known().get_mut(&record.uuid) {
                entry.record = deleting;
            }
        }
        self.stop(record.uuid).await;
        let ended = self.tear_down(&record).await;
        if ended.is_err() {
            self.spawn(record.uuid);
        }
        ended
    }

    async fn tear_down(&self, record: &StandbyRecord) -> Result<(), ControlError> {
        if matches!(self.volumes.held(record.uuid), Some(Some(_))) {
            self.volumes.delete_held(record.uuid).await?;
        }
        let folder = self.folder_of(record.uuid);
        let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        });
        let removed = removed.await.unwrap_or_else(|ended| Err(std::io::Error::other(ended)));
        removed.map_err(|error| ControlError::failed("STATE_DIRECTORY", error))?;
        self.records.remove(record.uuid).await?;
        self.known().remove(&record.uuid);
        self.told.notify_one();
        Ok(())
    }

    /// All of them by name, and whether they wait after a failed attempt.
    pub(super) fn waiting(&self) -> Vec<(String, bool)> {
        let known = self.known();
        let waits = |entry: &Entry| matches!(entry.status().phase, Phase::Waiting { .. });
        known.values().map(|entry| (entry.record.name.clone(), waits(entry))).collect()
    }

    /// The standby that uses a target, by name.
    pub(super) fn user_of(&self, target: Uuid) -> Option<String> {
        let known = self.known();
        let user = known.values().find(|entry| entry.record.target == target);
        user.map(|entry| format!("standby {}", entry.record.name))
    }

    fn spawn(self: &Arc<Self>, uuid: Uuid) {
        let standbys = Arc::clone(self);
        let task = tokio::spawn(async move { standbys.run(uuid).await });
        if let Some(entry) = self.known().get_mut(&uuid) {
            entry.task = Some(task);
        }
    }

    async fn stop(&self, uuid: Uuid) {
        let task = self.known().get_mut(&uuid).and_then(|entry| entry.task.take());
        if let Some(task) = task {
            task.abort();
            // Cancelled is what it was asked to be.
            let _ = task.await;
        }
    }

    /// Follows until the standby is active or gone.
    async fn run(self: Arc<Self>, uuid: Uuid) {
        loop {
            let Some(record) = self.known().get(&uuid).map(|entry| entry.record.clone()) else { return };
            let why = match panics::caught(self.follow(&record)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(panic) => Error::new(Kind::Local, format!("its task ended by a panic: {panic}")),
            };
            tracing::error!(standby = %record.name, error = %why, "a standby cannot go on now");
            self.show_waiting(uuid, &why, 1, PAUSE);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn follow(&self, record: &StandbyRecord) -> backup::Result<()> {
        if record.is_deleting {
            return self.tear_down(record).await.map_err(|error| Error::new(Kind::Local, error.to_string()));
        }
        let request = FollowRequest {
            target: record.url.clone(),
            volume: record.backup_volume.clone(),
            device: record.uuid.to_string(),
            interval_seconds: record.interval_seconds.into(),
        };
        let folder = self.folder_of(record.uuid);
        let mut follower = match Follower::open(&folder, self.options.clone())? {
            Some(follower) => follower,
            None => {
                self.make_volume(record).await;
                Follower::create(&folder, request, self.options.clone())?
            }
        };
        self.show(record.uuid, &follower);
        let mut status = follower.subscribe();
        let telling = async {
            while status.changed().await.is_ok() {
                self.told.notify_one();
            }
            std::future::pending().await
        };
        let (opener, device) = (self.targets.opener(record.target), self.device(record));
        let followed = tokio::select! {
            followed = follower.run(&opener, &device) => followed,
            never = telling => never,
        };
        self.told.notify_one();
        followed
    }

    /// Makes the volume once the target says how large it is, however long that takes.
    async fn make_volume(&self, record: &StandbyRecord) {
        let mut backoff = Backoff::new(Pauses::default());
        while let Err(error) = self.try_to_make(record).await {
            // There is no faulted state.
            let pause = backoff.between_looks(&error, Duration::from_secs(record.interval_seconds.into()));
            self.show_waiting(record.uuid, &error, backoff.attempt(), pause);
            tokio::time::sleep(pause).await;
        }
    }

    async fn try_to_make(&self, record: &StandbyRecord) -> backup::Result<()> {
        if self.volumes.held(record.uuid).is_some() && self.volumes.is_created(record.uuid) {
            return Ok(());
        }
        let opener = self.targets.opener(record.target);
        let request = v1::CreateVolumeRequest {
            name: record.name.clone(),
            size_bytes: inspect::volume(&opener, &record.backup_volume).await?.size,
            nodes: record.nodes.clone(),
            replica_count: record.replica_count,
            store: record.store.clone(),
            uuid: record.uuid.to_string(),
            ..v1::CreateVolumeRequest::default()
        };
        self.volumes.create_held(request, Hold::Standby).await.map(drop).map_err(|error| of_node(&error))
    }

    fn device(&self, record: &StandbyRecord) -> StandbyDevice {
        StandbyDevice::new(
            (Arc::clone(&self.volumes), Arc::clone(&self.engines)),
            record.uuid,
            self.targets.opener(record.target),
            record.backup_volume.clone(),
        )
    }

    fn show(&self, uuid: Uuid, follower: &Follower) {
        if let Some(entry) = self.known().get_mut(&uuid) {
            entry.now = Now::Following(follower.subscribe(), follower.progress().clone());
        }
        self.told.notify_one();
    }

    fn show_waiting(&self, uuid: Uuid, error: &Error, attempt: u32, pause: Duration) {
        let (kind, reason) = (error.kind(), error.reason().to_owned());
        if let Some(entry) = self.known().get_mut(&uuid) {
            let complete = entry.status().complete;
            let phase = Phase::Waiting { kind, reason, attempt, next_try: SystemTime::now() + pause };
            entry.now = Now::Preparing(Status { phase, complete });
        }
        self.told.notify_one();
    }

    fn find(&self, standby: &str) -> Result<StandbyRecord, ControlError> {
        let uuid = Uuid::try_parse(standby).ok();
        let known = self.known();
        let found = known.values().find(|entry| Some(entry.record.uuid) == uuid || entry.record.name == standby);
        found.map(|entry| entry.record.clone()).ok_or_else(|| ControlError::not_found("standby", standby))
    }

    fn folder_of(&self, uuid: Uuid) -> PathBuf {
        self.folder.join(uuid.to_string())
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Uuid, Entry>> {
        // Poisoned or not, the map is whole: no change of it has several steps.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StandbyRecord {
    fn compare(&self, wanted: &Self, uuid: Option<Uuid>) -> Result<(), ControlError> {
        Comparison::default()
            .optional("uuid", self.uuid, uuid)
            .field("target", self.target, wanted.target)
            .field("backup_volume", &self.backup_volume, &wanted.backup_volume)
            .field("interval_seconds", self.interval_seconds, wanted.interval_seconds)
            .field("nodes", self.nodes.join(", "), wanted.nodes.join(", "))
            .field("replica_count", self.replica_count, wanted.replica_count)
            .field("store", &self.store, &wanted.store)
            .finish("standby", &self.name)
    }
}

impl Entry {
    fn new(record: StandbyRecord) -> Self {
        Self { record, now: Now::Preparing(Status::default()), task: None }
    }

    fn status(&self) -> Status {
        match &self.now {
            Now::Preparing(status) => status.clone(),
            Now::Following(status, _) => status.borrow().clone(),
        }
    }

    fn describe(&self) -> v1::Standby {
        let (record, status) = (&self.record, self.status());
        let standby = v1::Standby {
            uuid: record.uuid.to_string(),
            name: record.name.clone(),
            target: record.target_name.clone(),
            backup_volume: record.backup_volume.clone(),
            interval_seconds: record.interval_seconds,
            complete: status.complete.unwrap_or_default(),
            created_at_unix_ms: record.created_at,
            ..v1::Standby::default()
        };
        let in_state = |state: StandbyState| v1::Standby { state: state.into(), ..standby.clone() };
        match status.phase {
            Phase::Looking => in_state(StandbyState::Looking),
            Phase::Activating => in_state(StandbyState::Activating),
            Phase::Active => in_state(StandbyState::Active),
            Phase::Idle { next_look } => {
                v1::Standby { next_try_unix_ms: Some(milliseconds(next_look)), ..in_state(StandbyState::Idle) }
            }
            Phase::Restoring(restoring) => {
                let progress = match &self.now {
                    Now::Following(_, progress) => progress.state(),
                    Now::Preparing(_) => Default::default(),
                };
                let total = (progress.total > 0).then_some(progress.total);
                v1::Standby {
                    restoring,
                    done_bytes: total.map(|_| progress.done),
                    total_bytes: total,
                    ..in_state(StandbyState::Restoring)
                }
            }
            Phase::Waiting { kind, reason, attempt, next_try } => v1::Standby {
                reason: format!("{reason}: {}", kind.advice()),
                failure: kind.to_string(),
                attempt,
                next_try_unix_ms: Some(milliseconds(next_try)),
                ..in_state(StandbyState::Waiting)
            },
        }
    }
}
