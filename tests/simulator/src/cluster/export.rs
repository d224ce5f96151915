//! How a host comes to an engine that has limits in front of it: put together as in the daemon (`daemon/src/data/engines.rs`), with
//! somebody who looks at what passes.
//!
//! ```text
//!  host ──▶ Connection ──▶ Standby ──▶ Limiter, while there are limits ──▶ Passage ──▶ engine
//! ```
//!
//! Checked: what a connection has sent reaches the engine in its order (flushes pass the others), nothing of one that has ended stays in
//! the queue or ever reaches the engine (I16), nothing is dropped (I34), and no more begins than the limits allow in any time.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use block_device::{
    Allocations, BlockDevice, ErrorKind, Geometry, Limits, Meter, Outcome, Reply, ReplySink, Request, Space, Standby,
};
use engine::Engine;
use reactor::{now, sleep};

use super::allowance::Allowances;
use super::plan::VolumePlan;

/// How often a host looks whether what it had sent is answered.
const MOMENT: Duration = Duration::from_millis(1);

/// A volume as a process shows it to its host, with one engine.
pub(super) struct Export {
    standby: Rc<Standby>,
    pub(super) meter: Arc<Meter>,
    watch: Rc<Watch>,
    has_served: Cell<bool>,
}

impl Export {
    /// Must be made on the reactor of its engine.
    pub(super) fn new(plan: &VolumePlan, size: u64, limits: Limits) -> Rc<Self> {
        let geometry = Geometry::new(size, plan.block).expect("plans have sizes in blocks");
        let meter = Arc::new(Meter::default());
        let standby = Standby::new(geometry, None, Arc::clone(&meter));
        standby.set_limits(limits);
        let watch = Rc::new(Watch {
            volume: plan.number,
            allowances: RefCell::new(Allowances::new(limits, now())),
            is_free: Cell::new(false),
            is_acting: Cell::new(false),
            dropped: Cell::new(0),
            lines: RefCell::default(),
        });
        Rc::new(Self { standby, meter, watch, has_served: Cell::new(false) })
    }

    /// A host connects. The connections before stay as they are.
    pub(super) fn connect(&self) -> Rc<Connection> {
        let line = Rc::new_cyclic(|own| Line {
            own: Weak::clone(own),
            watch: Rc::downgrade(&self.watch),
            is_cut: Cell::new(false),
            sent: Cell::new(0),
            unanswered: RefCell::default(),
            queue: RefCell::default(),
        });
        self.watch.lines.borrow_mut().push(Rc::clone(&line));
        Rc::new(Connection { line, standby: Rc::clone(&self.standby) })
    }

    /// Other limits.
    pub(super) fn set_limits(&self, limits: Limits) {
        self.watch.allowances.borrow_mut().change(limits, now());
        self.watch.acting(|| self.standby.set_limits(limits));
    }

    /// Puts the engine behind it as soon as that serves, until it has ended. What that said.
    pub(super) async fn serve_until_lost(&self, engine: Rc<Engine>) -> String {
        if engine.ready().await.is_ok() {
            // A limiter begins with this engine.
            let limits = self.watch.allowances.borrow().limits();
            *self.watch.allowances.borrow_mut() = Allowances::new(limits, now());
            let passage = Passage { device: Rc::clone(&engine) as Rc<dyn BlockDevice>, watch: Rc::clone(&self.watch) };
            self.watch.acting(|| self.standby.serve(Rc::new(passage)));
            self.has_served.set(true);
        }
        let stopped = engine.stopped().await;
        self.lift();
        if stopped.kind() == ErrorKind::Fenced {
            self.watch.acting(|| self.standby.end_waiting());
        }
        stopped.to_string()
    }

    /// The engine has stopped in order.
    pub(super) fn end(&self) {
        self.watch.freely(|| self.watch.acting(|| self.standby.end()));
    }

    /// Whether commands do not wait for the engine any more.
    pub(super) fn has_served(&self) -> bool {
        self.has_served.get()
    }

    /// Whether nothing of any host waits or is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.meter.in_flight() == 0 && self.meter.limited().waiting == 0
    }

    fn lift(&self) {
        self.watch.freely(|| self.watch.acting(|| self.standby.lift()));
    }
}

/// What is known of a volume's requests on both sides of its limits.
struct Watch {
    volume: usize,
    allowances: RefCell<Allowances>,
    /// The limits do not count: the engine has ended, and nothing waits for it.
    is_free: Cell<bool>,
    /// The export is being told something, and the process lives.
    is_acting: Cell<bool>,
    /// Requests that were dropped over it.
    dropped: Cell<u32>,
    lines: RefCell<Vec<Rc<Line>>>,
}

impl Watch {
    fn freely(&self, act: impl FnOnce()) {
        self.is_free.set(true);
        act();
        self.is_free.set(false);
    }

    fn acting(&self, act: impl FnOnce()) {
        self.is_acting.set(true);
        act();
        self.is_acting.set(false);
        let dropped = self.dropped.get();
        assert!(dropped == 0, "I34 broken: v{}: {dropped} requests that waited were dropped", self.volume);
    }

    /// A request begins at the engine.
    fn begins(&self, request: &Request, reply: &Reply) {
        if let Some(line) = self.lines.borrow().iter().find(|line| reply.is_for(&line.sink(), None)) {
            line.begins(request, reply);
        }
        if is_counted(request)
            && !self.is_free.get()
            && let Err(told) = self.allowances.borrow_mut().take(request, now())
        {
            panic!("limits broken: v{}: {told}", self.volume);
        }
    }
}

fn is_counted(request: &Request) -> bool {
    !matches!(request, Request::Flush)
}

/// The engine as the limits see it.
struct Passage {
    device: Rc<dyn BlockDevice>,
    watch: Rc<Watch>,
}

impl BlockDevice for Passage {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&self, request: Request, reply: Reply) {
        self.watch.begins(&request, &reply);
        self.device.submit(request, reply);
    }

    fn cancel(&self, sink: &Rc<dyn ReplySink>, token: Option<u64>) {
        self.device.cancel(sink, token);
    }

    fn allocation(&self, from: u64, max: usize) -> Allocations<'_> {
        self.device.allocation(from, max)
    }

    fn space(&self) -> Option<Space> {
        self.device.space()
    }
}

/// A host's connection.
pub(super) struct Connection {
    line: Rc<Line>,
    standby: Rc<Standby>,
}

impl Connection {
    /// It ends: nobody wants the answers any more.
    pub(super) fn cut(&self) {
        self.line.is_cut.set(true);
        self.cancel_all(None);
        let left = self.line.queue.borrow().len();
        assert!(
            left == 0,
            "I16 broken: {}: {left} requests of a connection that has ended still wait",
            self.line.name()
        );
    }

    /// The host takes its requests back, one after the other.
    pub(super) fn abort(&self) {
        let tokens: Vec<u64> = self.line.unanswered.borrow().keys().copied().collect();
        for token in tokens {
            self.cancel_all(Some(token));
            let waits = self.line.queue.borrow().contains(&token);
            assert!(!waits, "I34 broken: {}: a request that was taken back still waits", self.line.name());
        }
    }

    fn cancel_all(&self, token: Option<u64>) {
        let cancel = || self.standby.cancel(&self.line.sink(), token);
        match self.line.watch.upgrade() {
            Some(watch) => watch.acting(cancel),
            None => cancel(),
        }
    }

    /// What the next request will be called.
    pub(super) fn next(&self) -> u64 {
        self.line.sent.get()
    }

    /// Whether a request has not reached the engine yet, and may later.
    pub(super) fn waits(&self, token: u64) -> bool {
        self.line.queue.borrow().contains(&token)
    }

    /// Everything that was sent is answered: what the engine had has come to its end.
    pub(super) async fn drained(&self) {
        while !self.line.unanswered.borrow().is_empty() {
            sleep(MOMENT).await;
        }
    }
}

impl BlockDevice for Connection {
    fn geometry(&self) -> Geometry {
        self.standby.geometry()
    }

    fn submit(&self, request: Request, reply: Reply) {
        let line = &self.line;
        if line.is_cut.get() {
            return reply.fail(ErrorKind::Unavailable);
        }
        let token = line.sent.replace(line.sent.get() + 1);
        line.unanswered.borrow_mut().insert(token, reply);
        if is_counted(&request) {
            line.queue.borrow_mut().push_back(token);
        }
        self.standby.submit(request, Reply::new(line.sink(), token));
    }
}

/// The target's end of a connection.
struct Line {
    own: Weak<Self>,
    watch: Weak<Watch>,
    is_cut: Cell<bool>,
    sent: Cell<u64>,
    unanswered: RefCell<BTreeMap<u64, Reply>>,
    /// Requests that count and have neither begun nor been answered.
    queue: RefCell<VecDeque<u64>>,
}

impl Line {
    fn sink(&self) -> Rc<dyn ReplySink> {
        self.own.upgrade().expect("it is in an Rc from its beginning on")
    }

    fn name(&self) -> String {
        self.watch.upgrade().map_or_else(|| "a volume".to_owned(), |watch| format!("v{}", watch.volume))
    }

    fn begins(&self, request: &Request, reply: &Reply) {
        assert!(
            !self.is_cut.get(),
            "I16 broken: {}: a request of a connection that has ended reaches the engine",
            self.name()
        );
        if is_counted(request) {
            let first = self.queue.borrow_mut().pop_front();
            let is_next = first.is_some_and(|first| reply.is_for(&self.sink(), Some(first)));
            assert!(is_next, "limits broken: {}: a request is passed on out of its order, or again", self.name());
        }
    }
}

impl ReplySink for Line {
    fn complete(&self, token: u64, outcome: Outcome) {
        let is_dropped = outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Internal);
        if let Some(watch) = self.watch.upgrade().filter(|watch| is_dropped && watch.is_acting.get()) {
            // Told later: this is called from a destructor.
            watch.dropped.set(watch.dropped.get() + 1);
        }
        self.queue.borrow_mut().retain(|other| *other != token);
        let reply = self.unanswered.borrow_mut().remove(&token);
        reply.expect("I34 broken: a request is answered twice").complete(outcome);
    }
}
