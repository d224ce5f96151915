//! What a thread has cost, and waiting for a reactor's answers without one.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use anyhow::Context as _;
use reactor::Handle;

/// How long the thread of a reactor has run on a processor since it began.
pub(crate) async fn processor_time(handle: &Handle) -> anyhow::Result<Duration> {
    let read = || async { std::fs::read_to_string("/proc/thread-self/schedstat") };
    let text = handle.call(read).await?.context("cannot read /proc/thread-self/schedstat")?;
    parse(&text).context("/proc/thread-self/schedstat begins with no number")
}

/// The first of the three numbers: nanoseconds on a processor.
fn parse(schedstat: &str) -> Option<Duration> {
    schedstat.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
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
    fn the_first_number_is_the_time_on_a_processor() {
        assert_eq!(parse("1500000000 20 3\n"), Some(Duration::from_millis(1500)));
        assert_eq!(parse(""), None);
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
