//! Pieces of an lvol on their way: how they are cut, and what both ends check.

use std::fmt;

use crate::v1::{LvolChunk, LvolEnd};

/// The most bytes of a chunk.
pub const MAX_CHUNK: usize = 1 << 20;

/// What is looked at when zeroes are left out, in bytes: what a store maps.
const GRAIN: usize = 4096;

impl LvolChunk {
    /// A chunk with its checksum.
    pub fn new(offset: u64, data: Vec<u8>) -> Self {
        let crc32c = crc_fast::crc32_iscsi(&data);
        Self { offset, data, crc32c }
    }
}

/// Cuts bytes that start at `offset` into chunks, and leaves zeroes out: of whole blocks of 4 KiB, and at the end of what is there.
pub fn chunks(offset: u64, data: &[u8]) -> impl Iterator<Item = LvolChunk> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let zero = |grain: &&[u8]| grain.iter().all(|byte| *byte == 0);
        let rest = data.get(at..)?;
        let skipped: usize = rest.chunks(GRAIN).take_while(zero).map(<[u8]>::len).sum();
        let rest = &rest[skipped..];
        let length: usize =
            rest.chunks(GRAIN).take(MAX_CHUNK / GRAIN).take_while(|grain| !zero(grain)).map(<[u8]>::len).sum();
        let start = at + skipped;
        at = start + length;
        (length > 0).then(|| LvolChunk::new(offset + start as u64, rest[..length].to_vec()))
    })
}

/// Follows the chunks of one transfer as they come.
#[derive(Clone, Debug)]
pub struct Transfer {
    size: u64,
    block_size: u32,
    /// The end of the last chunk.
    position: u64,
    bytes: u64,
}

/// A chunk, or the end, that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferError {
    /// The bytes are others than were sent.
    Checksum {
        /// Where they should have gone.
        offset: u64,
    },
    /// Wrong size, place or order.
    Malformed(String),
}

impl Transfer {
    /// The transfer of an lvol of this size and block size, in bytes.
    pub const fn new(size: u64, block_size: u32) -> Self {
        Self { size, block_size, position: 0, bytes: 0 }
    }

    /// Bytes of data so far.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The end of the last chunk, in bytes from the start of the lvol.
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Checks the next chunk.
    pub fn take(&mut self, chunk: &LvolChunk) -> Result<(), TransferError> {
        let (offset, length) = (chunk.offset, chunk.data.len() as u64);
        let malformed = |text: String| Err(TransferError::Malformed(format!("the chunk at {offset}: {text}")));
        if chunk.data.is_empty() || chunk.data.len() > MAX_CHUNK {
            return malformed(format!("{length} bytes are not 1 to {MAX_CHUNK}"));
        }
        let block = u64::from(self.block_size);
        if offset % block != 0 || length % block != 0 {
            return malformed(format!("{length} bytes there are no whole blocks of {block}"));
        }
        if offset < self.position {
            return malformed(format!("it begins before the end of the one before, {}", self.position));
        }
        let Some(end) = offset.checked_add(length).filter(|end| *end <= self.size) else {
            return malformed(format!("{length} bytes there go beyond the end of the lvol, {}", self.size));
        };
        if crc_fast::crc32_iscsi(&chunk.data) != chunk.crc32c {
            return Err(TransferError::Checksum { offset });
        }
        self.position = end;
        self.bytes += length;
        Ok(())
    }

    /// Checks that nothing is missing.
    pub fn end(&self, end: &LvolEnd) -> Result<(), TransferError> {
        if end.data_bytes == self.bytes {
            return Ok(());
        }
        Err(TransferError::Malformed(format!("{} of {} bytes came", self.bytes, end.data_bytes)))
    }
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checksum { offset } => {
                write!(f, "the chunk at {offset} does not have its checksum: it was damaged on its way")
            }
            Self::Malformed(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for TransferError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer() -> Transfer {
        Transfer::new(4 << 20, 4096)
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(LvolChunk::new(0, b"123456789".to_vec()).crc32c, 0xe306_9283);
    }

    #[test]
    fn zeroes_are_left_out_and_chunks_have_their_limit() {
        let mut data = vec![0; (3 << 20) + 512];
        data[4096..8192].fill(1);
        data[16384 + 4095] = 2;
        data[1 << 20..(2 << 20) + 4096].fill(3);
        data[(3 << 20) + 511] = 4;
        let found: Vec<_> = chunks(1 << 30, &data).map(|chunk| (chunk.offset - (1 << 30), chunk.data.len())).collect();
        let expected = [(4096, 4096), (16384, 4096), (1 << 20, 1 << 20), (2 << 20, 4096), (3 << 20, 512)];
        assert_eq!(found, expected);
        assert_eq!(chunks(0, &[0; 9000]).count(), 0);
        assert_eq!(chunks(0, &[]).count(), 0);
    }

    #[test]
    fn chunks_in_order_with_an_end_that_agrees_are_a_transfer() {
        let mut transfer = transfer();
        assert_eq!(transfer.take(&LvolChunk::new(4096, vec![1; 8192])), Ok(()));
        assert_eq!(transfer.take(&LvolChunk::new((4 << 20) - 4096, vec![1; 4096])), Ok(()));
        assert_eq!((transfer.bytes(), transfer.position()), (12288, 4 << 20));
        assert_eq!(transfer.end(&LvolEnd { data_bytes: 12288 }), Ok(()));
        assert!(transfer.end(&LvolEnd { data_bytes: 12289 }).is_err());
    }

    #[test]
    fn what_is_damaged_misplaced_or_too_large_is_refused() {
        let damaged = LvolChunk { crc32c: 1, ..LvolChunk::new(0, vec![1; 4096]) };
        assert_eq!(transfer().take(&damaged), Err(TransferError::Checksum { offset: 0 }));
        let wrong = [(0, 0), (0, MAX_CHUNK + 4096), (512, 4096), (0, 4095), (4 << 20, 4096), (u64::MAX - 4095, 4096)];
        for (offset, length) in wrong {
            let refused = transfer().take(&LvolChunk::new(offset, vec![1; length]));
            assert!(matches!(refused, Err(TransferError::Malformed(_))), "{offset}+{length}: {refused:?}");
        }
        let mut transfer = transfer();
        assert_eq!(transfer.take(&LvolChunk::new(4096, vec![1; 4096])), Ok(()));
        assert!(transfer.take(&LvolChunk::new(4096, vec![1; 4096])).is_err(), "twice");
        assert_eq!(transfer.bytes(), 4096, "what is refused does not count");
    }
}
