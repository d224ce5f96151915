//! What becomes of writes that were not synced when the power goes.
//!
//! Each sector of each such write is on the medium or not, whatever the order in which the writes were issued. Applying
//! a subset of all sectors in the order of completion reaches every outcome a medium can have, reordering included: of two
//! writes to one sector either the old content, the first or the second remains.

use std::sync::Arc;

use super::image::{Change, Content, DiskImage};
use super::random::Random;

/// What became of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Lost,
    Kept,
    /// The first sectors only.
    Prefix(u64),
    /// Each sector by itself, from this seed.
    Scattered(u64),
}

impl Fate {
    /// Leaves on `image` what this fate leaves of `change`.
    pub(crate) fn apply(self, change: &Change, image: &mut DiskImage) {
        match self {
            Self::Lost => {}
            Self::Kept => change.apply(image),
            Self::Prefix(sectors) => change.apply_sectors(image, 0, sectors.min(change.sectors())),
            Self::Scattered(seed) => {
                let mut random = Random::new(seed);
                for sector in 0..change.sectors() {
                    if random.one_in(2) {
                        change.apply_sectors(image, sector, 1);
                    }
                }
            }
        }
    }

    /// Any of them; whole writes are more likely than torn ones, as in life.
    fn any(change: &Change, random: &mut Random) -> Self {
        match random.below(8) {
            0..3 => Self::Lost,
            3..6 => Self::Kept,
            6 => Self::Prefix(random.below(change.sectors() + 1)),
            _ => Self::Scattered(random.next_u64()),
        }
    }
}

/// The disk after a power cut: `durable` with some of the unsynced changes, given in order of completion.
pub(crate) fn after_power_cut(durable: &DiskImage, unsynced: &[Arc<Change>], random: &mut Random) -> DiskImage {
    let mut image = durable.clone();
    // Some cuts are of one kind all through: those find what mixtures hide.
    let style = random.below(5);
    for change in unsynced {
        let fate = match style {
            0 => Fate::Lost,
            1 => Fate::Kept,
            2 if random.one_in(2) => Fate::Lost,
            2 => Fate::Kept,
            _ => Fate::any(change, random),
        };
        fate.apply(change, &mut image);
    }
    image
}

/// What the kernel finishes of a write that was in flight when its process was killed: all, nothing, or a first part.
pub(crate) fn after_kill(change: &Arc<Change>, random: &mut Random) -> Option<Arc<Change>> {
    match random.below(8) {
        0..4 => Some(Arc::clone(change)),
        4..7 => None,
        _ => {
            let length = random.below(change.sectors()) * change.sector;
            let content = match &change.content {
                Content::Bytes(data) => Content::Bytes(data[..length as usize].into()),
                zeroes @ (Content::Zeroes | Content::Hole) => zeroes.clone(),
            };
            (length > 0).then(|| Arc::new(Change { length, content, ..**change }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(fill: u8, sectors: u64) -> Arc<Change> {
        let length = sectors * 512;
        Arc::new(Change { offset: 0, length, sector: 512, content: Content::Bytes(vec![fill; length as usize].into()) })
    }

    #[test]
    fn every_outcome_of_two_writes_to_two_sectors_is_reached() {
        let durable = DiskImage::new(1024);
        let writes = [change(1, 2), change(2, 2)];
        let mut seen = std::collections::BTreeSet::new();
        let mut random = Random::new(7);
        for _ in 0..2000 {
            let image = after_power_cut(&durable, &writes, &mut random);
            seen.insert((image.bytes(0, 1)[0], image.bytes(512, 1)[0]));
        }
        assert_eq!(seen.len(), 9, "{seen:?}");
    }

    #[test]
    fn a_write_never_tears_within_a_sector() {
        let durable = DiskImage::new(8192);
        let mut random = Random::new(8);
        for _ in 0..500 {
            let image = after_power_cut(&durable, &[change(5, 16)], &mut random);
            for sector in 0..16 {
                let bytes = image.bytes(sector * 512, 512);
                assert!(bytes.iter().all(|&byte| byte == bytes[0]));
            }
        }
    }
}
