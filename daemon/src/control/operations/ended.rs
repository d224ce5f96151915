//! Operations that have ended, on record: the work itself has none any more.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto::v1::{self, OperationKind, OperationState};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::state::{Records, StateError};

/// Those that are kept.
pub(super) const KEPT: usize = 256;

/// An operation that has ended, as the state directory knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndedRecord {
    id: String,
    kind: String,
    state: String,
    reason: String,
    done: Option<u64>,
    total: Option<u64>,
    /// Milliseconds since the Unix epoch.
    started_at: Option<i64>,
    ended_at: i64,
    volume: String,
    volume_uuid: String,
    replica_uuid: String,
    node: String,
    store: String,
    store_uuid: String,
    lvol_uuid: String,
    /// Of what moves backups.
    #[serde(default)]
    backup: Backup,
}

/// The backup that an operation was about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Backup {
    target: String,
    volume: String,
    name: String,
    snapshot_uuid: String,
    failure: String,
}

/// All of them.
pub(super) struct History {
    records: Records<EndedRecord>,
    ended: Mutex<BTreeMap<String, EndedRecord>>,
}

impl History {
    pub(super) fn load(records: Records<EndedRecord>) -> Result<Self, StateError> {
        let loaded = records.load()?;
        for error in loaded.failed {
            tracing::error!(%error, "the record of an operation that ended is left out");
        }
        let ended = loaded.records.into_values().map(|record| (record.id.clone(), record)).collect();
        Ok(Self { records, ended: Mutex::new(ended) })
    }

    /// All that have ended, as the API shows them.
    pub(super) fn all(&self) -> Vec<v1::Operation> {
        self.ended().values().map(EndedRecord::operation).collect()
    }

    /// Puts one on record. Returns the ids of those that went for it.
    pub(super) async fn keep(&self, operation: &v1::Operation) -> Result<Vec<String>, StateError> {
        let record = EndedRecord::of(operation);
        self.records.store(file(&record.id), &record).await?;
        let pruned: Vec<_> = {
            let mut ended = self.ended();
            ended.insert(record.id.clone(), record);
            let mut ages: Vec<_> = ended.values().map(|record| (record.ended_at, record.id.clone())).collect();
            ages.sort();
            let excess = ages.len().saturating_sub(KEPT);
            ages.into_iter().take(excess).map(|(_, id)| id).collect()
        };
        for id in &pruned {
            self.forget(id).await?;
        }
        Ok(pruned)
    }

    /// Takes one from the record. An absent one is a success.
    pub(super) async fn forget(&self, id: &str) -> Result<(), StateError> {
        if self.ended().remove(id).is_some() {
            self.records.remove(file(id)).await?;
        }
        Ok(())
    }

    fn ended(&self) -> MutexGuard<'_, BTreeMap<String, EndedRecord>> {
        // Poisoned or not, the map is whole: no change of it has several steps.
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What its file is called.
fn file(id: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, id.as_bytes())
}

impl EndedRecord {
    fn of(operation: &v1::Operation) -> Self {
        let v1::Operation { id, reason, volume, volume_uuid, replica_uuid, node, store, store_uuid, lvol_uuid, .. } =
            operation.clone();
        Self {
            id,
            kind: operation.kind().as_str_name().to_owned(),
            state: operation.state().as_str_name().to_owned(),
            reason,
            done: operation.done_bytes,
            total: operation.total_bytes,
            started_at: operation.started_at_unix_ms,
            ended_at: operation.ended_at_unix_ms.unwrap_or_default(),
            volume,
            volume_uuid,
            replica_uuid,
            node,
            store,
            store_uuid,
            lvol_uuid,
            backup: Backup {
                target: operation.target.clone(),
                volume: operation.backup_volume.clone(),
                name: operation.backup.clone(),
                snapshot_uuid: operation.snapshot_uuid.clone(),
                failure: operation.failure.clone(),
            },
        }
    }

    fn operation(&self) -> v1::Operation {
        let Self { id, reason, volume, volume_uuid, replica_uuid, node, store, store_uuid, lvol_uuid, backup, .. } =
            self.clone();
        v1::Operation {
            id,
            // Of a newer version: its name is all that is known.
            kind: OperationKind::from_str_name(&self.kind).unwrap_or_default().into(),
            state: OperationState::from_str_name(&self.state).unwrap_or_default().into(),
            reason,
            done_bytes: self.done,
            total_bytes: self.total,
            started_at_unix_ms: self.started_at,
            ended_at_unix_ms: Some(self.ended_at),
            can_cancel: false,
            volume,
            volume_uuid,
            replica_uuid,
            node,
            store,
            store_uuid,
            lvol_uuid,
            target: backup.target,
            backup_volume: backup.volume,
            backup: backup.name,
            snapshot_uuid: backup.snapshot_uuid,
            failure: backup.failure,
            remaining_ms: None,
            next_try_unix_ms: None,
        }
    }
}
