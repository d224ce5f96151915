//! A connection in its full feature phase: commands go to the device inline, answers of one turn leave together.
//!
//! # A command
//! ```text
//!          refused, or no data wanted                             Outcome
//!  PDU ───┬──────────────────────────────▶ at the device, or ─────────▶ answered
//!         │ data comes unasked             beside, or held  ▲  │ Busy (I33), or the gate is closed
//!         ├──────────────────▶ receiving ──┤                │  ▼
//!         │ data is asked for      ▲       └────────────────┴ waiting to be tried again
//!         └──▶ waiting for ────────┘
//!              a buffer
//! ```
//! A command is in one of these places at a time, so it is answered once (I34). After the connection broke, commands at the
//! device are taken back or waited for, and their outcomes dropped: only then is the connection gone (I16).

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use block_device::{Buffer, Completions, ErrorKind, Outcome, Reply, ReplySink, Request, Segments, Slice};
use iscsi_target_protocol::target::connection::{self as protocol, Connection, Event, Slot, Transfer};
use iscsi_target_protocol::target::session::Session as Numbers;
use iscsi_target_protocol::wire::request::LogoutReason;
use iscsi_target_protocol::wire::response::LogoutOutcome;
use reactor::{Instant, Received, now, sleep_until, spawn};
use scsi_protocol::command::{Access, Command};
use scsi_protocol::sense::{Sense, Status};
use scsi_protocol::unit::{Action, Response, respond_without_unit};
use smallvec::SmallVec;

use crate::discovery::tell_targets;
use crate::link::{Ended, Output, farewell};
use crate::management::{Management, manage};
use crate::medium::{self, Plan};
use crate::session::{Line, Session};
use crate::tasks::{Data, InFlight, Work};

/// Bytes of answers that may wait for an initiator that does not read; then no further command is taken.
const OUTPUT_MAX: usize = 8 << 20;

/// Chunks taken from the socket in one turn, so that one connection does not starve the others.
const CHUNKS_PER_TURN: usize = 16;

/// Operation code of LOG SENSE.
const LOG_SENSE: u8 = 0x4d;

/// When a device that was busy, or a pool that was empty, is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(1);

/// What a connection waits for.
enum Wake {
    Received(io::Result<Received>),
    /// The device has answered something.
    Completed,
    /// Something else that it waits for may have happened.
    Woken,
    /// There is room for output again, or there never will be.
    Drained(io::Result<()>),
    /// Time to try again what had to wait, or to look after a silent initiator.
    Time,
}

/// A command as the unit understands it.
struct Started {
    work: Work,
    /// Bytes that it is about.
    length: u32,
    /// Bytes of data that it takes.
    takes: u32,
}

impl Started {
    fn answer(response: Response, length: u32) -> Self {
        Self { work: Work::Answer(response), length, takes: 0 }
    }
}

/// Serves a connection to its end.
pub(crate) async fn serve(line: Rc<Line>, session: Rc<Session>, unread: Vec<u8>) {
    let cid = line.protocol.borrow().as_ref().map_or(0, Connection::cid);
    session.add_line(cid, Rc::clone(&line));
    let mut driver = Driver::new(Rc::clone(&line), Rc::clone(&session), cid, unread);
    let Ended = driver.run().await;
    session.line_closed(cid, &line, driver.logged_out);
    // What the device has not begun it never will: nobody waits for it any more.
    session.target.device.cancel(&driver.sink, None);
    farewell(&line.stream).await;
    driver.drain().await;
    session.line_drained();
}

struct Driver {
    line: Rc<Line>,
    session: Rc<Session>,
    cid: u16,
    /// Received and not given to the protocol yet: the next request waits for its turn.
    unread: Vec<u8>,
    /// By the index of the command's slot, which is also the token of its request.
    commands: Vec<Option<InFlight>>,
    completions: Rc<Completions>,
    sink: Rc<dyn ReplySink>,
    done: Vec<(u64, Outcome)>,
    /// Requests that the device has.
    at_device: usize,
    /// Commands that found the device busy or the gate closed.
    held: VecDeque<Slot>,
    /// Commands whose data cannot be asked for until there is a buffer for it.
    unbuffered: VecDeque<Slot>,
    /// When to look after `held` and `unbuffered`; set while one of them holds something.
    retry_at: Option<Instant>,
    /// When to look after a silent initiator.
    tick_at: Instant,
    logged_out: bool,
    block_size: u32,
}

impl Driver {
    fn new(line: Rc<Line>, session: Rc<Session>, cid: u16, unread: Vec<u8>) -> Self {
        let completions = Rc::clone(&line.completions);
        let block_size = session.target.device.geometry().block_size;
        Self {
            line,
            session,
            cid,
            unread,
            commands: Vec::new(),
            sink: Rc::clone(&completions) as Rc<dyn ReplySink>,
            completions,
            done: Vec::new(),
            at_device: 0,
            held: VecDeque::new(),
            unbuffered: VecDeque::new(),
            retry_at: None,
            tick_at: now(),
            logged_out: false,
            block_size,
        }
    }

    async fn run(&mut self) -> Ended {
        if let Err(ended) = self.feed_unread() {
            return ended;
        }
        loop {
            self.answer();
            self.line.stream.flush();
            let result = match self.wait().await {
                Wake::Received(received) => self.take(received),
                Wake::Drained(result) => result.map_err(|_| Ended),
                Wake::Time => self.look_after(),
                Wake::Woken => {
                    self.try_again();
                    self.feed_unread()
                }
                Wake::Completed => Ok(()),
            };
            if let Err(ended) = result {
                return ended;
            }
        }
    }

    async fn wait(&self) -> Wake {
        let stream = &self.line.stream;
        let full = stream.queued_bytes() > OUTPUT_MAX;
        // What follows a request that is not in turn is not read.
        let waits = !self.unread.is_empty();
        let mut receive = pin!(stream.receive());
        let mut drained = pin!(stream.drained(OUTPUT_MAX / 2));
        let mut time = pin!(sleep_until(self.retry_at.map_or(self.tick_at, |retry| retry.min(self.tick_at))));
        poll_fn(|context| {
            if self.completions.poll_ready(context).is_ready() {
                return Poll::Ready(Wake::Completed);
            }
            if self.line.wake.poll(context).is_ready() {
                return Poll::Ready(Wake::Woken);
            }
            if full {
                if let Poll::Ready(result) = drained.as_mut().poll(context) {
                    return Poll::Ready(Wake::Drained(result));
                }
            } else if !waits && let Poll::Ready(received) = receive.as_mut().poll(context) {
                return Poll::Ready(Wake::Received(received));
            }
            if time.as_mut().poll(context).is_ready() {
                return Poll::Ready(Wake::Time);
            }
            Poll::Pending
        })
        .await
    }

    /// The first chunk and those that are here already.
    fn take(&mut self, first: io::Result<Received>) -> Result<(), Ended> {
        self.take_chunk(first)?;
        for _ in 1..CHUNKS_PER_TURN {
            if !self.unread.is_empty() {
                break;
            }
            // Asked for only if it is taken: a chunk received and dropped is a hole in the stream.
            let Some(received) = self.line.stream.try_receive() else { break };
            self.take_chunk(received)?;
        }
        Ok(())
    }

    fn take_chunk(&mut self, received: io::Result<Received>) -> Result<(), Ended> {
        let chunk = received.map_err(|_| Ended)?;
        if chunk.is_empty() {
            return Err(Ended);
        }
        let left = self.feed(&chunk)?;
        self.unread.extend_from_slice(&chunk[chunk.len() - left..]);
        Ok(())
    }

    fn feed_unread(&mut self) -> Result<(), Ended> {
        if self.unread.is_empty() {
            return Ok(());
        }
        let unread = std::mem::take(&mut self.unread);
        let left = self.feed(&unread)?;
        self.unread = unread[unread.len() - left..].to_vec();
        Ok(())
    }

    /// Gives bytes to the protocol; how many it did not take, because a request is not in turn.
    fn feed(&mut self, mut input: &[u8]) -> Result<usize, Ended> {
        let before = self.session.numbers.borrow().expected();
        let result = self.feed_events(&mut input);
        if self.session.numbers.borrow().expected() != before {
            self.session.wake_others(self.cid);
        }
        result.map(|()| input.len())
    }

    fn feed_events(&mut self, input: &mut &[u8]) -> Result<(), Ended> {
        let time = now().as_nanos();
        loop {
            let event = self.with_protocol(|protocol, numbers, output| {
                let event = protocol.receive(numbers, time, input, output);
                event.inspect_err(|violation| protocol.reject(numbers, *violation, output))
            });
            match event {
                Ok(Some(event)) => self.event(event)?,
                Ok(None) => return Ok(()),
                Err(violation) => {
                    let peer = self.line.stream.peer_address();
                    tracing::warn!(%peer, ?violation, "initiator broke the protocol");
                    return Err(Ended);
                }
            }
        }
    }

    fn event(&mut self, event: Event<'_>) -> Result<(), Ended> {
        match event {
            Event::Command { slot, command, transfer } => self.command(slot, &command, transfer),
            Event::Payload { slot, offset, bytes } => {
                if let Some(in_flight) = self.at(slot) {
                    in_flight.receive(offset, bytes);
                }
            }
            Event::PayloadEnd { slot, received, result } => self.payload_end(slot, received, result),
            Event::TaskManagement { slot, function, lun, task, before } => {
                manage(&self.session, &self.line, Management { slot, function, lun, task, before });
            }
            Event::SendTargets(wanted) => {
                let session = Rc::clone(&self.session);
                let target = &session.target;
                let own = &target.identity().name;
                self.with_protocol(|protocol, numbers, output| {
                    let directory = target.directory();
                    tell_targets(numbers, protocol, directory, &session.initiator, &wanted, Some(own), output);
                });
            }
            Event::Logout { reason, cid } => return self.logout(reason, cid),
        }
        Ok(())
    }

    /// The protocol's state and where it writes.
    #[inline]
    fn with_protocol<T>(&self, run: impl FnOnce(&mut Connection, &mut Numbers, &mut Output<'_>) -> T) -> T {
        let mut protocol = self.line.protocol.borrow_mut();
        // Taken only when this driver has ended.
        let protocol = protocol.as_mut().expect("a connection that is served");
        run(protocol, &mut self.session.numbers.borrow_mut(), &mut Output(&self.line.stream))
    }

    /// Whether nobody wants the answer to a command any more: it is not begun then.
    #[inline]
    fn is_aborted(&self, slot: Slot) -> bool {
        self.line.managers.get() > 0
            && self.line.protocol.borrow().as_ref().is_some_and(|protocol| protocol.is_aborted(slot))
    }

    /// The command of a slot, unless it is gone.
    #[inline]
    fn at(&mut self, slot: Slot) -> Option<&mut InFlight> {
        self.commands.get_mut(slot.index())?.as_mut().filter(|in_flight| in_flight.slot == slot)
    }

    #[inline]
    fn command(&mut self, slot: Slot, command: &protocol::Command, transfer: Transfer) {
        let (expected, unsolicited) = match transfer {
            Transfer::FromInitiator { length, unsolicited } => (length, unsolicited),
            Transfer::None | Transfer::ToInitiator { .. } => (0, 0),
        };
        let Started { work, length, takes } = self.start(command, expected);
        // Data that comes unasked cannot wait for a buffer: what frees others may come behind it in this stream. It is bounded
        // by the window and FirstBurstLength.
        let comes = unsolicited > 0 && takes > 0;
        let data = if comes { Data::Buffer(Buffer::new(takes as usize)) } else { Data::None };
        let in_flight = InFlight { slot, work, data, length, takes, is_writer: false };
        let index = slot.index();
        if index >= self.commands.len() {
            self.commands.resize_with(index + 1, || None);
        }
        self.commands[index] = Some(in_flight);
        match (unsolicited, takes) {
            (0, 0) => self.submit(slot),
            (0, _) => self.request_data(slot),
            _ => {}
        }
    }

    /// Asks the unit what a command is that comes with `expected` bytes of data.
    #[inline]
    fn start(&self, command: &protocol::Command, expected: u32) -> Started {
        if command.lun != 0 {
            return Started::answer(respond_without_unit(&command.cdb), 0);
        }
        if command.cdb[0] == LOG_SENSE {
            self.session.target.update_space();
        }
        let mut unit = self.session.target.unit.borrow_mut();
        let started = match unit.start(self.session.nexus, &command.cdb) {
            Ok(started) => started,
            Err(response) => return Started::answer(response, 0),
        };
        let medium = unit.medium();
        // Bounded by the limits of the medium, and of parameter lists.
        let length = started.data_out(medium).min(u64::from(u32::MAX)) as u32;
        match started.with_data_out(u64::from(expected), medium) {
            Ok(cut) => Started { takes: cut.data_out(medium) as u32, length, work: Work::Run(cut) },
            Err(sense) => Started::answer(Response::check(sense), length),
        }
    }

    /// Asks for a command's data, as soon as there is a buffer for it.
    fn request_data(&mut self, slot: Slot) {
        if self.is_aborted(slot) {
            return self.finish(slot, Response::check(Sense::ABORTED));
        }
        let Some(in_flight) = self.at(slot) else { return };
        let takes = in_flight.takes;
        if matches!(in_flight.data, Data::None) {
            match Buffer::try_new(takes as usize) {
                Some(buffer) => in_flight.data = Data::Buffer(buffer),
                // I33: it waits, and the initiator with it.
                None => {
                    self.unbuffered.push_back(slot);
                    return self.retry_soon();
                }
            }
        }
        self.with_protocol(|protocol, numbers, output| protocol.request_data(numbers, slot, takes, output));
    }

    fn payload_end(&mut self, slot: Slot, received: u32, result: Result<(), iscsi_target_protocol::wire::Sense>) {
        let Some(in_flight) = self.at(slot) else { return };
        if let Err(sense) = result {
            let bytes = sense.fixed();
            self.commands[slot.index()] = None;
            let response = protocol::Response { status: Status::CheckCondition as u8, sense: &bytes, length: 0 };
            return self.with_protocol(|protocol, numbers, output| protocol.respond(numbers, slot, response, output));
        }
        if received < in_flight.takes {
            return self.request_data(slot);
        }
        in_flight.freeze();
        self.submit(slot);
    }

    /// Carries a command out, or passes it to the device.
    #[inline]
    fn submit(&mut self, slot: Slot) {
        if self.is_aborted(slot) {
            return self.finish(slot, Response::check(Sense::ABORTED));
        }
        let target = Rc::clone(&self.session.target);
        let nexus = self.session.nexus;
        let Some(in_flight) = self.at(slot) else { return };
        let data = in_flight.slice();
        let action = match &in_flight.work {
            Work::Answer(response) => Action::Respond(response.clone()),
            // One change of the reservations after the other: each may have to be taken back.
            Work::Run(Command::PersistentReserveOut { .. }) if target.saving.get() => Action::Respond(Response::busy()),
            Work::Run(command) => target.unit.borrow_mut().run(nexus, command, &data),
        };
        match action {
            Action::Respond(response) => self.finish(slot, response),
            Action::Access(access) => self.access(slot, access),
            Action::Unmap(blocks) => match medium::unmap(&blocks, self.block_size) {
                Some(request) => self.write(slot, request),
                None => self.finish(slot, Response::good(Vec::new())),
            },
            Action::Copy(copy) => self.beside(slot, async move { medium::copy(&target, nexus, copy).await }),
            Action::Persist { abort, before } => {
                let session = Rc::clone(&self.session);
                self.beside(slot, async move { crate::persist::persist(&session, &abort, before).await });
            }
        }
    }

    #[inline]
    fn access(&mut self, slot: Slot, access: Access) {
        let fua = self.session.target.unit.borrow().forces_unit_access();
        let block_size = self.block_size;
        let Some(in_flight) = self.at(slot) else { return };
        match medium::plan(&access, || in_flight.slice(), block_size, fua) {
            Plan::Nothing => self.finish(slot, Response::good(Vec::new())),
            Plan::Request(request) if medium::writes(&access) => self.write(slot, request),
            Plan::Request(request) => self.send_to_device(slot, request),
            Plan::Several => {
                let data = in_flight.slice();
                let target = Rc::clone(&self.session.target);
                self.beside(slot, async move { medium::carry_out(&target, access, data).await });
            }
        }
    }

    /// Passes a write to the device, if the gate lets it in; it waits for a wake otherwise.
    #[inline]
    fn write(&mut self, slot: Slot, request: Request) {
        if !self.session.target.gate.enter() {
            return self.held.push_back(slot);
        }
        if let Some(in_flight) = self.at(slot) {
            in_flight.is_writer = true;
        }
        self.send_to_device(slot, request);
    }

    #[inline]
    fn send_to_device(&mut self, slot: Slot, request: Request) {
        self.at_device += 1;
        self.line.outstanding.set(self.line.outstanding.get() + 1);
        let target = &self.session.target;
        target.request_begins();
        target.device.submit(request, Reply::new(Rc::clone(&self.sink), slot.index() as u64));
    }

    /// Carries a command out in a task of its own.
    fn beside(&self, slot: Slot, work: impl Future<Output = Response> + 'static) {
        let (line, target) = (Rc::clone(&self.line), Rc::clone(&self.session.target));
        line.beside.set(line.beside.get() + 1);
        line.outstanding.set(line.outstanding.get() + 1);
        spawn(async move {
            let response = work.await;
            line.outstanding.set(line.outstanding.get() - 1);
            line.finish(slot, response);
            target.changed();
        });
    }

    /// Answers everything that is done.
    fn answer(&mut self) {
        let mut done = std::mem::take(&mut self.done);
        self.completions.take(&mut done);
        for (token, outcome) in done.drain(..) {
            self.returned(token as usize, outcome);
        }
        self.done = done;
        let finished = std::mem::take(&mut *self.line.finished.borrow_mut());
        for (slot, response) in finished {
            self.finish(slot, response);
        }
    }

    /// The device has answered the request of a command.
    #[inline]
    fn returned(&mut self, index: usize, outcome: Outcome) {
        let slot = self.leave_device(index);
        let Some(slot) = slot else { return };
        match outcome {
            Ok(segments) => self.send(slot, &segments),
            Err(error) if medium::is_busy(&error) => {
                self.held.push_back(slot);
                self.retry_soon();
            }
            Err(error) => {
                self.count_error(&error);
                self.finish(slot, medium::response_of(&error));
            }
        }
    }

    /// Counts a request out; whose it was.
    fn leave_device(&mut self, index: usize) -> Option<Slot> {
        self.at_device -= 1;
        self.line.outstanding.set(self.line.outstanding.get() - 1);
        let target = &self.session.target;
        target.request_ends();
        let in_flight = self.commands[index].as_mut()?;
        if std::mem::take(&mut in_flight.is_writer) {
            target.gate.leave();
        }
        Some(in_flight.slot)
    }

    fn count_error(&self, error: &block_device::Error) {
        // What a VERIFY or COMPARE AND WRITE was to find out, and what was taken back because it was aborted.
        if matches!(error.kind(), ErrorKind::CompareMismatch | ErrorKind::Aborted) {
            return;
        }
        let target = &self.session.target;
        let count = target.counters.get().errors + 1;
        target.counters.update(|counters| counters.errors = count);
        // The first, second, fourth, eighth…: a volume that fails must not drown its reactor in lines.
        if count.is_power_of_two() {
            tracing::warn!(target = %target.identity().name, %error, count, "command failed");
        }
    }

    /// Answers a command that the device has carried out.
    #[inline]
    fn send(&mut self, slot: Slot, segments: &Segments) {
        let Some(in_flight) = self.commands[slot.index()].take() else { return };
        self.count(&in_flight, segments);
        // A VERIFY reads, and gives nothing back.
        let reads = matches!(in_flight.access(), Some(Access::Read(_)));
        let length = if reads { segments.length() as u32 } else { in_flight.length };
        if !reads || length == 0 {
            let response = protocol::Response { status: Status::Good as u8, sense: &[], length };
            self.with_protocol(|protocol, numbers, output| protocol.respond(numbers, slot, response, output));
        } else {
            self.send_data(slot, segments, length);
        }
        self.ended();
    }

    /// Data-In with GOOD in the last one.
    #[inline]
    fn send_data(&self, slot: Slot, segments: &Segments, length: u32) {
        self.with_protocol(|protocol, numbers, output| {
            while let Some(range) = protocol.write_data_header(numbers, slot, length, output) {
                let pieces = cut(segments, range.start as usize, range.end as usize);
                pieces.iter().for_each(|piece| self.line.stream.push(piece.clone()));
                protocol.write_data_end(pieces.iter().map(|piece| &piece[..]), output);
            }
        });
    }

    /// Answers a command (I34: its place is empty afterwards).
    fn finish(&mut self, slot: Slot, response: Response) {
        let Some(in_flight) = self.at(slot) else { return };
        let length = in_flight.length;
        self.commands[slot.index()] = None;
        if response.status == Status::Good && !response.data.is_empty() {
            let data = Segments::from(Slice::from(&response.data[..]));
            self.send_data(slot, &data, response.data.len() as u32);
        } else {
            let unit = self.session.target.unit.borrow();
            let sense = response.sense.map(|sense| unit.encode_sense(&sense)).unwrap_or_default();
            let answer = protocol::Response { status: response.status as u8, sense: &sense, length };
            self.with_protocol(|protocol, numbers, output| protocol.respond(numbers, slot, answer, output));
        }
        self.ended();
    }

    /// A command has ended: one that was aborted may have been waited for.
    #[inline]
    fn ended(&self) {
        if self.line.managers.get() > 0 {
            self.session.target.changed();
        }
    }

    #[inline]
    fn count(&self, in_flight: &InFlight, segments: &Segments) {
        self.session.target.counters.update(|counters| match in_flight.work {
            Work::Run(Command::Access(Access::Read(_))) => {
                counters.reads += 1;
                counters.bytes_read += segments.length() as u64;
            }
            Work::Run(Command::Access(Access::Write { .. })) => {
                counters.writes += 1;
                counters.bytes_written += u64::from(in_flight.takes);
            }
            Work::Run(Command::Access(Access::Flush)) => counters.flushes += 1,
            Work::Run(Command::Access(Access::WriteSame { .. }) | Command::Unmap { .. }) => counters.deallocations += 1,
            _ => {}
        });
        self.session.target.watch_space(self.session.target.counters.get().bytes_written);
    }

    fn retry_soon(&mut self) {
        self.retry_at.get_or_insert_with(|| now() + RETRY_PAUSE);
    }

    /// Tries again what found a busy device, a closed gate or no buffer; each once.
    fn try_again(&mut self) {
        self.retry_at = None;
        for _ in 0..self.held.len() {
            if let Some(slot) = self.held.pop_front() {
                self.submit(slot);
            }
        }
        for _ in 0..self.unbuffered.len() {
            if let Some(slot) = self.unbuffered.pop_front() {
                self.request_data(slot);
            }
        }
    }

    /// What is due.
    fn look_after(&mut self) -> Result<(), Ended> {
        let time = now();
        if self.retry_at.is_some_and(|retry| retry <= time) {
            self.try_again();
        }
        if self.tick_at > time {
            return Ok(());
        }
        let next = self.with_protocol(|protocol, numbers, output| protocol.tick(numbers, time.as_nanos(), output));
        match next {
            Ok(next) => {
                self.tick_at = Instant::from_nanos(next);
                Ok(())
            }
            Err(protocol::Silent) => {
                tracing::warn!(peer = %self.line.stream.peer_address(), "initiator does not answer");
                Err(Ended)
            }
        }
    }

    /// Closes what the initiator wants closed, and answers.
    fn logout(&mut self, reason: LogoutReason, cid: u16) -> Result<(), Ended> {
        let other = (reason == LogoutReason::CloseConnection && cid != self.cid).then(|| self.session.line(cid));
        let outcome = match other {
            Some(None) => LogoutOutcome::NoConnection,
            Some(Some(line)) => {
                line.stream.close();
                LogoutOutcome::Closed
            }
            None => LogoutOutcome::Closed,
        };
        self.with_protocol(|protocol, numbers, output| protocol.respond_logout(numbers, outcome, output));
        if other_is_meant(reason, cid, self.cid) {
            return Ok(());
        }
        self.logged_out = reason == LogoutReason::CloseConnection;
        Err(Ended)
    }

    /// Waits for what is still outstanding, and forgets it (I16).
    async fn drain(&mut self) {
        if let Some(protocol) = self.line.protocol.borrow_mut().take() {
            protocol.abandon(&mut self.session.numbers.borrow_mut());
        }
        self.session.wake_others(self.cid);
        while self.at_device > 0 {
            poll_fn(|context| self.completions.poll_ready(context)).await;
            let mut done = std::mem::take(&mut self.done);
            self.completions.take(&mut done);
            for (token, _) in done.drain(..) {
                self.leave_device(token as usize);
            }
            self.done = done;
        }
        while self.line.beside.get() > 0 {
            poll_fn(|context| self.line.wake.poll(context)).await;
        }
    }
}

fn other_is_meant(reason: LogoutReason, cid: u16, own: u16) -> bool {
    reason == LogoutReason::CloseConnection && cid != own
}

/// The bytes `start..end` of segments.
fn cut(segments: &Segments, start: usize, end: usize) -> SmallVec<[Slice; 2]> {
    let mut pieces = SmallVec::new();
    let mut at = 0;
    for slice in segments.iter() {
        let (from, to) = (start.max(at), end.min(at + slice.len()));
        if from < to {
            pieces.push(slice.slice(from - at..to - at));
        }
        at += slice.len();
    }
    pieces
}
