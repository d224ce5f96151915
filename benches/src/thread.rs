//! What a thread has cost, and waiting for a reactor's answers without one.

use std::future::Future;
use std::ops::{Add, Sub};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use anyhow::Context as _;
use reactor::Handle;

/// How long a thread has run on a processor since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessorTime {
    pub(crate) total: Duration,
    /// What of it was spent outside of the kernel: a sampled share of the total, exact to some percent over a second.
    pub(crate) user: Duration,
}

impl Add for ProcessorTime {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { total: self.total + other.total, user: self.user + other.user }
    }
}

impl Sub for ProcessorTime {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { total: self.total.saturating_sub(earlier.total), user: self.user.saturating_sub(earlier.user) }
    }
}

impl ProcessorTime {
    /// That of the thread whose folder in `/proc` this is.
    pub(crate) fn of_thread(folder: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let total = parse_total(&read("schedstat")?).context("a thread's schedstat begins with no number")?;
        let user = parse_user(&read("stat")?).context("a thread's stat has no user time")?;
        Ok(Self { total, user })
    }
}

/// The processor time of a reactor's thread.
pub(crate) async fn processor_time(handle: &Handle) -> anyhow::Result<ProcessorTime> {
    handle.call(|| async { ProcessorTime::of_thread(Path::new("/proc/thread-self")) }).await?
}

/// Linux counts the times in `stat` in hundredths of a second, whatever its own clock.
const TICK: Duration = Duration::from_millis(10);

/// The first of the three numbers: nanoseconds on a processor.
fn parse_total(schedstat: &str) -> Option<Duration> {
    schedstat.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// The 14th field. The second is the name in parentheses, which may hold anything.
fn parse_user(stat: &str) -> Option<Duration> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let ticks: u32 = after_name.split_ascii_whitespace().nth(11)?.parse().ok()?;
    Some(TICK * ticks)
}

/// Runs a future on this thread, which does nothing else meanwhile.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_the_kernel_writes_them() {
        assert_eq!(parse_total("1500000000 20 3\n"), Some(Duration::from_millis(1500)));
        assert_eq!(parse_total(""), None);
        let stat = "77 (a (b) c) R 1 77 77 0 -1 4194304 100 0 0 0 250 40 0 0 20 0 1 0 5 0 0";
        assert_eq!(parse_user(stat), Some(Duration::from_millis(2500)));
        assert_eq!(parse_user("77 (x) R 1"), None);
    }

    #[test]
    fn a_future_woken_by_another_thread_is_polled_again() {
        let (sender, receiver) = std::sync::mpsc::channel::<Waker>();
        let other = std::thread::spawn(move || receiver.recv().expect("a waker").wake());
        let mut sent = false;
        block_on(std::future::poll_fn(|context| {
            if std::mem::replace(&mut sent, true) {
                return Poll::Ready(());
            }
            sender.send(context.waker().clone()).expect("the thread waits");
            Poll::Pending
        }));
        other.join().expect("ended well");
    }
}
