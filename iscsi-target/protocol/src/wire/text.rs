//! Text of login and text PDUs: `key=value` pairs, each ended by a zero byte (6.1).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

/// Most bytes of a key (6.1).
pub const KEY_MAX: usize = 63;

/// Values with a meaning of their own (6.2).
pub mod constant {
    /// Boolean true.
    pub const YES: &str = "Yes";
    /// Boolean false.
    pub const NO: &str = "No";
    /// None of a list.
    pub const NONE: &str = "None";
    /// The offer is refused.
    pub const REJECT: &str = "Reject";
    /// The key does not matter here.
    pub const IRRELEVANT: &str = "Irrelevant";
    /// The key is unknown.
    pub const NOT_UNDERSTOOD: &str = "NotUnderstood";
}

/// Text that breaks the rules of 6.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The pairs of a text, in order. Zero bytes between them, as some pad with, are passed over.
pub fn pairs(text: &[u8]) -> impl Iterator<Item = Result<(&str, &str), Malformed>> {
    // What follows the last zero byte is a pair that has not ended.
    let (whole, rest) = match text.iter().rposition(|byte| *byte == 0) {
        Some(end) => text.split_at(end),
        None => (&[][..], text),
    };
    let unfinished = rest.iter().any(|byte| *byte != 0).then_some(Err(Malformed));
    whole.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()).map(pair).chain(unfinished)
}

fn pair(bytes: &[u8]) -> Result<(&str, &str), Malformed> {
    let text = core::str::from_utf8(bytes).map_err(|_| Malformed)?;
    let (key, value) = text.split_once('=').ok_or(Malformed)?;
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'+' | b'@' | b'_');
    let valid = (1..=KEY_MAX).contains(&key.len()) && key.bytes().all(allowed);
    if valid { Ok((key, value)) } else { Err(Malformed) }
}

/// Text being written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    bytes: Vec<u8>,
}

impl Text {
    /// No pairs yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a pair.
    pub fn push(&mut self, key: &str, value: &str) {
        self.bytes.extend_from_slice(key.as_bytes());
        self.bytes.push(b'=');
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
    }

    /// Appends a pair with a number.
    pub fn push_number(&mut self, key: &str, value: u32) {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = write!(text, "{value}");
        self.push(key, &text);
    }

    /// Appends a boolean pair.
    pub fn push_boolean(&mut self, key: &str, value: bool) {
        self.push(key, if value { constant::YES } else { constant::NO });
    }

    /// Appends a pair with a binary value, in hexadecimal.
    pub fn push_binary(&mut self, key: &str, value: &[u8]) {
        let mut text = String::from("0x");
        for byte in value {
            let _ = write!(text, "{byte:02x}");
        }
        self.push(key, &text);
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes of all pairs.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// A number, decimal or hexadecimal (6.1: numerical-value).
pub fn number(value: &str) -> Option<u32> {
    let digits = |digits: &str, radix| {
        // `from_str_radix` takes a sign, which these numbers do not have.
        if digits.starts_with('+') { None } else { u32::from_str_radix(digits, radix).ok() }
    };
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hexadecimal) => digits(hexadecimal, 16),
        None => digits(value, 10),
    }
}

/// A boolean.
pub fn boolean(value: &str) -> Option<bool> {
    match value {
        constant::YES => Some(true),
        constant::NO => Some(false),
        _ => None,
    }
}

/// A binary value of at most `most` bytes: hexadecimal after `0x`, base 64 after `0b` (6.1: binary-value).
pub fn binary(value: &str, most: usize) -> Option<Vec<u8>> {
    let (prefix, digits) = value.split_at_checked(2)?;
    match prefix {
        "0x" | "0X" => hexadecimal(digits.as_bytes(), most),
        "0b" | "0B" => base64(digits.as_bytes(), most),
        _ => None,
    }
}

fn hexadecimal(digits: &[u8], most: usize) -> Option<Vec<u8>> {
    if digits.is_empty() || digits.len().div_ceil(2) > most {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut bytes = Vec::with_capacity(digits.len().div_ceil(2));
    // An odd digit is the first byte's lower half.
    let (odd, even) = digits.split_at(digits.len() % 2);
    for byte in odd {
        bytes.push(digit(*byte)?);
    }
    for pair in even.chunks_exact(2) {
        bytes.push(digit(pair[0])? << 4 | digit(pair[1])?);
    }
    Some(bytes)
}

fn base64(digits: &[u8], most: usize) -> Option<Vec<u8>> {
    let unpadded = digits.strip_suffix(b"==").or_else(|| digits.strip_suffix(b"=")).unwrap_or(digits);
    if unpadded.is_empty() || !digits.len().is_multiple_of(4) || unpadded.len() * 3 / 4 > most {
        return None;
    }
    let mut bytes = Vec::with_capacity(unpadded.len() * 3 / 4);
    for group in unpadded.chunks(4) {
        let mut bits = 0;
        for index in 0..4 {
            bits = bits << 6 | group.get(index).map_or(Some(0), |byte| sextet(*byte))?;
        }
        let [_, whole @ ..] = bits.to_be_bytes();
        // Two digits are one byte, three are two; the rest is filling.
        bytes.extend_from_slice(&whole[..group.len() * 3 / 4]);
    }
    Some(bytes)
}

fn sextet(byte: u8) -> Option<u32> {
    let value = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8]) -> Vec<Result<(&str, &str), Malformed>> {
        pairs(text).collect()
    }

    #[test]
    fn pairs_are_ended_by_zero_bytes() {
        assert_eq!(all(b"A=1\0B=\0C=x=y\0"), [Ok(("A", "1")), Ok(("B", "")), Ok(("C", "x=y"))]);
        assert_eq!(all(b"A=1\0\0\0B=2\0\0"), [Ok(("A", "1")), Ok(("B", "2"))]);
        assert_eq!(all(b""), []);
        assert_eq!(all(b"\0"), []);
    }

    #[test]
    fn what_is_no_pair_is_malformed() {
        assert_eq!(all(b"A=1\0B=2"), [Ok(("A", "1")), Err(Malformed)], "not ended");
        assert_eq!(all(b"A=1"), [Err(Malformed)]);
        assert_eq!(all(b"A\0"), [Err(Malformed)]);
        assert_eq!(all(b"=1\0"), [Err(Malformed)]);
        assert_eq!(all(b"A B=1\0"), [Err(Malformed)]);
        assert_eq!(all(b"A=\xff\0"), [Err(Malformed)]);
        let long = [&[b'k'; KEY_MAX + 1][..], b"=1\0"].concat();
        assert_eq!(all(&long), [Err(Malformed)]);
        assert!(all(&long[1..])[0].is_ok());
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(
            ["0", "262144", "0x10", "0XfF", "4294967295"].map(number),
            [0, 262_144, 16, 255, u32::MAX].map(Some)
        );
        assert_eq!(["", "-1", "+1", "1 ", "0x", "0x+1", "4294967296", "ten"].map(number), [None; 8]);
        assert_eq!(["Yes", "No", "yes", ""].map(boolean), [Some(true), Some(false), None, None]);
    }

    #[test]
    fn binary_values_are_hexadecimal_or_base_64() {
        assert_eq!(binary("0x0aFF", 2), Some(Vec::from([0x0a, 0xff])));
        assert_eq!(binary("0xaff", 2), Some(Vec::from([0x0a, 0xff])), "an odd digit");
        assert_eq!(binary("0x0aff00", 2), None, "too long");
        // RFC 4648, section 10.
        for (text, bytes) in [("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")] {
            let mut value = String::from("0b");
            value.push_str(text);
            assert_eq!(binary(&value, 6), Some(Vec::from(bytes.as_bytes())));
            assert_eq!(binary(&value, bytes.len() - 1), None);
        }
        assert_eq!(
            ["", "0", "0x", "0b", "0xg0", "0bZ", "0bZg=", "0bZ!==", "12", "0b===="].map(|v| binary(v, 99)),
            [const { None }; 10]
        );
    }

    #[test]
    fn text_is_read_as_it_is_written() {
        let mut text = Text::new();
        text.push("A", "x");
        text.push_number("B", 65536);
        text.push_boolean("C", true);
        text.push_binary("D", &[0, 0xfe]);
        assert_eq!(text.into_bytes(), b"A=x\0B=65536\0C=Yes\0D=0x00fe\0");
    }
}
