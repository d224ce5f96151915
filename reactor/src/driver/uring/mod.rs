//! The kernel's io_uring as a driver.
//!
//! Life of an operation: `submit` moves it into [`Flights`] and puts an entry into the ring; the kernel works on its memory;
//! its completions are judged in `turn`, where a short one is submitted again for the rest; the last one moves it out
//! to the reactor. Nothing else takes an operation out of `Flights`, so its memory stays where it is for as long as the kernel
//! may touch it, whatever became of the future that waits for it. When the driver is dropped it cancels what is in flight
//! and waits for the kernel to let go.

mod atomic;
mod descriptors;
mod disks;
mod helper;
mod operations;
mod receive;
mod ring;
mod sockets;
mod waiting;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use io_uring::{cqueue, opcode, types};

use self::descriptors::{Descriptors, Kind};
use self::helper::{Helper, Job};
use self::operations::{Flight, Flights, Spare, Verdict, resource_of};
use self::receive::ReceiveRing;
pub(crate) use self::receive::RingChunk;
use self::ring::Ring;
pub(crate) use self::waiting::Doorbell;
use self::waiting::{Awaited, BELL, Waiting};
use crate::Config;
use crate::disk::DiskOptions;
use crate::driver::{Completion, Driver, OpenDisk, Operation, OperationId, Output, ResourceId, Wait};
use crate::net::{DetachedSocket, RawSocket, Received};
use crate::stats::Stats;
use crate::time::Instant;

/// Marks completions of cancels, which tell nothing: the cancelled operation completes by itself.
const CANCEL: u64 = u64::MAX - 1;

/// How long a driver that ends waits for the kernel. A disk that has not answered by then may never do so, and its
/// memory is left to it.
const LAST_WAIT: Duration = Duration::from_secs(30);

/// An io_uring and all that is open or in flight on it.
pub(crate) struct UringDriver {
    ring: Ring,
    receive: Rc<ReceiveRing>,
    descriptors: Descriptors,
    flights: Flights,
    spare: Spare,
    waiting: Waiting,
    doorbell: Arc<Doorbell>,
    helper: Helper,
    /// Entries with the kernel that have a last completion to come, beside the bell's.
    in_kernel: usize,
    /// Operations in flight that something else must run for: see [`Flight::is_blocking`].
    blocking: usize,
    /// Reads and writes of disks in flight.
    transfers: usize,
    /// Operations to submit again for the rest.
    again: VecDeque<OperationId>,
    /// Keys of operations to cancel, for which the ring had no room.
    cancels: VecDeque<u64>,
    /// Operations that ended without the kernel, told of in the next turn.
    ended: Vec<Completion>,
    /// Reused by each turn.
    entries: Vec<cqueue::Entry>,
    congestion: Option<String>,
    boot_id: [u8; 16],
    stats: Arc<Stats>,
}

impl UringDriver {
    /// Sets up a ring for the current thread. The doorbell interrupts its waits.
    pub(crate) fn new(config: &Config, stats: Arc<Stats>) -> io::Result<Self> {
        let ring = Ring::new(config.ring_entries)?;
        let receive = ReceiveRing::new(&ring.submitter(), config.receive_buffers, config.receive_buffer_size)?;
        let descriptors = Descriptors::new(&ring.submitter());
        let doorbell = Arc::new(Doorbell::new()?);
        Ok(Self {
            ring,
            receive,
            descriptors,
            flights: Flights::default(),
            spare: Spare::default(),
            waiting: Waiting::new(Arc::clone(&doorbell), config.busy_poll, Arc::clone(&stats)),
            helper: Helper::new(Arc::clone(&doorbell)),
            doorbell,
            in_kernel: 0,
            blocking: 0,
            transfers: 0,
            again: VecDeque::new(),
            cancels: VecDeque::new(),
            ended: Vec::new(),
            entries: Vec::new(),
            congestion: config.congestion.clone(),
            boot_id: read_boot_id()?,
            stats,
        })
    }

    /// What wakes this driver from other threads.
    pub(crate) fn doorbell(&self) -> Arc<Doorbell> {
        Arc::clone(&self.doorbell)
    }

    fn end_now(&mut self, id: OperationId, error: io::Error, operation: Operation) {
        self.ended.push(Completion { id, result: Err(error), operation: Some(operation) });
    }

    /// Puts the entry of a flight into the ring. False if there is no room.
    fn launch(&mut self, id: OperationId) -> bool {
        let key = self.flights.key(id);
        let Some(flight) = self.flights.get(id) else { return true };
        let resource = resource_of(&flight.operation);
        let target = resource.map(|resource| self.descriptors.target(resource));
        let entry = flight.entry(target, &mut self.spare).user_data(key);
        // SAFETY: the entry points into memory of the flight, which is kept until its last completion.
        let pushed = unsafe { self.ring.push(&entry) };
        self.in_kernel += usize::from(pushed);
        pushed
    }

    /// Starts a job of the helper thread, for an operation that has one.
    fn delegate(&mut self, id: OperationId, job: Job) {
        let key = self.flights.key(id);
        if let Err(error) = self.helper.start(key, job) {
            self.finish(id, Err(error));
            return;
        }
        self.blocking += 1;
    }

    fn is_blocking(&self, flight: &Flight) -> bool {
        let kind = resource_of(&flight.operation).map(|resource| self.descriptors.kind(resource));
        flight.is_blocking(kind == Some(Kind::File { direct: false }))
    }

    fn awaited(&self) -> Awaited {
        match (self.blocking, self.transfers) {
            (0, 0) => Awaited::Others,
            (0, _) => Awaited::Disks,
            _ => Awaited::Threads,
        }
    }

    /// Submits what is left to submit from earlier. False if some still is.
    fn catch_up(&mut self) -> bool {
        while let Some(&key) = self.cancels.front() {
            if !self.push_cancel(key) {
                return false;
            }
            self.cancels.pop_front();
        }
        while let Some(&id) = self.again.front() {
            if !self.launch(id) {
                return false;
            }
            self.again.pop_front();
        }
        true
    }

    fn push_cancel(&mut self, key: u64) -> bool {
        let entry = opcode::AsyncCancel::new(key).build().user_data(CANCEL);
        // SAFETY: the entry points to nothing.
        unsafe { self.ring.push(&entry) }
    }

    /// Takes what has completed.
    fn collect(&mut self, completions: &mut Vec<Completion>) {
        let mut entries = std::mem::take(&mut self.entries);
        self.ring.take_completions(&mut entries);
        for entry in entries.drain(..) {
            match entry.user_data() {
                BELL => self.waiting.heard(),
                CANCEL => {}
                key => self.conclude(key, &entry),
            }
        }
        self.entries = entries;
        while let Some((key, outcome)) = self.helper.take_result() {
            self.blocking -= 1;
            if let Some(id) = self.flights.find(key) {
                self.finish(id, outcome.map(Output::from));
            }
        }
        completions.append(&mut self.ended);
    }

    fn conclude(&mut self, key: u64, entry: &cqueue::Entry) {
        let id = self.flights.find(key).expect("an operation is kept until its last completion");
        let last = !cqueue::more(entry.flags());
        self.in_kernel -= usize::from(last);
        let Some(flight) = self.flights.get(id) else { return };
        if matches!(flight.operation, Operation::Receive { .. }) {
            self.received(id, entry, last);
            return;
        }
        match flight.judge(entry.result()) {
            Verdict::Again if flight.cancelled => self.finish(id, Err(io::Error::from_raw_os_error(libc::ECANCELED))),
            Verdict::Again => self.again.push_back(id),
            Verdict::Over(result) => self.finish(id, result),
            Verdict::Connected(socket, peer) => {
                let result = peer.and_then(|peer| Ok(Output::Socket(self.adopt(socket)?, peer)));
                self.finish(id, result);
            }
        }
    }

    /// A part of what a multishot receive brings, or its end.
    fn received(&mut self, id: OperationId, entry: &cqueue::Entry, last: bool) {
        let chunk = cqueue::buffer_select(entry.flags()).map(|buffer| {
            // Negative results bring no bytes.
            self.receive.lend(buffer, usize::try_from(entry.result()).unwrap_or(0))
        });
        let cancelled = self.flights.get(id).is_none_or(|flight| flight.cancelled);
        let result = match (entry.result(), chunk) {
            // All buffers of the ring hold bytes that this turn hands out: there is room again at the next.
            (result, _) if result == -libc::ENOBUFS && !cancelled => return self.again.push_back(id),
            (result, _) if result < 0 => Err(io::Error::from_raw_os_error(-result)),
            (1.., Some(chunk)) if last && !cancelled => {
                // The kernel ended the receive, but not the stream.
                self.ended.push(Completion { id, result: Ok(Output::Received(chunk)), operation: None });
                return self.again.push_back(id);
            }
            (1.., Some(chunk)) => Ok(Output::Received(chunk)),
            _ => Ok(Output::Received(Received::end())),
        };
        if last {
            self.finish(id, result);
        } else {
            self.ended.push(Completion { id, result, operation: None });
        }
    }

    fn adopt(&mut self, socket: OwnedFd) -> io::Result<ResourceId> {
        sockets::send_at_once(&socket)?;
        self.descriptors.add(&self.ring.submitter(), socket, Kind::Socket)
    }

    /// Hands an operation back with its result.
    fn finish(&mut self, id: OperationId, result: io::Result<Output>) {
        let Some(flight) = self.flights.remove(id) else { return };
        self.blocking -= usize::from(self.is_blocking(&flight));
        self.transfers -= usize::from(flight.is_transfer());
        let operation = flight.finish(&mut self.spare);
        if let Some(resource) = resource_of(&operation) {
            self.descriptors.end(&self.ring.submitter(), resource, id);
            self.again.extend(self.descriptors.next_parked(resource));
        }
        self.ended.push(Completion { id, result, operation: Some(operation) });
    }
}

impl Driver for UringDriver {
    fn now(&self) -> Instant {
        monotonic_now()
    }

    fn wall_clock(&self) -> Duration {
        // A clock before 1970 is not set at all.
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }

    fn boot_id(&self) -> [u8; 16] {
        self.boot_id
    }

    fn random(&mut self) -> u64 {
        let mut bytes = [0; 8];
        // SAFETY: eight bytes of our own. Reads this small are never cut short once the kernel's pool is ready.
        let read = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        assert_eq!(read, 8, "the kernel gives eight random bytes");
        u64::from_ne_bytes(bytes)
    }

    fn open_disk(&mut self, path: &Path, options: &DiskOptions) -> io::Result<OpenDisk> {
        let disk = disks::open(path, options)?;
        let id = self.descriptors.add(&self.ring.submitter(), disk.file, disk.kind)?;
        self.ring.allow_threads(self.descriptors.threads());
        Ok(OpenDisk { id, size: disk.size, alignment: disk.alignment, atomic_write: disk.atomic_write })
    }

    fn resize_disk(&mut self, disk: ResourceId, size: u64) -> io::Result<()> {
        let resource = self.descriptors.get(disk)?;
        disks::resize(&resource.file, resource.kind, size)
    }

    fn measure_disk(&mut self, disk: ResourceId) -> io::Result<u64> {
        let resource = self.descriptors.get(disk)?;
        disks::measure(&resource.file, resource.kind)
    }

    fn listen(&mut self, address: SocketAddr) -> io::Result<(ResourceId, SocketAddr)> {
        let (socket, address) = sockets::listen(address, self.congestion.as_deref())?;
        let id = self.descriptors.add(&self.ring.submitter(), socket, Kind::Listener)?;
        Ok((id, address))
    }

    fn close(&mut self, resource: ResourceId) {
        let in_flight = self.descriptors.close(&self.ring.submitter(), resource);
        for id in in_flight {
            self.cancel(id);
        }
    }

    fn shutdown(&mut self, socket: ResourceId) {
        if let Ok(resource) = self.descriptors.get(socket) {
            sockets::end_sending(&resource.file);
        }
    }

    fn detach(&mut self, socket: ResourceId) -> DetachedSocket {
        DetachedSocket { raw: RawSocket::Descriptor(self.descriptors.remove(&self.ring.submitter(), socket)) }
    }

    fn attach(&mut self, socket: DetachedSocket) -> io::Result<ResourceId> {
        match socket.raw {
            RawSocket::Descriptor(socket) => self.descriptors.add(&self.ring.submitter(), socket, Kind::Socket),
            RawSocket::Simulated(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn submit(&mut self, id: OperationId, mut operation: Operation) -> Result<(), Operation> {
        let resource = resource_of(&operation);
        if let Some(resource) = resource
            && let Err(error) = self.descriptors.get(resource)
        {
            self.end_now(id, error, operation);
            return Ok(());
        }
        let job = Job::of(&mut operation);
        let mut flight = Flight::new(operation);
        if let Operation::Connect { address } = flight.operation {
            match sockets::to_connect(address, self.congestion.as_deref()) {
                Ok(socket) => flight.set_socket(&mut self.spare, socket),
                Err(error) => {
                    let operation = flight.finish(&mut self.spare);
                    self.end_now(id, error, operation);
                    return Ok(());
                }
            }
        }
        let blocking = self.is_blocking(&flight);
        let is_transfer = flight.is_transfer();
        self.flights.insert(id, flight);
        if let Some(job) = job {
            self.delegate(id, job);
            return Ok(());
        }
        let parked = resource.filter(|resource| self.descriptors.is_full(*resource));
        if parked.is_none()
            && !self.launch(id)
            && let Some(flight) = self.flights.remove(id)
        {
            return Err(flight.finish(&mut self.spare));
        }
        if let Some(resource) = resource {
            self.descriptors.begin(resource, id);
        }
        if let Some(resource) = parked {
            self.descriptors.park(resource, id);
        }
        self.blocking += usize::from(blocking);
        if is_transfer {
            self.transfers += 1;
            // The disk works on it while this turn goes on.
            self.ring.submit_early();
        }
        Ok(())
    }

    fn cancel(&mut self, id: OperationId) {
        let Some(flight) = self.flights.get(id) else { return };
        if std::mem::replace(&mut flight.cancelled, true) {
            return;
        }
        let resource = resource_of(&flight.operation);
        if resource.is_some_and(|resource| self.descriptors.unpark(resource, id)) {
            self.finish(id, Err(io::Error::from_raw_os_error(libc::ECANCELED)));
            return;
        }
        if let Some(place) = self.again.iter().position(|&waiting| waiting == id) {
            self.again.remove(place);
            self.finish(id, Err(io::Error::from_raw_os_error(libc::ECANCELED)));
            return;
        }
        let key = self.flights.key(id);
        if !self.cancels.is_empty() || !self.push_cancel(key) {
            self.cancels.push_back(key);
        }
    }

    fn turn(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()> {
        let caught_up = self.catch_up();
        let has_news = !self.ended.is_empty() || !completions.is_empty();
        let wait = if caught_up && !has_news { wait } else { Wait::Poll };
        let awaited = self.awaited();
        let result = self.waiting.advance(&mut self.ring, wait, awaited);
        // Before looking for what rings announce: results of the helper here, messages when the reactor takes over.
        self.doorbell.answer();
        let before = completions.len();
        self.collect(completions);
        self.stats.count_turn(completions.len() - before);
        result
    }
}

impl Drop for UringDriver {
    fn drop(&mut self) {
        for flight in self.flights.iter_mut() {
            flight.cancelled = true;
        }
        let cancel_all = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build().user_data(CANCEL);
        let limit = monotonic_now() + LAST_WAIT;
        let mut dropped = Vec::new();
        let mut asked = false;
        while self.in_kernel > 0 || self.waiting.is_listening() {
            // SAFETY: the entry points to nothing.
            asked = asked || unsafe { self.ring.push(&cancel_all) };
            let slept = self.ring.sleep(Some(Duration::from_millis(100)));
            self.collect(&mut dropped);
            dropped.clear();
            if slept.is_err() || monotonic_now() > limit {
                tracing::error!(operations = self.in_kernel, "the kernel does not let go; its memory is left to it");
                self.waiting.leak();
                std::mem::forget(std::mem::take(&mut self.flights));
                std::mem::forget(Rc::clone(&self.receive));
                return;
            }
        }
        self.receive.unregister(&self.ring.submitter());
    }
}

/// The kernel's clock that never goes back, the same for all threads. It counts the time that the machine was suspended: a lease does not
/// outlive it.
/// The clock of all reactors of the kernel.
pub(crate) fn monotonic_now() -> Instant {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the structure it is given; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    // Time since boot is positive and far below 584 years.
    Instant::from_nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

fn read_boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let number =
        u128::from_str_radix(&digits, 16).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(number.to_be_bytes())
}
