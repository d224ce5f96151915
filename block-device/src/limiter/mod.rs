//! A device that keeps another one's hosts within limits. `docs/qos.md` has the rules.

mod bucket;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use reactor::{Instant, JoinHandle, bug, now, spawn, timeout};

use self::bucket::{Buckets, Cost};
use crate::{Allocations, BlockDevice, ErrorKind, Geometry, Meter, Reply, ReplySink, Request, Space};

/// How many requests wait; more are told to come again. A host has no more in flight on a few queues.
const MOST_WAITING: usize = 16_384;

/// How many are passed on before others on the reactor have their turn.
const MOST_AT_ONCE: usize = 256;

/// The timer is set for no less: what comes due until then goes together.
const LEAST_PAUSE: Duration = Duration::from_micros(50);

/// What hosts may do with a device in a second, reads and writes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Commands a second; 0 for no limit.
    pub iops: u64,
    /// Bytes a second; 0 for no limit.
    pub bytes_per_second: u64,
    /// How much of it may be saved up while less is done, as the time in which it accrues.
    pub burst: Duration,
}

impl Limits {
    /// Whether there is a limit at all.
    pub const fn are_set(&self) -> bool {
        self.iops > 0 || self.bytes_per_second > 0
    }
}

/// A device in front of another one that passes requests on within limits, in the order in which they come. Must be made on a reactor.
///
/// Dropping it with requests that wait is a bug: [`Limiter::lift`] passes them on.
pub struct Limiter {
    shared: Rc<Shared>,
    releasing: JoinHandle<()>,
}

struct Shared {
    device: Rc<dyn BlockDevice>,
    meter: Arc<Meter>,
    buckets: RefCell<Buckets>,
    waiting: RefCell<VecDeque<Waiting>>,
    /// The task that releases has to look again.
    look_again: Cell<bool>,
    releaser: RefCell<Option<Waker>>,
}

struct Waiting {
    request: Request,
    reply: Reply,
    cost: Cost,
    since: Instant,
}

impl Limiter {
    /// A limiter of `device`; `meter` counts what waits.
    pub fn new(device: Rc<dyn BlockDevice>, limits: Limits, meter: Arc<Meter>) -> Rc<Self> {
        let shared = Rc::new(Shared {
            device,
            meter,
            buckets: RefCell::new(Buckets::new(limits, now())),
            waiting: RefCell::default(),
            look_again: Cell::new(false),
            releaser: RefCell::default(),
        });
        let releasing = spawn(Rc::clone(&shared).release_in_time());
        Rc::new(Self { shared, releasing })
    }

    /// The device behind it.
    pub fn device(&self) -> &Rc<dyn BlockDevice> {
        &self.shared.device
    }

    /// The limits now.
    pub fn limits(&self) -> Limits {
        self.shared.buckets.borrow().limits()
    }

    /// Other limits: what waits goes on at the new rate.
    pub fn set_limits(&self, limits: Limits) {
        self.shared.buckets.borrow_mut().set_limits(limits, now());
        if bug!("drop-what-waits-when-limits-change") {
            let first = self.shared.waiting.borrow_mut().pop_front();
            drop(first);
        }
        self.shared.wake_releaser();
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.borrow().len()
    }

    /// Passes on everything that waits, at once.
    pub fn lift(&self) {
        loop {
            let next = self.shared.waiting.borrow_mut().pop_front();
            let Some(waiting) = next else { return };
            self.shared.pass_on(waiting);
        }
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.releasing.abort();
    }
}

impl BlockDevice for Limiter {
    fn geometry(&self) -> Geometry {
        self.shared.device.geometry()
    }

    fn submit(&self, request: Request, reply: Reply) {
        let shared = &self.shared;
        match Cost::of(&request) {
            Some(cost) if !shared.may_pass(cost) => shared.keep(Waiting { request, reply, cost, since: now() }),
            _ => shared.device.submit(request, reply),
        }
    }

    fn cancel(&self, sink: &Rc<dyn ReplySink>, token: Option<u64>) {
        let shared = &self.shared;
        if bug!("keep-what-is-cancelled") {
            return shared.device.cancel(sink, token);
        }
        let cancelled: VecDeque<_> = {
            let mut all = shared.waiting.borrow_mut();
            let (cancelled, rest): (VecDeque<Waiting>, VecDeque<Waiting>) =
                all.drain(..).partition(|waiting| waiting.reply.is_for(sink, token));
            *all = rest;
            cancelled
        };
        for waiting in cancelled {
            shared.meter.end_limited(now() - waiting.since);
            waiting.reply.fail(ErrorKind::Aborted);
        }
        shared.device.cancel(sink, token);
    }

    fn allocation(&self, from: u64, max: usize) -> Allocations<'_> {
        self.shared.device.allocation(from, max)
    }

    fn space(&self) -> Option<Space> {
        self.shared.device.space()
    }
}

impl Shared {
    /// Whether a request is within the limits now and nothing waits before it; it is counted then.
    fn may_pass(&self, cost: Cost) -> bool {
        if !self.waiting.borrow().is_empty() {
            return false;
        }
        let mut buckets = self.buckets.borrow_mut();
        buckets.fill(now(), false);
        let open = buckets.are_open();
        if open {
            buckets.spend(cost);
        }
        open
    }

    fn keep(&self, waiting: Waiting) {
        let before = self.waiting.borrow().len();
        if before >= MOST_WAITING {
            return waiting.reply.fail(ErrorKind::Busy);
        }
        self.meter.begin_limited();
        self.waiting.borrow_mut().push_back(waiting);
        if before == 0 {
            self.wake_releaser();
        }
    }

    /// The one timer.
    async fn release_in_time(self: Rc<Self>) {
        loop {
            match self.pause() {
                None => self.woken().await,
                Some(pause) => {
                    // Either way it looks.
                    let _ = timeout(pause, self.woken()).await;
                }
            }
            self.release();
        }
    }

    /// How long until something that waits may go; none if nothing waits.
    fn pause(&self) -> Option<Duration> {
        if self.waiting.borrow().is_empty() {
            return None;
        }
        let mut buckets = self.buckets.borrow_mut();
        buckets.fill(now(), true);
        Some(buckets.wait().max(LEAST_PAUSE))
    }

    /// Passes on what may go now.
    fn release(&self) {
        for _ in 0..MOST_AT_ONCE {
            let Some(waiting) = self.next() else { return };
            self.pass_on(waiting);
        }
    }

    fn next(&self) -> Option<Waiting> {
        let mut all = self.waiting.borrow_mut();
        let cost = all.front()?.cost;
        let mut buckets = self.buckets.borrow_mut();
        buckets.fill(now(), true);
        if !buckets.are_open() {
            return None;
        }
        buckets.spend(cost);
        all.pop_front()
    }

    fn pass_on(&self, waiting: Waiting) {
        let Waiting { request, reply, since, .. } = waiting;
        self.meter.end_limited(now() - since);
        self.device.submit(request, reply);
    }

    fn wake_releaser(&self) {
        self.look_again.set(true);
        if let Some(waker) = self.releaser.take() {
            waker.wake();
        }
    }

    async fn woken(&self) {
        poll_fn(|context| {
            if self.look_again.take() {
                return Poll::Ready(());
            }
            self.releaser.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod stories;
