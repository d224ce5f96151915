//! What stands between an export and its engine.
//!
//! ```text
//!           shown                       the engine serves                     the volume is stopped
//!  (none) ─────────▶ WAITING ────────────────────────────────▶ SERVING ──────────────────────────────▶ ENDED
//!                      │   commands of hosts wait                                                        ▲
//!                      └── the engine has ended for good: they are refused ──────────────────────────────┘
//! ```
//!
//! What serves is the engine, or while the volume has limits a [`Limiter`] in front of it. So a volume without limits pays nothing for them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use crate::{Allocations, BlockDevice, ErrorKind, Geometry, Limiter, Limits, Meter, Reply, ReplySink, Request, Space};

/// How many requests wait for an engine; more are told to come again. A host has no more in flight on a few queues.
const MOST_WAITING: usize = 4096;

/// A device that hosts can attach before its engine serves: requests wait for the engine. So a host whose node was
/// restarted finds its volume at once and meets no error, however long the engine takes to open its replicas.
pub struct Standby {
    geometry: Geometry,
    state: RefCell<State>,
    /// Says what space there is, also while nothing serves; none if nobody here knows.
    space: Option<SpaceOf>,
    /// Counts what waits; the engine counts what it has.
    meter: Arc<Meter>,
    limits: Cell<Limits>,
    /// In front of the engine that serves, if there are limits.
    limiter: RefCell<Option<Rc<Limiter>>>,
}

/// Says what space there is behind a device.
pub type SpaceOf = Box<dyn Fn() -> Option<Space>>;

enum State {
    Waiting(VecDeque<(Request, Reply)>),
    Serving(Rc<dyn BlockDevice>),
    Ended,
}

impl Standby {
    /// A device of this geometry without an engine.
    pub fn new(geometry: Geometry, space: Option<SpaceOf>, meter: Arc<Meter>) -> Rc<Self> {
        Rc::new(Self {
            geometry,
            state: RefCell::new(State::Waiting(VecDeque::new())),
            space,
            meter,
            limits: Cell::default(),
            limiter: RefCell::default(),
        })
    }

    /// Hands everything that waits, and all that comes, to the engine. One that gets ready while its volume is stopped comes too late.
    pub fn serve(&self, engine: Rc<dyn BlockDevice>) {
        if matches!(*self.state.borrow(), State::Ended) {
            return;
        }
        // An engine that served before is over: what waits for its limits gets its answer.
        self.lift();
        let device = self.limited(engine);
        let before = self.state.replace(State::Serving(Rc::clone(&device)));
        self.meter.end_waiting();
        if let State::Waiting(waiting) = before {
            for (request, reply) in waiting {
                device.submit(request, reply);
            }
        }
    }

    /// What hosts may do from now on. What waits because of the limits before goes on at the new ones.
    pub fn set_limits(&self, limits: Limits) {
        self.limits.set(limits);
        self.meter.set_limits(limits);
        let engine = match &*self.state.borrow() {
            State::Serving(device) => Rc::clone(device),
            State::Waiting(_) | State::Ended => return,
        };
        let limiter = self.limiter.borrow().clone();
        match limiter {
            Some(limiter) if limits.are_set() => limiter.set_limits(limits),
            Some(limiter) => {
                self.state.replace(State::Serving(Rc::clone(limiter.device())));
                self.limiter.take();
                limiter.lift();
            }
            None => {
                let device = self.limited(engine);
                self.state.replace(State::Serving(device));
            }
        }
    }

    /// Passes on what waits because of limits: the engine has ended, or is about to, and nothing shall wait for it.
    pub fn lift(&self) {
        let limiter = self.limiter.borrow().clone();
        if let Some(limiter) = limiter {
            limiter.lift();
        }
    }

    /// The engine as hosts are to find it.
    fn limited(&self, engine: Rc<dyn BlockDevice>) -> Rc<dyn BlockDevice> {
        if !self.limits.get().are_set() {
            return engine;
        }
        let limiter = Limiter::new(engine, self.limits.get(), Arc::clone(&self.meter));
        self.limiter.replace(Some(Rc::clone(&limiter)));
        limiter
    }

    /// Refuses what waits, and all that comes if nothing serves.
    pub fn end_waiting(&self) {
        if !matches!(*self.state.borrow(), State::Serving(_)) {
            self.end();
        }
    }

    /// Refuses what waits, and all that comes, and lets go of the engine.
    pub fn end(&self) {
        self.lift();
        self.limiter.take();
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
                self.meter.wait(reactor::now());
                waiting.push_back((request, reply));
            }
            State::Waiting(_) => reply.fail(ErrorKind::Busy),
            _ => reply.fail(ErrorKind::Unavailable),
        }
    }

    fn cancel(&self, sink: &Rc<dyn ReplySink>, token: Option<u64>) {
        if let State::Serving(device) = &*self.state.borrow() {
            return device.cancel(sink, token);
        }
        let mut cancelled = VecDeque::new();
        if let State::Waiting(waiting) = &mut *self.state.borrow_mut() {
            (cancelled, *waiting) = waiting.drain(..).partition(|(_, reply)| reply.is_for(sink, token));
        }
        self.meter.stop_waiting(cancelled.len() as u64);
        for (_, reply) in cancelled {
            reply.fail(ErrorKind::Aborted);
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
        self.space.as_ref().and_then(|space| space())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use reactor::simulated::World;

    use super::*;
    use crate::{Completions, MemoryDevice};

    fn outcomes(completions: &Rc<Completions>) -> Vec<(u64, Option<ErrorKind>)> {
        let mut done = Vec::new();
        completions.take(&mut done);
        done.into_iter().map(|(token, outcome)| (token, outcome.err().map(|error| error.kind()))).collect()
    }

    /// On a reactor, which has the time and a limiter's task. Nothing serves yet.
    fn story(story: impl FnOnce(&Standby, Rc<dyn BlockDevice>, &Rc<Completions>) + 'static) {
        let world = World::new(1);
        let node = world.add_node(std::net::Ipv4Addr::LOCALHOST.into());
        world.block_on(node, async move {
            let geometry = Geometry::new(1 << 20, 4096).expect("a good size");
            let standby = Standby::new(geometry, None, Arc::default());
            story(&standby, Rc::new(MemoryDevice::new(geometry).expect("memory")), &Completions::new());
        });
    }

    #[test]
    fn requests_wait_for_the_engine_and_are_answered_once() {
        story(|standby, engine, completions| {
            submit(standby, completions, 1..2);
            assert_eq!(outcomes(completions), []);
            assert!(standby.meter.in_flight() == 1 && standby.meter.oldest().is_some());
            standby.serve(engine);
            standby.submit(Request::read(1 << 20, 4096), Reply::new(completions.clone(), 2));
            assert_eq!(outcomes(completions), [(1, None), (2, Some(ErrorKind::InvalidRange))]);
            assert_eq!((standby.meter.in_flight(), standby.meter.oldest()), (0, None));
        });
    }

    #[test]
    fn no_more_wait_than_there_is_room_for() {
        story(|standby, _, completions| {
            submit(standby, completions, 0..MOST_WAITING as u64 + 1);
            assert_eq!(outcomes(completions), [(MOST_WAITING as u64, Some(ErrorKind::Busy))]);
        });
    }

    #[test]
    fn what_has_ended_does_not_serve_any_more() {
        story(|standby, engine, completions| {
            standby.end_waiting();
            standby.serve(engine);
            submit(standby, completions, 1..2);
            assert_eq!(outcomes(completions), [(1, Some(ErrorKind::Unavailable))]);
        });
    }

    #[test]
    fn the_end_answers_all_that_waits() {
        story(|standby, _, completions| {
            submit(standby, completions, 1..2);
            standby.end();
            submit(standby, completions, 2..3);
            assert_eq!(outcomes(completions), [(1, Some(ErrorKind::Unavailable)), (2, Some(ErrorKind::Unavailable))]);
        });
    }

    #[test]
    fn what_is_cancelled_before_the_engine_serves_never_begins() {
        story(|standby, engine, stays| {
            let gone = Completions::new();
            submit(standby, &gone, 1..2);
            submit(standby, stays, 2..4);
            standby.cancel(&(Rc::clone(&gone) as Rc<dyn ReplySink>), None);
            standby.cancel(&(Rc::clone(stays) as Rc<dyn ReplySink>), Some(3));
            assert_eq!(outcomes(&gone), [(1, Some(ErrorKind::Aborted))]);
            assert!(standby.meter.in_flight() == 1 && standby.meter.oldest().is_some());
            standby.serve(engine);
            assert_eq!(outcomes(stays), [(3, Some(ErrorKind::Aborted)), (2, None)]);
        });
    }

    #[test]
    fn limits_come_and_go_while_it_serves() {
        story(|standby, engine, completions| {
            standby.serve(engine);
            standby.set_limits(FEW);
            submit(standby, completions, 0..4);
            assert_eq!(outcomes(completions), [(0, None)]);
            assert_eq!((standby.meter.limited().iops, standby.meter.limited().waiting), (10, 3));
            standby.set_limits(Limits { iops: 20, ..FEW });
            assert_eq!(standby.meter.limited().waiting, 3);
            standby.set_limits(Limits::default());
            assert_eq!(outcomes(completions), [(1, None), (2, None), (3, None)]);
            assert!(standby.limiter.borrow().is_none(), "nothing is left of the limits");
            submit(standby, completions, 4..100);
            assert_eq!(outcomes(completions).len(), 96);
        });
    }

    #[test]
    fn limits_of_before_hold_when_the_engine_comes_and_end_with_it() {
        story(|standby, engine, completions| {
            standby.set_limits(FEW);
            submit(standby, completions, 0..3);
            standby.serve(engine);
            assert_eq!(outcomes(completions), [(0, None)]);
            standby.end();
            assert_eq!(outcomes(completions), [(1, None), (2, None)], "the engine has the last word");
            submit(standby, completions, 3..4);
            assert_eq!(outcomes(completions), [(3, Some(ErrorKind::Unavailable))]);
        });
    }

    #[test]
    fn what_waits_for_limits_is_answered_when_another_engine_serves() {
        story(|standby, engine, completions| {
            standby.set_limits(FEW);
            standby.serve(Rc::clone(&engine));
            submit(standby, completions, 0..3);
            standby.serve(engine);
            assert_eq!(outcomes(completions), [(0, None), (1, None), (2, None)], "none is dropped (I34)");
        });
    }

    const FEW: Limits = Limits { iops: 10, bytes_per_second: 0, burst: Duration::ZERO };

    fn submit(standby: &Standby, completions: &Rc<Completions>, tokens: std::ops::Range<u64>) {
        for token in tokens {
            standby.submit(Request::read(0, 4096), Reply::new(completions.clone(), token));
        }
    }
}
