//! When the last of the I/O that may still use a freed cluster is over.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Counts the I/O in flight in two groups. New I/O joins the current group; [`Grace::pass`] makes the other one current
/// and waits for the old to empty: then everything that had started before is over, and nobody uses what was free by then.
/// Costs an I/O two additions.
#[derive(Default)]
pub(crate) struct Grace {
    current: Cell<usize>,
    counts: [Cell<u64>; 2],
    waker: RefCell<Option<Waker>>,
    /// Passes are one after the other.
    turn: tokio::sync::Mutex<()>,
    /// How many passes began, and the number of the last that ended.
    begun: Cell<u64>,
    ended: Cell<u64>,
}

/// One I/O's place in its group: to be given back.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(crate) struct Ticket(usize);

impl Grace {
    /// An I/O starts.
    pub(crate) fn enter(&self) -> Ticket {
        let group = self.current.get();
        self.counts[group].set(self.counts[group].get() + 1);
        Ticket(group)
    }

    /// It is over.
    pub(crate) fn leave(&self, Ticket(group): Ticket) {
        let left = self.counts[group].get() - 1;
        self.counts[group].set(left);
        if left == 0
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// How many I/Os are in flight.
    pub(crate) fn in_flight(&self) -> u64 {
        self.counts.iter().map(Cell::get).sum()
    }

    /// Waits until all I/O that is in flight now is over. Who asks while a pass is under way shares the next one.
    pub(crate) async fn pass(&self) {
        let next = self.begun.get() + 1;
        let _turn = self.turn.lock().await;
        if self.ended.get() >= next {
            return;
        }
        self.begun.set(self.begun.get() + 1);
        let old = self.current.get();
        debug_assert_eq!(self.counts[1 - old].get(), 0, "the last pass waited for it");
        self.current.set(1 - old);
        poll_fn(|context| {
            if self.counts[old].get() == 0 {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
        self.ended.set(self.begun.get());
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    use super::*;

    #[test]
    fn a_pass_waits_for_earlier_io_only() {
        let grace = Grace::default();
        let early = grace.enter();
        let mut pass = pin!(grace.pass());
        let mut context = Context::from_waker(Waker::noop());
        assert!(pass.as_mut().poll(&mut context).is_pending());
        let late = grace.enter();
        assert!(pass.as_mut().poll(&mut context).is_pending());
        grace.leave(early);
        assert!(pass.as_mut().poll(&mut context).is_ready());
        grace.leave(late);
    }
    #[test]
    fn who_waits_meanwhile_shares_one_pass() {
        let grace = Grace::default();
        let early = grace.enter();
        let mut first = pin!(grace.pass());
        let mut context = Context::from_waker(Waker::noop());
        assert!(first.as_mut().poll(&mut context).is_pending());
        let late = grace.enter();
        let mut others = [Box::pin(grace.pass()), Box::pin(grace.pass())];
        others.iter_mut().for_each(|pass| assert!(pass.as_mut().poll(&mut context).is_pending()));
        grace.leave(early);
        assert!(first.as_mut().poll(&mut context).is_ready());
        // The first pass did not wait for it: the others must.
        others.iter_mut().for_each(|pass| assert!(pass.as_mut().poll(&mut context).is_pending()));
        grace.leave(late);
        others.iter_mut().for_each(|pass| assert!(pass.as_mut().poll(&mut context).is_ready()));
        assert_eq!(grace.begun.get(), 2);
    }
}
