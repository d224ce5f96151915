//! What is left on daemons.

use std::time::{Duration, Instant};

use anyhow::ensure;
use cli::client::answer;
use integration::{House, PATIENCE};
use proto::v1::{
    DeleteVolumeRequest, ListLvolsRequest, ListOrphansRequest, ListReplicasRequest, ListVolumesRequest, Orphan,
    OrphanState,
};

pub(crate) fn delete(volume: &str) -> DeleteVolumeRequest {
    DeleteVolumeRequest { volume: volume.to_owned(), ..DeleteVolumeRequest::default() }
}

/// How many replicas a daemon has.
pub(crate) async fn replicas(house: &House, index: usize) -> anyhow::Result<usize> {
    let request = ListReplicasRequest::default();
    Ok(answer(house.client(index).await?.replicas().list(request).await)?.replicas.len())
}

/// What a daemon finds without an owner.
pub(crate) async fn orphans(house: &House, index: usize) -> anyhow::Result<Vec<Orphan>> {
    Ok(answer(house.client(index).await?.orphans().list(ListOrphansRequest::default()).await)?.orphans)
}

/// The only one, once it is in this state.
pub(crate) async fn only_orphan(house: &House, index: usize, state: OrphanState) -> anyhow::Result<Orphan> {
    let mut found = Vec::new();
    eventually("there is one orphan", async || {
        found = orphans(house, index).await?;
        Ok(found.len() == 1 && found[0].state() == state)
    })
    .await?;
    Ok(found.remove(0))
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let limit = Instant::now() + PATIENCE;
    while !is_so().await? {
        ensure!(Instant::now() < limit, "not so: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Waits until the daemons have neither volumes nor replicas nor lvols nor orphans, and the first one no records.
pub(crate) async fn nothing_is_left(house: &House, daemons: usize) -> anyhow::Result<()> {
    let limit = Instant::now() + PATIENCE;
    while let Err(error) = nothing_left(house, daemons).await {
        ensure!(Instant::now() < limit, "{error:#}\n{}", house.logs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn nothing_left(house: &House, daemons: usize) -> anyhow::Result<()> {
    for index in 0..daemons {
        let client = house.client(index).await?;
        let volumes = answer(client.volumes().list(ListVolumesRequest::default()).await)?.volumes;
        ensure!(volumes.is_empty(), "{volumes:#?}");
        let lvols = answer(client.lvols().list(ListLvolsRequest::default()).await)?.lvols;
        ensure!(lvols.is_empty(), "{lvols:#?}");
        let orphans = orphans(house, index).await?;
        ensure!(orphans.is_empty(), "{orphans:#?}");
    }
    let state = house.cluster.nodes()[0].folder().join("state");
    for kind in ["engines", "volumes", "registry", "deletions"] {
        let folder = state.join(kind);
        let left: Vec<_> = std::fs::read_dir(&folder)?.map(|entry| entry.map(|entry| entry.path())).collect();
        ensure!(left.is_empty(), "{left:?}");
    }
    Ok(())
}
