//! How far the space of a store may be used.

use crate::core::Core;
use crate::error::StoreError;
use crate::format::layout::Layout;
use crate::format::superblock::Limits;
use crate::info::{StoreInfo, StoreLimits};
use crate::operations::to_the_end;
use crate::store::Store;

impl Store {
    /// Sets how far the space may be used; durable when it returns.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when the reserve is as large as the store.
    pub async fn set_limits(&self, limits: StoreLimits) -> Result<StoreInfo, StoreError> {
        let store = self.clone();
        to_the_end(async move {
            let core = &store.core;
            let _one = core.control.lock().await;
            core.check_running()?;
            let limits = limits_of(&core.layout(), limits)?;
            core.write_superblock(|superblock| superblock.limits = limits).await?;
            core.catalog.borrow_mut().reserve = limits.reserve;
            Ok(store.info())
        })
        .await
    }
}

impl Core {
    /// Whether heads may become larger by `more` bytes in all.
    pub(crate) fn check_overcommit(&self, more: u64) -> Result<(), StoreError> {
        let percent = self.superblock.borrow().limits.overcommit_percent;
        if percent == 0 || more == 0 {
            return Ok(());
        }
        let layout = self.layout();
        let size = u128::from(layout.data_clusters()) * u128::from(layout.cluster_size);
        let provisioned = self.catalog.borrow().family.provisioned();
        let allowed = size * u128::from(percent) / 100;
        match u128::from(provisioned) + u128::from(more) <= allowed {
            true => Ok(()),
            // A limit beyond what 64 bits count is none that is met.
            false => Err(StoreError::Overcommitted { provisioned, more, allowed: allowed as u64, percent }),
        }
    }
}

/// What the superblock keeps of limits that can be kept.
pub(crate) fn limits_of(layout: &Layout, limits: StoreLimits) -> Result<Limits, StoreError> {
    let cluster = u64::from(layout.cluster_size);
    let reserve = limits.reserve.div_ceil(cluster);
    if reserve >= layout.data_clusters() {
        let size = layout.data_clusters() * cluster;
        return Err(StoreError::invalid(format!("a reserve of {} bytes leaves nothing of {size}", limits.reserve)));
    }
    Ok(Limits { overcommit_percent: limits.overcommit_percent, reserve })
}

/// The same as it is told.
pub(crate) fn told(limits: &Limits, cluster_size: u32) -> StoreLimits {
    let reserve = limits.reserve.saturating_mul(u64::from(cluster_size));
    StoreLimits { overcommit_percent: limits.overcommit_percent, reserve }
}
