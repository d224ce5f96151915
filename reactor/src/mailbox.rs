//! Messages from other threads: jobs for a reactor, and wake-ups of its tasks.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::executor::{TaskKey, spawn};

/// A piece of work to run on a reactor's thread.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// How many jobs may wait for one reactor. Control calls are few; a full mailbox means a stalled reactor.
const CAPACITY: usize = 4096;

/// What waits for a reactor.
#[derive(Default)]
pub(crate) struct Messages {
    pub(crate) jobs: VecDeque<Job>,
    /// Bounded by the number of tasks: each is queued at most once.
    pub(crate) woken: Vec<TaskKey>,
}

#[derive(Default)]
struct Shared {
    waiting: Messages,
    closed: bool,
}

/// The receiving end, shared with every handle and waker of the reactor.
pub(crate) struct Inbox {
    shared: Mutex<Shared>,
    /// Set with the first message after the reactor last looked, so that one burst costs one notice.
    pending: AtomicBool,
    /// Interrupts the reactor's sleep.
    notify: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inbox")
    }
}

impl Inbox {
    pub(crate) fn new(notify: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { shared: Mutex::default(), pending: AtomicBool::new(false), notify: Box::new(notify) })
    }

    pub(crate) fn wake_task(&self, key: TaskKey) {
        let mut shared = self.shared.lock();
        if shared.closed {
            return;
        }
        shared.waiting.woken.push(key);
        drop(shared);
        self.notice();
    }

    fn post(&self, job: Job) -> Result<(), PostError> {
        let mut shared = self.shared.lock();
        if shared.closed {
            return Err(PostError::Stopped);
        }
        if shared.waiting.jobs.len() >= CAPACITY {
            return Err(PostError::Full);
        }
        shared.waiting.jobs.push_back(job);
        drop(shared);
        self.notice();
        Ok(())
    }

    fn notice(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            (self.notify)();
        }
    }

    /// Whether there is anything to take: one load, no lock.
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Exchanges what waits, if anything does, for `empty`, whose memory serves the next messages.
    pub(crate) fn take(&self, empty: &mut Messages) {
        if self.pending.swap(false, Ordering::AcqRel) {
            std::mem::swap(&mut self.shared.lock().waiting, empty);
        }
    }

    /// Refuses everything from here on and drops what waits.
    pub(crate) fn close(&self) {
        let dropped = {
            let mut shared = self.shared.lock();
            shared.closed = true;
            std::mem::take(&mut shared.waiting)
        };
        drop(dropped);
    }
}

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostError {
    /// The reactor has stopped.
    Stopped,
    /// Its mailbox is full; try again later.
    Full,
}

impl fmt::Display for PostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "the reactor has stopped",
            Self::Full => "the reactor's mailbox is full",
        })
    }
}

impl std::error::Error for PostError {}

/// Reaches a reactor from any thread.
#[derive(Clone, Debug)]
pub struct Handle {
    inbox: Arc<Inbox>,
}

impl Handle {
    pub(crate) fn new(inbox: Arc<Inbox>) -> Self {
        Self { inbox }
    }

    /// Runs `job` on the reactor's thread, soon.
    pub fn post(&self, job: impl FnOnce() + Send + 'static) -> Result<(), PostError> {
        self.inbox.post(Box::new(job))
    }

    /// Makes a future on the reactor's thread, runs it there as a task and returns its output here. The future itself
    /// need not be `Send`. It runs to its end also when the returned future is dropped.
    pub fn call<M, F>(&self, make: M) -> impl Future<Output = Result<F::Output, PostError>> + Send + use<M, F>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let posted = self.post(move || {
            // An error means that nobody waits for the output any more.
            spawn(async move { drop(sender.send(make().await)) });
        });
        async move {
            posted?;
            receiver.await.map_err(|_| PostError::Stopped)
        }
    }

    /// Whether this is the handle of the reactor that runs on the current thread.
    pub fn is_current(&self) -> bool {
        crate::core::try_current(|core| Arc::ptr_eq(core.inbox(), &self.inbox)) == Some(true)
    }
}
