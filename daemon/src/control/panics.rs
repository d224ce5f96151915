//! A panic ends the task of the volume that it happens in, and that volume says so; the others and the daemon go on.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;

/// Runs `work`; of a panic in it the text is returned. It is logged where it happens.
pub(super) async fn caught<F: Future>(work: F) -> Result<F::Output, String> {
    let mut work = Box::pin(work);
    // What a panic leaves half done: the locks here hold what is whole between any two steps, and `work` is not polled again.
    let poll = poll_fn(move |cx| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Err(panic) => Poll::Ready(Err(text(&*panic))),
    });
    poll.await
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}

/// Tests want to see what becomes of a panic in one volume's task: once, in that of the volume that the environment names. Not in programs
/// that are released.
pub(super) fn panic_if_asked_to(volume: &str) {
    #[cfg(debug_assertions)]
    {
        use std::sync::atomic::{AtomicBool, Ordering};
        static DONE: AtomicBool = AtomicBool::new(false);
        let is_asked = std::env::var("ASHLAR_PANIC_WHEN_STARTING").is_ok_and(|asked| asked == volume);
        if is_asked && !DONE.swap(true, Ordering::AcqRel) {
            panic!("asked for by ASHLAR_PANIC_WHEN_STARTING");
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = volume;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_its_text_and_the_rest_goes_on() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
        let late = async {
            tokio::task::yield_now().await;
            panic!("in step {}", 2)
        };
        assert_eq!(caught::<_>(late).await, Err::<(), _>("in step 2".to_owned()));
        let strange = async { std::panic::panic_any(5) };
        assert_eq!(caught(strange).await, Err::<(), _>("a panic".to_owned()));
    }
}
