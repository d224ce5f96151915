//! Fabrics commands (Base 6).

use alloc::string::String;

use super::bytes::{array_at, put, put_terminated, u16_at, u32_at, u64_at};
use super::opcode;
use super::submission::Submission;

/// Fabrics Command Type (FCTYPE) of Property Set.
pub const PROPERTY_SET: u8 = 0x00;
/// Fabrics Command Type (FCTYPE) of Connect.
pub const CONNECT: u8 = 0x01;
/// Fabrics Command Type (FCTYPE) of Property Get.
pub const PROPERTY_GET: u8 = 0x04;

/// The well-known name of every discovery subsystem (Base 4.5.1).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Bytes of an NQN field, its ending zero included.
pub const NQN_FIELD_SIZE: usize = 256;
/// Longest NQN in bytes, without the ending zero (Base 4.5).
pub const NQN_MAX: usize = 223;

/// The controller identifier that asks for any controller (Base 6.3, dynamic controller model).
pub const CONTROLLER_ANY: u16 = 0xffff;

/// Connect (Base 6.3): the submission queue entry's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectCommand {
    /// Record Format (RECFMT), bytes 41:40: 0 is the only one.
    pub record_format: u16,
    /// Queue ID (QID), bytes 43:42: 0 for the admin queue.
    pub queue_id: u16,
    /// Submission Queue Size (SQSIZE), bytes 45:44; counted from one here.
    pub queue_entries: u32,
    /// Connect Attributes (CATTR) bit 2: the host turns SQ flow control off.
    pub flow_control_disabled: bool,
    /// Keep Alive Timeout (KATO), bytes 51:48, in milliseconds; 0 for none.
    pub keep_alive_ms: u32,
}

impl ConnectCommand {
    /// Reads the fields of a Connect command.
    pub fn parse(entry: &Submission) -> Self {
        let bytes = entry.as_bytes();
        Self {
            record_format: u16_at(bytes, 40),
            queue_id: u16_at(bytes, 42),
            queue_entries: u32::from(u16_at(bytes, 44)) + 1,
            flow_control_disabled: bytes[46] & 1 << 2 != 0,
            keep_alive_ms: u32_at(bytes, 48),
        }
    }

    /// The submission queue entry; its SGL is the connection's matter.
    ///
    /// # Panics
    /// If `queue_entries` is not 1 to 65536.
    pub fn encode(&self) -> Submission {
        assert!((1..=65_536).contains(&self.queue_entries), "SQSIZE is 16 bits, 0's based");
        let mut entry = command(CONNECT);
        let bytes = entry.bytes_mut();
        put(bytes, 40, self.record_format.to_le_bytes());
        put(bytes, 42, self.queue_id.to_le_bytes());
        put(bytes, 44, ((self.queue_entries - 1) as u16).to_le_bytes());
        bytes[46] = u8::from(self.flow_control_disabled) << 2;
        put(bytes, 48, self.keep_alive_ms.to_le_bytes());
        entry
    }
}

/// Bytes of Connect's data.
pub const CONNECT_DATA_SIZE: usize = 1024;

/// Byte offsets of fields in Connect's entry and data, as Connect Invalid Parameters names them (IPO).
pub mod connect_field {
    /// RECFMT of the entry.
    pub const RECORD_FORMAT: u16 = 40;
    /// QID of the entry.
    pub const QUEUE_ID: u16 = 42;
    /// SQSIZE of the entry.
    pub const QUEUE_SIZE: u16 = 44;
    /// KATO of the entry.
    pub const KEEP_ALIVE: u16 = 48;
    /// HOSTID of the data.
    pub const HOST_ID: u16 = 0;
    /// CNTLID of the data.
    pub const CONTROLLER_ID: u16 = 16;
    /// SUBNQN of the data.
    pub const SUBSYSTEM_NQN: u16 = 256;
    /// HOSTNQN of the data.
    pub const HOST_NQN: u16 = 512;
}

/// Where a Connect went wrong: the result of Connect Invalid Parameters (Base 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidParameter {
    /// Invalid Parameter Offset (IPO), bits 15:0.
    pub offset: u16,
    /// Invalid Attributes (IATTR) bit 0 (bit 16 of the result): the offset is in the data, not the entry.
    pub in_data: bool,
}

impl InvalidParameter {
    /// A field of the submission queue entry.
    pub fn entry(offset: u16) -> Self {
        Self { offset, in_data: false }
    }

    /// A field of the data.
    pub fn data(offset: u16) -> Self {
        Self { offset, in_data: true }
    }

    /// Dword 0 of the completion.
    pub fn to_result(self) -> u64 {
        u64::from(self.offset) | u64::from(self.in_data) << 16
    }
}

/// Connect's 1024 bytes of data (Base 6.3), with valid names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectData {
    /// Host Identifier (HOSTID), bytes 15:0.
    pub host_id: [u8; 16],
    /// Controller ID (CNTLID), bytes 17:16: [`CONTROLLER_ANY`] for a new controller.
    pub controller_id: u16,
    /// NVM Subsystem NVMe Qualified Name (SUBNQN), bytes 511:256.
    pub subsystem_nqn: String,
    /// Host NVMe Qualified Name (HOSTNQN), bytes 767:512.
    pub host_nqn: String,
}

impl ConnectData {
    /// Reads Connect's data.
    ///
    /// # Errors
    /// Which field is no valid NQN.
    pub fn parse(bytes: &[u8; CONNECT_DATA_SIZE]) -> Result<Self, InvalidParameter> {
        let nqn = |offset: u16| parse_nqn(&array_at(bytes, usize::from(offset))).ok_or(InvalidParameter::data(offset));
        Ok(Self {
            host_id: array_at(bytes, 0),
            controller_id: u16_at(bytes, 16),
            subsystem_nqn: nqn(connect_field::SUBSYSTEM_NQN)?,
            host_nqn: nqn(connect_field::HOST_NQN)?,
        })
    }

    /// The bytes of Connect's data.
    pub fn encode(&self) -> [u8; CONNECT_DATA_SIZE] {
        let mut bytes = [0; CONNECT_DATA_SIZE];
        put(&mut bytes, 0, self.host_id);
        put(&mut bytes, 16, self.controller_id.to_le_bytes());
        put_terminated(&mut bytes, 256, NQN_FIELD_SIZE, &self.subsystem_nqn);
        put_terminated(&mut bytes, 512, NQN_FIELD_SIZE, &self.host_nqn);
        bytes
    }
}

/// The name in an NQN field, if it is one: ended by zero, at most 223 bytes of UTF-8, beginning "nqn.".
fn parse_nqn(field: &[u8; NQN_FIELD_SIZE]) -> Option<String> {
    let length = field.iter().position(|byte| *byte == 0)?;
    if length > NQN_MAX {
        return None;
    }
    let name = core::str::from_utf8(&field[..length]).ok()?;
    name.starts_with("nqn.").then(|| String::from(name))
}

/// Property Get or Property Set (Base 6.5, 6.6): which property, how wide, what value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropertyCommand {
    /// Property Size (ATTRIB bits 2:0 of byte 40): 0 for four bytes, 1 for eight; here in bytes, 0 if reserved.
    pub size: u8,
    /// Offset (OFST), bytes 47:44.
    pub offset: u32,
    /// Value, bytes 55:48; Property Set only.
    pub value: u64,
}

impl PropertyCommand {
    /// Reads the fields of a property command.
    pub fn parse(entry: &Submission) -> Self {
        let bytes = entry.as_bytes();
        Self {
            size: match bytes[40] & 0b111 {
                0 => 4,
                1 => 8,
                _ => 0,
            },
            offset: u32_at(bytes, 44),
            value: u64_at(bytes, 48),
        }
    }

    /// A Property Get of `size` (4 or 8) bytes at `offset`.
    pub fn get(offset: u32, size: u8) -> Submission {
        let mut entry = command(PROPERTY_GET);
        let bytes = entry.bytes_mut();
        bytes[40] = u8::from(size == 8);
        put(bytes, 44, offset.to_le_bytes());
        entry
    }

    /// A Property Set of the 4 bytes at `offset`.
    pub fn set(offset: u32, value: u32) -> Submission {
        let mut entry = command(PROPERTY_SET);
        let bytes = entry.bytes_mut();
        put(bytes, 44, offset.to_le_bytes());
        put(bytes, 48, value.to_le_bytes());
        entry
    }
}

/// A Fabrics command: FCTYPE stands where other commands have their namespace.
fn command(fabrics_type: u8) -> Submission {
    Submission::new(opcode::FABRICS, u32::from(fabrics_type))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Base 6.3: QID 3, SQSIZE 127, flow control off, KATO 5 s.
    #[test]
    fn connect_entry_bytes() {
        let connect = ConnectCommand {
            record_format: 0,
            queue_id: 3,
            queue_entries: 128,
            flow_control_disabled: true,
            keep_alive_ms: 5000,
        };
        let entry = connect.encode();
        let mut expected = [0u8; 64];
        expected[..5].copy_from_slice(&[0x7f, 0x40, 0, 0, 0x01]);
        expected[40..52].copy_from_slice(&[0, 0, 0x03, 0, 0x7f, 0, 0x04, 0, 0x88, 0x13, 0, 0]);
        assert_eq!(entry.as_bytes(), &expected);
        assert_eq!(ConnectCommand::parse(&entry), connect);
        assert_eq!(entry.fabrics_type(), CONNECT);
    }

    /// Base 6.3.
    #[test]
    fn connect_data_bytes() {
        let mut bytes = [0u8; 1024];
        bytes[..16].copy_from_slice(&[0xab; 16]);
        bytes[16..18].copy_from_slice(&[0xff, 0xff]);
        bytes[256..267].copy_from_slice(b"nqn.2026-01");
        bytes[512..520].copy_from_slice(b"nqn.host");
        let data = ConnectData::parse(&bytes).unwrap();
        assert_eq!(data.controller_id, CONTROLLER_ANY);
        assert_eq!(data.subsystem_nqn, "nqn.2026-01");
        assert_eq!(data.host_nqn, "nqn.host");
        assert_eq!(data.encode(), bytes);
    }

    #[test]
    fn names_that_are_none() {
        let mut bytes = [0u8; 1024];
        bytes[512..520].copy_from_slice(b"nqn.host");
        let blamed = |bytes: &[u8; 1024]| ConnectData::parse(bytes).unwrap_err();
        assert_eq!(blamed(&bytes), InvalidParameter::data(256), "empty");
        bytes[256..512].fill(b'n');
        assert_eq!(blamed(&bytes), InvalidParameter::data(256), "not ended");
        bytes[256..260].copy_from_slice(b"nqn.");
        bytes[480] = 0;
        assert_eq!(blamed(&bytes), InvalidParameter::data(256), "224 bytes");
        bytes[479] = 0;
        assert_eq!(ConnectData::parse(&bytes).unwrap().subsystem_nqn.len(), 223);
        bytes[300] = 0xff;
        assert_eq!(blamed(&bytes).to_result(), 0x1_0100, "not UTF-8");
    }

    /// Base 6.5, 6.6.
    #[test]
    fn property_command_bytes() {
        let get = PropertyCommand::get(0x00, 8);
        assert_eq!(get.as_bytes()[..5], [0x7f, 0x40, 0, 0, 0x04]);
        assert_eq!(get.as_bytes()[40..48], [0x01, 0, 0, 0, 0, 0, 0, 0]);
        let set = PropertyCommand::set(0x14, 0x0046_0001);
        assert_eq!(set.fabrics_type(), PROPERTY_SET);
        assert_eq!(set.as_bytes()[40..56], [0, 0, 0, 0, 0x14, 0, 0, 0, 0x01, 0, 0x46, 0, 0, 0, 0, 0]);
        assert_eq!(PropertyCommand::parse(&set), PropertyCommand { size: 4, offset: 0x14, value: 0x0046_0001 });
        let mut reserved = *get.as_bytes();
        reserved[40] = 2;
        assert_eq!(PropertyCommand::parse(&Submission::from_bytes(reserved)).size, 0);
    }
}
