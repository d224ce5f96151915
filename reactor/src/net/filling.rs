//! Long data straight into the reader's own buffer, without a copy out of the receive ring.
//!
//! ```text
//!                fill              the receive in flight has ended,
//!                                  what it brought is in the buffer
//!  multishot ───────────▶ Here ───────────────────────────────────▶ with the kernel ──▶ Full ─┐
//!      ▲                   ▲                                               │                  │
//!      │                   └───────────────── a part came ─────────────────┘                  │
//!      │ four that led to no fill                                                             │
//!      └──────────────────────────────── single receives ◀────────────────────────── filled ──┘
//! ```
//! A receive into a buffer takes what lies behind the data, too, into memory of its own: the header of what comes next
//! is then here with it. After a fill the stream receives piece by piece for a while instead of for ever, since a receive
//! that has to be called back before each fill costs more than the copy.

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::task::Poll;

use super::{Inner, RECEIVE_ONCE, Received, State, TcpStream};
use crate::buffer::Buffer;
use crate::core::ECANCELED;
use crate::driver::{Completion, Operation, Output, ResourceId};

/// The memory for what lies behind the data: some headers, and no more of the next data than is copied in no time.
const BEHIND: usize = 4 << 10;

/// How many single receives follow a fill; more than lie between two fills of a host that writes long data at depth 1.
const SINGLES: u8 = 4;

/// A buffer being filled.
pub(super) enum Filling {
    /// Bytes from `range.start` on are missing; nothing is in flight for it.
    Here {
        buffer: Buffer,
        range: Range<usize>,
    },
    /// A receive has it.
    InKernel,
    Full(Buffer),
}

impl Filling {
    fn is_here(&self) -> bool {
        matches!(self, Self::Here { .. })
    }

    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Full(_))
    }
}

impl TcpStream {
    /// Receives the stream's next bytes into `range` of `buffer`; [`TcpStream::filled`] gives it back. What was received
    /// before comes first. Meant for data of 16 KiB and more: each fill costs a system call's work.
    ///
    /// # Panics
    /// When a buffer is being filled already, or the range lies not in the buffer.
    pub fn fill(&self, buffer: Buffer, range: Range<usize>) {
        assert!(range.end <= buffer.len(), "{range:?} of {} bytes", buffer.len());
        let previous = self.inner.state.borrow_mut().filling.replace(Filling::Here { buffer, range });
        assert!(previous.is_none(), "two buffers to fill at a time");
        self.inner.go_on_filling();
    }

    /// Waits for the buffer given to [`TcpStream::fill`]; until it is here, nothing is to be received. Dropping this future
    /// changes nothing: the next one waits for the same buffer.
    ///
    /// # Errors
    /// When the stream ends or fails first.
    pub async fn filled(&self) -> io::Result<Buffer> {
        poll_fn(|context| {
            let mut state = self.inner.state.borrow_mut();
            match state.filling.take() {
                Some(Filling::Full(buffer)) => return Poll::Ready(Ok(buffer)),
                None => return Poll::Ready(Err(io::ErrorKind::InvalidInput.into())),
                unfinished => state.filling = unfinished,
            }
            if let Some(ended) = state.ended {
                state.filling = None;
                let end = ended.err().unwrap_or(io::ErrorKind::UnexpectedEof);
                return Poll::Ready(Err(end.into()));
            }
            state.reader = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl Inner {
    /// Takes the next step to a full buffer, if there is one to be taken now.
    pub(super) fn go_on_filling(&self) {
        let mut state = self.state.borrow_mut();
        state.fill_from_chunks();
        let is_missing = state.filling.as_ref().is_some_and(Filling::is_here);
        if !is_missing || state.ended.is_some() {
            return;
        }
        if let Some(receiving) = state.receiving {
            // What it has taken already comes before its last completion, which leads here again.
            drop(state);
            return self.home.cancel(receiving);
        }
        let Some(socket) = self.socket.get() else { return };
        if let Some(Filling::Here { buffer, range }) = state.filling.replace(Filling::InKernel) {
            let operation = Operation::ReceiveOnce { socket, data: Some((buffer, range)), behind: Buffer::new(BEHIND) };
            state.receiving = Some(self.home.start(operation, self.sink(), RECEIVE_ONCE));
        }
    }

    /// What a receive of one piece brought.
    pub(super) fn received_once(&self, completion: Completion) {
        let Some(Operation::ReceiveOnce { data, behind, .. }) = completion.operation else {
            unreachable!("a receive of one piece has one completion")
        };
        let mut state = self.state.borrow_mut();
        state.receiving = None;
        let mut left = state.count_of(completion.result);
        if let Some((buffer, mut range)) = data {
            let here = left.min(range.len());
            left -= here;
            range.start += here;
            state.filling = Some(Filling::Here { buffer, range });
        }
        if left > 0 {
            state.chunks.push_back(Received::behind(behind, left));
        }
        drop(state);
        self.go_on_filling();
        self.wake_reader();
    }
}

impl State {
    /// The receive of one piece, if it is time for one.
    pub(super) fn single(&mut self, socket: ResourceId) -> Option<Operation> {
        self.singles = self.singles.checked_sub(1)?;
        Some(Operation::ReceiveOnce { socket, data: None, behind: Buffer::new(BEHIND) })
    }

    /// Moves what was received before to where it belongs.
    fn fill_from_chunks(&mut self) {
        let Some(Filling::Here { mut buffer, mut range }) = self.filling.take_if(|filling| filling.is_here()) else {
            return;
        };
        while let Some(chunk) = self.chunks.front_mut()
            && !range.is_empty()
        {
            range.start += chunk.move_into(&mut buffer[range.clone()]);
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        self.filling = Some(if range.is_empty() {
            self.singles = SINGLES;
            Filling::Full(buffer)
        } else {
            Filling::Here { buffer, range }
        });
    }

    /// The bytes that a receive of one piece brought; notes when they are the last.
    fn count_of(&mut self, result: io::Result<Output>) -> usize {
        match result {
            Ok(Output::ReceivedOnce(count)) => {
                if count == 0 {
                    self.ended.get_or_insert(Ok(()));
                }
                count
            }
            Ok(other) => unreachable!("a driver answers ReceiveOnce with a count, not {other:?}"),
            // Cancelled because the stream was closed or detached: it is told of that elsewhere.
            Err(error) if error.raw_os_error() == Some(ECANCELED) => 0,
            Err(error) => {
                self.ended.get_or_insert(Err(error.kind()));
                0
            }
        }
    }
}
