//! CHAP, the Challenge Handshake Authentication Protocol (12.1.3, RFC 1994): response = H(identifier, secret, challenge).
//!
//! Challenges come in from outside: there is no randomness here. Secrets print nothing and are overwritten when dropped.

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;
use core::hint::black_box;

use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use sha3::Sha3_256;
use subtle::ConstantTimeEq;

/// Fewest bytes of a secret: 96 bits (12.1.3).
pub const SECRET_MIN: usize = 12;
/// Most bytes of a secret.
pub const SECRET_MAX: usize = 255;
/// Bytes of the challenges that we send.
pub const CHALLENGE_SIZE: usize = 32;
/// Most bytes of a challenge that we take (12.1.3).
pub const CHALLENGE_MAX: usize = 1024;
/// Most bytes of a CHAP name that we take.
pub const NAME_MAX: usize = 255;

/// Longest response.
const RESPONSE_MAX: usize = 32;

/// What a CHAP response is a hash of (12.1.3; numbers of the IANA registry of PPP authentication algorithms).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Algorithm {
    /// MD5, which every iSCSI implementation has.
    Md5 = 5,
    /// SHA-1.
    Sha1 = 6,
    /// SHA-256.
    Sha256 = 7,
    /// SHA3-256.
    Sha3 = 8,
}

impl Algorithm {
    /// All of them, the strongest first.
    pub const ALL: [Self; 4] = [Self::Sha3, Self::Sha256, Self::Sha1, Self::Md5];

    /// The algorithm with this number, if we have it.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| *algorithm as u32 == number)
    }

    /// Bytes of a response.
    pub fn response_size(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Sha3 => 32,
        }
    }

    /// The response to a challenge.
    pub fn respond(self, identifier: u8, secret: &Secret, challenge: &[u8]) -> Response {
        match self {
            Self::Md5 => hash::<Md5>(identifier, secret, challenge),
            Self::Sha1 => hash::<Sha1>(identifier, secret, challenge),
            Self::Sha256 => hash::<Sha256>(identifier, secret, challenge),
            Self::Sha3 => hash::<Sha3_256>(identifier, secret, challenge),
        }
    }
}

fn hash<D: Digest>(identifier: u8, secret: &Secret, challenge: &[u8]) -> Response {
    let hash = D::new().chain_update([identifier]).chain_update(&secret.bytes).chain_update(challenge).finalize();
    let mut bytes = [0; RESPONSE_MAX];
    bytes[..hash.len()].copy_from_slice(&hash);
    Response { bytes, length: hash.len() }
}

/// A response; equal to received bytes only through [`Self::matches`].
#[derive(Clone, Copy)]
pub struct Response {
    bytes: [u8; RESPONSE_MAX],
    length: usize,
}

impl Response {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Whether `received` is the same, in a time that does not tell where it differs.
    pub fn matches(&self, received: &[u8]) -> bool {
        self.as_bytes().ct_eq(received).into()
    }
}

/// Why bytes are no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeakSecret {
    /// Fewer bytes than [`SECRET_MIN`].
    TooShort,
    /// More bytes than [`SECRET_MAX`].
    TooLong,
}

impl fmt::Display for WeakSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort => write!(formatter, "a CHAP secret has at least {SECRET_MIN} bytes"),
            Self::TooLong => write!(formatter, "a CHAP secret has at most {SECRET_MAX} bytes"),
        }
    }
}

impl core::error::Error for WeakSecret {}

/// A secret of acceptable length.
pub struct Secret {
    bytes: Box<[u8]>,
}

impl Secret {
    /// A secret with these bytes.
    ///
    /// # Errors
    /// There are too few or too many.
    pub fn new(bytes: &[u8]) -> Result<Self, WeakSecret> {
        match bytes.len() {
            0..SECRET_MIN => Err(WeakSecret::TooShort),
            SECRET_MIN..=SECRET_MAX => Ok(Self { bytes: bytes.into() }),
            _ => Err(WeakSecret::TooLong),
        }
    }

    /// Whether both are the same, in a time that does not tell where they differ.
    pub fn is_same(&self, other: &Self) -> bool {
        self.bytes.ct_eq(&other.bytes).into()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.bytes.fill(0);
        // As if someone looked at the zeros: they have to be written.
        black_box(&self.bytes);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret")
    }
}

/// Who someone is, and what proves it.
#[derive(Debug)]
pub struct Credentials {
    /// CHAP_N.
    pub name: String,
    /// What responses are made with.
    pub secret: Secret,
}

/// A challenge that we send. The bytes must be random, and new for each login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// CHAP_I.
    pub identifier: u8,
    /// CHAP_C.
    pub bytes: [u8; CHALLENGE_SIZE],
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec::Vec;

    use super::*;

    fn hexadecimal(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The hashes of "abc", as RFC 1321, FIPS 180-4 and FIPS 202 give them: identifier "a", then a secret that cannot be as
    /// short as "b" is put together with the challenge, so the parts are checked with a longer text below.
    #[test]
    fn each_number_is_its_hash() {
        let expected = [
            (Algorithm::Md5, "900150983cd24fb0d6963f7d28e17f72"),
            (Algorithm::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (Algorithm::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (Algorithm::Sha3, "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"),
        ];
        for (algorithm, expected) in expected {
            let secret = Secret { bytes: (*b"b").into() };
            let response = algorithm.respond(b'a', &secret, b"c");
            assert_eq!(hexadecimal(response.as_bytes()), expected);
            assert_eq!(response.as_bytes().len(), algorithm.response_size());
            assert_eq!(Algorithm::from_number(algorithm as u32), Some(algorithm));
        }
        assert_eq!([0, 4, 9, 256 + 5].map(Algorithm::from_number), [None; 4]);
    }

    #[test]
    fn only_the_same_bytes_match() {
        let secret = Secret::new(b"a secret of twenty").unwrap();
        let response = Algorithm::Sha256.respond(1, &secret, b"challenge");
        let bytes = Vec::from(response.as_bytes());
        assert!(response.matches(&bytes));
        assert!(!response.matches(&bytes[..31]) && !response.matches(&[]));
        assert!(!Algorithm::Sha256.respond(2, &secret, b"challenge").matches(&bytes), "another identifier");
        assert!(!Algorithm::Sha256.respond(1, &secret, b"challengf").matches(&bytes), "another challenge");
        for index in 0..bytes.len() {
            let mut other = bytes.clone();
            other[index] ^= 0x80;
            assert!(!response.matches(&other), "byte {index}");
        }
    }

    #[test]
    fn weak_secrets_are_refused_and_none_is_printed() {
        assert_eq!(Secret::new(b"eleven char").err(), Some(WeakSecret::TooShort));
        assert_eq!(Secret::new(&[b'x'; 256]).err(), Some(WeakSecret::TooLong));
        let secret = Secret::new(b"twelve chars").unwrap();
        let credentials = Credentials { name: "user".into(), secret };
        let printed = format!("{credentials:?} {credentials:#?}");
        assert!(!printed.contains("twelve") && !printed.contains("116"), "{printed}");
    }
}
