//! What a backup has done: an entry for each block.

use crate::format::backup::BlockEntry;
use crate::records::spool::Entry;

/// What became of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was there.
    There,
    /// It is new.
    New,
    /// It was there and was stored again.
    Again,
}

/// A block that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) block: BlockEntry,
    pub(crate) fate: Fate,
    /// Packed bytes that were stored for it.
    pub(crate) stored: u32,
}

impl Entry for Done {
    const BYTES: usize = 45;
    const MAGIC: [u8; 8] = *b"ASHLDELT";

    fn put(&self, bytes: &mut [u8]) {
        self.block.put(&mut bytes[..40]);
        bytes[40..44].copy_from_slice(&self.stored.to_le_bytes());
        bytes[44] = self.fate as u8;
    }

    fn take(bytes: &[u8]) -> Option<Self> {
        let fate = [Fate::There, Fate::New, Fate::Again].into_iter().find(|fate| *fate as u8 == bytes[44])?;
        let stored = u32::from_le_bytes(bytes[40..44].try_into().ok()?);
        Some(Self { block: BlockEntry::take(&bytes[..40])?, fate, stored })
    }
}

/// What the entries come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) count: u64,
    /// The last one's offset.
    pub(crate) last: Option<u64>,
    pub(crate) new_blocks: u64,
    pub(crate) new_bytes: u64,
    pub(crate) again_bytes: u64,
}

impl Sums {
    pub(crate) fn add(&mut self, done: &Done) {
        self.count += 1;
        self.last = Some(done.block.offset);
        match done.fate {
            Fate::There => {}
            Fate::New => {
                self.new_blocks += 1;
                self.new_bytes += u64::from(done.stored);
            }
            Fate::Again => self.again_bytes += u64::from(done.stored),
        }
    }
}

/// A block of no content, to find out what is no checksum.
#[cfg(test)]
pub(crate) fn example(offset: u64) -> Done {
    Done { block: BlockEntry { offset, checksum: crate::block::Checksum::of(b"") }, fate: Fate::New, stored: 7 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_back_and_nonsense_does_not() {
        let mut bytes = [0; Done::BYTES];
        example(4 << 20).put(&mut bytes);
        assert_eq!(Done::take(&bytes), Some(example(4 << 20)));
        bytes[44] = 9;
        assert_eq!(Done::take(&bytes), None);
    }

    #[test]
    fn sums_tell_new_from_again() {
        let mut sums = Sums::default();
        sums.add(&example(0));
        sums.add(&Done { fate: Fate::Again, ..example(2) });
        sums.add(&Done { fate: Fate::There, stored: 0, ..example(4) });
        assert_eq!(sums, Sums { count: 3, last: Some(4), new_blocks: 1, new_bytes: 7, again_bytes: 7 });
    }
}
