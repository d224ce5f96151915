//! Standard INQUIRY data and vital product data (VPD).

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::bytes::{padded, put};
use crate::command::COMPARE_AND_WRITE_MAX;
use crate::copy;
use crate::ports::Port;
use crate::unit::Medium;

/// T10 VENDOR IDENTIFICATION.
pub const VENDOR: &str = "ASHLAR";
/// PRODUCT IDENTIFICATION.
pub const PRODUCT: &str = "Volume";

/// VERSION: SPC-4.
const VERSION: u8 = 0x06;
/// VERSION DESCRIPTORS: SAM-5, SPC-4, SBC-3, iSCSI (SPC table 144), no version claimed of each.
const VERSIONS: [u16; 4] = [0x00a0, 0x0460, 0x04c0, 0x0960];

/// Who the unit is. Derives from the volume's UUID and never changes (I37).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The volume's UUID.
    pub uuid: [u8; 16],
    /// PRODUCT SERIAL NUMBER, ASCII.
    pub serial: String,
    /// PRODUCT REVISION LEVEL, at most four ASCII characters.
    pub revision: String,
    /// The target's name: its iSCSI name.
    pub target: String,
}

impl Identity {
    /// The NAA designator: Locally Assigned, 60 bits of the volume's UUID (SPC 7.8.6.6.4). The others need a company
    /// identifier of the IEEE's, which this project does not have.
    pub fn naa(&self) -> [u8; 8] {
        let mut naa = [0; 8];
        // The last half of a random UUID is random but for its first two bits, which the type of the designator replaces.
        naa.copy_from_slice(&self.uuid[8..]);
        naa[0] = 0x30 | naa[0] & 0x0f;
        naa
    }
}

/// Standard INQUIRY data (SPC 6.6.2).
pub(crate) fn standard(identity: &Identity) -> Vec<u8> {
    const LENGTH: usize = 74;
    let mut bytes = vec![0; LENGTH];
    // A direct access block device is connected, fixed medium.
    bytes[2] = VERSION;
    // HISUP; response data format 2.
    bytes[3] = 0x12;
    bytes[4] = (LENGTH - 5) as u8;
    // TPGS: implicit asymmetric access only; 3PC.
    bytes[5] = 0x10 | 0x08;
    // MULTIP: several ports.
    bytes[6] = 0x10;
    // CMDQUE.
    bytes[7] = 0x02;
    put(&mut bytes, 8, padded::<8>(VENDOR));
    put(&mut bytes, 16, padded::<16>(PRODUCT));
    put(&mut bytes, 32, padded::<4>(&identity.revision));
    for (index, version) in VERSIONS.into_iter().enumerate() {
        put(&mut bytes, 58 + 2 * index, version.to_be_bytes());
    }
    bytes
}

/// What INQUIRY says of a logical unit number where there is no unit (SPC 6.6.2: PERIPHERAL QUALIFIER 011b).
pub fn standard_of_nothing() -> Vec<u8> {
    let mut bytes = vec![0; 36];
    bytes[0] = 0x7f;
    bytes[2] = VERSION;
    bytes[3] = 0x02;
    bytes[4] = 36 - 5;
    put(&mut bytes, 8, padded::<8>(VENDOR));
    put(&mut bytes, 16, padded::<16>(PRODUCT));
    bytes
}

/// VPD pages, ascending (SPC 7.8).
const PAGES: [u8; 8] = [0x00, 0x80, 0x83, 0x86, 0x8f, 0xb0, 0xb1, 0xb2];

/// Vital product data page `code` as it is seen through `port`; none if it is not supported.
pub(crate) fn vital(code: u8, identity: &Identity, medium: &Medium, port: Port) -> Option<Vec<u8>> {
    let content = match code {
        0x00 => PAGES.to_vec(),
        0x80 => identity.serial.clone().into_bytes(),
        0x83 => identification(identity, port),
        0x86 => extended(),
        0x8f => copy::vital_content(),
        0xb0 => block_limits(medium),
        0xb1 => block_characteristics(),
        0xb2 => provisioning(),
        _ => return None,
    };
    let [high, low] = (content.len() as u16).to_be_bytes();
    let mut bytes = vec![0, code, high, low];
    bytes.extend(content);
    Some(bytes)
}

/// Device Identification (SPC 7.8.6).
fn identification(identity: &Identity, port: Port) -> Vec<u8> {
    const BINARY: u8 = 1;
    const ASCII: u8 = 2;
    const UTF8: u8 = 3;
    // ASSOCIATION in bits 5:4, DESIGNATOR TYPE in bits 3:0.
    const UNIT: u8 = 0x00;
    const PORT: u8 = 0x10;
    const DEVICE: u8 = 0x20;
    const ISCSI: u8 = 5;
    let mut bytes = Vec::new();
    let mut designator = |code_set: u8, kind: u8, value: &[u8]| {
        // PIV and the protocol where the designator is of a port or a device.
        let protocol = if kind & 0x30 == UNIT { 0 } else { ISCSI << 4 };
        let valid = if kind & 0x30 == UNIT { 0 } else { 0x80 };
        bytes.extend([protocol | code_set, valid | kind, 0, value.len() as u8]);
        bytes.extend(value);
    };
    let mut vendor_specific = padded::<8>(VENDOR).to_vec();
    vendor_specific.extend(identity.serial.bytes());
    let mut uuid = [0; 18];
    // Locally assigned UUID designator (SPC-5 7.7.6.13).
    uuid[0] = 0x10;
    uuid[2..].copy_from_slice(&identity.uuid);
    let mut relative_port = [0; 4];
    put(&mut relative_port, 2, port.relative.to_be_bytes());
    let mut group = [0; 4];
    put(&mut group, 2, port.group.to_be_bytes());

    designator(BINARY, UNIT | 0x3, &identity.naa());
    designator(ASCII, UNIT | 0x1, &vendor_specific);
    designator(BINARY, UNIT | 0xa, &uuid);
    designator(BINARY, PORT | 0x4, &relative_port);
    designator(BINARY, PORT | 0x5, &group);
    designator(UTF8, DEVICE | 0x8, &terminated(&identity.target));
    bytes
}

/// A SCSI name string: ended by zeroes up to a multiple of four bytes (SPC 7.8.6.11).
fn terminated(name: &str) -> Vec<u8> {
    // iSCSI names have at most 223 bytes (RFC 7143, 4.2.7.1): the length fits its field.
    let mut bytes: Vec<u8> = name.bytes().take(223).collect();
    bytes.resize(bytes.len() / 4 * 4 + 4, 0);
    bytes
}

/// Extended INQUIRY Data (SPC 7.8.7).
fn extended() -> Vec<u8> {
    let mut bytes = vec![0; 60];
    // SIMPSUP: simple task attribute. Head of queue and ordered ones are taken and treated as simple by nobody: HEADSUP and
    // ORDSUP are set because the transport keeps their order.
    bytes[1] = 0x07;
    // V_SUP: there is a volatile cache.
    bytes[2] = 0x01;
    // LUICLR: unit attentions of one I_T nexus are its own.
    bytes[3] = 0x01;
    bytes
}

/// Block Limits (SBC 6.5.3).
fn block_limits(medium: &Medium) -> Vec<u8> {
    let mut bytes = vec![0; 60];
    // WSNZ: WRITE SAME of no blocks is refused.
    bytes[0] = 0x01;
    bytes[1] = COMPARE_AND_WRITE_MAX as u8;
    put(&mut bytes, 2, (medium.allocation_blocks.min(0xffff) as u16).to_be_bytes());
    put(&mut bytes, 4, medium.transfer_max.to_be_bytes());
    // Optimal transfer length: what one command can have.
    put(&mut bytes, 8, medium.transfer_max.to_be_bytes());
    // Unmap any number of blocks, in as many descriptors as are parsed.
    put(&mut bytes, 16, u32::MAX.to_be_bytes());
    put(&mut bytes, 20, crate::provisioning::DESCRIPTORS_MAX.to_be_bytes());
    put(&mut bytes, 24, medium.allocation_blocks.to_be_bytes());
    // UGAVALID: the granularity counts from block 0.
    put(&mut bytes, 28, 0x8000_0000_u32.to_be_bytes());
    put(&mut bytes, 32, u64::from(medium.write_same_max).to_be_bytes());
    bytes
}

/// Block Device Characteristics (SBC 6.5.2): nothing rotates.
fn block_characteristics() -> Vec<u8> {
    let mut bytes = vec![0; 60];
    put(&mut bytes, 0, 1_u16.to_be_bytes());
    bytes
}

/// Logical Block Provisioning (SBC 6.5.4): LBPU, LBPWS, LBPWS10, LBPRZ; thin.
fn provisioning() -> Vec<u8> {
    vec![crate::log::THRESHOLD_EXPONENT, 0x80 | 0x40 | 0x20 | 0x04, 0x02, 0]
}

#[cfg(test)]
mod tests {
    use alloc::borrow::ToOwned;

    use super::*;

    fn identity() -> Identity {
        Identity {
            uuid: [0x11; 16],
            serial: "0123456789abcdef".to_owned(),
            revision: "0.1".to_owned(),
            target: "iqn.2026-11.io.ashlar:v".to_owned(),
        }
    }

    const PORT: Port = Port { relative: 3, group: 2 };

    #[test]
    fn standard_data_name_the_unit() {
        let bytes = standard(&identity());
        assert_eq!(bytes[..8], [0, 0, 6, 0x12, 69, 0x18, 0x10, 0x02]);
        assert_eq!(&bytes[8..36], b"ASHLAR  Volume          0.1 ");
        assert_eq!(bytes[58..66], [0x00, 0xa0, 0x04, 0x60, 0x04, 0xc0, 0x09, 0x60]);
        assert_eq!(standard_of_nothing()[0], 0x7f);
    }

    #[test]
    fn every_page_of_the_list_is_there_and_as_long_as_it_says() {
        for code in PAGES {
            let page = vital(code, &identity(), &Medium::EXAMPLE, PORT).unwrap();
            assert_eq!(page[1], code);
            assert_eq!(page.len(), 4 + usize::from(u16::from_be_bytes([page[2], page[3]])), "{code:#x}");
        }
        assert_eq!(vital(0x84, &identity(), &Medium::EXAMPLE, PORT), None);
    }

    #[test]
    fn designators_follow_each_other_to_the_end() {
        let page = vital(0x83, &identity(), &Medium::EXAMPLE, PORT).unwrap();
        let mut rest = &page[4..];
        let mut kinds = Vec::new();
        while let [_, kind, _, length, after @ ..] = rest {
            kinds.push(kind & 0x3f);
            rest = &after[usize::from(*length)..];
        }
        assert_eq!(kinds, [0x03, 0x01, 0x0a, 0x14, 0x15, 0x28]);
        assert_eq!(page[4..8], [0x01, 0x03, 0, 8]);
        assert_eq!(page[8], 0x31);
    }

    #[test]
    fn limits_are_those_of_the_medium() {
        let page = vital(0xb0, &identity(), &Medium::EXAMPLE, PORT).unwrap();
        assert_eq!(page.len(), 64);
        assert_eq!(page[4..12], [1, 255, 0, 8, 0, 0, 0x20, 0]);
        assert_eq!(page[20..24], [0xff; 4]);
    }
}
