//! What the queues of one session share: command numbers, and the window that the target opens and closes (RFC 7143, 4.2.2.1).

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use iscsi_target_protocol::initiator::connection::Session as Numbers;

use super::Queue;

/// A session's command numbers, and the queues that wait for room.
pub(crate) struct Window {
    pub(crate) numbers: RefCell<Numbers>,
    /// Queues that hold commands back, each at most once for each time it met a closed window.
    waiting: RefCell<Vec<Weak<Queue>>>,
}

impl Window {
    pub(crate) fn new(numbers: Numbers) -> Rc<Self> {
        Rc::new(Self { numbers: RefCell::new(numbers), waiting: RefCell::default() })
    }

    /// Has a queue called when there is room.
    pub(super) fn add(&self, queue: Weak<Queue>) {
        self.waiting.borrow_mut().push(queue);
    }

    /// Whether somebody waits, and there is room now.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        !self.waiting.borrow().is_empty() && self.numbers.borrow().is_open()
    }

    /// Who waits, first come first served; they have to wait again for what still finds no room.
    pub(super) fn take_waiting(&self) -> impl Iterator<Item = Rc<Queue>> + use<> {
        self.waiting.take().into_iter().filter_map(|queue| queue.upgrade())
    }
}
