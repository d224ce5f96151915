//! Replicas that nobody may own: what they say of themselves, and how they are deleted without cutting an engine off.

use uuid::Uuid;

use super::attribute::{MEMBERSHIP, OWNER};
use super::{ReplicaError, ReplicaServer};

impl ReplicaServer {
    /// Whether an engine has the replica open.
    pub fn is_open(&self, replica: Uuid) -> bool {
        let entry = self.inner.replicas.borrow().get(&replica).cloned();
        entry.is_some_and(|entry| entry.gates.borrow().iter().any(|gate| gate.ended().is_none()))
    }

    /// The copy of the membership record that the last engine left with the replica, its bytes.
    pub fn membership_copy(&self, replica: Uuid) -> Option<Vec<u8>> {
        let (head, _) = self.inner.head(replica)?;
        head.attributes.get(MEMBERSHIP).cloned()
    }

    /// The name of the node whose volume the replica is of, if it was told.
    pub fn owner_node(&self, replica: Uuid) -> Option<String> {
        let (head, _) = self.inner.head(replica)?;
        String::from_utf8(head.attributes.get(OWNER)?.clone()).ok()
    }

    /// Notes whose volume the replica is of. Durable when this returns.
    pub async fn set_owner_node(&self, replica: Uuid, node: &str) -> Result<(), ReplicaError> {
        let entry = self.inner.entry(replica);
        let _changing = entry.changing.lock().await;
        let (head, _) = self.inner.head(replica).ok_or(ReplicaError::NotFound { replica })?;
        if head.attributes.get(OWNER).map(Vec::as_slice) != Some(node.as_bytes()) {
            let change = (OWNER.to_owned(), Some(node.as_bytes().to_vec()));
            self.inner.store.set_attributes(head.uuid, &[change]).await?;
        }
        Ok(())
    }

    /// Deletes a replica of this volume that no engine has open, and none has opened since its epoch was `epoch`: under the lock that an
    /// engine needs to open it. It finds nothing to do when there is none (I42).
    pub async fn delete_unused(&self, replica: Uuid, volume: Uuid, epoch: u64) -> Result<(), ReplicaError> {
        let entry = self.inner.entry(replica);
        let _changing = entry.changing.lock().await;
        if let Some((_, found)) = self.inner.head(replica) {
            if found.volume != volume {
                return Err(ReplicaError::OtherVolume { replica, volume: found.volume });
            }
            if found.epoch != epoch || self.is_open(replica) {
                return Err(ReplicaError::InUse { replica });
            }
        }
        self.inner.delete_locked(replica, &entry).await
    }

    /// Deletes the lvols of a replica that has no head any more.
    pub async fn delete_remains(&self, replica: Uuid) -> Result<(), ReplicaError> {
        let entry = self.inner.entry(replica);
        let _changing = entry.changing.lock().await;
        if self.inner.head(replica).is_some() {
            return Err(ReplicaError::InUse { replica });
        }
        self.inner.delete_locked(replica, &entry).await
    }
}
