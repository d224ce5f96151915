//! Calls to a daemon, and their errors in words.

use std::error::Error;
use std::time::Duration;

use anyhow::{anyhow, bail};
use proto::v1::engine_service_client::EngineServiceClient;
use proto::v1::lvol_service_client::LvolServiceClient;
use proto::v1::node_service_client::NodeServiceClient;
use proto::v1::replica_service_client::ReplicaServiceClient;
use proto::v1::store_service_client::StoreServiceClient;
use proto::v1::volume_service_client::VolumeServiceClient;
use tls::{ClientConnector, Files};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than any call of the daemon to its peers.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// What tonic says of a connection that ended under a call.
const ENDED: &str = "transport error";
/// And of one that ended before the call was on its way.
const CANCELLED: &str = "operation was canceled";

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
        Self::connect_as(server, None).await
    }

    /// The same with a certificate, which a URL with `https` needs.
    pub async fn connect_as(server: &str, certificate: Option<&Files>) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(server.to_owned())
            .ok()
            .filter(|endpoint| matches!(endpoint.uri().scheme_str(), Some("http" | "https")))
            .ok_or_else(|| anyhow!("`{server}` cannot be a server; write --server http://ADDRESS:PORT, or https://…"))?
            .connect_timeout(CONNECT_TIMEOUT);
        let bounded = endpoint.clone().timeout(CALL_TIMEOUT);
        let (patient, channel) = match (endpoint.uri().scheme_str(), certificate) {
            (Some("https"), Some(files)) => {
                let connector = ClientConnector::new(files)?;
                let patient = endpoint.connect_with_connector_lazy(connector.clone());
                (patient, bounded.connect_with_connector(connector).await)
            }
            (Some("https"), None) => bail!(
                "{server} asks for a certificate: name it with --tls-cert, --tls-key and --tls-ca, or ASHLAR_TLS_CERT, \
                 ASHLAR_TLS_KEY and ASHLAR_TLS_CA (docs/security.md)"
            ),
            _ => (endpoint.connect_lazy(), bounded.connect().await),
        };
        let channel = channel.map_err(|error| unreached(server, &innermost(&error)))?;
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

    /// Its engines.
    pub fn engines(&self) -> EngineServiceClient<Channel> {
        EngineServiceClient::new(self.channel.clone())
    }

    /// Its volumes.
    pub fn volumes(&self) -> VolumeServiceClient<Channel> {
        VolumeServiceClient::new(self.channel.clone())
    }
}

/// Why there is no connection, and what to do.
fn unreached(server: &str, cause: &str) -> anyhow::Error {
    let hint = match cause.contains("certificate") {
        true => "Compare its certificate with --server and --tls-ca (docs/security.md).",
        false => {
            "Is it running there? Start it with `ashlard --config FILE`, or name another one with --server URL or \
             ASHLAR_SERVER."
        }
    };
    anyhow!("cannot reach ashlard at {server}: {cause}\n{hint}")
}

/// The answer of a call, or its error as text that says what to do.
pub fn answer<T>(result: Result<Response<T>, Status>) -> anyhow::Result<T> {
    result.map(Response::into_inner).map_err(|status| anyhow!(explain(&status)))
}

fn explain(status: &Status) -> String {
    let message = match (status.message(), status.source()) {
        (ENDED | CANCELLED, Some(source)) => format!("the daemon ended the connection: {}", innermost(source)),
        (ENDED | CANCELLED, None) => "the daemon ended the connection".to_owned(),
        ("", _) => format!("{:?}", status.code()),
        (message, _) => message.to_owned(),
    };
    match hint(status) {
        Some(hint) => format!("{message}\n{hint}"),
        None => message,
    }
}

fn hint(status: &Status) -> Option<&'static str> {
    // A daemon that refuses a certificate does so after the client believes itself connected: with the first call.
    if [ENDED, CANCELLED].contains(&status.message()) {
        return Some("It stopped, or it refuses your certificate; its log says why. Sending the same again is safe.");
    }
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
        (Code::PermissionDenied, Some("ROLE")) => Some("Ask with another certificate: --tls-cert and --tls-key."),
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
        assert!(explain(&Status::cancelled(CANCELLED)).starts_with("the daemon ended the connection\nIt stopped, or"));
    }
}
