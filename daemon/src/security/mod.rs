//! Who may do what, and what keeps others out: docs/security.md.
//!
//! - [`accept`]: connections to the API, with TLS where it is configured, each with its [`Caller`].
//! - [`authorize`]: lets a caller call what its role may, by the table in [`methods`].
//! - [`replicas`]: TLS for the replica protocol.

mod accept;
mod authorize;
mod methods;
mod replicas;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use proto::v1;
use tls::{Certificates, Report, Who};
use tokio::signal::unix::Signal;

pub(crate) use self::accept::incoming;
pub(crate) use self::authorize::Authorize;
pub(crate) use self::replicas::NodeSecurity;

use crate::config::Config;
use crate::control::Control;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

const DAY: i64 = 24 * 60 * 60;

/// Who calls the API.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// Anybody: there is no TLS.
    Anybody,
    /// Whoever the certificate says.
    Known(Who),
    /// Somebody with a good certificate that says nothing here; the text says why.
    Nobody(String),
}

/// The certificates of the configuration, if there are any.
pub(crate) fn load(config: &Config) -> anyhow::Result<Option<Arc<Certificates>>> {
    let Some(files) = &config.tls else { return Ok(None) };
    let peers = config.peers.iter().map(|peer| peer.name.clone());
    Certificates::load(files.clone(), &config.node, peers).map(Some).context("[tls]")
}

/// Says in the log what is open to everybody, or to nobody any more.
pub(crate) fn warn(config: &Config, certificates: Option<&Arc<Certificates>>) {
    if config.insecure {
        tracing::warn!(
            grpc = %config.grpc, replica = %config.replica,
            "plaintext is allowed (insecure): whoever reaches these addresses may do everything, and read and change every volume"
        );
    }
    if let Some(certificates) = certificates.filter(|certificates| certificates.has_ended()) {
        let not_after = certificates.not_after();
        tracing::error!(
            not_after,
            "this node's certificate has ended: peers and clients refuse it until there is another one"
        );
    }
}

/// Looks at the files every [`LOOK`], and at each SIGHUP, for as long as the runtime lives.
pub(crate) fn watch(certificates: Option<Arc<Certificates>>, control: Arc<Control>, mut hangup: Signal) {
    tokio::spawn(async move {
        let Some(certificates) = certificates else {
            while hangup.recv().await.is_some() {
                tracing::info!("SIGHUP: there are no certificates to read again");
            }
            return;
        };
        loop {
            let asked = tokio::time::timeout(LOOK, hangup.recv()).await.is_ok();
            let looking = Arc::clone(&certificates);
            // Files may be slow.
            let report = tokio::task::spawn_blocking(move || looking.refresh(asked)).await;
            match report {
                Ok(Some(Report::Replaced)) => {
                    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                    let left = certificates.not_after().saturating_sub_unsigned(now.as_secs());
                    control.happened("certificate-replaced", &format!("it is good for {} day(s)", left / DAY));
                }
                Ok(Some(Report::Refused(problem))) => {
                    tracing::error!(problem, "the certificate files are not good: the old ones stay in use");
                    control.happened("certificate-refused", &problem);
                }
                Ok(None) => {}
                Err(ended) => tracing::error!(%ended, "looking at the certificate files failed"),
            }
        }
    });
}

/// The certificate as [`v1::NodeInfo`] shows it.
pub(crate) fn describe(certificates: &Certificates) -> v1::NodeCertificate {
    v1::NodeCertificate {
        identity: certificates.identity().to_string(),
        not_after_unix_ms: certificates.not_after().saturating_mul(1000),
        problem: certificates.problem().unwrap_or_default(),
    }
}
