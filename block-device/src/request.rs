//! What can be asked of a device.

use smallvec::SmallVec;

use crate::Slice;

/// A run of bytes. Both ends lie on block boundaries once checked against a geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Bytes from the start of the device.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

impl Range {
    /// The first byte after the range.
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// Whether the two share a byte.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
}

/// One request.
#[derive(Clone, Debug)]
pub enum Request {
    /// Read a range. The outcome carries its bytes.
    Read {
        /// What to read.
        range: Range,
    },
    /// Write data.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What; never changes while the request is in flight (I11).
        data: Slice,
        /// Force Unit Access: durable before it completes (I4).
        fua: bool,
    },
    /// Make everything that completed before durable (I4).
    Flush,
    /// The ranges hold nothing of interest any more; they read as zeroes afterwards and their space comes back.
    Unmap {
        /// Where.
        ranges: SmallVec<[Range; 2]>,
    },
    /// Make a range read as zeroes.
    WriteZeroes {
        /// Where.
        range: Range,
        /// Whether the space may be given back.
        unmap: bool,
        /// Durable before it completes.
        fua: bool,
    },
    /// Compare a range with data: [`ErrorKind::CompareMismatch`](crate::ErrorKind) if they differ.
    Compare {
        /// Where, in bytes.
        offset: u64,
        /// What is expected there.
        data: Slice,
    },
}

impl Request {
    /// A read.
    pub const fn read(offset: u64, length: u64) -> Self {
        Self::Read { range: Range { offset, length } }
    }

    /// A write without FUA.
    pub const fn write(offset: u64, data: Slice) -> Self {
        Self::Write { offset, data, fua: false }
    }

    /// Whether it changes the device's content.
    pub const fn is_write(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Unmap { .. } | Self::WriteZeroes { .. })
    }

    /// How many bytes of data move.
    pub fn transfer(&self) -> u64 {
        match self {
            Self::Read { range } => range.length,
            Self::Write { data, .. } | Self::Compare { data, .. } => data.len() as u64,
            Self::Flush | Self::Unmap { .. } | Self::WriteZeroes { .. } => 0,
        }
    }

    /// Whether it changes or looks at a byte of `range`.
    pub fn touches(&self, range: &Range) -> bool {
        match self {
            Self::Read { range: own } | Self::WriteZeroes { range: own, .. } => own.overlaps(range),
            Self::Write { offset, data, .. } | Self::Compare { offset, data } => {
                Range { offset: *offset, length: data.len() as u64 }.overlaps(range)
            }
            Self::Unmap { ranges } => ranges.iter().any(|own| own.overlaps(range)),
            Self::Flush => false,
        }
    }
}

/// The bytes of a read, in order, in as few pieces as they came from the backing.
#[derive(Clone, Debug, Default)]
pub struct Segments(SmallVec<[Slice; 2]>);

impl Segments {
    /// No bytes: the outcome of everything but reads.
    pub fn none() -> Self {
        Self(SmallVec::new())
    }

    /// Adds a piece at the end.
    pub fn push(&mut self, slice: Slice) {
        if !slice.is_empty() {
            self.0.push(slice);
        }
    }

    /// Adds `length` zeroes at the end.
    pub fn push_zeroes(&mut self, mut length: usize) {
        while length > 0 {
            let now = length.min(Slice::MAX_ZEROES);
            self.0.push(Slice::zeroes(now));
            length -= now;
        }
    }

    /// The pieces.
    pub fn iter(&self) -> std::slice::Iter<'_, Slice> {
        self.0.iter()
    }

    /// Bytes in all.
    pub fn length(&self) -> usize {
        self.0.iter().map(|slice| slice.len()).sum()
    }

    /// All bytes in one piece; copies when there are several.
    pub fn to_vec(&self) -> Vec<u8> {
        self.0.iter().flat_map(|slice| slice.iter().copied()).collect()
    }

    /// Whether the bytes are those of `expected`.
    pub fn equals(&self, expected: &[u8]) -> bool {
        let mut rest = expected;
        self.length() == expected.len()
            && self.0.iter().all(|slice| {
                let (now, later) = rest.split_at(slice.len());
                rest = later;
                now == &slice[..]
            })
    }
}

impl From<Slice> for Segments {
    fn from(slice: Slice) -> Self {
        let mut segments = Self::none();
        segments.push(slice);
        segments
    }
}

impl IntoIterator for Segments {
    type Item = Slice;
    type IntoIter = smallvec::IntoIter<[Slice; 2]>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_compare_across_their_borders() {
        let mut segments = Segments::from(Slice::from(&b"stone"[..]));
        segments.push(Slice::from(&b"mason"[..]));
        segments.push_zeroes(2);
        assert!(segments.equals(b"stonemason\0\0"));
        assert!(!segments.equals(b"stonemasons\0"));
        assert!(!segments.equals(b"stone"));
        assert_eq!(segments.length(), 12);
    }

    #[test]
    fn a_request_touches_what_it_overlaps_only() {
        let range = Range { offset: 4096, length: 4096 };
        assert!(Request::read(0, 4097).touches(&range));
        assert!(!Request::read(0, 4096).touches(&range));
        assert!(!Request::read(8192, 4096).touches(&range));
        assert!(!Request::Flush.touches(&range));
    }
}
