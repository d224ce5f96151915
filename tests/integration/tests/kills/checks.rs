//! What the daemon has, compared with what it acknowledged.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, ensure};
use cli::client::{Client, answer};
use integration::{House, PATIENCE, export_of};
use proto::v1::{
    EngineState, ListOrphansRequest, ListReplicasRequest, ListSnapshotsRequest, ListStoresRequest, ListVolumesRequest,
    Store, Volume,
};

use crate::model::{Daemon, Model, Step, bytes_of};

pub(crate) async fn only_store(client: &Client) -> anyhow::Result<Store> {
    let stores = answer(client.stores().list(ListStoresRequest::default()).await)?.stores;
    stores.into_iter().next().context("no store")
}

impl Model {
    /// What was acknowledged is there, and nothing else but what may have been under way.
    pub(crate) async fn check_volumes(&self, client: &Client) -> anyhow::Result<()> {
        let found = answer(client.volumes().list(ListVolumesRequest::default()).await)?.volumes;
        for (name, known) in &self.volumes {
            let Some(volume) = found.iter().find(|volume| volume.name == *name) else {
                ensure!(self.may_be_absent(name), "{name} is gone");
                continue;
            };
            ensure!(volume.uuid == known.uuid, "{name} is another volume: {volume:#?}");
            let sizes = [Some(known.size), self.size_in_doubt(name)];
            ensure!(sizes.contains(&Some(volume.size_bytes)), "not {sizes:?} bytes: {volume:#?}");
        }
        let asked_for = |volume: &Volume| self.volumes.contains_key(&volume.name) || self.may_be_absent(&volume.name);
        let unknown = found.iter().find(|volume| !asked_for(volume));
        ensure!(unknown.is_none(), "nobody asked for {unknown:#?}, or it was deleted");
        Ok(())
    }

    /// Whether a volume is being made or deleted by what was under way.
    fn may_be_absent(&self, volume: &str) -> bool {
        match &self.doubt {
            Some(Step::Create(request)) => request.name == volume,
            Some(Step::Clone(request)) => request.name == volume,
            Some(Step::Delete(request)) => request.volume == volume,
            _ => false,
        }
    }

    fn size_in_doubt(&self, volume: &str) -> Option<u64> {
        match &self.doubt {
            Some(Step::Grow(request)) if request.volume == volume => Some(request.size_bytes),
            _ => None,
        }
    }

    /// Each volume is served, and reads as was acknowledged, or as what was under way makes it, all of it.
    pub(crate) async fn check_contents(&self, house: &House, daemon: &Daemon) -> anyhow::Result<()> {
        for (name, known) in self.volumes.iter().filter(|(name, _)| !self.may_be_absent(name)) {
            let volume = house.wait_for_engine(name, |engine| engine.state() == EngineState::Healthy).await?;
            let Some(content) = known.content else { continue };
            let after = self.doubt.as_ref().and_then(|step| self.content_after(step, name)).unwrap_or(content);
            let (nqn, length) = (&export_of(&volume)?.nqn, bytes_of(&content).len());
            let found = daemon.host.read(daemon.address, nqn, 0, length).await?;
            let is_right = found == bytes_of(&content) || found == bytes_of(&after);
            let blocks: Vec<u8> = found.iter().copied().step_by(4096).collect();
            ensure!(is_right, "{name} reads as {blocks:?}, not as {content:?} or {after:?}");
        }
        Ok(())
    }

    /// Replicas, snapshots and lvols are those of the volumes: none is left over, none is missing.
    pub(crate) async fn check_no_orphans(&self, client: &Client) -> anyhow::Result<()> {
        let limit = Instant::now() + PATIENCE;
        // What is deleted may be on its way out.
        while let Err(error) = self.find_orphans(client).await {
            if Instant::now() > limit {
                return Err(error);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn find_orphans(&self, client: &Client) -> anyhow::Result<()> {
        let replicas = answer(client.replicas().list(ListReplicasRequest::default()).await)?.replicas;
        let mut expected: BTreeMap<&str, usize> =
            self.volumes.values().map(|known| (known.uuid.as_str(), known.snapshots.len())).collect();
        for replica in &replicas {
            let snapshots = expected.remove(replica.volume_uuid.as_str());
            ensure!(snapshots == Some(replica.snapshots as usize), "{snapshots:?} snapshots expected: {replica:#?}");
        }
        ensure!(expected.is_empty(), "no replica of {expected:?}");
        for (name, known) in &self.volumes {
            let request = ListSnapshotsRequest { volume: name.clone(), ..Default::default() };
            let found = answer(client.volumes().list_snapshots(request).await)?.snapshots;
            let is_right =
                found.iter().map(|snapshot| snapshot.uuid.as_str()).eq(known.snapshots.iter().map(|cut| cut.uuid()));
            ensure!(is_right, "{name} has {found:#?}, not {:#?}", known.snapshots);
        }
        let orphans = answer(client.orphans().list(ListOrphansRequest::default()).await)?.orphans;
        ensure!(orphans.is_empty(), "{orphans:#?}");
        let store = only_store(client).await?;
        let expected = self.tree.count();
        ensure!(store.lvols as usize == expected, "not {expected} lvols: {store:#?}\n{replicas:#?}\n{:#?}", self.tree);
        Ok(())
    }
}
