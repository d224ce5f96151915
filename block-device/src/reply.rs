//! How an outcome gets back: once, and without a task for each request.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::{BlockDevice, Error, ErrorKind, Outcome, Request};

/// Takes outcomes. The token is whatever the submitter put into the [`Reply`]: an index into its own table.
pub trait ReplySink {
    /// One request is done. May be called from within `submit`: keep it short, and do not submit from it.
    fn complete(&self, token: u64, outcome: Outcome);
}

/// The duty to answer one request. Answering consumes it; dropping it unanswered is a bug of the device, which the
/// submitter sees as [`ErrorKind::Internal`] rather than never (I34).
#[must_use]
pub struct Reply {
    sink: Option<Rc<dyn ReplySink>>,
    token: u64,
}

impl Reply {
    /// A reply that goes to `sink` with `token`.
    pub fn new(sink: Rc<dyn ReplySink>, token: u64) -> Self {
        Self { sink: Some(sink), token }
    }

    /// Whether it goes to `sink`, and has this token if one is given.
    pub fn is_for(&self, sink: &Rc<dyn ReplySink>, token: Option<u64>) -> bool {
        let own = self.sink.as_ref().is_some_and(|own| std::ptr::addr_eq(Rc::as_ptr(own), Rc::as_ptr(sink)));
        own && token.is_none_or(|token| token == self.token)
    }

    /// Answers.
    pub fn complete(mut self, outcome: Outcome) {
        if let Some(sink) = self.sink.take() {
            sink.complete(self.token, outcome);
        }
    }

    /// Answers with an error.
    pub fn fail(self, error: impl Into<Error>) {
        self.complete(Err(error.into()));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(sink) = self.sink.take() {
            sink.complete(self.token, Err(Error::with_detail(ErrorKind::Internal, "a request was dropped")));
        }
    }
}

/// A [`ReplySink`] that queues outcomes for one task to take: what a connection or an engine waits on.
#[derive(Default)]
pub struct Completions {
    state: RefCell<CompletionsState>,
}

#[derive(Default)]
struct CompletionsState {
    /// Bounded by the requests in flight, which the submitter bounds.
    done: Vec<(u64, Outcome)>,
    waker: Option<Waker>,
}

impl ReplySink for Completions {
    fn complete(&self, token: u64, outcome: Outcome) {
        let waker = {
            let mut state = self.state.borrow_mut();
            state.done.push((token, outcome));
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Completions {
    /// An empty queue.
    pub fn new() -> Rc<Self> {
        Rc::default()
    }

    /// Swaps what is done with `into`, which must be empty: two vectors go back and forth and nothing is allocated.
    pub fn take(&self, into: &mut Vec<(u64, Outcome)>) {
        debug_assert!(into.is_empty());
        std::mem::swap(&mut self.state.borrow_mut().done, into);
    }

    /// Ready when something is done; otherwise the task is woken by the next completion.
    pub fn poll_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        if !state.done.is_empty() {
            return Poll::Ready(());
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

struct OneReply(RefCell<(Option<Outcome>, Option<Waker>)>);

impl ReplySink for OneReply {
    fn complete(&self, _token: u64, outcome: Outcome) {
        let waker = {
            let mut state = self.0.borrow_mut();
            state.0 = Some(outcome);
            state.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Submits a request and waits for its outcome. For control code; it allocates. Dropping the future does not
/// stop the request.
pub async fn execute(device: &dyn BlockDevice, request: Request) -> Outcome {
    let reply = Rc::new(OneReply(RefCell::new((None, None))));
    device.submit(request, Reply::new(Rc::clone(&reply) as Rc<dyn ReplySink>, 0));
    poll_fn(|context| {
        let mut state = reply.0.borrow_mut();
        if let Some(outcome) = state.0.take() {
            return Poll::Ready(outcome);
        }
        state.1 = Some(context.waker().clone());
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Segments;

    #[test]
    fn a_dropped_reply_is_an_error_not_silence() {
        let completions = Completions::new();
        drop(Reply::new(completions.clone(), 7));
        Reply::new(completions.clone(), 8).complete(Ok(Segments::none()));
        let mut done = Vec::new();
        completions.take(&mut done);
        assert!(matches!(&done[0], (7, Err(error)) if error.kind() == ErrorKind::Internal));
        assert!(matches!(&done[1], (8, Ok(_))));
        assert_eq!(done.len(), 2);
    }
}
