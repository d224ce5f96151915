//! Tasks of one thread: stored in a slab, run when woken.
//!
//! A [`Waker`] may be cloned to any thread (its type says so), while tasks may not. So a waker holds no task,
//! only its key and the inbox of the reactor: woken on its own thread it queues the key locally, elsewhere it goes through the
//! inbox. A key that outlived its task finds another generation and is ignored.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use slab::Slab;

use crate::core::{Home, current, try_current};
use crate::mailbox::Inbox;
use crate::stats::{Name, Stats};

/// Names a task: its place and how often the place was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TaskKey {
    index: usize,
    generation: u64,
}

struct TaskWaker {
    key: TaskKey,
    /// Set while the key waits in a queue, so that it is queued once.
    queued: AtomicBool,
    inbox: Arc<Inbox>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let local = try_current(|core| {
            let ours = Arc::ptr_eq(core.inbox(), &self.inbox);
            if ours {
                core.executor().ready.borrow_mut().push_back(self.key);
            }
            ours
        });
        if local != Some(true) {
            self.inbox.wake_task(self.key);
        }
    }
}

struct Task {
    generation: u64,
    /// The type of what was spawned, for the watchdog.
    name: Name,
    /// Absent while the task runs.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Arc<TaskWaker>,
    aborted: bool,
}

/// The tasks of one reactor.
pub(crate) struct Executor {
    tasks: RefCell<Slab<Task>>,
    ready: RefCell<VecDeque<TaskKey>>,
    generation: Cell<u64>,
    stats: Arc<Stats>,
}

impl Executor {
    pub(crate) fn new(stats: Arc<Stats>) -> Self {
        Self { tasks: RefCell::default(), ready: RefCell::default(), generation: Cell::default(), stats }
    }

    pub(crate) fn spawn(&self, inbox: &Arc<Inbox>, name: Name, future: Pin<Box<dyn Future<Output = ()>>>) -> TaskKey {
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        self.generation.set(self.generation.get() + 1);
        let key = TaskKey { index: entry.key(), generation: self.generation.get() };
        let waker = Arc::new(TaskWaker { key, queued: AtomicBool::new(true), inbox: Arc::clone(inbox) });
        entry.insert(Task { generation: key.generation, name, future: Some(future), waker, aborted: false });
        self.ready.borrow_mut().push_back(key);
        key
    }

    /// Queues a task that another thread woke.
    pub(crate) fn queue(&self, key: TaskKey) {
        self.ready.borrow_mut().push_back(key);
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.borrow().is_empty()
    }

    /// How many tasks there are.
    pub(crate) fn len(&self) -> usize {
        self.tasks.borrow().len()
    }

    /// How many tasks and jobs have panicked.
    pub(crate) fn panics(&self) -> u64 {
        self.stats.panics()
    }

    pub(crate) fn count_panic(&self) {
        self.stats.count_panic();
    }

    /// Runs each task that is ready now once; those woken meanwhile wait for the next turn.
    pub(crate) fn run_ready(&self) {
        let count = self.ready.borrow().len();
        for _ in 0..count {
            let Some(key) = self.ready.borrow_mut().pop_front() else { return };
            self.run(key);
        }
    }

    fn run(&self, key: TaskKey) {
        let Some((name, mut future, waker)) = self.begin(key) else { return };
        self.stats.set_activity(name);
        waker.queued.store(false, Ordering::Release);
        let waker = Waker::from(waker);
        let poll = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker))));
        let finished = match poll {
            Ok(poll) => poll.is_ready(),
            Err(_) => {
                // The panic hook has told about it; the task ends, the reactor and its other tasks go on.
                tracing::error!("a task panicked and was ended");
                self.count_panic();
                true
            }
        };
        let over = {
            let mut tasks = self.tasks.borrow_mut();
            let task = &mut tasks[key.index];
            if finished || task.aborted {
                Some(tasks.remove(key.index))
            } else {
                task.future = Some(future);
                return;
            }
        };
        // Dropped outside the borrow: what a future drops may spawn, wake or abort.
        self.drop_quietly((over, future));
    }

    #[allow(clippy::type_complexity, reason = "three values used once, just above")]
    fn begin(&self, key: TaskKey) -> Option<(Name, Pin<Box<dyn Future<Output = ()>>>, Arc<TaskWaker>)> {
        let mut tasks = self.tasks.borrow_mut();
        let task = tasks.get_mut(key.index).filter(|task| task.generation == key.generation)?;
        Some((task.name, task.future.take()?, Arc::clone(&task.waker)))
    }

    fn abort(&self, key: TaskKey) {
        let over = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(task) = tasks.get_mut(key.index).filter(|task| task.generation == key.generation) else { return };
            if task.future.is_none() {
                // It aborts itself: it ends when this poll returns.
                task.aborted = true;
                return;
            }
            tasks.remove(key.index)
        };
        self.drop_quietly(over);
    }

    /// Drops every task, as a killed process would, also those that dropping others starts.
    pub(crate) fn clear(&self) {
        while let Some(index) = self.first_index() {
            let task = self.tasks.borrow_mut().remove(index);
            self.drop_quietly(task);
        }
        self.ready.borrow_mut().clear();
    }

    /// Drops what belongs to a task. A panic in there ends with the task; its hook has told about it.
    fn drop_quietly<T>(&self, value: T) {
        if catch_unwind(AssertUnwindSafe(|| drop(value))).is_err() {
            tracing::error!("dropping a task panicked; the reactor goes on");
            self.count_panic();
        }
    }

    fn first_index(&self) -> Option<usize> {
        self.tasks.borrow().iter().next().map(|(index, _)| index)
    }
}

struct JoinState<T> {
    output: Option<T>,
    ended: bool,
    waker: Option<Waker>,
}

/// Waits for a spawned task. Dropping it lets the task run on.
pub struct JoinHandle<T> {
    key: TaskKey,
    home: Home,
    state: Rc<RefCell<JoinState<T>>>,
}

/// The task panicked or was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskEnded;

impl std::fmt::Display for TaskEnded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the task panicked or was aborted")
    }
}

impl std::error::Error for TaskEnded {}

impl<T> JoinHandle<T> {
    /// Ends the task at its next suspension, dropping its future.
    pub fn abort(&self) {
        self.home.with(|core| core.executor().abort(self.key));
    }

    /// Whether the task has ended, in whatever way.
    pub fn is_finished(&self) -> bool {
        self.state.borrow().ended
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, TaskEnded>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.state.borrow_mut();
        match state.output.take() {
            Some(output) => Poll::Ready(Ok(output)),
            None if state.ended => Poll::Ready(Err(TaskEnded)),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Tells the join handle of the end, also when the future is dropped or unwinds.
struct EndNotice<T>(Rc<RefCell<JoinState<T>>>);

impl<T> Drop for EndNotice<T> {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.0.borrow_mut();
            state.ended = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Starts a task on the current reactor.
///
/// # Panics
/// Outside a reactor.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let state = Rc::new(RefCell::new(JoinState { output: None, ended: false, waker: None }));
    let notice = EndNotice(Rc::clone(&state));
    let task = async move {
        let output = future.await;
        notice.0.borrow_mut().output = Some(output);
        drop(notice);
    };
    let home = Home::here();
    let key = current(|core| core.executor().spawn(core.inbox(), std::any::type_name::<F>, Box::pin(task)));
    JoinHandle { key, home, state }
}

/// Lets every other ready task run once.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(move |context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
