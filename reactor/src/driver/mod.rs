//! The seam between a reactor and the world: the kernel's io_uring, or a simulated one.
//!
//! A driver performs [`Operation`]s. It owns an operation, and with it every byte the world may touch, from
//! [`Driver::submit`] until it hands the operation back in its last [`Completion`]; nothing that happens to
//! the future or sink that waits for it changes that. This is what makes a dropped future sound.
//!
//! ```text
//!            submit(id, operation)            turn()
//!   reactor ───────────────────────▶ driver ─────────▶ completions [(id, result, operation?)]
//!            ◀─ Err(operation): full
//!            cancel(id) ───────────▶ (a completion still comes, with ECANCELED or the real result)
//! ```

pub(crate) mod simulated;
pub(crate) mod uring;

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use smallvec::SmallVec;

use crate::buffer::{Buffer, Slice};
use crate::disk::DiskOptions;
use crate::net::{DetachedSocket, Received};
use crate::time::Instant;

/// Names an operation between submit and its last completion; small and dense, reused afterwards.
pub(crate) type OperationId = usize;

/// Names an open disk, socket or listener of one driver; small and dense, reused after close.
pub(crate) type ResourceId = usize;

/// The most slices one [`Operation::Send`] carries: more than a turn's replies of one connection need, and
/// below the kernel's limit of 1024 (IOV_MAX).
pub(crate) const SEND_SLICES: usize = 128;

/// What a driver can be asked to do. Each owns the memory it needs.
#[derive(Debug)]
pub(crate) enum Operation {
    /// Fill `buffer` from the disk at `offset`; fewer bytes than asked is an error (UnexpectedEof).
    DiskRead { disk: ResourceId, offset: u64, buffer: Buffer },
    /// Write all of `data` at `offset`.
    DiskWrite { disk: ResourceId, offset: u64, data: SmallVec<[Slice; 1]> },
    /// Make every write completed before this was submitted stable (fdatasync).
    DiskSync { disk: ResourceId },
    /// Give the range back to the backing; it reads as zeroes afterwards.
    DiskDiscard { disk: ResourceId, offset: u64, length: u64 },
    /// Make the range read as zeroes, keeping it allocated where the backing can.
    DiskZero { disk: ResourceId, offset: u64, length: u64 },
    /// Wait for one connection on a listener.
    Accept { listener: ResourceId },
    /// Connect to an address.
    Connect { address: SocketAddr },
    /// Receive for ever: a completion with `more` for each chunk until end of stream (an empty chunk), an
    /// error, or cancel.
    Receive { socket: ResourceId },
    /// Receive what is here, or what comes first: into the range of the buffer if there is one, then `behind` it. Says how
    /// many bytes; none at the end of the stream.
    ReceiveOnce { socket: ResourceId, data: Option<(Buffer, Range<usize>)>, behind: Buffer },
    /// Send slices in order; may send a part, and says how many bytes.
    Send { socket: ResourceId, slices: Vec<Slice> },
    /// Read a whole small file. What it gives is stable: a name that an unfinished [`Operation::ReplaceFile`] of a killed
    /// process left behind is made durable (fsync of the folder) before its content is returned.
    ReadFile { path: PathBuf },
    /// Replace a small file atomically and durably: temporary, fsync, rename, fsync of the folder.
    ReplaceFile { path: PathBuf, content: Vec<u8> },
    /// Remove a file durably; no error if there is none.
    RemoveFile { path: PathBuf },
    /// The names in a folder, sorted and stable like what [`Operation::ReadFile`] gives; an absent folder is empty.
    ListFolder { path: PathBuf },
}

/// What an operation came to.
#[derive(Debug)]
pub(crate) enum Output {
    /// Done, nothing more to say.
    Done,
    /// How many bytes were sent.
    Sent(usize),
    /// Bytes from a socket; empty at the end of the stream.
    Received(Received),
    /// How many bytes [`Operation::ReceiveOnce`] received.
    ReceivedOnce(usize),
    /// A connected or accepted socket and its peer.
    Socket(ResourceId, SocketAddr),
    /// The content of a file.
    Content(Vec<u8>),
    /// The names in a folder.
    Names(Vec<String>),
}

/// One result of an operation.
#[derive(Debug)]
pub(crate) struct Completion {
    /// Which operation.
    pub(crate) id: OperationId,
    /// What came of it.
    pub(crate) result: io::Result<Output>,
    /// The operation itself with its memory, on its last completion. `None` means more will come
    /// ([`Operation::Receive`] only).
    pub(crate) operation: Option<Operation>,
}

/// How long a turn may wait for a completion or a wake-up from another thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all: tasks are ready to run.
    Poll,
    /// Until this time at the latest.
    Until(Instant),
    /// For as long as it takes.
    Forever,
}

/// The world as one reactor sees it. All calls come from the reactor's own thread.
pub(crate) trait Driver {
    /// Monotonic time.
    fn now(&self) -> Instant;

    /// Seconds and nanoseconds since the Unix epoch, for records that people read.
    fn wall_clock(&self) -> std::time::Duration;

    /// Differs after each boot of the machine: what was written but never flushed in another boot may be lost.
    fn boot_id(&self) -> [u8; 16];

    /// 64 random bits; from the seed in a simulated world.
    fn random(&mut self) -> u64;

    /// Opens a disk. Brief and blocking: for the control side of a reactor.
    fn open_disk(&mut self, path: &Path, options: &DiskOptions) -> io::Result<OpenDisk>;

    /// Changes the size of a file-backed disk, durably.
    fn resize_disk(&mut self, disk: ResourceId, size: u64) -> io::Result<()>;

    /// The size of a disk now: whoever made it larger need not have been us.
    fn measure_disk(&mut self, disk: ResourceId) -> io::Result<u64>;

    /// Binds and listens; returns the address in use (with the port chosen for port 0).
    fn listen(&mut self, address: SocketAddr) -> io::Result<(ResourceId, SocketAddr)>;

    /// Closes a disk, socket or listener once nothing in flight uses it; what is in flight on a socket or listener is
    /// cancelled, on a disk it completes first.
    fn close(&mut self, resource: ResourceId);

    /// Ends the sending direction of a socket: the peer sees end of stream.
    fn shutdown(&mut self, socket: ResourceId);

    /// Takes a socket with no operation in flight out of this driver, to be used by another reactor's.
    fn detach(&mut self, socket: ResourceId) -> DetachedSocket;

    /// Takes in a socket that another reactor's driver detached.
    fn attach(&mut self, socket: DetachedSocket) -> io::Result<ResourceId>;

    /// Starts an operation, or hands it back when there is no room for it until the next turn.
    fn submit(&mut self, id: OperationId, operation: Operation) -> Result<(), Operation>;

    /// Asks for an operation to end early. Its last completion still comes.
    fn cancel(&mut self, id: OperationId);

    /// Starts what was submitted, waits as told, and appends what completed.
    fn turn(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()>;
}

/// A disk just opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenDisk {
    /// Its handle in the driver.
    pub(crate) id: ResourceId,
    /// Bytes.
    pub(crate) size: u64,
    /// The alignment of offsets, lengths and memory that the disk asks for, in bytes: a power of two, 512 to 4096.
    pub(crate) alignment: u32,
    /// What a power cut leaves whole or untouched, in bytes, when aligned: a power of two, 512 to 4096.
    pub(crate) atomic_write: u32,
}
