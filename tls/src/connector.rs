//! Connections to the API of a daemon, as tonic wants them.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use crate::settings::for_people;
use crate::standing::{Side, Standing, TrustedStream};
use crate::{Certificates, Files, TlsError};

type Connecting<S> = Pin<Box<dyn Future<Output = io::Result<TokioIo<S>>> + Send>>;

/// To another node: each connection with the certificates in use then, to nobody but that node.
#[derive(Clone, Debug)]
pub struct NodeConnector {
    certificates: Arc<Certificates>,
    node: String,
    address: SocketAddr,
}

impl NodeConnector {
    /// To `node`, at `address`.
    pub fn new(certificates: Arc<Certificates>, node: &str, address: SocketAddr) -> Self {
        Self { certificates, node: node.to_owned(), address }
    }
}

impl Service<Uri> for NodeConnector {
    type Response = TokioIo<TrustedStream>;
    type Error = io::Error;
    type Future = Connecting<TrustedStream>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let standing = Standing::new(&self.certificates, Side::Node(self.node.clone()));
        let (address, config) = (self.address, self.certificates.current().to_api_of(&self.node));
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            let stream = connect(stream, config.map_err(io::Error::other)?, nobody()).await?;
            Ok(TokioIo::new(TrustedStream::new(stream.into(), standing)))
        })
    }
}

/// To the server that a URL names, for people and their programs.
#[derive(Clone, Debug)]
pub struct ClientConnector {
    config: Arc<ClientConfig>,
}

impl ClientConnector {
    /// Reads the files.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn new(files: &Files) -> Result<Self, TlsError> {
        Ok(Self { config: for_people(files)? })
    }
}

impl Service<Uri> for ClientConnector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Connecting<TlsStream<TcpStream>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let config = Arc::clone(&self.config);
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
            let stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443))).await?;
            let name = ServerName::try_from(host).map_err(io::Error::other)?;
            connect(stream, config, name).await.map(TokioIo::new)
        })
    }
}

async fn connect(
    stream: TcpStream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    TlsConnector::from(config).connect(name, stream).await
}

/// Where a verifier knows the node, and does not look at the name. An address is not told to those who listen, as a name would be.
pub(crate) fn nobody() -> ServerName<'static> {
    ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}
