//! A command with its payload, ready to be sent.

use nvmf_target_protocol::host::command::{Command, Data};
use nvmf_target_protocol::wire::dataset::{RANGE_SIZE, Range};
use reactor::{Buffer, Slice};

/// One command and what it sends. Cloning shares the payload.
#[derive(Clone, Debug)]
pub struct Request {
    pub(crate) command: Command,
    /// Never changes while the command is in flight (I11).
    pub(crate) payload: Slice,
    /// Whether it may wait for its answer for ever.
    pub(crate) unlimited: bool,
}

impl Request {
    /// A command that sends no data.
    ///
    /// # Panics
    /// When it does.
    pub fn new(command: Command) -> Self {
        Self::sending(command, Slice::default())
    }

    /// A command that sends `payload`.
    ///
    /// # Panics
    /// When the payload is not as long as the command says.
    pub fn sending(command: Command, payload: Slice) -> Self {
        let expected = if let Data::Send(length) = command.data { length as usize } else { 0 };
        assert_eq!(payload.len(), expected, "payload of {:?}", command.entry);
        Self { command, payload, unlimited: false }
    }

    /// Dataset Management that deallocates `ranges`.
    ///
    /// # Panics
    /// When there are not 1 to 256 ranges.
    pub fn deallocate(namespace: u32, ranges: &[Range]) -> Self {
        let mut payload = Buffer::new(ranges.len() * RANGE_SIZE);
        for (bytes, range) in payload.chunks_exact_mut(RANGE_SIZE).zip(ranges) {
            bytes.copy_from_slice(&range.encode());
        }
        Self::sending(Command::deallocate(namespace, ranges.len() as u32), payload.freeze())
    }

    /// The same request without a time limit, for a command that waits for an event.
    #[must_use]
    pub fn unlimited(mut self) -> Self {
        self.unlimited = true;
        self
    }

    /// How many bytes it receives.
    pub(crate) fn receives(&self) -> u32 {
        if let Data::Receive(length) = self.command.data { length } else { 0 }
    }
}

impl From<Command> for Request {
    /// As [`Request::new`].
    fn from(command: Command) -> Self {
        Self::new(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NVM 3.2.3: a range is context attributes, length, first block.
    #[test]
    fn ranges_become_the_payload() {
        let ranges = [Range { blocks: 16, start: 3 }, Range { blocks: 1, start: 9 }];
        let request = Request::deallocate(1, &ranges);
        assert_eq!(request.payload[..16], [0, 0, 0, 0, 16, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(request.payload.len(), 32);
    }

    #[test]
    #[should_panic(expected = "payload")]
    fn a_payload_of_another_length_is_our_mistake() {
        let _ = Request::sending(Command::write(1, 0, 1, 512, false), Slice::zeroes(1024));
    }
}
