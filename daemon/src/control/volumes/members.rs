//! Replicas of a volume that exists: one more, one less, one instead of another, one for all.
//!
//! ```text
//!        record          replica made, engine told         record              in sync: record     engine told, replica deleted
//! (none) ─────▶ JOINS ──────────────────────────▶ STAYS ──────────▶ REPLACED BY ──────────▶ LEAVES ──────────────────────────▶ (none)
//!    ▲            │ another volume has a replica of that UUID there
//!    └────────────┘
//! ```
//!
//! Each step can be repeated: a call that failed half way goes on where it was when it is sent again.

use std::sync::Arc;
use std::time::Duration;

use proto::v1::{self, EngineState, MemberState};
use uuid::Uuid;

use super::{Entry, MOST_REPLICAS, Phase, ReplicaChange, ReplicaRecord, START_LIMIT, VolumeRecord, Volumes};
use crate::control::deletions::DeletionRecord;
use crate::control::engines::RebuildRecord;
use crate::control::error::{Comparison, ControlError};
use crate::control::panics;
use crate::control::peers;
use crate::control::request;
use crate::control::retry::Backoff;

impl Volumes {
    /// Makes a replica on one more node.
    pub(crate) async fn add_replica(&self, request: v1::AddReplicaRequest) -> Result<v1::Volume, ControlError> {
        let (_lock, record) = self.lock_created(&request.volume).await?;
        let uuid = record.uuid;
        let wanted = request::optional_uuid("uuid", &request.uuid)?;
        self.join(record, &request.node, wanted).await?;
        self.describe(uuid).await
    }

    /// Lets the replica of a node go.
    pub(crate) async fn remove_replica(&self, request: v1::RemoveReplicaRequest) -> Result<v1::Volume, ControlError> {
        let (_lock, record) = self.lock_created(&request.volume).await?;
        let uuid = record.uuid;
        let expected = request::optional_uuid("expected_uuid", &request.expected_uuid)?;
        if let Some(replica) = record.on(&request.node).map(|replica| replica.uuid) {
            if expected.is_some_and(|expected| expected != replica) {
                return Err(ControlError::other_uuid("replica on node", &request.node, replica));
            }
            self.let_go(record, replica).await?;
        }
        self.describe(uuid).await
    }

    /// Adds a replica; the one that it replaces goes when it is in sync.
    pub(crate) async fn replace_replica(
        self: &Arc<Self>,
        request: v1::ReplaceReplicaRequest,
    ) -> Result<v1::Volume, ControlError> {
        let (_lock, record) = self.lock_created(&request.volume).await?;
        let uuid = record.uuid;
        let expected = request::optional_uuid("expected_uuid", &request.expected_uuid)?;
        let wanted = request::optional_uuid("uuid", &request.uuid)?;
        let Some(old) = record.on(&request.node).map(|replica| replica.uuid) else {
            // The same again, after it was done.
            return match record.on(&request.by_node) {
                Some(new) => {
                    same_replica(&request.by_node, new.uuid, wanted)?;
                    self.describe(uuid).await
                }
                None => Err(ControlError::not_found("replica on node", &request.node)),
            };
        };
        if expected.is_some_and(|expected| expected != old) {
            return Err(ControlError::other_uuid("replica on node", &request.node, old));
        }
        if request.node == request.by_node {
            return Err(ControlError::invalid("by_node", "it has the replica that is to be replaced"));
        }
        let mut record = self.join(record, &request.by_node, wanted).await?;
        let new = record.on(&request.by_node).map(|replica| replica.uuid);
        let new = new.ok_or_else(|| ControlError::failed("STATE", "a replica that was just added is not there"))?;
        record.set_change(old, ReplicaChange::ReplacedBy(new));
        self.keep(&record).await?;
        tokio::spawn(Arc::clone(self).finish_replacing(uuid, old));
        self.describe(uuid).await
    }

    /// Goes on with replacements that the end of the daemon interrupted.
    pub(crate) fn resume_replacing(self: &Arc<Self>) {
        let records: Vec<_> = self.entries().values().map(|entry| entry.record.clone()).collect();
        for record in records {
            for replica in &record.replicas {
                if matches!(replica.change, ReplicaChange::ReplacedBy(_)) {
                    tokio::spawn(Arc::clone(self).finish_replacing(record.uuid, replica.uuid));
                }
            }
        }
    }

    /// Replicas that go when others are in sync.
    pub(in crate::control) fn replacements(&self) -> Vec<Replacement> {
        let entries = self.entries();
        let of = |entry: &Entry| {
            let record = entry.record.clone();
            let going = record.replicas.clone().into_iter().filter_map(move |replica| match replica.change {
                ReplicaChange::ReplacedBy(by) => Some(Replacement {
                    volume: record.uuid,
                    volume_name: record.name.clone(),
                    replica: replica.uuid,
                    node: replica.node,
                    by,
                }),
                ReplicaChange::Stays | ReplicaChange::Joins | ReplicaChange::Leaves => None,
            });
            going.collect::<Vec<_>>()
        };
        entries.values().flat_map(of).collect()
    }

    /// Whether a replica belongs to a volume; none if there is no such volume.
    pub(in crate::control) fn has_replica(&self, volume: Uuid, replica: Uuid) -> Option<bool> {
        let entries = self.entries();
        let record = &entries.get(&volume)?.record;
        Some(record.replicas.iter().any(|known| known.uuid == replica))
    }

    /// Calls a replacement off: both replicas stay. One that is not there any more is a success.
    pub(in crate::control) async fn cancel_replacing(&self, volume: Uuid, replica: Uuid) -> Result<(), ControlError> {
        let (_lock, mut record) = self.lock_created(&volume.to_string()).await?;
        let is_wanted =
            |known: &&ReplicaRecord| known.uuid == replica && matches!(known.change, ReplicaChange::ReplacedBy(_));
        if record.replicas.iter().any(|known| is_wanted(&known)) {
            record.set_change(replica, ReplicaChange::Stays);
            self.keep(&record).await?;
        }
        Ok(())
    }

    /// Takes a volume up again whose task ended by a panic.
    pub(crate) async fn start_again(&self, volume: &str) -> Result<v1::Volume, ControlError> {
        let (_lock, record) = self.lock_created(volume).await?;
        self.here.engines.take_up(record.uuid).await?;
        self.here.engines.wait_until_served(record.uuid, START_LIMIT).await?;
        self.describe(record.uuid).await
    }

    /// Pauses rebuilds or lets them go on, and sets their rate.
    pub(crate) async fn set_rebuild(&self, request: v1::SetRebuildRequest) -> Result<v1::Volume, ControlError> {
        let (_lock, record) = self.lock_created(&request.volume).await?;
        let change = |rebuild: &mut RebuildRecord| {
            rebuild.paused = request.paused.unwrap_or(rebuild.paused);
            rebuild.rate = request.bytes_per_second.unwrap_or(rebuild.rate);
        };
        self.here.engines.set_rebuild(record.uuid, change).await?;
        self.describe(record.uuid).await
    }

    /// Holds the volume's hosts to so many commands and bytes a second.
    pub(crate) async fn set_limits(&self, request: v1::SetLimitsRequest) -> Result<v1::Volume, ControlError> {
        let (_lock, record) = self.lock_created(&request.volume).await?;
        self.here.engines.set_limits(record.uuid, &request).await?;
        self.describe(record.uuid).await
    }

    /// Makes a replica that is out of sync the one that counts; without force it only says what that means.
    pub(crate) async fn recover(
        &self,
        request: v1::RecoverVolumeRequest,
    ) -> Result<v1::RecoverVolumeResponse, ControlError> {
        let (_lock, record) = self.lock_created(&request.volume).await?;
        let replica = record.on(&request.node).map(|replica| replica.uuid);
        let replica = replica.ok_or_else(|| ControlError::not_found("replica on node", &request.node))?;
        let engine = self.here.engines.get(record.uuid).await?;
        let waits = matches!(engine.state(), EngineState::Starting | EngineState::Failed);
        let lost = match waits {
            true => self.here.engines.recover_lost(record.uuid, replica, request.force).await?,
            false => None,
        };
        let consequence = match lost {
            Some(consequence) => consequence,
            None => {
                let consequence = consequence(&engine, replica)?;
                if request.force {
                    self.here.engines.force(record.uuid, replica).await?;
                }
                consequence
            }
        };
        let volume = Some(self.describe(record.uuid).await?);
        Ok(v1::RecoverVolumeResponse { consequence, volume })
    }

    /// From a node without a replica to one whose replica is being rebuilt: the one that is wanted, if one is named.
    async fn join(
        &self,
        mut record: VolumeRecord,
        node: &str,
        wanted: Option<Uuid>,
    ) -> Result<VolumeRecord, ControlError> {
        if let Some(known) = record.on(node) {
            same_replica(node, known.uuid, wanted)?;
        }
        match record.on(node).map(|replica| replica.change) {
            Some(ReplicaChange::Joins) => {}
            Some(ReplicaChange::Leaves) => {
                let text = format!("the replica on node `{node}` is being removed: send that again first");
                return Err(ControlError::precondition("LEAVING", text));
            }
            Some(_) => return Ok(record),
            None => {
                if node != self.here.node && self.here.peers.replica_address(node).is_none() {
                    return Err(peers::unknown(node));
                }
                if record.replicas.len() >= MOST_REPLICAS {
                    return Err(ControlError::invalid(
                        "node",
                        format!("a volume has at most {MOST_REPLICAS} replicas"),
                    ));
                }
                if let Some(wanted) = wanted {
                    self.check_free(wanted, &record, node)?;
                }
                let new = ReplicaRecord::new(node.to_owned());
                let uuid = wanted.unwrap_or(new.uuid);
                record.replicas.push(ReplicaRecord { uuid, change: ReplicaChange::Joins, ..new });
                self.keep(&record).await?;
            }
        }
        let Some(replica) = record.on(node).cloned() else {
            return Err(ControlError::failed("STATE", "a replica that was just noted is not there"));
        };
        match self.join_noted(&record, &replica).await {
            Err(error) if error.is_replica_of_another_volume() => {
                // Sent again it would be refused again: what was noted has no replica and never gets one.
                record.replicas.retain(|known| known.uuid != replica.uuid);
                self.keep(&record).await?;
                return Err(error);
            }
            joined => self.noting_failure(record.uuid, joined)?,
        }
        record.set_change(replica.uuid, ReplicaChange::Stays);
        self.keep(&record).await?;
        Ok(record)
    }

    /// No volume of this node has a replica of that UUID elsewhere.
    fn check_free(&self, replica: Uuid, record: &VolumeRecord, node: &str) -> Result<(), ControlError> {
        let entries = self.entries();
        let has_it = |entry: &Entry| {
            let known = entry.record.replicas.iter().find(|known| known.uuid == replica)?;
            Some((entry.record.uuid, known.node.clone()))
        };
        let Some((volume, other)) = entries.values().find_map(has_it) else { return Ok(()) };
        let elsewhere = Comparison::default().field("volume", volume, record.uuid).field("node", other.as_str(), node);
        elsewhere.finish("replica", replica)
    }

    async fn join_noted(&self, record: &VolumeRecord, replica: &ReplicaRecord) -> Result<(), ControlError> {
        self.create_replica(record, replica).await?;
        let member = self.here.engines.member(&replica.placement()).await?;
        self.here.engines.add_member(record.uuid, member).await
    }

    async fn let_go(&self, mut record: VolumeRecord, replica: Uuid) -> Result<(), ControlError> {
        // First whether it may go: a refusal changes nothing.
        self.here.engines.remove_member(record.uuid, replica).await?;
        record.set_change(replica, ReplicaChange::Leaves);
        self.keep(&record).await?;
        self.delete_left(record, replica).await
    }

    /// Deletes a replica that the engine has let go.
    pub(super) async fn delete_left(&self, mut record: VolumeRecord, replica: Uuid) -> Result<(), ControlError> {
        let Some(place) = record.replicas.iter().position(|known| known.uuid == replica) else { return Ok(()) };
        let node = record.replicas[place].node.clone();
        let deletion = DeletionRecord { replica, volume: record.uuid, node };
        if let Err(error) = self.here.deletions.delete_now(&deletion).await {
            tracing::warn!(volume = %record.name, %error, "a replica is deleted later");
            self.here.deletions.delete_later(deletion, &error).await?;
        }
        record.replicas.remove(place);
        Ok(self.keep(&record).await?)
    }

    /// Lets a replica go once the one that replaces it is in sync. Ends when the replacement was called off or the volume
    /// is gone.
    async fn finish_replacing(self: Arc<Self>, volume: Uuid, old: Uuid) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            backoff.wait().await;
            match panics::caught(self.try_replacing(volume, old)).await {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(%volume, replica = %old, %error, "a replica cannot be replaced yet"),
                Err(panic) => return self.note_panic(volume, &panic),
            }
        }
    }

    /// A task of a volume has ended: the volume says so, and how to go on.
    fn note_panic(&self, volume: Uuid, panic: &str) {
        if let Some(entry) = self.entries().get_mut(&volume) {
            let again = "send the same replace-replica again, or restart the daemon, to go on";
            entry.reason = format!("the task that replaces its replica ended by a panic ({panic}): {again}");
        }
        self.touch(volume);
    }

    /// Whether there is nothing left to do.
    async fn try_replacing(&self, volume: Uuid, old: Uuid) -> Result<bool, ControlError> {
        let Ok((_lock, record)) = self.lock_created(&volume.to_string()).await else { return Ok(true) };
        let change = record.replicas.iter().find(|replica| replica.uuid == old).map(|replica| replica.change);
        let Some(ReplicaChange::ReplacedBy(new)) = change else { return Ok(true) };
        let engine = self.here.engines.get(volume).await?;
        let new = new.to_string();
        let in_sync = |member: &v1::Member| member.replica_uuid == new && member.state() == MemberState::InSync;
        if !engine.members.iter().any(in_sync) {
            return Ok(false);
        }
        self.let_go(record, old).await?;
        Ok(true)
    }

    /// A volume that exists, and keeps others from changing it meanwhile.
    pub(super) async fn lock_created(
        &self,
        volume: &str,
    ) -> Result<(tokio::sync::OwnedMutexGuard<()>, VolumeRecord), ControlError> {
        let name = self.find(volume)?.record.name;
        let lock = self.locks.lock(name).await;
        let Entry { record, .. } = self.find(volume)?;
        match record.phase {
            Phase::Created => Ok((lock, record)),
            Phase::Creating | Phase::Deleting => {
                let text = format!("volume `{}` is being created or deleted: finish that first", record.name);
                Err(ControlError::precondition("NOT_CREATED", text))
            }
        }
    }
}

impl VolumeRecord {
    fn on(&self, node: &str) -> Option<&ReplicaRecord> {
        self.replicas.iter().find(|replica| replica.node == node)
    }

    fn set_change(&mut self, replica: Uuid, change: ReplicaChange) {
        if let Some(known) = self.replicas.iter_mut().find(|known| known.uuid == replica) {
            known.change = change;
        }
    }
}

/// The replica that a node has is the one that is wanted there, if one is named.
fn same_replica(node: &str, found: Uuid, wanted: Option<Uuid>) -> Result<(), ControlError> {
    Comparison::default().optional("uuid", found, wanted).finish("replica on node", node)
}

/// A replica that goes when another one is in sync.
pub(in crate::control) struct Replacement {
    pub(in crate::control) volume: Uuid,
    pub(in crate::control) volume_name: String,
    pub(in crate::control) replica: Uuid,
    pub(in crate::control) node: String,
    pub(in crate::control) by: Uuid,
}

/// What it means to go on with a replica that is out of sync (I5).
fn consequence(engine: &v1::Engine, replica: Uuid) -> Result<String, ControlError> {
    if engine.state() != EngineState::Starting {
        let text = format!("volume `{}` is served: there is nothing to recover", engine.name);
        return Err(ControlError::precondition("NOT_WAITING", text));
    }
    let chosen = replica.to_string();
    let (mut newer, mut reason) = (Vec::new(), String::new());
    for member in &engine.members {
        if member.replica_uuid == chosen {
            reason.clone_from(&member.reason);
        }
        if matches!(member.state(), MemberState::InSync) {
            newer.push(member.node.as_str());
        }
    }
    Ok(format!(
        "Replicas that have everything acknowledged: on {}. Bring one of them back if there is any way to. The chosen one left earlier ({reason}): \
         whatever was acknowledged since is lost for good, and those named are overwritten from it when they come back.",
        if newer.is_empty() { "no node".to_owned() } else { newer.join(", ") }
    ))
}
