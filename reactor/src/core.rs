//! What one reactor is made of, and the turn that drives it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use crate::driver::{Completion, Driver, Operation, OperationId, Output, ResourceId, Wait};
use crate::executor::Executor;
use crate::mailbox::{Inbox, Messages};
use crate::stats::{self, Stats};
use crate::time::Instant;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// Runs `body` with the current reactor.
///
/// # Panics
/// Outside a reactor.
pub(crate) fn current<T>(body: impl FnOnce(&Core) -> T) -> T {
    try_current(body).expect(OUTSIDE)
}

/// Runs `body` with the current reactor, if there is one.
pub(crate) fn try_current<T>(body: impl FnOnce(&Core) -> T) -> Option<T> {
    let core = CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()?;
    Some(body(&core))
}

/// The reactor that a thing belongs to. It keeps nothing alive, and it makes the things that hold one `!Send`.
///
/// Identifiers of operations and resources mean something to their own reactor only. One thread may have several
/// reactors (one after the other in tests, side by side in a simulated world), so whatever holds an identifier also
/// holds its home and never asks which reactor happens to be current.
#[derive(Clone)]
pub(crate) struct Home(Weak<Core>);

impl Home {
    /// The current reactor.
    ///
    /// # Panics
    /// Outside a reactor.
    pub(crate) fn here() -> Self {
        let core = CURRENT.with(|current| current.borrow().as_ref().map(Rc::downgrade));
        Self(core.expect(OUTSIDE))
    }

    /// Runs `body` with the reactor, or not at all when it has ended.
    pub(crate) fn with<T>(&self, body: impl FnOnce(&Core) -> T) -> Option<T> {
        self.0.upgrade().map(|core| body(&core))
    }

    /// Runs `body` with the reactor's driver.
    ///
    /// # Panics
    /// When the reactor has ended.
    pub(crate) fn with_driver<T>(&self, body: impl FnOnce(&mut dyn Driver) -> T) -> T {
        self.with(|core| core.with_driver(body)).expect(ENDED)
    }

    /// Starts an operation whose completions go to a sink.
    ///
    /// # Panics
    /// When the reactor has ended.
    pub(crate) fn start(&self, operation: Operation, sink: Rc<dyn OperationSink>, token: u64) -> OperationId {
        self.with(|core| core.begin(operation, Waiter::Sink(sink, token))).expect(ENDED)
    }

    /// Starts an operation and waits for it. Dropping the future asks for its cancellation; the memory stays with the
    /// driver until the world has let go of it.
    ///
    /// # Panics
    /// When the reactor has ended.
    pub(crate) fn perform(&self, operation: Operation) -> Performing {
        let id = self.with(|core| core.begin(operation, Waiter::Unpolled)).expect(ENDED);
        Performing { id: Some(id), home: self.clone() }
    }

    /// Asks for an operation to end early.
    pub(crate) fn cancel(&self, id: OperationId) {
        self.with(|core| core.cancel(id));
    }
}

const OUTSIDE: &str = "called on a reactor's thread, from a task or a job of the reactor";
const ENDED: &str = "disks and streams are used only while their reactor runs";

/// Receives the completions of operations started with [`Home::start`]. Called from the reactor's turn, never from
/// within the call that started the operation.
pub(crate) trait OperationSink {
    fn complete(&self, token: u64, completion: Completion);
}

/// Who waits for an operation.
enum Waiter {
    /// A future that has not been polled since it started.
    Unpolled,
    Future(Waker),
    /// A future, and its result is here.
    Finished(Completion),
    Sink(Rc<dyn OperationSink>, u64),
    /// Nobody any more: the future was dropped. The driver still owns the memory.
    Abandoned,
}

/// What waits for room in the driver.
enum Waiting {
    Operation(OperationId, Operation),
    Close(ResourceId),
}

/// One reactor: tasks, timers, operations in flight, and the driver that performs them.
pub(crate) struct Core {
    executor: Executor,
    stats: Arc<Stats>,
    inbox: Arc<Inbox>,
    driver: RefCell<Box<dyn Driver>>,
    waiters: RefCell<Slab<Waiter>>,
    /// What the driver had no room for, in order.
    backlog: RefCell<VecDeque<Waiting>>,
    /// Operations cancelled in the backlog, to be told of in the next turn.
    withdrawn: RefCell<Vec<Completion>>,
    timers: RefCell<BTreeMap<TimerKey, Waker>>,
    /// What is to be done once all ready tasks of this turn have run.
    at_end: RefCell<Vec<Rc<dyn TurnEnd>>>,
    /// When this turn began.
    turned: Cell<Instant>,
    next_timer: Cell<u64>,
    /// Reused by each turn.
    messages: RefCell<Messages>,
    /// Reused by each turn.
    completions: RefCell<Vec<Completion>>,
}

impl Core {
    pub(crate) fn new(driver: Box<dyn Driver>, inbox: Arc<Inbox>, stats: Arc<Stats>) -> Rc<Self> {
        let turned = Cell::new(driver.now());
        Rc::new(Self {
            executor: Executor::new(Arc::clone(&stats)),
            stats,
            inbox,
            driver: RefCell::new(driver),
            waiters: RefCell::default(),
            backlog: RefCell::default(),
            withdrawn: RefCell::default(),
            timers: RefCell::default(),
            at_end: RefCell::default(),
            turned,
            next_timer: Cell::new(0),
            messages: RefCell::default(),
            completions: RefCell::default(),
        })
    }

    pub(crate) fn executor(&self) -> &Executor {
        &self.executor
    }

    pub(crate) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Makes this the current reactor of the thread while `body` runs.
    pub(crate) fn enter<T>(self: &Rc<Self>, body: impl FnOnce() -> T) -> T {
        /// Puts the previous one back, also when `body` panics.
        struct Restore(Option<Rc<Core>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.with(|current| *current.borrow_mut() = self.0.take());
            }
        }
        let _restore = Restore(CURRENT.with(|current| current.borrow_mut().replace(Rc::clone(self))));
        body()
    }

    pub(crate) fn with_driver<T>(&self, body: impl FnOnce(&mut dyn Driver) -> T) -> T {
        body(self.driver.borrow_mut().as_mut())
    }

    /// Closes a resource, after the operations on it that were started before: those that waited in the backlog would
    /// otherwise meet whatever is opened under the same identifier next.
    pub(crate) fn close(&self, resource: ResourceId) {
        self.submit_backlog();
        let mut backlog = self.backlog.borrow_mut();
        if backlog.is_empty() {
            self.driver.borrow_mut().close(resource);
        } else {
            backlog.push_back(Waiting::Close(resource));
        }
    }

    /// One turn: messages, due timers, ready tasks, then the driver. Must run inside [`Core::enter`].
    ///
    /// `wait` says how long the driver may wait at most; it waits less when a timer is due or a task ready.
    pub(crate) fn turn(&self, wait: Wait) -> io::Result<()> {
        self.turned.set(self.driver.borrow().now());
        self.take_messages();
        self.fire_timers();
        self.executor.run_ready();
        self.end_turn();
        self.stats.set_activity(stats::kernel);
        self.submit_backlog();
        let wait = self.shorten(wait);
        let mut completions = self.completions.take();
        completions.append(&mut self.withdrawn.borrow_mut());
        let result = self.driver.borrow_mut().turn(wait, &mut completions);
        self.stats.set_activity(stats::completions);
        for completion in completions.drain(..) {
            self.dispatch(completion);
        }
        self.completions.replace(completions);
        result
    }

    /// Whether a turn would find work without waiting.
    pub(crate) fn has_work(&self) -> bool {
        let waiting = !self.backlog.borrow().is_empty() || !self.withdrawn.borrow().is_empty();
        waiting || self.executor.has_ready() || self.inbox.is_pending() || !self.at_end.borrow().is_empty()
    }

    /// Runs what is not a task: if it panics it has ended, and the reactor goes on.
    fn guarded(&self, what: &str, run: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            tracing::error!("{what} panicked; the reactor goes on");
            self.executor.count_panic();
        }
    }

    /// Does what was left for the end of the turn. The list's memory is kept for the next turn.
    fn end_turn(&self) {
        if self.at_end.borrow().is_empty() {
            return;
        }
        let mut asked = self.at_end.take();
        for end in asked.drain(..) {
            self.guarded("the end of a turn", || end.turn_ends());
        }
        // What these left for later comes with the next turn.
        asked.append(&mut self.at_end.borrow_mut());
        self.at_end.replace(asked);
    }

    /// Ends the reactor: refuses messages, drops every task, timer and waiter. The driver lets go of what is in flight
    /// when it is dropped itself. Must run inside [`Core::enter`], so that what tasks drop finds its reactor.
    pub(crate) fn shut_down(&self) {
        self.inbox.close();
        self.executor.clear();
        // Taken out first: what these drop may come back to the reactor.
        drop(self.timers.take());
        drop(self.at_end.take());
        drop(self.backlog.take());
        drop(self.withdrawn.take());
        // The identifiers stay taken: the driver may still work on these operations.
        let abandoned: Vec<Waiter> = (self.waiters.borrow_mut().iter_mut())
            .map(|(_, waiter)| std::mem::replace(waiter, Waiter::Abandoned))
            .collect();
        drop(abandoned);
    }

    fn arm(&self, deadline: Instant, waker: Waker) -> TimerKey {
        let key = (deadline, self.next_timer.replace(self.next_timer.get() + 1));
        self.timers.borrow_mut().insert(key, waker);
        key
    }

    /// Gives an armed timer the waker of its latest poll; false if it has fired.
    fn rearm(&self, key: &TimerKey, waker: &Waker) -> bool {
        let old = match self.timers.borrow_mut().get_mut(key) {
            Some(armed) if armed.will_wake(waker) => return true,
            Some(armed) => std::mem::replace(armed, waker.clone()),
            None => return false,
        };
        drop(old);
        true
    }

    /// When the next timer is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.borrow().keys().next().map(|&(deadline, _)| deadline)
    }

    fn take_messages(&self) {
        if !self.inbox.is_pending() {
            return;
        }
        self.stats.set_activity(stats::messages);
        let mut messages = self.messages.take();
        self.inbox.take(&mut messages);
        for key in messages.woken.drain(..) {
            self.executor.queue(key);
        }
        for job in messages.jobs.drain(..) {
            self.guarded("a posted job", job);
        }
        self.messages.replace(messages);
    }

    fn fire_timers(&self) {
        if self.timers.borrow().is_empty() {
            return;
        }
        let now = self.turned.get();
        loop {
            let waker = {
                let mut timers = self.timers.borrow_mut();
                match timers.first_entry() {
                    Some(entry) if entry.key().0 <= now => entry.remove(),
                    _ => return,
                }
            };
            waker.wake();
        }
    }

    fn submit_backlog(&self) {
        let mut backlog = self.backlog.borrow_mut();
        if backlog.is_empty() {
            return;
        }
        let mut driver = self.driver.borrow_mut();
        while let Some(waiting) = backlog.pop_front() {
            match waiting {
                Waiting::Close(resource) => driver.close(resource),
                Waiting::Operation(id, operation) => {
                    if let Err(operation) = driver.submit(id, operation) {
                        backlog.push_front(Waiting::Operation(id, operation));
                        return;
                    }
                }
            }
        }
    }

    fn shorten(&self, wait: Wait) -> Wait {
        if self.has_work() {
            return Wait::Poll;
        }
        match (wait, self.next_deadline()) {
            (Wait::Until(limit), Some(deadline)) => Wait::Until(limit.min(deadline)),
            (Wait::Forever, Some(deadline)) => Wait::Until(deadline),
            (wait, _) => wait,
        }
    }

    fn dispatch(&self, completion: Completion) {
        let id = completion.id;
        let last = completion.operation.is_some();
        let mut waiters = self.waiters.borrow_mut();
        match &mut waiters[id] {
            Waiter::Sink(sink, token) => {
                let (sink, token) = (Rc::clone(sink), *token);
                let over = last.then(|| waiters.remove(id));
                drop(waiters);
                drop(over);
                self.guarded("the receiver of a completion", || sink.complete(token, completion));
            }
            Waiter::Abandoned => {
                if last {
                    waiters.remove(id);
                }
                drop(waiters);
                self.discard(completion);
            }
            waiter => {
                debug_assert!(last, "only sinks take part results");
                if let Waiter::Future(waker) = std::mem::replace(waiter, Waiter::Finished(completion)) {
                    drop(waiters);
                    waker.wake();
                }
            }
        }
    }

    /// Ends what nobody waits for. A socket in it would otherwise stay open for ever (I40).
    fn discard(&self, completion: Completion) {
        if let Ok(Output::Socket(socket, _)) = completion.result {
            self.close(socket);
        }
    }

    fn begin(&self, operation: Operation, waiter: Waiter) -> OperationId {
        let id = self.waiters.borrow_mut().insert(waiter);
        let mut backlog = self.backlog.borrow_mut();
        if !backlog.is_empty() {
            backlog.push_back(Waiting::Operation(id, operation));
        } else if let Err(operation) = self.driver.borrow_mut().submit(id, operation) {
            backlog.push_back(Waiting::Operation(id, operation));
        }
        id
    }

    fn cancel(&self, id: OperationId) {
        let mut backlog = self.backlog.borrow_mut();
        let is_it = |waiting: &Waiting| matches!(waiting, Waiting::Operation(other, _) if *other == id);
        let place = backlog.iter().position(is_it);
        match place.and_then(|place| backlog.remove(place)) {
            Some(Waiting::Operation(id, operation)) => {
                let result = Err(io::Error::from_raw_os_error(ECANCELED));
                self.withdrawn.borrow_mut().push(Completion { id, result, operation: Some(operation) });
            }
            _ => self.driver.borrow_mut().cancel(id),
        }
    }

    fn forget(&self, id: OperationId) {
        let mut waiters = self.waiters.borrow_mut();
        let Some(waiter) = waiters.get_mut(id) else { return };
        match std::mem::replace(waiter, Waiter::Abandoned) {
            Waiter::Finished(completion) => {
                waiters.remove(id);
                drop(waiters);
                self.discard(completion);
            }
            waiting => {
                drop(waiters);
                drop(waiting);
                self.cancel(id);
            }
        }
    }
}

/// Linux's ECANCELED, named here because the simulated world reports it too.
pub(crate) const ECANCELED: i32 = 125;

/// Starts an operation on the current reactor and waits for it, see [`Home::perform`].
///
/// # Panics
/// Outside a reactor.
pub(crate) fn perform(operation: Operation) -> Performing {
    Home::here().perform(operation)
}

/// The future of [`perform`].
pub(crate) struct Performing {
    /// None once finished.
    id: Option<OperationId>,
    home: Home,
}

impl Future for Performing {
    type Output = (io::Result<Output>, Operation);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let id = self.id.expect("not polled after it finished");
        let completion = self.home.with(|core| {
            let mut waiters = core.waiters.borrow_mut();
            if matches!(waiters[id], Waiter::Finished(_))
                && let Waiter::Finished(completion) = waiters.remove(id)
            {
                return Some(completion);
            }
            if !matches!(&waiters[id], Waiter::Future(waker) if waker.will_wake(context.waker())) {
                let old = std::mem::replace(&mut waiters[id], Waiter::Future(context.waker().clone()));
                drop(waiters);
                drop(old);
            }
            None
        });
        let Some(completion) = completion.expect(ENDED) else { return Poll::Pending };
        self.id = None;
        let operation = completion.operation.expect("a future takes last completions only");
        Poll::Ready((completion.result, operation))
    }
}

impl Drop for Performing {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.home.with(|core| core.forget(id));
        }
    }
}

/// The time now, on the reactor's clock.
///
/// # Panics
/// Outside a reactor.
pub fn now() -> Instant {
    current(|core| core.driver.borrow().now())
}

/// When the reactor's turn began: the time now or a little earlier, without a look at the clock, which costs more than most of what is done for a
/// command. For ages that people look at, not for what must not be late.
///
/// # Panics
/// Outside a reactor.
pub fn turn_began() -> Instant {
    current(|core| core.turned.get())
}

/// Something to do at the end of a turn: once, for all that the turn's tasks brought.
pub trait TurnEnd {
    /// Called once for each time it was asked for.
    fn turn_ends(&self);
}

/// Has `end` called when all ready tasks of this turn have run, before the reactor waits.
pub fn at_turn_end(end: Rc<dyn TurnEnd>) {
    current(|core| core.at_end.borrow_mut().push(end));
}

/// The time now, on the clock that all reactors but simulated ones have; from any thread.
pub fn monotonic_now() -> Instant {
    crate::driver::uring::monotonic_now()
}

/// Time since the Unix epoch, for records that people read.
pub fn wall_clock() -> std::time::Duration {
    current(|core| core.driver.borrow().wall_clock())
}

/// Differs after each boot of the machine.
pub fn boot_id() -> [u8; 16] {
    current(|core| core.driver.borrow().boot_id())
}

/// 64 random bits; from the seed in a simulated world.
pub fn random() -> u64 {
    current(|core| core.driver.borrow_mut().random())
}

/// 16 random bytes; from the seed in a simulated world. What version 4 UUIDs are made of.
pub fn random_bytes() -> [u8; 16] {
    (u128::from(random()) << 64 | u128::from(random())).to_le_bytes()
}

/// The handle of the current reactor.
pub fn handle() -> crate::Handle {
    current(|core| crate::Handle::new(Arc::clone(core.inbox())))
}

/// How many tasks the current reactor has: for tests of leaks (I40).
pub fn task_count() -> usize {
    current(|core| core.executor.len())
}

/// A timer's place in the queue, until it fires or is dropped.
#[derive(Default)]
pub(crate) struct TimerEntry(Option<(Home, TimerKey)>);

/// When a timer is due, and a number that tells it from others due then.
type TimerKey = (Instant, u64);

impl TimerEntry {
    /// Arms or re-arms the timer.
    pub(crate) fn arm(&mut self, deadline: Instant, waker: &Waker) {
        if let Some((home, key)) = &self.0
            && key.0 == deadline
            && home.with(|core| core.rearm(key, waker)) == Some(true)
        {
            return;
        }
        self.disarm();
        let home = Home::here();
        let key = home.with(|core| core.arm(deadline, waker.clone()));
        self.0 = key.map(|key| (home, key));
    }

    fn disarm(&mut self) {
        if let Some((home, key)) = self.0.take() {
            // Dropped outside the borrow: a waker may be anything.
            let waker = home.with(|core| core.timers.borrow_mut().remove(&key));
            drop(waker);
        }
    }
}

impl Drop for TimerEntry {
    fn drop(&mut self) {
        self.disarm();
    }
}
