//! A standby follows, whatever dies, and becomes a volume with the last complete backup.

use std::fs;
use std::time::Instant;

use anyhow::ensure;
use cli::client::answer;
use integration::{MIB, PATIENCE};
use proto::v1::{
    ActivateStandbyRequest, CreateStandbyRequest, DeleteStandbyRequest, DeleteVolumeRequest, GetStandbyRequest,
    Standby, StandbyState, VolumeState,
};

use super::{Depot, SIZE, reason};

impl Depot {
    async fn wait_for_standby(&self, wanted: impl Fn(&Standby) -> bool) -> anyhow::Result<Standby> {
        let limit = Instant::now() + PATIENCE;
        loop {
            let request = GetStandbyRequest { standby: "dr".to_owned() };
            let found = answer(self.standbys(1).await?.get(request).await)?;
            if wanted(&found) {
                return Ok(found);
            }
            ensure!(Instant::now() < limit, "the standby stays {found:#?}\n{}", self.house.logs());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn a_standby_follows_over_outages_and_kills_and_is_activated() -> anyhow::Result<()> {
    let mut depot = Depot::open(&["a", "b"], "").await?;
    depot.house.create_volume("vol", SIZE, &["a"]).await?;
    depot.write("vol", 0, 1, 5 * MIB).await?;
    depot.snapshot("vol", "one").await?;

    // Before there is anything to follow it waits, and cannot be activated.
    let request = CreateStandbyRequest {
        name: "dr".to_owned(),
        target: "depot".to_owned(),
        backup_volume: "vol".to_owned(),
        interval_seconds: 1,
        ..CreateStandbyRequest::default()
    };
    let standby = answer(depot.standbys(1).await?.create(request.clone()).await)?;
    let waiting = depot.wait_for_standby(|found| found.state() == StandbyState::Waiting).await?;
    assert!(waiting.next_try_unix_ms.is_some() && !waiting.reason.is_empty(), "{waiting:#?}");
    let activate = ActivateStandbyRequest { standby: "dr".to_owned() };
    assert_eq!(reason(depot.standbys(1).await?.activate(activate.clone()).await)?, "NO_BACKUP");
    depot.wait_until_done(0, &depot.back_up("one", "first").await?).await?;
    // It would look again after the longest pause; a restart looks at once.
    depot.house.cluster.node(1).kill()?;
    depot.house.cluster.node(1).start().await?;
    depot.wait_for_standby(|found| found.complete == "first").await?;
    assert_eq!(answer(depot.standbys(1).await?.create(request).await)?.uuid, standby.uuid);
    let get = proto::v1::GetVolumeRequest { volume: "dr".to_owned() };
    let volume = answer(depot.house.client(1).await?.volumes().get(get.clone()).await)?;
    assert_eq!((volume.state(), volume.uuid.as_str()), (VolumeState::Standby, standby.uuid.as_str()));
    assert!(volume.engine.is_some_and(|engine| engine.nvmf.is_none()), "hosts cannot attach it");
    let delete = DeleteVolumeRequest { volume: "dr".to_owned(), ..DeleteVolumeRequest::default() };
    assert_eq!(reason(depot.house.client(1).await?.volumes().delete(delete).await)?, "RESTORING");

    // An outage makes it wait, with what it has.
    let away = depot.house.folder().join("away");
    fs::rename(&depot.folder, &away)?;
    let waiting = depot.wait_for_standby(|found| found.state() == StandbyState::Waiting).await?;
    assert_eq!((waiting.failure.as_str(), waiting.complete.as_str()), ("connect", "first"));
    fs::rename(&away, &depot.folder)?;

    // The next backup, zeroes in place of data among it; a kill while it is restored, or before or after.
    depot.write("vol", 7 * MIB, 2, 3 * MIB).await?;
    depot.write("vol", 0, 0, 2 * MIB).await?;
    depot.snapshot("vol", "two").await?;
    let content = depot.content(0, "vol").await?;
    depot.wait_until_done(0, &depot.back_up("two", "second").await?).await?;
    depot.wait_for_standby(|found| found.restoring == "second" || found.complete == "second").await?;
    depot.house.cluster.node(1).kill()?;
    depot.house.cluster.node(1).start().await?;
    depot.wait_for_standby(|found| found.complete == "second").await?;

    // Activation needs no target.
    fs::rename(&depot.folder, &away)?;
    let limit = Instant::now() + PATIENCE;
    let active = loop {
        match depot.standbys(1).await?.activate(activate.clone()).await {
            Ok(active) => break active.into_inner(),
            Err(error) => ensure!(Instant::now() < limit, "{error:?}"),
        }
    };
    assert_eq!((active.state(), active.complete.as_str()), (StandbyState::Active, "second"));
    assert_eq!(answer(depot.standbys(1).await?.activate(activate).await)?.state(), StandbyState::Active, "again");
    ensure!(depot.content(1, "dr").await? == content, "the standby differs");
    // The standby goes, and its volume stays.
    let delete = DeleteStandbyRequest { standby: "dr".to_owned(), ..DeleteStandbyRequest::default() };
    answer(depot.standbys(1).await?.delete(delete).await)?;
    let volume = answer(depot.house.client(1).await?.volumes().get(get).await)?;
    assert_eq!(volume.state(), VolumeState::Created);
    Ok(())
}
