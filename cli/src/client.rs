//! Calls to a daemon, and their errors in words.

mod backups;
mod changes;
mod pages;

use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{anyhow, bail};
use proto::v1::backup_schedule_service_client::BackupScheduleServiceClient;
use proto::v1::backup_service_client::BackupServiceClient;
use proto::v1::backup_target_service_client::BackupTargetServiceClient;
use proto::v1::engine_service_client::EngineServiceClient;
use proto::v1::lvol_service_client::LvolServiceClient;
use proto::v1::node_service_client::NodeServiceClient;
use proto::v1::operation_service_client::OperationServiceClient;
use proto::v1::orphan_service_client::OrphanServiceClient;
use proto::v1::replica_service_client::ReplicaServiceClient;
use proto::v1::standby_service_client::StandbyServiceClient;
use proto::v1::store_service_client::StoreServiceClient;
use proto::v1::volume_service_client::VolumeServiceClient;
use serde_json::json;
use tls::{ClientConnector, Files};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::hints::hint;

pub(crate) use self::changes::Changes;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than any call of the daemon to its peers.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// What tonic says of a connection that ended under a call.
pub(crate) const ENDED: &str = "transport error";
/// And of one that ended before the call was on its way.
pub(crate) const CANCELLED: &str = "operation was canceled";

/// Which daemon is asked, and as whom.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    /// Its URL.
    pub(crate) server: String,
    /// For `https`.
    pub(crate) certificate: Option<Files>,
    /// `http` is allowed beyond this machine.
    pub(crate) insecure: bool,
}

impl Destination {
    /// # Errors
    /// When it cannot be reached, or must not be in this way.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let url = Endpoint::from_shared(self.server.clone()).ok();
        let host = url.as_ref().filter(|url| url.uri().scheme_str() == Some("http")).and_then(|url| url.uri().host());
        if let Some(host) = host.filter(|host| !self.insecure && !is_this_machine(host)) {
            // As the daemon refuses to listen there.
            bail!(
                "{host} is not on loopback, and http:// is plaintext: whoever is on the way reads and changes what is asked\n\
                 Name it with https:// and a certificate (docs/security.md), or allow plaintext with --insecure."
            );
        }
        Client::connect_as(&self.server, self.certificate.as_ref()).await
    }
}

/// Whether a host of a URL is on loopback.
fn is_this_machine(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse();
    host == "localhost" || address.is_ok_and(|address: IpAddr| address.is_loopback())
}

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

    /// The same for what becomes of them for as long as somebody listens.
    pub fn patient_stores(&self) -> StoreServiceClient<Channel> {
        StoreServiceClient::new(self.patient.clone())
    }

    /// Its lvols.
    pub fn lvols(&self) -> LvolServiceClient<Channel> {
        LvolServiceClient::new(self.channel.clone())
    }

    /// The same for exports, imports and watches, which take as long as they take.
    pub fn transfers(&self) -> LvolServiceClient<Channel> {
        LvolServiceClient::new(self.patient.clone())
    }

    /// Its replicas.
    pub fn replicas(&self) -> ReplicaServiceClient<Channel> {
        ReplicaServiceClient::new(self.channel.clone())
    }

    /// The same for what becomes of them for as long as somebody listens.
    pub fn patient_replicas(&self) -> ReplicaServiceClient<Channel> {
        ReplicaServiceClient::new(self.patient.clone())
    }

    /// What belongs to nobody there.
    pub fn orphans(&self) -> OrphanServiceClient<Channel> {
        OrphanServiceClient::new(self.channel.clone())
    }

    /// The same for what becomes of it for as long as somebody listens.
    pub fn patient_orphans(&self) -> OrphanServiceClient<Channel> {
        OrphanServiceClient::new(self.patient.clone())
    }

    /// Its engines.
    pub fn engines(&self) -> EngineServiceClient<Channel> {
        EngineServiceClient::new(self.channel.clone())
    }

    /// Its volumes.
    pub fn volumes(&self) -> VolumeServiceClient<Channel> {
        VolumeServiceClient::new(self.channel.clone())
    }

    /// The same for what becomes of them for as long as somebody listens.
    pub fn patient_volumes(&self) -> VolumeServiceClient<Channel> {
        VolumeServiceClient::new(self.patient.clone())
    }

    /// Where it keeps backups.
    pub fn targets(&self) -> BackupTargetServiceClient<Channel> {
        // A check may have to wait for each of its steps.
        BackupTargetServiceClient::new(self.patient.clone())
    }

    /// Backups, of its volumes and in its targets. A target with many answers as slowly as it is.
    pub fn backups(&self) -> BackupServiceClient<Channel> {
        BackupServiceClient::new(self.patient.clone())
    }

    /// Its standby volumes.
    pub fn standbys(&self) -> StandbyServiceClient<Channel> {
        StandbyServiceClient::new(self.channel.clone())
    }

    /// Its schedules.
    pub fn schedules(&self) -> BackupScheduleServiceClient<Channel> {
        BackupScheduleServiceClient::new(self.channel.clone())
    }

    /// Its long work.
    pub fn operations(&self) -> OperationServiceClient<Channel> {
        OperationServiceClient::new(self.channel.clone())
    }

    /// The same for what becomes of it for as long as somebody listens.
    pub fn patient_operations(&self) -> OperationServiceClient<Channel> {
        OperationServiceClient::new(self.patient.clone())
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

/// The answer of a call, or its error, a [`CallError`].
pub fn answer<T>(result: Result<Response<T>, Status>) -> anyhow::Result<T> {
    result.map(Response::into_inner).map_err(|status| CallError(status).into())
}

/// A call that failed. It reads as what happened and, on a line of its own, what to try next.
#[derive(Debug)]
pub struct CallError(pub Status);

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.message(), self.0.source()) {
            (ENDED | CANCELLED, Some(source)) => write!(f, "the daemon ended the connection: {}", innermost(source))?,
            (ENDED | CANCELLED, None) => f.write_str("the daemon ended the connection")?,
            ("", _) => write!(f, "{:?}", self.0.code())?,
            (message, _) => f.write_str(message)?,
        }
        match hint(&self.0) {
            Some(hint) => write!(f, "\n{hint}"),
            None => Ok(()),
        }
    }
}

impl Error for CallError {}

/// Whether the same may succeed in a while: nobody answered, or not in time.
pub(crate) fn is_transient(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<CallError>().map(|error| error.0.code());
    matches!(code, Some(Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled))
}

/// An error for programs.
pub(crate) fn describe(error: &anyhow::Error) -> serde_json::Value {
    let text = format!("{error:#}");
    let Some(CallError(status)) = error.downcast_ref() else {
        return json!({ "error": text });
    };
    let info = proto::error::info(status).unwrap_or_default();
    json!({
        "error": text.lines().next(),
        "code": format!("{:?}", status.code()),
        "reason": info.reason,
        "details": info.metadata,
        "hint": hint(status),
    })
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
        let error = answer::<()>(Err(status)).expect_err("it is one");
        assert_eq!(
            error.to_string(),
            "volume `v` differs\nNothing was changed. Choose another name, or delete the existing one first."
        );
        assert!(!is_transient(&error));
        let told = describe(&error);
        assert_eq!((&told["error"], &told["reason"]), (&json!("volume `v` differs"), &json!("CONFLICT")));
        assert_eq!((&told["code"], &told["details"]["a"]), (&json!("FailedPrecondition"), &json!("b")));
        let plain = answer::<()>(Err(Status::internal("broken"))).expect_err("it is one");
        assert_eq!(plain.to_string(), "broken");
        assert_eq!(describe(&anyhow!("cannot read it")), json!({ "error": "cannot read it" }));
    }

    #[tokio::test]
    async fn plaintext_stays_on_this_machine_unless_it_is_asked_for() {
        let error = async |server: &str, insecure| {
            let destination = Destination { server: server.to_owned(), certificate: None, insecure };
            destination.connect().await.expect_err("nobody is there").to_string()
        };
        for elsewhere in ["http://192.0.2.1:9", "http://[2001:db8::1]:9", "http://node.example:9", "http://0.0.0.0:9"] {
            assert!(error(elsewhere, false).await.contains("--insecure"), "{elsewhere}");
        }
        // Nobody listens at port 1.
        for here in ["http://127.8.0.1:1", "http://[::1]:1", "http://localhost:1"] {
            assert!(error(here, false).await.starts_with("cannot reach ashlard"), "{here}");
        }
        assert!(error("http://0.0.0.0:1", true).await.starts_with("cannot reach ashlard"));
        assert!(error("https://192.0.2.1:9", false).await.contains("--tls-cert"));
        assert!(error("192.0.2.1:9", false).await.contains("cannot be a server"));
    }

    #[test]
    fn who_does_not_answer_is_asked_again() {
        let error = answer::<()>(Err(Status::unavailable("gone"))).expect_err("it is one");
        assert!(is_transient(&error));
        assert!(is_transient(&error.context("while asking")));
        let cut = answer::<()>(Err(Status::cancelled(CANCELLED))).expect_err("it is one");
        assert!(cut.to_string().starts_with("the daemon ended the connection\nIt stopped, or"), "{cut}");
    }
}
