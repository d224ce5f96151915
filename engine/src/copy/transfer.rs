//! Single reads and writes of the copier.

use std::time::Duration;

use block_device::{Error, ErrorKind, Outcome, Range, Request, Segments, execute};
use replica::Replica;
use uuid::Uuid;

use super::walk::side_by_side;

/// How long to leave a busy replica alone (I33).
const PAUSE: Duration = Duration::from_millis(5);

/// Performs a request on a replica's head; one that is busy is asked again.
pub(crate) async fn perform(replica: &dyn Replica, request: Request) -> Outcome {
    loop {
        match execute(replica, request.clone()).await {
            Err(error) if error.kind() == ErrorKind::Busy => reactor::sleep(PAUSE).await,
            outcome => return outcome,
        }
    }
}

/// Reads through an lvol of a replica's chain; one that is busy is asked again.
pub(crate) async fn read_lvol(replica: &dyn Replica, lvol: Uuid, range: Range) -> Outcome {
    loop {
        match replica.read_lvol(lvol, range).await {
            Err(error) if error.kind() == ErrorKind::Busy => reactor::sleep(PAUSE).await,
            outcome => return outcome,
        }
    }
}

/// Hashes of what is read through an lvol of a replica's chain; one that is busy is asked again.
pub(super) async fn hashes(replica: &dyn Replica, lvol: Uuid, range: Range, granule: u32) -> Result<Vec<u128>, Error> {
    loop {
        match replica.hashes(lvol, range, granule).await {
            Err(error) if error.kind() == ErrorKind::Busy => reactor::sleep(PAUSE).await,
            hashes => return hashes,
        }
    }
}

/// Writes what was read, its pieces side by side.
pub(crate) async fn write(replica: &dyn Replica, mut offset: u64, data: Segments) -> Result<(), Error> {
    let writes = data.into_iter().map(|slice| {
        let at = offset;
        offset += slice.len() as u64;
        async move { perform(replica, Request::write(at, slice)).await.map(drop) }
    });
    side_by_side(writes).await
}

/// A range in pieces of at most `length` bytes.
pub(crate) fn pieces(range: Range, length: u64) -> impl Iterator<Item = Range> {
    let mut offset = range.offset;
    std::iter::from_fn(move || {
        let piece = Range { offset, length: length.min(range.end().saturating_sub(offset)) };
        offset = piece.end();
        (piece.length > 0).then_some(piece)
    })
}

/// The outputs of two futures that run beside each other.
pub(super) async fn both<A: Future, B: Future>(first: A, second: B) -> (A::Output, B::Output) {
    let (mut first, mut second) = (std::pin::pin!(first), std::pin::pin!(second));
    let (mut one, mut other) = (None, None);
    std::future::poll_fn(|context| {
        use std::task::Poll;
        if one.is_none()
            && let Poll::Ready(output) = first.as_mut().poll(context)
        {
            one = Some(output);
        }
        if other.is_none()
            && let Poll::Ready(output) = second.as_mut().poll(context)
        {
            other = Some(output);
        }
        match (one.take(), other.take()) {
            (Some(first), Some(second)) => Poll::Ready((first, second)),
            (first, second) => {
                (one, other) = (first, second);
                Poll::Pending
            }
        }
    })
    .await
}

/// The part of `range` inside `of`; none if they do not overlap.
pub(crate) fn cut(range: Range, of: Range) -> Option<Range> {
    let (start, end) = (range.offset.max(of.offset), range.end().min(of.end()));
    (start < end).then(|| Range { offset: start, length: end - start })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_range_exactly() {
        let range = Range { offset: 4096, length: 10_000 };
        let pieces: Vec<_> = pieces(range, 4096).map(|piece| (piece.offset, piece.length)).collect();
        assert_eq!(pieces, [(4096, 4096), (8192, 4096), (12288, 1808)]);
    }

    #[test]
    fn a_cut_is_what_both_share() {
        let region = Range { offset: 100, length: 100 };
        assert_eq!(cut(Range { offset: 0, length: 150 }, region), Some(Range { offset: 100, length: 50 }));
        assert_eq!(cut(Range { offset: 0, length: 100 }, region), None);
        assert_eq!(cut(Range { offset: 0, length: 900 }, region), Some(region));
    }
}
