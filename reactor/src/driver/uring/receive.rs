//! The ring of receive buffers that the kernel fills and readers borrow from.
//!
//! The kernel takes a buffer only when bytes have arrived, so a thousand idle connections cost no memory; and a
//! reader parses the bytes where they lie. The price is that readers who keep chunks could empty the ring for everybody,
//! also for the one connection whose bytes would make them let go. So at most half of the buffers are lent: beyond
//! that a chunk is copied and its buffer goes back at once. The kernel therefore never waits for a reader.

use std::cell::Cell;
use std::io;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use crate::net::Received;
use crate::pages::Pages;

/// The only group of buffers of a ring.
pub(super) const GROUP: u16 = 0;

/// Shared by the driver and the chunks it lent; the memory goes with the last of them.
pub(super) struct ReceiveRing {
    entries: Pages,
    buffers: Pages,
    count: u16,
    size: usize,
    /// Counts buffers ever given to the kernel.
    tail: Cell<u16>,
    lent: Cell<u16>,
}

impl ReceiveRing {
    /// Maps `count` buffers (rounded up to a power of two) of `size` bytes each and gives them to the kernel.
    pub(super) fn new(submitter: &Submitter<'_>, count: u16, size: usize) -> io::Result<Rc<Self>> {
        let ring = Self::map(count, size)?;
        let address = ring.entries.as_ptr_mut() as u64;
        // SAFETY: the mapping is page-aligned, holds `count` entries, and lives until after `unregister`, which
        // the driver calls before it drops its share.
        unsafe { submitter.register_buf_ring_with_flags(address, ring.count, GROUP, 0)? };
        Ok(Rc::new(ring))
    }

    fn map(count: u16, size: usize) -> io::Result<Self> {
        // A length of an entry has 32 bits, and no size at all would never receive anything.
        let size = size.clamp(512, 1 << 30);
        let count = count.clamp(2, 1 << 15).next_power_of_two();
        let entries = Pages::new(u64::from(count) * size_of::<BufRingEntry>() as u64)?;
        let buffers = Pages::new(u64::from(count) * size as u64)?;
        let ring = Self { entries, buffers, count, size, tail: Cell::new(0), lent: Cell::new(0) };
        for buffer in 0..count {
            ring.provide(buffer);
        }
        Ok(ring)
    }

    /// Ends the kernel's use of the ring. No receive may be in flight.
    pub(super) fn unregister(&self, submitter: &Submitter<'_>) {
        if let Err(error) = submitter.unregister_buf_ring(GROUP) {
            tracing::error!(%error, "the receive ring cannot be unregistered");
        }
    }

    /// Makes a chunk of the first `length` bytes of a buffer that the kernel has just filled.
    pub(super) fn lend(self: &Rc<Self>, buffer: u16, length: usize) -> Received {
        assert!(buffer < self.count && length <= self.size, "the kernel fills buffers that it was given");
        self.lent.set(self.lent.get() + 1);
        let chunk = RingChunk { ring: Rc::clone(self), buffer, length };
        if self.lent.get() > self.count / 2 {
            return Received::owned(chunk.to_vec());
        }
        Received::in_ring(chunk)
    }

    fn take_back(&self, buffer: u16) {
        self.lent.set(self.lent.get() - 1);
        self.provide(buffer);
    }

    /// Gives a buffer to the kernel.
    fn provide(&self, buffer: u16) {
        let tail = self.tail.get();
        let base = self.entries.as_ptr_mut().cast::<BufRingEntry>();
        // SAFETY: the index is below `count`, so the entry lies in the mapping, which is aligned and initialised. Only this
        // thread writes to it, and the kernel does not read the entry before the tail has moved beyond it.
        let entry = unsafe { &mut *base.add(usize::from(tail & (self.count - 1))) };
        entry.set_addr(self.address(buffer) as u64);
        // At most 1 GiB, see `map`.
        entry.set_len(self.size as u32);
        entry.set_bid(buffer);
        let next = tail.wrapping_add(1);
        self.tail.set(next);
        // SAFETY: the tail lies in the reserved part of the first entry, in the mapping and aligned; the kernel only reads it.
        let shared = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(base).cast_mut()) };
        shared.store(next, Ordering::Release);
    }

    fn address(&self, buffer: u16) -> *mut u8 {
        // SAFETY: callers pass buffers below `count`, so this stays in the mapping.
        unsafe { self.buffers.as_ptr_mut().add(usize::from(buffer) * self.size) }
    }
}

/// A buffer of the receive ring, lent to a reader; it goes back when dropped.
pub(crate) struct RingChunk {
    ring: Rc<ReceiveRing>,
    buffer: u16,
    length: usize,
}

impl Deref for RingChunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the kernel has filled these bytes and does not touch the buffer again before it is given back in `drop`;
        // `lend` has checked the length.
        unsafe { std::slice::from_raw_parts(self.ring.address(self.buffer), self.length) }
    }
}

impl Drop for RingChunk {
    fn drop(&mut self) {
        self.ring.take_back(self.buffer);
    }
}

impl std::fmt::Debug for RingChunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RingChunk({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(count: u16) -> Rc<ReceiveRing> {
        Rc::new(ReceiveRing::map(count, 512).expect("memory"))
    }

    /// Fills a buffer as the kernel would.
    fn fill(ring: &ReceiveRing, buffer: u16, byte: u8) {
        // SAFETY: the buffer is in the mapping, of this size, and lent to nobody.
        unsafe { ring.address(buffer).write_bytes(byte, ring.size) };
    }

    /// The buffers given to the kernel since the ring was made, oldest first.
    fn provided(ring: &ReceiveRing) -> Vec<u16> {
        let base = ring.entries.as_ptr_mut().cast::<BufRingEntry>();
        let place = |at: u16| usize::from(at & (ring.count - 1));
        // SAFETY: the entries lie in the mapping and only this thread writes to them.
        (ring.count..ring.tail.get()).map(|at| unsafe { (*base.add(place(at))).bid() }).collect()
    }

    #[test]
    fn buffers_go_back_when_their_chunks_are_dropped() {
        let ring = ring(8);
        fill(&ring, 3, 7);
        let chunk = ring.lend(3, 100);
        assert_eq!(chunk[..], [7; 100]);
        assert_eq!(provided(&ring), []);
        drop(chunk);
        assert_eq!(provided(&ring), [3]);
        assert_eq!(ring.lent.get(), 0);
    }

    #[test]
    fn half_of_the_ring_is_lent_and_the_rest_copied() {
        let ring = ring(4);
        let chunks: Vec<Received> = (0..4)
            .map(|buffer| {
                fill(&ring, buffer, buffer as u8);
                ring.lend(buffer, 512)
            })
            .collect();
        assert_eq!(provided(&ring), [2, 3], "copied, and given back at once");
        fill(&ring, 2, 9);
        for (byte, chunk) in chunks.iter().enumerate() {
            assert!(chunk.iter().all(|&other| usize::from(other) == byte), "chunk {byte}");
        }
    }

    #[test]
    fn chunks_outlive_the_driver() {
        let ring = ring(2);
        fill(&ring, 0, 5);
        let chunk = ring.lend(0, 512);
        drop(ring);
        assert_eq!(chunk[..], [5; 512]);
    }

    #[test]
    #[should_panic(expected = "buffers that it was given")]
    fn a_buffer_that_is_none_of_ours_is_not_read() {
        let _ = ring(2).lend(2, 1);
    }
}
