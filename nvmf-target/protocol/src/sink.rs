//! Where outgoing header bytes go.

use alloc::vec::Vec;

/// Takes the headers and digests that a connection writes, in the order they go out. Payload never comes
/// through here: the caller queues it itself between a data header and its digest.
pub trait HeaderSink {
    /// Appends `bytes`, at most a few hundred, to the output.
    fn push(&mut self, bytes: &[u8]);
}

impl HeaderSink for Vec<u8> {
    fn push(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}
