//! What a load drives: a host that is connected, by whatever protocol.
//!
//! Everything here is monomorphised for the host of a protocol: an I/O costs no more than if the load were written for it.

use std::fmt;
use std::rc::Rc;

use reactor::Slice;

/// A connected host.
pub trait Host: 'static {
    /// What takes its I/Os.
    type Lane: Lane;

    /// The device; none when it is connected without lanes.
    fn geometry(&self) -> Option<Geometry>;

    /// How many lanes there are, each with a connection of its own.
    fn lanes(&self) -> usize;

    /// One of its lanes.
    ///
    /// # Panics
    /// When `number` is not below [`Host::lanes`].
    fn lane(&self, number: usize) -> Self::Lane;

    /// How many times the connection was lost and made again.
    fn reconnects(&self) -> u64;

    /// Why the target was given up, if it was.
    fn failure(&self) -> Option<String>;
}

/// A way to the device.
pub trait Lane: 'static {
    /// Why an I/O did not succeed.
    type Error: IoError;

    /// Most I/Os in flight.
    fn depth(&self) -> usize;

    /// Submits an I/O; it goes out with the next [`Lane::flush`].
    ///
    /// # Errors
    /// As many as the lane is deep are in flight, or the target is given up; the sink is not called then.
    fn submit<S: Sink<Self::Error>>(&self, io: Io, sink: Rc<S>, token: u64) -> Result<(), Refused>;

    /// Sends what was submitted. Needless from within [`Sink::complete`].
    fn flush(&self);
}

/// Takes the results of I/Os.
pub trait Sink<E>: 'static {
    /// Some of the data that a read brings, to be copied to `offset`. One that is sent again starts at 0 again.
    fn data(&self, token: u64, offset: usize, bytes: &[u8]);

    /// An I/O is done (I34). It may submit.
    fn complete(&self, token: u64, outcome: Result<(), E>);
}

/// Why an I/O did not succeed; as text it is the name that a report counts it under.
pub trait IoError: Copy + fmt::Display + 'static {
    /// Whether the connection is gone for good.
    fn is_lost(&self) -> bool;
}

/// The lane took no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// One I/O, in blocks of the device.
#[derive(Clone, Debug)]
pub enum Io {
    /// Reads.
    Read {
        /// The first block.
        block: u64,
        /// How many.
        blocks: u32,
    },
    /// Writes.
    Write {
        /// The first block.
        block: u64,
        /// How many.
        blocks: u32,
        /// As many bytes as they have; they never change while they are on their way (I11).
        data: Slice,
    },
    /// Makes everything written before durable.
    Flush,
}

/// Size and limits of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size in blocks.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// Most bytes of one I/O.
    pub max_transfer: u32,
}

impl Geometry {
    /// Bytes.
    pub fn size(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size.into())
    }
}
