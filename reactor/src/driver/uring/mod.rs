//! The kernel's io_uring as a driver.

use std::ops::Deref;

/// A buffer of the receive ring, lent to a reader; it goes back when dropped.
#[derive(Debug)]
pub(crate) struct RingChunk;

impl Deref for RingChunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &[]
    }
}
