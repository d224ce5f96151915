//! Calls to a daemon, and their errors in words.

use std::error::Error;
use std::time::Duration;

use anyhow::anyhow;
use proto::v1::engine_service_client::EngineServiceClient;
use proto::v1::lvol_service_client::LvolServiceClient;
use proto::v1::node_service_client::NodeServiceClient;
use proto::v1::orphan_service_client::OrphanServiceClient;
use proto::v1::replica_service_client::ReplicaServiceClient;
use proto::v1::store_service_client::StoreServiceClient;
use proto::v1::volume_service_client::VolumeServiceClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than any call of the daemon to its peers.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to one daemon.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    /// The same without a limit of time, connected when it is needed.
    patient: Channel,
}

impl Client {
    /// Connects to `server`, a URL such as `http://127.0.0.1:9500`.
    pub async fn connect(server: &str) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(server.to_owned())
            .ok()
            .filter(|endpoint| endpoint.uri().scheme_str() == Some("http"))
            .ok_or_else(|| anyhow!("`{server}` cannot be a server; write --server http://ADDRESS:PORT"))?
            .connect_timeout(CONNECT_TIMEOUT);
        let patient = endpoint.connect_lazy();
        let channel = endpoint.timeout(CALL_TIMEOUT).connect().await.map_err(|error| {
            anyhow!(
                "cannot reach ashlard at {server}: {}\nIs it running there? Start it with `ashlard --config FILE`, or \
                 name another one with --server URL or ASHLAR_SERVER.",
                innermost(&error)
            )
        })?;
        Ok(Self { channel, patient })
    }

    /// The node.
    pub fn node(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone())
    }

    /// The same for what comes for as long as somebody listens.
    pub fn patient_node(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.patient.clone())
    }

    /// Its stores.
    pub fn stores(&self) -> StoreServiceClient<Channel> {
        StoreServiceClient::new(self.channel.clone())
    }

    /// Its lvols.
    pub fn lvols(&self) -> LvolServiceClient<Channel> {
        LvolServiceClient::new(self.channel.clone())
    }

    /// The same for exports and imports, which take as long as they take.
    pub fn transfers(&self) -> LvolServiceClient<Channel> {
        LvolServiceClient::new(self.patient.clone())
    }

    /// Its replicas.
    pub fn replicas(&self) -> ReplicaServiceClient<Channel> {
        ReplicaServiceClient::new(self.channel.clone())
    }

    /// What belongs to nobody there.
    pub fn orphans(&self) -> OrphanServiceClient<Channel> {
        OrphanServiceClient::new(self.channel.clone())
    }

    /// Its engines.
    pub fn engines(&self) -> EngineServiceClient<Channel> {
        EngineServiceClient::new(self.channel.clone())
    }

    /// Its volumes.
    pub fn volumes(&self) -> VolumeServiceClient<Channel> {
        VolumeServiceClient::new(self.channel.clone())
    }
}

/// The answer of a call, or its error as text that says what to do.
pub fn answer<T>(result: Result<Response<T>, Status>) -> anyhow::Result<T> {
    result.map(Response::into_inner).map_err(|status| anyhow!(explain(&status)))
}

fn explain(status: &Status) -> String {
    let message = match status.message() {
        "" => format!("{:?}", status.code()),
        message => message.to_owned(),
    };
    match hint(status) {
        Some(hint) => format!("{message}\n{hint}"),
        None => message,
    }
}

fn hint(status: &Status) -> Option<&'static str> {
    let reason = proto::error::info(status).map(|info| info.reason);
    match (status.code(), reason.as_deref()) {
        (Code::FailedPrecondition, Some("CONFLICT" | "EXISTS")) => {
            Some("Nothing was changed. Choose another name, or delete the existing one first.")
        }
        (Code::FailedPrecondition, Some("REPLICA_LVOL")) => {
            Some("Commands that change it are `ashlar volume …` and `ashlar snapshot …`, on the volume's node.")
        }
        (Code::DataLoss, Some("CHECKSUM")) => {
            Some("Send the same command again; if it stays so, look at the machines.")
        }
        (Code::NotFound, Some("NOT_FOUND")) => Some("List what there is with `ashlar … list`."),
        (Code::Unimplemented, _) => Some("The daemon is of another version than this command."),
        (Code::DeadlineExceeded | Code::Cancelled, _) => {
            Some("The daemon may still be working on it: sending the same command again is safe.")
        }
        _ => None,
    }
}

/// The cause at the bottom of a chain: "connection refused" rather than "transport error".
fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_happened_and_what_to_do() {
        let status = proto::error::status(Code::FailedPrecondition, "volume `v` differs", "CONFLICT", [("a", "b")]);
        assert_eq!(
            explain(&status),
            "volume `v` differs\nNothing was changed. Choose another name, or delete the existing one first."
        );
        assert_eq!(explain(&Status::internal("broken")), "broken");
    }
}
