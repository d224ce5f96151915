//! Content by its hash: how a copy finds out what differs without moving it.

use block_device::Segments;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// XXH3, 128 bits, of some bytes. Not against someone who wants two contents to collide, who would have to be able to write
/// to the replica anyway.
pub fn content_hash(bytes: &[u8]) -> u128 {
    xxh3_128(bytes)
}

/// The hash of each piece of `granule` bytes; the last piece may be shorter.
pub(crate) fn hashes_of(data: &Segments, granule: usize) -> Vec<u128> {
    let mut hashes = Vec::new();
    let (mut begun, mut have) = (Xxh3::new(), 0);
    for slice in data.iter() {
        let mut bytes = &slice[..];
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(bytes.len().min(granule - have));
            bytes = rest;
            if piece.len() == granule {
                hashes.push(content_hash(piece));
                continue;
            }
            begun.update(piece);
            have += piece.len();
            if have == granule {
                hashes.push(begun.digest128());
                begun.reset();
                have = 0;
            }
        }
    }
    if have > 0 {
        hashes.push(begun.digest128());
    }
    hashes
}

#[cfg(test)]
mod tests {
    use block_device::Slice;

    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        // XXH3_128bits of nothing, from the sanity tests of the reference implementation.
        assert_eq!(content_hash(&[]), 0x99aa_06d3_0147_98d8_6001_c324_468d_497f);
    }

    #[test]
    fn pieces_hash_the_same_however_the_data_is_cut() {
        let bytes: Vec<u8> = (0..10_000u32).map(|index| (index * 7 % 251) as u8).collect();
        let expected: Vec<u128> = bytes.chunks(4096).map(content_hash).collect();
        for cut in [0, 1, 4095, 4096, 4097, 9000] {
            let mut segments = Segments::from(Slice::from(&bytes[..cut]));
            Segments::from(Slice::from(&bytes[cut..])).into_iter().for_each(|slice| segments.push(slice));
            assert_eq!(hashes_of(&segments, 4096), expected, "cut at {cut}");
        }
    }
}
