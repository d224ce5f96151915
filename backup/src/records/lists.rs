//! Block lists: their entries on disk, and what two of them come to.

use std::cmp::Ordering;
use std::io;
use std::iter::Peekable;

use super::spool::Entry;
use crate::block::Checksum;
use crate::format::backup::BlockEntry;

impl Entry for BlockEntry {
    const BYTES: usize = 40;
    const MAGIC: [u8; 8] = *b"ASHLBLKS";

    fn put(&self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..].copy_from_slice(&self.checksum.0);
    }

    fn take(bytes: &[u8]) -> Option<Self> {
        let offset = u64::from_le_bytes(bytes[..8].try_into().ok()?);
        Some(Self { offset, checksum: Checksum(bytes[8..40].try_into().ok()?) })
    }
}

/// What is at one offset of two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pair {
    /// Only the old one has it.
    Old(BlockEntry),
    /// Only the new one has it.
    New(BlockEntry),
    /// Both have it.
    Both { old: BlockEntry, new: BlockEntry },
}

/// Goes through two lists, both sorted by offset, at once.
pub(crate) struct Pairs<O: Iterator, N: Iterator> {
    old: Peekable<O>,
    new: Peekable<N>,
}

impl<O, N> Pairs<O, N>
where
    O: Iterator<Item = io::Result<BlockEntry>>,
    N: Iterator<Item = io::Result<BlockEntry>>,
{
    pub(crate) fn new(old: O, new: N) -> Self {
        Self { old: old.peekable(), new: new.peekable() }
    }

    fn order(&mut self) -> Option<Ordering> {
        match (self.old.peek(), self.new.peek()) {
            (None, None) => None,
            // An error comes out first.
            (Some(Err(_)) | Some(_), None) | (Some(Err(_)), _) => Some(Ordering::Less),
            (None, Some(_)) | (_, Some(Err(_))) => Some(Ordering::Greater),
            (Some(Ok(old)), Some(Ok(new))) => Some(old.offset.cmp(&new.offset)),
        }
    }
}

impl<O, N> Iterator for Pairs<O, N>
where
    O: Iterator<Item = io::Result<BlockEntry>>,
    N: Iterator<Item = io::Result<BlockEntry>>,
{
    type Item = io::Result<Pair>;

    fn next(&mut self) -> Option<io::Result<Pair>> {
        match self.order()? {
            Ordering::Less => self.old.next().map(|old| old.map(Pair::Old)),
            Ordering::Greater => self.new.next().map(|new| new.map(Pair::New)),
            Ordering::Equal => {
                let (old, new) = (self.old.next()?, self.new.next()?);
                Some(old.and_then(|old| Ok(Pair::Both { old, new: new? })))
            }
        }
    }
}

/// The list of a backup: what changed replaces what the one before has, all else stays.
pub(crate) fn merge(
    base: impl Iterator<Item = io::Result<BlockEntry>>,
    delta: impl Iterator<Item = io::Result<BlockEntry>>,
) -> impl Iterator<Item = io::Result<BlockEntry>> {
    Pairs::new(base, delta).map(|pair| {
        pair.map(|pair| match pair {
            Pair::Old(entry) | Pair::New(entry) | Pair::Both { new: entry, .. } => entry,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(offsets: &[(u64, u8)]) -> Vec<io::Result<BlockEntry>> {
        offsets.iter().map(|(offset, content)| Ok(entry(*offset, *content))).collect()
    }

    fn entry(offset: u64, content: u8) -> BlockEntry {
        BlockEntry { offset, checksum: Checksum([content; 32]) }
    }

    #[test]
    fn what_changed_replaces_and_the_rest_stays() {
        let merged = merge(list(&[(0, 1), (2, 1), (4, 1)]).into_iter(), list(&[(1, 2), (2, 2), (9, 2)]).into_iter());
        let merged: Vec<_> = merged.map(|entry| entry.expect("an entry")).collect();
        assert_eq!(merged, [entry(0, 1), entry(1, 2), entry(2, 2), entry(4, 1), entry(9, 2)]);
    }

    #[test]
    fn an_error_of_either_list_comes_out() {
        let broken = || vec![Err(io::Error::other("broken"))].into_iter();
        assert!(merge(list(&[(0, 1)]).into_iter(), broken()).any(|entry| entry.is_err()));
        assert!(merge(broken(), list(&[(0, 1)]).into_iter()).any(|entry| entry.is_err()));
    }
}
