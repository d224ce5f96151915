//! The other nodes: a pool with one connection to each, shared by all calls (L3).
//!
//! A task for each peer keeps its connection, from the start of the daemon to its end: [`peer`] has its states. A call that fails
//! leaves nothing behind but its count.

mod connection;
mod peer;

use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::v1;
use proto::v1::orphan_service_client::OrphanServiceClient;
use proto::v1::replica_service_client::ReplicaServiceClient;
use tls::Certificates;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Response, Status};

use self::peer::Peer;
use super::error::ControlError;
use crate::calls;
use crate::config::PeerConfig;
use crate::failpoint;

/// How long one call to a peer may take in all.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The peers of the configuration.
pub(crate) struct Peers {
    peers: BTreeMap<String, Kept>,
    /// Counts connections that were made.
    connected: watch::Sender<u64>,
}

/// A peer and the task that keeps its connection; it ends with this.
struct Kept {
    peer: Arc<Peer>,
    keeper: JoinHandle<()>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Peers {
    /// Begins to connect to each; nobody waits for that.
    ///
    /// Must be called inside a tokio runtime.
    pub(crate) fn new(configs: &[PeerConfig], certificates: Option<&Arc<Certificates>>) -> Self {
        let connected = watch::Sender::new(0);
        let peers = configs.iter().map(|config| {
            let peer = Peer::new(config.clone(), certificates.cloned());
            let keeper = tokio::spawn(Arc::clone(&peer).keep(connected.clone()));
            (config.name.clone(), Kept { peer, keeper })
        });
        Self { peers: peers.collect(), connected }
    }

    /// Their names, in the order of the alphabet.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.peers.keys().map(String::as_str)
    }

    /// Whether this is one of them.
    pub(crate) fn contains(&self, node: &str) -> bool {
        self.peers.contains_key(node)
    }

    /// Where a peer serves its replicas.
    pub(crate) fn replica_address(&self, node: &str) -> Option<SocketAddr> {
        self.peers.get(node).map(|kept| kept.peer.replica_address())
    }

    /// Sent to when a connection was made.
    pub(crate) fn connects(&self) -> watch::Receiver<u64> {
        self.connected.subscribe()
    }

    /// Makes a replica on a peer.
    pub(crate) async fn create_replica(
        &self,
        node: &str,
        request: v1::CreateReplicaRequest,
    ) -> Result<v1::Replica, ControlError> {
        self.call(node, |channel| async move {
            ReplicaServiceClient::new(channel).create(calls::to_peer(request, CALL_TIMEOUT)).await
        })
        .await
    }

    /// Deletes a replica on a peer.
    pub(crate) async fn delete_replica(
        &self,
        node: &str,
        request: v1::DeleteReplicaRequest,
    ) -> Result<(), ControlError> {
        let call = |channel| async move {
            ReplicaServiceClient::new(channel).delete(calls::to_peer(request, CALL_TIMEOUT)).await
        };
        self.call(node, call).await.map(drop)
    }

    /// What a peer says of replicas that may be those of its volumes.
    pub(crate) async fn claims(
        &self,
        node: &str,
        request: v1::ListClaimsRequest,
    ) -> Result<Vec<v1::Claim>, ControlError> {
        let call = |channel| async move {
            OrphanServiceClient::new(channel).list_claims(calls::to_peer(request, CALL_TIMEOUT)).await
        };
        self.call(node, call).await.map(|answer| answer.claims)
    }

    /// The peers as [`v1::NodeInfo`] shows them.
    pub(crate) fn describe(&self) -> Vec<v1::Peer> {
        self.peers.values().map(|kept| kept.peer.describe()).collect()
    }

    async fn call<T, F>(&self, node: &str, call: impl FnOnce(Channel) -> F) -> Result<T, ControlError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let peer = &self.peers.get(node).ok_or_else(|| unknown(node))?.peer;
        let called = async {
            // Never closed.
            let _turn = peer.calls.acquire().await;
            let channel = peer.channel().await?;
            let answer = call(channel).await;
            if answer.as_ref().map_or_else(is_refusal, |_| true) {
                peer.answered();
            }
            answer.map(Response::into_inner).map_err(|status| failed_call(node, &status))
        };
        let limited = async {
            match tokio::time::timeout(CALL_TIMEOUT, called).await {
                Ok(answer) => answer,
                Err(_) => {
                    let text = format!("{} did not answer within {} s", peer.config.grpc, CALL_TIMEOUT.as_secs());
                    Err(ControlError::of_peer(node, &Status::deadline_exceeded(text)))
                }
            }
        };
        let answer = failpoint::step("a call to a peer", limited).await;
        peer.note(answer.as_ref().err());
        answer
    }
}

/// Whether it is what the peer answered, and not what became of the connection.
fn is_refusal(status: &Status) -> bool {
    proto::error::info(status).is_some()
}

fn failed_call(node: &str, status: &Status) -> ControlError {
    match status.source() {
        // Broken in the middle: which of the library's words it is says little.
        Some(cause) if !is_refusal(status) => {
            ControlError::of_peer(node, &Status::unavailable(connection::innermost(cause)))
        }
        _ => ControlError::of_peer(node, status),
    }
}

/// A node that is in no configuration here.
pub(crate) fn unknown(node: &str) -> ControlError {
    let text = format!("node `{node}` is not known here: add it under [[peers]] in this node's configuration");
    ControlError::precondition("UNKNOWN_NODE", text).with("node", node)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use proto::v1::PeerState;
    use tokio::runtime::Handle;

    use super::*;

    fn peers(grpc: SocketAddr) -> Peers {
        Peers::new(&[PeerConfig { name: "b".to_owned(), grpc, replica: grpc }], None)
    }

    async fn until(peers: &Peers, is_so: impl Fn(&v1::Peer) -> bool) -> v1::Peer {
        loop {
            let peer = peers.describe().remove(0);
            if is_so(&peer) {
                return peer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn calls_to_a_peer_that_is_away_fail_with_the_reason_and_leave_nothing() {
        let tasks = || Handle::current().metrics().num_alive_tasks();
        let before = tasks();
        // Nobody listens there any more.
        let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("an address");
        let pool = peers(address);
        for _ in 0..1000 {
            let error = pool.delete_replica("b", v1::DeleteReplicaRequest::default()).await.expect_err("away");
            assert!(error.to_string().starts_with("node `b`: "), "{error}");
        }
        let peer = until(&pool, |peer| peer.state() == PeerState::Waiting).await;
        assert_eq!((peer.calls, peer.failed_calls, peer.calls_in_flight, peer.connects), (1000, 1000, 0, 0));
        assert!(peer.attempts > 0 && peer.last_error.contains("refused") && peer.next_try_ms.is_some(), "{peer:?}");
        assert!(peer.failed_connects < 500, "calls have a budget of attempts: {peer:?}");
        let error = pool.delete_replica("c", v1::DeleteReplicaRequest::default()).await.expect_err("no peer");
        assert!(error.to_string().contains("not known here"), "{error}");
        drop(pool);
        while tasks() > before {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_connection_is_made_again_and_is_one_at_a_time() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let pool = peers(listener.local_addr().expect("an address"));
        for round in 1..4 {
            let (socket, _) = listener.accept().await.expect("it connects");
            let peer = until(&pool, |peer| peer.state() == PeerState::Connected).await;
            assert_eq!(peer.connects, round);
            assert_eq!((peer.attempts, peer.last_error.as_str()), (0, ""));
            // It hangs up.
            drop(socket);
            let peer = until(&pool, |peer| peer.state() != PeerState::Connected || peer.connects > round).await;
            // It may be there again by now.
            if peer.state() != PeerState::Connected {
                assert!(peer.attempts > 0 && peer.last_error.contains("was lost"), "{peer:?}");
            }
        }
    }
}
