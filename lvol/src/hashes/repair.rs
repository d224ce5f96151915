//! Mending a damaged region with bytes from elsewhere, if they are the right ones.

use std::rc::Rc;

use reactor::Buffer;
use uuid::Uuid;

use super::judge::OnDisk;
use super::table::Table;
use super::{REGION, hash};
use crate::core::Core;
use crate::error::StoreError;
use crate::format::BLOCK;
use crate::operations::to_the_end;
use crate::store::Store;

impl Store {
    /// Writes the content of a region of a snapshot where it should be, durably, and takes the marks of its blocks away. Only
    /// bytes that hash to the stored value are taken: nothing else ever replaces data (I22).
    ///
    /// `offset` is that of a region, `data` reaches to its end or to that of the lvol. Blocks that hold these bytes already
    /// are not written.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] when the bytes are others; [`StoreError::Invalid`] when there is no value to compare with.
    /// Nothing is changed then.
    pub async fn repair_region(&self, id: Uuid, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let (core, data) = (Rc::clone(&self.core), data.to_vec());
        to_the_end(async move { core.repair(id, offset, &data).await }).await
    }
}

impl Core {
    async fn repair(self: &Rc<Self>, id: Uuid, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let _one = self.control.lock().await;
        self.check_running()?;
        let lvol = self.open_snapshot(id).await?;
        let size = lvol.volume().size();
        if !offset.is_multiple_of(REGION) || offset >= size || data.len() as u64 != REGION.min(size - offset) {
            return Err(StoreError::invalid(format!("{} bytes at {offset} are no region of {id}", data.len())));
        }
        let region = offset / REGION;
        let value = match Table::open(self, id).await? {
            Some(table) => table.value(region).await?,
            None => None,
        };
        let Some(value) = value else {
            return Err(StoreError::invalid(format!("there is no hash of region {region} of {id} to compare with")));
        };
        if hash(data) != value {
            return Err(StoreError::Mismatch { uuid: id, offset });
        }
        let found = self.read_region(&lvol, region).await?;
        for block in &found.blocks {
            let end = (block.within + BLOCK as usize).min(data.len());
            let right = &data[block.within..end];
            if found.content[block.within..end] != *right || found.unreadable.contains(block) {
                self.mend(*block, right).await?;
            }
        }
        self.flush().await?;
        // What is not on disk follows from the maps: if that disagrees, the region is as bad as before.
        let found = self.read_region(&lvol, region).await?;
        if !found.unreadable.is_empty() || found.content != data {
            return Err(StoreError::damaged(format!("region {region} of {id} reads wrong after it was written anew")));
        }
        self.mark(&found.blocks, false).await?;
        self.scrubs.damage.is_good(id, region);
        Ok(())
    }

    async fn mend(&self, block: OnDisk, right: &[u8]) -> Result<(), StoreError> {
        // Up to the end of the lvol, which its blocks of 512 bytes at least divide; the rest of the block is nobody's.
        let mut bytes = right.to_vec();
        bytes.resize(right.len().next_multiple_of(self.disk.alignment() as usize), 0);
        let written = self.disk.write(block.place, Buffer::copy_of(&bytes).freeze()).await;
        written.map_err(StoreError::io("mending a block"))
    }
}
