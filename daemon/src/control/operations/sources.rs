//! Where each kind of work has its durable record.

use std::sync::Arc;

use proto::v1::{self, MemberState, OperationKind, OperationState, StoreState};
use uuid::Uuid;

use super::{Outcome, Source, not_cancellable};
use crate::control::error::ControlError;
use crate::control::{Deletions, Lvols, Observer, Scrubs, Stores, Volumes, request};

/// The marks of deleted snapshots in their stores.
pub(super) struct Merge {
    pub(super) stores: Arc<Stores>,
    pub(super) lvols: Arc<Lvols>,
}

#[tonic::async_trait]
impl Source for Merge {
    fn kind(&self) -> OperationKind {
        OperationKind::Merge
    }

    async fn under_way(&self) -> Result<Vec<v1::Operation>, ControlError> {
        let lvols = self.lvols.deleting().await?;
        Ok(lvols.into_iter().map(merge).collect())
    }

    async fn outcome(&self, last: &v1::Operation, _: bool) -> Outcome {
        if let Some(waits) = not_open(&self.stores, &last.store_uuid).await {
            return waits;
        }
        match self.lvols.get(&last.lvol_uuid, false).await {
            Ok(lvol) if lvol.deletion.is_none() => Outcome::Cancelled("its deletion was taken back".to_owned()),
            Ok(_) => Outcome::Unknown("it is looked at again".to_owned()),
            // Its store is open and has no such lvol.
            Err(_) => Outcome::Succeeded(String::new()),
        }
    }

    async fn cancel(&self, operation: &v1::Operation) -> Result<(), ControlError> {
        let lvol = operation.lvol_uuid.clone();
        self.lvols.cancel_delete(v1::CancelDeleteLvolRequest { lvol }).await.map(drop)
    }
}

fn merge(lvol: v1::Lvol) -> v1::Operation {
    let deletion = lvol.deletion.clone().unwrap_or_default();
    let state = if deletion.waits_for.is_empty() { OperationState::Running } else { OperationState::Waiting };
    v1::Operation {
        id: format!("merge-{}", lvol.uuid),
        kind: OperationKind::Merge.into(),
        state: state.into(),
        reason: deletion.waits_for,
        done_bytes: Some(deletion.total_bytes.saturating_sub(deletion.left_bytes)),
        total_bytes: Some(deletion.total_bytes),
        can_cancel: !deletion.is_merging && lvol.replica_uuid.is_empty(),
        volume_uuid: lvol.volume_uuid,
        replica_uuid: lvol.replica_uuid,
        store: lvol.store,
        store_uuid: lvol.store_uuid,
        lvol_uuid: lvol.uuid,
        ..v1::Operation::default()
    }
}

/// What becomes of work in a store that is not open: none if it is open.
async fn not_open(stores: &Stores, store: &str) -> Option<Outcome> {
    match stores.get(store).await {
        Ok(found) if found.state() == StoreState::Ready => None,
        Ok(found) => Some(Outcome::Unknown(format!("store `{}` is not open", found.name))),
        Err(_) => Some(Outcome::Cancelled("its store was taken from this node".to_owned())),
    }
}

/// The records of the stores' scrubs.
pub(super) struct Scrub {
    pub(super) stores: Arc<Stores>,
    pub(super) scrubs: Arc<Scrubs>,
}

#[tonic::async_trait]
impl Source for Scrub {
    fn kind(&self) -> OperationKind {
        OperationKind::Scrub
    }

    async fn under_way(&self) -> Result<Vec<v1::Operation>, ControlError> {
        Ok(self.stores.list().await?.iter().filter_map(scrub).collect())
    }

    async fn outcome(&self, last: &v1::Operation, cancelled: bool) -> Outcome {
        if let Some(waits) = not_open(&self.stores, &last.store_uuid).await {
            return waits;
        }
        let store = self.stores.get(&last.store_uuid).await.ok();
        match store.and_then(|store| store.scrub).and_then(|scrub| scrub.run) {
            Some(run) if run.ended_at == 0 => Outcome::Unknown("it is looked at again".to_owned()),
            Some(run) if run.error.is_empty() && run.bad_regions > 0 => {
                Outcome::Succeeded(format!("{} regions are damaged", run.bad_regions))
            }
            Some(run) if run.error.is_empty() => Outcome::Succeeded(String::new()),
            Some(run) if cancelled => Outcome::Cancelled(run.error),
            Some(run) => Outcome::Failed(run.error),
            None => Outcome::Failed("its record is gone".to_owned()),
        }
    }

    async fn cancel(&self, operation: &v1::Operation) -> Result<(), ControlError> {
        let store = operation.store_uuid.clone();
        self.scrubs.stop(v1::StopScrubRequest { store }).await.map(drop)
    }
}

fn scrub(store: &v1::Store) -> Option<v1::Operation> {
    let run = store.scrub.as_ref()?.run.as_ref().filter(|run| run.ended_at == 0)?;
    Some(v1::Operation {
        id: format!("scrub-{}", store.uuid),
        kind: OperationKind::Scrub.into(),
        state: OperationState::Running.into(),
        done_bytes: Some(run.bytes),
        total_bytes: Some(run.bytes.saturating_add(run.left_bytes)),
        started_at_unix_ms: i64::try_from(run.started_at).ok().and_then(|seconds| seconds.checked_mul(1000)),
        can_cancel: true,
        store: store.name.clone(),
        store_uuid: store.uuid.clone(),
        ..v1::Operation::default()
    })
}

/// The membership records of the engines: a replica that is not in sync is brought back.
pub(super) struct Rebuild {
    pub(super) volumes: Arc<Volumes>,
    pub(super) observer: Arc<Observer>,
}

#[tonic::async_trait]
impl Source for Rebuild {
    fn kind(&self) -> OperationKind {
        OperationKind::Rebuild
    }

    async fn under_way(&self) -> Result<Vec<v1::Operation>, ControlError> {
        let engines = self.observer.unsettled();
        Ok(engines
            .iter()
            .flat_map(|engine| engine.members.iter().filter_map(|member| rebuild(engine, member)))
            .collect())
    }

    async fn outcome(&self, last: &v1::Operation, _: bool) -> Outcome {
        let gone = || Outcome::Cancelled("its volume is gone".to_owned());
        let Ok(volume) = Uuid::try_parse(&last.volume_uuid) else { return gone() };
        let Ok(engine) = self.volumes.engines().get(volume).await else { return gone() };
        match engine.members.iter().find(|member| member.replica_uuid == last.replica_uuid).map(v1::Member::state) {
            None => Outcome::Cancelled("the replica was let go".to_owned()),
            Some(MemberState::InSync) => Outcome::Succeeded(String::new()),
            Some(_) => Outcome::Unknown(format!("the volume's engine is {}", engine.state())),
        }
    }

    async fn cancel(&self, operation: &v1::Operation) -> Result<(), ControlError> {
        let why = "without it the volume would lack a replica; pause the volume's rebuilds, or remove the replica";
        Err(not_cancellable(&operation.id, why))
    }
}

fn rebuild(engine: &v1::Engine, member: &v1::Member) -> Option<v1::Operation> {
    let progress = member.rebuild.clone().unwrap_or_default();
    let is_paused = engine.rebuild.as_ref().is_some_and(|rebuild| rebuild.paused);
    let (state, reason) = match member.state() {
        MemberState::InSync | MemberState::Unspecified => return None,
        _ if !progress.waiting.is_empty() => (OperationState::Waiting, progress.waiting),
        MemberState::OutOfSync => (OperationState::Waiting, member.reason.clone()),
        MemberState::Rebuilding if is_paused => (OperationState::Waiting, "paused".to_owned()),
        MemberState::Rebuilding | MemberState::Settling => (OperationState::Running, progress.step),
    };
    let total = (member.rebuild_total_bytes > 0).then_some(member.rebuild_total_bytes);
    Some(v1::Operation {
        id: format!("rebuild-{}", member.replica_uuid),
        kind: OperationKind::Rebuild.into(),
        state: state.into(),
        reason,
        done_bytes: total.map(|_| member.rebuilt_bytes),
        total_bytes: total,
        volume: engine.name.clone(),
        volume_uuid: engine.volume_uuid.clone(),
        replica_uuid: member.replica_uuid.clone(),
        node: member.node.clone(),
        ..v1::Operation::default()
    })
}

/// The records of volumes: a replica that goes when another one is in sync.
pub(super) struct ReplaceReplica {
    pub(super) volumes: Arc<Volumes>,
    pub(super) observer: Arc<Observer>,
}

#[tonic::async_trait]
impl Source for ReplaceReplica {
    fn kind(&self) -> OperationKind {
        OperationKind::ReplaceReplica
    }

    async fn under_way(&self) -> Result<Vec<v1::Operation>, ControlError> {
        let engines = self.observer.unsettled();
        let replacements = self.volumes.replacements().into_iter().map(|found| {
            let by = found.by.to_string();
            let copied = engines.iter().flat_map(|engine| &engine.members).find(|member| member.replica_uuid == by);
            let total = copied.map(|member| member.rebuild_total_bytes).filter(|total| *total > 0);
            v1::Operation {
                id: format!("replace-{}", found.replica),
                kind: OperationKind::ReplaceReplica.into(),
                state: OperationState::Waiting.into(),
                reason: format!("replica {by} is not in sync yet"),
                done_bytes: total.and(copied.map(|member| member.rebuilt_bytes)),
                total_bytes: total,
                can_cancel: true,
                volume: found.volume_name,
                volume_uuid: found.volume.to_string(),
                replica_uuid: found.replica.to_string(),
                node: found.node,
                ..v1::Operation::default()
            }
        });
        Ok(replacements.collect())
    }

    async fn outcome(&self, last: &v1::Operation, _: bool) -> Outcome {
        let ids = Uuid::try_parse(&last.volume_uuid).ok().zip(Uuid::try_parse(&last.replica_uuid).ok());
        match ids.and_then(|(volume, replica)| self.volumes.has_replica(volume, replica)) {
            None => Outcome::Cancelled("its volume is gone".to_owned()),
            Some(true) => Outcome::Cancelled("both replicas stay".to_owned()),
            Some(false) => Outcome::Succeeded(String::new()),
        }
    }

    async fn cancel(&self, operation: &v1::Operation) -> Result<(), ControlError> {
        let volume = request::uuid("volume_uuid", &operation.volume_uuid)?;
        let replica = request::uuid("replica_uuid", &operation.replica_uuid)?;
        self.volumes.cancel_replacing(volume, replica).await
    }
}

/// The records of deletions that wait for their node.
pub(super) struct DeleteReplica {
    pub(super) deletions: Arc<Deletions>,
}

#[tonic::async_trait]
impl Source for DeleteReplica {
    fn kind(&self) -> OperationKind {
        OperationKind::DeleteReplica
    }

    async fn under_way(&self) -> Result<Vec<v1::Operation>, ControlError> {
        let pending = self.deletions.describe().into_iter().map(|pending| v1::Operation {
            id: format!("delete-replica-{}", pending.replica_uuid),
            kind: OperationKind::DeleteReplica.into(),
            state: OperationState::Waiting.into(),
            reason: match pending.attempts {
                0 => "it is tried soon".to_owned(),
                attempts => format!("after {attempts} attempts: {}", pending.last_error),
            },
            can_cancel: true,
            volume_uuid: pending.volume_uuid,
            replica_uuid: pending.replica_uuid,
            node: pending.node,
            ..v1::Operation::default()
        });
        Ok(pending.collect())
    }

    async fn outcome(&self, last: &v1::Operation, cancelled: bool) -> Outcome {
        match cancelled {
            true => {
                Outcome::Cancelled(format!("nobody tries any more: the replica may be on node `{}` still", last.node))
            }
            false => Outcome::Succeeded(String::new()),
        }
    }

    async fn cancel(&self, operation: &v1::Operation) -> Result<(), ControlError> {
        let replica = request::uuid("replica_uuid", &operation.replica_uuid)?;
        Ok(self.deletions.forget(replica).await?)
    }
}
