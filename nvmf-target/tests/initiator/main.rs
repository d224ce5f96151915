//! Our own host against our own target: over the kernel's sockets, and in a simulated world where they can be stopped.

mod kernel;
mod simulated;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use block_device::{BlockDevice, Geometry, MemoryDevice};
use nvmf_target::{
    AnaState, Directory, Hosts, Identity, Limits, Listener, ListenerOptions, Subsystem, SubsystemOptions,
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

/// Exports a volume in memory on the current reactor, for as long as what it returns lives.
fn export(directory: &Arc<Directory>, address: SocketAddr) -> (Rc<Subsystem>, Listener) {
    let listener = Listener::bind(directory, ListenerOptions::new(address)).expect("a free port");
    let options = SubsystemOptions { identity: identity(), hosts: Hosts::Any, limits: Limits::default() };
    let subsystem = Subsystem::start(directory, options).expect("the only one");
    subsystem.attach(1, memory(), &identity(), AnaState::Optimized);
    (subsystem, listener)
}

/// Bytes that differ from place to place.
fn pattern(length: usize) -> Slice {
    let mut buffer = Buffer::new(length);
    buffer.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 31 + at / 4096) as u8);
    buffer.freeze()
}
