//! The admin queue's connection: every command is answered or held at once.

use std::future::{Future, poll_fn};
use std::io as std_io;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use nvmf_target_protocol::target::connection::{Event, Slot, Transfer};
use nvmf_target_protocol::target::controller::{AdminCommand, Outcome};
use nvmf_target_protocol::wire::{Completion, Status, Submission};
use reactor::{Instant, Received, sleep_until};

use super::{CHUNKS_PER_TURN, Ended, Link, Output};
use crate::association::Association;

/// Bytes of answers that may wait for a host that does not read; then no further command is taken.
const OUTPUT_MAX: usize = 4 << 20;

/// What an admin connection waits for.
enum Wake {
    Received(std_io::Result<Received>),
    /// An event may be ready.
    Event,
    /// The Keep Alive Timer may have expired.
    Deadline,
}

pub(super) async fn serve(link: Link, association: &Rc<Association>) {
    let mut admin = Admin { link, association };
    let Ended = admin.run().await;
    association.queue_closed(0);
    // Whatever ended it, what is queued is still sent.
    admin.link.farewell().await;
}

struct Admin<'a> {
    link: Link,
    association: &'a Rc<Association>,
}

impl Admin<'_> {
    async fn run(&mut self) -> Ended {
        let unread = std::mem::take(&mut self.link.unread);
        if let Err(ended) = self.feed(&unread) {
            return ended;
        }
        loop {
            self.answer_events();
            self.link.stream.flush();
            if self.link.stream.drained(OUTPUT_MAX).await.is_err() {
                return Ended;
            }
            let result = match self.wait().await {
                Wake::Received(received) => self.take(received),
                Wake::Event => Ok(()),
                Wake::Deadline => self.check_alive(),
            };
            if let Err(ended) = result {
                return ended;
            }
        }
    }

    async fn wait(&self) -> Wake {
        let mut receive = pin!(self.link.stream.receive());
        let deadline = self.association.deadline();
        let mut alarm = pin!(sleep_until(deadline.unwrap_or(Instant::from_nanos(u64::MAX))));
        poll_fn(|context| {
            if let Poll::Ready(received) = receive.as_mut().poll(context) {
                return Poll::Ready(Wake::Received(received));
            }
            if self.association.events.poll(context).is_ready() {
                return Poll::Ready(Wake::Event);
            }
            if deadline.is_some() && alarm.as_mut().poll(context).is_ready() {
                return Poll::Ready(Wake::Deadline);
            }
            Poll::Pending
        })
        .await
    }

    /// The first chunk and those that are here already.
    fn take(&mut self, first: std_io::Result<Received>) -> Result<(), Ended> {
        self.take_chunk(first)?;
        for _ in 1..CHUNKS_PER_TURN {
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
                Ok(Some(Event::Command { slot, entry, transfer })) => self.command(slot, &entry, transfer),
                // No admin command takes data: what comes with one is answered already.
                Ok(Some(Event::Initialize | Event::Payload { .. } | Event::PayloadEnd { .. })) => {}
                Ok(None) => return Ok(()),
                Err(fault) => return Err(self.link.fault(fault)),
            }
        }
    }

    fn command(&mut self, slot: Slot, entry: &Submission, transfer: Result<Transfer, Status>) {
        let transfer = match transfer {
            Ok(transfer) => transfer,
            Err(status) => {
                self.association.record_error(0, entry, status);
                return self.respond(slot, status.into());
            }
        };
        match self.association.execute(&AdminCommand { slot, entry, transfer }) {
            Outcome::Complete(completion) => self.respond(slot, completion),
            Outcome::Data { bytes, result } => self.send(slot, &bytes, result),
            Outcome::Held => {}
        }
    }

    fn send(&mut self, slot: Slot, bytes: &[u8], result: u64) {
        let output = &mut Output(&self.link.stream);
        // Without a result of its own the data says it all.
        let completed = self.link.protocol.write_data_header(slot, bytes.len() as u32, output);
        self.link.stream.push_copy(bytes);
        self.link.protocol.write_data_digest([bytes], output);
        if !completed {
            self.respond(slot, Completion::with_result(result));
        }
    }

    fn respond(&mut self, slot: Slot, completion: Completion) {
        self.link.protocol.respond(slot, completion, &mut Output(&self.link.stream));
    }

    fn answer_events(&mut self) {
        loop {
            let next = self.association.controller.borrow_mut().next_completion();
            let Some((slot, completion)) = next else { return };
            self.respond(slot, completion);
        }
    }

    fn check_alive(&self) -> Result<(), Ended> {
        if self.association.is_expired() {
            let info = self.association.info();
            tracing::warn!(controller = info.id, host = info.host_nqn, "keep alive expired: host disconnected");
            return Err(Ended);
        }
        Ok(())
    }
}
