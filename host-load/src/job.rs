//! What a load does, in fio's terms.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::seconds;
use crate::host::Geometry;

/// The order of offsets and the kind of I/O (fio's `rw`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
    /// Random reads.
    RandRead,
    /// Random writes.
    RandWrite,
    /// Sequential, reads and writes mixed.
    Rw,
    /// Random, reads and writes mixed.
    RandRw,
}

impl Pattern {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Read, Self::Write, Self::RandRead, Self::RandWrite, Self::Rw, Self::RandRw];

    /// fio's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
            Self::Rw => "rw",
            Self::RandRw => "randrw",
        }
    }

    /// Whether offsets are random.
    pub const fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite | Self::RandRw)
    }

    /// Whether it writes.
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Read | Self::RandRead)
    }

    /// Whether it reads.
    pub const fn reads(self) -> bool {
        !matches!(self, Self::Write | Self::RandWrite)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Pattern {
    type Err = JobError;

    fn from_str(word: &str) -> Result<Self, JobError> {
        let word = if word == "readwrite" { "rw" } else { word };
        Self::ALL.into_iter().find(|pattern| pattern.name() == word).ok_or_else(|| JobError::Pattern(word.to_owned()))
    }
}

/// One load. The defaults are fio's where fio has one, but a load always ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Job {
    /// What to do (`rw`).
    pub rw: Pattern,
    /// Bytes of each I/O (`bs`): a multiple of the device's block size.
    pub block_size: u32,
    /// I/Os in flight for each of `jobs` (`iodepth`).
    pub depth: u16,
    /// How many times the load runs at once, each on a lane, that is a connection, of its own (`numjobs`).
    pub jobs: u16,
    /// Reads in a hundred I/Os of a mixed pattern (`rwmixread`).
    pub read_percent: u8,
    /// First byte of the region that is used (`offset`).
    pub offset: u64,
    /// Bytes of the region (`size`); the rest of the device without it.
    pub size: Option<u64>,
    /// Ends the load after this time (`runtime`), the ramp not included.
    #[serde(rename = "runtime_seconds", with = "seconds::optional")]
    pub runtime: Option<Duration>,
    /// Ends the load after as many I/Os as fill the region this many times (`loops`). At least one of `runtime` and
    /// `loops` must be set.
    pub loops: Option<u32>,
    /// Time before the measurement begins (`ramp_time`).
    #[serde(rename = "ramp_seconds", with = "seconds")]
    pub ramp: Duration,
    /// Writes carry checksum, place and generation, and reads check them (`verify=crc32c`).
    pub verify: bool,
    /// Most I/Os per second, of all jobs together (`rate_iops`).
    pub rate: Option<u64>,
    /// Sends a flush after this many writes of a job (`fsync`); never if zero.
    pub flush_every: u32,
    /// What random offsets, mixes and patterns are made of (`randseed`): the same load for the same seed.
    pub seed: u64,
}

impl Default for Job {
    fn default() -> Self {
        Self {
            rw: Pattern::RandRead,
            block_size: 4096,
            depth: 1,
            jobs: 1,
            read_percent: 50,
            offset: 0,
            size: None,
            runtime: Some(Duration::from_secs(10)),
            loops: None,
            ramp: Duration::ZERO,
            verify: false,
            rate: None,
            flush_every: 0,
            seed: 1,
        }
    }
}

/// The longest I/O, in bytes.
pub const BLOCK_SIZE_MAX: u32 = 1 << 20;

/// Most units of a verified load, so that its record takes 512 MiB at most.
const RECORD_UNITS_MAX: u64 = 64 << 20;

/// Why a job cannot run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// An unknown pattern.
    #[error("unknown pattern {0:?}: use read, write, randread, randwrite, rw or randrw")]
    Pattern(String),
    /// A block size that the device or the load cannot do.
    #[error("block size {0} must be a multiple of the device's {1} bytes, at most {BLOCK_SIZE_MAX}")]
    BlockSize(u32, u32),
    /// More than the target takes in one command.
    #[error("block size {0} is more than the {1} bytes that the target takes at once")]
    Transfer(u32, u32),
    /// No depth or no jobs.
    #[error("depth and number of jobs must be at least 1")]
    NothingInFlight,
    /// Neither run time nor loops.
    #[error("a load needs a run time or a number of loops, or it would never end")]
    Endless,
    /// More than everything is to be read.
    #[error("{0} % of reads is more than all")]
    ReadPercent(u8),
    /// A rate of nothing.
    #[error("a rate of 0 I/Os per second would never end")]
    Rate,
    /// The region is not on the device, or not aligned.
    #[error(
        "the region from byte {offset} of {size} bytes does not fit the device: {device} bytes in blocks of {block_size}"
    )]
    Region {
        /// First byte.
        offset: u64,
        /// Bytes.
        size: u64,
        /// Bytes of the device.
        device: u64,
        /// Bytes of its blocks.
        block_size: u32,
    },
    /// Writes with verify keep one write in flight per block, which needs room.
    #[error("a verified load of {in_flight} writes in flight needs a region of at least {needed} bytes")]
    RegionTooSmall {
        /// Depth times jobs.
        in_flight: u64,
        /// Bytes.
        needed: u64,
    },
    /// What is known of each block must fit in memory.
    #[error("a verified load has a region of at most {0} bytes with this block size: set a smaller size")]
    RegionTooLarge(u64),
    /// Connected without a device.
    #[error("connected for administration only")]
    NoDevice,
    /// Fewer lanes than jobs, or shallower ones than the job's depth.
    #[error("there are too few connections for this job, or they take too few commands at once")]
    Lanes,
    /// The record of an earlier load is of another region or block size.
    #[error("the record to verify against is of another region or block size")]
    OtherRecord,
}

/// A job that fits a device, in units of its block size.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) job: Job,
    pub(crate) geometry: Geometry,
    /// Whole units in the region; at least one.
    pub(crate) units: u64,
    /// I/Os after which the load ends, ramp included; the largest number there is without `loops`.
    pub(crate) budget: u64,
    /// Leaves out what the record knows no write of.
    pub(crate) only_written: bool,
}

impl Plan {
    /// Checks a job against a device.
    pub(crate) fn new(job: &Job, geometry: &Geometry) -> Result<Self, JobError> {
        let device_block = geometry.block_size;
        if job.block_size == 0 || !job.block_size.is_multiple_of(device_block) || job.block_size > BLOCK_SIZE_MAX {
            return Err(JobError::BlockSize(job.block_size, device_block));
        }
        if job.block_size > geometry.max_transfer {
            return Err(JobError::Transfer(job.block_size, geometry.max_transfer));
        }
        if job.depth == 0 || job.jobs == 0 {
            return Err(JobError::NothingInFlight);
        }
        if job.read_percent > 100 {
            return Err(JobError::ReadPercent(job.read_percent));
        }
        if job.rate == Some(0) {
            return Err(JobError::Rate);
        }
        if job.runtime.is_none() && job.loops.is_none() {
            return Err(JobError::Endless);
        }
        let units = Self::units(job, geometry.size(), device_block)?;
        let budget = job.loops.map_or(u64::MAX, |loops| units.saturating_mul(loops.into()));
        Ok(Self { job: job.clone(), geometry: *geometry, units, budget, only_written: false })
    }

    fn units(job: &Job, device: u64, block_size: u32) -> Result<u64, JobError> {
        let size = job.size.unwrap_or(device.saturating_sub(job.offset));
        let units = size / u64::from(job.block_size);
        let fits = job.offset.checked_add(size).is_some_and(|end| end <= device);
        if !fits || units == 0 || !job.offset.is_multiple_of(block_size.into()) {
            return Err(JobError::Region { offset: job.offset, size, device, block_size });
        }
        if job.verify && units > RECORD_UNITS_MAX {
            return Err(JobError::RegionTooLarge(RECORD_UNITS_MAX * u64::from(job.block_size)));
        }
        let in_flight = u64::from(job.depth) * u64::from(job.jobs);
        if job.verify && job.rw.writes() && units < in_flight {
            let needed = in_flight * u64::from(job.block_size);
            return Err(JobError::RegionTooSmall { in_flight, needed });
        }
        Ok(units)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: u64 = 1 << 20;

    fn geometry() -> Geometry {
        Geometry { blocks: DEVICE / 4096, block_size: 4096, max_transfer: 128 << 10 }
    }

    fn error(change: impl FnOnce(&mut Job)) -> Option<JobError> {
        let mut job = Job::default();
        change(&mut job);
        Plan::new(&job, &geometry()).err()
    }

    #[test]
    fn patterns_by_name() {
        for pattern in Pattern::ALL {
            assert_eq!(pattern.name().parse(), Ok(pattern));
        }
        assert_eq!("readwrite".parse(), Ok(Pattern::Rw));
        assert_eq!("trim".parse::<Pattern>(), Err(JobError::Pattern("trim".into())));
    }

    #[test]
    fn jobs_that_no_device_can_do() {
        assert_eq!(error(|_| ()), None);
        assert_eq!(error(|job| job.block_size = 512), Some(JobError::BlockSize(512, 4096)));
        assert_eq!(error(|job| job.block_size = 0), Some(JobError::BlockSize(0, 4096)));
        assert_eq!(error(|job| job.block_size = 2 << 20), Some(JobError::BlockSize(2 << 20, 4096)));
        assert_eq!(error(|job| job.block_size = 256 << 10), Some(JobError::Transfer(256 << 10, 128 << 10)));
        assert_eq!(error(|job| job.depth = 0), Some(JobError::NothingInFlight));
        assert_eq!(error(|job| job.jobs = 0), Some(JobError::NothingInFlight));
        assert_eq!(error(|job| job.runtime = None), Some(JobError::Endless));
        assert_eq!(error(|job| job.read_percent = 101), Some(JobError::ReadPercent(101)));
        assert_eq!(error(|job| job.rate = Some(0)), Some(JobError::Rate));
    }

    #[test]
    fn regions_outside_of_the_device_are_refused_without_overflow() {
        let region = |offset, size: Option<u64>| error(|job| (job.offset, job.size) = (offset, size));
        assert_eq!(region(4096, Some(DEVICE - 4096)), None);
        assert!(matches!(region(4096, Some(DEVICE)), Some(JobError::Region { .. })));
        assert!(matches!(region(u64::MAX - 4095, Some(8192)), Some(JobError::Region { .. })));
        assert!(matches!(region(DEVICE, None), Some(JobError::Region { .. })));
        assert!(matches!(region(512, Some(8192)), Some(JobError::Region { .. })));
        assert!(matches!(region(0, Some(100)), Some(JobError::Region { .. })));
    }

    #[test]
    fn verified_writes_need_a_unit_each() {
        let small = |job: &mut Job| {
            (job.verify, job.rw, job.depth, job.jobs) = (true, Pattern::RandWrite, 16, 2);
            job.size = Some(31 * 4096);
        };
        assert_eq!(error(small), Some(JobError::RegionTooSmall { in_flight: 32, needed: 32 * 4096 }));
    }

    #[test]
    fn the_record_of_a_device_of_any_size_is_bounded() {
        let huge = Geometry { blocks: 1 << 51, ..geometry() };
        let job = Job { verify: true, ..Job::default() };
        assert_eq!(Plan::new(&job, &huge).err(), Some(JobError::RegionTooLarge(256 << 30)));
        assert!(Plan::new(&Job { verify: false, ..job }, &huge).is_ok());
    }

    #[test]
    fn loops_count_the_ios_of_a_region() {
        let job = Job { loops: Some(3), size: Some(10 * 4096 + 1), ..Job::default() };
        let plan = Plan::new(&job, &geometry()).expect("a good job");
        assert_eq!((plan.units, plan.budget), (10, 30));
    }
}
