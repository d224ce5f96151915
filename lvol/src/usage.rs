//! What an lvol takes, and what its deletion would give back: looked up entry by entry, for whoever asks.

use std::rc::Rc;

use reactor::yield_now;
use uuid::Uuid;

use crate::error::StoreError;
use crate::info::Usage;
use crate::map::Map;
use crate::store::Store;
use crate::transfer::{DataRuns, PIECE};

/// How many entries are looked at before others have their turn.
const TURN: u32 = 4096;

impl Store {
    /// What an lvol takes. Reads its maps from one end to the other: the figures of one that changes meanwhile are of no single
    /// moment. While it is looked at a snapshot is not merged away.
    pub async fn usage(&self, id: Uuid) -> Result<Usage, StoreError> {
        let info = self.lvol_info(id).ok_or(StoreError::NotFound { uuid: id })?;
        let lvol = self.core.open_lvol(id).await?;
        let child = match info.children[..] {
            [child] => Some(self.core.open_lvol(child).await?),
            _ => None,
        };
        let clusters = match (&info.children[..], child) {
            ([], _) => lvol.volume().map().counts().clusters.into(),
            (_, Some(child)) => given_back(&lvol.volume().map(), &child.volume().map()).await,
            // It stays as long as there are several.
            _ => 0,
        };
        let cluster = u64::from(self.core.layout().cluster_size);
        let mut referenced = 0;
        let mut runs = DataRuns::new(Rc::new(lvol));
        while let Some(run) = runs.next(PIECE).await {
            referenced += run.length;
        }
        let used = self.lvol_info(id).map_or(info.used_bytes, |now| now.used_bytes);
        Ok(Usage { used, unique: clusters * cluster, referenced })
    }
}

/// How many clusters a merge of a map into that of the only child gives back: where both have one, and where the child hides all that the
/// parent has in it (see `merge`).
async fn given_back(parent: &Map, child: &Map) -> u64 {
    let mut count = 0;
    let mut at = 0;
    let mut looked = 0;
    while let Some(index) = parent.next_used(at) {
        let (own, over) = (parent.entry(index), child.entry(index));
        let gone = over.cluster.is_some() || own.blocks.without(&over.blocks).is_empty();
        count += u64::from(own.cluster.is_some() && gone);
        let Some(next) = index.checked_add(1) else { break };
        at = next;
        looked += 1;
        if looked % TURN == 0 {
            yield_now().await;
        }
    }
    count
}
