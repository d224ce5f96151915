//! Big-endian fields at byte offsets. An offset past the end is our own mistake and panics; every
//! caller passes an array or a slice whose length it has checked.

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes(array_at(bytes, offset))
}

/// The 24 bits at `offset`.
pub(crate) fn u24_at(bytes: &[u8], offset: usize) -> u32 {
    let [a, b, c] = array_at(bytes, offset);
    u32::from_be_bytes([0, a, b, c])
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(array_at(bytes, offset))
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_be_bytes(array_at(bytes, offset))
}

pub(crate) fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[offset..offset + N]);
    array
}

/// Writes `value` (a big-endian field or raw bytes) at `offset`.
pub(crate) fn put<const N: usize>(bytes: &mut [u8], offset: usize, value: [u8; N]) {
    bytes[offset..offset + N].copy_from_slice(&value);
}
