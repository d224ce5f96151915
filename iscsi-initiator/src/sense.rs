//! Sense data (SPC 4.5): why a command ended with CHECK CONDITION.

use std::fmt;

/// Sense key, additional sense code and its qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// SENSE KEY.
    pub key: u8,
    /// ADDITIONAL SENSE CODE in the high byte, its QUALIFIER in the low one.
    pub code: u16,
}

/// The sense keys' names, by number (SPC 4.5.6).
const KEYS: [&str; 16] = [
    "No Sense",
    "Recovered Error",
    "Not Ready",
    "Medium Error",
    "Hardware Error",
    "Illegal Request",
    "Unit Attention",
    "Data Protect",
    "Blank Check",
    "Vendor Specific",
    "Copy Aborted",
    "Aborted Command",
    "Reserved",
    "Volume Overflow",
    "Miscompare",
    "Completed",
];

const NOT_READY: u8 = 0x2;
const UNIT_ATTENTION: u8 = 0x6;
const ABORTED_COMMAND: u8 = 0xb;

impl Sense {
    /// Reads sense data of fixed or of descriptor format; none if they are neither.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let at = |index: usize| bytes.get(index).copied();
        let (key, code, qualifier) = match at(0)? & 0x7f {
            0x70 | 0x71 => (at(2)?, at(12).unwrap_or(0), at(13).unwrap_or(0)),
            0x72 | 0x73 => (at(1)?, at(2)?, at(3)?),
            _ => return None,
        };
        Some(Self { key: key & 0xf, code: u16::from_be_bytes([code, qualifier]) })
    }

    /// Whether the unit only wanted to say something: the command was not carried out, and may be sent again at once.
    pub(crate) fn is_attention(self) -> bool {
        self.key == UNIT_ATTENTION
    }

    /// Whether what it says passes by itself: becoming ready, a path between two states or not accessible now, a command that was
    /// aborted on its way.
    pub(crate) fn is_passing(self) -> bool {
        match self.key {
            NOT_READY => matches!(self.code, 0x0401 | 0x040a | 0x040b | 0x040c),
            ABORTED_COMMAND => true,
            _ => false,
        }
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [code, qualifier] = self.code.to_be_bytes();
        write!(f, "{} ({code:02x}h/{qualifier:02x}h)", KEYS[usize::from(self.key & 0xf)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SPC 4.5.2 and 4.5.3.
    #[test]
    fn both_formats_say_the_same() {
        let mut fixed = [0; 18];
        (fixed[0], fixed[2], fixed[12], fixed[13]) = (0xf0, 0xe6, 0x2a, 0x09);
        let expected = Some(Sense { key: 6, code: 0x2a09 });
        assert_eq!(Sense::parse(&fixed), expected);
        assert_eq!(Sense::parse(&[0x72, 6, 0x2a, 0x09, 0, 0, 0, 0]), expected);
        assert_eq!(Sense::parse(&fixed[..3]), Some(Sense { key: 6, code: 0 }), "cut short");
        assert_eq!([&[][..], &[0x72, 6], &[0x7f, 0, 0, 0]].map(Sense::parse), [None; 3]);
    }

    #[test]
    fn sense_in_words() {
        assert_eq!(Sense { key: 3, code: 0x1100 }.to_string(), "Medium Error (11h/00h)");
        assert!(Sense { key: 2, code: 0x040a }.is_passing() && !Sense { key: 2, code: 0x3a00 }.is_passing());
    }
}
