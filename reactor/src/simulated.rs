//! A whole world in one thread, from one seed: machines with disks, a network between them, and virtual time.
//!
//! The code that runs on its reactors is the code that runs on the kernel's: tasks, timers, [`crate::Disk`],
//! [`crate::TcpStream`], [`crate::files`]. The same seed gives the same run, event by event; [`World::trace_hash`] tells
//! whether it did. `docs/simulator.md` says what is simulated and how to read a failure.
//!
//! ```
//! use std::time::Duration;
//! use reactor::simulated::World;
//!
//! let world = World::new(7);
//! let node = world.add_node([10, 0, 0, 1].into());
//! let slept = world.block_on(node, async {
//!     let start = reactor::now();
//!     reactor::sleep(Duration::from_secs(3600)).await;
//!     reactor::now() - start
//! });
//! assert!(slept >= Duration::from_secs(3600));
//! ```

mod disks;
mod links;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use crate::Handle;
use crate::core::Core;
use crate::driver::Wait;
pub use crate::driver::simulated::{
    Cut, DiskFault, DiskFaultKind, DiskHistory, DiskImage, DiskLatency, Link, Random, Survival,
};
use crate::driver::simulated::{SimulatedDriver, State, nanoseconds};
use crate::mailbox::Inbox;
use crate::time::Instant;

/// How long [`World::block_on`] and [`World::wait_for`] let the world go on before they call it stuck.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// A machine of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

/// A simulated world. Dropping it ends everything in it; while a test panics, that prints the seed and the last events.
pub struct World {
    inner: Rc<Inner>,
}

struct Inner {
    seed: u64,
    state: Rc<RefCell<State>>,
    /// By reactor. Those of dead processes are gone.
    cores: RefCell<BTreeMap<usize, Rc<Core>>>,
    /// Reactors with new messages. Each is in it once at most.
    notices: Arc<Mutex<Vec<usize>>>,
    /// Set while a reactor runs its turn.
    running: Cell<bool>,
    /// Processes that a task asked to end, when its turn is over.
    ending: RefCell<Vec<(NodeId, End)>>,
    /// More events than this are a failure.
    most_events: Cell<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Kill,
    PowerCut,
}

/// What became of a task that a test started with [`World::spawn`].
pub struct Outcome<T>(Rc<RefCell<Option<T>>>);

impl<T> Outcome<T> {
    /// Whether it is done. It never will be when its node was killed before.
    pub fn is_done(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Its output, once.
    pub fn take(&self) -> Option<T> {
        self.0.borrow_mut().take()
    }
}

impl World {
    /// A world without machines.
    pub fn new(seed: u64) -> Self {
        let inner = Inner {
            seed,
            state: Rc::new(RefCell::new(State::new(seed))),
            cores: RefCell::default(),
            notices: Arc::default(),
            running: Cell::new(false),
            ending: RefCell::default(),
            most_events: Cell::new(u64::MAX),
        };
        Self { inner: Rc::new(inner) }
    }

    /// What this world began with.
    pub fn seed(&self) -> u64 {
        self.inner.seed
    }

    /// Time since the world began. The reactors' own clocks are each ahead of it by something.
    pub fn now(&self) -> Instant {
        Instant::from_nanos(self.inner.state.borrow().now)
    }

    /// Random numbers for the test itself, apart from those of the world.
    pub fn random(&self) -> Random {
        self.inner.state.borrow_mut().random.fork()
    }

    /// One hash over all events so far: equal for equal runs.
    pub fn trace_hash(&self) -> u64 {
        self.inner.state.borrow().trace.hash()
    }

    /// How many events have happened.
    pub fn events(&self) -> u64 {
        self.inner.state.borrow().trace.events()
    }

    /// Lets the world panic when more has happened than this: something goes round in circles.
    pub fn limit_events(&self, most: u64) {
        self.inner.most_events.set(most);
    }

    /// Keeps this many lines of the event log instead of 400.
    pub fn keep_log(&self, lines: usize) {
        self.inner.state.borrow_mut().trace.keep(lines);
    }

    /// The last lines of the event log, oldest first.
    pub fn log_lines(&self) -> Vec<String> {
        self.inner.state.borrow().trace.lines()
    }

    /// Adds a line to the event log.
    pub fn log(&self, text: impl Into<String>) {
        self.inner.log(text.into());
    }

    /// Something that tasks can hold: it does not keep the world alive.
    pub fn observer(&self) -> Observer {
        Observer(Rc::downgrade(&self.inner))
    }

    /// Adds a machine with this address. It has power and runs nothing.
    ///
    /// # Panics
    /// When another has the address.
    pub fn add_node(&self, address: IpAddr) -> NodeId {
        NodeId(self.inner.state.borrow_mut().add_node(address))
    }

    /// Starts a reactor on a node, as a process with one thread would; once more for a second thread of the same process.
    /// Switches the machine on if it has no power.
    pub fn start_reactor(&self, node: NodeId) -> Handle {
        let index = self.inner.state.borrow_mut().add_reactor(node.0);
        let notices = Arc::clone(&self.inner.notices);
        let inbox = Inbox::new(move || notices.lock().push(index));
        let driver = SimulatedDriver::new(Rc::clone(&self.inner.state), index);
        let core = Core::new(Box::new(driver), Arc::clone(&inbox), Arc::default());
        self.inner.cores.borrow_mut().insert(index, core);
        Handle::new(inbox)
    }

    /// Starts a process on a node: one reactor with this main task.
    pub fn boot<M, F>(&self, node: NodeId, main: M) -> Handle
    where
        M: FnOnce() -> F,
        F: Future<Output = ()> + 'static,
    {
        let handle = self.start_reactor(node);
        self.inner.enter(self.inner.newest_reactor(), || drop(crate::spawn(main())));
        handle
    }

    /// Whether a process runs on a node, paused or not.
    pub fn is_running(&self, node: NodeId) -> bool {
        !self.inner.state.borrow().reactors_of(node.0).is_empty()
    }

    /// Switches a machine on without starting a process: it refuses connections instead of leaving them unanswered.
    pub fn power_on(&self, node: NodeId) {
        self.inner.state.borrow_mut().power_on(node.0);
    }

    /// Ends a node's process at once (kill -9). Its connections are closed or reset; of what its disks were working on
    /// each write may or may not happen; nothing that was done is lost.
    pub fn kill(&self, node: NodeId) {
        self.inner.end(node, End::Kill);
    }

    /// Takes a machine's power. Its peers hear nothing; its disks keep what was synced and any part of the rest.
    pub fn power_cut(&self, node: NodeId) {
        self.inner.end(node, End::PowerCut);
    }

    /// Stops a node's process (SIGSTOP). Its kernel goes on: disks finish, connections are accepted and buffered.
    pub fn pause(&self, node: NodeId) {
        let mut state = self.inner.state.borrow_mut();
        state.nodes[node.0].paused = true;
        state.note("pause, node", node.0);
    }

    /// Lets a stopped process go on.
    pub fn resume(&self, node: NodeId) {
        let mut state = self.inner.state.borrow_mut();
        state.note("resume, node", node.0);
        state.resume(node.0);
    }

    /// Moves a node's wall clock by this many seconds, back if negative. Monotonic time is not touched.
    pub fn jump_clock(&self, node: NodeId, seconds: i64) {
        let mut state = self.inner.state.borrow_mut();
        state.nodes[node.0].wall_offset += i128::from(seconds) * 1_000_000_000;
        state.note("clock jump, node", node.0);
    }

    /// Starts a task on the first reactor of a node, which is started if need be.
    pub fn spawn<F>(&self, node: NodeId, future: F) -> Outcome<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let first = self.inner.state.borrow().reactors_of(node.0).first().copied();
        let reactor = first.unwrap_or_else(|| {
            self.start_reactor(node);
            self.inner.newest_reactor()
        });
        let outcome = Rc::new(RefCell::new(None));
        let output = Rc::clone(&outcome);
        let task = async move { *output.borrow_mut() = Some(future.await) };
        self.inner.enter(reactor, || drop(crate::spawn(task)));
        Outcome(outcome)
    }

    /// Runs a future on a node and the whole world with it until the future is done.
    ///
    /// # Panics
    /// When the future panics, its node ends first, or nothing comes of it in a day of the world's time.
    pub fn block_on<F>(&self, node: NodeId, future: F) -> F::Output
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let outcome = self.spawn(node, future);
        let done = self.run_until(|| outcome.is_done() || !self.is_running(node), PATIENCE);
        assert!(done, "seed {}: the task is stuck", self.seed());
        outcome.take().expect("the node of a task that the test waits for goes on running")
    }

    /// Runs the world until a future of the test itself is done, such as that of [`Handle::call`].
    ///
    /// # Panics
    /// When nothing comes of it in a day of the world's time.
    pub fn wait_for<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut output = None;
        let mut poll = || {
            if woken.0.swap(false, Ordering::AcqRel)
                && let Poll::Ready(ready) = future.as_mut().poll(&mut Context::from_waker(&waker))
            {
                output = Some(ready);
            }
            output.is_some()
        };
        let done = self.run_until(&mut poll, PATIENCE);
        assert!(done, "seed {}: nothing comes of what the test waits for", self.seed());
        output.expect("it is done")
    }

    /// Lets the world go on for a duration.
    pub fn run_for(&self, duration: Duration) {
        self.run_until(|| false, duration);
    }

    /// Lets the world go on until a condition holds, for `limit` at most. Says whether it holds.
    ///
    /// # Panics
    /// When a task has panicked, or from within a task.
    pub fn run_until(&self, mut condition: impl FnMut() -> bool, limit: Duration) -> bool {
        let end = self.inner.state.borrow().now.saturating_add(nanoseconds(limit));
        loop {
            if condition() {
                return true;
            }
            if !self.inner.step(end) {
                // Nothing happens until then.
                self.inner.state.borrow_mut().now = end;
                return condition();
            }
        }
    }

    /// Lets one event happen. False when there are none: the world sleeps for ever.
    pub fn step(&self) -> bool {
        self.inner.step(u64::MAX)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(state) = self.inner.state.try_borrow()
            && state.trace.keeps_lines()
        {
            eprintln!("seed {}: the last events (times of the world, in seconds):", self.inner.seed);
            for line in state.trace.lines() {
                eprintln!("{line}");
            }
        }
        // Tasks may refer to one another in circles: only their end frees them.
        let reactors: Vec<usize> = self.inner.cores.borrow().keys().copied().collect();
        if let Ok(mut state) = self.inner.state.try_borrow_mut() {
            state.reactors.iter_mut().for_each(|reactor| reactor.alive = false);
        }
        for reactor in reactors {
            self.inner.drop_tasks(reactor);
        }
    }
}

/// Reaches a world from a task in it.
#[derive(Clone)]
pub struct Observer(Weak<Inner>);

impl Observer {
    /// Time since the world began.
    pub fn now(&self) -> Duration {
        self.0.upgrade().map_or(Duration::ZERO, |inner| Duration::from_nanos(inner.state.borrow().now))
    }

    /// Adds a line to the event log.
    pub fn log(&self, text: impl Into<String>) {
        if let Some(inner) = self.0.upgrade() {
            inner.log(text.into());
        }
    }

    /// Ends a node's process, the caller's own too: when the caller's turn is over.
    pub fn kill(&self, node: NodeId) {
        self.end(node, End::Kill);
    }

    /// Takes a machine's power, when the caller's turn is over.
    pub fn power_cut(&self, node: NodeId) {
        self.end(node, End::PowerCut);
    }

    fn end(&self, node: NodeId, end: End) {
        if let Some(inner) = self.0.upgrade() {
            inner.end(node, end);
        }
    }
}

impl Inner {
    fn log(&self, text: String) {
        let mut state = self.state.borrow_mut();
        let now = state.now;
        state.trace.text(now, text);
    }

    fn newest_reactor(&self) -> usize {
        self.state.borrow().reactors.len() - 1
    }

    fn core(&self, reactor: usize) -> Option<Rc<Core>> {
        self.cores.borrow().get(&reactor).cloned()
    }

    fn enter(&self, reactor: usize, body: impl FnOnce()) {
        if let Some(core) = self.core(reactor) {
            core.enter(body);
            self.state.borrow_mut().wake(reactor);
        }
    }

    fn step(&self, limit: u64) -> bool {
        assert!(!self.running.get(), "the world is run by the test, not by its tasks");
        let advanced = {
            let mut state = self.state.borrow_mut();
            for reactor in std::mem::take(&mut *self.notices.lock()) {
                state.wake(reactor);
            }
            state.close_abandoned();
            let (events, most) = (state.trace.events(), self.most_events.get());
            assert!(events <= most, "liveness broken: seed {}: no end after {most} events", self.seed);
            state.advance(limit)
        };
        if let Some(Some(reactor)) = advanced {
            self.run(reactor);
        }
        advanced.is_some()
    }

    /// One turn of a reactor.
    fn run(&self, reactor: usize) {
        let Some(core) = self.core(reactor) else { return };
        self.running.set(true);
        let turn = core.enter(|| core.turn(Wait::Poll));
        self.running.set(false);
        assert!(turn.is_ok(), "a turn of a simulated world cannot fail");
        let node = self.state.borrow().reactors[reactor].node;
        assert!(core.executor().panics() == 0, "seed {}: a task of node {node} panicked", self.seed);
        let mut state = self.state.borrow_mut();
        if core.has_work() {
            state.go_on(reactor);
        } else if let Some(deadline) = core.next_deadline() {
            state.plan_turn_at_clock(reactor, deadline.as_nanos());
        }
        drop(state);
        for (node, end) in self.ending.take() {
            self.end(node, end);
        }
    }

    fn end(&self, node: NodeId, end: End) {
        if self.running.get() {
            self.ending.borrow_mut().push((node, end));
            return;
        }
        let reactors = self.state.borrow().reactors_of(node.0);
        // First the machine lets go, so that nothing the tasks do while they are dropped has any effect.
        self.state.borrow_mut().end_process(node.0, end == End::PowerCut);
        for reactor in reactors {
            self.drop_tasks(reactor);
        }
    }

    fn drop_tasks(&self, reactor: usize) {
        let Some(core) = self.cores.borrow_mut().remove(&reactor) else { return };
        core.enter(|| core.shut_down());
        let panics = core.executor().panics();
        assert!(panics == 0 || std::thread::panicking(), "seed {}: a task panicked while it was dropped", self.seed);
    }
}

/// Tells [`World::wait_for`] to poll again.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}
