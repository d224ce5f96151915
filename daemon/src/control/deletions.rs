//! Replicas of deleted volumes on nodes that did not answer: deleted when those are back (I42).
//!
//! Each has a record, so that a restart does not forget it, and shows its attempts and last error in `node show`. One task
//! works through them all: when a node connects, and with longer and longer pauses while nothing moves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::v1;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use uuid::Uuid;

use super::error::ControlError;
use super::peers::Peers;
use super::replicas::Replicas;
use super::retry::Backoff;
use crate::state::{Records, StateError};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A replica to delete, as the state directory knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DeletionRecord {
    pub(crate) replica: Uuid,
    pub(crate) volume: Uuid,
    pub(crate) node: String,
}

/// All replicas that wait to be deleted.
pub(crate) struct Deletions {
    node: String,
    peers: Arc<Peers>,
    replicas: Arc<Replicas>,
    records: Records<DeletionRecord>,
    waiting: Mutex<BTreeMap<Uuid, Waiting>>,
    added: Notify,
}

struct Waiting {
    record: DeletionRecord,
    attempts: u32,
    last_error: String,
}

impl Deletions {
    /// Reads the records and sets a task on them.
    pub(crate) fn start(
        node: String,
        peers: Arc<Peers>,
        replicas: Arc<Replicas>,
        records: Records<DeletionRecord>,
    ) -> Result<Arc<Self>, StateError> {
        let loaded = records.load()?;
        for error in loaded.failed {
            tracing::error!(%error, "the record of a deletion is left out");
        }
        let waiting = loaded.records.into_values().map(|record| (record.replica, Waiting::new(record))).collect();
        let waiting = Mutex::new(waiting);
        let deletions = Arc::new(Self { node, peers, replicas, records, waiting, added: Notify::new() });
        tokio::spawn(Arc::clone(&deletions).work());
        Ok(deletions)
    }

    /// Deletes a replica now.
    pub(crate) async fn delete_now(&self, record: &DeletionRecord) -> Result<(), ControlError> {
        let request = v1::DeleteReplicaRequest {
            uuid: record.replica.to_string(),
            expected_volume_uuid: record.volume.to_string(),
        };
        if record.node == self.node {
            self.replicas.delete(request).await
        } else {
            self.peers.delete_replica(&record.node, request).await
        }
    }

    /// Notes a replica that could not be deleted; durable when this returns.
    pub(crate) async fn delete_later(&self, record: DeletionRecord, error: &ControlError) -> Result<(), StateError> {
        self.records.store(record.replica, &record).await?;
        let waiting = Waiting { attempts: 1, last_error: error.to_string(), ..Waiting::new(record) };
        self.waiting().insert(waiting.record.replica, waiting);
        self.added.notify_one();
        Ok(())
    }

    /// What waits, as [`v1::NodeInfo`] shows it.
    pub(crate) fn describe(&self) -> Vec<v1::PendingDeletion> {
        let waiting = self.waiting();
        let described = waiting.values().map(|waiting| v1::PendingDeletion {
            replica_uuid: waiting.record.replica.to_string(),
            volume_uuid: waiting.record.volume.to_string(),
            node: waiting.record.node.clone(),
            attempts: waiting.attempts,
            last_error: waiting.last_error.clone(),
        });
        described.collect()
    }

    /// Whether a replica waits to be deleted, and for which node.
    pub(crate) fn waits_for(&self, replica: Uuid) -> Option<String> {
        self.waiting().get(&replica).map(|waiting| waiting.record.node.clone())
    }

    /// Those that wait for a node that is neither this one nor a peer.
    pub(crate) fn of_unknown_nodes(&self) -> Vec<DeletionRecord> {
        let waiting = self.waiting();
        let records = waiting.values().map(|waiting| &waiting.record);
        records.filter(|record| record.node != self.node && !self.peers.contains(&record.node)).cloned().collect()
    }

    /// Since when a deletion is on record, in milliseconds since the Unix epoch.
    pub(crate) async fn since(&self, replica: Uuid) -> i64 {
        self.records.changed_at(replica).await
    }

    /// Gives one up: nobody tries any more, and the replica stays where it is. One that is not there is a success.
    pub(crate) async fn forget(&self, replica: Uuid) -> Result<(), StateError> {
        self.records.remove(replica).await?;
        self.waiting().remove(&replica);
        Ok(())
    }

    async fn work(self: Arc<Self>) {
        let mut connects = self.peers.connects();
        loop {
            let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
            while !self.waiting().is_empty() {
                tokio::select! {
                    () = backoff.wait() => {}
                    // The peers live as long as this.
                    _ = connects.changed() => {}
                }
                self.attempt_all().await;
            }
            self.added.notified().await;
        }
    }

    /// Tries each once; the others on a node that did not answer wait for the next round.
    async fn attempt_all(&self) {
        let records: Vec<_> = self.waiting().values().map(|waiting| waiting.record.clone()).collect();
        let mut silent = BTreeSet::new();
        for record in records {
            if silent.contains(&record.node) {
                continue;
            }
            if let Err(error) = self.attempt(&record).await {
                tracing::debug!(replica = %record.replica, %error, "a replica still waits to be deleted");
                silent.insert(record.node);
            }
        }
    }

    async fn attempt(&self, record: &DeletionRecord) -> Result<(), ControlError> {
        let result = match self.delete_now(record).await {
            // Another volume's is not this one: there is nothing to delete (I42).
            Err(error) if !error.is_of_another_object() => Err(error),
            Ok(()) | Err(_) => self.records.remove(record.replica).await.map_err(ControlError::from),
        };
        let mut waiting = self.waiting();
        match &result {
            Ok(()) => drop(waiting.remove(&record.replica)),
            Err(error) => {
                if let Some(waiting) = waiting.get_mut(&record.replica) {
                    waiting.attempts = waiting.attempts.saturating_add(1);
                    waiting.last_error = error.to_string();
                }
            }
        }
        result
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<Uuid, Waiting>> {
        // Poisoned or not, the map is whole: no change of it has several steps.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn new(record: DeletionRecord) -> Self {
        Self { record, attempts: 0, last_error: String::new() }
    }
}
