//! The bytes on disk, without any I/O. `docs/on-disk-format.md` has the tables; this module follows them.
//!
//! Every structure starts with the same 64-byte [`Header`]. A structure is accepted only when its magic, version,
//! checksum, own address, format id and length all fit: a block of another place, of an older format of the
//! same disk or half of a torn write never passes for what is looked for.

pub(crate) mod batch;
pub(crate) mod fields;
pub(crate) mod layout;
pub(crate) mod page;
pub(crate) mod record;
pub(crate) mod superblock;

use std::fmt;

use fields::{put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};

/// The unit of metadata and of validity in bytes: what is written, checked and tracked as a whole.
pub(crate) const BLOCK: u64 = 4096;

/// Bytes of the header that every structure starts with.
pub(crate) const HEADER: usize = 64;

/// The version of every structure: raised only by changes that feature flags cannot express.
const VERSION: u16 = 1;

static ZEROES: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// Where the checksum is within the header; these four bytes count as zero in it.
const CHECKSUM_AT: usize = 12;

/// Where the length is within the header.
const LENGTH_AT: usize = 48;

/// CRC-32C (Castagnoli), as used by iSCSI, NVMe/TCP and ext4.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// What every structure starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Which structure it is.
    pub(crate) magic: [u8; 8],
    /// What kind of it; 0 where there is only one.
    pub(crate) kind: u16,
    /// Its own place: bytes from the start of the disk.
    pub(crate) address: u64,
    /// Generation of a superblock, number of a batch, number of a checkpoint.
    pub(crate) sequence: u64,
    /// Drawn at format: tells this store's structures from those of a former one on the same disk.
    pub(crate) format_id: [u8; 16],
}

/// Why bytes are not the structure that was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// All zeroes: never written, or wiped.
    Empty,
    /// Another structure, or none.
    Magic,
    /// A version that this program does not know.
    Version(u16),
    /// The bytes changed since they were written, or were written in part.
    Checksum,
    /// It belongs elsewhere.
    Address(u64),
    /// It belongs to another format of this disk.
    FormatId,
    /// The checksum is right but the content makes no sense: what, in words.
    Content(&'static str),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::Magic => f.write_str("the magic is missing"),
            Self::Version(version) => write!(f, "version {version} is unknown"),
            Self::Checksum => f.write_str("the checksum does not match"),
            Self::Address(address) => write!(f, "it belongs at offset {address}"),
            Self::FormatId => f.write_str("it is of another format of this disk"),
            Self::Content(what) => f.write_str(what),
        }
    }
}

impl Header {
    /// Writes the header over the first 64 bytes of `bytes` and seals all of them with the checksum.
    pub(crate) fn seal(&self, bytes: &mut [u8]) {
        // Structures are at most a batch long: far below 4 GiB.
        let length = bytes.len() as u32;
        bytes[..HEADER].fill(0);
        bytes[..8].copy_from_slice(&self.magic);
        put_u16(bytes, 8, VERSION);
        put_u16(bytes, 10, self.kind);
        put_u64(bytes, 16, self.address);
        put_u64(bytes, 24, self.sequence);
        bytes[32..48].copy_from_slice(&self.format_id);
        put_u32(bytes, LENGTH_AT, length);
        let checksum = crc32c(bytes);
        put_u32(bytes, CHECKSUM_AT, checksum);
    }

    /// Reads the header of the structure that starts at `bytes[0]` and checks it, all but the format id, which a
    /// superblock brings. Returns it with the structure's length in bytes, at most `bytes.len()`.
    ///
    /// `address` is where the bytes were read.
    pub(crate) fn open(bytes: &[u8], magic: [u8; 8], address: u64) -> Result<(Self, usize), Flaw> {
        if bytes.len() < HEADER || bytes[..8] != magic {
            let first = &bytes[..bytes.len().min(BLOCK as usize)];
            return Err(if *first == ZEROES[..first.len()] { Flaw::Empty } else { Flaw::Magic });
        }
        let version = u16_at(bytes, 8);
        if version != VERSION {
            return Err(Flaw::Version(version));
        }
        let length = u32_at(bytes, LENGTH_AT) as usize;
        if !(HEADER..=bytes.len()).contains(&length) || checksum(&bytes[..length]) != u32_at(bytes, CHECKSUM_AT) {
            return Err(Flaw::Checksum);
        }
        let own = u64_at(bytes, 16);
        if own != address {
            return Err(Flaw::Address(own));
        }
        let mut format_id = [0; 16];
        format_id.copy_from_slice(&bytes[32..48]);
        Ok((Self { magic, kind: u16_at(bytes, 10), address, sequence: u64_at(bytes, 24), format_id }, length))
    }
}

/// The checksum of a sealed structure: over all its bytes, with those of the checksum itself as zero.
fn checksum(bytes: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&bytes[..CHECKSUM_AT]);
    digest.update(&[0; 4]);
    digest.update(&bytes[CHECKSUM_AT + 4..]);
    // A 32-bit algorithm in a 64-bit return type.
    digest.finalize() as u32
}

/// Writes the address and the checksum of the structure that starts at `bytes[0]` anew; nothing if its length makes no sense.
#[cfg(feature = "fuzzing")]
pub(crate) fn reseal(bytes: &mut [u8], address: u64) {
    if bytes.len() < HEADER {
        return;
    }
    let length = u32_at(bytes, 48) as usize;
    if (HEADER..=bytes.len()).contains(&length) {
        put_u64(bytes, 16, address);
        let checksum = checksum(&bytes[..length]);
        put_u32(bytes, CHECKSUM_AT, checksum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> Vec<u8> {
        let header = Header { magic: *b"TESTMAGI", kind: 3, address: 8192, sequence: 77, format_id: [9; 16] };
        let mut bytes = vec![0x5a; 200];
        header.seal(&mut bytes);
        bytes
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        // The check value of CRC-32C in RFC 3720 B.4 and in every catalogue of CRCs.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_sealed_structure_opens_with_what_was_put_in() {
        let bytes = sealed();
        let (header, length) = Header::open(&bytes, *b"TESTMAGI", 8192).expect("just sealed");
        assert_eq!((header.kind, header.sequence, header.format_id, length), (3, 77, [9; 16], 200));
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        for bit in (0..200 * 8).step_by(if cfg!(miri) { 61 } else { 1 }) {
            let mut bytes = sealed();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::open(&bytes, *b"TESTMAGI", 8192).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_structure_of_another_place_and_an_empty_one_say_so() {
        assert_eq!(Header::open(&sealed(), *b"TESTMAGI", 4096), Err(Flaw::Address(8192)));
        assert_eq!(Header::open(&[0; 4096], *b"TESTMAGI", 4096), Err(Flaw::Empty));
        assert_eq!(Header::open(&[1; 4096], *b"TESTMAGI", 4096), Err(Flaw::Magic));
        assert_eq!(Header::open(&sealed()[..10], *b"TESTMAGI", 8192), Err(Flaw::Magic));
        assert_eq!(Header::open(&sealed()[..199], *b"TESTMAGI", 8192), Err(Flaw::Checksum));
    }

    #[test]
    fn the_header_has_its_documented_bytes() {
        let bytes = sealed();
        assert_eq!(&bytes[..12], b"TESTMAGI\x01\x00\x03\x00");
        assert_eq!(&bytes[16..32], &[0, 32, 0, 0, 0, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            &bytes[32..64],
            &[9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 200, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }
}
