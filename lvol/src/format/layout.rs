//! Where things are on a disk.

use std::ops::Range;

use super::{BLOCK, Flaw};
use crate::map::Shape;

/// The second superblock: beyond what partition tools and `mkfs` overwrite at the start of a disk (the first mebibyte and,
/// for GPT, the very end).
pub(crate) const SECOND_SUPERBLOCK: u64 = 4 << 20;

/// Cluster sizes that can be chosen, in bytes; powers of two between them.
pub(crate) const CLUSTER_SIZES: std::ops::RangeInclusive<u32> = 16 << 10..=4 << 20;

/// The smallest disk a store fits on, in bytes.
pub(crate) const MIN_SIZE: u64 = 12 << 20;

/// Clusters of a store, those before the data included: maps in memory have 32 bits for each.
pub(crate) const MAX_CLUSTERS: u64 = 1 << 32;

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
    pub(crate) const fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// Whether it is made of whole units of this many bytes inside another region.
    const fn is_made_of(&self, unit: u64, other: &Self) -> bool {
        self.offset.is_multiple_of(unit)
            && self.length.is_multiple_of(unit)
            && other.offset <= self.offset
            && self.end() <= other.end()
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
    /// Checkpoints are written into one while the other holds the last. They lie before the clusters, or, once the store
    /// has grown, among them.
    pub(crate) areas: [Region; 2],
    /// The number of the first data cluster: cluster n starts at byte n × cluster size. Never 0.
    pub(crate) first_cluster: u64,
    /// How many clusters there are from there on, those that an area takes with them.
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
        let length = area_length(size, cluster_size);
        let first = Region { offset: journal.end(), length };
        let second = Region { offset: first.end(), length };
        let first_cluster = second.end().div_ceil(cluster);
        let clusters = (size / cluster).checked_sub(first_cluster)?;
        let layout = Self { size, cluster_size, journal, areas: [first, second], first_cluster, clusters };
        layout.check().ok().map(|()| layout)
    }

    /// The layout of this store on a larger disk, or the least size that is large enough. Everything stays where it is but for
    /// the checkpoint areas, which are too short: new ones lie behind the last cluster. The old ones become clusters if they are
    /// made of whole ones.
    pub(crate) fn grown(&self, size: u64) -> Result<Self, u64> {
        let cluster = u64::from(self.cluster_size);
        let size = size - size % BLOCK;
        let first = Region { offset: self.data_end(), length: self.grown_area_length(size) };
        let second = Region { offset: first.end(), length: first.length };
        let clusters = (size / cluster).saturating_sub(self.first_cluster);
        let layout = Self { size, areas: [first, second], clusters, ..*self };
        match second.end() < size / cluster * cluster && layout.check().is_ok() {
            true => Ok(layout),
            false => Err(self.least_growth()),
        }
    }

    /// The smallest size that this store can grow to.
    fn least_growth(&self) -> u64 {
        let mut size = self.data_end();
        loop {
            let needed = self.data_end() + 2 * self.grown_area_length(size) + u64::from(self.cluster_size);
            if needed <= size {
                return size;
            }
            size = needed;
        }
    }

    /// Whole clusters, so that the area can become clusters later.
    fn grown_area_length(&self, size: u64) -> u64 {
        area_length(size, self.cluster_size).next_multiple_of(u64::from(self.cluster_size))
    }

    /// Where the last cluster ends.
    const fn data_end(&self) -> u64 {
        (self.first_cluster + self.clusters) * self.cluster_size as u64
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
        if self.first_cluster.saturating_add(self.clusters) > MAX_CLUSTERS {
            return Err(Flaw::Content("there are more than 2^32 clusters"));
        }
        let regions = [block(0), block(SECOND_SUPERBLOCK), self.journal, data, self.areas[0], self.areas[1]];
        for (place, region) in regions.iter().enumerate() {
            if region.length == 0 || (region.offset | region.length) % BLOCK != 0 || region.end() > self.size {
                return Err(Flaw::Content("a region is empty, unaligned or beyond the end"));
            }
            let is_hole = |other: &Region| *other == data && region.is_made_of(cluster, other);
            if regions[..place].iter().any(|other| other.overlaps(region) && !is_hole(other)) {
                return Err(Flaw::Content("two regions overlap"));
            }
        }
        if self.data_clusters() == 0 {
            return Err(Flaw::Content("there are no data clusters"));
        }
        if self.journal.length < 256 << 10 {
            return Err(Flaw::Content("the journal is too short"));
        }
        Ok(())
    }

    /// Where blocks of a cluster are on the disk.
    pub(crate) fn blocks(&self, cluster: u64, first: u32, count: u32) -> block_device::Range {
        let offset = self.cluster_offset(cluster) + u64::from(first) * BLOCK;
        block_device::Range { offset, length: u64::from(count) * BLOCK }
    }

    /// The byte offset of a cluster.
    pub(crate) fn cluster_offset(&self, cluster: u64) -> u64 {
        debug_assert!(self.is_data(cluster), "cluster {cluster} is not a data cluster");
        cluster * u64::from(self.cluster_size)
    }

    /// Whether a cluster number is one of a data cluster.
    pub(crate) fn is_data(&self, cluster: u64) -> bool {
        cluster.checked_sub(self.first_cluster).is_some_and(|place| place < self.clusters)
            && !self.areas.iter().any(|area| self.clusters_of(area).contains(&cluster))
    }

    /// How many data clusters there are.
    pub(crate) fn data_clusters(&self) -> u64 {
        let taken = self.areas.iter().map(|area| self.clusters_of(area)).map(|taken| taken.end - taken.start);
        self.clusters - taken.sum::<u64>()
    }

    /// The clusters that the checkpoint areas take.
    pub(crate) fn taken_clusters(&self) -> impl Iterator<Item = u64> + use<> {
        let [first, second] = self.areas.map(|area| self.clusters_of(&area));
        first.chain(second)
    }

    /// The same, as they lie.
    pub(crate) fn taken_ranges(&self) -> [Range<u64>; 2] {
        self.areas.map(|area| self.clusters_of(&area))
    }

    /// Those of one area: none if it lies elsewhere.
    fn clusters_of(&self, area: &Region) -> Range<u64> {
        let cluster = u64::from(self.cluster_size);
        let among = area.offset >= self.first_cluster * cluster && area.end() <= self.data_end();
        // Checked: it is made of whole ones.
        if among { area.offset / cluster..area.end() / cluster } else { 0..0 }
    }

    /// Whether an lvol of this many bytes has no more clusters than a map can name.
    pub(crate) fn fits_lvol(&self, size: u64) -> bool {
        size.div_ceil(u64::from(self.cluster_size)) <= u64::from(u32::MAX)
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

/// How long a checkpoint area of a store of this size is: every cluster mapped in the worst way, lvol records and zero
/// entries besides.
fn area_length(size: u64, cluster_size: u32) -> u64 {
    let worst = with_page_headers((size / u64::from(cluster_size)) * worst_cluster_bytes(cluster_size));
    blocks_up(worst + (size / 64).clamp(512 << 10, 64 << 20))
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
            for size in [64 << 20, (64 << 20) + 5000, 1 << 30, 1 << 40, 1 << 46, 1 << 50] {
                if size / u64::from(cluster_size) > MAX_CLUSTERS {
                    assert_eq!(Layout::plan(size, cluster_size), None);
                    continue;
                }
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
    #[cfg_attr(miri, ignore = "takes minutes there")]
    fn a_store_grows_again_and_again_and_former_areas_become_clusters() {
        for cluster_size in (14..=22).map(|shift| 1 << shift) {
            let mut layout = Layout::plan(256 << 20, cluster_size).expect("large enough");
            let mut size = layout.size;
            for round in 0..4 {
                size = size * 2 + 5000;
                let grown = layout.grown(size).expect("large enough");
                assert_eq!((grown.check(), grown.journal), (Ok(()), layout.journal));
                assert!(grown.taken_clusters().all(|cluster| !grown.is_data(cluster) && !layout.is_data(cluster)));
                let kept = (layout.first_cluster..layout.first_cluster + layout.clusters).all(|at| grown.is_data(at));
                assert!(kept, "also where the areas were, round {round}");
                let data =
                    (grown.first_cluster..size.div_ceil(u64::from(cluster_size))).filter(|at| grown.is_data(*at));
                assert_eq!(data.count() as u64, grown.data_clusters());
                // The reserve for metadata is that of a new store of this size.
                assert!(grown.areas.iter().all(|area| area.length >= area_length(size, cluster_size)));
                layout = grown;
            }
        }
    }

    #[test]
    fn what_is_too_little_to_grow_by_names_what_is_enough() {
        let layout = Layout::plan(1 << 30, 64 << 10).expect("large enough");
        let least = layout.grown((1 << 30) + (1 << 20)).expect_err("no room for the areas");
        assert!((1 << 30..3 << 29).contains(&least), "{least}");
        assert_eq!(layout.grown(least - 4096), Err(least));
        assert_eq!(layout.grown(least).expect("enough").data_clusters(), layout.clusters + 1);
        assert_eq!(layout.grown(u64::MAX), Err(least));
    }

    #[test]
    fn areas_among_the_clusters_must_be_whole_clusters() {
        let good = Layout::plan(1 << 30, 64 << 10).expect("large enough").grown(2 << 30).expect("large enough");
        let [first, second] = good.areas;
        for area in [
            Region { offset: first.offset + 4096, ..first },
            Region { length: first.length - 4096, ..first },
            Region { offset: good.first_cluster * (64 << 10) - (64 << 10), length: 128 << 10 },
            Region { offset: (2 << 30) - (64 << 10), length: 128 << 10 },
            Region { length: first.length + (64 << 10), ..first },
        ] {
            assert!(Layout { areas: [area, second], ..good }.check().is_err(), "{area:?}");
        }
        let end = good.first_cluster * (64 << 10);
        let all = Layout {
            areas: [Region { offset: end, length: good.size - end }, Region { offset: 4 << 20, ..second }],
            ..good
        };
        assert!(all.check().is_err());
    }

    #[test]
    fn impossible_numbers_are_refused_before_arithmetic() {
        let good = Layout::plan(1 << 30, 64 << 10).expect("large enough");
        let bad = [
            Layout { cluster_size: 0, ..good },
            Layout { size: u64::MAX, ..good },
            Layout { size: 0, ..good },
            Layout { clusters: u64::MAX, ..good },
            Layout { size: 1 << 50, clusters: MAX_CLUSTERS, ..good },
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
