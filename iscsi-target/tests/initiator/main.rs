//! Our own initiator against our own target: over the kernel's sockets, in a simulated world where they can be stopped, and
//! recorded for somebody else to look at.

mod capture;
mod kernel;
mod recorded;
mod simulated;

use std::rc::Rc;
use std::sync::Arc;

use block_device::{BlockDevice, Error, Geometry, MemoryDevice};
use iscsi_initiator::{Chap as Proof, Options};
use iscsi_target::{
    Access, AccessState, Algorithm, Chap, Credentials, Directory, Identity, Listener, ListenerOptions,
    ReservationStore, Reservations, Saved, Secret, Target, TargetOptions,
};
use reactor::{Buffer, Slice};
use uuid::Uuid;

const BLOCK: u32 = 4096;
const SIZE: u64 = 16 << 20;

fn identity() -> Identity {
    Identity::of_volume(Uuid::from_u128(11))
}

fn memory() -> Rc<dyn BlockDevice> {
    let geometry = Geometry::new(SIZE, BLOCK).expect("a good size");
    Rc::new(MemoryDevice::new(geometry).expect("enough memory"))
}

/// Reservations that nobody makes here.
struct NoShelf;

impl ReservationStore for NoShelf {
    fn save(&self, _record: Vec<u8>) -> Saved {
        Box::pin(async { Err(Error::new(block_device::ErrorKind::WriteFailed)) })
    }
}

/// Exports a volume in memory on the current reactor, for as long as what it returns lives.
fn export(directory: &Arc<Directory>, options: ListenerOptions, access: Access) -> (Rc<Target>, Listener) {
    export_device(directory, options, access, memory())
}

fn export_device(
    directory: &Arc<Directory>,
    options: ListenerOptions,
    access: Access,
    device: Rc<dyn BlockDevice>,
) -> (Rc<Target>, Listener) {
    let listener = Listener::bind(directory, options).expect("a free port");
    let options = TargetOptions {
        identity: identity(),
        device,
        access,
        access_state: AccessState::Optimized,
        reservations: Reservations::default(),
        store: Rc::new(NoShelf),
    };
    (Target::start(directory, options).expect("the only one"), listener)
}

fn credentials(name: &str, secret: &[u8]) -> Credentials {
    Credentials { name: name.to_owned(), secret: Secret::new(secret).expect("long enough") }
}

/// A target that wants a proof, and has one.
fn guarded() -> Access {
    let target = Some(credentials("volume", b"the volume's own"));
    let chap = Chap::new(credentials("host", b"the host's secret"), target, &Algorithm::ALL).expect("two secrets");
    Access { initiators: None, chap: Some(Arc::new(chap)) }
}

/// An initiator that proves it with this secret, and wants this one of the target.
fn proving(secret: &[u8], wanted: Option<&[u8]>, algorithm: Algorithm) -> Options {
    let target = wanted.map(|secret| credentials("volume", secret));
    let chap = Proof { initiator: credentials("host", secret), target, algorithms: vec![algorithm] };
    Options { chap: Some(Arc::new(chap)), ..Options::default() }
}

/// Bytes that differ from place to place.
fn pattern(length: usize) -> Slice {
    let mut buffer = Buffer::new(length);
    buffer.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 31 + at / 4096) as u8);
    buffer.freeze()
}
