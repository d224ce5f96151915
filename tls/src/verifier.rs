//! Whether the other side's certificate is good, and of whom it has to be.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved, RootCertStore,
    SignatureScheme,
};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationOptions, RevocationOptionsBuilder,
};

use crate::{Identity, Who};

/// Who may be at the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    /// This node of the domain.
    Node(String),
    /// Any of these.
    Peers(Arc<BTreeSet<String>>),
}

impl Expected {
    fn check(&self, domain: &str, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let identity = Identity::of(certificate).map_err(other)?;
        if identity.domain != domain {
            return Err(other(format!("it is of the domain {}, and this is {domain}", identity.domain)));
        }
        match (self, &identity.who) {
            (Self::Node(expected), Who::Node(name)) if name == expected => Ok(()),
            (Self::Peers(peers), Who::Node(name)) if peers.contains(name) => Ok(()),
            (Self::Node(expected), who) => Err(other(format!("it is of {who}, and node {expected} is expected"))),
            (Self::Peers(_), who @ Who::Node(_)) => {
                Err(other(format!("it is of {who}, which is no peer of this node")))
            }
            (Self::Peers(_), who) => Err(other(format!("it is of {who}, and only nodes may do this"))),
        }
    }
}

struct Reason(String);

/// Errors of rustls show it in this way.
impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Reason {}

fn other(text: String) -> Error {
    CertificateError::Other(OtherError(Arc::new(Reason(text)))).into()
}

/// A server that has to be a certain node, wherever it is.
#[derive(Debug)]
pub(crate) struct NodeVerifier {
    pub(crate) chains: Arc<Chains>,
    pub(crate) domain: String,
    pub(crate) expected: Expected,
}

/// Which certificates lead to an authority.
#[derive(Debug)]
pub(crate) struct Chains {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) revoked: Vec<CertRevocationList<'static>>,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

impl Chains {
    /// Whether the certificate is valid now for a server.
    pub(crate) fn verify_server(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let revoked: Vec<_> = self.revoked.iter().collect();
        let certificate = EndEntityCert::try_from(certificate)?;
        let verified = certificate.verify_for_usage(
            self.algorithms.all,
            &self.roots.roots,
            intermediates,
            now,
            KeyUsage::server_auth(),
            options(&revoked),
            None,
        );
        verified.map(drop)
    }
}

/// None without lists. Who is in none of them, or in one that is too old, is refused.
fn options<'a>(revoked: &'a [&'a CertRevocationList<'a>]) -> Option<RevocationOptions<'a>> {
    let builder = RevocationOptionsBuilder::new(revoked).ok()?;
    Some(builder.with_expiration_policy(ExpirationPolicy::Enforce).build())
}

impl ServerCertVerifier for NodeVerifier {
    /// By name of the node: addresses may change.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.chains.verify_server(end_entity, intermediates, now);
        verified.map_err(|error| certificate_error(&error))?;
        self.expected.check(&self.domain, end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerMisbehaved::SelectedUnofferedCipherSuite.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.chains.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.algorithms.supported_schemes()
    }
}

fn certificate_error(error: &webpki::Error) -> Error {
    match error {
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer.into(),
        webpki::Error::CertExpired { .. } => CertificateError::Expired.into(),
        webpki::Error::CertRevoked => CertificateError::Revoked.into(),
        error => other(error.to_string()),
    }
}

/// A client that has to be one of the peers. Whether its certificate is good is left to the usual verifier.
#[derive(Debug)]
pub(crate) struct PeersVerifier {
    pub(crate) usual: Arc<dyn ClientCertVerifier>,
    pub(crate) domain: String,
    pub(crate) expected: Expected,
}

impl ClientCertVerifier for PeersVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.usual.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.usual.verify_client_cert(end_entity, intermediates, now)?;
        self.expected.check(&self.domain, end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}
