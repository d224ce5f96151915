//! The node's replicas. What there is, is asked of the stores each time: there is no list here that could differ.

use std::sync::Arc;

use proto::v1::{self, ReplicaState};
use uuid::Uuid;

use super::error::{Comparison, ControlError};
use super::locks::KeyedLocks;
use super::request;
use super::stores::{OpenStore, Stores};
use crate::data::{DataPath, ReplicaFacts, ReplicaOrigin, ReplicaSpec};

/// All replicas in open stores.
pub(crate) struct Replicas {
    node: String,
    data: DataPath,
    stores: Arc<Stores>,
    /// By replica: a creation must not overtake a deletion.
    locks: KeyedLocks<Uuid>,
}

impl Replicas {
    pub(crate) fn new(node: String, data: DataPath, stores: Arc<Stores>) -> Self {
        Self { node, data, stores, locks: KeyedLocks::default() }
    }

    /// Makes a replica, or returns the one that is there (I30).
    pub(crate) async fn create(&self, request: v1::CreateReplicaRequest) -> Result<v1::Replica, ControlError> {
        let (size, block_size) = request::geometry(request.size_bytes, request.block_size_bytes)?;
        let spec = ReplicaSpec {
            uuid: request::uuid("uuid", &request.uuid)?,
            volume: request::uuid("volume_uuid", &request.volume_uuid)?,
            name: request::name("name", &request.name)?,
            size,
            block_size,
        };
        let origin = origin(&request)?;
        let _lock = self.locks.lock(spec.uuid).await;
        if let Some(facts) = self.find_everywhere(spec.uuid).await? {
            compare(&facts, &spec)?;
            self.note_owner(&facts, &request.owner_node).await?;
            return Ok(self.describe(&facts));
        }
        let (home, store) = match origin {
            None => {
                let store = self.choose_store(&request.store).await?;
                (store.home, store.uuid)
            }
            Some(origin) => self.store_of(origin.replica).await?,
        };
        let facts = self.data.create_replica(home, store, spec, origin).await?;
        self.note_owner(&facts, &request.owner_node).await?;
        Ok(self.describe(&facts))
    }

    /// After a kill in between the creation is sent again: it was not answered.
    async fn note_owner(&self, facts: &ReplicaFacts, node: &str) -> Result<(), ControlError> {
        let Some(home) = self.stores.home(facts.store).filter(|_| !node.is_empty()) else { return Ok(()) };
        let node = request::name("owner_node", node)?;
        self.data.set_owner_node(home, facts.store, facts.spec.uuid, node).await
    }

    /// The reactor and the store of a replica that is there.
    async fn store_of(&self, replica: Uuid) -> Result<(usize, Uuid), ControlError> {
        let gone = || ControlError::not_found("replica", replica);
        let store = self.find(replica).await?.ok_or_else(gone)?.store;
        Ok((self.stores.home(store).ok_or_else(gone)?, store))
    }

    async fn choose_store(&self, wanted: &str) -> Result<OpenStore, ControlError> {
        if !wanted.is_empty() {
            return self.stores.open_store(wanted);
        }
        let mut best = None;
        for store in self.stores.open_stores() {
            let free = self.data.stores(store.home).await?.get(&store.uuid).map_or(0, |facts| facts.free);
            if best.as_ref().is_none_or(|(most, _)| free > *most) {
                best = Some((free, store));
            }
        }
        best.map(|(_, store)| store).ok_or_else(|| {
            let text = format!(
                "node `{}` has no store: make one with `ashlar store create NAME --path FILE --size SIZE`",
                self.node
            );
            ControlError::precondition("NO_STORE", text).with("node", &self.node)
        })
    }

    /// All replicas in open stores, in order of name and UUID.
    pub(crate) async fn all(&self) -> Result<Vec<v1::Replica>, ControlError> {
        let mut found = self.facts().await?;
        // UUIDs are in the same order as their texts.
        found.sort_by(|one, other| (&one.spec.name, one.spec.uuid).cmp(&(&other.spec.name, other.spec.uuid)));
        Ok(found.iter().map(|facts| self.describe(facts)).collect())
    }

    /// How many there are in open stores.
    pub(crate) async fn count(&self) -> Result<usize, ControlError> {
        Ok(self.facts().await?.len())
    }

    /// Deletes a replica. An absent one is a success, but only when every store has been looked into (I42).
    pub(crate) async fn delete(&self, request: v1::DeleteReplicaRequest) -> Result<(), ControlError> {
        let uuid = request::uuid("uuid", &request.uuid)?;
        let expected = request::optional_uuid("expected_volume_uuid", &request.expected_volume_uuid)?;
        let _lock = self.locks.lock(uuid).await;
        let (mut all_open, mut found) = (Ok(()), self.find(uuid).await?);
        if found.is_none() {
            all_open = self.stores.all_open().await;
            found = self.find(uuid).await?;
        }
        let Some(facts) = found else {
            // A replica without a head is not listed: a delete that a kill cut short may have left its snapshots.
            for store in self.stores.open_stores() {
                self.data.delete_replica(store.home, store.uuid, uuid).await?;
            }
            return all_open;
        };
        if expected.is_some_and(|expected| expected != facts.spec.volume) {
            return Err(ControlError::other_uuid("the volume of replica", uuid, facts.spec.volume));
        }
        match self.stores.home(facts.store) {
            Some(home) => self.data.delete_replica(home, facts.store, uuid).await,
            None => Ok(()),
        }
    }

    /// A replica in an open store.
    pub(crate) async fn find(&self, uuid: Uuid) -> Result<Option<ReplicaFacts>, ControlError> {
        for home in 0..self.data.reactors() {
            if let Some(found) = self.data.replica(home, uuid).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The same, and an error if it may be in a store that nobody has read yet.
    async fn find_everywhere(&self, uuid: Uuid) -> Result<Option<ReplicaFacts>, ControlError> {
        match self.find(uuid).await? {
            None => {
                self.stores.none_opening().await?;
                self.find(uuid).await
            }
            found => Ok(found),
        }
    }

    async fn facts(&self) -> Result<Vec<ReplicaFacts>, ControlError> {
        let mut found = Vec::new();
        for home in 0..self.data.reactors() {
            found.extend(self.data.replicas(home).await?);
        }
        Ok(found)
    }

    fn describe(&self, facts: &ReplicaFacts) -> v1::Replica {
        let state = if facts.failure.is_some() { ReplicaState::Failed } else { ReplicaState::Ready };
        v1::Replica {
            uuid: facts.spec.uuid.to_string(),
            volume_uuid: facts.spec.volume.to_string(),
            name: facts.spec.name.clone(),
            node: self.node.clone(),
            store: self.stores.name(facts.store),
            store_uuid: facts.store.to_string(),
            size_bytes: facts.spec.size,
            block_size_bytes: facts.spec.block_size,
            epoch: facts.epoch,
            snapshots: facts.snapshots,
            used_bytes: facts.used,
            state: state.into(),
            reason: facts.failure.clone().unwrap_or_default(),
            bad_regions: facts.bad_regions,
        }
    }
}

/// What a request says of the replica to begin with.
fn origin(request: &v1::CreateReplicaRequest) -> Result<Option<ReplicaOrigin>, ControlError> {
    let replica = request::optional_uuid("source_replica_uuid", &request.source_replica_uuid)?;
    let snapshot = request::optional_uuid("source_snapshot_uuid", &request.source_snapshot_uuid)?;
    match (replica, snapshot) {
        (None, None) => Ok(None),
        (Some(replica), Some(snapshot)) => Ok(Some(ReplicaOrigin { replica, snapshot })),
        (Some(_), None) => Err(ControlError::invalid("source_snapshot_uuid", "a UUID is needed with a source replica")),
        (None, Some(_)) => Err(ControlError::invalid("source_replica_uuid", "a UUID is needed with a source snapshot")),
    }
}

fn compare(facts: &ReplicaFacts, wanted: &ReplicaSpec) -> Result<(), ControlError> {
    Comparison::default()
        .field("volume_uuid", facts.spec.volume, wanted.volume)
        .field("size_bytes", facts.spec.size, wanted.size)
        .field("block_size_bytes", facts.spec.block_size, wanted.block_size)
        .finish("replica", wanted.uuid)
}
