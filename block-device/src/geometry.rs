//! Sizes and limits of a device, and the check of requests against them.

use crate::{Error, ErrorKind, Range, Request};

/// What a device looks like to whoever uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes a block: 512 or 4096. Offsets and lengths of requests are multiples of it.
    pub block_size: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// The unit of allocation in bytes: unmaps of whole units give space back.
    pub allocation_unit: u32,
    /// What a power cut leaves whole or untouched (I29), in bytes, at multiples of it: a power of two. Less than a block when the
    /// disk does not promise more.
    pub atomic_write: u32,
    /// The device refuses writes.
    pub read_only: bool,
}

/// A size that no device can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Only 512 and 4096 are block sizes.
    #[error("a block size of {0} bytes is not supported: use 512 or 4096")]
    BlockSize(u32),
    /// The size is no multiple of the block size, is zero, or overflows.
    #[error("a size of {0} bytes is not a positive multiple of the block size of {1} bytes")]
    Size(u64, u32),
}

impl Geometry {
    /// The longest transfer of one request in bytes.
    pub const MAX_TRANSFER: u32 = 4 << 20;

    /// The geometry of `size` bytes in blocks of `block_size`.
    pub fn new(size: u64, block_size: u32) -> Result<Self, GeometryError> {
        if block_size != 512 && block_size != 4096 {
            return Err(GeometryError::BlockSize(block_size));
        }
        if size == 0 || !size.is_multiple_of(u64::from(block_size)) {
            return Err(GeometryError::Size(size, block_size));
        }
        Ok(Self {
            block_size,
            blocks: size / u64::from(block_size),
            allocation_unit: 4096,
            atomic_write: block_size,
            read_only: false,
        })
    }

    /// Bytes in all.
    pub const fn size(&self) -> u64 {
        // Cannot overflow: made from a size in bytes.
        self.blocks * self.block_size as u64
    }

    /// The same with another size in bytes.
    pub fn with_size(&self, size: u64) -> Result<Self, GeometryError> {
        let blocks = Self::new(size, self.block_size)?.blocks;
        Ok(Self { blocks, ..*self })
    }

    /// Whether a request is one this device can carry out.
    pub fn check(&self, request: &Request) -> Result<(), Error> {
        if self.read_only && request.is_write() {
            return Err(Error::new(ErrorKind::ReadOnly));
        }
        match request {
            Request::Flush => Ok(()),
            Request::Unmap { ranges } => ranges.iter().try_for_each(|range| self.check_range(*range)),
            Request::Read { range } | Request::WriteZeroes { range, .. } => self.check_range(*range),
            Request::Write { offset, data, .. } | Request::Compare { offset, data } => {
                self.check_range(Range { offset: *offset, length: data.len() as u64 })
            }
        }
        .and_then(|()| match request.transfer() > u64::from(Self::MAX_TRANSFER) {
            true => Err(Error::new(ErrorKind::InvalidField)),
            false => Ok(()),
        })
    }

    fn check_range(&self, range: Range) -> Result<(), Error> {
        let mask = u64::from(self.block_size) - 1;
        if (range.offset | range.length) & mask != 0 {
            return Err(Error::new(ErrorKind::InvalidField));
        }
        match range.offset.checked_add(range.length) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(Error::new(ErrorKind::InvalidRange)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(offset: u64, length: u64) -> Request {
        Request::Read { range: Range { offset, length } }
    }

    #[test]
    fn sizes_that_no_device_has_are_refused() {
        assert_eq!(Geometry::new(4096, 1024), Err(GeometryError::BlockSize(1024)));
        assert_eq!(Geometry::new(0, 512), Err(GeometryError::Size(0, 512)));
        assert_eq!(Geometry::new(4096 + 512, 4096), Err(GeometryError::Size(4608, 4096)));
    }

    #[test]
    fn requests_outside_or_across_the_end_are_told_apart_from_unaligned_ones() {
        let geometry = Geometry::new(8192, 4096).expect("a good size");
        let kind = |request: &Request| geometry.check(request).map_err(|error| error.kind());
        assert_eq!(kind(&read(4096, 4096)), Ok(()));
        assert_eq!(kind(&read(4096, 8192)), Err(ErrorKind::InvalidRange));
        assert_eq!(kind(&read(u64::MAX - 4095, 4096)), Err(ErrorKind::InvalidRange));
        assert_eq!(kind(&read(512, 4096)), Err(ErrorKind::InvalidField));
    }

    #[test]
    fn a_transfer_over_the_limit_is_refused_but_a_long_unmap_is_not() {
        let geometry = Geometry::new(1 << 30, 512).expect("a good size");
        let range = Range { offset: 0, length: 8 << 20 };
        assert!(geometry.check(&Request::Read { range }).is_err());
        assert!(geometry.check(&Request::WriteZeroes { range, unmap: true, fua: false }).is_ok());
    }

    #[test]
    fn a_read_only_device_takes_reads_and_flushes() {
        let geometry = Geometry { read_only: true, ..Geometry::new(8192, 512).expect("a good size") };
        assert!(geometry.check(&Request::Flush).is_ok());
        let write = Request::Write { offset: 0, data: crate::Slice::zeroes(512), fua: false };
        assert_eq!(geometry.check(&write).map_err(|error| error.kind()), Err(ErrorKind::ReadOnly));
    }
}
