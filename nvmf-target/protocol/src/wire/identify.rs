//! Data structures of the Identify command (Base 5.17.2, NVM 4.1.5).

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::bytes::{array_at, put, put_padded, put_terminated, u16_at, u32_at, u64_at};
use super::fabrics::NQN_FIELD_SIZE;

/// Bytes of each data structure that Identify returns.
pub const IDENTIFY_SIZE: usize = 4096;

/// Controller or Namespace Structure (CNS), CDW10 bits 7:0 (Base 5.17.1).
pub mod cns {
    /// Identify Namespace data structure of the NVM command set.
    pub const NAMESPACE: u8 = 0x00;
    /// Identify Controller data structure.
    pub const CONTROLLER: u8 = 0x01;
    /// Active Namespace ID list.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// Namespace Identification Descriptor list.
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// I/O Command Set specific Identify Namespace.
    pub const COMMAND_SET_NAMESPACE: u8 = 0x05;
    /// I/O Command Set specific Identify Controller.
    pub const COMMAND_SET_CONTROLLER: u8 = 0x06;
    /// Active Namespace ID list of one I/O command set.
    pub const COMMAND_SET_ACTIVE_NAMESPACES: u8 = 0x07;
    /// I/O Command Set Independent Identify Namespace.
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
    /// Identify I/O Command Set.
    pub const COMMAND_SETS: u8 = 0x1c;
}

/// Command Set Identifier (CSI) of the NVM command set.
pub const CSI_NVM: u8 = 0x00;

/// Controller Type (CNTRLTYPE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ControllerType {
    /// 1h: an I/O controller.
    Io = 1,
    /// 2h: a discovery controller.
    Discovery = 2,
}

/// Identify Controller (CNS 01h, Base 5.17.2.1): what varies between our controllers, and what a host needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifyController {
    /// Serial Number (SN), bytes 23:4, at most 20 ASCII characters.
    pub serial: String,
    /// Model Number (MN), bytes 63:24, at most 40 ASCII characters.
    pub model: String,
    /// Firmware Revision (FR), bytes 71:64, at most 8 ASCII characters.
    pub firmware: String,
    /// Controller Multi-Path I/O and Namespace Sharing Capabilities (CMIC), byte 76.
    pub multipath: u8,
    /// Maximum Data Transfer Size (MDTS), byte 77: 2^n pages of 4 KiB; 0 for no limit.
    pub max_transfer_shift: u8,
    /// Controller ID (CNTLID), bytes 79:78.
    pub controller_id: u16,
    /// Version (VER), bytes 83:80.
    pub version: u32,
    /// Optional Asynchronous Events Supported (OAES), bytes 95:92.
    pub events: u32,
    /// Controller Attributes (CTRATT), bytes 99:96.
    pub attributes: u32,
    /// Controller Type (CNTRLTYPE), byte 111.
    pub controller_type: ControllerType,
    /// Abort Command Limit (ACL), byte 258; counted from one here.
    pub abort_limit: u16,
    /// Asynchronous Event Request Limit (AERL), byte 259; counted from one here.
    pub event_request_limit: u16,
    /// Firmware Updates (FRMW), byte 260.
    pub firmware_updates: u8,
    /// Log Page Attributes (LPA), byte 261.
    pub log_page_attributes: u8,
    /// Error Log Page Entries (ELPE), byte 262; counted from one here.
    pub error_log_entries: u16,
    /// Total NVM Capacity (TNVMCAP), bytes 295:280, in bytes.
    pub capacity: u64,
    /// Keep Alive Support (KAS), bytes 321:320: granularity in 100 ms.
    pub keep_alive_granularity_100ms: u16,
    /// ANA Transition Time (ANATT), byte 342, in seconds.
    pub ana_transition_s: u8,
    /// Asymmetric Namespace Access Capabilities (ANACAP), byte 343.
    pub ana_capabilities: u8,
    /// ANA Group Identifier Maximum (ANAGRPMAX), bytes 347:344, and Number of ANA Group Identifiers
    /// (NANAGRPID), bytes 351:348.
    pub ana_groups: u32,
    /// Maximum Outstanding Commands (MAXCMD), bytes 515:514.
    pub max_commands: u16,
    /// Number of Namespaces (NN), bytes 519:516: the greatest valid namespace identifier.
    pub namespaces: u32,
    /// Optional NVM Command Support (ONCS), bytes 521:520.
    pub optional_commands: u16,
    /// Volatile Write Cache (VWC), byte 525.
    pub volatile_write_cache: u8,
    /// Atomic Write Unit Normal (AWUN), bytes 527:526, and Power Fail (AWUPF), bytes 529:528, in
    /// logical blocks; counted from one here.
    pub atomic_blocks: u32,
    /// SGL Support (SGLS), bytes 539:536.
    pub sgl_support: u32,
    /// NVM Subsystem NVMe Qualified Name (SUBNQN), bytes 1023:768.
    pub subsystem_nqn: String,
    /// I/O Queue Command Capsule Supported Size (IOCCSZ), bytes 1795:1792, in 16 bytes.
    pub command_capsule_16: u32,
    /// I/O Queue Response Capsule Supported Size (IORCSZ), bytes 1799:1796, in 16 bytes.
    pub response_capsule_16: u32,
}

/// CMIC: several ports (bit 0), several controllers (bit 1), ANA reporting (bit 3).
pub const CMIC_SHARED_WITH_ANA: u8 = 0b1011;
/// CTRATT: 128-bit host identifiers (bit 0), traffic based keep alive (bit 6).
pub const CTRATT: u32 = 1 << 0 | 1 << 6;
/// LPA: commands supported and effects (bit 1), extended data with offsets (bit 2).
pub const LPA: u8 = 1 << 1 | 1 << 2;
/// FRMW: one slot (bits 3:1), which is read-only (bit 0).
pub const FRMW_ONE_READ_ONLY_SLOT: u8 = 1 << 1 | 1;
/// ANACAP: optimized (bit 0), inaccessible (bit 2), change (bit 4), groups that never change (bit 6).
pub const ANACAP: u8 = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 6;
/// ONCS: Compare (bit 0), Dataset Management (bit 2), Write Zeroes (bit 3).
pub const ONCS: u16 = 1 << 0 | 1 << 2 | 1 << 3;
/// VWC: a write cache (bit 0), Flush of all namespaces at once not supported (bits 2:1 = 10b).
pub const VWC: u8 = 0b10 << 1 | 1;
/// SGLS: SGLs of any alignment (bits 1:0 = 01b), offsets in data blocks (bit 20), transport data blocks (bit 21).
pub const SGLS: u32 = 1 | 1 << 20 | 1 << 21;

impl IdentifyController {
    /// The 4096 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = alloc::vec![0; IDENTIFY_SIZE];
        self.encode_capabilities(&mut bytes);
        self.encode_admin_attributes(&mut bytes);
        self.encode_io_attributes(&mut bytes);
        bytes
    }

    /// Bytes 255:0, controller capabilities and features.
    fn encode_capabilities(&self, bytes: &mut [u8]) {
        put_padded(bytes, 4, 20, &self.serial);
        put_padded(bytes, 24, 40, &self.model);
        put_padded(bytes, 64, 8, &self.firmware);
        bytes[76] = self.multipath;
        bytes[77] = self.max_transfer_shift;
        put(bytes, 78, self.controller_id.to_le_bytes());
        put(bytes, 80, self.version.to_le_bytes());
        put(bytes, 92, self.events.to_le_bytes());
        put(bytes, 96, self.attributes.to_le_bytes());
        bytes[111] = self.controller_type as u8;
    }

    /// Bytes 511:256, admin command set attributes.
    fn encode_admin_attributes(&self, bytes: &mut [u8]) {
        bytes[258] = zero_based_u8(self.abort_limit);
        bytes[259] = zero_based_u8(self.event_request_limit);
        bytes[260] = self.firmware_updates;
        bytes[261] = self.log_page_attributes;
        bytes[262] = zero_based_u8(self.error_log_entries);
        put(bytes, 280, self.capacity.to_le_bytes());
        put(bytes, 320, self.keep_alive_granularity_100ms.to_le_bytes());
        bytes[342] = self.ana_transition_s;
        bytes[343] = self.ana_capabilities;
        put(bytes, 344, self.ana_groups.to_le_bytes());
        put(bytes, 348, self.ana_groups.to_le_bytes());
    }

    /// Bytes 2047:512, I/O command set and Fabrics attributes.
    fn encode_io_attributes(&self, bytes: &mut [u8]) {
        // SQES and CQES: entries of 2^6 and 2^4 bytes, required and greatest.
        bytes[512] = 0x66;
        bytes[513] = 0x44;
        put(bytes, 514, self.max_commands.to_le_bytes());
        put(bytes, 516, self.namespaces.to_le_bytes());
        put(bytes, 520, self.optional_commands.to_le_bytes());
        bytes[525] = self.volatile_write_cache;
        put(bytes, 526, zero_based_u16(self.atomic_blocks).to_le_bytes());
        put(bytes, 528, zero_based_u16(self.atomic_blocks).to_le_bytes());
        put(bytes, 536, self.sgl_support.to_le_bytes());
        put(bytes, 540, self.namespaces.to_le_bytes());
        put_terminated(bytes, 768, NQN_FIELD_SIZE, &self.subsystem_nqn);
        put(bytes, 1792, self.command_capsule_16.to_le_bytes());
        put(bytes, 1796, self.response_capsule_16.to_le_bytes());
        // MSDBD: one SGL descriptor a command; ICDOFF (1801:1800) and FCATT (1802, dynamic controllers) stay 0.
        bytes[1803] = 1;
    }

    /// Reads the fields from the 4096 bytes; text loses its padding.
    pub fn parse(bytes: &[u8; IDENTIFY_SIZE]) -> Self {
        Self {
            serial: text(&bytes[4..24]),
            model: text(&bytes[24..64]),
            firmware: text(&bytes[64..72]),
            multipath: bytes[76],
            max_transfer_shift: bytes[77],
            controller_id: u16_at(bytes, 78),
            version: u32_at(bytes, 80),
            events: u32_at(bytes, 92),
            attributes: u32_at(bytes, 96),
            controller_type: if bytes[111] == ControllerType::Discovery as u8 {
                ControllerType::Discovery
            } else {
                ControllerType::Io
            },
            abort_limit: u16::from(bytes[258]) + 1,
            event_request_limit: u16::from(bytes[259]) + 1,
            firmware_updates: bytes[260],
            log_page_attributes: bytes[261],
            error_log_entries: u16::from(bytes[262]) + 1,
            capacity: u64_at(bytes, 280),
            keep_alive_granularity_100ms: u16_at(bytes, 320),
            ana_transition_s: bytes[342],
            ana_capabilities: bytes[343],
            ana_groups: u32_at(bytes, 344),
            max_commands: u16_at(bytes, 514),
            namespaces: u32_at(bytes, 516),
            optional_commands: u16_at(bytes, 520),
            volatile_write_cache: bytes[525],
            atomic_blocks: u32::from(u16_at(bytes, 526)) + 1,
            sgl_support: u32_at(bytes, 536),
            subsystem_nqn: text(&bytes[768..1024]),
            command_capsule_16: u32_at(bytes, 1792),
            response_capsule_16: u32_at(bytes, 1796),
        }
    }
}

/// Identify Namespace (CNS 00h, NVM 4.1.5.1): one LBA format, no metadata, no protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentifyNamespace {
    /// Namespace Size (NSZE), bytes 7:0, and Capacity (NCAP), bytes 15:8, in logical blocks.
    pub blocks: u64,
    /// Namespace Utilization (NUSE), bytes 23:16, in logical blocks.
    pub used_blocks: u64,
    /// Namespace Features (NSFEAT) bit 0: thin provisioning.
    pub thin: bool,
    /// LBA Data Size (LBADS) of format 0, byte 130: log2 of the block size.
    pub block_shift: u8,
    /// Namespace Atomic Write Unit Normal (NAWUN), bytes 35:34, and Power Fail (NAWUPF), bytes 37:36, in
    /// logical blocks; counted from one here.
    pub atomic_blocks: u32,
    /// Preferred write and deallocate granularity and alignment (NPWG, NPWA, NPDG, NPDA, bytes 71:64),
    /// in logical blocks; counted from one here.
    pub preferred_blocks: u32,
    /// Namespace Optimal Write Size (NOWS), bytes 73:72, in logical blocks; counted from one here.
    pub optimal_write_blocks: u32,
    /// ANA Group Identifier (ANAGRPID), bytes 95:92.
    pub ana_group: u32,
    /// Namespace Globally Unique Identifier (NGUID), bytes 119:104, big-endian.
    pub nguid: [u8; 16],
}

/// NSFEAT: per-namespace atomics (bit 1), NGUID never reused (bit 3), preferred sizes valid (bit 4).
const NSFEAT: u8 = 1 << 1 | 1 << 3 | 1 << 4;
/// NMIC: the namespace may be attached to several controllers (bit 0).
const NMIC_SHARED: u8 = 1;
/// DLFEAT: deallocated blocks read as zeros (bits 2:0 = 001b), Write Zeroes may deallocate (bit 3).
const DLFEAT: u8 = 1 << 3 | 0b001;

impl IdentifyNamespace {
    /// The 4096 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = alloc::vec![0; IDENTIFY_SIZE];
        put(&mut bytes, 0, self.blocks.to_le_bytes());
        put(&mut bytes, 8, self.blocks.to_le_bytes());
        put(&mut bytes, 16, self.used_blocks.to_le_bytes());
        bytes[24] = NSFEAT | u8::from(self.thin);
        bytes[30] = NMIC_SHARED;
        bytes[33] = DLFEAT;
        let atomic = zero_based_u16(self.atomic_blocks).to_le_bytes();
        put(&mut bytes, 34, atomic);
        put(&mut bytes, 36, atomic);
        let preferred = zero_based_u16(self.preferred_blocks).to_le_bytes();
        for offset in [64, 66, 68, 70] {
            put(&mut bytes, offset, preferred);
        }
        put(&mut bytes, 72, zero_based_u16(self.optimal_write_blocks).to_le_bytes());
        put(&mut bytes, 92, self.ana_group.to_le_bytes());
        put(&mut bytes, 104, self.nguid);
        bytes[130] = self.block_shift;
        bytes
    }

    /// Reads the fields from the 4096 bytes. `None` if the namespace is not one this crate can use: an
    /// inactive one (all zero), with metadata, or with blocks of other than 512 bytes to 64 KiB.
    pub fn parse(bytes: &[u8; IDENTIFY_SIZE]) -> Option<Self> {
        let format = usize::from(bytes[26] & 0xf | bytes[26] >> 1 & 0x30);
        let offset = 128 + 4 * format;
        let (metadata_size, block_shift) = (u16_at(bytes, offset), bytes[offset + 2]);
        if u64_at(bytes, 0) == 0 || metadata_size != 0 || !(9..=16).contains(&block_shift) {
            return None;
        }
        Some(Self {
            blocks: u64_at(bytes, 0),
            used_blocks: u64_at(bytes, 16),
            thin: bytes[24] & 1 != 0,
            block_shift,
            atomic_blocks: u32::from(u16_at(bytes, 34)) + 1,
            preferred_blocks: u32::from(u16_at(bytes, 64)) + 1,
            optimal_write_blocks: u32::from(u16_at(bytes, 72)) + 1,
            ana_group: u32_at(bytes, 92),
            nguid: array_at(bytes, 104),
        })
    }
}

/// I/O Command Set Independent Identify Namespace (CNS 08h, Base 5.17.2.8).
pub fn encode_independent_namespace(ana_group: u32) -> Vec<u8> {
    let mut bytes = alloc::vec![0; IDENTIFY_SIZE];
    // NSFEAT: identifiers never reused (bit 3).
    bytes[0] = 1 << 3;
    bytes[1] = NMIC_SHARED;
    put(&mut bytes, 4, ana_group.to_le_bytes());
    // NSTAT: Namespace Ready (NRDY, bit 0).
    bytes[14] = 1;
    bytes
}

/// Limits of I/O commands: I/O Command Set specific Identify Controller (CNS 06h, NVM 4.1.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandLimits {
    /// Write Zeroes Size Limit (WZSL), byte 1: 2^n pages of 4 KiB; 0 for no limit.
    pub write_zeroes_shift: u8,
    /// Dataset Management Ranges Limit (DMRL), byte 3; 0 for no limit.
    pub dataset_ranges: u8,
    /// Dataset Management Range Size Limit (DMRSL), bytes 7:4, in logical blocks; 0 for no limit.
    pub dataset_range_blocks: u32,
    /// Dataset Management Size Limit (DMSL), bytes 15:8, in logical blocks; 0 for no limit.
    pub dataset_blocks: u64,
}

impl CommandLimits {
    /// The 4096 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = alloc::vec![0; IDENTIFY_SIZE];
        bytes[1] = self.write_zeroes_shift;
        bytes[3] = self.dataset_ranges;
        put(&mut bytes, 4, self.dataset_range_blocks.to_le_bytes());
        put(&mut bytes, 8, self.dataset_blocks.to_le_bytes());
        bytes
    }
}

/// Identify I/O Command Set (CNS 1Ch, Base 5.17.2): combination 0 is the NVM command set alone.
pub fn encode_command_sets() -> Vec<u8> {
    let mut bytes = alloc::vec![0; IDENTIFY_SIZE];
    bytes[0] = 1;
    bytes
}

/// A namespace list (CNS 02h and 07h; log page 04h): identifiers in ascending order, at most 1024.
pub fn encode_namespace_list(namespaces: impl Iterator<Item = u32>) -> Vec<u8> {
    let mut bytes = alloc::vec![0; IDENTIFY_SIZE];
    for (field, namespace) in bytes.chunks_exact_mut(4).zip(namespaces) {
        field.copy_from_slice(&namespace.to_le_bytes());
    }
    bytes
}

/// The identifiers in a namespace list.
pub fn parse_namespace_list(bytes: &[u8; IDENTIFY_SIZE]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|field| u32_at(field, 0)).take_while(|namespace| *namespace != 0).collect()
}

/// Namespace Identification Descriptor list (CNS 03h, Base 5.17.2.3): NGUID, UUID and command set.
pub fn encode_namespace_descriptors(nguid: &[u8; 16], uuid: &[u8; 16]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(IDENTIFY_SIZE);
    let mut descriptor = |kind: u8, identifier: &[u8]| {
        bytes.extend_from_slice(&[kind, identifier.len() as u8, 0, 0]);
        bytes.extend_from_slice(identifier);
    };
    descriptor(0x02, nguid);
    descriptor(0x03, uuid);
    descriptor(0x04, &[CSI_NVM]);
    bytes.resize(IDENTIFY_SIZE, 0);
    bytes
}

/// The UUID in a Namespace Identification Descriptor list, if there is one.
pub fn find_uuid(bytes: &[u8; IDENTIFY_SIZE]) -> Option<[u8; 16]> {
    let mut rest = &bytes[..];
    while let [kind, length, _, _, tail @ ..] = rest {
        let (identifier, next) = tail.split_at_checked(usize::from(*length))?;
        if *length == 0 {
            return None;
        }
        if *kind == 0x03 {
            return identifier.try_into().ok();
        }
        rest = next;
    }
    None
}

fn zero_based_u8(count: u16) -> u8 {
    count.saturating_sub(1).min(0xff) as u8
}

fn zero_based_u16(count: u32) -> u16 {
    count.saturating_sub(1).min(0xffff) as u16
}

/// ASCII text of a field without its padding; bytes that are none become U+FFFD.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(bytes: &[u8]) -> &[u8; IDENTIFY_SIZE] {
        bytes.try_into().expect("Identify structures have 4096 bytes")
    }

    fn controller() -> IdentifyController {
        IdentifyController {
            serial: "0123456789abcdef0123".into(),
            model: "Ashlar Volume".into(),
            firmware: "0.1.0".into(),
            multipath: CMIC_SHARED_WITH_ANA,
            max_transfer_shift: 8,
            controller_id: 0x1234,
            version: 0x0002_0000,
            events: 0x0000_0900,
            attributes: CTRATT,
            controller_type: ControllerType::Io,
            abort_limit: 4,
            event_request_limit: 8,
            firmware_updates: FRMW_ONE_READ_ONLY_SLOT,
            log_page_attributes: LPA,
            error_log_entries: 64,
            capacity: 0x0102_0304_0506,
            keep_alive_granularity_100ms: 10,
            ana_transition_s: 10,
            ana_capabilities: ANACAP,
            ana_groups: 32,
            max_commands: 1024,
            namespaces: 32,
            optional_commands: ONCS,
            volatile_write_cache: VWC,
            atomic_blocks: 8,
            sgl_support: SGLS,
            subsystem_nqn: "nqn.2026-01.io.ashlar:test".into(),
            command_capsule_16: 1028,
            response_capsule_16: 1,
        }
    }

    /// Base 5.17.2.1, field by field: offset, bytes.
    #[test]
    fn controller_fields_at_the_offsets_of_the_figure() {
        let bytes = controller().encode();
        let expected: &[(usize, &[u8])] = &[
            (0, &[0; 4]),
            (4, b"0123456789abcdef0123"),
            (24, b"Ashlar Volume                           "),
            (64, b"0.1.0   "),
            (76, &[0x0b]),
            (77, &[8]),
            (78, &[0x34, 0x12]),
            (80, &[0, 0, 2, 0]),
            (92, &[0, 0x09, 0, 0]),
            (96, &[0x41, 0, 0, 0]),
            (111, &[1]),
            (256, &[0, 0]),
            (258, &[3]),
            (259, &[7]),
            (260, &[0x03]),
            (261, &[0x06]),
            (262, &[63]),
            (280, &[6, 5, 4, 3, 2, 1, 0, 0]),
            (320, &[10, 0]),
            (342, &[10]),
            (343, &[0x55]),
            (344, &[32, 0, 0, 0]),
            (348, &[32, 0, 0, 0]),
            (512, &[0x66]),
            (513, &[0x44]),
            (514, &[0x00, 0x04]),
            (516, &[32, 0, 0, 0]),
            (520, &[0x0d, 0]),
            (522, &[0, 0]),
            (525, &[0x05]),
            (526, &[7, 0]),
            (528, &[7, 0]),
            (536, &[0x01, 0, 0x30, 0]),
            (540, &[32, 0, 0, 0]),
            (768, b"nqn.2026-01.io.ashlar:test\0"),
            (1792, &[0x04, 0x04, 0, 0]),
            (1796, &[1, 0, 0, 0]),
            (1800, &[0, 0]),
            (1802, &[0]),
            (1803, &[1]),
        ];
        for (offset, field) in expected {
            assert_eq!(&bytes[*offset..offset + field.len()], *field, "byte {offset}");
        }
        assert_eq!(IdentifyController::parse(page(&bytes)), controller());
    }

    fn namespace() -> IdentifyNamespace {
        IdentifyNamespace {
            blocks: 0x0002_0000,
            used_blocks: 0x100,
            thin: true,
            block_shift: 9,
            atomic_blocks: 8,
            preferred_blocks: 8,
            optimal_write_blocks: 128,
            ana_group: 1,
            nguid: *b"\x01\x23\x45\x67\x89\xab\xcd\xef\xfe\xdc\xba\x98\x76\x54\x32\x10",
        }
    }

    /// NVM 4.1.5.1.
    #[test]
    fn namespace_fields_at_the_offsets_of_the_figure() {
        let bytes = namespace().encode();
        let expected: &[(usize, &[u8])] = &[
            (0, &[0, 0, 2, 0, 0, 0, 0, 0]),
            (8, &[0, 0, 2, 0, 0, 0, 0, 0]),
            (16, &[0, 1, 0, 0, 0, 0, 0, 0]),
            (24, &[0x1b]),
            (25, &[0]),
            (26, &[0]),
            (30, &[1]),
            (33, &[0x09]),
            (34, &[7, 0, 7, 0]),
            (64, &[7, 0, 7, 0, 7, 0, 7, 0]),
            (72, &[127, 0]),
            (92, &[1, 0, 0, 0]),
            (104, &[0x01, 0x23, 0x45, 0x67]),
            (120, &[0; 8]),
            (128, &[0, 0, 9, 0]),
        ];
        for (offset, field) in expected {
            assert_eq!(&bytes[*offset..offset + field.len()], *field, "byte {offset}");
        }
        assert_eq!(IdentifyNamespace::parse(page(&bytes)), Some(namespace()));
    }

    #[test]
    fn namespaces_that_cannot_be_used_are_refused() {
        assert_eq!(IdentifyNamespace::parse(&[0; IDENTIFY_SIZE]), None, "inactive");
        let mut bytes = namespace().encode();
        bytes[128] = 8;
        assert_eq!(IdentifyNamespace::parse(page(&bytes)), None, "metadata");
        bytes[128] = 0;
        bytes[130] = 63;
        assert_eq!(IdentifyNamespace::parse(page(&bytes)), None, "2^63-byte blocks");
        bytes[26] = 0x7f;
        assert_eq!(IdentifyNamespace::parse(page(&bytes)), None, "an empty format 63");
    }

    /// Base 5.17.2, NVM 4.1.5.
    #[test]
    fn small_structures() {
        let descriptors = encode_namespace_descriptors(&[0xaa; 16], &[0xbb; 16]);
        assert_eq!(descriptors[..4], [0x02, 0x10, 0, 0]);
        assert_eq!(descriptors[20..24], [0x03, 0x10, 0, 0]);
        assert_eq!(descriptors[40..46], [0x04, 0x01, 0, 0, 0x00, 0]);
        assert_eq!(find_uuid(page(&descriptors)), Some([0xbb; 16]));
        assert_eq!(find_uuid(&[0xff; IDENTIFY_SIZE]), None);
        assert_eq!(find_uuid(&[0; IDENTIFY_SIZE]), None);

        let independent = encode_independent_namespace(5);
        assert_eq!(independent[..16], [8, 1, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);

        let limits = CommandLimits {
            write_zeroes_shift: 9,
            dataset_ranges: 16,
            dataset_range_blocks: 0x0102_0304,
            dataset_blocks: 0x0506,
        };
        assert_eq!(limits.encode()[..16], [0, 9, 0, 16, 4, 3, 2, 1, 6, 5, 0, 0, 0, 0, 0, 0]);

        let list = encode_namespace_list([1, 2, 0x0304].into_iter());
        assert_eq!(list[..16], [1, 0, 0, 0, 2, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0]);
        assert_eq!(parse_namespace_list(page(&list)), [1, 2, 0x0304]);
    }
}
