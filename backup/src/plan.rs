//! What a restore has to do, step by step, in a file: it is made once, and a restart goes on within it.

use std::io;
use std::path::Path;

use crate::block::Checksum;
use crate::error::{Error, Kind, Result, local};
use crate::format::backup::BlockEntry;
use crate::records::lists::{Pair, Pairs};
use crate::records::spool::{Entry, Reader, Writer};

/// Most bytes that one step zeroes.
const LONGEST_ZERO: u64 = 1 << 30;

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The block of this content goes to its offset.
    Write(BlockEntry),
    /// A range reads as zeroes.
    Zero { offset: u64, length: u64 },
}

impl Entry for Step {
    const BYTES: usize = 48;
    const MAGIC: [u8; 8] = *b"ASHLPLAN";

    fn put(&self, bytes: &mut [u8]) {
        bytes.fill(0);
        match self {
            Self::Write(block) => block.put(&mut bytes[8..48]),
            Self::Zero { offset, length } => {
                // No block has this length before it: that tells the two apart.
                bytes[..8].copy_from_slice(&length.to_le_bytes());
                bytes[8..16].copy_from_slice(&offset.to_le_bytes());
            }
        }
    }

    fn take(bytes: &[u8]) -> Option<Self> {
        let length = u64::from_le_bytes(bytes[..8].try_into().ok()?);
        let offset = u64::from_le_bytes(bytes[8..16].try_into().ok()?);
        if length > 0 {
            return Some(Self::Zero { offset, length });
        }
        Some(Self::Write(BlockEntry { offset, checksum: Checksum(bytes[16..48].try_into().ok()?) }))
    }
}

/// Writes steps, and puts ranges of zeroes together.
struct Planner {
    writer: Writer<Step>,
    zero: Option<(u64, u64)>,
}

impl Planner {
    fn write(&mut self, block: BlockEntry) -> io::Result<()> {
        self.end_zero()?;
        self.writer.push(&Step::Write(block))
    }

    fn zero(&mut self, offset: u64, length: u64) -> io::Result<()> {
        match &mut self.zero {
            Some((begin, so_far)) if *begin + *so_far == offset => *so_far += length,
            _ => {
                self.end_zero()?;
                self.zero = Some((offset, length));
            }
        }
        Ok(())
    }

    fn end_zero(&mut self) -> io::Result<()> {
        let Some((mut offset, mut left)) = self.zero.take() else { return Ok(()) };
        while left > 0 {
            let length = left.min(LONGEST_ZERO);
            self.writer.push(&Step::Zero { offset, length })?;
            (offset, left) = (offset + length, left - length);
        }
        Ok(())
    }
}

/// Plans a restore of the list at `list` onto a device of `size` bytes, which holds what the list at `base` says, or anything.
/// Returns the bytes that it deals with.
pub(crate) fn make(path: &Path, list: &Path, base: Option<&Path>, size: u64, block_size: u64) -> Result<()> {
    let new = open(list)?;
    let make = || {
        let mut planner = Planner { writer: Writer::create(path)?, zero: None };
        match base {
            None => full(&mut planner, new, size, block_size)?,
            Some(base) => {
                let old = open(base).map_err(|error| io::Error::other(error.to_string()))?;
                incremental(&mut planner, old, new, block_size)?;
            }
        }
        planner.end_zero()?;
        planner.writer.finish()
    };
    make().map(|_| ()).map_err(local(path.display()))
}

fn open(list: &Path) -> Result<Reader<BlockEntry>> {
    let damaged = || Error::new(Kind::Local, format!("{}: no whole list", list.display()));
    Reader::open(list)?.ok_or_else(damaged)
}

/// All blocks, and zeroes wherever there is none: what the device held does not matter.
fn full(planner: &mut Planner, list: Reader<BlockEntry>, size: u64, block_size: u64) -> io::Result<()> {
    let mut next = 0;
    for block in list {
        let block = block?;
        if block.offset > next {
            planner.zero(next, block.offset - next)?;
        }
        planner.write(block)?;
        next = block.offset + block_size;
    }
    if size > next { planner.zero(next, size - next) } else { Ok(()) }
}

/// Blocks that differ, and zeroes where there is none any more (L4).
fn incremental(
    planner: &mut Planner,
    old: Reader<BlockEntry>,
    new: Reader<BlockEntry>,
    block_size: u64,
) -> io::Result<()> {
    for pair in Pairs::new(old, new) {
        match pair? {
            Pair::Old(gone) => planner.zero(gone.offset, block_size)?,
            Pair::New(block) => planner.write(block)?,
            Pair::Both { old, new } if old.checksum != new.checksum => planner.write(new)?,
            Pair::Both { .. } => {}
        }
    }
    Ok(())
}

/// Bytes that the steps of a plan deal with: of the first `steps`, and of all.
pub(crate) fn bytes_of(path: &Path, steps: u64, block_size: u64) -> Result<(u64, u64)> {
    let (mut done, mut total) = (0, 0);
    for (index, step) in (0..).zip(open_plan(path)?.into_iter().flatten()) {
        let length = match step.map_err(local(path.display()))? {
            Step::Write(_) => block_size,
            Step::Zero { length, .. } => length,
        };
        total += length;
        done += if index < steps { length } else { 0 };
    }
    Ok((done, total))
}

/// The plan at `path`; None if there is none that is whole.
pub(crate) fn open_plan(path: &Path) -> Result<Option<Reader<Step>>> {
    Reader::open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(offset: u64, content: u8) -> BlockEntry {
        BlockEntry { offset, checksum: Checksum([content; 32]) }
    }

    fn steps(old: Option<&[BlockEntry]>, new: &[BlockEntry], size: u64) -> Vec<Step> {
        let folder = tempfile::tempdir().expect("a folder");
        let list = |name: &str, blocks: &[BlockEntry]| {
            let path = folder.path().join(name);
            let mut writer = Writer::create(&path).expect("a file");
            blocks.iter().for_each(|block| writer.push(block).expect("room"));
            writer.finish().expect("finished");
            path
        };
        let (new, old) = (list("new", new), old.map(|old| list("old", old)));
        let path = folder.path().join("plan");
        make(&path, &new, old.as_deref(), size, 10).expect("a plan");
        let plan = open_plan(&path).expect("read").expect("whole");
        plan.map(|step| step.expect("a step")).collect()
    }

    #[test]
    fn a_full_restore_zeroes_all_that_the_backup_has_not() {
        let found = steps(None, &[block(10, 1), block(40, 2)], 100);
        let zero = |offset, length| Step::Zero { offset, length };
        let expected = [zero(0, 10), Step::Write(block(10, 1)), zero(20, 20), Step::Write(block(40, 2)), zero(50, 50)];
        assert_eq!(found, expected);
    }

    #[test]
    fn an_incremental_restore_zeroes_what_vanished() {
        let old = [block(0, 1), block(10, 1), block(20, 1), block(30, 1), block(50, 1)];
        let new = [block(0, 1), block(30, 2), block(60, 1)];
        let expected = [
            Step::Zero { offset: 10, length: 20 },
            Step::Write(block(30, 2)),
            Step::Zero { offset: 50, length: 10 },
            Step::Write(block(60, 1)),
        ];
        assert_eq!(steps(Some(&old), &new, 100), expected);
        assert_eq!(steps(Some(&old), &old, 100), []);
    }

    #[test]
    fn a_long_range_is_zeroed_in_parts() {
        let found = steps(None, &[], (5 << 30) / 2);
        let lengths: Vec<_> =
            found.iter().map(|step| matches!(step, Step::Zero { length, .. } if *length <= LONGEST_ZERO)).collect();
        assert_eq!(lengths, [true, true, true]);
    }
}
