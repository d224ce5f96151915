//! Connections to the API, from accept to the end of the TLS handshake.
//!
//! ```text
//! accept ──▶ handshake, [`HANDSHAKE`] at most, [`MOST_HANDSHAKES`] at once ──▶ served, as a Caller
//!                 └── failed, too slow, or one too many: closed
//! ```

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tls::{Certificates, TrustedStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tonic::codegen::tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::Caller;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at one time; one more is closed.
const MOST_HANDSHAKES: usize = 256;
/// Connections that wait to be served.
const AHEAD: usize = 16;
/// How long to wait after a failed accept (out of descriptors, say) before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Accepted = io::Result<ApiStream>;

/// The connections that are good. Dropping it closes the listener.
pub(crate) struct Incoming(mpsc::Receiver<Accepted>);

/// Takes connections from the listener; with certificates only those of clients that have one.
pub(crate) fn incoming(listener: TcpListener, certificates: Option<Arc<Certificates>>) -> Incoming {
    incoming_within(HANDSHAKE, listener, certificates)
}

fn incoming_within(limit: Duration, listener: TcpListener, certificates: Option<Arc<Certificates>>) -> Incoming {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        tokio::select! {
            () = accept(limit, listener, certificates, &sender) => {}
            () = sender.closed() => {}
        }
    });
    Incoming(receiver)
}

impl Stream for Incoming {
    type Item = Accepted;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Accepted>> {
        self.0.poll_recv(context)
    }
}

async fn accept(
    limit: Duration,
    listener: TcpListener,
    certificates: Option<Arc<Certificates>>,
    sender: &mpsc::Sender<Accepted>,
) {
    let handshakes = Arc::new(Semaphore::new(MOST_HANDSHAKES));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting API connections failed, trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // An error means that the connection has ended already: that shows when it is used.
        let _ = stream.set_nodelay(true);
        let Some(certificates) = &certificates else {
            // An error means that nobody serves any more.
            let _ = sender.send(Ok(ApiStream { io: Box::new(stream), caller: Caller::Anybody })).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            tracing::warn!(%peer, "too many new API connections: closed one");
            continue;
        };
        let (certificates, sender) = (Arc::clone(certificates), sender.clone());
        tokio::spawn(async move {
            let greeted = tokio::time::timeout(limit, greet(stream, &certificates)).await;
            drop(permit);
            match greeted {
                Ok(Ok(stream)) => drop(sender.send(Ok(stream)).await),
                Ok(Err(error)) => refused(peer, &error),
                Err(_) => refused(peer, &io::ErrorKind::TimedOut.into()),
            }
        });
    }
}

async fn greet(stream: TcpStream, certificates: &Arc<Certificates>) -> Accepted {
    let stream = TrustedStream::accept(certificates, stream).await?;
    let caller = match stream.peer_certificates().first().map(|certificate| certificates.who(certificate)) {
        Some(Ok(who)) => Caller::Known(who),
        Some(Err(reason)) => Caller::Nobody(reason),
        // TLS has not let anybody in without.
        None => Caller::Nobody("there is no certificate".to_owned()),
    };
    Ok(ApiStream { io: Box::new(stream), caller })
}

fn refused(peer: SocketAddr, error: &io::Error) {
    match error.kind() {
        // Whoever looks whether the port is open does that.
        io::ErrorKind::UnexpectedEof => tracing::debug!(%peer, "an API connection ended in its handshake"),
        _ => tracing::info!(%peer, %error, "an API connection was refused"),
    }
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection and who is at its other end.
pub(crate) struct ApiStream {
    io: Box<dyn Io>,
    caller: Caller,
}

impl Connected for ApiStream {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for ApiStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl AsyncWrite for ApiStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::path::Path;

    use ::certificates::{Authority, Request};
    use tls::{ClientConnector, Files, Role, Who};
    use tonic::codegen::Service;
    use tonic::codegen::tokio_stream::StreamExt;

    use super::*;

    /// Longer than anything takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn files(folder: &Path, authority: &Authority, name: &str, identity: &str) -> Files {
        let issued = authority.issue(&Request::new(&format!("spiffe://c.example/ashlar/{identity}")));
        issued.write(folder, name).expect("written");
        let ca = folder.join("ca.crt");
        std::fs::write(&ca, authority.pem()).expect("written");
        let path = |kind: &str| folder.join(format!("{name}.{kind}"));
        Files { certificate: path("crt"), key: path("key"), ca, crl: None }
    }

    #[tokio::test]
    async fn a_handshake_that_does_not_end_is_cut_off() {
        let (folder, authority) = (tempfile::tempdir().expect("a folder"), Authority::new("ca"));
        let certificates = Certificates::load(files(folder.path(), &authority, "a", "node/a"), "a", []).expect("good");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let _incoming = incoming_within(Duration::from_millis(50), listener, Some(certificates));
        let said = tokio::task::spawn_blocking(move || {
            let mut silent = std::net::TcpStream::connect(address).expect("it listens");
            silent.set_read_timeout(Some(PATIENCE)).expect("not zero");
            silent.read(&mut [0])
        });
        assert!(matches!(said.await.expect("no panic"), Ok(0)));
    }

    #[tokio::test]
    async fn handshakes_that_do_not_end_are_not_too_many_and_keep_nobody_out_for_ever() {
        let (folder, authority) = (tempfile::tempdir().expect("a folder"), Authority::new("ca"));
        let node = files(folder.path(), &authority, "a", "node/a");
        let certificates = Certificates::load(node, "a", []).expect("good");
        let admin = files(folder.path(), &authority, "admin", "role/admin");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let mut incoming = incoming(listener, Some(certificates));
        let (closed, silent) = tokio::task::spawn_blocking(move || {
            let connect = || std::net::TcpStream::connect(address).expect("it listens");
            let silent: Vec<_> = (0..MOST_HANDSHAKES).map(|_| connect()).collect();
            let mut more = connect();
            more.set_read_timeout(Some(HANDSHAKE / 2)).expect("not zero");
            // Reset or ended; not a time-out.
            let said = more.read(&mut [0]);
            let closed = !matches!(said, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
            (closed, silent)
        })
        .await
        .expect("no panic");
        assert!(closed, "one more than the limit waits");
        drop(silent);
        // Those who went away make room, as soon as that was seen.
        let mut connector = ClientConnector::new(&admin).expect("good");
        let uri: tonic::codegen::http::Uri = format!("https://{address}").parse().expect("a URI");
        let connecting = async {
            loop {
                if let Ok(connected) = connector.call(uri.clone()).await {
                    return connected;
                }
                tokio::task::yield_now().await;
            }
        };
        let (connected, accepted) = tokio::join!(tokio::time::timeout(PATIENCE, connecting), incoming.next());
        let accepted = accepted.expect("it listens").expect("a connection");
        assert!(connected.is_ok());
        assert!(matches!(accepted.caller, Caller::Known(Who::Role(Role::Admin))), "{:?}", accepted.caller);
    }
}
