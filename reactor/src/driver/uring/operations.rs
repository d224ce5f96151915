//! Operations in flight: the memory that the kernel uses, and what each completion means.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use io_uring::{opcode, squeue, types};

use super::descriptors::Target;
use super::receive::GROUP;
use super::sockets::RawAddress;
use crate::buffer::Slice;
use crate::driver::{Operation, OperationId, Output, ResourceId};

/// The kernel's limit on the parts of one vectored operation (IOV_MAX).
const MOST_VECTORS: usize = 1024;

/// The most bytes asked of the kernel at once; it does at most 2 GiB less a page.
const MOST_BYTES: u64 = 1 << 30;

/// One operation from submit to its last completion.
pub(super) struct Flight {
    pub(super) operation: Operation,
    /// Bytes done, of a read, a write, or a range that is zeroed by writing.
    done: u64,
    /// How a discard or zeroing is attempted.
    means: Means,
    pub(super) cancelled: bool,
    /// Memory that the kernel reads or writes besides the operation's own.
    scratch: Option<Box<Scratch>>,
}

/// How to make a range read as zeroes; each falls back to the next where the backing cannot do it.
enum Means {
    PunchHole,
    ZeroRange,
    /// Writing, from this slice of zeroes.
    Write(Slice),
}

/// Memory at a fixed address for the structures that an entry points to.
pub(super) struct Scratch {
    message: libc::msghdr,
    vectors: Vec<libc::iovec>,
    address: RawAddress,
    /// The socket of a connect, until it is connected.
    socket: Option<OwnedFd>,
}

/// What a completion means for its operation.
pub(super) enum Verdict {
    /// Not over: submit the rest.
    Again,
    /// Over.
    Over(io::Result<Output>),
    /// Connected or accepted.
    Connected(OwnedFd, io::Result<std::net::SocketAddr>),
}

impl Flight {
    pub(super) fn new(operation: Operation) -> Self {
        let means =
            if matches!(operation, Operation::DiskDiscard { .. }) { Means::PunchHole } else { Means::ZeroRange };
        Self { operation, done: 0, means, cancelled: false, scratch: None }
    }

    /// Whether the kernel performs it on a thread of its own, which needs the processor that a spin would take.
    pub(super) fn is_blocking(&self, buffered: bool) -> bool {
        match &self.operation {
            Operation::DiskSync { .. } | Operation::DiskDiscard { .. } | Operation::DiskZero { .. } => true,
            Operation::DiskRead { .. } | Operation::DiskWrite { .. } => buffered,
            _ => false,
        }
    }

    /// Whether it moves bytes from or to a disk.
    pub(super) fn is_transfer(&self) -> bool {
        matches!(self.operation, Operation::DiskRead { .. } | Operation::DiskWrite { .. })
    }

    /// Gives a connect its socket.
    pub(super) fn set_socket(&mut self, spare: &mut Spare, socket: OwnedFd) {
        self.scratch.get_or_insert_with(|| spare.take()).socket = Some(socket);
    }

    /// The entry that starts or continues the operation. Its pointers stay valid for as long as the flight is kept.
    pub(super) fn entry(&mut self, target: Option<Target>, spare: &mut Spare) -> squeue::Entry {
        let Self { operation, done, means, scratch, .. } = self;
        let fd = target.map_or(types::Fd(-1), |target| target.number);
        let scratch = move || scratch.get_or_insert_with(move || spare.take());
        let entry = match operation {
            Operation::DiskRead { offset, buffer, .. } => {
                let rest = &mut buffer[*done as usize..];
                opcode::Read::new(fd, rest.as_mut_ptr(), at_once(rest.len() as u64)).offset(*offset + *done).build()
            }
            Operation::DiskWrite { offset, data, .. } if data.len() == 1 => {
                let rest = &data[0][*done as usize..];
                opcode::Write::new(fd, rest.as_ptr(), at_once(rest.len() as u64)).offset(*offset + *done).build()
            }
            Operation::DiskWrite { offset, data, .. } => {
                let vectors = &mut scratch().vectors;
                fill_vectors(vectors, data, *done);
                opcode::Writev::new(fd, vectors.as_ptr(), vectors.len() as u32).offset(*offset + *done).build()
            }
            Operation::DiskSync { .. } => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Operation::DiskDiscard { offset, length, .. } | Operation::DiskZero { offset, length, .. } => match means {
                Means::Write(zeroes) => {
                    let length = (*length - *done).min(zeroes.len() as u64);
                    opcode::Write::new(fd, zeroes.as_ptr(), at_once(length)).offset(*offset + *done).build()
                }
                means => opcode::Fallocate::new(fd, *length).offset(*offset).mode(means.mode()).build(),
            },
            Operation::Accept { .. } => {
                let address = &mut scratch().address;
                *address = RawAddress::empty();
                let length = &raw mut address.length;
                opcode::Accept::new(fd, address.pointer(), length).flags(libc::SOCK_CLOEXEC).build()
            }
            Operation::Connect { address } => {
                let scratch = scratch();
                let fd = scratch.socket.as_ref().map_or(-1, |socket| socket.as_raw_fd());
                scratch.address = RawAddress::from(*address);
                opcode::Connect::new(types::Fd(fd), scratch.address.pointer(), scratch.address.length).build()
            }
            Operation::Receive { .. } => opcode::RecvMulti::new(fd, GROUP).build(),
            Operation::ReceiveOnce { data: None, behind, .. } => {
                opcode::Recv::new(fd, behind.as_mut_ptr(), at_once(behind.len() as u64)).build()
            }
            Operation::ReceiveOnce { data: Some((buffer, range)), behind, .. } => {
                let scratch = scratch();
                scratch.vectors.clear();
                scratch.vectors.extend([&mut buffer[range.clone()], &mut behind[..]].map(vector));
                scratch.gather();
                opcode::RecvMsg::new(fd, &raw mut scratch.message).build()
            }
            Operation::Send { slices, .. } if slices.len() == 1 => {
                let slice = &slices[0];
                opcode::Send::new(fd, slice.as_ptr(), at_once(slice.len() as u64)).flags(SEND_FLAGS).build()
            }
            Operation::Send { slices, .. } => {
                let scratch = scratch();
                fill_vectors(&mut scratch.vectors, slices, 0);
                scratch.gather();
                opcode::SendMsg::new(fd, &raw const scratch.message).flags(SEND_FLAGS as u32).build()
            }
            Operation::ReadFile { .. }
            | Operation::ReplaceFile { .. }
            | Operation::RemoveFile { .. }
            | Operation::ListFolder { .. } => unreachable!("the helper thread performs these"),
        };
        match target {
            Some(target) => entry.flags(target.flags),
            None => entry,
        }
    }

    /// What a completion means, given its result: a count or an error number below zero. Receives have their own way.
    pub(super) fn judge(&mut self, result: i32) -> Verdict {
        let count = match u64::try_from(result) {
            Ok(count) => count,
            Err(_) => return self.judge_error(-result),
        };
        match &mut self.operation {
            Operation::DiskRead { buffer, .. } => {
                let length = buffer.len() as u64;
                self.advance(count, length, io::ErrorKind::UnexpectedEof)
            }
            Operation::DiskWrite { data, .. } => {
                let length = data.iter().map(|slice| slice.len() as u64).sum();
                self.advance(count, length, io::ErrorKind::WriteZero)
            }
            Operation::DiskDiscard { length, .. } | Operation::DiskZero { length, .. } => {
                let length = *length;
                match self.means {
                    Means::Write(_) => self.advance(count, length, io::ErrorKind::WriteZero),
                    _ => Verdict::Over(Ok(Output::Done)),
                }
            }
            Operation::Send { .. } => Verdict::Over(Ok(Output::Sent(count as usize))),
            Operation::ReceiveOnce { .. } => Verdict::Over(Ok(Output::ReceivedOnce(count as usize))),
            Operation::Accept { .. } => {
                // SAFETY: the kernel has just opened this descriptor for us; nobody else owns it.
                let socket = unsafe { OwnedFd::from_raw_fd(result) };
                let peer = match &self.scratch {
                    Some(scratch) => (&scratch.address).try_into(),
                    None => Err(io::ErrorKind::NotConnected.into()),
                };
                Verdict::Connected(socket, peer)
            }
            Operation::Connect { address } => match self.scratch.as_mut().and_then(|scratch| scratch.socket.take()) {
                Some(socket) => Verdict::Connected(socket, Ok(*address)),
                None => Verdict::Over(Err(io::ErrorKind::NotConnected.into())),
            },
            _ => Verdict::Over(Ok(Output::Done)),
        }
    }

    /// Ends the flight, keeping its scratch for another.
    pub(super) fn finish(mut self, spare: &mut Spare) -> Operation {
        if let Some(mut scratch) = self.scratch.take() {
            scratch.socket = None;
            spare.put(scratch);
        }
        self.operation
    }

    fn judge_error(&mut self, number: i32) -> Verdict {
        let ranged = matches!(self.operation, Operation::DiskDiscard { .. } | Operation::DiskZero { .. });
        match number {
            // Interrupted or short of something for a moment: never a reason to fail (I33).
            libc::EINTR | libc::EAGAIN if !self.cancelled => Verdict::Again,
            libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV if ranged && self.fall_back() => Verdict::Again,
            number => Verdict::Over(Err(io::Error::from_raw_os_error(number))),
        }
    }

    /// Chooses the next means of zeroing. False if there is none.
    fn fall_back(&mut self) -> bool {
        self.means = match self.means {
            Means::PunchHole => Means::ZeroRange,
            Means::ZeroRange => Means::Write(Slice::zeroes(Slice::MAX_ZEROES)),
            Means::Write(_) => return false,
        };
        true
    }

    /// Counts bytes done; `none` is the error when there were none although some were left.
    fn advance(&mut self, count: u64, length: u64, none: io::ErrorKind) -> Verdict {
        self.done += count;
        if self.done >= length {
            Verdict::Over(Ok(Output::Done))
        } else if count == 0 {
            Verdict::Over(Err(none.into()))
        } else if self.cancelled {
            Verdict::Over(Err(io::Error::from_raw_os_error(libc::ECANCELED)))
        } else {
            Verdict::Again
        }
    }
}

impl Scratch {
    /// Makes the message one of the vectors as they are now.
    fn gather(&mut self) {
        self.message.msg_iov = self.vectors.as_mut_ptr();
        self.message.msg_iovlen = self.vectors.len();
    }
}

fn vector(part: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() }
}

/// No signal when the peer has gone; and the kernel goes on by itself after a part, where it can.
const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;

impl Means {
    fn mode(&self) -> i32 {
        match self {
            Self::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            _ => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        }
    }
}

fn at_once(length: u64) -> u32 {
    // Below 4 GiB.
    length.min(MOST_BYTES) as u32
}

/// Describes `slices` without their first `skip` bytes, as many as fit in one operation.
fn fill_vectors(vectors: &mut Vec<libc::iovec>, slices: &[Slice], mut skip: u64) {
    vectors.clear();
    for slice in slices {
        let skipped = skip.min(slice.len() as u64);
        skip -= skipped;
        let rest = &slice[skipped as usize..];
        if !rest.is_empty() && vectors.len() < MOST_VECTORS {
            // The kernel only reads through it.
            vectors.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
        }
    }
}

/// Scratch memory not in use, kept so that an operation allocates nothing.
#[derive(Default)]
#[allow(clippy::vec_box, reason = "the boxes go to flights as they are: an entry points into them")]
pub(super) struct Spare(Vec<Box<Scratch>>);

/// More than rarely used at one time; the rest is freed.
const MOST_SPARE: usize = 256;

impl Spare {
    fn take(&mut self) -> Box<Scratch> {
        self.0.pop().unwrap_or_else(|| {
            // SAFETY: all-zero is a valid value of this plain structure: no name, no control data, no parts.
            let message = unsafe { std::mem::zeroed() };
            Box::new(Scratch { message, vectors: Vec::new(), address: RawAddress::empty(), socket: None })
        })
    }

    fn put(&mut self, scratch: Box<Scratch>) {
        if self.0.len() < MOST_SPARE {
            self.0.push(scratch);
        }
    }
}

/// All operations in flight, by identifier.
#[derive(Default)]
pub(super) struct Flights {
    places: Vec<Place>,
}

#[derive(Default)]
struct Place {
    /// Tells this use of the identifier from earlier ones, so that a late cancel meets nobody.
    generation: u32,
    flight: Option<Flight>,
}

impl Flights {
    /// Takes an operation in.
    ///
    /// # Panics
    /// When the identifier is in use.
    pub(super) fn insert(&mut self, id: OperationId, flight: Flight) {
        if id >= self.places.len() {
            self.places.resize_with(id + 1, Place::default);
        }
        let place = &mut self.places[id];
        assert!(place.flight.is_none(), "operation {id} is in flight already");
        // The highest bit stays clear for marks like BELL.
        place.generation = (place.generation + 1) & (u32::MAX >> 1);
        place.flight = Some(flight);
    }

    pub(super) fn get(&mut self, id: OperationId) -> Option<&mut Flight> {
        self.places.get_mut(id)?.flight.as_mut()
    }

    pub(super) fn remove(&mut self, id: OperationId) -> Option<Flight> {
        self.places.get_mut(id)?.flight.take()
    }

    /// What names the operation in entries and completions.
    pub(super) fn key(&self, id: OperationId) -> u64 {
        // Identifiers are dense; there are never 2^32 operations.
        u64::from(self.places[id].generation) << 32 | id as u64
    }

    /// The operation that a key names, if it is still in flight.
    pub(super) fn find(&self, key: u64) -> Option<OperationId> {
        let id = (key & u64::from(u32::MAX)) as OperationId;
        let place = self.places.get(id)?;
        (place.flight.is_some() && u64::from(place.generation) == key >> 32).then_some(id)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Flight> {
        self.places.iter_mut().filter_map(|place| place.flight.as_mut())
    }
}

/// The resource that an operation uses.
pub(super) fn resource_of(operation: &Operation) -> Option<ResourceId> {
    match operation {
        Operation::DiskRead { disk, .. }
        | Operation::DiskWrite { disk, .. }
        | Operation::DiskSync { disk }
        | Operation::DiskDiscard { disk, .. }
        | Operation::DiskZero { disk, .. } => Some(*disk),
        Operation::Accept { listener } => Some(*listener),
        Operation::Receive { socket } | Operation::ReceiveOnce { socket, .. } | Operation::Send { socket, .. } => {
            Some(*socket)
        }
        Operation::Connect { .. }
        | Operation::ReadFile { .. }
        | Operation::ReplaceFile { .. }
        | Operation::RemoveFile { .. }
        | Operation::ListFolder { .. } => None,
    }
}
