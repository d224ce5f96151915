//! Status codes of completions (Base 3.3.3.2.1).

/// Declares [`Status`] from the specifications' tables: name, status code type, status code.
macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $code_type:literal, $code:literal;)*) => {
        /// Status Code Type (SCT) and Status Code (SC) of a completion, under the specification's names.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Status {
            $($(#[$doc])* $name,)*
            /// A pair that this crate gives no name.
            Other {
                /// Status Code Type (SCT), 3 bits.
                code_type: u8,
                /// Status Code (SC).
                code: u8,
            },
        }

        impl Status {
            /// Status Code Type (SCT): 0 generic, 1 command specific, 2 media and data integrity, 3 path related.
            pub const fn code_type(self) -> u8 {
                match self {
                    $(Self::$name => $code_type,)*
                    Self::Other { code_type, .. } => code_type & 0b111,
                }
            }

            /// Status Code (SC) within its type.
            pub const fn code(self) -> u8 {
                match self {
                    $(Self::$name => $code,)*
                    Self::Other { code, .. } => code,
                }
            }

            /// The status with these two numbers.
            pub const fn from_codes(code_type: u8, code: u8) -> Self {
                match (code_type, code) {
                    $(($code_type, $code) => Self::$name,)*
                    _ => Self::Other { code_type, code },
                }
            }
        }
    };
}

statuses! {
    /// Successful Completion.
    Success = 0, 0x00;
    /// Invalid Command Opcode.
    InvalidOpcode = 0, 0x01;
    /// Invalid Field in Command.
    InvalidField = 0, 0x02;
    /// Command ID Conflict.
    CommandIdConflict = 0, 0x03;
    /// Data Transfer Error.
    DataTransferError = 0, 0x04;
    /// Internal Error.
    InternalError = 0, 0x06;
    /// Command Abort Requested.
    AbortRequested = 0, 0x07;
    /// Command Aborted due to SQ Deletion.
    AbortedQueueDeletion = 0, 0x08;
    /// Invalid Namespace or Format.
    InvalidNamespaceOrFormat = 0, 0x0b;
    /// Command Sequence Error.
    CommandSequenceError = 0, 0x0c;
    /// Invalid SGL Segment Descriptor.
    InvalidSglSegmentDescriptor = 0, 0x0d;
    /// Invalid Number of SGL Descriptors.
    InvalidSglDescriptorCount = 0, 0x0e;
    /// Data SGL Length Invalid.
    DataSglLengthInvalid = 0, 0x0f;
    /// SGL Descriptor Type Invalid.
    SglDescriptorTypeInvalid = 0, 0x11;
    /// Operation Denied.
    OperationDenied = 0, 0x15;
    /// SGL Offset Invalid.
    SglOffsetInvalid = 0, 0x16;
    /// Host Identifier Inconsistent Format.
    HostIdentifierInconsistent = 0, 0x18;
    /// Keep Alive Timer Expired.
    KeepAliveExpired = 0, 0x19;
    /// Keep Alive Timeout Invalid.
    KeepAliveInvalid = 0, 0x1a;
    /// Namespace is Write Protected.
    NamespaceWriteProtected = 0, 0x20;
    /// Command Interrupted: nothing was done for lack of a resource, the host should retry.
    CommandInterrupted = 0, 0x21;
    /// Transient Transport Error: for example a data digest that did not match.
    TransientTransportError = 0, 0x22;
    /// LBA Out of Range.
    LbaOutOfRange = 0, 0x80;
    /// Capacity Exceeded.
    CapacityExceeded = 0, 0x81;
    /// Namespace Not Ready.
    NamespaceNotReady = 0, 0x82;
    /// Reservation Conflict.
    ReservationConflict = 0, 0x83;
    /// Invalid Queue Identifier.
    InvalidQueueIdentifier = 1, 0x01;
    /// Invalid Queue Size.
    InvalidQueueSize = 1, 0x02;
    /// Abort Command Limit Exceeded.
    AbortLimitExceeded = 1, 0x03;
    /// Asynchronous Event Request Limit Exceeded.
    AsyncEventLimitExceeded = 1, 0x05;
    /// Invalid Log Page.
    InvalidLogPage = 1, 0x09;
    /// Feature Identifier Not Saveable.
    FeatureNotSaveable = 1, 0x0d;
    /// Feature Not Changeable.
    FeatureNotChangeable = 1, 0x0e;
    /// Feature Not Namespace Specific.
    FeatureNotNamespaceSpecific = 1, 0x0f;
    /// I/O Command Set Not Supported.
    CommandSetNotSupported = 1, 0x29;
    /// I/O Command Set Combination Rejected.
    CommandSetCombinationRejected = 1, 0x2b;
    /// Conflicting Attributes of an NVM command; Connect Incompatible Format of a Fabrics command.
    IncompatibleFormat = 1, 0x80;
    /// Connect Controller Busy.
    ConnectControllerBusy = 1, 0x81;
    /// Connect Invalid Parameters.
    ConnectInvalidParameters = 1, 0x82;
    /// Connect Restart Discovery of a Fabrics command; Command Size Limit Exceeded of an NVM command.
    CommandSizeLimitExceeded = 1, 0x83;
    /// Connect Invalid Host.
    ConnectInvalidHost = 1, 0x84;
    /// Write Fault.
    WriteFault = 2, 0x80;
    /// Unrecovered Read Error.
    UnrecoveredReadError = 2, 0x81;
    /// Compare Failure.
    CompareFailure = 2, 0x85;
    /// Internal Path Error.
    InternalPathError = 3, 0x00;
    /// Asymmetric Access Persistent Loss.
    AnaPersistentLoss = 3, 0x01;
    /// Asymmetric Access Inaccessible.
    AnaInaccessible = 3, 0x02;
    /// Asymmetric Access Transition.
    AnaTransition = 3, 0x03;
    /// Host Pathing Error.
    HostPathError = 3, 0x70;
}

/// Bit of the 16-bit status field that says "Do Not Retry" (DNR).
const DO_NOT_RETRY: u16 = 1 << 15;

impl Status {
    /// Whether the same command may succeed when sent again; the others carry Do Not Retry (DNR).
    ///
    /// What depends on a moment's state (space, media, path, transport, aborts) may pass later; what
    /// depends on the command itself never will. Connect Invalid Parameters counts as a moment's state:
    /// it also answers a host whose volume has not been started again yet after a restart of the
    /// daemon, and a host that reads Do Not Retry there removes its controller for good.
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::Success
            | Self::DataTransferError
            | Self::InternalError
            | Self::AbortRequested
            | Self::AbortedQueueDeletion
            | Self::CommandInterrupted
            | Self::TransientTransportError
            | Self::NamespaceNotReady
            | Self::ConnectInvalidParameters
            | Self::ConnectControllerBusy => true,
            other => other.code_type() == 3,
        }
    }

    /// The 16-bit status field of a completion, phase tag (bit 0) clear (Base 3.3.3.2.1).
    pub const fn to_field(self) -> u16 {
        let codes = (self.code_type() as u16) << 9 | (self.code() as u16) << 1;
        if self.is_retryable() { codes } else { codes | DO_NOT_RETRY }
    }

    /// The status in a completion's 16-bit status field; phase tag, retry delay and DNR are left aside.
    pub const fn from_field(field: u16) -> Self {
        Self::from_codes((field >> 9 & 0b111) as u8, (field >> 1) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Base 3.3.3.2.1: bits 15 DNR, 11:09 SCT, 08:01 SC, 0 phase.
    #[test]
    fn fields_as_the_figure_draws_them() {
        assert_eq!(Status::Success.to_field(), 0x0000);
        assert_eq!(Status::InvalidOpcode.to_field(), 0x8002);
        assert_eq!(Status::LbaOutOfRange.to_field(), 0x8100);
        assert_eq!(Status::CapacityExceeded.to_field(), 0x8102);
        assert_eq!(Status::ConnectInvalidParameters.to_field(), 0x0304);
        assert_eq!(Status::CompareFailure.to_field(), 0x850a);
        assert_eq!(Status::AnaInaccessible.to_field(), 0x0604);
    }

    #[test]
    fn a_field_gives_its_status_back_whatever_the_other_bits_say() {
        assert_eq!(Status::from_field(0xf605), Status::AnaInaccessible);
        assert_eq!(Status::from_field(0x8102), Status::CapacityExceeded);
        let unnamed = Status::from_field(0x0ffe);
        assert_eq!(unnamed, Status::Other { code_type: 7, code: 0xff });
        assert_eq!(Status::from_field(unnamed.to_field()), unnamed);
    }
}
