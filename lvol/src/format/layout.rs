//! Where things are on a disk.

use super::{BLOCK, Flaw};
use crate::map::Shape;

/// The second superblock: beyond what partition tools and `mkfs` overwrite at the start of a disk (the first mebibyte and,
/// for GPT, the very end).
pub(crate) const SECOND_SUPERBLOCK: u64 = 4 << 20;

/// Cluster sizes that can be chosen, in bytes; powers of two between them.
pub(crate) const CLUSTER_SIZES: std::ops::RangeInclusive<u32> = 16 << 10..=4 << 20;

/// The smallest disk a store fits on, in bytes.
pub(crate) const MIN_SIZE: u64 = 12 << 20;

/// What a map segment costs in a checkpoint besides its entries, in bytes.
pub(crate) const SEGMENT_BYTES: u64 = 16;

/// A run of bytes of the disk, both ends multiples of [`BLOCK`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Region {
    /// Bytes from the start of the disk.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: u64,
}

impl Region {
    const fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    const fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
}

/// Where things are. Once checked against a size, no arithmetic on it overflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of the disk that the store uses.
    pub(crate) size: u64,
    /// Bytes a cluster, a power of two.
    pub(crate) cluster_size: u32,
    pub(crate) journal: Region,
    /// Checkpoints are written into one while the other holds the last.
    pub(crate) areas: [Region; 2],
    /// The number of the first data cluster: cluster n starts at byte n × cluster size. Never 0.
    pub(crate) first_cluster: u64,
    /// How many data clusters there are.
    pub(crate) clusters: u64,
}

impl Layout {
    /// The layout that a new store of `size` bytes gets, `None` if it is too small or the cluster size is none.
    pub(crate) fn plan(size: u64, cluster_size: u32) -> Option<Self> {
        let cluster = u64::from(cluster_size);
        if !valid_cluster_size(cluster_size) || size < MIN_SIZE {
            return None;
        }
        let size = size - size % BLOCK;
        // Long enough that a checkpoint of all maps is rare, short enough to read at open in well under a second.
        let journal =
            Region { offset: SECOND_SUPERBLOCK + BLOCK, length: blocks_up((size / 128).clamp(1 << 20, 256 << 20)) };
        // Every cluster mapped in the worst way, lvol records and zero entries besides.
        let worst = with_page_headers((size / cluster) * worst_cluster_bytes(cluster_size));
        let length = blocks_up(worst + (size / 64).clamp(512 << 10, 64 << 20));
        let first = Region { offset: journal.end(), length };
        let second = Region { offset: first.end(), length };
        let first_cluster = second.end().div_ceil(cluster);
        let clusters = (size / cluster).checked_sub(first_cluster)?;
        let layout = Self { size, cluster_size, journal, areas: [first, second], first_cluster, clusters };
        layout.check().ok().map(|()| layout)
    }

    /// Whether the numbers make sense together, before any arithmetic trusts them: what protects recovery from a
    /// superblock that is well sealed but wrong.
    pub(crate) fn check(&self) -> Result<(), Flaw> {
        let cluster = u64::from(self.cluster_size);
        if !valid_cluster_size(self.cluster_size) {
            return Err(Flaw::Content("the cluster size is not a power of two between 16 KiB and 4 MiB"));
        }
        if self.size < MIN_SIZE || !self.size.is_multiple_of(BLOCK) || self.size > i64::MAX as u64 {
            return Err(Flaw::Content("the store size is impossible"));
        }
        let block = |offset| Region { offset, length: BLOCK };
        let data = Region {
            offset: self.first_cluster.checked_mul(cluster).ok_or(Flaw::Content("the data lies beyond the end"))?,
            length: self.clusters.checked_mul(cluster).ok_or(Flaw::Content("the data lies beyond the end"))?,
        };
        let regions = [block(0), block(SECOND_SUPERBLOCK), self.journal, self.areas[0], self.areas[1], data];
        for (place, region) in regions.iter().enumerate() {
            if region.length == 0 || (region.offset | region.length) % BLOCK != 0 || region.end() > self.size {
                return Err(Flaw::Content("a region is empty, unaligned or beyond the end"));
            }
            if regions[..place].iter().any(|other| other.overlaps(region)) {
                return Err(Flaw::Content("two regions overlap"));
            }
        }
        if self.journal.length < 256 << 10 {
            return Err(Flaw::Content("the journal is too short"));
        }
        Ok(())
    }

    /// The byte offset of a cluster.
    pub(crate) fn cluster_offset(&self, cluster: u64) -> u64 {
        debug_assert!(self.is_data(cluster), "cluster {cluster} is not a data cluster");
        cluster * u64::from(self.cluster_size)
    }

    /// Whether a cluster number is one of a data cluster.
    pub(crate) fn is_data(&self, cluster: u64) -> bool {
        cluster.checked_sub(self.first_cluster).is_some_and(|place| place < self.clusters)
    }

    /// 4 KiB blocks a cluster.
    pub(crate) const fn blocks_per_cluster(&self) -> u32 {
        self.cluster_size / BLOCK as u32
    }

    /// Bytes that one mapped cluster may need in a checkpoint in the worst case: a segment of its own with one entry.
    pub(crate) const fn worst_cluster_bytes(&self) -> u64 {
        worst_cluster_bytes(self.cluster_size)
    }
}

fn valid_cluster_size(size: u32) -> bool {
    size.is_power_of_two() && CLUSTER_SIZES.contains(&size)
}

const fn worst_cluster_bytes(cluster_size: u32) -> u64 {
    SEGMENT_BYTES + Shape::new(cluster_size).words() as u64 * 8
}

/// Bytes of pages that hold `bytes` of segments, with headers and the room that is lost at their ends: less than one
/// part in sixteen.
pub(crate) const fn with_page_headers(bytes: u64) -> u64 {
    bytes + bytes / 16
}

const fn blocks_up(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK) * BLOCK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_and_cluster_size_gives_a_layout_that_checks() {
        for cluster_size in (14..=22).map(|shift| 1 << shift) {
            for size in [64 << 20, (64 << 20) + 5000, 1 << 30, 1 << 40, 1 << 50] {
                let layout = Layout::plan(size, cluster_size).expect("large enough");
                assert_eq!(layout.check(), Ok(()));
                // Metadata takes little.
                let data = layout.clusters * u64::from(cluster_size);
                assert!(size > 1 << 30 || data >= size / 2);
                assert!(size <= 1 << 30 || data >= size / 100 * 97, "{data} of {size}");
            }
        }
    }

    #[test]
    fn disks_that_are_too_small_and_odd_cluster_sizes_have_no_layout() {
        assert_eq!(Layout::plan(MIN_SIZE - 1, 64 << 10), None);
        assert_eq!(Layout::plan(1 << 30, 48 << 10), None);
        assert_eq!(Layout::plan(1 << 30, 8 << 10), None);
        assert_eq!(Layout::plan(1 << 30, 8 << 20), None);
        assert!(Layout::plan(MIN_SIZE, 64 << 10).is_some());
    }

    #[test]
    fn impossible_numbers_are_refused_before_arithmetic() {
        let good = Layout::plan(1 << 30, 64 << 10).expect("large enough");
        let bad = [
            Layout { cluster_size: 0, ..good },
            Layout { size: u64::MAX, ..good },
            Layout { size: 0, ..good },
            Layout { clusters: u64::MAX, ..good },
            Layout { first_cluster: u64::MAX / 2, ..good },
            Layout { first_cluster: 0, ..good },
            Layout { journal: Region { offset: 0, ..good.journal }, ..good },
            Layout { journal: Region { length: !4095, ..good.journal }, ..good },
            Layout { journal: Region { length: 4096, ..good.journal }, ..good },
            Layout { areas: [good.areas[0], good.areas[0]], ..good },
            Layout { areas: [Region { offset: good.areas[0].offset + 1, ..good.areas[0] }, good.areas[1]], ..good },
        ];
        for layout in bad {
            assert!(layout.check().is_err(), "{layout:?}");
        }
    }
}
