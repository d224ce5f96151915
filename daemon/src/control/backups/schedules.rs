//! Schedules: snapshots and backups of a volume, again and again. A record and a task each.
//!
//! ```text
//!          due (what was missed is one run)    snapshot cut     backup ended, or none     what is too many goes
//!   IDLE ───────────────────────────────▶ RUN ─────────────▶ BACKUP ─────────────────▶ RETENTION ──────────────▶ IDLE
//! ```
//! A run is on record from its beginning, so that a restart goes on with it instead of beginning another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use backup::block::Compression;
use backup::format::time;
use backup::inspect;
use backup::retain::{self, Kept};
use backup::schedule::Schedule;
use proto::v1;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::job::{Backup, How, JobRecord, Work, milliseconds};
use super::jobs::Jobs;
use super::targets::Targets;
use super::{check_backup_volume, labels, or, packing, record};
use crate::control::error::{Comparison, ControlError};
use crate::control::locks::KeyedLocks;
use crate::control::pages::{self, Wanted};
use crate::control::retry::Backoff;
use crate::control::streams::{ChangeStream, Told, stream};
use crate::control::versions::{Change, Versions};
use crate::control::{Engines, Volumes, panics, request};
use crate::data::VolumeChange;
use crate::state::{Records, StateError};

/// Schedules of a node, and characters of a name: names of snapshots have the time besides.
const MOST: usize = 1024;
const LONGEST_NAME: usize = 40;
const MOST_RETAINED: u32 = 1000;
/// How long the clock is trusted to go on as it does.
const LOOK: Duration = Duration::from_secs(30);
/// Between looks at a backup that goes on.
const POLL: Duration = Duration::from_millis(500);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A schedule as the state directory knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ScheduleRecord {
    uuid: Uuid,
    name: String,
    volume: Uuid,
    volume_name: String,
    cron: String,
    /// None for snapshots only.
    target: Option<Uuid>,
    backup_volume: String,
    retain: u32,
    labels: BTreeMap<String, String>,
    compression: Compression,
    block_size: u64,
    /// Milliseconds since the Unix epoch.
    created_at: i64,
    /// When the last run was due.
    last_due: Option<i64>,
    run: Option<Run>,
    /// The snapshots that it has made and not deleted, oldest first.
    snapshots: Vec<Uuid>,
    last_operation: String,
    last_error: String,
}

/// A run that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    /// Of the snapshot and of what is in the store.
    name: String,
    snapshot: Uuid,
    /// The backup's job.
    job: Uuid,
}

/// All schedules of the node.
pub(crate) struct Schedules {
    records: Records<ScheduleRecord>,
    targets: Arc<Targets>,
    jobs: Arc<Jobs>,
    volumes: Arc<Volumes>,
    engines: Arc<Engines>,
    known: Mutex<BTreeMap<Uuid, Entry>>,
    versions: Arc<Versions<v1::BackupSchedule>>,
    locks: KeyedLocks<()>,
}

struct Entry {
    record: ScheduleRecord,
    task: Option<JoinHandle<()>>,
}

impl Schedules {
    pub(super) fn load(
        records: Records<ScheduleRecord>,
        (targets, jobs): (Arc<Targets>, Arc<Jobs>),
        (volumes, engines): (Arc<Volumes>, Arc<Engines>),
        run: u64,
    ) -> Result<Arc<Self>, StateError> {
        let loaded = records.load()?;
        for error in loaded.failed {
            tracing::error!(%error, "a schedule's record is left out");
        }
        let known = loaded.records.into_iter().map(|(uuid, record)| (uuid, Entry { record, task: None })).collect();
        let (known, locks, versions) = (Mutex::new(known), KeyedLocks::default(), Versions::new(run));
        Ok(Arc::new(Self { records, targets, jobs, volumes, engines, known, versions, locks }))
    }

    /// Goes on with all of them.
    pub(super) fn resume(self: &Arc<Self>) {
        let all: Vec<_> = self.known().keys().copied().collect();
        for uuid in all {
            self.tell(uuid);
            self.spawn(uuid);
        }
    }

    pub(super) async fn create(
        self: &Arc<Self>,
        request: v1::CreateBackupScheduleRequest,
    ) -> Result<v1::BackupSchedule, ControlError> {
        let name = request::name("name", &request.name)?;
        if name.len() > LONGEST_NAME {
            return Err(ControlError::invalid("name", format!("longer than {LONGEST_NAME} characters")));
        }
        let uuid = request::optional_uuid("uuid", &request.uuid)?;
        let parsed = Schedule::parse(&request.cron);
        let cron = parsed.map_err(|error| ControlError::invalid("cron", error.reason()))?.to_string();
        if !(1..=MOST_RETAINED).contains(&request.retain) {
            return Err(ControlError::invalid("retain", format!("1 to {MOST_RETAINED}")));
        }
        let (compression, block_size) = packing(&request.compression, request.block_size_bytes)?;
        let labels = labels(request.labels)?;
        let _lock = self.locks.lock(()).await;
        let volume = self.volumes.free_uuid_of(&request.volume)?;
        let volume_name = self.volumes.name_of(volume)?;
        let target = match request.target.as_str() {
            "" => None,
            target => Some(self.targets.find(target)?.uuid),
        };
        let backup_volume = or(&request.backup_volume, &volume_name);
        if target.is_some() {
            check_backup_volume(&backup_volume)?;
        }
        let record = ScheduleRecord {
            uuid: uuid.unwrap_or_else(Uuid::new_v4),
            name: name.clone(),
            volume,
            volume_name,
            cron,
            target,
            backup_volume,
            retain: request.retain,
            labels,
            compression,
            block_size,
            created_at: request::unix_milliseconds(),
            last_due: None,
            run: None,
            snapshots: Vec::new(),
            last_operation: String::new(),
            last_error: String::new(),
        };
        if let Ok(existing) = self.find(&name) {
            existing.compare(&record, uuid)?;
            return self.get(&name);
        }
        if self.known().contains_key(&record.uuid) {
            return Err(ControlError::invalid("uuid", "another schedule has it"));
        }
        if self.known().len() >= MOST {
            return Err(ControlError::invalid("name", format!("there are {MOST} schedules already")));
        }
        self.records.change(record.uuid, None, &record).await.map_err(|unchanged| unchanged.error)?;
        let uuid = record.uuid;
        self.known().insert(uuid, Entry { record, task: None });
        self.tell(uuid);
        self.spawn(uuid);
        self.get(&name)
    }

    pub(crate) fn list(
        &self,
        request: v1::ListBackupSchedulesRequest,
    ) -> Result<v1::ListBackupSchedulesResponse, ControlError> {
        let volume = request::optional_uuid("volume_uuid", &request.volume_uuid)?;
        let resource_version = self.versions.version();
        let records: Vec<_> = {
            let known = self.known();
            let records = known.values().map(|entry| &entry.record);
            records.filter(|record| volume.is_none_or(|volume| record.volume == volume)).cloned().collect()
        };
        let mut schedules: Vec<_> = records.iter().map(|record| self.describe(record)).collect();
        schedules.sort_by(|one, other| (&one.name, &one.uuid).cmp(&(&other.name, &other.uuid)));
        let wanted = Wanted { size: request.page_size, token: request.page_token };
        let list = format!("schedules of {}", request.volume_uuid);
        let (schedules, next_page_token) =
            pages::page(&list, schedules, |schedule: &v1::BackupSchedule| [&schedule.name, &schedule.uuid], &wanted)?;
        Ok(v1::ListBackupSchedulesResponse { schedules, next_page_token, resource_version })
    }

    /// The schedules that there are, then what becomes of them.
    pub(crate) fn watch(
        &self,
        request: &v1::WatchBackupSchedulesRequest,
    ) -> Result<ChangeStream<v1::BackupScheduleChange>, ControlError> {
        let only = request::optional_uuid("schedule_uuid", &request.schedule_uuid)?.map(|uuid| uuid.to_string());
        let follower = self.versions.follow(&request.resource_version)?;
        Ok(stream(follower, move |Change { kind, object, version }| match &object {
            Some(schedule) if only.as_ref().is_some_and(|only| *only != schedule.uuid) => Told::Nothing,
            _ => {
                let message =
                    v1::BackupScheduleChange { kind: kind.into(), schedule: object, resource_version: version };
                Told::Message(message)
            }
        }))
    }

    /// Ends all watches.
    pub(super) fn end_watches(&self) {
        self.versions.end();
    }

    /// Tells those who follow how one is now.
    fn tell(&self, uuid: Uuid) {
        if let Ok(record) = self.find(&uuid.to_string()) {
            self.versions.set(&uuid.to_string(), self.describe(&record));
        }
    }

    pub(crate) fn get(&self, schedule: &str) -> Result<v1::BackupSchedule, ControlError> {
        Ok(self.describe(&self.find(schedule)?))
    }

    /// Ends a schedule; what it has made stays. An absent one is a success (I42).
    pub(crate) async fn delete(&self, request: v1::DeleteBackupScheduleRequest) -> Result<(), ControlError> {
        let expected = request::optional_uuid("expected_uuid", &request.expected_uuid)?;
        let _lock = self.locks.lock(()).await;
        let Ok(record) = self.find(&request.schedule) else { return Ok(()) };
        if expected.is_some_and(|expected| expected != record.uuid) {
            return Err(ControlError::other_uuid("schedule", &record.name, record.uuid));
        }
        let task = self.known().get_mut(&record.uuid).and_then(|entry| entry.task.take());
        if let Some(task) = task {
            task.abort();
            // Cancelled is what it was asked to be.
            let _ = task.await;
        }
        self.records.remove(record.uuid).await?;
        self.known().remove(&record.uuid);
        self.versions.remove(&record.uuid.to_string());
        Ok(())
    }

    /// The schedule that uses a target, by name.
    pub(super) fn user_of(&self, target: Uuid) -> Option<String> {
        let known = self.known();
        let user = known.values().find(|entry| entry.record.target == Some(target));
        user.map(|entry| format!("schedule {}", entry.record.name))
    }

    fn spawn(self: &Arc<Self>, uuid: Uuid) {
        let schedules = Arc::clone(self);
        let task = tokio::spawn(async move { schedules.keep(uuid).await });
        if let Some(entry) = self.known().get_mut(&uuid) {
            entry.task = Some(task);
        }
    }

    /// Runs whenever it is due.
    async fn keep(self: Arc<Self>, uuid: Uuid) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let Ok(record) = self.find(&uuid.to_string()) else { return };
            if record.run.is_none() {
                let Some(due) = record.next_due() else { return };
                let now = SystemTime::now();
                if let Ok(wait) = due.duration_since(now)
                    && !wait.is_zero()
                {
                    // The clock may be set meanwhile.
                    tokio::time::sleep(wait.min(LOOK)).await;
                    continue;
                }
            }
            let why = match panics::caught(self.run(record)).await {
                Ok(Ok(())) => {
                    backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(panic) => format!("its task ended by a panic: {panic}"),
            };
            tracing::warn!(schedule = %uuid, error = %why, "a schedule's run waits");
            if let Some(entry) = self.known().get_mut(&uuid) {
                entry.record.last_error = why;
            }
            self.tell(uuid);
            backoff.wait().await;
        }
    }

    /// One run, or the rest of one.
    async fn run(&self, mut record: ScheduleRecord) -> Result<(), ControlError> {
        let run = match record.run.clone() {
            Some(run) => run,
            None => {
                let now = SystemTime::now();
                let time: String = time::format(now).chars().filter(|digit| digit.is_ascii_alphanumeric()).collect();
                let name = format!("{}-{time}", record.name);
                let run = Run { name, snapshot: Uuid::new_v4(), job: Uuid::new_v4() };
                record.last_due = Some(milliseconds(now));
                record.run = Some(run.clone());
                self.keep_record(&record).await?;
                run
            }
        };
        self.volumes.free_uuid_of(&record.volume.to_string())?;
        if !record.snapshots.contains(&run.snapshot) {
            self.engines.snapshot(record.volume, &run.snapshot.to_string(), &run.name).await?;
            record.snapshots.push(run.snapshot);
            self.keep_record(&record).await?;
        }
        let went_well = match record.target {
            None => Ok(()),
            Some(target) => self.back_up(&mut record, &run, target).await?,
        };
        match &went_well {
            Ok(()) => self.keep_newest(&mut record).await?,
            Err(_) => self.delete_snapshot(&mut record, run.snapshot).await?,
        }
        record.last_error = went_well.err().unwrap_or_default();
        record.run = None;
        self.keep_record(&record).await
    }

    /// Backs the snapshot up and waits for the end. The inner error: why the backup failed for good.
    async fn back_up(
        &self,
        record: &mut ScheduleRecord,
        run: &Run,
        target: Uuid,
    ) -> Result<Result<(), String>, ControlError> {
        if self.jobs.describe(run.job).is_none() {
            let job = self.job(record, run, target).await?;
            record.last_operation = job.id();
            self.keep_record(record).await?;
            let _lock = self.jobs.lock().await;
            self.jobs.begin(job).await?;
        }
        let ended = loop {
            match self.jobs.end_of(run.job) {
                Some(ended) => break ended,
                None if self.jobs.describe(run.job).is_none() => return Ok(Err("its record is gone".to_owned())),
                None => tokio::time::sleep(POLL).await,
            }
        };
        if ended.how != How::Succeeded {
            return Ok(Err(ended.reason));
        }
        if let Err(error) = self.prune(record, target).await {
            // The next run does it.
            tracing::warn!(schedule = %record.name, %error, "old backups stay for now");
        }
        Ok(Ok(()))
    }

    async fn job(&self, schedule: &ScheduleRecord, run: &Run, target: Uuid) -> Result<JobRecord, ControlError> {
        let snapshot = self.engines.find_snapshot(schedule.volume, &run.snapshot.to_string()).await?;
        let mut labels = schedule.labels.clone();
        labels.insert(retain::LABEL.to_owned(), schedule.name.clone());
        let backup = Backup {
            volume: schedule.volume,
            volume_name: schedule.volume_name.clone(),
            snapshot: snapshot.uuid,
            snapshot_name: snapshot.name,
            snapshot_created: snapshot.created,
            labels,
            compression: schedule.compression,
            block_size: schedule.block_size,
            full: false,
        };
        let target = self.targets.find(&target.to_string())?;
        Ok(record(Some(run.job), &target, &schedule.backup_volume, &run.name, Work::Backup(backup)))
    }

    /// Removes the backups that are too many.
    async fn prune(&self, record: &ScheduleRecord, target: Uuid) -> Result<(), String> {
        let opener = self.targets.opener(target);
        let listed = inspect::backups(&opener, &record.backup_volume).await.map_err(|error| error.to_string())?;
        let active = self.jobs.select(|job| job.ended.is_none() && job.target == target);
        let kept = listed.into_iter().filter_map(|listed| {
            let config = listed.config.ok()?;
            Some(Kept {
                schedule: config.labels.as_ref().and_then(|labels| labels.get(retain::LABEL)).cloned(),
                taken: time::parse(&config.snapshot_created)?,
                is_complete: config.is_complete(),
                is_in_use: active.iter().any(|job| job.is_about(target, &record.backup_volume, &listed.name)),
                name: listed.name,
            })
        });
        let kept: Vec<_> = kept.collect();
        let target = self.targets.find(&target.to_string()).map_err(|error| error.to_string())?;
        for name in retain::removals(&kept, &record.name, record.retain as usize) {
            let _lock = self.jobs.lock().await;
            let job = super::record(None, &target, &record.backup_volume, &name, Work::Delete);
            self.jobs.begin(job).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Of snapshots for backups the newest stays, on which the next backup builds; of others as many as are wanted.
    async fn keep_newest(&self, record: &mut ScheduleRecord) -> Result<(), ControlError> {
        let keep = if record.target.is_some() { 1 } else { record.retain as usize };
        let surplus = record.snapshots.len().saturating_sub(keep);
        let old = record.snapshots[..surplus].to_vec();
        for snapshot in old {
            self.delete_snapshot(record, snapshot).await?;
        }
        Ok(())
    }

    async fn delete_snapshot(&self, record: &mut ScheduleRecord, snapshot: Uuid) -> Result<(), ControlError> {
        // None there is no error.
        self.engines.change(record.volume, VolumeChange::DeleteSnapshot(snapshot)).await?;
        record.snapshots.retain(|known| *known != snapshot);
        self.keep_record(record).await
    }

    async fn keep_record(&self, record: &ScheduleRecord) -> Result<(), ControlError> {
        let old = self.find(&record.uuid.to_string())?;
        self.records.change(record.uuid, Some(&old), record).await.map_err(|unchanged| unchanged.error)?;
        if let Some(entry) = self.known().get_mut(&record.uuid) {
            entry.record = record.clone();
        }
        self.tell(record.uuid);
        Ok(())
    }

    fn find(&self, schedule: &str) -> Result<ScheduleRecord, ControlError> {
        let uuid = Uuid::try_parse(schedule).ok();
        let known = self.known();
        let found = known.values().find(|entry| Some(entry.record.uuid) == uuid || entry.record.name == schedule);
        found.map(|entry| entry.record.clone()).ok_or_else(|| ControlError::not_found("schedule", schedule))
    }

    fn describe(&self, record: &ScheduleRecord) -> v1::BackupSchedule {
        let target = record.target.map(|target| {
            let found = self.targets.find(&target.to_string());
            found.map_or_else(|_| target.to_string(), |found| found.name)
        });
        v1::BackupSchedule {
            uuid: record.uuid.to_string(),
            name: record.name.clone(),
            volume: record.volume_name.clone(),
            volume_uuid: record.volume.to_string(),
            cron: record.cron.clone(),
            target: target.unwrap_or_default(),
            retain: record.retain,
            labels: record.labels.clone(),
            backup_volume: record.backup_volume.clone(),
            next_due_unix_ms: record.next_due().map(milliseconds),
            last_due_unix_ms: record.last_due,
            last_operation: record.last_operation.clone(),
            last_error: record.last_error.clone(),
            created_at_unix_ms: record.created_at,
            compression: record.compression.name().to_owned(),
            block_size_bytes: record.block_size,
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Uuid, Entry>> {
        // Poisoned or not, the map is whole: no change of it has several steps.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ScheduleRecord {
    /// When it is due: after its last run, so that what was missed meanwhile is one run.
    fn next_due(&self) -> Option<SystemTime> {
        let since = u64::try_from(self.last_due.unwrap_or(self.created_at)).unwrap_or(0);
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(since);
        Schedule::parse(&self.cron).ok()?.next_after(since)
    }

    fn compare(&self, wanted: &Self, uuid: Option<Uuid>) -> Result<(), ControlError> {
        let shown = |target: Option<Uuid>| target.map_or_else(|| "none".to_owned(), |target| target.to_string());
        Comparison::default()
            .optional("uuid", self.uuid, uuid)
            .field("volume", self.volume, wanted.volume)
            .field("cron", &self.cron, &wanted.cron)
            .field("target", shown(self.target), shown(wanted.target))
            .field("retain", self.retain, wanted.retain)
            .field("labels", format!("{:?}", self.labels), format!("{:?}", wanted.labels))
            .field("backup_volume", &self.backup_volume, &wanted.backup_volume)
            .field("compression", self.compression.name(), wanted.compression.name())
            .field("block_size_bytes", self.block_size, wanted.block_size)
            .finish("schedule", &self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_were_missed_are_one() {
        let day = 24 * 60 * 60 * 1000;
        let mut record = ScheduleRecord {
            uuid: Uuid::from_u128(1),
            name: "daily".to_owned(),
            volume: Uuid::from_u128(2),
            volume_name: "v".to_owned(),
            cron: "0 0 * * *".to_owned(),
            target: None,
            backup_volume: String::new(),
            retain: 1,
            labels: BTreeMap::new(),
            compression: Compression::default(),
            block_size: 0,
            created_at: 10 * day + 5,
            last_due: None,
            run: None,
            snapshots: Vec::new(),
            last_operation: String::new(),
            last_error: String::new(),
        };
        assert_eq!(record.next_due().map(milliseconds), Some(11 * day));
        // Due on the 11th, away until the middle of the 14th: one run then, and the next at its end.
        record.last_due = Some(14 * day + day / 2);
        assert_eq!(record.next_due().map(milliseconds), Some(15 * day));
    }
}
