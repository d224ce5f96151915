//! Finding what differs by hashes, and sending only that.

use block_device::{Error, ErrorKind, Range};
use reactor::bug;
use replica::{Replica, content_hash};
use uuid::Uuid;

use super::transfer::{both, hashes, pieces, read_lvol, write};
use super::{COMPARED_AT_ONCE, Job};

/// Pieces compared first, and those in which what differs is sent, in bytes.
pub(super) const COARSE: u32 = 64 << 10;
const FINE: u32 = 4 << 10;

/// An lvol of the source and the one of the target that is compared with it.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) source: &'a dyn Replica,
    pub(super) ours: Uuid,
    pub(super) theirs: Uuid,
    /// Where the lvols end, in bytes: a snapshot may be smaller than the volume is now. A head has no end of its own, it grows.
    pub(super) end: u64,
}

/// A run of pieces that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Difference {
    range: Range,
    /// The source has zeroes there.
    zero: bool,
    /// The target cannot read all of it.
    unread: bool,
}

impl Job<'_> {
    /// Makes the target's head read like the source in a range; what is equal is not sent.
    pub(super) async fn equalize(&self, pair: Pair<'_>, range: Range) -> Result<(), Error> {
        if bug!("equalize-nothing") {
            return Ok(());
        }
        for coarse in self.differences(pair, range, COARSE).await? {
            for Difference { range, zero, .. } in self.differences(pair, coarse.range, FINE).await? {
                match zero {
                    true => self.zero(range).await?,
                    false => self.send(pair, range).await?,
                }
            }
            self.check_readable(pair, coarse).await?;
        }
        self.compared(range.length);
        Ok(())
    }

    /// What the target could not read was sent anew: it has to be there now, or its disk is no place for it.
    async fn check_readable(&self, pair: Pair<'_>, sent: Difference) -> Result<(), Error> {
        if sent.unread {
            hashes(&*self.target, pair.theirs, sent.range, COARSE).await?;
        }
        Ok(())
    }

    /// Whether two snapshots read the same in a range.
    pub(super) async fn is_equal(&self, pair: Pair<'_>, range: Range) -> Result<bool, Error> {
        let range = widened(range, pair.end);
        let equal = self.differences(pair, range, COARSE).await?.is_empty();
        self.compared(range.length);
        Ok(equal)
    }

    /// Writes what the source reads as to the target's head.
    pub(super) async fn send(&self, pair: Pair<'_>, range: Range) -> Result<(), Error> {
        let read = self.core.in_time(read_lvol(pair.source, pair.ours, range)).await;
        let data = read.inspect_err(|error| self.source_failed(pair, range, error))?;
        self.core.in_time(write(&*self.target, range.offset, data)).await?;
        self.sent(range.length);
        Ok(())
    }

    /// What the source cannot read is mended from another replica in sync, if there is one; the next job finds it whole.
    fn source_failed(&self, pair: Pair<'_>, range: Range, error: &Error) {
        if error.kind() == ErrorKind::ReadFailed {
            self.core.want_mended_at(pair.source.id(), range);
        }
    }

    async fn differences(&self, pair: Pair<'_>, range: Range, granule: u32) -> Result<Vec<Difference>, Error> {
        let mut found = Vec::new();
        for range in pieces(range, COMPARED_AT_ONCE) {
            let ours = hashes(pair.source, pair.ours, range, granule);
            let theirs = hashes(&*self.target, pair.theirs, range, granule);
            let (ours, theirs) = both(self.core.in_time(ours), self.core.in_time(theirs)).await;
            let ours = ours.inspect_err(|error| self.source_failed(pair, range, error))?;
            match theirs {
                // What the target cannot read differs, whatever it was.
                Err(error) if error.kind() == ErrorKind::ReadFailed => {
                    found.push(Difference { range, zero: false, unread: true });
                }
                theirs => collect(&mut found, range, granule, &ours, &theirs?)?,
            }
        }
        Ok(found)
    }
}

/// Up to where coarse pieces begin and end, as far as the lvol reaches: stored hashes are of such pieces.
fn widened(range: Range, size: u64) -> Range {
    let coarse = u64::from(COARSE);
    let (start, end) = (range.offset - range.offset % coarse, range.end().next_multiple_of(coarse).min(size));
    Range { offset: start, length: end.max(range.end()) - start }
}

/// Adds the pieces of a range whose hashes differ to a list; those that touch become one.
fn collect(
    found: &mut Vec<Difference>,
    range: Range,
    granule: u32,
    ours: &[u128],
    theirs: &[u128],
) -> Result<(), Error> {
    let pieces: Vec<Range> = pieces(range, granule.into()).collect();
    if ours.len() != pieces.len() || theirs.len() != pieces.len() {
        return Err(Error::with_detail(ErrorKind::Internal, "a replica gave too few or too many hashes"));
    }
    let zeroes = content_hash(&vec![0; granule as usize]);
    for (range, (ours, theirs)) in pieces.into_iter().zip(ours.iter().zip(theirs)) {
        if ours == theirs {
            continue;
        }
        let zero = *ours == zeroes && range.length == u64::from(granule);
        match found.last_mut() {
            Some(last) if last.zero == zero && !last.unread && last.range.end() == range.offset => {
                last.range.length += range.length;
            }
            _ => found.push(Difference { range, zero, unread: false }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_widened_to_what_has_stored_hashes() {
        let range = |offset, length| Range { offset, length };
        assert_eq!(widened(range(4096, 4096), 1 << 20), range(0, 65536));
        assert_eq!(widened(range(61440, 8192), 1 << 20), range(0, 131_072));
        assert_eq!(widened(range(65536, 65536), 1 << 20), range(65536, 65536));
        assert_eq!(widened(range(65536, 4096), 65536 + 8192), range(65536, 8192), "the end of the lvol");
    }

    #[test]
    fn what_differs_is_found_and_joined() {
        let zeroes = content_hash(&[0; 4096]);
        let range = Range { offset: 8192, length: 5 * 4096 + 512 };
        let mut found = Vec::new();
        collect(&mut found, range, 4096, &[1, 2, 3, zeroes, 5, 6], &[1, 0, 0, 0, 5, 0]).expect("as many as pieces");
        let difference = |offset, length, zero| Difference { range: Range { offset, length }, zero, unread: false };
        let expected =
            [difference(12288, 8192, false), difference(20480, 4096, true), difference(8192 + 5 * 4096, 512, false)];
        assert_eq!(found, expected);
        assert!(collect(&mut found, range, 4096, &[1], &[1, 2, 3, 4, 5, 6]).is_err(), "a list too short");
    }
}
