//! From the content of the files to what rustls works with.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use crate::files::{Content, Files};
use crate::validity::not_after;
use crate::verifier::{Chains, Expected, NodeVerifier, PeersVerifier};
use crate::{Identity, TlsError, Who};

/// The API.
const HTTP2: &[u8] = b"h2";
/// The replica protocol inside of TLS.
pub(crate) const REPLICA: &[u8] = b"ashlar-replica";

/// Certificates of a node that go together. Connections keep the one they began with.
pub(crate) struct Set {
    pub(crate) identity: Identity,
    /// Seconds since the Unix epoch.
    pub(crate) not_after: i64,
    pub(crate) api: Arc<ServerConfig>,
    pub(crate) replicas: Arc<ServerConfig>,
    /// Who may be a client of the API.
    pub(crate) clients: Arc<dyn ClientCertVerifier>,
    /// Who may reach replicas.
    pub(crate) peers: Arc<dyn ClientCertVerifier>,
    own: Own,
    chains: Arc<Chains>,
}

/// What proves who we are.
#[derive(Clone)]
pub(crate) struct Own {
    provider: Arc<CryptoProvider>,
    certificate: Arc<SingleCertAndKey>,
}

impl Set {
    /// Reads the files of the node `node`, and checks them as far as they can be checked without another side. `peers` are the nodes
    /// that may reach its replicas.
    pub(crate) fn read(files: &Files, node: &str, peers: &Arc<BTreeSet<String>>) -> Result<Self, TlsError> {
        let content = files.read()?;
        let own_certificate = &content.chain[0];
        let identity = Identity::of(own_certificate).map_err(|text| TlsError::content(&files.certificate, text))?;
        if identity.who != Who::Node(node.to_owned()) {
            let text = format!("it is the certificate of {}, and this is node {node}", identity.who);
            return Err(TlsError::content(&files.certificate, text));
        }
        let not_after = not_after(own_certificate)
            .ok_or_else(|| TlsError::content(&files.certificate, "its end of validity cannot be read"))?;
        let own = Own::new(files, &content)?;
        let roots = roots(files, &content.authorities)?;
        let chains = |revoked| Chains {
            roots: Arc::clone(&roots),
            revoked,
            algorithms: own.provider.signature_verification_algorithms,
        };
        check_own(files, &content.chain, &chains(Vec::new()))?;
        let chains = Arc::new(chains(revoked(files, &content.revoked)?));
        let clients = client_verifier(files, Arc::clone(&roots), content.revoked, &own.provider)?;
        let peers: Arc<dyn ClientCertVerifier> = Arc::new(PeersVerifier {
            usual: Arc::clone(&clients),
            domain: identity.domain.clone(),
            expected: Expected::Peers(Arc::clone(peers)),
        });
        Ok(Self {
            api: own.server(files, Arc::clone(&clients), HTTP2)?,
            replicas: own.server(files, Arc::clone(&peers), REPLICA)?,
            clients,
            peers,
            identity,
            not_after,
            own,
            chains,
        })
    }

    /// For a connection to a node's API.
    pub(crate) fn to_api_of(&self, node: &str) -> Result<Arc<ClientConfig>, rustls::Error> {
        self.to_node(node, HTTP2)
    }

    /// For a connection to a node's replicas.
    pub(crate) fn to_replicas_of(&self, node: &str) -> Result<Arc<ClientConfig>, rustls::Error> {
        self.to_node(node, REPLICA)
    }

    fn to_node(&self, node: &str, protocol: &[u8]) -> Result<Arc<ClientConfig>, rustls::Error> {
        self.own.client(Arc::new(self.verifier_of(node)), protocol)
    }

    /// Who has to be at the other end of a connection to a node.
    pub(crate) fn verifier_of(&self, node: &str) -> NodeVerifier {
        NodeVerifier {
            chains: Arc::clone(&self.chains),
            domain: self.identity.domain.clone(),
            expected: Expected::Node(node.to_owned()),
        }
    }
}

impl Own {
    pub(crate) fn new(files: &Files, content: &Content) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        // Compares the two as well.
        let certified = CertifiedKey::from_der(content.chain.clone(), content.key.clone_key(), &provider)
            .map_err(|error| TlsError::content(&files.key, format!("with {}: {error}", files.certificate.display())))?;
        Ok(Self { provider, certificate: Arc::new(SingleCertAndKey::from(certified)) })
    }

    fn server(
        &self,
        files: &Files,
        clients: Arc<dyn ClientCertVerifier>,
        protocol: &[u8],
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| TlsError::content(&files.certificate, error))?;
        let mut config =
            builder.with_client_cert_verifier(clients).with_cert_resolver(Arc::clone(&self.certificate) as Arc<_>);
        config.alpn_protocols = vec![protocol.to_vec()];
        // Nobody comes back without proving who he is.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    fn client(
        &self,
        servers: Arc<dyn ServerCertVerifier>,
        protocol: &[u8],
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            // "Dangerous" because it is not the usual verifier; ours checks as much, and the name.
            .dangerous()
            .with_custom_certificate_verifier(servers)
            .with_client_cert_resolver(Arc::clone(&self.certificate) as Arc<_>);
        config.alpn_protocols = vec![protocol.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

/// For a client of the API that is no node: servers are known by address or name.
pub(crate) fn for_people(files: &Files) -> Result<Arc<ClientConfig>, TlsError> {
    let content = files.read()?;
    let own = Own::new(files, &content)?;
    let roots = roots(files, &content.authorities)?;
    let mut builder = rustls::client::WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&own.provider));
    if !content.revoked.is_empty() {
        builder = builder.with_crls(content.revoked).enforce_revocation_expiration();
    }
    let verifier = builder.build().map_err(|error| TlsError::content(&files.ca, error))?;
    own.client(verifier, HTTP2).map_err(|error| TlsError::content(&files.certificate, error))
}

fn roots(files: &Files, authorities: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(|error| TlsError::content(&files.ca, error))?;
    }
    Ok(Arc::new(roots))
}

fn revoked(
    files: &Files,
    lists: &[CertificateRevocationListDer<'static>],
) -> Result<Vec<CertRevocationList<'static>>, TlsError> {
    let path = files.crl.as_deref().unwrap_or(&files.ca);
    let lists = lists.iter().map(|list| OwnedCertRevocationList::from_der(list).map(CertRevocationList::from));
    lists.collect::<Result<_, _>>().map_err(|error| TlsError::content(path, error))
}

fn client_verifier(
    files: &Files,
    roots: Arc<RootCertStore>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
    if !revoked.is_empty() {
        builder = builder.with_crls(revoked).enforce_revocation_expiration();
    }
    builder.build().map_err(|error| TlsError::content(&files.ca, error))
}

/// What others would find, but for its end and what was taken back: who starts with a certificate that has ended still has volumes to serve.
fn check_own(files: &Files, chain: &[CertificateDer<'static>], chains: &Chains) -> Result<(), TlsError> {
    match chains.verify_server(&chain[0], &chain[1..], UnixTime::now()) {
        Ok(()) | Err(webpki::Error::CertExpired { .. }) => Ok(()),
        Err(error) => {
            let text = format!("it is not good for a server by {}: {error}", files.ca.display());
            Err(TlsError::content(&files.certificate, text))
        }
    }
}
