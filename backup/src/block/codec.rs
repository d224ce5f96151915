//! Packing and unpacking of blocks.

use std::io::{self, Read, Write};

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

use super::Checksum;
use crate::error::{Error, Kind, Result};

/// How the blocks of a volume are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// The LZ4 frame format.
    #[default]
    Lz4,
}

impl Compression {
    /// Its name in the store's files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
        }
    }

    /// The method of this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::None, Self::Gzip, Self::Lz4].into_iter().find(|method| method.name() == name)
    }
}

/// What a frame of LZ4 begins with.
const LZ4_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];

/// What gzip begins with.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Packs a block.
///
/// # Errors
/// None that is known: memory takes all that is written to it.
pub fn pack(block: &[u8], method: Compression) -> Result<Vec<u8>> {
    let packed = match method {
        Compression::None => Ok(block.to_vec()),
        Compression::Gzip => pack_gzip(block),
        Compression::Lz4 => pack_lz4(block),
    };
    packed.map_err(|error| Error::new(Kind::Invalid, format!("packing a block with {}: {error}", method.name())))
}

fn pack_gzip(block: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(block.len() / 2), flate2::Compression::default());
    encoder.write_all(block)?;
    encoder.finish()
}

fn pack_lz4(block: &[u8]) -> io::Result<Vec<u8>> {
    let frame =
        FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max4MB).content_checksum(true);
    // Room for what does not get smaller: growing would copy.
    let mut encoder = FrameEncoder::with_frame_info(frame, Vec::with_capacity(block.len() + (1 << 10)));
    encoder.write_all(block)?;
    encoder.finish().map_err(io::Error::other)
}

/// Unpacks a block of this length and compares its checksum. It is packed as its first bytes say, if they are not
/// what `method` begins with.
///
/// # Errors
/// `Checksum` when it is not that block.
pub fn unpack(packed: &[u8], method: Compression, length: usize, expected: &Checksum) -> Result<Vec<u8>> {
    let wrong = |why: String| Error::new(Kind::Checksum, format!("block {expected}: {why}"));
    let block = match method {
        Compression::None => Ok(packed.to_vec()),
        Compression::Gzip | Compression::Lz4 => unpack_as(packed, length),
    };
    let block = block.map_err(|error| wrong(error.to_string()))?;
    if block.len() != length {
        return Err(wrong(format!("{} bytes instead of {length}", block.len())));
    }
    let found = Checksum::of(&block);
    if found != *expected {
        return Err(wrong(format!("its content is that of {found}")));
    }
    Ok(block)
}

/// Unpacks at most one byte more than `length`: what is longer is wrong, however much longer.
fn unpack_as(packed: &[u8], length: usize) -> io::Result<Vec<u8>> {
    let mut block = Vec::with_capacity(length + 1);
    let limit = length as u64 + 1;
    if packed.starts_with(&LZ4_MAGIC) {
        FrameDecoder::new(packed).take(limit).read_to_end(&mut block)?;
    } else if packed.starts_with(&GZIP_MAGIC) {
        MultiGzDecoder::new(packed).take(limit).read_to_end(&mut block)?;
    } else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "neither gzip nor LZ4"));
    }
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Lz4];

    fn block() -> Vec<u8> {
        (0..300_000_u32).map(|index| ((index.wrapping_mul(index)) >> 7) as u8).collect()
    }

    #[test]
    fn a_block_comes_back_from_each_method() {
        for method in ALL {
            let packed = pack(&block(), method).expect("packed");
            assert_eq!(unpack(&packed, method, 300_000, &Checksum::of(&block())), Ok(block()), "{method:?}");
        }
    }

    #[test]
    fn lz4_has_the_header_of_the_format() {
        let packed = pack(&block(), Compression::Lz4).expect("packed");
        assert_eq!(packed[..7], [0x04, 0x22, 0x4d, 0x18, 0x64, 0x70, 0xb9]);
    }

    #[test]
    fn the_other_method_is_tried() {
        for (packed_with, said) in [(Compression::Gzip, Compression::Lz4), (Compression::Lz4, Compression::Gzip)] {
            let packed = pack(&block(), packed_with).expect("packed");
            assert_eq!(unpack(&packed, said, 300_000, &Checksum::of(&block())), Ok(block()));
        }
    }

    #[test]
    fn damage_is_found() {
        for method in ALL {
            let packed = pack(&block(), method).expect("packed");
            let good = Checksum::of(&block());
            for at in (0..packed.len()).step_by(packed.len() / 97 + 1) {
                let mut bad = packed.clone();
                bad[at] ^= 0x10;
                // A header of gzip has bytes that mean nothing: then the block is the same.
                let read = unpack(&bad, method, 300_000, &good);
                assert!(
                    read.as_ref().map_or_else(|error| error.kind() == Kind::Checksum, |read| *read == block()),
                    "{at}"
                );
            }
            for length in [0, 1, packed.len() / 2, packed.len() - 1] {
                assert!(unpack(&packed[..length], method, 300_000, &good).is_err(), "{method:?} {length}");
            }
        }
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        for method in [Compression::Gzip, Compression::Lz4] {
            let packed = pack(&vec![0; 64 << 20], method).expect("packed");
            let read = unpack_as(&packed, 1000).expect("begins well");
            assert_eq!(read.len(), 1001);
            assert!(unpack(&packed, method, 1000, &Checksum::of(&[0; 1000])).is_err());
        }
    }
}
