//! Blocks: what they are named after, and how they are packed. No I/O.

mod codec;

pub use codec::{Compression, pack, unpack};

use std::fmt;

/// The sizes that a block can have.
pub const SIZES: [u64; 2] = [2 << 20, 16 << 20];

/// The size of blocks where nothing says otherwise.
pub const DEFAULT_SIZE: u64 = SIZES[0];

/// The first half of a SHA-512: what a block is named after.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checksum(pub [u8; 32]);

impl Checksum {
    /// That of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA512, bytes);
        let mut half = [0; 32];
        half.copy_from_slice(&digest.as_ref()[..32]);
        Self(half)
    }

    /// Out of 64 hexadecimal characters, in lower case.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(bytes))
    }
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_half_a_sha512() {
        // The SHA-512 of "abc" in FIPS 180-4's example.
        let expected = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a";
        assert_eq!(Checksum::of(b"abc").to_string(), expected);
        assert_eq!(Checksum::parse(expected), Some(Checksum::of(b"abc")));
    }

    #[test]
    fn what_is_no_checksum_is_none() {
        let good = Checksum::of(b"").to_string();
        for text in ["", &good[1..], &good.to_uppercase(), &good.replace(&good[..1], "g"), &format!("{good}0")] {
            assert_eq!(Checksum::parse(text), None, "{text}");
        }
    }
}
