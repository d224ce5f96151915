//! The jobs of the node: backups, restores, removals, verifications.
//!
//! ```text
//!              record                 its turn                 the library says so
//!   (none) ─────────────▶ QUEUED ─────────────────▶ WORKING ───────────────────────▶ SUCCEEDED, FAILED ──▶ pruned
//!                           ▲  ▲   restart, panic    │  ▲ │ cancel                          ▲
//!                           │  └─────────────────────┘  │ └──▶ QUEUED, cancelled ──▶ CANCELLED
//!                           └── the same again          └─── outages are waited out inside
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use backup::Kind;
use backup::progress::{Progress, Waiting};
use proto::v1::{self, EventSubject, OperationKind};
use tokio::sync::{Notify, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, watch};
use uuid::Uuid;

use super::job::{Ended, How, Job, JobRecord, Now, Work};
use super::tally::{Tally, word};
use super::work::Worker;
use crate::control::error::ControlError;
use crate::control::events::{Events, Happened};
use crate::control::locks::KeyedLocks;
use crate::control::{panics, request};
use crate::state::{Records, StateError};

/// Jobs of a kind that work with one target at one time.
const AT_ONCE: usize = 2;
/// Jobs that have not ended.
const MOST_ACTIVE: usize = 1024;
/// Jobs that have ended and are kept, besides the last good backup of each volume.
const KEPT: usize = 256;
/// After what ended a job's task without ending the job: a panic, or our own disk.
const PAUSE: Duration = Duration::from_secs(10);

/// All jobs of the node.
pub(crate) struct Jobs {
    records: Records<JobRecord>,
    /// Where each job has its folder.
    folder: PathBuf,
    worker: Worker,
    jobs: Mutex<BTreeMap<Uuid, Job>>,
    /// One backup or removal of a volume in a target at a time.
    volumes: KeyedLocks<(Uuid, String)>,
    places: Mutex<BTreeMap<(Uuid, i32), Arc<Semaphore>>>,
    /// One creation at a time.
    creating: tokio::sync::Mutex<()>,
    events: Arc<Events>,
    /// Who looks at operations.
    told: Arc<Notify>,
    /// How many have ended in this run.
    ended: watch::Sender<u64>,
    pub(super) tally: Tally,
}

impl Jobs {
    pub(super) fn load(
        records: Records<JobRecord>,
        folder: PathBuf,
        worker: Worker,
        events: Arc<Events>,
        told: Arc<Notify>,
    ) -> Result<Arc<Self>, StateError> {
        let loaded = records.load()?;
        for error in loaded.failed {
            tracing::error!(%error, "the record of a backup or restore is left out");
        }
        let jobs = loaded.records.into_iter().map(|(uuid, record)| (uuid, Job::new(record))).collect();
        Ok(Arc::new(Self {
            records,
            folder,
            worker,
            jobs: Mutex::new(jobs),
            volumes: KeyedLocks::default(),
            places: Mutex::default(),
            creating: tokio::sync::Mutex::default(),
            events,
            told,
            ended: watch::Sender::new(0),
            tally: Tally::default(),
        }))
    }

    /// Goes on with what had not ended.
    pub(super) fn resume(self: &Arc<Self>) {
        let active: Vec<_> = {
            let jobs = self.jobs();
            jobs.values().filter(|job| job.record.ended.is_none()).map(|job| job.record.uuid).collect()
        };
        active.into_iter().for_each(|uuid| self.spawn(uuid));
    }

    /// Keeps others from creating jobs meanwhile.
    pub(super) async fn lock(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.creating.lock().await
    }

    /// What is known of jobs that `is_wanted`.
    pub(super) fn select(&self, is_wanted: impl Fn(&JobRecord) -> bool) -> Vec<JobRecord> {
        self.jobs().values().map(|job| &job.record).filter(|record| is_wanted(record)).cloned().collect()
    }

    /// How many jobs there are that have not ended, and how many of these wait after a failed attempt, by the work.
    pub(super) fn active(&self) -> BTreeMap<&'static str, (u64, u64)> {
        let mut active: BTreeMap<_, (u64, u64)> = BTreeMap::new();
        for job in self.jobs().values().filter(|job| job.record.ended.is_none()) {
            let counts = active.entry(word(&job.record.work)).or_default();
            *counts = (counts.0 + 1, counts.1 + u64::from(job.is_waiting()));
        }
        active
    }

    /// A job as an operation.
    pub(super) fn describe(&self, uuid: Uuid) -> Option<v1::Operation> {
        self.jobs().get(&uuid).map(Job::describe)
    }

    /// Records a job and begins it. One with this UUID that has ended begins anew.
    pub(super) async fn begin(self: &Arc<Self>, record: JobRecord) -> Result<v1::Operation, ControlError> {
        let uuid = record.uuid;
        let active = self.jobs().values().filter(|job| job.record.ended.is_none()).count();
        if active >= MOST_ACTIVE {
            let text = format!("{MOST_ACTIVE} backups and restores have not ended yet: try again later");
            return Err(ControlError::unavailable("BUSY", text).with("class", "backups").with("limit", MOST_ACTIVE));
        }
        let before = self.jobs().get(&uuid).map(|job| job.record.clone());
        if before.as_ref().is_some_and(|before| before.ended.is_none()) {
            return Err(ControlError::invalid("uuid", "an operation that has not ended has it"));
        }
        // What an earlier one did under this UUID is not this one's.
        self.remove_folder(uuid).await?;
        self.records.change(uuid, before.as_ref(), &record).await.map_err(|unchanged| unchanged.error)?;
        self.jobs().insert(uuid, Job::new(record));
        self.spawn(uuid);
        self.prune().await;
        self.describe(uuid).ok_or_else(|| ControlError::failed("STATE", "a job that was just noted is not there"))
    }

    /// Forgets jobs that have ended.
    pub(super) async fn forget(&self, is_meant: impl Fn(&JobRecord) -> bool) {
        for record in self.select(|record| record.ended.is_some() && is_meant(record)) {
            match self.records.remove(record.uuid).await {
                Ok(()) => drop(self.jobs().remove(&record.uuid)),
                Err(error) => tracing::warn!(job = %record.id(), %error, "the record of a job stays"),
            }
        }
    }

    /// Asks for the end of a job. A backup first removes what it has left in the target.
    pub(super) async fn cancel(self: &Arc<Self>, uuid: Uuid) -> Result<(), ControlError> {
        let _one = self.lock().await;
        let found = self.jobs().get_mut(&uuid).map(|job| (job.record.clone(), job.task.take()));
        let Some((record, task)) = found.filter(|(record, _)| record.ended.is_none()) else { return Ok(()) };
        if let Some(task) = task {
            task.abort();
            // Cancelled is what it was asked to be.
            let _ = task.await;
        }
        let cancelled = JobRecord { cancelled: true, ..record.clone() };
        let kept = self.records.change(uuid, Some(&record), &cancelled).await;
        if kept.is_ok()
            && let Some(job) = self.jobs().get_mut(&uuid)
            && job.record.ended.is_none()
        {
            job.record = cancelled;
        }
        self.spawn(uuid);
        Ok(kept.map_err(|unchanged| unchanged.error)?)
    }

    /// What is under way of a kind, and what ended before anybody saw it.
    pub(super) fn under_way(&self, kind: OperationKind) -> Vec<v1::Operation> {
        let mut jobs = self.jobs();
        let of_kind = jobs.values_mut().filter(|job| job.record.kind() == kind);
        let news = of_kind.filter_map(|job| {
            let is_news = job.record.ended.is_none() || !job.seen;
            job.seen = true;
            is_news.then(|| {
                match job.record.ended {
                    None => job.describe(),
                    // Its end is told by the next look, like all ends.
                    Some(_) => v1::Operation {
                        state: v1::OperationState::Running.into(),
                        ended_at_unix_ms: None,
                        ..job.describe()
                    },
                }
            })
        });
        news.collect()
    }

    /// Tells whenever one has ended.
    pub(super) fn ends(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
    }

    /// How a job ended.
    pub(super) fn end_of(&self, uuid: Uuid) -> Option<Ended> {
        self.jobs().get(&uuid)?.record.ended.clone()
    }

    fn spawn(self: &Arc<Self>, uuid: Uuid) {
        let jobs = Arc::clone(self);
        let task = tokio::spawn(async move { jobs.run(uuid).await });
        if let Some(job) = self.jobs().get_mut(&uuid) {
            job.task = Some(task);
        }
        self.told.notify_one();
    }

    /// Works at a job until it has ended.
    async fn run(self: Arc<Self>, uuid: Uuid) {
        loop {
            let Some(record) = self.jobs().get(&uuid).map(|job| job.record.clone()) else { return };
            if record.ended.is_some() {
                return;
            }
            let why = match panics::caught(self.take_turn(&record)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(panic) => format!("its task ended by a panic: {panic}"),
            };
            tracing::error!(job = %record.id(), error = %why, "a job cannot go on now");
            let next_try = SystemTime::now() + PAUSE;
            self.set(uuid, Now::Waiting(Waiting { kind: Kind::Local, reason: why, attempt: 1, next_try }));
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn take_turn(&self, record: &JobRecord) -> Result<(), String> {
        // What is only to be cleaned up keeps nobody waiting, nor waits for others.
        let _turn = if record.cancelled { None } else { Some(self.turn(record).await) };
        let told = |now| self.set(record.uuid, now);
        let ended = self.worker.work(record, &self.folder_of(record.uuid), &told).await?;
        self.end(record, ended).await.map_err(|error| error.to_string())
    }

    /// Waits until others leave room for a job.
    async fn turn(&self, record: &JobRecord) -> (Option<OwnedMutexGuard<()>>, Option<OwnedSemaphorePermit>) {
        let writes = matches!(record.work, Work::Backup(_) | Work::Delete);
        let volume = match writes {
            true => {
                self.set(record.uuid, Now::Queued("another job writes to the same volume in the target"));
                Some(self.volumes.lock((record.target, record.backup_volume.clone())).await)
            }
            false => None,
        };
        self.set(record.uuid, Now::Queued("other jobs of its kind are under way with the target"));
        let places = {
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            let kind = i32::from(record.kind());
            Arc::clone(places.entry((record.target, kind)).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))))
        };
        // Nobody closes it.
        let place = places.acquire_owned().await.ok();
        self.set(record.uuid, Now::Working(Progress::default()));
        (volume, place)
    }

    async fn end(&self, record: &JobRecord, ended: Ended) -> Result<(), ControlError> {
        let done = JobRecord { ended: Some(ended.clone()), ..record.clone() };
        self.records.change(record.uuid, Some(record), &done).await.map_err(|unchanged| unchanged.error)?;
        self.tally.count(record, &ended);
        self.tell(record, &ended);
        if let Some(job) = self.jobs().get_mut(&record.uuid) {
            job.record = done;
            job.task = None;
        }
        self.told.notify_one();
        self.ended.send_modify(|ended| *ended += 1);
        if let Err(error) = self.remove_folder(record.uuid).await {
            tracing::warn!(job = %record.id(), %error, "what a job has left on the local disk stays for now");
        }
        self.prune().await;
        Ok(())
    }

    /// What became of it, for who follows events.
    fn tell(&self, record: &JobRecord, ended: &Ended) {
        let how = match ended.how {
            How::Succeeded => "complete",
            How::Failed => "failed",
            How::Cancelled => "cancelled",
        };
        let (uuid, name) = record.volume().unwrap_or((record.uuid, &record.backup_volume));
        let detail = format!("{} in {}: {}", record.backup, record.target_name, ended.reason);
        let what = format!("{} {how}", record.kind());
        self.events.note(Happened::of(EventSubject::Volume, name, uuid, &what, &detail));
    }

    /// Forgets jobs that ended long ago, but not the last good backup of a volume: its age is what people watch.
    async fn prune(&self) {
        let mut ended = self.select(|record| record.ended.is_some());
        if ended.len() <= KEPT {
            return;
        }
        ended.sort_by_key(|record| record.ended.as_ref().map_or(0, |ended| ended.at));
        let newest: BTreeMap<_, _> = newest_of(&ended).map(|(volume, record)| (volume, record.uuid)).collect();
        let old = ended.len() - KEPT;
        let old: Vec<_> = ended[..old].iter().map(|record| record.uuid).collect();
        self.forget(|record| old.contains(&record.uuid) && !newest.values().any(|kept| *kept == record.uuid)).await;
    }

    fn set(&self, uuid: Uuid, now: Now) {
        if let Some(job) = self.jobs().get_mut(&uuid) {
            job.now = now;
        }
    }

    fn folder_of(&self, uuid: Uuid) -> PathBuf {
        self.folder.join(uuid.to_string())
    }

    async fn remove_folder(&self, uuid: Uuid) -> Result<(), ControlError> {
        let folder = self.folder_of(uuid);
        let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        });
        let removed = removed.await.unwrap_or_else(|ended| Err(std::io::Error::other(ended)));
        removed.map_err(|error| ControlError::failed("STATE_DIRECTORY", error))
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<Uuid, Job>> {
        // Poisoned or not, the map is whole: no change of it has several steps.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The newest good backup of each volume, of records in the order of their ends.
pub(super) fn newest_of(records: &[JobRecord]) -> impl Iterator<Item = (Uuid, &JobRecord)> {
    let good = records.iter().filter(|record| record.has_succeeded());
    let backups = good.filter_map(|record| match &record.work {
        Work::Backup(backup) => Some((backup.volume, record)),
        _ => None,
    });
    backups.collect::<BTreeMap<_, _>>().into_iter()
}

/// How a job ended now.
pub(super) fn ended(how: How, failure: Option<Kind>, reason: String, bytes: u64) -> Ended {
    Ended { how, failure, reason, at: request::unix_milliseconds(), bytes }
}
