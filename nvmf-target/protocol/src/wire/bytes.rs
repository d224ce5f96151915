//! Little-endian fields at byte offsets. An offset past the end is our own mistake and panics; every
//! caller passes an array or a slice whose length it has checked.

#[inline]
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, offset))
}

#[inline]
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

#[inline]
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}

#[inline]
pub(crate) fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[offset..offset + N]);
    array
}

/// Writes `value` (a little-endian field or raw bytes) at `offset`.
#[inline]
pub(crate) fn put<const N: usize>(bytes: &mut [u8], offset: usize, value: [u8; N]) {
    bytes[offset..offset + N].copy_from_slice(&value);
}

/// Writes ASCII text padded with spaces, cut at `length` (Base 1.4.2, "ASCII string").
pub(crate) fn put_padded(bytes: &mut [u8], offset: usize, length: usize, text: &str) {
    let field = &mut bytes[offset..offset + length];
    field.fill(b' ');
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
}

/// Writes text ended by zero bytes into a field of `length` bytes; the last one stays zero.
pub(crate) fn put_terminated(bytes: &mut [u8], offset: usize, length: usize, text: &str) {
    let field = &mut bytes[offset..offset + length];
    field.fill(0);
    for (to, from) in field[..length - 1].iter_mut().zip(text.bytes()) {
        *to = from;
    }
}
