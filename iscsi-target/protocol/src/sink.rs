//! Where outgoing header bytes go.

use alloc::vec::Vec;

/// Takes what a connection writes, in the order it goes out: headers, digests, padding, and data that is its own (text, sense,
/// answers to pings). Payload of commands never comes through here: the caller queues it itself after its header.
pub trait HeaderSink {
    /// Appends `bytes` to the output.
    fn push(&mut self, bytes: &[u8]);
}

impl HeaderSink for Vec<u8> {
    fn push(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}
