//! Which parts of a volume have space of their own, as the map of a replica in sync says.

use block_device::{Allocation, Error, ErrorKind, Range};
use replica::{Extent, ExtentKind, Replica};

use crate::core::Core;

/// Extents of each lvol of the chain that are looked at for one answer.
const EXTENTS: u32 = 256;

impl Core {
    /// The runs of the volume from byte `from` on, in order and without a gap: up to `max`, and no further than a look at the maps
    /// tells.
    ///
    /// # Errors
    /// No replica can say so now.
    pub(crate) async fn allocation(&self, from: u64, max: usize) -> Result<Vec<Allocation>, Error> {
        let source = {
            let members = self.members.borrow();
            members.source(0).and_then(|member| members.replica(member))
        };
        let source = source.ok_or_else(|| Error::new(ErrorKind::Unavailable))?;
        let whole = Range { offset: from, length: self.geometry.get().size().saturating_sub(from) };
        let mut runs = runs(&*source, whole).await?;
        runs.truncate(max);
        Ok(runs)
    }
}

/// The runs of a replica's head.
async fn runs(replica: &dyn Replica, mut whole: Range) -> Result<Vec<Allocation>, Error> {
    let mut layers = Vec::new();
    for lvol in replica.chain().await? {
        let extents = replica.extents(lvol.id, whole, EXTENTS).await?;
        if let Some(next) = extents.next {
            // What is behind is not known of this lvol.
            whole.length = whole.length.min(next.saturating_sub(whole.offset));
        }
        layers.push(extents.list);
    }
    Ok(overlaid(&layers, whole))
}

/// What the layers, oldest first, come to: at each place the newest one that has something there counts.
pub(crate) fn overlaid(layers: &[Vec<Extent>], whole: Range) -> Vec<Allocation> {
    let inside = |edge: &u64| (whole.offset..whole.end()).contains(edge);
    let edges = layers.iter().flatten().flat_map(|extent| [extent.range.offset, extent.range.end()]).filter(inside);
    let mut edges: Vec<_> = edges.chain([whole.offset, whole.end()]).collect();
    edges.sort_unstable();
    edges.dedup();
    let mut runs: Vec<Allocation> = Vec::new();
    for pair in edges.windows(2) {
        let range = Range { offset: pair[0], length: pair[1] - pair[0] };
        let mapped = layers.iter().rev().find_map(|layer| kind_at(layer, range.offset)) == Some(ExtentKind::Data);
        match runs.last_mut() {
            Some(last) if last.mapped == mapped => last.range.length += range.length,
            _ => runs.push(Allocation { range, mapped }),
        }
    }
    runs
}

/// What a layer has at a place.
fn kind_at(layer: &[Extent], at: u64) -> Option<ExtentKind> {
    let behind = layer.partition_point(|extent| extent.range.offset <= at);
    let extent = layer[..behind].last()?;
    (at < extent.range.end()).then_some(extent.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn range(offset: u64, length: u64) -> Range {
        Range { offset: offset << 12, length: length << 12 }
    }

    const fn extent(offset: u64, length: u64, kind: ExtentKind) -> Extent {
        Extent { range: range(offset, length), kind }
    }

    #[test]
    fn the_newest_layer_that_has_something_counts() {
        let oldest = vec![extent(0, 10, ExtentKind::Data), extent(20, 5, ExtentKind::Zero)];
        let newest = vec![extent(2, 2, ExtentKind::Zero), extent(9, 3, ExtentKind::Data)];
        let run = |offset, length, mapped| Allocation { range: range(offset, length), mapped };
        assert_eq!(
            overlaid(&[oldest.clone(), newest], range(0, 30)),
            [run(0, 2, true), run(2, 2, false), run(4, 8, true), run(12, 18, false)]
        );
        assert_eq!(overlaid(&[oldest], range(5, 5)), [run(5, 5, true)]);
        assert_eq!(overlaid(&[], range(0, 3)), [run(0, 3, false)]);
        assert_eq!(overlaid(&[], range(3, 0)), []);
    }
}
