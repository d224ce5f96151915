//! Sense data that the session layer itself has to give. What the SCSI layer says passes through as bytes.

/// SCSI status GOOD.
pub const GOOD: u8 = 0x00;
/// SCSI status CHECK CONDITION.
pub const CHECK_CONDITION: u8 = 0x02;
/// Bytes of [`Sense::fixed`].
pub const FIXED_SIZE: usize = 18;

/// Sense key, additional sense code and its qualifier (SPC-4 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// SENSE KEY.
    pub key: u8,
    /// ADDITIONAL SENSE CODE.
    pub code: u8,
    /// ADDITIONAL SENSE CODE QUALIFIER.
    pub qualifier: u8,
}

impl Sense {
    /// ABORTED COMMAND, PROTOCOL SERVICE CRC ERROR: a data digest did not match (11.4.7.2).
    pub const CRC_ERROR: Self = Self { key: 0x0b, code: 0x47, qualifier: 0x05 };
    /// ILLEGAL REQUEST, INVALID COMMAND OPERATION CODE.
    pub const INVALID_OPERATION: Self = Self { key: 0x05, code: 0x20, qualifier: 0x00 };

    /// In the fixed format, current (SPC-4 4.5.3).
    pub fn fixed(self) -> [u8; FIXED_SIZE] {
        let mut bytes = [0; FIXED_SIZE];
        bytes[0] = 0x70;
        bytes[2] = self.key;
        // ADDITIONAL SENSE LENGTH: what follows it.
        bytes[7] = FIXED_SIZE as u8 - 8;
        bytes[12] = self.code;
        bytes[13] = self.qualifier;
        bytes
    }
}
