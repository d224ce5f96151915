//! The one scatter-gather list descriptor of a command (Base 4.1.2, TCP 3.3.2.1).

use super::bytes::{put, u32_at, u64_at};

/// Bytes of a descriptor.
pub const SGL_SIZE: usize = 16;

/// Type 0h (data block), sub type 1h (offset): data in the capsule.
const IN_CAPSULE: u8 = 0x01;
/// Type 5h (transport data block), sub type Ah (transport): data by transfer PDUs.
const TRANSPORT: u8 = 0x5a;

/// A descriptor that NVMe/TCP knows, or the identifier byte of one that it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sgl {
    /// SGL Data Block with offset: `length` bytes at `offset` of the in-capsule data.
    InCapsule {
        /// Byte offset from the start of in-capsule data.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// Transport SGL Data Block: `length` bytes through C2HData, or R2T and H2CData.
    Transport {
        /// Bytes.
        length: u32,
    },
    /// Any other SGL Identifier.
    Unsupported {
        /// SGL Identifier: type in bits 7:4, sub type in bits 3:0.
        identifier: u8,
    },
}

impl Sgl {
    /// Reads the descriptor in `bytes`.
    pub fn parse(bytes: &[u8; SGL_SIZE]) -> Self {
        let length = u32_at(bytes, 8);
        match bytes[15] {
            IN_CAPSULE => Self::InCapsule { offset: u64_at(bytes, 0), length },
            TRANSPORT => Self::Transport { length },
            identifier => Self::Unsupported { identifier },
        }
    }

    /// Bytes that the descriptor stands for; 0 for one that is not supported.
    pub fn length(&self) -> u32 {
        match *self {
            Self::InCapsule { length, .. } | Self::Transport { length } => length,
            Self::Unsupported { .. } => 0,
        }
    }

    /// The descriptor's bytes.
    pub fn encode(&self) -> [u8; SGL_SIZE] {
        let mut bytes = [0; SGL_SIZE];
        match *self {
            Self::InCapsule { offset, length } => {
                put(&mut bytes, 0, offset.to_le_bytes());
                put(&mut bytes, 8, length.to_le_bytes());
                bytes[15] = IN_CAPSULE;
            }
            Self::Transport { length } => {
                put(&mut bytes, 8, length.to_le_bytes());
                bytes[15] = TRANSPORT;
            }
            Self::Unsupported { identifier } => bytes[15] = identifier,
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Base 4.1.2 and TCP 3.3.2.1.
    #[test]
    fn the_two_descriptors_of_tcp() {
        let capsule = [0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x10, 0, 0, 0, 0, 0, 0x01];
        assert_eq!(Sgl::parse(&capsule), Sgl::InCapsule { offset: 0, length: 4096 });
        assert_eq!(Sgl::parse(&capsule).encode(), capsule);
        let transport = [0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x00, 0x02, 0, 0, 0, 0, 0x5a];
        assert_eq!(Sgl::parse(&transport), Sgl::Transport { length: 131_072 });
        assert_eq!(Sgl::parse(&transport).encode(), transport);
    }

    #[test]
    fn keyed_and_segment_descriptors_are_named_not_guessed() {
        let mut keyed = [0xff; 16];
        keyed[15] = 0x40;
        assert_eq!(Sgl::parse(&keyed), Sgl::Unsupported { identifier: 0x40 });
    }
}
