//! The other nodes: one connection each, shared by all calls, made anew by itself when it breaks (L3).

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::v1;
use proto::v1::replica_service_client::ReplicaServiceClient;
use tls::{Certificates, NodeConnector};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use super::error::ControlError;
use crate::calls;
use crate::config::PeerConfig;

/// How long a peer may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one call to a peer may take in all.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a quiet connection is checked while a call waits on it.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The peers of the configuration.
pub(crate) struct Peers {
    peers: BTreeMap<String, Peer>,
}

struct Peer {
    config: PeerConfig,
    channel: Channel,
    /// How the last call to it ended.
    last_error: Mutex<Option<String>>,
}

impl Peers {
    /// Prepares a connection to each; none is made before the first call.
    ///
    /// Must be called inside a tokio runtime.
    pub(crate) fn new(
        configs: &[PeerConfig],
        certificates: Option<&Arc<Certificates>>,
    ) -> Result<Self, tonic::transport::Error> {
        let peers = configs.iter().map(|config| {
            let channel = channel(config, certificates)?;
            let peer = Peer { config: config.clone(), channel, last_error: Mutex::default() };
            Ok((config.name.clone(), peer))
        });
        Ok(Self { peers: peers.collect::<Result<_, tonic::transport::Error>>()? })
    }

    /// Their names, in the order of the alphabet.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.peers.keys().map(String::as_str)
    }

    /// Where a peer serves its replicas.
    pub(crate) fn replica_address(&self, node: &str) -> Option<SocketAddr> {
        self.peers.get(node).map(|peer| peer.config.replica)
    }

    /// Makes a replica on a peer.
    pub(crate) async fn create_replica(
        &self,
        node: &str,
        request: v1::CreateReplicaRequest,
    ) -> Result<v1::Replica, ControlError> {
        self.call(node, |mut client| async move { client.create(calls::to_peer(request, CALL_TIMEOUT)).await }).await
    }

    /// Deletes a replica on a peer.
    pub(crate) async fn delete_replica(
        &self,
        node: &str,
        request: v1::DeleteReplicaRequest,
    ) -> Result<(), ControlError> {
        self.call(node, |mut client| async move { client.delete(calls::to_peer(request, CALL_TIMEOUT)).await })
            .await
            .map(drop)
    }

    /// The peers as [`v1::NodeInfo`] shows them.
    pub(crate) fn describe(&self) -> Vec<v1::Peer> {
        self.peers
            .values()
            .map(|peer| v1::Peer {
                name: peer.config.name.clone(),
                grpc_address: peer.config.grpc.to_string(),
                replica_address: peer.config.replica.to_string(),
                last_error: peer.last_error().clone().unwrap_or_default(),
            })
            .collect()
    }

    async fn call<T, F>(
        &self,
        node: &str,
        call: impl FnOnce(ReplicaServiceClient<Channel>) -> F,
    ) -> Result<T, ControlError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let peer = self.peers.get(node).ok_or_else(|| unknown(node))?;
        let client = ReplicaServiceClient::new(peer.channel.clone());
        let answer = match tokio::time::timeout(CALL_TIMEOUT, call(client)).await {
            Ok(answer) => answer,
            Err(_) => {
                let text = format!("{} did not answer within {} s", peer.config.grpc, CALL_TIMEOUT.as_secs());
                Err(Status::deadline_exceeded(text))
            }
        };
        let answer = answer.map(Response::into_inner).map_err(|status| ControlError::of_peer(node, &status));
        *peer.last_error() = answer.as_ref().err().map(ToString::to_string);
        answer
    }
}

impl Peer {
    fn last_error(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to a peer, made when it is needed; with certificates to nobody else.
fn channel(config: &PeerConfig, certificates: Option<&Arc<Certificates>>) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{}", config.grpc))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .tcp_nodelay(true);
    Ok(match certificates {
        None => endpoint.connect_lazy(),
        Some(certificates) => {
            let connector = NodeConnector::new(Arc::clone(certificates), &config.name, config.grpc);
            endpoint.connect_with_connector_lazy(connector)
        }
    })
}

/// A node that is in no configuration here.
pub(crate) fn unknown(node: &str) -> ControlError {
    let text = format!("node `{node}` is not known here: add it under [[peers]] in this node's configuration");
    ControlError::precondition("UNKNOWN_NODE", text).with("node", node)
}
