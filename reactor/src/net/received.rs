//! Chunks of bytes, wherever they lie.

use std::ops::Deref;

use crate::buffer::Buffer;
use crate::driver::uring::RingChunk;

/// A chunk of bytes from a socket. It holds a place in the driver's receive ring until it is dropped: do not keep it.
#[derive(Debug)]
pub struct Received {
    bytes: ReceivedBytes,
    /// How many of the bytes are taken already.
    start: usize,
}

/// Where the bytes of a chunk live.
#[derive(Debug)]
enum ReceivedBytes {
    /// Own memory.
    Owned(Vec<u8>),
    /// A buffer of the ring, returned on drop.
    Ring(RingChunk),
    /// What lay behind data that was received into a buffer.
    Behind(Buffer),
}

impl Received {
    /// A chunk with memory of its own.
    pub(crate) const fn owned(bytes: Vec<u8>) -> Self {
        Self { bytes: ReceivedBytes::Owned(bytes), start: 0 }
    }

    /// A chunk in the receive ring.
    pub(crate) const fn in_ring(chunk: RingChunk) -> Self {
        Self { bytes: ReceivedBytes::Ring(chunk), start: 0 }
    }

    /// The first `length` bytes of a buffer.
    pub(super) fn behind(mut buffer: Buffer, length: usize) -> Self {
        buffer.truncate(length);
        Self { bytes: ReceivedBytes::Behind(buffer), start: 0 }
    }

    /// The end of a stream.
    pub(crate) const fn end() -> Self {
        Self::owned(Vec::new())
    }

    /// Moves as many bytes as fit; how many these were.
    pub(super) fn move_into(&mut self, to: &mut [u8]) -> usize {
        let length = to.len().min(self.len());
        to[..length].copy_from_slice(&self[..length]);
        self.start += length;
        length
    }
}

impl Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes: &[u8] = match &self.bytes {
            ReceivedBytes::Owned(bytes) => bytes,
            ReceivedBytes::Ring(chunk) => chunk,
            ReceivedBytes::Behind(buffer) => buffer,
        };
        &bytes[self.start..]
    }
}
