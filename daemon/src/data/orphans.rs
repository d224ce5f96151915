//! What may belong to nobody, on its reactor: docs/orphans.md.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::errors::{registry_error, replica_error};
use super::room::room;
use super::stores::server;
use super::{CopyFacts, Inner, MemberSpec, SuspectFacts};
use crate::control::ControlError;
use crate::failpoint;

/// What replicas of a store of this reactor say of themselves; nothing of those that are gone.
pub(super) fn suspects(store: Uuid, replicas: &[Uuid]) -> Vec<SuspectFacts> {
    let Some(server) = room().stores.borrow().get(&store).cloned() else { return Vec::new() };
    let there: BTreeMap<_, _> = server.list().into_iter().map(|info| (info.spec.replica, info.spec.volume)).collect();
    let copy = |replica, volume| {
        let record = server.membership_copy(replica).and_then(|bytes| engine::membership_of_copy(&bytes));
        record.filter(|record| record.volume == volume).map(copy_facts)
    };
    let facts = replicas.iter().filter_map(|replica| {
        let volume = *there.get(replica)?;
        Some(SuspectFacts {
            replica: *replica,
            is_open: server.is_open(*replica),
            owner: server.owner_node(*replica),
            copy: copy(*replica, volume),
        })
    });
    facts.collect()
}

fn copy_facts(record: engine::VolumeRecord) -> CopyFacts {
    let member = |replica: engine::ReplicaRecord| MemberSpec {
        replica: replica.replica,
        node: replica.node,
        address: replica.address,
        store: None,
    };
    let members = record.replicas.into_iter().map(member).collect();
    CopyFacts { size: record.size, block_size: record.block_size, members }
}

/// Notes whose volume a replica is of.
pub(super) async fn set_owner_node(store: Uuid, replica: Uuid, node: String) -> Result<(), ControlError> {
    let server = server(store)?;
    let noted = async { server.set_owner_node(replica, &node).await.map_err(replica_error) };
    failpoint::step("an owner is noted", noted).await
}

/// Deletes a replica that no engine has open, or has had since its epoch was this one.
pub(super) async fn delete_unused(store: Uuid, replica: Uuid, volume: Uuid, epoch: u64) -> Result<(), ControlError> {
    let server = server(store)?;
    let deleted = async { server.delete_unused(replica, volume, epoch).await.map_err(replica_error) };
    failpoint::step("an orphan is deleted", deleted).await
}

/// Deletes the lvols of a replica that has no head any more.
pub(super) async fn delete_remains(store: Uuid, replica: Uuid) -> Result<(), ControlError> {
    let server = server(store)?;
    let deleted = async { server.delete_remains(replica).await.map_err(replica_error) };
    failpoint::step("remains are deleted", deleted).await
}

/// The volumes that the registry has records of.
pub(super) async fn memberships(inner: Arc<Inner>) -> Result<Vec<Uuid>, ControlError> {
    let registry = room().registry(&inner);
    failpoint::step("the registry is listed", async { registry.list().await.map_err(registry_error) }).await
}

/// The registry's record of a volume; none if there is none.
pub(super) async fn membership(inner: Arc<Inner>, volume: Uuid) -> Result<Option<CopyFacts>, ControlError> {
    let registry = room().registry(&inner);
    let loaded = async { registry.load(volume).await.map_err(registry_error) };
    let record = failpoint::step("a membership is read", loaded).await?;
    Ok(record.map(copy_facts))
}

/// The volumes that hosts see at this reactor.
pub(super) fn exports() -> Vec<Uuid> {
    room().exports.borrow().keys().copied().collect()
}
