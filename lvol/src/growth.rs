//! A store on a disk that became larger.
//!
//! ```text
//! room for the new checkpoint areas behind the last cluster ─▶ a whole checkpoint into one of them ─▶ one superblock:
//! size, areas, clusters, checkpoint ─▶ the new clusters are free
//! ```
//! Until that superblock nothing that the store uses is touched; from its first copy on the store is the larger one, whichever
//! copy survives leads to the same state. The journal stays where it is: reads and writes go on throughout.

use std::io;
use std::rc::Rc;

use reactor::Disk;

use crate::core::Core;
use crate::error::StoreError;
use crate::format::layout::Region;
use crate::info::StoreInfo;
use crate::operations::to_the_end;
use crate::store::Store;

/// Bytes of a new area that are made zero at once.
const STEP: u64 = 64 << 20;

impl Store {
    /// Makes the store as large as its disk, or `size` bytes of it; durable when it returns. A size that it has already is fine
    /// (I30). Reads and writes go on meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a size that is smaller, too little more, or more than the disk has;
    /// [`StoreError::NoSpace`] when a sparse disk has no room for the metadata. The store is as it was then.
    pub async fn grow_store(&self, size: Option<u64>) -> Result<StoreInfo, StoreError> {
        let store = self.clone();
        to_the_end(async move {
            let _one = store.core.control.lock().await;
            store.core.check_running()?;
            store.core.grow_to(size).await?;
            Ok(store.info())
        })
        .await
    }
}

impl Core {
    async fn grow_to(self: &Rc<Self>, size: Option<u64>) -> Result<(), StoreError> {
        let has = self.disk.measure().map_err(StoreError::io("measuring the disk"))?;
        let (layout, wanted) = (self.layout(), size.unwrap_or(has));
        if wanted == layout.size || wanted - wanted % crate::format::BLOCK == layout.size {
            return Ok(());
        }
        if wanted < layout.size {
            return Err(StoreError::invalid(format!("the store has {} bytes and cannot have {wanted}", layout.size)));
        }
        if wanted > has {
            return Err(StoreError::invalid(format!("the disk has {has} bytes and the store cannot have {wanted}")));
        }
        let grown = layout.grown(wanted).map_err(|least| {
            let size = layout.size;
            StoreError::invalid(format!("a store of {size} bytes grows to {least} bytes at least, not to {wanted}"))
        })?;
        for area in grown.areas {
            make_room(&self.disk, area).await?;
        }
        let written = self.checkpoint_grown(grown).await;
        match written {
            // The checkpoint that failed counts for nothing, and the store goes on.
            Err(StoreError::Stopped { detail }) if self.failure().is_none() => {
                Err(StoreError::Io { doing: "growing the store", source: io::Error::other(detail) })
            }
            result => result,
        }
    }
}

/// Takes room of a sparse disk for metadata, so that writing it never lacks some, whatever else fills the file system.
pub(crate) async fn make_room(disk: &Disk, region: Region) -> Result<(), StoreError> {
    for offset in (region.offset..region.end()).step_by(STEP as usize) {
        let zeroed = disk.write_zeroes(offset, STEP.min(region.end() - offset)).await;
        zeroed.map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull => {
                StoreError::NoSpace { detail: "the disk has no room for the metadata of a store of this size" }
            }
            _ => StoreError::Io { doing: "making room for metadata", source: error },
        })?;
    }
    Ok(())
}
