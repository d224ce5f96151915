//! Names of initiator ports: iSCSI TransportIDs (SPC 7.6.4.6).

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use crate::bytes::{put, u16_at};

/// FORMAT CODE 01b: with the initiator session identifier (ISID); PROTOCOL IDENTIFIER 5: iSCSI.
const ISCSI_PORT: u8 = 0x45;
const HEADER_LENGTH: usize = 4;
/// ADDITIONAL LENGTH is at least this.
const LENGTH_MIN: usize = 20;
/// The longest iSCSI name (RFC 7143, 4.2.7.1), with ",i,0x" and an ISID of twelve digits.
const NAME_MAX: usize = 223 + 5 + 12;

/// An initiator port: `<initiator name>,i,0x<ISID>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortName(String);

impl PortName {
    /// The port of `isid` of the initiator `name`.
    pub fn iscsi(name: &str, isid: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = isid;
        Self(alloc::format!("{name},i,0x{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}"))
    }

    /// A port by its text; none if it is no iSCSI initiator port's.
    pub fn from_text(text: &str) -> Option<Self> {
        let (name, isid) = text.split_once(",i,0x")?;
        let is_hexadecimal = isid.len() == 12 && isid.bytes().all(|byte| byte.is_ascii_hexdigit());
        let fits = !name.is_empty() && text.len() <= NAME_MAX && !name.contains('\0');
        // Digits compare as the numbers they are.
        (is_hexadecimal && fits).then(|| Self(alloc::format!("{name},i,0x{}", isid.to_ascii_lowercase())))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As a TransportID.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![ISCSI_PORT, 0, 0, 0];
        bytes.extend(self.0.bytes());
        // At least one zero ends the name.
        let length = (self.0.len() + 1).next_multiple_of(4).max(LENGTH_MIN);
        bytes.resize(HEADER_LENGTH + length, 0);
        put(&mut bytes, 2, (length as u16).to_be_bytes());
        bytes
    }

    /// A TransportID that fills `bytes`; none if it names no port of an iSCSI initiator.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEADER_LENGTH || bytes[0] != ISCSI_PORT {
            return None;
        }
        let length = usize::from(u16_at(bytes, 2));
        let text = bytes.get(HEADER_LENGTH..)?;
        if text.len() != length || length < LENGTH_MIN || !length.is_multiple_of(4) {
            return None;
        }
        let end = text.iter().position(|byte| *byte == 0)?;
        Self::from_text(core::str::from_utf8(&text[..end]).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_as_a_transport_id_and_back() {
        let port = PortName::iscsi("iqn.1993-08.org.debian:01:ab", [0, 2, 0x3d, 0, 0, 1]);
        assert_eq!(port.as_str(), "iqn.1993-08.org.debian:01:ab,i,0x00023d000001");
        let bytes = port.encode();
        assert_eq!(bytes[..4], [0x45, 0, 0, 48]);
        assert_eq!(bytes.len(), 52);
        assert_eq!(PortName::parse(&bytes), Some(port.clone()));
        assert_eq!(PortName::from_text("iqn.1993-08.org.debian:01:ab,i,0x00023D000001"), Some(port));
    }

    #[test]
    fn what_names_no_port_is_refused() {
        let bytes = PortName::iscsi("iqn.a:b", [1; 6]).encode();
        for length in 0..bytes.len() {
            assert_eq!(PortName::parse(&bytes[..length]), None);
        }
        let mut device_only = bytes.clone();
        device_only[0] = 0x05;
        assert_eq!(PortName::parse(&device_only), None);
        let mut unterminated = bytes;
        unterminated[4..].fill(b'x');
        assert_eq!(PortName::parse(&unterminated), None);
        for text in ["iqn.a", ",i,0x010101010101", "iqn.a,i,0x0101010101", "iqn.a,i,0x01010101010g"] {
            assert_eq!(PortName::from_text(text), None, "{text}");
        }
    }
}
