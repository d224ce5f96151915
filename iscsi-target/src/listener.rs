//! Accepts connections on one reactor.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use iscsi_target_protocol::target::connection::Limits;
use reactor::{JoinHandle, TcpListener, TcpStream, sleep, spawn, timeout};

use crate::directory::Directory;
use crate::discovery;
use crate::handshake::{Destination, PORTAL_GROUP, greet};

/// Connections that have not said yet who they are; a further one is closed at once.
const HALF_OPEN_MAX: usize = 256;

/// Discovery sessions of a listener at one time.
const DISCOVERIES_MAX: usize = 64;

/// Pause after a failed accept: what fails once, for lack of descriptors say, fails again right away.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a discovery session may last.
const DISCOVERY_LIMIT: Duration = Duration::from_secs(300);

/// What a listener is started with.
#[derive(Clone, Debug)]
pub struct ListenerOptions {
    /// Where to listen; port 0 for any.
    pub address: SocketAddr,
    /// Portals that discovery names for every target; [`Self::advertise_own`] adds the listener's own.
    pub advertised: Vec<SocketAddr>,
    /// Whether discovery names the address listened on as well.
    pub advertise_own: bool,
    /// What connections accept.
    pub limits: Limits,
    /// How long a connection may take from accept to the names of its login.
    pub login_limit: Duration,
}

impl ListenerOptions {
    /// Listens on `address` and advertises it, everything else as usual.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            advertised: Vec::new(),
            advertise_own: true,
            limits: Limits::default(),
            login_limit: Duration::from_secs(15),
        }
    }
}

/// Accepts connections until it is closed.
pub struct Listener {
    address: SocketAddr,
    portals: Vec<String>,
    directory: Arc<Directory>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Starts to listen, on this reactor.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn bind(directory: &Arc<Directory>, options: ListenerOptions) -> io::Result<Self> {
        let socket = TcpListener::bind(options.address)?;
        let address = socket.local_address();
        let advertised = options.advertised.iter().copied().chain(options.advertise_own.then_some(address));
        let portals: Vec<String> = advertised.map(portal).collect();
        directory.add_portals(&portals);
        let reception = Rc::new(Reception {
            directory: Arc::clone(directory),
            limits: options.limits,
            login_limit: options.login_limit,
            half_open: Cell::new(0),
            discoveries: Cell::new(0),
        });
        let task = spawn(accept(socket, reception));
        Ok(Self { address, portals, directory: Arc::clone(directory), task })
    }

    /// Where it listens.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    /// Stops accepting. Connections of targets go on.
    fn drop(&mut self) {
        self.task.abort();
        self.directory.remove_portals(&self.portals);
    }
}

/// A TargetAddress: an IPv6 address is in brackets (RFC 7143, 13.8), as Rust prints it.
fn portal(address: SocketAddr) -> String {
    format!("{address},{PORTAL_GROUP}")
}

/// What connections need until they are where they belong.
struct Reception {
    directory: Arc<Directory>,
    limits: Limits,
    login_limit: Duration,
    /// Connections between accept and the names of their login, at most [`HALF_OPEN_MAX`].
    half_open: Cell<usize>,
    /// Discovery sessions, at most [`DISCOVERIES_MAX`].
    discoveries: Cell<usize>,
}

async fn accept(socket: TcpListener, reception: Rc<Reception>) {
    loop {
        match socket.accept().await {
            Ok(stream) if reception.half_open.get() < HALF_OPEN_MAX => {
                spawn(receive(stream, Rc::clone(&reception)));
            }
            Ok(stream) => tracing::warn!(peer = %stream.peer_address(), "too many logins: connection closed"),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Takes a connection to the names of its login, and serves it if it is a discovery session.
async fn receive(stream: TcpStream, reception: Rc<Reception>) {
    reception.half_open.set(reception.half_open.get() + 1);
    let greeting = greet(stream, &reception.directory, reception.limits);
    let destination = timeout(reception.login_limit, greeting).await;
    reception.half_open.set(reception.half_open.get() - 1);
    let Ok(Ok(Destination::Discovery(entrant))) = destination else { return };
    if reception.discoveries.get() >= DISCOVERIES_MAX {
        return;
    }
    reception.discoveries.set(reception.discoveries.get() + 1);
    // Ended or not, it is closed.
    let _ = timeout(DISCOVERY_LIMIT, discovery::serve(*entrant, &reception.directory)).await;
    reception.discoveries.set(reception.discoveries.get() - 1);
}
