//! Log pages of Get Log Page (Base 5.16.1).

use alloc::vec::Vec;

use super::bytes::{put, put_padded, u32_at, u64_at};
use super::status::Status;
use super::submission::Submission;

/// Log Page Identifier (LID) of Error Information.
pub const ERROR: u8 = 0x01;
/// Log Page Identifier (LID) of SMART / Health Information.
pub const HEALTH: u8 = 0x02;
/// Log Page Identifier (LID) of Firmware Slot Information.
pub const FIRMWARE: u8 = 0x03;
/// Log Page Identifier (LID) of Changed Namespace List.
pub const CHANGED_NAMESPACES: u8 = 0x04;
/// Log Page Identifier (LID) of Commands Supported and Effects.
pub const EFFECTS: u8 = 0x05;
/// Log Page Identifier (LID) of Asymmetric Namespace Access.
pub const ANA: u8 = 0x0c;
/// Log Page Identifier (LID) of Discovery.
pub const DISCOVERY: u8 = 0x70;

/// Get Log Page (Base 5.16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetLogPage {
    /// Log Page Identifier (LID), CDW10 bits 7:0.
    pub page: u8,
    /// Log Specific Parameter (LSP), CDW10 bits 14:8. For ANA, bit 0: groups only (RGO).
    pub parameter: u8,
    /// Retain Asynchronous Event (RAE), CDW10 bit 15: reading does not clear the event.
    pub retain_event: bool,
    /// Number of Dwords (NUMDU, NUMDL), CDW11 15:0 and CDW10 31:16; in bytes and counted from one here.
    pub length: u64,
    /// Log Page Offset (LPOU, LPOL), CDW13 and CDW12, in bytes.
    pub offset: u64,
    /// Offset Type (OT), CDW14 bit 23: the offset is an index; no page of ours has one.
    pub offset_is_index: bool,
}

impl GetLogPage {
    /// Reads the command dwords.
    pub fn parse(entry: &Submission) -> Self {
        let (cdw10, cdw11) = (entry.dword(10), entry.dword(11));
        let zero_based_dwords = u64::from(cdw10 >> 16) | u64::from(cdw11 & 0xffff) << 16;
        Self {
            page: cdw10 as u8,
            parameter: (cdw10 >> 8 & 0x7f) as u8,
            retain_event: cdw10 & 1 << 15 != 0,
            length: (zero_based_dwords + 1) * 4,
            offset: u64::from(entry.dword(12)) | u64::from(entry.dword(13)) << 32,
            offset_is_index: entry.dword(14) & 1 << 23 != 0,
        }
    }

    /// Writes the command dwords.
    ///
    /// # Panics
    /// If `length` is no positive multiple of 4.
    pub fn encode(&self, entry: &mut Submission) {
        assert!(self.length >= 4 && self.length.is_multiple_of(4), "whole dwords");
        let zero_based_dwords = self.length / 4 - 1;
        let low = (zero_based_dwords as u32 & 0xffff) << 16
            | u32::from(self.retain_event) << 15
            | u32::from(self.parameter & 0x7f) << 8
            | u32::from(self.page);
        entry.set_dword(10, low);
        entry.set_dword(11, (zero_based_dwords >> 16) as u32 & 0xffff);
        entry.set_dword(12, self.offset as u32);
        entry.set_dword(13, (self.offset >> 32) as u32);
        entry.set_dword(14, u32::from(self.offset_is_index) << 23);
    }
}

/// Bytes of one Error Information entry.
pub const ERROR_ENTRY_SIZE: usize = 64;

/// One entry of the Error Information page (LID 01h, Base 5.16.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorEntry {
    /// Error Count, bytes 7:0: the error's number since the controller was made, from 1.
    pub error_count: u64,
    /// Submission Queue ID (SQID), bytes 9:8.
    pub queue_id: u16,
    /// Command ID (CID), bytes 11:10.
    pub command_id: u16,
    /// Status Field, bytes 13:12.
    pub status: Status,
    /// Logical Block Address (LBA), bytes 23:16: the first block that failed.
    pub block: u64,
    /// Namespace, bytes 27:24.
    pub namespace: u32,
}

/// Transport Type (TRTYPE) of NVMe/TCP, in error entries and discovery entries.
pub const TRANSPORT_TCP: u8 = 0x03;

impl ErrorEntry {
    /// The entry's bytes. Parameter Error Location is FFFFh: it names no single field.
    pub fn encode(&self) -> [u8; ERROR_ENTRY_SIZE] {
        let mut bytes = [0; ERROR_ENTRY_SIZE];
        put(&mut bytes, 0, self.error_count.to_le_bytes());
        put(&mut bytes, 8, self.queue_id.to_le_bytes());
        put(&mut bytes, 10, self.command_id.to_le_bytes());
        put(&mut bytes, 12, self.status.to_field().to_le_bytes());
        put(&mut bytes, 14, u16::MAX.to_le_bytes());
        put(&mut bytes, 16, self.block.to_le_bytes());
        put(&mut bytes, 24, self.namespace.to_le_bytes());
        bytes[29] = TRANSPORT_TCP;
        bytes
    }
}

/// Bytes of the SMART / Health Information page.
pub const HEALTH_SIZE: usize = 512;

/// SMART / Health Information (LID 02h, Base 5.16.1.3). What a volume of software has no part of
/// (temperature, spare, wear) reads as unremarkable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Critical Warning bit 3: the media is read-only.
    pub read_only: bool,
    /// Data Units Read, bytes 47:32, in bytes here; thousands of 512 bytes, rounded up, on the wire.
    pub bytes_read: u64,
    /// Data Units Written, bytes 63:48, likewise.
    pub bytes_written: u64,
    /// Host Read Commands, bytes 79:64; Compare counts as well.
    pub read_commands: u64,
    /// Host Write Commands, bytes 95:80.
    pub write_commands: u64,
    /// Controller Busy Time, bytes 111:96, in minutes.
    pub busy_minutes: u64,
    /// Power Cycles, bytes 127:112: how often the subsystem was started.
    pub power_cycles: u64,
    /// Power On Hours, bytes 143:128.
    pub power_on_hours: u64,
    /// Unsafe Shutdowns, bytes 159:144.
    pub unsafe_shutdowns: u64,
    /// Media and Data Integrity Errors, bytes 175:160.
    pub media_errors: u64,
    /// Number of Error Information Log Entries, bytes 191:176, over the life of the controller.
    pub error_log_entries: u64,
}

/// Available Spare and its threshold, in percent.
const SPARE_PERCENT: [u8; 2] = [100, 10];

impl Health {
    /// The page's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = alloc::vec![0; HEALTH_SIZE];
        bytes[0] = u8::from(self.read_only) << 3;
        put(&mut bytes, 3, SPARE_PERCENT);
        let counters = [
            self.bytes_read.div_ceil(512_000),
            self.bytes_written.div_ceil(512_000),
            self.read_commands,
            self.write_commands,
            self.busy_minutes,
            self.power_cycles,
            self.power_on_hours,
            self.unsafe_shutdowns,
            self.media_errors,
            self.error_log_entries,
        ];
        // Ten 128-bit counters from byte 32 on.
        for (index, counter) in counters.into_iter().enumerate() {
            put(&mut bytes, 32 + 16 * index, counter.to_le_bytes());
        }
        bytes
    }
}

/// Firmware Slot Information (LID 03h, Base 5.16.1.4): slot 1 active, holding `revision`.
pub fn encode_firmware(revision: &str) -> Vec<u8> {
    let mut bytes = alloc::vec![0; 512];
    bytes[0] = 1;
    put_padded(&mut bytes, 8, 8, revision);
    bytes
}

/// Bit of a Commands Supported and Effects entry: supported (CSUPP).
const SUPPORTED: u32 = 1 << 0;
/// Bit of a Commands Supported and Effects entry: changes logical block content (LBCC).
const CHANGES_CONTENT: u32 = 1 << 1;

/// Commands Supported and Effects (LID 05h, Base 5.16.1.6): admin commands from byte 0, I/O commands
/// from byte 1024, a dword an opcode. `writes` are the I/O commands that change content.
pub fn encode_effects(admin: &[u8], reads: &[u8], writes: &[u8]) -> Vec<u8> {
    let mut bytes = alloc::vec![0; 4096];
    let mut set = |base: usize, opcodes: &[u8], effects: u32| {
        for opcode in opcodes {
            put(&mut bytes, base + 4 * usize::from(*opcode), effects.to_le_bytes());
        }
    };
    set(0, admin, SUPPORTED);
    set(1024, reads, SUPPORTED);
    set(1024, writes, SUPPORTED | CHANGES_CONTENT);
    bytes
}

/// Asymmetric namespace access state (Base 8.1.1): what this path can do for a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AnaState {
    /// 01h: the path to use.
    Optimized = 0x01,
    /// 02h: works, another path is better.
    NonOptimized = 0x02,
    /// 03h: cannot do I/O now; the host takes another path and tries again.
    Inaccessible = 0x03,
    /// 04h: will never do I/O again.
    PersistentLoss = 0x04,
    /// 0Fh: about to change.
    Change = 0x0f,
}

impl AnaState {
    /// The status of I/O commands on a path in this state, if they are refused.
    pub fn refusal(self) -> Option<Status> {
        match self {
            Self::Optimized | Self::NonOptimized => None,
            Self::Inaccessible => Some(Status::AnaInaccessible),
            Self::PersistentLoss => Some(Status::AnaPersistentLoss),
            Self::Change => Some(Status::AnaTransition),
        }
    }
}

/// One group of the ANA page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnaGroup {
    /// ANA Group ID, bytes 3:0.
    pub group: u32,
    /// Change Count, bytes 15:8.
    pub change_count: u64,
    /// ANA State, bits 3:0 of byte 16.
    pub state: AnaState,
    /// Namespace identifiers, from byte 32; ascending.
    pub namespaces: Vec<u32>,
}

/// Asymmetric Namespace Access (LID 0Ch, Base 5.16.1.13).
pub fn encode_ana(change_count: u64, groups: &[AnaGroup], groups_only: bool) -> Vec<u8> {
    let mut bytes = alloc::vec![0; 16];
    put(&mut bytes, 0, change_count.to_le_bytes());
    put(&mut bytes, 8, (groups.len() as u16).to_le_bytes());
    for group in groups {
        let namespaces = if groups_only { &[][..] } else { &group.namespaces };
        let mut descriptor = [0; 32];
        put(&mut descriptor, 0, group.group.to_le_bytes());
        put(&mut descriptor, 4, (namespaces.len() as u32).to_le_bytes());
        put(&mut descriptor, 8, group.change_count.to_le_bytes());
        descriptor[16] = group.state as u8;
        bytes.extend_from_slice(&descriptor);
        for namespace in namespaces {
            bytes.extend_from_slice(&namespace.to_le_bytes());
        }
    }
    bytes
}

/// The groups of an ANA page and its change count; `None` if it is cut short or names an unknown state.
pub fn parse_ana(bytes: &[u8]) -> Option<(u64, Vec<AnaGroup>)> {
    let (header, mut rest) = bytes.split_at_checked(16)?;
    let mut groups = Vec::new();
    for _ in 0..u32_at(header, 8) & 0xffff {
        let (descriptor, tail) = rest.split_at_checked(32)?;
        let size = usize::try_from(u32_at(descriptor, 4)).ok()?.checked_mul(4)?;
        let (list, next) = tail.split_at_checked(size)?;
        groups.push(AnaGroup {
            group: u32_at(descriptor, 0),
            change_count: u64_at(descriptor, 8),
            state: match descriptor[16] & 0xf {
                0x01 => AnaState::Optimized,
                0x02 => AnaState::NonOptimized,
                0x03 => AnaState::Inaccessible,
                0x04 => AnaState::PersistentLoss,
                0x0f => AnaState::Change,
                _ => return None,
            },
            namespaces: list.chunks_exact(4).map(|field| u32_at(field, 0)).collect(),
        });
        rest = next;
    }
    Some((u64_at(header, 0), groups))
}

/// Completion result (dword 0) of an Asynchronous Event Request (Base 5.2.1): event type in bits
/// 2:0, information in bits 15:8, the page to read in bits 23:16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Namespace Attribute Changed (notice 00h), page 04h.
    NamespaceChanged,
    /// Asymmetric Namespace Access Change (notice 03h), page 0Ch.
    AnaChanged,
    /// Discovery Log Page Change (notice F0h), page 70h.
    DiscoveryChanged,
}

impl Notice {
    /// Dword 0 of the completion.
    pub fn to_result(self) -> u64 {
        match self {
            Self::NamespaceChanged => 0x0004_0002,
            Self::AnaChanged => 0x000c_0302,
            Self::DiscoveryChanged => 0x0070_f002,
        }
    }

    /// The notice in a completion's dword 0, if it is one of ours.
    pub fn from_result(result: u64) -> Option<Self> {
        [Self::NamespaceChanged, Self::AnaChanged, Self::DiscoveryChanged]
            .into_iter()
            .find(|notice| notice.to_result() == result & 0x00ff_ff07)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::opcode;

    /// Base 5.16: page 0Ch, RGO, RAE, 0x2_0001 dwords from byte 0x1_0000_0010.
    #[test]
    fn get_log_page_dwords() {
        let mut entry = Submission::new(opcode::GET_LOG_PAGE, 0);
        entry.set_dword(10, 0x0000_810c);
        entry.set_dword(11, 0x0000_0002);
        entry.set_dword(12, 0x0000_0010);
        entry.set_dword(13, 0x0000_0001);
        let command = GetLogPage::parse(&entry);
        assert_eq!(
            command,
            GetLogPage {
                page: ANA,
                parameter: 1,
                retain_event: true,
                length: 0x8_0004,
                offset: 0x1_0000_0010,
                offset_is_index: false,
            }
        );
        let mut again = Submission::new(opcode::GET_LOG_PAGE, 0);
        command.encode(&mut again);
        assert_eq!(again, entry);
    }

    /// Base 5.16.1.2.
    #[test]
    fn error_entry_bytes() {
        let entry = ErrorEntry {
            error_count: 3,
            queue_id: 1,
            command_id: 0x0102,
            status: Status::LbaOutOfRange,
            block: 0x0a0b_0c0d,
            namespace: 1,
        };
        let expected = [
            3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 1, 0x00, 0x81, 0xff, 0xff, 0x0d, 0x0c, 0x0b, 0x0a, 0, 0, 0, 0, 1, 0, 0, 0,
            0, 3, 0, 0,
        ];
        assert_eq!(entry.encode()[..32], expected);
    }

    /// Base 5.16.1.3.
    #[test]
    fn health_counters_stand_in_their_128_bit_fields() {
        let health = Health {
            read_only: true,
            bytes_read: 512_001,
            bytes_written: 512_000,
            read_commands: 3,
            write_commands: 4,
            busy_minutes: 5,
            power_cycles: 6,
            power_on_hours: 7,
            unsafe_shutdowns: 8,
            media_errors: 9,
            error_log_entries: 10,
        };
        let bytes = health.encode();
        assert_eq!(bytes.len(), 512);
        assert_eq!(bytes[..6], [0x08, 0, 0, 100, 10, 0]);
        let counters: Vec<u8> = (32..192).step_by(16).map(|offset| bytes[offset]).collect();
        assert_eq!(counters, [2, 1, 3, 4, 5, 6, 7, 8, 9, 10]);
    }

    /// Base 5.16.1.4, 5.16.1.6.
    #[test]
    fn firmware_and_effects() {
        let firmware = encode_firmware("0.1.0");
        assert_eq!(firmware[..16], *b"\x01\0\0\0\0\0\0\x000.1.0   ");
        let effects = encode_effects(&[0x06], &[0x02], &[0x01]);
        assert_eq!(effects[4 * 6..4 * 6 + 4], [1, 0, 0, 0]);
        assert_eq!(effects[1024 + 4..1024 + 12], [3, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(effects.iter().map(|byte| u32::from(*byte)).sum::<u32>(), 5);
    }

    /// Base 5.16.1.13.
    #[test]
    fn ana_page_bytes() {
        let groups =
            [AnaGroup { group: 1, change_count: 7, state: AnaState::Inaccessible, namespaces: alloc::vec![1, 2] }];
        let bytes = encode_ana(9, &groups, false);
        let expected = [
            9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0,
        ];
        assert_eq!(bytes, expected);
        assert_eq!(parse_ana(&bytes), Some((9, groups.to_vec())));
        assert_eq!(encode_ana(9, &groups, true).len(), 48);
        for length in 0..bytes.len() {
            assert_eq!(parse_ana(&bytes[..length]), None, "cut at {length}");
        }
    }

    /// Base 5.2.1.
    #[test]
    fn notices() {
        for notice in [Notice::NamespaceChanged, Notice::AnaChanged, Notice::DiscoveryChanged] {
            assert_eq!(Notice::from_result(notice.to_result()), Some(notice));
        }
        assert_eq!(Notice::from_result(0x0004_0002), Some(Notice::NamespaceChanged));
        assert_eq!(Notice::from_result(0x0002_0101), None);
    }
}
