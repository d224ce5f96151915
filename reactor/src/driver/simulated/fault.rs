//! The faults a test can put into a disk, and how slow disks and links are.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

/// What goes wrong with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFaultKind {
    /// Reads end with EIO.
    FailReads,
    /// Writes, discards and zeroing end with EIO; the change may have happened in part or whole all the same.
    FailWrites,
    /// Syncs end with EIO, and what they were to make stable may be lost at a power cut although later syncs succeed. Only
    /// closing and opening the disk again makes its syncs trustworthy.
    FailSyncs,
    /// Operations do not end until the fault is lifted.
    Hang,
    /// Operations take this much longer.
    Slow(Duration),
    /// Syncs end well and do nothing: a lying write cache.
    LoseSyncs,
    /// Reads return one wrong bit.
    CorruptReads,
    /// Reads end with EIO until the whole range was written anew, which ends the fault: what a medium does with a bad sector.
    LosePlaces,
}

/// A fault: what, where and how often.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskFault {
    /// What goes wrong.
    pub kind: DiskFaultKind,
    /// The bytes of the disk that it concerns: an operation that touches any of them. Syncs touch all.
    pub range: Range<u64>,
    /// How likely it is for each operation, from 0 to 1.
    pub probability: f64,
}

impl DiskFault {
    /// A fault of the whole disk, each time.
    pub const fn new(kind: DiskFaultKind) -> Self {
        Self { kind, range: 0..u64::MAX, probability: 1.0 }
    }

    /// Only for operations that touch this range of bytes.
    #[must_use]
    pub const fn within(mut self, range: Range<u64>) -> Self {
        self.range = range;
        self
    }

    /// Only with this probability, from 0 to 1.
    #[must_use]
    pub const fn with_probability(mut self, probability: f64) -> Self {
        self.probability = probability;
        self
    }
}

/// How long a disk takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskLatency {
    /// For a read.
    pub read: RangeInclusive<Duration>,
    /// For a write, discard or zeroing.
    pub write: RangeInclusive<Duration>,
    /// For a sync.
    pub sync: RangeInclusive<Duration>,
}

impl Default for DiskLatency {
    fn default() -> Self {
        let microseconds = |low, high| Duration::from_micros(low)..=Duration::from_micros(high);
        Self { read: microseconds(50, 200), write: microseconds(20, 150), sync: microseconds(300, 3000) }
    }
}

/// One direction of the network between two nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// How long bytes travel.
    pub delay: RangeInclusive<Duration>,
    /// How many bytes a second pass, shared by all connections; none: no limit.
    pub bytes_per_second: Option<u64>,
    /// How likely each send resets its connection instead, from 0 to 1.
    pub reset_probability: f64,
}

impl Default for Link {
    fn default() -> Self {
        let delay = Duration::from_micros(20)..=Duration::from_micros(200);
        Self { delay, bytes_per_second: None, reset_probability: 0.0 }
    }
}
