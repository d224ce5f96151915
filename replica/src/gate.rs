//! What every request of one grant passes, so that the grant can be ended and drained (I13).

use std::cell::RefCell;
use std::rc::Rc;

use block_device::{BlockDevice, Error, ErrorKind, Outcome, Reply, ReplySink, Request};
use reactor::Instant;
use tokio::sync::Notify;

/// Counts the requests of one grant and refuses them once it has ended.
pub(crate) struct Gate {
    device: RefCell<Rc<dyn BlockDevice>>,
    state: RefCell<State>,
    /// Notified when the grant ends, and when the last request leaves the device while someone waits for that.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// By token. As long as the most that was in flight at once, which whoever submits bounds.
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Set once: what new requests are answered with.
    ended: Option<Error>,
    /// Someone waits for the last request to leave.
    draining: bool,
}

/// A place for a request at the device. An abandoned one has no reply any more, but its place until the device is done.
struct Slot {
    reply: Option<Reply>,
    since: Instant,
    used: bool,
}

impl Gate {
    pub(crate) fn new(device: Rc<dyn BlockDevice>) -> Rc<Self> {
        Rc::new(Self { device: RefCell::new(device), state: RefCell::default(), changed: Notify::new() })
    }

    /// Passes a request to the device, or refuses it.
    pub(crate) fn submit(self: &Rc<Self>, request: Request, reply: Reply) {
        let token = {
            let mut state = self.state.borrow_mut();
            if let Some(error) = state.ended.clone() {
                drop(state);
                return reply.fail(error);
            }
            state.insert(Slot { reply: Some(reply), since: reactor::turn_began(), used: true })
        };
        let device = self.device();
        device.submit(request, Reply::new(Rc::clone(self) as Rc<dyn ReplySink>, token as u64));
    }

    /// The device behind the gate.
    pub(crate) fn device(&self) -> Rc<dyn BlockDevice> {
        Rc::clone(&self.device.borrow())
    }

    /// Puts another device behind the gate; nothing may be in flight.
    pub(crate) fn replace(&self, device: Rc<dyn BlockDevice>) {
        debug_assert!(self.is_drained());
        *self.device.borrow_mut() = device;
    }

    /// Refuses new requests with `error` from here on; what is in flight ends as it does. The first end counts.
    pub(crate) fn end(&self, error: Error) {
        self.state.borrow_mut().ended.get_or_insert(error);
        self.changed.notify_waiters();
    }

    /// Ends, and answers everything in flight with the error at once. The device may still be at it: see
    /// [`Gate::drained`].
    pub(crate) fn abandon(&self, error: &Error) {
        self.end(error.clone());
        let replies: Vec<_> = self.state.borrow_mut().slots.iter_mut().filter_map(|slot| slot.reply.take()).collect();
        for reply in replies {
            reply.fail(error.clone());
        }
    }

    /// Why the grant has ended, if it has.
    pub(crate) fn ended(&self) -> Option<Error> {
        self.state.borrow().ended.clone()
    }

    /// Waits until the grant has ended.
    pub(crate) async fn when_ended(&self) -> Error {
        loop {
            let changed = self.changed.notified();
            if let Some(error) = self.ended() {
                return error;
            }
            changed.await;
        }
    }

    fn is_drained(&self) -> bool {
        self.state.borrow().is_drained()
    }

    /// Waits until nothing is at the device.
    pub(crate) async fn drained(&self) {
        loop {
            let changed = self.changed.notified();
            if self.is_drained() {
                return;
            }
            self.state.borrow_mut().draining = true;
            changed.await;
        }
    }

    /// Since when the oldest request is at the device.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.state.borrow().slots.iter().filter(|slot| slot.used).map(|slot| slot.since).min()
    }
}

impl State {
    fn insert(&mut self, slot: Slot) -> usize {
        let Some(token) = self.free.pop() else {
            self.slots.push(slot);
            return self.slots.len() - 1;
        };
        self.slots[token] = slot;
        token
    }

    fn is_drained(&self) -> bool {
        self.free.len() == self.slots.len()
    }
}

impl ReplySink for Gate {
    fn complete(&self, token: u64, outcome: Outcome) {
        let (reply, drained) = {
            let mut state = self.state.borrow_mut();
            let slot = &mut state.slots[token as usize];
            slot.used = false;
            let reply = slot.reply.take();
            state.free.push(token as usize);
            let drained = state.draining && state.is_drained();
            state.draining &= !drained;
            (reply, drained)
        };
        if let Some(reply) = reply {
            reply.complete(outcome);
        }
        if drained {
            self.changed.notify_waiters();
        }
    }
}

/// What requests of a grant are answered with when a newer one replaced it.
pub(crate) fn superseded(same_engine: bool, epoch: u64) -> Error {
    match same_engine {
        // The engine reconnected: its old connection is history (I16), the engine is not.
        true => Error::with_detail(ErrorKind::Aborted, "the engine has opened the replica again"),
        false => Error::with_detail(ErrorKind::Fenced, format_args!("epoch {epoch} was granted")),
    }
}
