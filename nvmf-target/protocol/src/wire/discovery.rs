//! The Discovery log page (LID 70h, Base 5.16.1.23).

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::bytes::{put, put_padded, put_terminated, u16_at, u64_at};
use super::fabrics::{CONTROLLER_ANY, NQN_FIELD_SIZE};
use super::log_page::TRANSPORT_TCP;

/// Bytes of the page's header, and of each entry.
pub const ENTRY_SIZE: usize = 1024;

/// Subsystem Type (SUBTYPE) of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SubsystemType {
    /// 01h: another discovery subsystem.
    Referral = 1,
    /// 02h: an NVM subsystem.
    Nvm = 2,
    /// 03h: the discovery subsystem that answers.
    CurrentDiscovery = 3,
}

/// One entry of the page (Base 5.16.1.23): a subsystem and one address that reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryEntry {
    /// Subsystem Type (SUBTYPE), byte 2.
    pub subsystem_type: SubsystemType,
    /// Port ID (PORTID), bytes 5:4: the same for entries of one port.
    pub port_id: u16,
    /// Admin Max SQ Size (ASQSZ), bytes 9:8.
    pub admin_queue_entries: u16,
    /// NVM Subsystem Qualified Name (SUBNQN), bytes 511:256.
    pub subsystem_nqn: String,
    /// Transport Address (TRADDR), bytes 767:512, and Service Identifier (TRSVCID), bytes 63:32.
    pub address: SocketAddr,
}

/// Address Family (ADRFAM), byte 1.
const IPV4: u8 = 1;
/// Address Family (ADRFAM), byte 1.
const IPV6: u8 = 2;
/// Transport Requirements (TREQ), byte 3: no secure channel (10b), SQ flow control may be turned off (bit 2).
const REQUIREMENTS: u8 = 1 << 2 | 0b10;

/// The whole page: a header with generation counter (GENCTR), number of records (NUMREC) and record
/// format 0, then the entries.
pub fn encode_discovery(generation: u64, entries: &[DiscoveryEntry]) -> Vec<u8> {
    let mut bytes = alloc::vec![0; ENTRY_SIZE * (1 + entries.len())];
    put(&mut bytes, 0, generation.to_le_bytes());
    put(&mut bytes, 8, (entries.len() as u64).to_le_bytes());
    for (entry, field) in entries.iter().zip(bytes[ENTRY_SIZE..].chunks_exact_mut(ENTRY_SIZE)) {
        encode_entry(entry, field);
    }
    bytes
}

fn encode_entry(entry: &DiscoveryEntry, bytes: &mut [u8]) {
    bytes[0] = TRANSPORT_TCP;
    bytes[1] = if entry.address.is_ipv4() { IPV4 } else { IPV6 };
    bytes[2] = entry.subsystem_type as u8;
    bytes[3] = REQUIREMENTS;
    put(bytes, 4, entry.port_id.to_le_bytes());
    put(bytes, 6, CONTROLLER_ANY.to_le_bytes());
    put(bytes, 8, entry.admin_queue_entries.to_le_bytes());
    put_padded(bytes, 32, 32, &entry.address.port().to_string());
    put_terminated(bytes, 256, NQN_FIELD_SIZE, &entry.subsystem_nqn);
    put_padded(bytes, 512, 256, &entry.address.ip().to_string());
    // TSAS (from byte 768): SECTYPE 0, no security.
}

/// The page's generation counter and number of records.
pub fn parse_discovery_header(bytes: &[u8; ENTRY_SIZE]) -> (u64, u64) {
    (u64_at(bytes, 0), u64_at(bytes, 8))
}

/// Reads one entry; `None` if it is not of an IP address over TCP or of no known type.
pub fn parse_discovery_entry(bytes: &[u8; ENTRY_SIZE]) -> Option<DiscoveryEntry> {
    if bytes[0] != TRANSPORT_TCP {
        return None;
    }
    let subsystem_type = match bytes[2] {
        1 => SubsystemType::Referral,
        2 => SubsystemType::Nvm,
        3 => SubsystemType::CurrentDiscovery,
        _ => return None,
    };
    let port = text(&bytes[32..64])?.parse().ok()?;
    let ip = text(&bytes[512..768])?.parse().ok()?;
    Some(DiscoveryEntry {
        subsystem_type,
        port_id: u16_at(bytes, 4),
        admin_queue_entries: u16_at(bytes, 8),
        subsystem_nqn: text(&bytes[256..512])?.to_string(),
        address: SocketAddr::new(ip, port),
    })
}

fn text(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    Some(core::str::from_utf8(&field[..end]).ok()?.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Base 5.16.1.23.
    #[test]
    fn page_bytes() {
        let entry = DiscoveryEntry {
            subsystem_type: SubsystemType::Nvm,
            port_id: 0x0102,
            admin_queue_entries: 32,
            subsystem_nqn: "nqn.2026-01.io.ashlar:a".into(),
            address: "127.0.0.1:4420".parse().unwrap(),
        };
        let bytes = encode_discovery(5, core::slice::from_ref(&entry));
        assert_eq!(bytes.len(), 2048);
        assert_eq!(bytes[..18], [5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let record: &[u8; ENTRY_SIZE] = bytes[1024..].try_into().unwrap();
        assert_eq!(record[..12], [3, 1, 2, 6, 2, 1, 0xff, 0xff, 32, 0, 0, 0]);
        assert_eq!(record[32..40], *b"4420    ");
        assert_eq!(record[256..280], *b"nqn.2026-01.io.ashlar:a\0");
        assert_eq!(record[512..524], *b"127.0.0.1   ");
        assert_eq!(record[768..], [0; 256]);
        assert_eq!(parse_discovery_entry(record), Some(entry));
    }

    #[test]
    fn an_ipv6_address_has_its_own_family() {
        let entry = DiscoveryEntry {
            subsystem_type: SubsystemType::CurrentDiscovery,
            port_id: 1,
            admin_queue_entries: 32,
            subsystem_nqn: "nqn.2014-08.org.nvmexpress.discovery".into(),
            address: "[::1]:8009".parse().unwrap(),
        };
        let bytes = encode_discovery(0, core::slice::from_ref(&entry));
        let record: &[u8; ENTRY_SIZE] = bytes[1024..].try_into().unwrap();
        assert_eq!(record[..3], [3, 2, 3]);
        assert_eq!(record[512..516], *b"::1 ");
        assert_eq!(parse_discovery_entry(record), Some(entry));
    }

    #[test]
    fn damaged_entries_are_none() {
        assert_eq!(parse_discovery_entry(&[0; ENTRY_SIZE]), None);
        assert_eq!(parse_discovery_entry(&[3; ENTRY_SIZE]), None);
        assert_eq!(parse_discovery_entry(&[0xff; ENTRY_SIZE]), None);
    }
}
