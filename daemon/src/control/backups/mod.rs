//! Backups: targets, the jobs that write to them and read from them, and what they have. `docs/backup.md` tells the format and the states.
//!
//! The library `backup` does the work, on the control side's runtime. Here is what it is given: snapshots and volumes of this node ([`source`],
//! [`device`]), targets with credentials ([`targets`]), a durable record and a place among others for each job ([`jobs`]).

mod catalog;
mod credentials;
mod device;
mod errors;
mod job;
mod jobs;
mod operations;
mod schedules;
mod source;
mod standbys;
mod tally;
mod targets;
mod watching;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;

use backup::block::{self, Compression};
use backup::create::Options;
use backup::format::layout::{VolumeFolder, is_name};
use backup::{Kind, Limit};
use proto::v1::{self, EventSubject};
use tokio::sync::Notify;
use uuid::Uuid;

pub(crate) use self::job::JobRecord;
use self::job::{Backup, How, Restore, Work};
use self::jobs::Jobs;
pub(crate) use self::operations::BackupWork;
use self::schedules::Schedules;
use self::standbys::Standbys;
pub(crate) use self::tally::Counts;
pub(crate) use self::targets::TargetRecord;
use self::targets::Targets;
use self::watching::Watched;
use self::work::Worker;
use super::error::{Comparison, ControlError};
use super::events::{Events, Happened};
use super::volumes::Hold;
use super::{Engines, Volumes, request};
use crate::data::SnapshotFacts;
use crate::state::{StateDirectory, StateError};

/// Labels of a backup, and bytes of one.
const MOST_LABELS: usize = 64;
const LONGEST_LABEL: usize = 4096;
/// What labels of the daemon's own begin with.
const OWN_LABELS: &str = "ashlar.";

/// What backups need of the node.
pub(crate) struct Surroundings {
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) engines: Arc<Engines>,
    pub(crate) events: Arc<Events>,
    /// Bytes a second that a job may read or fetch, and that all of them together may; 0 is no limit.
    pub(crate) rates: (u64, u64),
    /// The number of this run of the daemon.
    pub(crate) run: u64,
    /// Who looks at operations.
    pub(crate) told: Arc<Notify>,
}

/// Everything about backups on this node.
pub(crate) struct Backups {
    pub(crate) targets: Arc<Targets>,
    pub(super) jobs: Arc<Jobs>,
    pub(crate) standbys: Arc<Standbys>,
    pub(crate) schedules: Arc<Schedules>,
    watched: Arc<Watched>,
    volumes: Arc<Volumes>,
    engines: Arc<Engines>,
    events: Arc<Events>,
}

impl Backups {
    /// Reads the records and goes on with what had not ended.
    pub(crate) fn start(here: Surroundings, state: &StateDirectory) -> Result<Arc<Self>, StateError> {
        let run = here.run;
        let targets = Targets::load(state.records("backup-targets")?, run)?;
        let (rate, all) = here.rates;
        let options = Options { rate: Some(rate), shared: Limit::new(all), ..Options::default() };
        let worker = Worker {
            targets: Arc::clone(&targets),
            volumes: Arc::clone(&here.volumes),
            engines: Arc::clone(&here.engines),
            options: options.clone(),
        };
        let (records, folder) = (state.records("backups")?, state.path().join("backup-work"));
        let jobs = Jobs::load(records, folder, worker, Arc::clone(&here.events), here.told)?;
        let standbys = Standbys::load(
            state.records("standbys")?,
            state.path().join("standby-work"),
            Arc::clone(&targets),
            (Arc::clone(&here.volumes), Arc::clone(&here.engines)),
            options,
            run,
        )?;
        let schedules = Schedules::load(
            state.records("backup-schedules")?,
            (Arc::clone(&targets), Arc::clone(&jobs)),
            (Arc::clone(&here.volumes), Arc::clone(&here.engines)),
            run,
        )?;
        jobs.resume();
        standbys.resume();
        schedules.resume();
        let Surroundings { volumes, engines, events, .. } = here;
        let watched = Watched::new(Arc::clone(&targets), Arc::clone(&jobs), run);
        Ok(Arc::new(Self { targets, jobs, standbys, schedules, watched, volumes, engines, events }))
    }

    /// Ends all watches.
    pub(crate) fn end_watches(&self) {
        self.targets.end_watches();
        self.standbys.end_watches();
        self.schedules.end_watches();
        self.watched.end();
    }

    pub(crate) async fn create_target(
        &self,
        request: v1::CreateBackupTargetRequest,
    ) -> Result<v1::BackupTarget, ControlError> {
        self.targets.create(request).await
    }

    pub(crate) fn list_targets(
        &self,
        request: v1::ListBackupTargetsRequest,
    ) -> Result<v1::ListBackupTargetsResponse, ControlError> {
        self.targets.list(request)
    }

    pub(crate) fn get_target(&self, target: &str) -> Result<v1::BackupTarget, ControlError> {
        self.targets.get(target)
    }

    pub(crate) async fn check_target(&self, target: &str) -> Result<v1::BackupTargetCheck, ControlError> {
        self.targets.check(target).await
    }

    /// Forgets a target that nothing here uses.
    pub(crate) async fn delete_target(&self, request: v1::DeleteBackupTargetRequest) -> Result<(), ControlError> {
        // Nothing that would use it begins meanwhile.
        let _lock = self.jobs.lock().await;
        self.targets.delete(request, |target| self.user_of(target)).await
    }

    fn user_of(&self, target: Uuid) -> Option<String> {
        let active = self.jobs.select(|record| record.ended.is_none() && record.target == target);
        active
            .first()
            .map(|record| format!("operation {}", record.id()))
            .or_else(|| self.standbys.user_of(target))
            .or_else(|| self.schedules.user_of(target))
    }

    pub(crate) async fn create_standby(&self, request: v1::CreateStandbyRequest) -> Result<v1::Standby, ControlError> {
        // Its target stays meanwhile.
        let _lock = self.jobs.lock().await;
        self.standbys.create(request).await
    }

    pub(crate) async fn create_schedule(
        &self,
        request: v1::CreateBackupScheduleRequest,
    ) -> Result<v1::BackupSchedule, ControlError> {
        // Its target stays meanwhile.
        let _lock = self.jobs.lock().await;
        self.schedules.create(request).await
    }

    /// Begins a backup, or returns the one that is there.
    pub(crate) async fn create(&self, request: v1::CreateBackupRequest) -> Result<v1::Operation, ControlError> {
        let target = self.targets.find(&request.target)?;
        let volume = self.volumes.free_uuid_of(&request.volume)?;
        let volume_name = self.volumes.name_of(volume)?;
        let backup_volume = or(&request.backup_volume, &volume_name);
        check_backup_volume(&backup_volume)?;
        let uuid = request::optional_uuid("uuid", &request.uuid)?;
        let labels = labels(request.labels)?;
        let (compression, block_size) = packing(&request.compression, request.block_size_bytes)?;
        let same = |name: &str| {
            self.same_work(target.uuid, &backup_volume, name, |record| matches!(record.work, Work::Backup(_)))
        };
        // Asked for again its snapshot may be gone.
        let known = Some(request.name.as_str()).filter(|name| !name.is_empty()).and_then(same);
        let wanted = |snapshot: &SnapshotFacts| Backup {
            volume,
            volume_name: volume_name.clone(),
            snapshot: snapshot.uuid,
            snapshot_name: snapshot.name.clone(),
            snapshot_created: snapshot.created,
            labels: labels.clone(),
            compression,
            block_size,
            full: request.full,
        };
        if let Some(known) = known.filter(|known| !may_begin_again(known)) {
            compare_backup(&known, uuid, &request.snapshot, |there| Backup {
                volume,
                volume_name: there.volume_name.clone(),
                labels: labels.clone(),
                compression,
                block_size,
                full: request.full,
                ..there.clone()
            })?;
            return self.describe(&known);
        }
        let found = self.engines.find_snapshot(volume, &request.snapshot).await;
        let snapshot = found.inspect_err(|error| self.note_refusal(&volume_name, volume, error))?;
        let _lock = self.jobs.lock().await;
        let name = match request.name.as_str() {
            "" => format!("backup-{}", &snapshot.uuid.simple().to_string()[..16]),
            name => checked_name("name", name)?,
        };
        let known = same(&name);
        if let Some(known) = known.as_ref().filter(|known| !may_begin_again(known)) {
            compare_backup(known, uuid, &snapshot.uuid.to_string(), |_| wanted(&snapshot))?;
            return self.describe(known);
        }
        let again = known.map(|known| known.uuid);
        let record = record(uuid.or(again), &target, &backup_volume, &name, Work::Backup(wanted(&snapshot)));
        if let Some(again) = again.filter(|again| *again != record.uuid) {
            self.jobs.forget(|record| record.uuid == again).await;
        }
        self.jobs.begin(record).await
    }

    /// A snapshot that is gone is told and counted, and nothing is left of the request.
    fn note_refusal(&self, name: &str, volume: Uuid, error: &ControlError) {
        if error.is_not_found() {
            self.jobs.tally.refused("backup", Kind::NotFound);
            let detail = error.to_string();
            self.events.note(Happened::of(EventSubject::Volume, name, volume, "backup refused", &detail));
        }
    }

    /// Begins to remove a backup.
    pub(crate) async fn delete(&self, request: v1::DeleteBackupRequest) -> Result<v1::Operation, ControlError> {
        let expected = request::optional_uuid("expected_uuid", &request.expected_uuid)?;
        let target = self.targets.find(&request.target)?;
        check_backup_volume(&request.backup_volume)?;
        let name = checked_name("name", &request.name)?;
        if let Some(expected) = expected {
            self.check_uuid(&target, &request.backup_volume, &name, expected).await?;
        }
        let _lock = self.jobs.lock().await;
        let is_same = |record: &JobRecord| record.work == Work::Delete && record.ended.is_none();
        if let Some(known) = self.same_work(target.uuid, &request.backup_volume, &name, is_same) {
            return self.describe(&known);
        }
        // What ended well before is not there from now on: the same request makes it again.
        let (uuid, volume) = (target.uuid, request.backup_volume.clone());
        self.jobs.forget(|record| record.is_about(uuid, &volume, &name)).await;
        self.jobs.begin(record(None, &target, &request.backup_volume, &name, Work::Delete)).await
    }

    /// An error if the backup there is another one than the caller means (I42). None there is success.
    async fn check_uuid(
        &self,
        target: &TargetRecord,
        volume: &str,
        name: &str,
        expected: Uuid,
    ) -> Result<(), ControlError> {
        let opener = self.targets.opener(target.uuid);
        let found = match backup::inspect::backup(&opener, volume, name).await {
            Ok(found) => found.config.ok().and_then(|config| config.labels).unwrap_or_default(),
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            Err(error) => return Err(errors::control_error(&error)),
        };
        let there = found.get(catalog::UUID_LABEL).map_or("none", String::as_str);
        match there == expected.to_string() {
            true => Ok(()),
            false => Err(ControlError::other_uuid("backup", name, there)),
        }
    }

    /// Begins to read all of a backup.
    pub(crate) async fn verify(&self, request: v1::VerifyBackupRequest) -> Result<v1::Operation, ControlError> {
        let target = self.targets.find(&request.target)?;
        check_backup_volume(&request.backup_volume)?;
        let name = checked_name("name", &request.name)?;
        let _lock = self.jobs.lock().await;
        let is_same = |record: &JobRecord| record.work == Work::Verify && record.ended.is_none();
        if let Some(known) = self.same_work(target.uuid, &request.backup_volume, &name, is_same) {
            return self.describe(&known);
        }
        self.jobs.begin(record(None, &target, &request.backup_volume, &name, Work::Verify)).await
    }

    /// Begins a restore, or returns the one that goes on.
    pub(crate) async fn restore(&self, request: v1::RestoreBackupRequest) -> Result<v1::Operation, ControlError> {
        let target = self.targets.find(&request.target)?;
        check_backup_volume(&request.backup_volume)?;
        let name = checked_name("name", &request.name)?;
        let volume_name = request::name("volume", &request.volume)?;
        let wanted = request::optional_uuid("uuid", &request.uuid)?;
        let _lock = self.jobs.lock().await;
        let to_it = |record: &JobRecord| match &record.work {
            Work::Restore(restore) => record.ended.is_none() && restore.volume_name == volume_name,
            _ => false,
        };
        let active = self.jobs.select(to_it).into_iter().next();
        let there = self.volumes.uuid_of(&volume_name).ok();
        let restore = Restore {
            volume: active
                .as_ref()
                .and_then(|active| Some(active.volume()?.0))
                .or(there)
                .or(wanted)
                .unwrap_or_else(Uuid::new_v4),
            volume_name: volume_name.clone(),
            replace: request.replace,
            nodes: request.nodes,
            replica_count: request.replica_count,
            store: request.store,
        };
        if wanted.is_some_and(|wanted| wanted != restore.volume) {
            return Err(ControlError::other_uuid("volume", &volume_name, restore.volume));
        }
        if let Some(active) = active {
            let Work::Restore(known) = &active.work else {
                return Err(ControlError::failed("STATE", "a restore is no restore"));
            };
            Comparison::default()
                .field("target", &active.target_name, &target.name)
                .field("backup_volume", &active.backup_volume, &request.backup_volume)
                .field("name", &active.backup, &name)
                .field("replace", known.replace, restore.replace)
                .field("nodes", known.nodes.join(", "), restore.nodes.join(", "))
                .field("replica_count", known.replica_count, restore.replica_count)
                .field("store", &known.store, &restore.store)
                .finish("restore to volume", &volume_name)?;
            return self.describe(&active);
        }
        let work = Work::Restore(restore.clone());
        let record = record(None, &target, &request.backup_volume, &name, work);
        match (there, restore.replace) {
            (None, false) => {}
            (None, true) => return Err(ControlError::not_found("volume", &volume_name)),
            (Some(_), false) => {
                let text = format!("volume `{volume_name}` is there: say so if all that it holds is to be replaced");
                return Err(ControlError::precondition("EXISTS", text).with("volume", &volume_name));
            }
            (Some(volume), true) => {
                let has_ended = |work: Uuid| self.jobs.end_of(work).is_some() || self.jobs.describe(work).is_none();
                self.volumes.hold(volume, Hold::Restore(record.uuid), has_ended).await?;
            }
        }
        self.jobs.begin(record).await
    }

    fn same_work(
        &self,
        target: Uuid,
        volume: &str,
        backup: &str,
        is_same: impl Fn(&JobRecord) -> bool,
    ) -> Option<JobRecord> {
        let same = self.jobs.select(|record| record.is_about(target, volume, backup) && is_same(record));
        same.into_iter().next()
    }

    fn describe(&self, record: &JobRecord) -> Result<v1::Operation, ControlError> {
        self.jobs.describe(record.uuid).ok_or_else(|| ControlError::not_found("operation", record.id()))
    }

    /// What metrics tell.
    pub(crate) fn facts(&self) -> Facts {
        let mut records = self.jobs.select(|_| true);
        records.sort_by_key(|record| record.ended.as_ref().map_or(i64::MAX, |ended| ended.at));
        let newest = jobs::newest_of(&records).filter_map(|(volume, record)| match &record.work {
            // Those of volumes that are gone have nobody who waits for the next one.
            Work::Backup(backup) => Some((self.volumes.name_of(volume).ok()?, volume, backup.snapshot_created)),
            _ => None,
        });
        Facts {
            newest: newest.collect(),
            active: self.jobs.active(),
            standbys: self.standbys.waiting(),
            counts: self.jobs.tally.counts(),
        }
    }
}

/// What metrics tell of backups.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Volumes with the time of the snapshot of their newest good backup, in seconds since the Unix epoch.
    pub(crate) newest: Vec<(String, Uuid, u64)>,
    /// Jobs that have not ended, and those of them that wait after a failed attempt, by the work.
    pub(crate) active: BTreeMap<&'static str, (u64, u64)>,
    /// Standbys, and whether they wait after a failed attempt.
    pub(crate) standbys: Vec<(String, bool)>,
    pub(crate) counts: Counts,
}

fn record(uuid: Option<Uuid>, target: &TargetRecord, volume: &str, backup: &str, work: Work) -> JobRecord {
    JobRecord {
        uuid: uuid.unwrap_or_else(Uuid::new_v4),
        created_at: request::unix_milliseconds(),
        target: target.uuid,
        target_name: target.name.clone(),
        url: target.url.clone(),
        backup_volume: volume.to_owned(),
        backup: backup.to_owned(),
        work,
        cancelled: false,
        ended: None,
    }
}

/// One that failed or was cancelled may be begun again under its name.
fn may_begin_again(record: &JobRecord) -> bool {
    record.ended.as_ref().is_some_and(|ended| ended.how != How::Succeeded)
}

/// Whether the backup that is there is the one that a request means (I30).
fn compare_backup(
    existing: &JobRecord,
    uuid: Option<Uuid>,
    snapshot: &str,
    wanted: impl Fn(&Backup) -> Backup,
) -> Result<(), ControlError> {
    let Work::Backup(there) = &existing.work else {
        return Err(ControlError::failed("STATE", "a backup is no backup"));
    };
    let wanted = wanted(there);
    let shown = |labels: &BTreeMap<String, String>| format!("{labels:?}");
    // By UUID or name, whichever the caller uses.
    let of = match there.snapshot_name == snapshot {
        true => there.snapshot_name.clone(),
        false => there.snapshot.to_string(),
    };
    Comparison::default()
        .optional("uuid", existing.uuid, uuid)
        .field("volume", there.volume, wanted.volume)
        .field("snapshot", of.as_str(), snapshot)
        .field("labels", shown(&there.labels), shown(&wanted.labels))
        .field("compression", there.compression.name(), wanted.compression.name())
        .field("block_size_bytes", there.block_size, wanted.block_size)
        .field("full", there.full, wanted.full)
        .finish("backup", &existing.backup)
}

fn or(text: &str, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text.to_owned() }
}

fn check_backup_volume(name: &str) -> Result<(), ControlError> {
    let checked = VolumeFolder::new(name).map(drop);
    checked.map_err(|error| ControlError::invalid("backup_volume", error.reason()))
}

fn checked_name(field: &str, name: &str) -> Result<String, ControlError> {
    match is_name(name) {
        true => Ok(name.to_owned()),
        false => {
            let problem = "2 to 255 letters, digits, `.`, `_` and `-`, a letter or digit first";
            Err(ControlError::invalid(field, format!("`{}`: {problem}", name.escape_debug())))
        }
    }
}

fn labels(labels: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ControlError> {
    if labels.len() > MOST_LABELS {
        return Err(ControlError::invalid("labels", format!("more than {MOST_LABELS}")));
    }
    for (key, value) in &labels {
        if key.is_empty() || key.len() + value.len() > LONGEST_LABEL {
            let problem = format!("`{}` is empty or longer than {LONGEST_LABEL} bytes", key.escape_debug());
            return Err(ControlError::invalid("labels", problem));
        }
        if key.starts_with(OWN_LABELS) {
            return Err(ControlError::invalid(
                "labels",
                format!("those that begin with `{OWN_LABELS}` are the daemon's"),
            ));
        }
    }
    Ok(labels)
}

/// How blocks are packed, and their size.
fn packing(compression: &str, block_size: u64) -> Result<(Compression, u64), ControlError> {
    let known = [Compression::Lz4, Compression::Gzip, Compression::None];
    let compression = match compression {
        "" => Compression::default(),
        word => known.into_iter().find(|known| known.name() == word).ok_or_else(|| {
            ControlError::invalid("compression", format!("`{}` is not lz4, gzip or none", word.escape_debug()))
        })?,
    };
    let block_size = if block_size == 0 { block::DEFAULT_SIZE } else { block_size };
    match block::SIZES.contains(&block_size) {
        true => Ok((compression, block_size)),
        false => Err(ControlError::invalid("block_size_bytes", format!("{block_size} is not 2 or 16 MiB"))),
    }
}
