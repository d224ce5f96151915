//! How an engine gets to its replicas.

use std::rc::Rc;

use replica::{LocalFuture, OpenError, OpenReplica, RemoteOptions, RemoteReplica, Replica, ReplicaServer};
use uuid::Uuid;

use crate::registry::ReplicaRecord;

/// Opens replicas.
pub trait Connector {
    /// Opens one; takes as long as it takes, but not for ever.
    fn open(&self, record: &ReplicaRecord, open: OpenReplica) -> LocalFuture<'_, Result<Rc<dyn Replica>, OpenError>>;
}

/// Opens replicas of this reactor directly and others through a connection.
pub(crate) struct NodeConnector {
    pub(crate) local: Vec<(Uuid, ReplicaServer)>,
    pub(crate) remote: RemoteOptions,
}

impl Connector for NodeConnector {
    fn open(&self, record: &ReplicaRecord, open: OpenReplica) -> LocalFuture<'_, Result<Rc<dyn Replica>, OpenError>> {
        let local = self.local.iter().find(|(replica, _)| *replica == record.replica);
        if let Some((_, server)) = local {
            return Box::pin(async move { Ok(server.open_local(open).await? as Rc<dyn Replica>) });
        }
        let (node, address) = (record.node.clone(), record.address);
        Box::pin(async move {
            let replica = RemoteReplica::connect_to(&node, address, &open, &self.remote).await?;
            Ok(replica as Rc<dyn Replica>)
        })
    }
}
