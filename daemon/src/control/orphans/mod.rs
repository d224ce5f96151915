//! What is on this node and belongs to nobody: found, adopted, deleted. docs/orphans.md.

mod claims;
mod look;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::v1::{self, OrphanKind, OrphanState};
use uuid::Uuid;

use self::claims::{Asked, MOST_ASKED};
use super::deletions::Deletions;
use super::engines::{EngineRecord, Engines};
use super::error::ControlError;
use super::events::{Events, Happened};
use super::locks::KeyedLocks;
use super::peers::Peers;
use super::replicas::Replicas;
use super::request;
use super::stores::Stores;
use super::volumes::{Adopted, Volumes};
use crate::data::{CopyFacts, DataPath, ReplicaFacts};

/// Between two looks that nobody asked for.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// After a peer has connected, for others that do too.
const SETTLE: Duration = Duration::from_secs(5);

/// What the orphans need of the node.
pub(crate) struct Surroundings {
    pub(crate) node: String,
    pub(crate) node_uuid: Uuid,
    pub(crate) data: DataPath,
    pub(crate) stores: Arc<Stores>,
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) engines: Arc<Engines>,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) deletions: Arc<Deletions>,
    pub(crate) events: Arc<Events>,
}

/// Finds and ends orphans.
pub(crate) struct Orphans {
    here: Surroundings,
    /// What the last look found.
    counts: Mutex<Counts>,
    /// One change at a time for each.
    locks: KeyedLocks<Uuid>,
}

/// How many there are, by how certain that is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) orphans: usize,
    pub(crate) unknown: usize,
    pub(crate) in_use: usize,
}

/// An orphan, and what is needed to deal with it.
struct Found {
    orphan: v1::Orphan,
    place: Place,
}

enum Place {
    Replica { home: usize, facts: ReplicaFacts, copy: Option<CopyFacts> },
    Remains { home: usize, store: Uuid, replica: Uuid },
    Volume(Uuid),
    Engine(Box<EngineRecord>),
    Membership { volume: Uuid, copy: Option<CopyFacts> },
    Deletion(Uuid),
    Export { home: usize, volume: Uuid },
}

/// Lists are in the order of kind, name and UUID.
pub(super) fn place_in_list(orphan: &v1::Orphan) -> [&str; 3] {
    const KINDS: [&str; 8] = ["0", "1", "2", "3", "4", "5", "6", "7"];
    // One that is not of this list would come last; there is none.
    [KINDS.get(orphan.kind() as usize).unwrap_or(&"9"), &orphan.name, &orphan.uuid]
}

impl Orphans {
    /// Sets a task on looking: now, and from time to time.
    pub(crate) fn start(here: Surroundings) -> Arc<Self> {
        let orphans = Arc::new(Self { here, counts: Mutex::default(), locks: KeyedLocks::default() });
        tokio::spawn(Arc::clone(&orphans).watch());
        orphans
    }

    async fn watch(self: Arc<Self>) {
        let mut connects = self.here.peers.connects();
        // Whatever is not open then is named by every list.
        let _ = self.here.stores.none_opening().await;
        loop {
            if let Err(error) = self.look_and_tell().await {
                tracing::warn!(%error, "nobody knows what has no owner");
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                // What was unknown may be known now.
                _ = connects.changed(), if self.counts().unknown > 0 => tokio::time::sleep(SETTLE).await,
            }
        }
    }

    async fn look_and_tell(&self) -> Result<Vec<Found>, ControlError> {
        let found = self.look().await?;
        let of = |state| found.iter().filter(|found| found.orphan.state() == state).count();
        let counts = Counts {
            orphans: of(OrphanState::Orphan),
            unknown: of(OrphanState::Unknown),
            in_use: of(OrphanState::InUse),
        };
        let before = {
            // Poisoned or not, counts are whole.
            let mut last = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *last, counts)
        };
        if counts.orphans > before.orphans {
            let (node, uuid, count) = (&self.here.node, self.here.node_uuid, counts.orphans);
            let detail = format!("{count} without an owner; `ashlar orphan list` shows them");
            self.here.events.note(Happened::of_node(node, uuid, "orphans found", &detail));
        }
        Ok(found)
    }

    /// What the last look found.
    pub(crate) fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has no owner, and what may have none; and the stores that could not be looked into.
    pub(super) async fn all(&self) -> Result<(Vec<v1::Orphan>, Vec<v1::UnopenedStore>), ControlError> {
        let unopened = self.here.stores.unopened().await;
        let found = self.look_and_tell().await?;
        Ok((found.into_iter().map(|found| found.orphan).collect(), unopened))
    }

    /// What this node says of replicas that another one has found.
    pub(crate) fn list_claims(&self, request: v1::ListClaimsRequest) -> Result<v1::ListClaimsResponse, ControlError> {
        if request.replicas.len() > MOST_ASKED {
            return Err(ControlError::invalid("replicas", format!("more than {MOST_ASKED}")));
        }
        let asked = request.replicas.iter().map(Asked::parse).collect::<Result<Vec<_>, _>>()?;
        let claims = self.claims_here(&asked).into_iter().map(|(replica, claim)| claim.describe(replica));
        Ok(v1::ListClaimsResponse { claims: claims.collect() })
    }

    /// Deletes one. An absent one is a success, but only when every store has been looked into (I42).
    pub(crate) async fn delete(&self, request: v1::DeleteOrphanRequest) -> Result<(), ControlError> {
        let uuid = request::uuid("uuid", &request.uuid)?;
        let expected = request::optional_uuid("expected_volume_uuid", &request.expected_volume_uuid)?;
        let _lock = self.locks.lock(uuid).await;
        let Some(Found { orphan, place }) = self.find(uuid, request.kind()).await? else {
            self.check_unowned(uuid).await?;
            return self.here.stores.all_open().await;
        };
        if let Some(expected) = expected
            && orphan.volume_uuid != expected.to_string()
        {
            return Err(ControlError::other_uuid("the volume of", uuid, &orphan.volume_uuid));
        }
        check_certain(&orphan, &request.without_nodes)?;
        tracing::info!(kind = %orphan.kind(), %uuid, volume = %orphan.volume_uuid, reason = %orphan.reason, "an orphan is deleted");
        let data = &self.here.data;
        match place {
            Place::Replica { home, facts, .. } => {
                data.delete_unused(home, facts.store, uuid, facts.spec.volume, facts.epoch).await
            }
            Place::Remains { home, store, replica } => data.delete_remains(home, store, replica).await,
            Place::Volume(volume) => {
                let request = v1::DeleteVolumeRequest { volume: volume.to_string(), expected_uuid: volume.to_string() };
                self.here.volumes.delete(request).await.map(drop)
            }
            Place::Engine(record) => self.here.engines.delete(record.volume).await,
            Place::Membership { volume, .. } => self.here.engines.forget_membership(volume).await,
            Place::Deletion(replica) => Ok(self.here.deletions.forget(replica).await?),
            Place::Export { home, volume } => data.stop_engine(home, volume).await,
        }
    }

    /// Makes one part of a volume again; returns the volume's UUID.
    pub(crate) async fn adopt(&self, request: v1::AdoptOrphanRequest) -> Result<Uuid, ControlError> {
        let uuid = request::uuid("uuid", &request.uuid)?;
        let _lock = self.locks.lock(uuid).await;
        let Some(Found { orphan, place }) = self.find(uuid, request.kind()).await? else {
            return self.adopted_before(uuid).await;
        };
        check_certain(&orphan, &request.without_nodes)?;
        if !orphan.adoptable {
            let text = format!("{} {uuid} cannot be adopted: {}", orphan.kind(), orphan.reason);
            return Err(ControlError::precondition("NOT_ADOPTABLE", text));
        }
        let name = if request.name.is_empty() { orphan.name.clone() } else { request.name };
        tracing::info!(kind = %orphan.kind(), %uuid, volume = %orphan.volume_uuid, %name, "an orphan is adopted");
        match place {
            Place::Replica { facts, copy, .. } => {
                let volume = facts.spec.volume;
                self.here.volumes.adopt(self.volume_of_replica(name, &facts, copy)).await.map(|()| volume)
            }
            Place::Volume(volume) => self.here.volumes.adopt_record(volume).await.map(|()| volume),
            Place::Engine(record) => {
                let members = record.members.iter();
                let members = members.map(|member| (member.replica, member.node.clone(), Some(member.address)));
                let (uuid, size, block_size) = (record.volume, record.size, record.block_size);
                let adopted = Adopted { uuid, name, size, block_size, members: members.collect() };
                self.here.volumes.adopt(adopted).await.map(|()| uuid)
            }
            Place::Membership { volume, copy: Some(copy) } => {
                let adopted = self.volume_of_copy(volume, name, copy);
                self.here.volumes.adopt(adopted).await.map(|()| volume)
            }
            Place::Membership { .. } | Place::Remains { .. } | Place::Deletion(_) | Place::Export { .. } => {
                Err(ControlError::precondition("NOT_ADOPTABLE", format!("{} {uuid} cannot be adopted", orphan.kind())))
            }
        }
    }

    /// With the replicas that its copy names; one that no engine ever had is alone.
    fn volume_of_replica(&self, name: String, facts: &ReplicaFacts, copy: Option<CopyFacts>) -> Adopted {
        let spec = &facts.spec;
        let mut adopted = match copy {
            Some(copy) => self.volume_of_copy(spec.volume, name, copy),
            None => {
                Adopted { uuid: spec.volume, name, size: spec.size, block_size: spec.block_size, members: Vec::new() }
            }
        };
        if !adopted.members.iter().any(|(replica, ..)| *replica == spec.uuid) {
            adopted.members.push((spec.uuid, self.here.node.clone(), None));
        }
        adopted
    }

    fn volume_of_copy(&self, uuid: Uuid, name: String, copy: CopyFacts) -> Adopted {
        let CopyFacts { size, block_size, members } = copy;
        // Where a peer is now the configuration knows better.
        let address = |node: &str, address: SocketAddr| match node == self.here.node || self.here.peers.contains(node) {
            true => None,
            false => Some(address),
        };
        let members = members.into_iter().map(|member| {
            let address = address(&member.node, member.address);
            (member.replica, member.node, address)
        });
        Adopted { uuid, name, size, block_size, members: members.collect() }
    }

    /// The orphan with this UUID, of this kind if one is given.
    async fn find(&self, uuid: Uuid, kind: OrphanKind) -> Result<Option<Found>, ControlError> {
        let mut found = self.look().await?;
        let uuid = uuid.to_string();
        let wanted = |found: &Found| kind == OrphanKind::Unspecified || found.orphan.kind() == kind;
        found.retain(|found| found.orphan.uuid == uuid && wanted(found));
        if found.len() > 1 {
            let kinds: Vec<_> = found.iter().map(|found| found.orphan.kind().to_string()).collect();
            let text =
                format!("there are {} orphans {uuid}: say of which kind (--kind), {}", found.len(), kinds.join(" or "));
            return Err(ControlError::precondition("AMBIGUOUS", text));
        }
        Ok(found.pop())
    }

    /// An error if there is such a thing, and somebody owns it.
    async fn check_unowned(&self, uuid: Uuid) -> Result<(), ControlError> {
        let is_replica = self.here.replicas.find(uuid).await?.is_some();
        if is_replica || self.here.volumes.contains(uuid) || self.here.engines.contains(uuid) {
            let text = format!("{uuid} has an owner: delete the volume, or remove the replica from it");
            return Err(ControlError::precondition("NOT_AN_ORPHAN", text));
        }
        Ok(())
    }

    /// The volume that has what was an orphan.
    async fn adopted_before(&self, uuid: Uuid) -> Result<Uuid, ControlError> {
        let volume = match self.here.replicas.find(uuid).await? {
            Some(facts) => facts.spec.volume,
            None => uuid,
        };
        match self.here.volumes.contains(volume) {
            true => Ok(volume),
            false => Err(ControlError::not_found("orphan", uuid)),
        }
    }
}

/// Whether it is certain enough that nobody owns it.
fn check_certain(orphan: &v1::Orphan, without: &[String]) -> Result<(), ControlError> {
    let without: BTreeSet<&String> = without.iter().collect();
    let missing: Vec<&str> =
        orphan.unasked_nodes.iter().filter(|node| !without.contains(node)).map(String::as_str).collect();
    match orphan.state() {
        OrphanState::Orphan => Ok(()),
        OrphanState::Unknown if !orphan.unasked_nodes.is_empty() && missing.is_empty() => Ok(()),
        OrphanState::InUse => Err(ControlError::precondition("IN_USE", &orphan.reason)),
        OrphanState::Unknown | OrphanState::Unspecified => {
            let (kind, uuid, reason) = (orphan.kind(), &orphan.uuid, &orphan.reason);
            let mut text = format!("nobody knows whether {kind} {uuid} has an owner: {reason}");
            if !missing.is_empty() {
                text.push_str(&format!(". If these never come back, say so: --without-node {}", missing.join(",")));
            }
            Err(ControlError::precondition("OWNER_UNKNOWN", text).with("nodes", missing.join(",")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_certain_is_left_alone_until_each_silent_node_is_given_up() {
        let orphan = |state: OrphanState, nodes: &[&str]| v1::Orphan {
            state: state.into(),
            unasked_nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            ..v1::Orphan::default()
        };
        let without = |nodes: &[&str]| nodes.iter().map(|node| (*node).to_owned()).collect::<Vec<_>>();
        assert!(check_certain(&orphan(OrphanState::Orphan, &[]), &[]).is_ok());
        let unknown = orphan(OrphanState::Unknown, &["b", "c"]);
        let error = check_certain(&unknown, &without(&["b"])).expect_err("c may own it");
        assert!(error.to_string().contains("--without-node c"), "{error}");
        assert!(check_certain(&unknown, &without(&["c", "b"])).is_ok());
        assert!(
            check_certain(&orphan(OrphanState::Unknown, &[]), &without(&["b"])).is_err(),
            "it is not for want of an answer"
        );
        assert!(check_certain(&orphan(OrphanState::InUse, &["b"]), &without(&["b"])).is_err());
    }
}
