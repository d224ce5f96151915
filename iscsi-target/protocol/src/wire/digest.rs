//! CRC-32C, the digest of headers and data (13.1).

use crc_fast::{CrcAlgorithm, Digest, checksum};

/// Bytes that a header or data digest takes on the wire.
pub const DIGEST_SIZE: usize = 4;

/// The digest of one contiguous run of bytes.
pub fn digest_of(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// A digest over bytes that arrive or lie in pieces.
#[derive(Clone, Copy, Debug)]
pub struct RunningDigest {
    state: u64,
}

impl RunningDigest {
    /// The digest of no bytes yet.
    pub fn new() -> Self {
        Self { state: u64::from(u32::MAX) }
    }

    /// Adds the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, self.state);
        digest.update(bytes);
        self.state = digest.get_state();
    }

    /// The digest of all pieces so far.
    pub fn value(&self) -> u32 {
        self.state as u32 ^ u32::MAX
    }
}

impl Default for RunningDigest {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appendix A.4: CRC-32C of known 32-byte runs.
    #[test]
    fn examples_of_the_rfc() {
        assert_eq!(digest_of(&[0x00; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(digest_of(&[0xff; 32]).to_le_bytes(), [0x43, 0xab, 0xa8, 0x62]);
        let ascending: [u8; 32] = core::array::from_fn(|i| i as u8);
        assert_eq!(digest_of(&ascending).to_le_bytes(), [0x4e, 0x79, 0xdd, 0x46]);
    }

    #[test]
    fn pieces_give_the_digest_of_the_whole() {
        let bytes: [u8; 300] = core::array::from_fn(|i| (i * 7) as u8);
        for cut in [0, 1, 8, 255, 299, 300] {
            let mut running = RunningDigest::new();
            running.update(&bytes[..cut]);
            running.update(&bytes[cut..]);
            assert_eq!(running.value(), digest_of(&bytes), "cut at {cut}");
        }
    }
}
