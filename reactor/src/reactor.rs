//! A reactor on a thread: starting it, running it, stopping it.

use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::core::{Core, try_current};
use crate::driver::Wait;
use crate::driver::uring::{Doorbell, UringDriver};
use crate::executor::spawn;
use crate::mailbox::{Handle, Inbox};
use crate::stats::Stats;

/// How a reactor is set up. The defaults suit a storage node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of its thread.
    pub name: String,
    /// The core it is pinned to; none leaves it to the system.
    pub core: Option<usize>,
    /// How long it spins at most before it sleeps, while that pays; zero never spins. A spin shorter than a round trip to a
    /// host or disk is lost, a long one takes the processor from others; on loopback 20 to 50 µs halve the latency of
    /// single requests.
    pub busy_poll: Duration,
    /// Places in the submission queue: how many operations one system call starts. More wait their turn.
    pub ring_entries: u32,
    /// How many buffers incoming bytes of all streams share, rounded up to a power of two. Those of one turn are enough:
    /// streams that let bytes wait get them copied.
    pub receive_buffers: u16,
    /// The size of each in bytes. 32 KiB hold a command with 16 KiB of data, or half of what the network stack merges.
    pub receive_buffer_size: usize,
    /// How many bytes [`crate::Buffer::try_new`] lends at one time on this reactor.
    pub buffer_limit: usize,
    /// The TCP congestion control of its sockets, as `bbr` or `cubic`; none takes the system's.
    pub congestion: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "reactor".to_owned(),
            core: None,
            busy_poll: Duration::from_micros(50),
            ring_entries: 1024,
            receive_buffers: 256,
            receive_buffer_size: 32 << 10,
            buffer_limit: 512 << 20,
            congestion: None,
        }
    }
}

/// A running reactor. Dropping it stops it.
#[derive(Debug)]
pub struct Reactor {
    handle: Handle,
    remote: Remote,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Reactor {
    /// Starts a reactor on a thread of its own.
    ///
    /// # Errors
    /// When the thread cannot be made or pinned, or the kernel has no io_uring as needed (Linux 6.1).
    pub fn start(config: Config) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let thread = thread::Builder::new().name(config.name.clone()).spawn(move || {
            let life = match Life::new(&config) {
                Ok(life) => life,
                Err(error) => {
                    // The starter waits for this; when it does not, nobody is left to tell.
                    let _ = sender.send(Err(error));
                    return Ok(());
                }
            };
            let _ = sender.send(Ok((life.handle(), life.remote.clone())));
            drop(sender);
            life.run()
        })?;
        let (handle, remote) = receiver.recv().map_err(|_| io::Error::other("the reactor's thread panicked"))??;
        Ok(Self { handle, remote, thread: Some(thread) })
    }

    /// Runs a reactor on the calling thread until the future ends. Other tasks that still run then are dropped.
    ///
    /// # Errors
    /// As [`Reactor::start`], or when the kernel fails the ring.
    ///
    /// # Panics
    /// When the future panics, or a reactor runs on this thread already.
    pub fn run<F>(config: &Config, future: F) -> io::Result<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        assert!(try_current(|_| ()).is_none(), "a reactor runs on this thread already");
        let life = Life::new(config)?;
        let remote = life.remote.clone();
        let mut future = Box::pin(future);
        let main = poll_fn(move |context| {
            let poll = match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
                Ok(poll) => poll.map(Ok),
                Err(panic) => Poll::Ready(Err(panic)),
            };
            if poll.is_ready() {
                remote.stop();
            }
            poll
        });
        let mut task = pin!(life.core.enter(|| spawn(main)));
        life.run()?;
        match task.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(Ok(output))) => Ok(output),
            Poll::Ready(Ok(Err(panic))) => resume_unwind(panic),
            _ => Err(io::Error::other("the reactor was stopped")),
        }
    }

    /// Reaches the reactor from any thread.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// What shows whether it runs, for a watchdog on another thread: it takes no lock and never waits.
    pub fn pulse(&self) -> Pulse {
        Pulse { remote: self.remote.clone() }
    }

    /// Its counters.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.remote.stats
    }

    /// Drops its tasks, closes what is open, lets the kernel finish what is in flight, and ends the thread.
    ///
    /// # Errors
    /// Why the reactor had ended before.
    pub fn stop(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        self.remote.stop();
        let Some(thread) = self.thread.take() else { return Ok(()) };
        if thread.thread().id() == thread::current().id() {
            // Dropped by one of its own tasks: it ends after this turn.
            return Ok(());
        }
        thread.join().map_err(|_| io::Error::other("the reactor's thread panicked"))?
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "a reactor had failed");
        }
    }
}

/// What other threads share with a reactor beside its messages.
#[derive(Clone)]
struct Remote {
    stopped: Arc<AtomicBool>,
    doorbell: Arc<Doorbell>,
    stats: Arc<Stats>,
}

impl Remote {
    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.doorbell.ring();
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.stats)
    }
}

/// Looks at a reactor from any thread.
#[derive(Clone, Debug)]
pub struct Pulse {
    remote: Remote,
}

impl Pulse {
    /// Its counters.
    pub fn stats(&self) -> &Stats {
        &self.remote.stats
    }

    /// Makes it turn once, also when it sleeps.
    pub fn prompt(&self) {
        self.remote.doorbell.ring();
    }
}

/// A reactor from its first turn to its last, on the current thread.
struct Life {
    core: Rc<Core>,
    remote: Remote,
}

impl Life {
    fn new(config: &Config) -> io::Result<Self> {
        if let Some(core) = config.core {
            pin_to(core)?;
        }
        crate::buffer::set_limit(config.buffer_limit);
        let stats = Arc::new(Stats::default());
        let driver = UringDriver::new(config, Arc::clone(&stats))?;
        let doorbell = driver.doorbell();
        let bell = Arc::clone(&doorbell);
        let core = Core::new(Box::new(driver), Inbox::new(move || bell.ring()), Arc::clone(&stats));
        let remote = Remote { stopped: Arc::default(), doorbell, stats };
        Ok(Self { core, remote })
    }

    fn handle(&self) -> Handle {
        Handle::new(Arc::clone(self.core.inbox()))
    }

    /// Turns until told to stop, then ends.
    fn run(self) -> io::Result<()> {
        let result = self.core.enter(|| {
            while !self.remote.stopped.load(Ordering::Acquire) {
                self.core.turn(Wait::Forever)?;
            }
            Ok(())
        });
        if let Err(error) = &result {
            tracing::error!(%error, "the kernel failed the ring; the reactor ends");
        }
        result
    }
}

impl Drop for Life {
    /// Also when a turn panics: the memory that the kernel uses must not go before it lets go.
    fn drop(&mut self) {
        self.core.enter(|| self.core.shut_down());
        self.remote.stats.end();
    }
}

fn pin_to(core: usize) -> io::Result<()> {
    // SAFETY: all-zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no core {core}")));
    }
    // SAFETY: the number lies within the set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the set lives through the call.
    if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(error.kind(), format!("cannot run on core {core}: {error}")))
}
