//! Which reactor has which replica: how a connection finds its way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use replica_protocol::{Open, Server};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::stream::DetachedConnection;

/// A connection on its way to the reactor of the replica it asked for.
pub(crate) struct Incoming {
    pub(crate) stream: DetachedConnection,
    pub(crate) session: Server,
    pub(crate) open: Open,
}

/// Connections that may wait for one reactor to take them in.
pub(crate) const INCOMING: usize = 64;

/// The replicas of a node, by the reactor that owns them. Shared by all of its reactors; asked once a connection.
#[derive(Clone, Default)]
pub struct Directory {
    replicas: Arc<Mutex<BTreeMap<Uuid, mpsc::Sender<Incoming>>>>,
}

impl Directory {
    /// An empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn insert(&self, replica: Uuid, sender: mpsc::Sender<Incoming>) {
        self.lock().insert(replica, sender);
    }

    pub(crate) fn remove(&self, replica: Uuid) {
        self.lock().remove(&replica);
    }

    pub(crate) fn find(&self, replica: Uuid) -> Option<mpsc::Sender<Incoming>> {
        self.lock().get(&replica).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Uuid, mpsc::Sender<Incoming>>> {
        // Each change is one call on the map: a panic elsewhere left nothing half done.
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
