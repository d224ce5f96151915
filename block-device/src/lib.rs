//! What every layer speaks: a [`Request`] goes to a [`BlockDevice`] with a [`Reply`], and exactly one
//! [`Outcome`] comes back through it (I34).
//!
//! There is no future and no task in this path: a device that can answer at once does so inside `submit`, and one that
//! waits for a disk or a peer keeps the reply until then. [`execute`] wraps a request into a future for control code.

#![forbid(unsafe_code)]

mod error;
mod file;
mod geometry;
mod limiter;
mod memory;
mod meter;
mod null;
mod reply;
mod request;
mod standby;

use std::pin::Pin;
use std::rc::Rc;

pub use crate::error::{Error, ErrorKind};
pub use crate::file::FileDevice;
pub use crate::geometry::{Geometry, GeometryError};
pub use crate::limiter::{Limiter, Limits};
pub use crate::memory::MemoryDevice;
pub use crate::meter::{CLASSES, Kind, Limited, Meter, Reading};
pub use crate::null::NullDevice;
pub use crate::reply::{Completions, Reply, ReplySink, execute};
pub use crate::request::{Range, Request, Segments};
pub use crate::standby::{SpaceOf, Standby};
pub use reactor::{Buffer, Slice};

/// What a request came to: the bytes of a read (empty for the others), or why not.
pub type Outcome = Result<Segments, Error>;

/// Something with numbered blocks.
///
/// # Contract
/// - `submit` never blocks and never fails: whatever goes wrong comes through the reply.
/// - Each request is answered exactly once (I34). Requests complete in any order; two that overlap and are in flight
///   together land in any order, but each block ends as one of them.
/// - A completed write survives a kill of the process. A completed [`Request::Flush`] or `fua` write survives a power
///   cut, with everything that completed before it was submitted (I4).
/// - The device checks requests against its geometry; callers need not.
pub trait BlockDevice {
    /// The geometry now. The size can grow while the device is open.
    fn geometry(&self) -> Geometry;

    /// Starts a request. The reply may be answered before this returns.
    fn submit(&self, request: Request, reply: Reply);

    /// Nobody wants the answers any more of the requests whose replies go to `sink`, or of that one with this token: those that were not
    /// begun never will be, and are answered with [`ErrorKind::Aborted`] before this returns. What was begun ends as it would.
    fn cancel(&self, sink: &Rc<dyn ReplySink>, token: Option<u64>) {
        let _ = (sink, token);
    }

    /// Which parts have space of their own: runs from byte `from` on, in order and without a gap, up to `max` of them and no
    /// further than can be said at once. None from a device that does not tell, or cannot now.
    fn allocation(&self, from: u64, max: usize) -> Allocations<'_> {
        let _ = (from, max);
        Box::pin(async { None })
    }

    /// What space there is behind it. None from a device that does not tell, or cannot now.
    fn space(&self) -> Option<Space> {
        None
    }
}

/// Space behind a thin device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// That it takes.
    pub used: u64,
    /// That it can still get, as others can.
    pub available: u64,
}

/// An answer of [`BlockDevice::allocation`].
pub type Allocations<'a> = Pin<Box<dyn Future<Output = Option<Vec<Allocation>>> + 'a>>;

/// A run of a device that has space of its own as a whole, or none and reads as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Where.
    pub range: Range,
    /// Whether it has space.
    pub mapped: bool,
}
