//! An I/O queue's connection: commands go to the device inline, answers of one turn leave together.
//!
//! # A command
//! ```text
//!              no data, or data for the host          Outcome
//! capsule ───┬───────────────────────────▶ at the device ─────▶ answered
//!            │ data in the capsule             ▲   │ Busy (I33)
//!            ├─────────────▶ receiving ────────┤   ▼
//!            │ data asked for    ▲             └ waiting to be tried again
//!            └──▶ waiting for ───┘
//!                 a buffer
//! ```
//! Each step is a place in [`IoQueue`]; a command is in one of them at a time, so it is answered once (I34). After the
//! connection broke, commands that the device has not begun are taken back, the others are waited for and their outcomes dropped: only
//! then is the queue gone (I16).

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io as std_io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use block_device::{Buffer, Completions, Error, ErrorKind, Outcome, Range, Reply, ReplySink, Request, Segments, Slice};
use nvmf_target_protocol::target::command::{Blocks, IoCommand, parse_ranges};
use nvmf_target_protocol::target::connection::{Event, Queue, Slot, Transfer};
use nvmf_target_protocol::wire::{Completion, Status, Submission};
use reactor::{Instant, Received, Reservation, now, sleep_until};
use smallvec::SmallVec;

use super::{CHUNKS_PER_TURN, Ended, Link, Output};
use crate::association::Association;
use crate::namespace::Attached;
use crate::status::status_of;
use crate::subsystem::Subsystem;

/// Bytes of answers that may wait for a host that does not read; then no further command is taken.
const OUTPUT_MAX: usize = 8 << 20;

/// Data of which this much is missing is received into its buffer; less is copied there in less time than a receive of
/// its own takes.
const FILL_MIN: u32 = 16 << 10;

/// When a device that was busy, or a pool that was empty, is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(1);

/// A command in flight.
struct InFlight {
    slot: Slot,
    entry: Submission,
    command: IoCommand,
    namespace: Rc<Attached>,
    data: Data,
}

/// A command's data from the host.
enum Data {
    None,
    /// Asked for; there is room for it.
    Reserved(Reservation),
    /// Arriving.
    Buffer(Buffer),
    /// Arriving, and the stream has the buffer.
    Filling,
    /// All here, and fixed (I11).
    Slice(Slice),
}

/// A command's data that the stream receives into its buffer.
#[derive(Clone, Copy)]
struct Filling {
    index: usize,
    start: usize,
    end: usize,
}

/// What an I/O connection waits for.
enum Wake {
    Received(std_io::Result<Received>),
    /// The stream has received a command's data into its buffer.
    Filled(Filling, std_io::Result<Buffer>),
    /// The device has answered something.
    Completed,
    /// There is room for output again, or there never will be.
    Drained(std_io::Result<()>),
    /// Time to try again what had to wait.
    Retry,
}

pub(super) async fn serve(link: Link, association: Rc<Association>, subsystem: Rc<Subsystem>, queue: Queue) {
    let mut io = IoQueue::new(link, Rc::clone(&association), subsystem, queue);
    let Ended = io.run().await;
    association.queue_closed(queue.id);
    // Before the last words, which may take a while: others could have the room.
    io.cancel();
    io.link.farewell().await;
    io.drain().await;
}

struct IoQueue {
    link: Link,
    queue_id: u16,
    association: Rc<Association>,
    subsystem: Rc<Subsystem>,
    transfer_max: u32,
    /// By the index of the command's slot, which is also the token of its request.
    commands: Vec<Option<InFlight>>,
    /// Requests that the device has.
    at_device: usize,
    completions: Rc<Completions>,
    sink: Rc<dyn ReplySink>,
    done: Vec<(u64, Outcome)>,
    /// Commands whose request found the device busy.
    busy: VecDeque<usize>,
    /// Commands whose data cannot be asked for until there is a buffer for it.
    unbuffered: VecDeque<usize>,
    filling: Option<Filling>,
    /// When to look after `busy` and `unbuffered`; set while one of them holds something.
    retry_at: Option<Instant>,
}

impl IoQueue {
    fn new(link: Link, association: Rc<Association>, subsystem: Rc<Subsystem>, queue: Queue) -> Self {
        let completions = Completions::new();
        Self {
            link,
            queue_id: queue.id,
            association,
            transfer_max: subsystem.limits().transfer,
            subsystem,
            commands: (0..queue.entries).map(|_| None).collect(),
            at_device: 0,
            sink: Rc::clone(&completions) as Rc<dyn ReplySink>,
            completions,
            done: Vec::new(),
            busy: VecDeque::new(),
            unbuffered: VecDeque::new(),
            filling: None,
            retry_at: None,
        }
    }

    async fn run(&mut self) -> Ended {
        let unread = std::mem::take(&mut self.link.unread);
        if let Err(ended) = self.feed(&unread) {
            return ended;
        }
        loop {
            self.answer();
            self.link.stream.flush();
            let result = match self.wait().await {
                Wake::Received(received) => self.take(received),
                Wake::Filled(filling, result) => self.filled(filling, result),
                Wake::Drained(result) => result.map_err(|_| Ended),
                Wake::Retry => {
                    self.try_again();
                    Ok(())
                }
                Wake::Completed => Ok(()),
            };
            if let Err(ended) = result {
                return ended;
            }
        }
    }

    async fn wait(&self) -> Wake {
        let full = self.link.stream.queued_bytes() > OUTPUT_MAX;
        let mut receive = pin!(self.link.stream.receive());
        let mut filled = pin!(self.link.stream.filled());
        let mut drained = pin!(self.link.stream.drained(OUTPUT_MAX / 2));
        let mut retry = pin!(sleep_until(self.retry_at.unwrap_or_default()));
        poll_fn(|context| {
            if self.completions.poll_ready(context).is_ready() {
                return Poll::Ready(Wake::Completed);
            }
            if full {
                if let Poll::Ready(result) = drained.as_mut().poll(context) {
                    return Poll::Ready(Wake::Drained(result));
                }
            } else if let Some(filling) = self.filling {
                if let Poll::Ready(result) = filled.as_mut().poll(context) {
                    return Poll::Ready(Wake::Filled(filling, result));
                }
            } else if let Poll::Ready(received) = receive.as_mut().poll(context) {
                return Poll::Ready(Wake::Received(received));
            }
            if self.retry_at.is_some() && retry.as_mut().poll(context).is_ready() {
                return Poll::Ready(Wake::Retry);
            }
            Poll::Pending
        })
        .await
    }

    /// The first chunk and those that are here already.
    fn take(&mut self, first: std_io::Result<Received>) -> Result<(), Ended> {
        self.association.touch();
        self.take_chunk(first)?;
        for _ in 1..CHUNKS_PER_TURN {
            if self.filling.is_some() {
                break;
            }
            // Asked for only if it is taken: a chunk received and dropped is a hole in the stream.
            let Some(received) = self.link.stream.try_receive() else { break };
            self.take_chunk(received)?;
        }
        Ok(())
    }

    fn take_chunk(&mut self, received: std_io::Result<Received>) -> Result<(), Ended> {
        let chunk = received.map_err(|_| Ended)?;
        if chunk.is_empty() {
            return Err(Ended);
        }
        self.feed(&chunk)
    }

    fn feed(&mut self, mut input: &[u8]) -> Result<(), Ended> {
        loop {
            match self.link.protocol.receive(&mut input) {
                Ok(Some(Event::Command { slot, entry, transfer })) => self.command(slot, entry, transfer),
                Ok(Some(Event::Payload { slot, offset, bytes })) => self.payload(slot, offset, bytes),
                Ok(Some(Event::PayloadEnd { slot, result })) => self.payload_end(slot, result),
                // Comes before Connect only.
                Ok(Some(Event::Initialize)) => {}
                Ok(None) => break,
                Err(fault) => return Err(self.link.fault(fault)),
            }
        }
        self.fill();
        Ok(())
    }

    /// Has long data received into its command's buffer.
    #[inline]
    fn fill(&mut self) {
        let Some(awaited) = self.link.protocol.awaited().filter(|awaited| awaited.length >= FILL_MIN) else { return };
        let index = awaited.slot.index();
        let Some(in_flight) = &mut self.commands[index] else { return };
        if in_flight.buffer().is_none() {
            return;
        }
        if let Data::Buffer(buffer) = std::mem::replace(&mut in_flight.data, Data::Filling) {
            let start = awaited.offset as usize;
            let end = start + awaited.length as usize;
            self.filling = Some(Filling { index, start, end });
            self.link.stream.fill(buffer, start..end);
        }
    }

    fn filled(&mut self, filling: Filling, result: std_io::Result<Buffer>) -> Result<(), Ended> {
        let Filling { index, start, end } = filling;
        self.filling = None;
        let buffer = result.map_err(|_| Ended)?;
        self.association.touch();
        self.link.protocol.placed(&buffer[start..end]);
        if let Some(in_flight) = &mut self.commands[index] {
            in_flight.data = Data::Buffer(buffer);
        }
        self.feed(&[])
    }

    #[inline]
    fn command(&mut self, slot: Slot, entry: Submission, transfer: Result<Transfer, Status>) {
        let (command, namespace) = match self.parse(&entry, transfer) {
            Ok(parsed) => parsed,
            Err(status) => return self.refuse(slot, &entry, status),
        };
        let index = slot.index();
        let data = match transfer {
            // Not counted against the pool's limit: bounded by the entries of the queue and IOCCSZ, and it could not
            // wait, as what frees other buffers may come behind it in this stream.
            Ok(Transfer::InCapsule { length }) => Data::Buffer(Buffer::new(length as usize)),
            _ => Data::None,
        };
        let receives = matches!(data, Data::Buffer(_));
        self.commands[index] = Some(InFlight { slot, entry, command, namespace, data });
        match transfer {
            Ok(Transfer::Solicited { .. }) => self.request_data(index),
            _ if receives => {}
            _ => self.submit(index),
        }
    }

    fn parse(
        &self,
        entry: &Submission,
        transfer: Result<Transfer, Status>,
    ) -> Result<(IoCommand, Rc<Attached>), Status> {
        let transfer = transfer?;
        let namespace = self.subsystem.attached(entry.namespace()).ok_or(Status::InvalidNamespaceOrFormat)?;
        let description = namespace.description();
        if let Some(status) = description.ana_state.refusal() {
            return Err(status);
        }
        let command = IoCommand::parse(entry, transfer, &description, self.transfer_max)?;
        Ok((command, namespace))
    }

    /// Asks for a command's data, as soon as there is a buffer for it.
    fn request_data(&mut self, index: usize) {
        let Some(in_flight) = &mut self.commands[index] else { return };
        let length = in_flight.command_data_length();
        match Reservation::try_new(length) {
            Some(reservation) => {
                in_flight.data = Data::Reserved(reservation);
                self.link.protocol.request_data(in_flight.slot, &mut Output(&self.link.stream));
            }
            // I33: it waits, and the host with it.
            None => {
                self.unbuffered.push_back(index);
                self.retry_soon();
            }
        }
    }

    #[inline]
    fn payload(&mut self, slot: Slot, offset: u32, bytes: &[u8]) {
        if let Some(buffer) = self.commands[slot.index()].as_mut().and_then(InFlight::buffer) {
            let start = offset as usize;
            buffer[start..start + bytes.len()].copy_from_slice(bytes);
        }
    }

    #[inline]
    fn payload_end(&mut self, slot: Slot, result: Result<(), Status>) {
        let index = slot.index();
        if let Err(status) = result {
            return self.finish(index, Err(status));
        }
        if let Some(in_flight) = &mut self.commands[index] {
            in_flight.freeze();
            self.submit(index);
        }
    }

    /// Passes a command to its device.
    #[inline]
    fn submit(&mut self, index: usize) {
        let Some(in_flight) = &self.commands[index] else { return };
        let request = match in_flight.request(self.association.forces_unit_access()) {
            Ok(Some(request)) => request,
            // Hints, or no ranges: nothing to do.
            Ok(None) => return self.finish(index, Ok(Segments::none())),
            Err(status) => return self.finish(index, Err(status)),
        };
        let namespace = Rc::clone(&in_flight.namespace);
        namespace.in_flight.set(namespace.in_flight.get() + 1);
        self.at_device += 1;
        namespace.device.submit(request, Reply::new(Rc::clone(&self.sink), index as u64));
    }

    /// Answers everything that the device is done with.
    fn answer(&mut self) {
        let mut done = std::mem::take(&mut self.done);
        self.completions.take(&mut done);
        for (token, outcome) in done.drain(..) {
            let index = token as usize;
            self.returned(index);
            match outcome {
                Ok(segments) => self.finish(index, Ok(segments)),
                Err(error) if error.kind() == ErrorKind::Busy => {
                    self.busy.push_back(index);
                    self.retry_soon();
                }
                Err(error) => self.failed(index, &error),
            }
        }
        self.done = done;
    }

    /// The device no longer has the request of a command.
    fn returned(&mut self, index: usize) {
        self.at_device -= 1;
        if let Some(in_flight) = &self.commands[index] {
            let left = in_flight.namespace.in_flight.get() - 1;
            in_flight.namespace.in_flight.set(left);
            if left == 0 {
                self.subsystem.namespace_idle();
            }
        }
    }

    fn failed(&mut self, index: usize, error: &Error) {
        let status = status_of(error.kind());
        // The first, second, fourth, eighth…: a volume that fails must not drown its reactor in lines.
        let count = self.subsystem.counters.get().errors + 1;
        if let Some(in_flight) = &self.commands[index]
            && status != Status::CompareFailure
            && count.is_power_of_two()
        {
            let (subsystem, command) = (self.subsystem.nqn(), in_flight.command);
            tracing::warn!(subsystem, ?command, %error, count, "I/O failed");
        }
        self.finish(index, Err(status));
    }

    /// Answers a command (I34: its place is empty afterwards).
    #[inline]
    fn finish(&mut self, index: usize, result: Result<Segments, Status>) {
        let Some(in_flight) = self.commands[index].take() else { return };
        match result {
            Ok(segments) => {
                self.count(&in_flight.command, &segments, in_flight.command_data_length());
                self.send(in_flight.slot, &segments);
            }
            Err(status) => self.refuse(in_flight.slot, &in_flight.entry, status),
        }
    }

    #[inline]
    fn send(&mut self, slot: Slot, segments: &Segments) {
        let output = &mut Output(&self.link.stream);
        let length = segments.length();
        if length > 0 {
            // At most MDTS.
            let completed = self.link.protocol.write_data_header(slot, length as u32, output);
            for slice in segments.iter() {
                self.link.stream.push(slice.clone());
            }
            self.link.protocol.write_data_digest(segments.iter().map(|slice| &slice[..]), output);
            if completed {
                return;
            }
        }
        self.link.protocol.respond(slot, Completion::SUCCESS, output);
    }

    fn refuse(&mut self, slot: Slot, entry: &Submission, status: Status) {
        self.subsystem.counters.update(|counters| {
            counters.errors += 1;
            counters.media_errors += u64::from(matches!(status, Status::UnrecoveredReadError | Status::WriteFault));
        });
        self.association.record_error(self.queue_id, entry, status);
        self.link.protocol.respond(slot, status.into(), &mut Output(&self.link.stream));
    }

    #[inline]
    fn count(&self, command: &IoCommand, segments: &Segments, data_length: usize) {
        self.subsystem.counters.update(|counters| match command {
            IoCommand::Read(_) => {
                counters.reads += 1;
                counters.bytes_read += segments.length() as u64;
            }
            IoCommand::Compare(_) => counters.reads += 1,
            IoCommand::Write { .. } => {
                counters.writes += 1;
                counters.bytes_written += data_length as u64;
            }
            IoCommand::Flush => counters.flushes += 1,
            IoCommand::WriteZeroes { .. } | IoCommand::DatasetManagement { .. } => counters.deallocations += 1,
        });
    }

    fn retry_soon(&mut self) {
        self.retry_at.get_or_insert_with(|| now() + RETRY_PAUSE);
    }

    /// Tries again what found a busy device or no buffer; each once.
    fn try_again(&mut self) {
        self.retry_at = None;
        for _ in 0..self.busy.len() {
            if let Some(index) = self.busy.pop_front() {
                self.submit(index);
            }
        }
        for _ in 0..self.unbuffered.len() {
            if let Some(index) = self.unbuffered.pop_front() {
                self.request_data(index);
            }
        }
    }

    /// Takes back what devices have not begun: nobody waits for it any more (I16).
    fn cancel(&self) {
        let mut told: Option<&Rc<Attached>> = None;
        for in_flight in self.commands.iter().flatten() {
            // Nearly always there is one namespace.
            if !told.is_some_and(|told| Rc::ptr_eq(told, &in_flight.namespace)) {
                in_flight.namespace.device.cancel(&self.sink, None);
                told = Some(&in_flight.namespace);
            }
        }
    }

    /// Waits for the device to answer what it still has, and forgets it (I16).
    async fn drain(&mut self) {
        while self.at_device > 0 {
            poll_fn(|context| self.completions.poll_ready(context)).await;
            let mut done = std::mem::take(&mut self.done);
            self.completions.take(&mut done);
            for (token, _) in done.drain(..) {
                self.returned(token as usize);
            }
            self.done = done;
        }
    }
}

impl InFlight {
    /// The buffer that the command's data goes to.
    #[inline]
    fn buffer(&mut self) -> Option<&mut Buffer> {
        if let Data::Reserved(_) = self.data
            && let Data::Reserved(reservation) = std::mem::replace(&mut self.data, Data::None)
        {
            self.data = Data::Buffer(reservation.into_buffer());
        }
        if let Data::Buffer(buffer) = &mut self.data { Some(buffer) } else { None }
    }

    /// Bytes of data that the host sends with the command.
    fn command_data_length(&self) -> usize {
        match (&self.data, self.entry.sgl()) {
            (Data::Slice(slice), _) => slice.len(),
            (Data::Buffer(buffer), _) => buffer.len(),
            (Data::Reserved(reservation), _) => reservation.length(),
            (Data::None | Data::Filling, sgl) => sgl.length() as usize,
        }
    }

    /// The data is complete: nobody can change it from here on (I11).
    fn freeze(&mut self) {
        self.data = match std::mem::replace(&mut self.data, Data::None) {
            Data::Buffer(buffer) => Data::Slice(buffer.freeze()),
            other => other,
        };
    }

    /// The command as a request to its device; none if there is nothing to do.
    #[inline]
    fn request(&self, force_unit_access: bool) -> Result<Option<Request>, Status> {
        let description = self.namespace.description();
        let shift = description.block_size.shift();
        let range = |blocks: Blocks| Range { offset: blocks.start << shift, length: u64::from(blocks.count) << shift };
        let data = || match &self.data {
            Data::Slice(slice) => slice.clone(),
            _ => Slice::default(),
        };
        Ok(Some(match self.command {
            IoCommand::Read(blocks) => Request::Read { range: range(blocks) },
            IoCommand::Write { blocks, fua } => {
                Request::Write { offset: range(blocks).offset, data: data(), fua: fua || force_unit_access }
            }
            IoCommand::Compare(blocks) => Request::Compare { offset: range(blocks).offset, data: data() },
            IoCommand::WriteZeroes { blocks, deallocate, fua } => {
                Request::WriteZeroes { range: range(blocks), unmap: deallocate, fua: fua || force_unit_access }
            }
            IoCommand::Flush => Request::Flush,
            IoCommand::DatasetManagement { ranges, deallocate } => {
                let data = data();
                let ranges: SmallVec<[Range; 2]> = parse_ranges(&data, ranges, &description)?
                    .map(|range| Range { offset: range.start << shift, length: u64::from(range.blocks) << shift })
                    .collect();
                if !deallocate || ranges.is_empty() {
                    return Ok(None);
                }
                Request::Unmap { ranges }
            }
        }))
    }
}
