//! Whether the other side of a connection is still let in.
//!
//! Both sides prove who they are when a connection begins. When the certificates in use are replaced afterwards, by other authorities
//! or with a revocation list, what was proved then is judged anew before another byte goes through. A connection that nobody uses is
//! judged when it is used again; those of nodes and of the API are never silent for long.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::Certificates;
use crate::connector::nobody;
use crate::validity::not_after;

/// Who has to be at the other end.
#[derive(Clone, Debug)]
pub(crate) enum Side {
    /// A client of the API.
    Client,
    /// A node that is a peer.
    Peer,
    /// This node.
    Node(String),
}

/// What a connection was let in by.
pub(crate) struct Standing {
    certificates: Arc<Certificates>,
    side: Side,
    /// When it began. Its certificates are judged as of then: that one has ended since says nothing against who had it.
    since: UnixTime,
    /// The certificates in use that it was judged by last.
    seen: u64,
}

impl Standing {
    /// Of a connection that is about to begin.
    pub(crate) fn new(certificates: &Arc<Certificates>, side: Side) -> Self {
        let (certificates, seen) = (Arc::clone(certificates), certificates.generation());
        Self { certificates, side, since: UnixTime::now(), seen }
    }

    /// Judges the other side's certificates again, if those in use are others now. None of it: its handshake is not through.
    pub(crate) fn check(&mut self, chain: Option<&[CertificateDer<'static>]>) -> io::Result<()> {
        let generation = self.certificates.generation();
        let chain = chain.filter(|_| generation != self.seen).and_then(<[_]>::split_first);
        let Some((certificate, intermediates)) = chain else { return Ok(()) };
        let set = self.certificates.current();
        let judged = match &self.side {
            Side::Client => set.clients.verify_client_cert(certificate, intermediates, self.since).map(drop),
            Side::Peer => set.peers.verify_client_cert(certificate, intermediates, self.since).map(drop),
            Side::Node(node) => {
                let verifier = set.verifier_of(node);
                verifier.verify_server_cert(certificate, intermediates, &nobody(), &[], self.since).map(drop)
            }
        };
        judged.map_err(|error| refused(format!("the peer's certificate is not good any more: {error}")))?;
        self.seen = generation;
        Ok(())
    }
}

fn refused(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

/// A connection to an API. It ends when the other side's certificate has ended, or is not accepted any more: to make another one costs
/// little, and interrupts nothing.
pub struct TrustedStream {
    stream: TlsStream<TcpStream>,
    standing: Standing,
    /// When the certificate ends, in seconds since the Unix epoch.
    ends: i64,
}

impl TrustedStream {
    /// Takes a connection of a client of the API.
    ///
    /// # Errors
    /// When it has no good certificate, or ends.
    pub async fn accept(certificates: &Arc<Certificates>, stream: TcpStream) -> io::Result<Self> {
        let standing = Standing::new(certificates, Side::Client);
        let stream = TlsAcceptor::from(certificates.for_clients()).accept(stream).await?;
        Ok(Self::new(stream.into(), standing))
    }

    pub(crate) fn new(stream: TlsStream<TcpStream>, standing: Standing) -> Self {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let ends = chain.first().and_then(not_after).unwrap_or(i64::MAX);
        Self { stream, standing, ends }
    }

    /// What the other side has shown.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.stream.get_ref().1.peer_certificates().unwrap_or_default()
    }

    fn check(&mut self) -> io::Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if i64::try_from(now.as_secs()).is_ok_and(|now| now >= self.ends) {
            return Err(refused("the peer's certificate has ended".to_owned()));
        }
        self.standing.check(self.stream.get_ref().1.peer_certificates())
    }
}

impl AsyncRead for TrustedStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for TrustedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
