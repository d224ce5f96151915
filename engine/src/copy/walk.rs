//! Going through an lvol in several lanes at once.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use block_device::{Error, Range};
use tokio::sync::Mutex;

use super::Job;
use super::compare::Pair;
use super::own::Ahead;

/// Gives out the regions in which two lvols may differ, each once.
pub(super) struct Walk<'a> {
    pair: Pair<'a>,
    next: Mutex<Next>,
    ended: Cell<bool>,
}

/// Where the next region is looked for.
#[derive(Default)]
struct Next {
    from: u64,
    source: Ahead,
    target: Ahead,
}

impl<'a> Walk<'a> {
    pub(super) fn new(pair: Pair<'a>) -> Self {
        Self { pair, next: Mutex::default(), ended: Cell::new(false) }
    }

    pub(super) async fn next(&self, job: &Job<'_>) -> Result<Option<Range>, Error> {
        let mut next = self.next.lock().await;
        if self.ended.get() {
            return Ok(None);
        }
        let Next { from, source, target } = &mut *next;
        let region = job.next_region(self.pair, (source, target), *from).await.inspect_err(|_| self.end())?;
        match region {
            Some(region) => *from = region.end(),
            None => self.end(),
        }
        Ok(region)
    }

    /// Gives out no more.
    pub(super) fn end(&self) {
        self.ended.set(true);
    }
}

/// Runs futures side by side until all of them have ended. The first error counts.
pub(super) async fn side_by_side<E>(
    futures: impl Iterator<Item = impl Future<Output = Result<(), E>>>,
) -> Result<(), E> {
    let mut running: Vec<Pin<Box<_>>> = futures.map(Box::pin).collect();
    let mut result = Ok(());
    poll_fn(|context| {
        running.retain_mut(|future| match future.as_mut().poll(context) {
            Poll::Ready(ended) => {
                if result.is_ok() {
                    result = ended;
                }
                false
            }
            Poll::Pending => true,
        });
        if running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    result
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, pending, ready};

    use super::*;

    #[test]
    fn an_error_waits_for_those_that_still_run() {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let outcomes = [Some(Ok(())), Some(Err(7)), None];
        let futures = outcomes.map(|outcome| async move {
            match outcome {
                Some(outcome) => outcome,
                None => pending().await,
            }
        });
        let mut running = Box::pin(side_by_side(futures.into_iter()));
        assert!(running.as_mut().poll(&mut context).is_pending());
        let all: [Ready<Result<(), u8>>; 3] = [ready(Ok(())), ready(Err(7)), ready(Err(8))];
        let mut running = Box::pin(side_by_side(all.into_iter()));
        assert_eq!(running.as_mut().poll(&mut context), Poll::Ready(Err(7)));
    }
}
