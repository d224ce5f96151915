//! Replaying the journal on top of a checkpoint.

use std::collections::BTreeSet;

use reactor::{Buffer, Disk, bug};

use super::scan::{Found, Scan};
use crate::catalog::Catalog;
use crate::error::StoreError;
use crate::format::record::{BlockChecksums, Record};
use crate::format::superblock::Superblock;
use crate::format::{BLOCK, crc32c};
use crate::journal::ReplayStart;

/// What there is to replay.
pub(super) struct Outlook {
    /// Maps that are changed or dropped.
    pub(super) touched: BTreeSet<u32>,
    /// Records of batches up to this one are true with their data.
    durable_through: u64,
    /// In the same boot nothing that was written is lost, synced or not.
    same_boot: bool,
    /// The batch after the last one, and its place.
    pub(super) end: ReplayStart,
}

/// Reads the journal without believing it yet. Its batches are not kept: they may be more than memory should hold.
pub(super) async fn look(disk: &Disk, superblock: &Superblock) -> Result<Outlook, StoreError> {
    let mut scan = Scan::new(disk, superblock);
    let same_boot = superblock.boot_id == reactor::boot_id();
    let mut durable_through = superblock.checkpoint.durable_through;
    let mut touched = BTreeSet::new();
    while let Some(batch) = scan.next().await? {
        durable_through = durable_through.max(batch.head.durable_through);
        batch.records.iter().for_each(|record| touched.extend(changed_maps(record)));
    }
    scan.check_end(same_boot).await?;
    Ok(Outlook { touched, durable_through, same_boot, end: scan.end() })
}

fn changed_maps(record: &Record) -> impl Iterator<Item = u32> + use<> {
    let maps = match record {
        Record::MapSet { map, .. }
        | Record::MapSetZeroed { map, .. }
        | Record::MapClear { map, .. }
        | Record::MapZero { map, .. }
        | Record::MapDrop { map } => [Some(*map), None],
        Record::MapMerge { from, to, .. } => [Some(*from), Some(*to)],
        Record::LvolPut(_) | Record::LvolRemove { .. } | Record::BlocksMarked { .. } => [None, None],
    };
    maps.into_iter().flatten()
}

/// Applies all batches of the journal to the catalog, which has the touched maps in memory.
pub(super) async fn replay(
    disk: &Disk,
    superblock: &Superblock,
    catalog: &mut Catalog,
    outlook: &Outlook,
) -> Result<(), StoreError> {
    let Outlook { durable_through, same_boot, end, .. } = *outlook;
    let mut replay = Replay { disk, catalog, same_boot, durable_through, zeroes: BTreeSet::new(), dropped: 0 };
    let mut scan = Scan::new(disk, superblock);
    while scan.end().batch < end.batch {
        let again = scan.next().await?;
        let batch =
            again.ok_or_else(|| StoreError::damaged("the journal reads otherwise the second time".to_owned()))?;
        replay.apply(&batch).await?;
    }
    replay.finish().await
}

struct Replay<'a> {
    disk: &'a Disk,
    catalog: &'a mut Catalog,
    same_boot: bool,
    /// Records of batches up to this one are true with their data.
    durable_through: u64,
    /// Blocks that must read as zeroes and may not, by cluster and block.
    zeroes: BTreeSet<(u64, u16)>,
    /// Blocks that were never flushed and did not survive.
    dropped: u64,
}

impl Replay<'_> {
    async fn apply(&mut self, batch: &Found) -> Result<(), StoreError> {
        let flushed = batch.head.sequence <= self.durable_through;
        let trusted = self.same_boot || flushed || bug!("trust-unflushed-blocks");
        for record in &batch.records {
            match record {
                Record::MapSet { map, index, cluster, first, checksums } if !trusted => {
                    let kept = self.verify(*cluster, *first, checksums).await?;
                    for (first, checksums) in runs(*first, checksums, &kept) {
                        self.apply_record(&Record::MapSet {
                            map: *map,
                            index: *index,
                            cluster: *cluster,
                            first,
                            checksums,
                        });
                    }
                }
                Record::MapSetZeroed { cluster, first, count, .. } => {
                    if !trusted && self.catalog.layout().is_data(*cluster) {
                        let blocks = u64::from(self.catalog.layout().blocks_per_cluster());
                        let end = (u64::from(*first) + u64::from(*count)).min(blocks) as u16;
                        self.zeroes.extend((*first..end).map(|block| (*cluster, block)));
                    }
                    self.apply_record(record);
                }
                _ => self.apply_record(record),
            }
        }
        Ok(())
    }

    /// What does not fit damages the lvol it is about, not the store.
    fn apply_record(&mut self, record: &Record) {
        // Freed clusters need no care: the allocator is made from the maps afterwards.
        let Err(error) = self.catalog.apply(record, &mut Vec::new()) else { return };
        match record {
            Record::MapSet { map, .. }
            | Record::MapSetZeroed { map, .. }
            | Record::MapClear { map, .. }
            | Record::MapZero { map, .. }
            | Record::MapDrop { map }
            | Record::MapMerge { to: map, .. } => self.catalog.maps.damage(*map, error.0),
            Record::LvolPut(record) => tracing::error!(lvol = %record.uuid, %error, "an lvol record was left out"),
            Record::LvolRemove { .. } | Record::BlocksMarked { .. } => {}
        }
    }

    /// Which of the blocks hold what their record says was written.
    async fn verify(&mut self, cluster: u64, first: u16, checksums: &BlockChecksums) -> Result<Vec<bool>, StoreError> {
        let layout = *self.catalog.layout();
        let end = usize::from(first) + checksums.len();
        if !layout.is_data(cluster) || end > layout.blocks_per_cluster() as usize {
            // Let apply find it.
            return Ok(vec![true; checksums.len()]);
        }
        let offset = layout.cluster_offset(cluster) + u64::from(first) * BLOCK;
        let buffer = Buffer::new(checksums.len() * BLOCK as usize);
        let (result, buffer) = self.disk.read(offset, buffer).await;
        result.map_err(StoreError::io("verifying what was not flushed"))?;
        let blocks = buffer.chunks_exact(BLOCK as usize);
        let kept: Vec<bool> = blocks.zip(checksums).map(|(block, checksum)| crc32c(block) == *checksum).collect();
        for (block, kept) in (first..).zip(&kept) {
            if *kept {
                self.zeroes.remove(&(cluster, block));
            } else {
                self.dropped += 1;
            }
        }
        Ok(kept)
    }

    /// Makes blocks zero whose zeroes may not have reached the disk.
    async fn finish(self) -> Result<(), StoreError> {
        if self.dropped > 0 {
            tracing::info!(blocks = self.dropped, "blocks that were never flushed did not survive the last power cut");
        }
        for (cluster, block) in self.zeroes {
            let offset = self.catalog.layout().cluster_offset(cluster) + u64::from(block) * BLOCK;
            let result = self.disk.write_zeroes(offset, BLOCK).await;
            result.map_err(StoreError::io("zeroing blocks"))?;
        }
        Ok(())
    }
}

/// The runs of blocks to keep, each with its first block and its checksums.
fn runs(first: u16, checksums: &BlockChecksums, kept: &[bool]) -> Vec<(u16, BlockChecksums)> {
    let mut runs: Vec<(u16, BlockChecksums)> = Vec::new();
    for ((block, &checksum), _) in (first..).zip(checksums).zip(kept).filter(|(_, kept)| **kept) {
        match runs.last_mut() {
            Some((start, run)) if usize::from(*start) + run.len() == usize::from(block) => run.push(checksum),
            _ => runs.push((block, BlockChecksums::from_slice(&[checksum]))),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_leave_out_what_is_not_kept() {
        let checksums = BlockChecksums::from_slice(&[1, 2, 3, 4, 5]);
        let found = runs(7, &checksums, &[true, true, false, false, true]);
        assert_eq!(found, [(7, BlockChecksums::from_slice(&[1, 2])), (11, BlockChecksums::from_slice(&[5]))]);
        assert!(runs(0, &checksums, &[false; 5]).is_empty());
    }
}
