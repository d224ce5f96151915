//! What stands between an export and its engine.
//!
//! ```text
//!           shown                       the engine serves                     the volume is stopped
//!  (none) ─────────▶ WAITING ────────────────────────────────▶ SERVING ──────────────────────────────▶ ENDED
//!                      │   commands of hosts wait                                                        ▲
//!                      └── the engine has ended for good: they are refused ──────────────────────────────┘
//! ```

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use block_device::{Allocations, BlockDevice, ErrorKind, Geometry, Meter, Reply, Request, Space};
use uuid::Uuid;

use super::room::room;

/// How many requests wait for an engine; more are told to come again. A host has no more in flight on a few queues.
const MOST_WAITING: usize = 4096;

/// A device that hosts can attach before its engine serves: requests wait for the engine. So a host whose node was
/// restarted finds its volume at once and meets no error, however long the engine takes to open its replicas.
pub(super) struct Standby {
    geometry: Geometry,
    state: RefCell<State>,
    /// The replica on this reactor, whose store says what space there is.
    local: Option<Local>,
    /// Counts what waits; the engine counts what it has.
    meter: Arc<Meter>,
}

/// A replica of this reactor, and the store it is in.
#[derive(Clone, Copy)]
pub(super) struct Local {
    pub(super) replica: Uuid,
    pub(super) store: Uuid,
}

enum State {
    Waiting(VecDeque<(Request, Reply)>),
    Serving(Rc<dyn BlockDevice>),
    Ended,
}

impl Standby {
    /// A device of this geometry without an engine.
    pub(super) fn new(geometry: Geometry, local: Option<Local>, meter: Arc<Meter>) -> Rc<Self> {
        Rc::new(Self { geometry, state: RefCell::new(State::Waiting(VecDeque::new())), local, meter })
    }

    /// Hands everything that waits, and all that comes, to the engine. One that gets ready while its volume is stopped comes too late.
    pub(super) fn serve(&self, engine: Rc<dyn BlockDevice>) {
        if matches!(*self.state.borrow(), State::Ended) {
            return;
        }
        let before = self.state.replace(State::Serving(Rc::clone(&engine)));
        self.meter.end_waiting();
        if let State::Waiting(waiting) = before {
            for (request, reply) in waiting {
                engine.submit(request, reply);
            }
        }
    }

    /// Refuses what waits, and all that comes if nothing serves.
    pub(super) fn end_waiting(&self) {
        if !matches!(*self.state.borrow(), State::Serving(_)) {
            self.end();
        }
    }

    /// Refuses what waits, and all that comes, and lets go of the engine.
    pub(super) fn end(&self) {
        self.meter.end_waiting();
        if let State::Waiting(waiting) = self.state.replace(State::Ended) {
            for (_, reply) in waiting {
                reply.fail(ErrorKind::Unavailable);
            }
        }
    }
}

impl BlockDevice for Standby {
    fn geometry(&self) -> Geometry {
        match &*self.state.borrow() {
            State::Serving(engine) => engine.geometry(),
            _ => self.geometry,
        }
    }

    fn submit(&self, request: Request, reply: Reply) {
        // Flat, because this is on the path of each I/O; the borrow is shared with what completes inside.
        if let State::Serving(engine) = &*self.state.borrow() {
            return engine.submit(request, reply);
        }
        match &mut *self.state.borrow_mut() {
            State::Waiting(waiting) if waiting.len() < MOST_WAITING => {
                self.meter.wait(reactor::monotonic_now());
                waiting.push_back((request, reply));
            }
            State::Waiting(_) => reply.fail(ErrorKind::Busy),
            _ => reply.fail(ErrorKind::Unavailable),
        }
    }

    fn allocation(&self, from: u64, max: usize) -> Allocations<'_> {
        let engine = match &*self.state.borrow() {
            State::Serving(engine) => Some(Rc::clone(engine)),
            State::Waiting(_) | State::Ended => None,
        };
        Box::pin(async move { engine?.allocation(from, max).await })
    }

    fn space(&self) -> Option<Space> {
        let local = self.local?;
        let room = room();
        let stores = room.stores.borrow();
        let server = stores.get(&local.store)?;
        let used = server.info(local.replica)?.used_bytes;
        Some(Space { used, available: server.store().info().free })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block_device::{Completions, MemoryDevice};

    fn outcomes(completions: &Rc<Completions>) -> Vec<(u64, Option<ErrorKind>)> {
        let mut done = Vec::new();
        completions.take(&mut done);
        done.into_iter().map(|(token, outcome)| (token, outcome.err().map(|error| error.kind()))).collect()
    }

    fn standby() -> (Rc<Standby>, Geometry) {
        let geometry = Geometry::new(1 << 20, 4096).expect("a good size");
        (Standby::new(geometry, None, Arc::default()), geometry)
    }

    #[test]
    fn requests_wait_for_the_engine_and_are_answered_once() {
        let (standby, geometry) = standby();
        let completions = Completions::new();
        standby.submit(Request::read(0, 4096), Reply::new(completions.clone(), 1));
        assert_eq!(outcomes(&completions), []);
        assert!(standby.meter.in_flight() == 1 && standby.meter.oldest().is_some());
        standby.serve(Rc::new(MemoryDevice::new(geometry).expect("memory")));
        standby.submit(Request::read(1 << 20, 4096), Reply::new(completions.clone(), 2));
        assert_eq!(outcomes(&completions), [(1, None), (2, Some(ErrorKind::InvalidRange))]);
        assert_eq!((standby.meter.in_flight(), standby.meter.oldest()), (0, None));
    }

    #[test]
    fn no_more_wait_than_there_is_room_for() {
        let (standby, _) = standby();
        let completions = Completions::new();
        for token in 0..=MOST_WAITING as u64 {
            standby.submit(Request::Flush, Reply::new(completions.clone(), token));
        }
        assert_eq!(outcomes(&completions), [(MOST_WAITING as u64, Some(ErrorKind::Busy))]);
    }

    #[test]
    fn what_has_ended_does_not_serve_any_more() {
        let (standby, geometry) = standby();
        let completions = Completions::new();
        standby.end_waiting();
        standby.serve(Rc::new(MemoryDevice::new(geometry).expect("memory")));
        standby.submit(Request::read(0, 4096), Reply::new(completions.clone(), 1));
        assert_eq!(outcomes(&completions), [(1, Some(ErrorKind::Unavailable))]);
    }

    #[test]
    fn the_end_answers_all_that_waits() {
        let (standby, _) = standby();
        let completions = Completions::new();
        standby.submit(Request::Flush, Reply::new(completions.clone(), 1));
        standby.end();
        standby.submit(Request::Flush, Reply::new(completions.clone(), 2));
        assert_eq!(outcomes(&completions), [(1, Some(ErrorKind::Unavailable)), (2, Some(ErrorKind::Unavailable))]);
    }
}
