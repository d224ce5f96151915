//! What one reactor is made of, and the turn that drives it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use crate::driver::{Completion, Driver, Operation, OperationId, Output, Wait};
use crate::executor::Executor;
use crate::mailbox::Inbox;
use crate::time::Instant;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// Runs `body` with the current reactor.
///
/// # Panics
/// Outside a reactor.
pub(crate) fn current<T>(body: impl FnOnce(&Core) -> T) -> T {
    try_current(body).expect("called on a reactor's thread, from a task or a job of the reactor")
}

/// Runs `body` with the current reactor, if there is one.
pub(crate) fn try_current<T>(body: impl FnOnce(&Core) -> T) -> Option<T> {
    let core = CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()?;
    Some(body(&core))
}

/// Receives the completions of operations started with [`start`]. Called from the reactor's turn, never from
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

/// One reactor: tasks, timers, operations in flight, and the driver that performs them.
pub(crate) struct Core {
    executor: Executor,
    inbox: Arc<Inbox>,
    driver: RefCell<Box<dyn Driver>>,
    waiters: RefCell<Slab<Waiter>>,
    /// Operations the driver had no room for, in order.
    backlog: RefCell<VecDeque<(OperationId, Operation)>>,
    timers: RefCell<BTreeMap<(Instant, u64), Waker>>,
    next_timer: Cell<u64>,
    /// Reused by each turn.
    completions: RefCell<Vec<Completion>>,
}

impl Core {
    pub(crate) fn new(driver: Box<dyn Driver>, inbox: Arc<Inbox>) -> Rc<Self> {
        Rc::new(Self {
            executor: Executor::default(),
            inbox,
            driver: RefCell::new(driver),
            waiters: RefCell::default(),
            backlog: RefCell::default(),
            timers: RefCell::default(),
            next_timer: Cell::new(0),
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

    /// One turn: messages, due timers, ready tasks, then the driver. Must run inside [`Core::enter`].
    ///
    /// `wait` says how long the driver may wait at most; it waits less when a timer is due or a task ready.
    pub(crate) fn turn(&self, wait: Wait) -> io::Result<()> {
        self.take_messages();
        self.fire_timers();
        self.executor.run_ready();
        self.submit_backlog();
        let wait = self.shorten(wait);
        let mut completions = self.completions.take();
        let result = self.driver.borrow_mut().turn(wait, &mut completions);
        for completion in completions.drain(..) {
            self.dispatch(completion);
        }
        self.completions.replace(completions);
        result
    }

    /// Whether a turn would find work without waiting.
    pub(crate) fn has_work(&self) -> bool {
        self.executor.has_ready() || self.inbox.is_pending() || !self.backlog.borrow().is_empty()
    }

    /// When the next timer is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.borrow().keys().next().map(|&(deadline, _)| deadline)
    }

    fn take_messages(&self) {
        let Some((jobs, woken)) = self.inbox.take() else { return };
        for key in woken {
            self.executor.queue(key);
        }
        for job in jobs {
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                tracing::error!("a posted job panicked and was ended");
                self.executor.count_panic();
            }
        }
    }

    fn fire_timers(&self) {
        if self.timers.borrow().is_empty() {
            return;
        }
        let now = self.driver.borrow().now();
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
        let mut driver = self.driver.borrow_mut();
        while let Some((id, operation)) = backlog.pop_front() {
            if let Err(operation) = driver.submit(id, operation) {
                backlog.push_front((id, operation));
                return;
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
        let sink = {
            let mut waiters = self.waiters.borrow_mut();
            match &mut waiters[id] {
                Waiter::Sink(sink, token) => {
                    let sink = (Rc::clone(sink), *token);
                    if last {
                        waiters.remove(id);
                    }
                    sink
                }
                Waiter::Abandoned => {
                    if last {
                        waiters.remove(id);
                    }
                    drop(waiters);
                    self.discard(completion);
                    return;
                }
                waiter => {
                    debug_assert!(last, "only sinks take part results");
                    if let Waiter::Future(waker) = std::mem::replace(waiter, Waiter::Finished(completion)) {
                        drop(waiters);
                        waker.wake();
                    }
                    return;
                }
            }
        };
        sink.0.complete(sink.1, completion);
    }

    /// Ends what nobody waits for. A socket in it would otherwise stay open for ever (I40).
    fn discard(&self, completion: Completion) {
        if let Ok(Output::Socket(socket, _)) = completion.result {
            self.driver.borrow_mut().close(socket);
        }
    }

    fn begin(&self, operation: Operation, waiter: Waiter) -> OperationId {
        let id = self.waiters.borrow_mut().insert(waiter);
        let mut backlog = self.backlog.borrow_mut();
        if !backlog.is_empty() {
            backlog.push_back((id, operation));
        } else if let Err(operation) = self.driver.borrow_mut().submit(id, operation) {
            backlog.push_back((id, operation));
        }
        id
    }

    fn cancel(&self, id: OperationId) {
        let mut backlog = self.backlog.borrow_mut();
        if let Some(place) = backlog.iter().position(|(waiting, _)| *waiting == id) {
            // Never reached the driver: complete it here, in the next turn like any other.
            if let Some((id, operation)) = backlog.remove(place) {
                let result = Err(io::Error::from_raw_os_error(ECANCELED));
                drop(backlog);
                self.dispatch(Completion { id, result, operation: Some(operation) });
            }
        } else {
            self.driver.borrow_mut().cancel(id);
        }
    }

    fn forget(&self, id: OperationId) {
        let finished = {
            let mut waiters = self.waiters.borrow_mut();
            match std::mem::replace(&mut waiters[id], Waiter::Abandoned) {
                Waiter::Finished(completion) => {
                    waiters.remove(id);
                    Some(completion)
                }
                _ => None,
            }
        };
        match finished {
            Some(completion) => self.discard(completion),
            None => self.cancel(id),
        }
    }
}

/// Linux's ECANCELED, named here because the simulated world reports it too.
pub(crate) const ECANCELED: i32 = 125;

/// Starts an operation whose completions go to a sink.
pub(crate) fn start(operation: Operation, sink: Rc<dyn OperationSink>, token: u64) -> OperationId {
    current(|core| core.begin(operation, Waiter::Sink(sink, token)))
}

/// Asks for an operation to end early.
pub(crate) fn cancel(id: OperationId) {
    try_current(|core| core.cancel(id));
}

/// Starts an operation and waits for it. Dropping the future asks for its cancellation; the memory stays with the
/// driver until the world has let go of it.
pub(crate) fn perform(operation: Operation) -> Performing {
    Performing { id: Some(current(|core| core.begin(operation, Waiter::Unpolled))) }
}

/// The future of [`perform`].
pub(crate) struct Performing {
    /// None once finished.
    id: Option<OperationId>,
}

impl Future for Performing {
    type Output = (io::Result<Output>, Operation);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let id = self.id.expect("not polled after it finished");
        let completion = current(|core| {
            let mut waiters = core.waiters.borrow_mut();
            if matches!(waiters[id], Waiter::Finished(_))
                && let Waiter::Finished(completion) = waiters.remove(id)
            {
                return Some(completion);
            }
            match &mut waiters[id] {
                Waiter::Future(waker) => waker.clone_from(context.waker()),
                waiter => *waiter = Waiter::Future(context.waker().clone()),
            }
            None
        });
        let Some(completion) = completion else { return Poll::Pending };
        self.id = None;
        let operation = completion.operation.expect("a future takes last completions only");
        Poll::Ready((completion.result, operation))
    }
}

impl Drop for Performing {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            try_current(|core| core.forget(id));
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
pub(crate) struct TimerEntry(Option<(Instant, u64)>);

impl TimerEntry {
    pub(crate) const fn empty() -> Self {
        Self(None)
    }

    /// Arms or re-arms the timer.
    pub(crate) fn arm(&mut self, deadline: Instant, waker: &Waker) {
        current(|core| {
            let mut timers = core.timers.borrow_mut();
            if let Some(key) = self.0.filter(|key| key.0 == deadline)
                && let Some(armed) = timers.get_mut(&key)
            {
                armed.clone_from(waker);
                return;
            }
            let key = (deadline, core.next_timer.replace(core.next_timer.get() + 1));
            timers.insert(key, waker.clone());
            if let Some(old) = self.0.replace(key) {
                timers.remove(&old);
            }
        });
    }
}

impl Drop for TimerEntry {
    fn drop(&mut self) {
        if let Some(key) = self.0 {
            let waker = try_current(|core| core.timers.borrow_mut().remove(&key));
            drop(waker);
        }
    }
}
