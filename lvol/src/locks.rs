//! Locks on ranges of an lvol's clusters, for what takes more than one step: first writes, unmaps, read-modify-writes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// How a range is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// With others: blocks are added to clusters.
    Shared,
    /// Alone: clusters go, or old bytes are merged with new ones.
    Exclusive,
}

/// The locks of one lvol. First come, first served: a request waits for every earlier one it conflicts with, held or still
/// waiting, so that none starves. Each holder takes one range at a time, which excludes deadlocks.
///
/// Searched from front to back: as long as the requests in flight, which the frontends bound.
#[derive(Default)]
pub(crate) struct RangeLocks(RefCell<State>);

#[derive(Default)]
struct State {
    next: u64,
    /// In the order they came.
    requests: VecDeque<Request>,
}

struct Request {
    id: u64,
    range: Range<u64>,
    mode: Mode,
    waker: Option<Waker>,
}

/// A held range, until it is dropped.
pub(crate) struct Held {
    locks: Rc<RangeLocks>,
    id: u64,
}

impl RangeLocks {
    /// Waits for the range.
    pub(crate) async fn lock(self: &Rc<Self>, range: Range<u64>, mode: Mode) -> Held {
        let id = {
            let mut state = self.0.borrow_mut();
            let id = state.next;
            state.next += 1;
            state.requests.push_back(Request { id, range, mode, waker: None });
            id
        };
        // Gives up its place also when this future is dropped.
        let held = Held { locks: Rc::clone(self), id };
        poll_fn(|context| {
            let mut state = self.0.borrow_mut();
            if state.is_first_in_line(id) {
                return Poll::Ready(());
            }
            if let Some(request) = state.requests.iter_mut().find(|request| request.id == id) {
                request.waker = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
        held
    }
}

impl State {
    fn is_first_in_line(&self, id: u64) -> bool {
        let Some(place) = self.requests.iter().position(|request| request.id == id) else { return true };
        let own = &self.requests[place];
        !self.requests.range(..place).any(|earlier| {
            let overlap = earlier.range.start < own.range.end && own.range.start < earlier.range.end;
            overlap && (earlier.mode == Mode::Exclusive || own.mode == Mode::Exclusive)
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let wakers: Vec<Waker> = {
            let mut state = self.locks.0.borrow_mut();
            state.requests.retain(|request| request.id != self.id);
            state.requests.iter_mut().filter_map(|request| request.waker.take()).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::Context;

    use super::*;

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn shared_ranges_overlap_and_exclusive_ones_wait() {
        let locks = Rc::new(RangeLocks::default());
        let mut first = pin!(locks.lock(0..4, Mode::Shared));
        let mut second = pin!(locks.lock(3..8, Mode::Shared));
        let mut third = pin!(locks.lock(7..9, Mode::Exclusive));
        let Poll::Ready(first) = poll(first.as_mut()) else { panic!("nothing is held") };
        let Poll::Ready(second) = poll(second.as_mut()) else { panic!("both are shared") };
        assert!(poll(third.as_mut()).is_pending());
        drop(first);
        assert!(poll(third.as_mut()).is_pending());
        drop(second);
        assert!(poll(third.as_mut()).is_ready());
    }

    #[test]
    fn a_waiting_exclusive_lock_is_not_overtaken() {
        let locks = Rc::new(RangeLocks::default());
        let mut first = pin!(locks.lock(0..1, Mode::Shared));
        let mut second = Box::pin(locks.lock(0..1, Mode::Exclusive));
        let mut third = pin!(locks.lock(0..1, Mode::Shared));
        let Poll::Ready(_first) = poll(first.as_mut()) else { panic!("nothing is held") };
        assert!(poll(second.as_mut()).is_pending());
        assert!(poll(third.as_mut()).is_pending());
        // Whoever gives up waiting makes room.
        drop(second);
        assert!(poll(third.as_mut()).is_ready());
    }
}
