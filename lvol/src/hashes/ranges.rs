//! What of an lvol cannot be read because its blocks are marked.

use std::rc::Rc;

use block_device::Range;
use uuid::Uuid;

use crate::chain::Source;
use crate::error::StoreError;
use crate::format::BLOCK;
use crate::store::Store;
use crate::transfer::{DataRuns, PIECE};

impl Store {
    /// Up to `max` ranges of bytes of an lvol, in order, whose data is known to be wrong, wherever in its chain it is held: reads
    /// of them fail. Costs a walk through its maps when any block of the store is marked, and nothing otherwise.
    pub async fn damaged_ranges(&self, id: Uuid, max: usize) -> Result<Vec<Range>, StoreError> {
        let mut found: Vec<Range> = Vec::new();
        if !self.core.marks.any() {
            return Ok(found);
        }
        let lvol = Rc::new(self.core.open_lvol(id).await?);
        let size = lvol.volume().size();
        let mut runs = DataRuns::new(Rc::clone(&lvol));
        while let Some(run) = runs.next(PIECE).await {
            let mut at = run.offset;
            for piece in lvol.resolve(run) {
                if let Source::Disk(place) = piece.source {
                    for marked in self.core.marks.within(Range { offset: place, length: piece.length }) {
                        let offset = at + (marked.first * BLOCK).saturating_sub(place);
                        let length = (u64::from(marked.count) * BLOCK).min(size - offset);
                        push(&mut found, Range { offset, length });
                    }
                }
                at += piece.length;
            }
            if found.len() > max {
                found.truncate(max);
                break;
            }
        }
        Ok(found)
    }
}

fn push(found: &mut Vec<Range>, range: Range) {
    match found.last_mut() {
        Some(last) if last.end() == range.offset => last.length += range.length,
        _ => found.push(range),
    }
}
