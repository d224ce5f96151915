//! What is on record of a job, and what is known of it while it runs.

use std::collections::BTreeMap;
use std::time::SystemTime;

use backup::block::Compression;
use backup::create::BackupRequest;
use backup::progress::{Phase, Progress, Waiting};
use backup::{Kind, block};
use proto::v1::{self, OperationKind, OperationState};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::catalog::{SNAPSHOT_LABEL, UUID_LABEL};

/// A job as the state directory knows it. What it has done is in a folder of its own, which the backup library keeps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct JobRecord {
    pub(super) uuid: Uuid,
    /// Milliseconds since the Unix epoch.
    pub(super) created_at: i64,
    pub(super) target: Uuid,
    pub(super) target_name: String,
    pub(super) url: String,
    /// The volume as it is called in the target.
    pub(super) backup_volume: String,
    pub(super) backup: String,
    pub(super) work: Work,
    /// Somebody has asked for its end: what it has left in the target goes.
    #[serde(default)]
    pub(super) cancelled: bool,
    #[serde(default)]
    pub(super) ended: Option<Ended>,
}

/// What a job does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Work {
    Backup(Backup),
    Restore(Restore),
    Delete,
    Verify,
}

/// A backup of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Backup {
    pub(super) volume: Uuid,
    pub(super) volume_name: String,
    pub(super) snapshot: Uuid,
    pub(super) snapshot_name: String,
    /// When that was taken, in seconds since the Unix epoch.
    pub(super) snapshot_created: u64,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) compression: Compression,
    pub(super) block_size: u64,
    pub(super) full: bool,
}

/// A restore to a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Restore {
    pub(super) volume: Uuid,
    pub(super) volume_name: String,
    /// The volume was there before.
    pub(super) replace: bool,
    pub(super) nodes: Vec<String>,
    pub(super) replica_count: u32,
    pub(super) store: String,
}

/// How a job ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) how: How,
    /// What kind of failure it was.
    pub(super) failure: Option<Kind>,
    pub(super) reason: String,
    /// Milliseconds since the Unix epoch.
    pub(super) at: i64,
    /// Bytes that were stored, or that the backup has.
    pub(super) bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum How {
    Succeeded,
    Failed,
    Cancelled,
}

impl JobRecord {
    pub(super) fn kind(&self) -> OperationKind {
        match self.work {
            Work::Backup(_) => OperationKind::Backup,
            Work::Restore(_) => OperationKind::Restore,
            Work::Delete => OperationKind::DeleteBackup,
            Work::Verify => OperationKind::VerifyBackup,
        }
    }

    /// The operation's name.
    pub(super) fn id(&self) -> String {
        let word = match self.work {
            Work::Backup(_) => "backup",
            Work::Restore(_) => "restore",
            Work::Delete => "delete-backup",
            Work::Verify => "verify-backup",
        };
        format!("{word}-{}", self.uuid)
    }

    /// The volume of this node that it is about.
    pub(super) fn volume(&self) -> Option<(Uuid, &str)> {
        match &self.work {
            Work::Backup(backup) => Some((backup.volume, &backup.volume_name)),
            Work::Restore(restore) => Some((restore.volume, &restore.volume_name)),
            Work::Delete | Work::Verify => None,
        }
    }

    pub(super) fn has_succeeded(&self) -> bool {
        self.ended.as_ref().is_some_and(|ended| ended.how == How::Succeeded)
    }

    /// Whether both are about the same backup.
    pub(super) fn is_about(&self, target: Uuid, volume: &str, backup: &str) -> bool {
        self.target == target && self.backup_volume == volume && self.backup == backup
    }
}

impl Backup {
    /// The request of the library: in the store a snapshot is called by its UUID, which no other one ever has.
    pub(super) fn request(&self, record: &JobRecord) -> BackupRequest {
        let mut labels = self.labels.clone();
        labels.insert(UUID_LABEL.to_owned(), record.uuid.to_string());
        labels.insert(SNAPSHOT_LABEL.to_owned(), self.snapshot_name.clone());
        let snapshot = self.snapshot.to_string();
        BackupRequest {
            labels,
            compression: self.compression,
            block_size: if self.block_size == 0 { block::DEFAULT_SIZE } else { self.block_size },
            full: self.full,
            ..BackupRequest::new(&record.url, &record.backup_volume, &record.backup, &snapshot)
        }
    }
}

/// A job of this run.
pub(super) struct Job {
    pub(super) record: JobRecord,
    pub(super) now: Now,
    /// What works at it; none before that was spawned, and when it has ended.
    pub(super) task: Option<JoinHandle<()>>,
    /// The operations have seen it under way: from then on its end is news to them.
    pub(super) seen: bool,
}

/// What it does now.
pub(super) enum Now {
    /// It waits for others.
    Queued(&'static str),
    /// It tells itself.
    Working(Progress),
    /// It waits for its next attempt.
    Waiting(Waiting),
}

impl Job {
    pub(super) fn new(record: JobRecord) -> Self {
        let seen = record.ended.is_some();
        Self { record, now: Now::Queued("it was just asked for"), task: None, seen }
    }

    /// Whether it waits after a failed attempt.
    pub(super) fn is_waiting(&self) -> bool {
        match &self.now {
            Now::Queued(_) => false,
            Now::Waiting(_) => true,
            Now::Working(progress) => matches!(progress.state().phase, Phase::Waiting(_)),
        }
    }

    /// As an operation.
    pub(super) fn describe(&self) -> v1::Operation {
        let record = &self.record;
        let volume = record.volume();
        let operation = v1::Operation {
            id: record.id(),
            kind: record.kind().into(),
            started_at_unix_ms: Some(record.created_at),
            can_cancel: record.ended.is_none() && !record.cancelled,
            volume: volume.map_or_else(String::new, |(_, name)| name.to_owned()),
            volume_uuid: volume.map_or_else(String::new, |(uuid, _)| uuid.to_string()),
            target: record.target_name.clone(),
            backup_volume: record.backup_volume.clone(),
            backup: record.backup.clone(),
            snapshot_uuid: match &record.work {
                Work::Backup(backup) => backup.snapshot.to_string(),
                _ => String::new(),
            },
            ..v1::Operation::default()
        };
        match (&record.ended, &self.now) {
            (Some(ended), _) => ended.describe(operation),
            (None, Now::Queued(why)) => waiting(operation, (*why).to_owned()),
            (None, Now::Waiting(why)) => describe_waiting(operation, why),
            (None, Now::Working(progress)) => {
                let state = progress.state();
                let total = (state.total > 0).then_some(state.total);
                let remaining = state.remaining.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
                let operation = v1::Operation {
                    done_bytes: total.map(|_| state.done),
                    total_bytes: total,
                    remaining_ms: remaining,
                    ..operation
                };
                match state.phase {
                    Phase::Waiting(why) => describe_waiting(operation, &why),
                    _ => v1::Operation { state: OperationState::Running.into(), ..operation },
                }
            }
        }
    }
}

fn waiting(operation: v1::Operation, reason: String) -> v1::Operation {
    v1::Operation { state: OperationState::Waiting.into(), reason, ..operation }
}

fn describe_waiting(operation: v1::Operation, why: &Waiting) -> v1::Operation {
    let reason = format!("{} (attempt {}): {}", why.reason, why.attempt, why.kind.advice());
    let operation = v1::Operation {
        next_try_unix_ms: Some(milliseconds(why.next_try)),
        failure: why.kind.to_string(),
        remaining_ms: None,
        ..operation
    };
    waiting(operation, reason)
}

impl Ended {
    fn describe(&self, operation: v1::Operation) -> v1::Operation {
        let state = match self.how {
            How::Succeeded => OperationState::Succeeded,
            How::Failed => OperationState::Failed,
            How::Cancelled => OperationState::Cancelled,
        };
        v1::Operation {
            state: state.into(),
            reason: self.reason.clone(),
            failure: self.failure.map_or_else(String::new, |kind| kind.to_string()),
            ended_at_unix_ms: Some(self.at),
            ..operation
        }
    }
}

/// Milliseconds since the Unix epoch.
pub(super) fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
