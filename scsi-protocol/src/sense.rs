//! Statuses (SAM 5.3.1) and sense data (SPC 4.5).

use alloc::vec;
use alloc::vec::Vec;

use crate::bytes::put;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// GOOD.
    Good = 0x00,
    /// CHECK CONDITION: sense data say why.
    CheckCondition = 0x02,
    /// CONDITION MET: the blocks of a PRE-FETCH fit.
    ConditionMet = 0x04,
    /// BUSY: try again.
    Busy = 0x08,
    /// RESERVATION CONFLICT.
    ReservationConflict = 0x18,
    /// TASK SET FULL.
    TaskSetFull = 0x28,
    /// TASK ABORTED.
    TaskAborted = 0x40,
}

/// Sense keys (SPC 4.5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Key {
    /// NO SENSE.
    NoSense = 0x0,
    /// NOT READY.
    NotReady = 0x2,
    /// MEDIUM ERROR.
    MediumError = 0x3,
    /// HARDWARE ERROR.
    HardwareError = 0x4,
    /// ILLEGAL REQUEST.
    IllegalRequest = 0x5,
    /// UNIT ATTENTION.
    UnitAttention = 0x6,
    /// DATA PROTECT.
    DataProtect = 0x7,
    /// COPY ABORTED.
    CopyAborted = 0xa,
    /// ABORTED COMMAND.
    AbortedCommand = 0xb,
    /// MISCOMPARE.
    Miscompare = 0xe,
}

/// Where a refused field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// In the CDB (C/D); otherwise in the parameter list.
    pub in_cdb: bool,
    /// Its first byte.
    pub byte: u16,
    /// Its most significant bit in that byte, if it is less than a byte.
    pub bit: Option<u8>,
}

/// Why a command ended with CHECK CONDITION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// Sense key.
    pub key: Key,
    /// ADDITIONAL SENSE CODE in the high byte, its QUALIFIER in the low one.
    pub code: u16,
    /// INFORMATION: for a miscompare the offset of the first byte that differs (SBC 5.3).
    pub information: Option<u64>,
    /// Field pointer.
    pub field: Option<Field>,
}

/// Declares senses from the standards' tables (SPC annex E): name, key, additional sense code with its qualifier.
macro_rules! senses {
    ($($(#[$doc:meta])* $name:ident = $key:ident, $code:literal;)*) => {
        impl Sense {
            $($(#[$doc])* pub const $name: Self = Self::new(Key::$key, $code);)*
        }
    };
}

senses! {
    /// NO ADDITIONAL SENSE INFORMATION.
    NONE = NoSense, 0x0000;
    /// LOGICAL UNIT NOT READY, ASYMMETRIC ACCESS STATE TRANSITION.
    ACCESS_TRANSITION = NotReady, 0x040a;
    /// LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN STANDBY STATE.
    PORT_STANDBY = NotReady, 0x040b;
    /// LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN UNAVAILABLE STATE.
    PORT_UNAVAILABLE = NotReady, 0x040c;
    /// WRITE ERROR.
    WRITE_ERROR = MediumError, 0x0c00;
    /// UNRECOVERED READ ERROR.
    UNRECOVERED_READ_ERROR = MediumError, 0x1100;
    /// INTERNAL TARGET FAILURE.
    INTERNAL_TARGET_FAILURE = HardwareError, 0x4400;
    /// INVALID FIELD IN COMMAND INFORMATION UNIT: the transport expects another length than the CDB says.
    INVALID_FIELD_IN_INFORMATION_UNIT = IllegalRequest, 0x0e03;
    /// PARAMETER LIST LENGTH ERROR.
    PARAMETER_LIST_LENGTH = IllegalRequest, 0x1a00;
    /// INVALID COMMAND OPERATION CODE.
    INVALID_OPERATION_CODE = IllegalRequest, 0x2000;
    /// LOGICAL BLOCK ADDRESS OUT OF RANGE.
    LBA_OUT_OF_RANGE = IllegalRequest, 0x2100;
    /// INVALID FIELD IN CDB.
    INVALID_FIELD_IN_CDB = IllegalRequest, 0x2400;
    /// LOGICAL UNIT NOT SUPPORTED.
    UNIT_NOT_SUPPORTED = IllegalRequest, 0x2500;
    /// INVALID FIELD IN PARAMETER LIST.
    INVALID_FIELD_IN_PARAMETERS = IllegalRequest, 0x2600;
    /// INVALID RELEASE OF PERSISTENT RESERVATION.
    INVALID_RELEASE = IllegalRequest, 0x2604;
    /// TOO MANY TARGET DESCRIPTORS.
    TOO_MANY_TARGET_DESCRIPTORS = IllegalRequest, 0x2606;
    /// UNSUPPORTED TARGET DESCRIPTOR TYPE CODE.
    UNSUPPORTED_TARGET_DESCRIPTOR = IllegalRequest, 0x2607;
    /// TOO MANY SEGMENT DESCRIPTORS.
    TOO_MANY_SEGMENT_DESCRIPTORS = IllegalRequest, 0x2608;
    /// UNSUPPORTED SEGMENT DESCRIPTOR TYPE CODE.
    UNSUPPORTED_SEGMENT_DESCRIPTOR = IllegalRequest, 0x2609;
    /// SAVING PARAMETERS NOT SUPPORTED.
    SAVING_NOT_SUPPORTED = IllegalRequest, 0x3900;
    /// INSUFFICIENT REGISTRATION RESOURCES.
    REGISTRATION_RESOURCES = IllegalRequest, 0x5504;
    /// WRITE PROTECTED.
    WRITE_PROTECTED = DataProtect, 0x2700;
    /// LOGICAL UNIT SOFTWARE WRITE PROTECTED.
    SOFTWARE_WRITE_PROTECTED = DataProtect, 0x2702;
    /// SPACE ALLOCATION FAILED WRITE PROTECT (I32).
    SPACE_ALLOCATION_FAILED = DataProtect, 0x2707;
    /// COPY TARGET DEVICE NOT REACHABLE.
    COPY_TARGET_NOT_REACHABLE = CopyAborted, 0x0d02;
    /// Copy aborted: no more said.
    COPY_ABORTED = CopyAborted, 0x0000;
    /// NO ADDITIONAL SENSE INFORMATION: the command was aborted, the initiator may try again.
    ABORTED = AbortedCommand, 0x0000;
    /// MISCOMPARE DURING VERIFY OPERATION.
    MISCOMPARE = Miscompare, 0x1d00;
}

/// The bytes of fixed format sense data (SPC 4.5.3).
const FIXED_LENGTH: usize = 18;

impl Sense {
    /// Sense data of a key and a code.
    pub const fn new(key: Key, code: u16) -> Self {
        Self { key, code, information: None, field: None }
    }

    /// The same with INFORMATION.
    pub const fn with_information(self, information: u64) -> Self {
        Self { information: Some(information), ..self }
    }

    /// INVALID FIELD IN CDB with its place.
    pub const fn cdb_field(byte: u16, bit: Option<u8>) -> Self {
        Self { field: Some(Field { in_cdb: true, byte, bit }), ..Self::INVALID_FIELD_IN_CDB }
    }

    /// INVALID FIELD IN PARAMETER LIST with its place.
    pub const fn parameter_field(byte: u16) -> Self {
        Self { field: Some(Field { in_cdb: false, byte, bit: None }), ..Self::INVALID_FIELD_IN_PARAMETERS }
    }

    /// The bytes, in descriptor format or in fixed format.
    pub fn encode(&self, descriptors: bool) -> Vec<u8> {
        if descriptors { self.encode_descriptors() } else { self.encode_fixed() }
    }

    /// SPC 4.5.3, response code 70h.
    fn encode_fixed(&self) -> Vec<u8> {
        let mut bytes = vec![0; FIXED_LENGTH];
        bytes[0] = 0x70;
        bytes[2] = self.key as u8;
        // Four bytes: what does not fit is not valid there.
        if let Some(information) = self.information.and_then(|information| u32::try_from(information).ok()) {
            bytes[0] |= 0x80;
            put(&mut bytes, 3, information.to_be_bytes());
        }
        bytes[7] = (FIXED_LENGTH - 8) as u8;
        put(&mut bytes, 12, self.code.to_be_bytes());
        if let Some(field) = self.field {
            put(&mut bytes, 15, field.encode());
        }
        bytes
    }

    /// SPC 4.5.2, response code 72h.
    fn encode_descriptors(&self) -> Vec<u8> {
        let [code, qualifier] = self.code.to_be_bytes();
        let mut bytes = vec![0x72, self.key as u8, code, qualifier, 0, 0, 0, 0];
        if let Some(information) = self.information {
            bytes.extend([0x00, 0x0a, 0x80, 0]);
            bytes.extend(information.to_be_bytes());
        }
        if let Some(field) = self.field {
            bytes.extend([0x02, 0x06, 0, 0]);
            bytes.extend(field.encode());
            bytes.push(0);
        }
        bytes[7] = (bytes.len() - 8) as u8;
        bytes
    }
}

impl Field {
    /// Sense key specific information of ILLEGAL REQUEST (SPC 4.5.2.4.2): SKSV, C/D, BPV, bit pointer, field pointer.
    fn encode(self) -> [u8; 3] {
        let [high, low] = self.byte.to_be_bytes();
        let place = self.bit.map_or(0, |bit| 0x08 | bit & 0x07);
        [0x80 | u8::from(self.in_cdb) << 6 | place, high, low]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_sense_as_the_figure_draws_it() {
        let bytes = Sense::cdb_field(1, Some(4)).encode(false);
        assert_eq!(bytes, [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xcc, 0, 1]);
        let bytes = Sense::MISCOMPARE.with_information(0x1ff).encode(false);
        assert_eq!(bytes[..8], [0xf0, 0, 0xe, 0, 0, 1, 0xff, 10]);
        let too_long = Sense::MISCOMPARE.with_information(1 << 32).encode(false);
        assert_eq!(too_long[..7], [0x70, 0, 0xe, 0, 0, 0, 0]);
    }

    #[test]
    fn descriptor_sense_carries_eight_bytes_of_information_and_the_field() {
        let bytes = Sense::MISCOMPARE.with_information(1 << 32).encode(true);
        assert_eq!(bytes, [0x72, 0xe, 0x1d, 0, 0, 0, 0, 12, 0, 0x0a, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        let bytes = Sense::parameter_field(0x102).encode(true);
        assert_eq!(bytes, [0x72, 5, 0x26, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0x80, 1, 2, 0]);
    }
}
