//! Which blocks a backup deals with: those that the source's maps touch.

use std::collections::VecDeque;

use crate::error::{Error, Kind, Result};
use crate::source::{Extent, Source};

/// Extents that are asked for at once.
const PAGE: usize = 1024;

/// The offsets of blocks, in order, from maps that are read page by page.
pub(super) struct Offsets<'a> {
    source: &'a dyn Source,
    since: Option<&'a str>,
    block_size: u64,
    size: u64,
    /// Blocks before this are given, or not asked for.
    next: u64,
    /// Extents up to here were asked for.
    asked: u64,
    page: VecDeque<Extent>,
    ended: bool,
}

impl<'a> Offsets<'a> {
    /// From the block at `from` on.
    pub(super) fn new(source: &'a dyn Source, since: Option<&'a str>, size: u64, block_size: u64, from: u64) -> Self {
        Self { source, since, block_size, size, next: from, asked: from, page: VecDeque::new(), ended: false }
    }

    /// How many there are.
    pub(super) async fn count(mut self) -> Result<u64> {
        let mut count = 0;
        while self.next().await?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    pub(super) async fn next(&mut self) -> Result<Option<u64>> {
        loop {
            while let Some(extent) = self.page.front() {
                let end = extent.offset.saturating_add(extent.length).min(self.size);
                let block = (extent.offset - extent.offset % self.block_size).max(self.next);
                if block < end {
                    self.next = block + self.block_size;
                    return Ok(Some(block));
                }
                self.page.pop_front();
            }
            if self.ended {
                return Ok(None);
            }
            self.ask().await?;
        }
    }

    async fn ask(&mut self) -> Result<()> {
        let page = self.source.extents(self.since, self.asked, PAGE).await?;
        let Some(last) = page.last() else {
            self.ended = true;
            return Ok(());
        };
        let end = last.offset.saturating_add(last.length);
        if end <= self.asked {
            return Err(Error::new(Kind::SourceBusy, "the source's map goes backwards"));
        }
        self.ended = end >= self.size;
        self.asked = end;
        self.page = page.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::source::SnapshotInfo;

    struct Map(Vec<(u64, u64)>);

    #[async_trait]
    impl Source for Map {
        async fn snapshot(&self) -> Result<SnapshotInfo> {
            Err(Error::new(Kind::NotFound, "none"))
        }

        async fn has_snapshot(&self, _: &str) -> Result<bool> {
            Ok(false)
        }

        async fn extents(&self, _: Option<&str>, from: u64, most: usize) -> Result<Vec<Extent>> {
            let extents = self.0.iter().map(|(offset, length)| Extent { offset: *offset, length: *length });
            Ok(extents.filter(|extent| extent.offset + extent.length > from).take(most.min(2)).collect())
        }

        async fn read(&self, _: u64, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
    }

    async fn offsets(map: &Map, size: u64, from: u64) -> Vec<u64> {
        let mut offsets = Offsets::new(map, None, size, 10, from);
        let mut found = Vec::new();
        while let Some(offset) = offsets.next().await.expect("a map") {
            found.push(offset);
        }
        found
    }

    #[tokio::test]
    async fn each_block_that_is_touched_comes_once() {
        let map = Map(vec![(0, 1), (3, 2), (8, 4), (25, 20), (60, 1), (69, 2), (95, 100)]);
        assert_eq!(offsets(&map, 100, 0).await, [0, 10, 20, 30, 40, 60, 70, 90]);
        assert_eq!(offsets(&map, 100, 40).await, [40, 60, 70, 90]);
        assert_eq!(offsets(&Map(vec![]), 100, 0).await, [0; 0]);
        assert_eq!(Offsets::new(&map, None, 100, 10, 0).count().await, Ok(8));
    }
}
