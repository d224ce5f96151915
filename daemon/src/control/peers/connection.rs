//! One connection to a peer, and how it is known that it has ended.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tls::{Certificates, NodeConnector};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::config::PeerConfig;

/// How long a peer may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a quiet connection is checked, and how long the answer may take.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that was made. It ends with the last clone of the channel, or when it breaks; it is never made again under the channel.
pub(super) struct Connection {
    pub(super) channel: Channel,
    /// Ends with an error when the socket is closed.
    pub(super) closed: oneshot::Receiver<()>,
}

/// Connects to the API of a peer, with certificates to nobody else. The one place that knows how.
pub(super) async fn open(peer: &PeerConfig, certificates: Option<&Arc<Certificates>>) -> Result<Connection, String> {
    let address = peer.grpc;
    let security = certificates.map(|certificates| NodeConnector::new(Arc::clone(certificates), &peer.name, address));
    let (open, closed) = oneshot::channel();
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| innermost(&error))?;
    let endpoint = endpoint
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let connecting = endpoint.connect_with_connector(Dialer { address, security, open: Some(open) });
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
    let seconds = CONNECT_TIMEOUT.as_secs();
    let channel = connected.map_err(|_| format!("no connection to {address} within {seconds} s"))?;
    let channel = channel.map_err(|error| format!("no connection to {address}: {}", innermost(&error)))?;
    Ok(Connection { channel, closed })
}

/// The cause at the bottom of a chain: "connection refused" rather than "transport error".
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Makes the one socket of a channel. A channel wants another when that breaks, and gets none: when to try again is decided by the pool.
struct Dialer {
    address: SocketAddr,
    security: Option<NodeConnector>,
    open: Option<oneshot::Sender<()>>,
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<Socket>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (address, security, open) = (self.address, self.security.take(), self.open.take());
        Box::pin(async move {
            let open = open.ok_or_else(|| io::Error::other(format!("the connection to {address} was lost")))?;
            let stream: Box<dyn Stream> = match security {
                Some(mut connector) => Box::new(connector.call(uri).await?.into_inner()),
                None => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    Box::new(stream)
                }
            };
            Ok(TokioIo::new(Socket { stream, _open: open }))
        })
    }
}

/// Plain or not.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A socket that tells when it is gone.
struct Socket {
    stream: Box<dyn Stream>,
    /// Never sent to: dropping it is the message.
    _open: oneshot::Sender<()>,
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
