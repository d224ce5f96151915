//! Changes to bytes, for runs without a fuzzer.

use reactor::simulated::Random;

/// Numbers that break arithmetic.
const EDGES: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0xffff_ffff, 1 << 63, u64::MAX];

/// Some bytes, changed in a few places.
pub fn mutate(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + random.index(8) {
        let at = random.index(bytes.len().max(1));
        match random.index(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.index(8),
            1 if !bytes.is_empty() => bytes[at] = random.next_u64() as u8,
            2 => {
                let value = EDGES[random.index(EDGES.len())].to_le_bytes();
                let end = bytes.len().min(at + [1, 2, 4, 8][random.index(4)]);
                bytes[at.min(end)..end].copy_from_slice(&value[..end - at.min(end)]);
            }
            3 => bytes.truncate(at),
            4 => {
                let noise: Vec<u8> = (0..1 + random.index(32)).map(|_| random.next_u64() as u8).collect();
                bytes.splice(at..at, noise);
            }
            5 if !bytes.is_empty() => {
                let from = random.index(bytes.len());
                let length = random.index(64).min(bytes.len() - from).min(bytes.len() - at);
                bytes.copy_within(from..from + length, at);
            }
            _ => bytes.push(random.next_u64() as u8),
        }
    }
    bytes
}
