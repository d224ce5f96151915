//! A world in one thread, from one seed, as a driver: virtual time, disks that lose and tear what was not synced, and a
//! network with delay, loss of connections and partitions. [`crate::simulated`] is its public face, `docs/simulator.md`
//! its description.

mod clock;
mod connection;
mod crash;
mod disk;
mod ending;
mod errno;
mod fault;
mod files;
mod handshake;
mod history;
mod image;
mod network;
mod operations;
mod queue;
mod random;
mod state;
mod stream;
mod trace;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub(crate) use self::connection::EndId;
pub(crate) use self::disk::Disk;
pub use self::fault::{DiskFault, DiskFaultKind, DiskLatency, Link};
pub use self::history::{Cut, DiskHistory, Survival};
pub use self::image::DiskImage;
pub use self::random::Random;
pub(crate) use self::random::nanoseconds;
pub(crate) use self::state::State;
use super::{Completion, Driver, OpenDisk, Operation, OperationId, ResourceId, Wait};
use crate::disk::DiskOptions;
use crate::net::{DetachedSocket, RawSocket};
use crate::time::Instant;

/// One reactor's view of a simulated world.
pub(crate) struct SimulatedDriver {
    state: Rc<RefCell<State>>,
    reactor: usize,
}

impl SimulatedDriver {
    pub(crate) fn new(state: Rc<RefCell<State>>, reactor: usize) -> Self {
        Self { state, reactor }
    }
}

impl Driver for SimulatedDriver {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.state.borrow().clock(self.reactor))
    }

    fn wall_clock(&self) -> Duration {
        self.state.borrow().wall_clock(self.reactor)
    }

    fn boot_id(&self) -> [u8; 16] {
        self.state.borrow().boot_id(self.reactor)
    }

    fn random(&mut self) -> u64 {
        self.state.borrow_mut().random_of(self.reactor)
    }

    fn open_disk(&mut self, path: &Path, options: &DiskOptions) -> io::Result<OpenDisk> {
        self.state.borrow_mut().open_disk(self.reactor, path, options)
    }

    fn resize_disk(&mut self, disk: ResourceId, size: u64) -> io::Result<()> {
        self.state.borrow_mut().resize_disk(self.reactor, disk, size)
    }

    fn measure_disk(&mut self, disk: ResourceId) -> io::Result<u64> {
        Ok(self.state.borrow().measure_disk(self.reactor, disk))
    }

    fn listen(&mut self, address: SocketAddr) -> io::Result<(ResourceId, SocketAddr)> {
        self.state.borrow_mut().listen(self.reactor, address)
    }

    fn close(&mut self, resource: ResourceId) {
        self.state.borrow_mut().close(self.reactor, resource);
    }

    fn shutdown(&mut self, socket: ResourceId) {
        let mut state = self.state.borrow_mut();
        if state.reactors[self.reactor].alive {
            state.shutdown(self.reactor, socket);
        }
    }

    fn detach(&mut self, socket: ResourceId) -> DetachedSocket {
        let mut state = self.state.borrow_mut();
        let end = state.detach(self.reactor, socket);
        let abandoned = Arc::clone(&state.abandoned);
        DetachedSocket { raw: RawSocket::Simulated(SimulatedSocket { end: Some(end), abandoned }) }
    }

    fn attach(&mut self, socket: DetachedSocket) -> io::Result<ResourceId> {
        let RawSocket::Simulated(mut socket) = socket.raw else {
            unreachable!("reactors of a simulated world exchange simulated sockets")
        };
        let end = socket.end.take().expect("taken only here and on drop");
        self.state.borrow_mut().attach(self.reactor, end)
    }

    fn submit(&mut self, id: OperationId, operation: Operation) -> Result<(), Operation> {
        self.state.borrow_mut().submit(self.reactor, id, operation)
    }

    fn cancel(&mut self, id: OperationId) {
        self.state.borrow_mut().cancel(self.reactor, id);
    }

    /// Never waits: the world runs a reactor only when it has something to do.
    fn turn(&mut self, _wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()> {
        self.state.borrow_mut().take_completions(self.reactor, completions);
        Ok(())
    }
}

/// A socket of a simulated world that no reactor has. Dropped, it closes.
#[derive(Debug)]
pub(crate) struct SimulatedSocket {
    /// None once attached.
    end: Option<EndId>,
    abandoned: Arc<Mutex<Vec<EndId>>>,
}

impl Drop for SimulatedSocket {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            self.abandoned.lock().push(end);
        }
    }
}
