//! Accepts connections on one reactor.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nvmf_target_protocol::target::connection::Limits;
use nvmf_target_protocol::target::controller::IdentifyLimits;
use reactor::{JoinHandle, TcpListener, TcpStream, sleep, spawn, timeout};

use crate::Directory;
use crate::discovery::Discovery;
use crate::handshake::{Destination, greet, serve_discovery};

/// Connections that have not sent their Connect yet; a further one is closed at once.
const HANDSHAKES_MAX: usize = 256;

/// Pause after a failed accept: what fails once, for lack of descriptors say, fails again right away.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a listener is started with.
#[derive(Clone, Debug)]
pub struct ListenerOptions {
    /// Where to listen; port 0 for any.
    pub address: SocketAddr,
    /// Addresses that the discovery log names for every subsystem. Empty on a port that is only for discovery;
    /// [`Self::advertise_own`] adds the listener's own.
    pub advertised: Vec<SocketAddr>,
    /// Whether the discovery log names the address listened on as well, unless that is 0.0.0.0 or ::.
    pub advertise_own: bool,
    /// What connections accept.
    pub limits: Limits,
    /// How long a connection may take from accept to Connect.
    pub handshake_limit: Duration,
}

impl ListenerOptions {
    /// Listens on `address` and advertises it, everything else as usual.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            advertised: Vec::new(),
            advertise_own: true,
            limits: Limits::default(),
            handshake_limit: Duration::from_secs(10),
        }
    }
}

/// Accepts connections until it is closed.
pub struct Listener {
    address: SocketAddr,
    advertised: Vec<SocketAddr>,
    directory: Arc<Directory>,
    discovery: Rc<Discovery>,
    tasks: [JoinHandle<()>; 2],
}

impl Listener {
    /// Starts to listen, on this reactor.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn bind(directory: &Arc<Directory>, options: ListenerOptions) -> io::Result<Self> {
        let socket = TcpListener::bind(options.address)?;
        let address = socket.local_address();
        let mut advertised = options.advertised;
        // One that stands for all of this machine is nothing that a host could connect to.
        advertised.extend(Some(address).filter(|address| options.advertise_own && !address.ip().is_unspecified()));
        directory.add_addresses(&advertised);
        let limits = options.limits;
        let announced = IdentifyLimits { transfer: limits.transfer, io_capsule_data: limits.io_capsule_data };
        let discovery = Discovery::new(Arc::clone(directory), announced);
        let reception = Rc::new(Reception {
            directory: Arc::clone(directory),
            discovery: Rc::clone(&discovery),
            limits,
            handshake_limit: options.handshake_limit,
            handshakes: Cell::new(0),
        });
        let tasks = [spawn(accept(socket, reception)), spawn(Rc::clone(&discovery).watch())];
        Ok(Self { address, advertised, directory: Arc::clone(directory), discovery, tasks })
    }

    /// Where it listens.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    /// Stops accepting and ends the discovery controllers. Connections of subsystems go on.
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.discovery.close();
        self.directory.remove_addresses(&self.advertised);
    }
}

/// What connections need until they are where they belong.
struct Reception {
    directory: Arc<Directory>,
    discovery: Rc<Discovery>,
    limits: Limits,
    handshake_limit: Duration,
    /// Connections between accept and Connect, at most [`HANDSHAKES_MAX`].
    handshakes: Cell<usize>,
}

async fn accept(socket: TcpListener, reception: Rc<Reception>) {
    loop {
        match socket.accept().await {
            Ok(stream) if reception.handshakes.get() < HANDSHAKES_MAX => {
                spawn(receive(stream, Rc::clone(&reception)));
            }
            Ok(stream) => tracing::warn!(peer = %stream.peer_address(), "too many handshakes: connection closed"),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Takes a connection through its handshake, and serves it if it is for the discovery service.
async fn receive(stream: TcpStream, reception: Rc<Reception>) {
    reception.handshakes.set(reception.handshakes.get() + 1);
    let greeting = greet(stream, &reception.directory, reception.limits);
    let destination = timeout(reception.handshake_limit, greeting).await;
    reception.handshakes.set(reception.handshakes.get() - 1);
    if let Ok(Ok(Destination::Discovery(greeted))) = destination {
        serve_discovery(greeted, &reception.discovery).await;
    }
}
