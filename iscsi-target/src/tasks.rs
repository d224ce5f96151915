//! Commands in flight on one connection.

use block_device::{Buffer, Slice};
use iscsi_target_protocol::target::connection::Slot;
use scsi_protocol::command::{Access, Command};
use scsi_protocol::unit::Response;

/// What is done with a command once its data is here.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// The unit or the medium carries it out.
    Run(Command),
    /// It is answered with this.
    Answer(Response),
}

/// A command in flight.
pub(crate) struct InFlight {
    pub(crate) slot: Slot,
    pub(crate) work: Work,
    pub(crate) data: Data,
    /// Bytes that the command is about, as its CDB says: what differs from those expected is the residual.
    pub(crate) length: u32,
    /// Bytes of data from the initiator that it takes.
    pub(crate) takes: u32,
    /// A write that the gate has let in.
    pub(crate) is_writer: bool,
}

/// A command's data from the initiator.
pub(crate) enum Data {
    None,
    /// Arriving. What does not fit is dropped.
    Buffer(Buffer),
    /// All here, and fixed (I11).
    Slice(Slice),
}

impl InFlight {
    /// Puts bytes where they belong.
    #[inline]
    pub(crate) fn receive(&mut self, offset: u32, bytes: &[u8]) {
        if let Data::Buffer(buffer) = &mut self.data {
            let start = (offset as usize).min(buffer.len());
            let end = (start + bytes.len()).min(buffer.len());
            buffer[start..end].copy_from_slice(&bytes[..end - start]);
        }
    }

    /// The data is complete: nobody can change it from here on (I11).
    pub(crate) fn freeze(&mut self) {
        self.data = match std::mem::replace(&mut self.data, Data::None) {
            Data::Buffer(buffer) => Data::Slice(buffer.freeze()),
            other => other,
        };
    }

    /// The data; empty if there is none.
    pub(crate) fn slice(&self) -> Slice {
        match &self.data {
            Data::Slice(slice) => slice.clone(),
            Data::None | Data::Buffer(_) => Slice::default(),
        }
    }

    /// The access that it is, if it is one.
    pub(crate) fn access(&self) -> Option<Access> {
        match self.work {
            Work::Run(Command::Access(access)) => Some(access),
            _ => None,
        }
    }
}
