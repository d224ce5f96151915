//! Waiting for one command with a future.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use reactor::Buffer;

use super::{Answer, CommandSink};
use crate::error::CommandError;
use crate::request::Request;

/// The sink of one command that a task waits for.
pub(super) struct Waiter(RefCell<WaiterState>);

struct WaiterState {
    data: Option<Buffer>,
    outcome: Option<Result<u32, CommandError>>,
    waker: Option<Waker>,
}

impl Waiter {
    pub(super) fn new(request: &Request) -> Rc<Self> {
        let data = Some(Buffer::new(request.command.receives() as usize));
        Rc::new(Self(RefCell::new(WaiterState { data, outcome: None, waker: None })))
    }

    pub(super) async fn answer(&self) -> Result<Answer, CommandError> {
        poll_fn(|context| {
            let mut state = self.0.borrow_mut();
            let Some(outcome) = state.outcome.take() else {
                state.waker = Some(context.waker().clone());
                return Poll::Pending;
            };
            let data = state.data.take().map(Buffer::freeze).unwrap_or_default();
            Poll::Ready(outcome.map(|received| Answer { data: data.slice(..received as usize) }))
        })
        .await
    }
}

impl CommandSink for Waiter {
    fn data(&self, _token: u64, offset: usize, bytes: &[u8]) {
        if let Some(data) = &mut self.0.borrow_mut().data {
            data[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn complete(&self, _token: u64, outcome: Result<u32, CommandError>) {
        let mut state = self.0.borrow_mut();
        state.outcome = Some(outcome);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}
