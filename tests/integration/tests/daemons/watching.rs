//! Watches of the node, its stores, replicas and lvols: what there is, what becomes of it, and how to go on.

use std::fmt::Debug;
use std::fs;

use anyhow::{Context, ensure};
use cli::client::answer;
use integration::{House, MIB, PATIENCE};
use proto::v1::{
    ChangeKind, CreateLvolRequest, CreateReplicaRequest, DeleteOrphanRequest, DeleteSnapshotRequest,
    DeleteVolumeRequest, EngineState, ListLvolsRequest, ListOrphansRequest, ListReplicasRequest, ListSnapshotsRequest,
    ListStoresRequest, Lvol, LvolChange, NodeChange, NodeInfoRequest, OrphanChange, PeerState, ReplicaChange,
    SnapshotChange, SnapshotVolumeRequest, StoreChange, StoreState, WatchLvolsRequest, WatchNodeRequest,
    WatchOrphansRequest, WatchReplicasRequest, WatchSnapshotsRequest, WatchStoresRequest,
};
use tonic::{Code, Streaming};
use uuid::Uuid;

use crate::deletion::failpoints::Failpoints;

/// The next message that is as wanted; an error with those before it if none comes.
async fn hear<M: Debug>(stream: &mut Streaming<M>, wanted: impl Fn(&M) -> bool) -> anyhow::Result<M> {
    let mut heard = Vec::new();
    loop {
        let message = tokio::time::timeout(PATIENCE, stream.message()).await;
        let message = message.with_context(|| format!("nothing more after {heard:#?}"))??;
        let message = message.with_context(|| format!("it ended after {heard:#?}"))?;
        if wanted(&message) {
            return Ok(message);
        }
        heard.push(message);
    }
}

fn is_store(change: &StoreChange, kind: ChangeKind, name: &str) -> bool {
    change.kind() == kind && change.store.as_ref().is_some_and(|store| store.name == name)
}

fn is_replica(change: &ReplicaChange, kind: ChangeKind, name: &str, snapshots: u32) -> bool {
    let is_it = |replica: &proto::v1::Replica| replica.name == name && replica.snapshots == snapshots;
    change.kind() == kind && change.replica.as_ref().is_some_and(is_it)
}

fn is_cut(change: &LvolChange, kind: ChangeKind) -> bool {
    change.kind() == kind && change.lvol.as_ref().is_some_and(|lvol| lvol.is_snapshot)
}

fn peer_is(change: &NodeChange, state: PeerState) -> bool {
    change.node.as_ref().is_some_and(|node| node.peers.iter().any(|peer| peer.state() == state))
}

#[tokio::test]
async fn who_watches_stores_replicas_and_lvols_gets_them_with_content() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 256 * MIB).await?;
    let client = house.client(0).await?;
    let mut stores = answer(client.patient_stores().watch(WatchStoresRequest::default()).await)?;
    hear(&mut stores, |change| is_store(change, ChangeKind::Existing, "main")).await?;
    hear(&mut stores, |change| change.kind() == ChangeKind::Listed).await?;
    let mut replicas = answer(client.patient_replicas().watch(WatchReplicasRequest::default()).await)?;
    let empty = hear(&mut replicas, |_| true).await?;
    assert_eq!(empty.kind(), ChangeKind::Listed, "{empty:#?}");

    let volume = house.create_volume("v", 16 * MIB, &[]).await?;
    hear(&mut replicas, |change| is_replica(change, ChangeKind::Changed, "v", 0)).await?;
    hear(&mut stores, |change| change.store.as_ref().is_some_and(|store| store.lvols == 1)).await?;

    // From a list on nothing is missed, though nobody followed meanwhile; of another volume nothing is told.
    let listed = answer(client.lvols().list(ListLvolsRequest::default()).await)?;
    assert_eq!(listed.lvols.len(), 1);
    house.create_volume("other", 16 * MIB, &[]).await?;
    let cut = SnapshotVolumeRequest { volume: "v".to_owned(), name: "s".to_owned(), uuid: String::new() };
    answer(client.volumes().snapshot(cut).await)?;
    let request = WatchLvolsRequest {
        resource_version: listed.resource_version,
        volume_uuid: volume.uuid.clone(),
        ..WatchLvolsRequest::default()
    };
    let mut lvols = answer(client.transfers().watch(request).await)?;
    let of_v = |change: &LvolChange| change.lvol.as_ref().is_some_and(|lvol| lvol.volume_uuid == volume.uuid);
    let cut = hear(&mut lvols, |change| !of_v(change) || is_cut(change, ChangeKind::Changed)).await?;
    ensure!(of_v(&cut), "it is not what was asked for: {cut:#?}");
    hear(&mut replicas, |change| is_replica(change, ChangeKind::Changed, "v", 1)).await?;
    let request = DeleteVolumeRequest { volume: "v".to_owned(), ..DeleteVolumeRequest::default() };
    answer(client.volumes().delete(request).await)?;
    hear(&mut lvols, |change| is_cut(change, ChangeKind::Deleted)).await?;
    hear(&mut replicas, |change| is_replica(change, ChangeKind::Deleted, "v", 1)).await?;

    // The streams end with the daemon; another run knows nothing of its versions.
    let version = answer(client.replicas().list(ListReplicasRequest::default()).await)?.resource_version;
    let stores_at = answer(client.stores().list(ListStoresRequest::default()).await)?.resource_version;
    house.cluster.node(0).stop().await?;
    while stores.message().await?.is_some() {}
    // Nobody opens what is not there.
    fs::remove_file(house.cluster.nodes()[0].folder().join("main.img"))?;
    house.cluster.node(0).start().await?;
    let client = house.client(0).await?;
    let request = WatchReplicasRequest { resource_version: version, ..WatchReplicasRequest::default() };
    let refused = client.patient_replicas().watch(request).await.expect_err("another run");
    assert_eq!(proto::error::info(&refused).map(|info| info.reason).as_deref(), Some("EXPIRED"));
    let request = WatchStoresRequest { resource_version: stores_at, ..WatchStoresRequest::default() };
    client.patient_stores().watch(request).await.expect_err("another run");
    let mut stores = answer(client.patient_stores().watch(WatchStoresRequest::default()).await)?;
    let failed = |change: &StoreChange| change.store.as_ref().is_some_and(|s| s.state() == StoreState::Failed);
    hear(&mut stores, failed).await?;
    Ok(())
}

#[tokio::test]
async fn a_list_of_one_store_looks_there_only_and_can_be_gone_on_from() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    let failpoints = Failpoints::of(&mut house, 0);
    house.cluster.start().await?;
    let mut stores = Vec::new();
    for store in ["main", "other"] {
        stores.push(house.create_store(0, store, 256 * MIB).await?.uuid);
        create_lvol(&house, store, store).await?;
    }
    let client = house.client(0).await?;
    let list = async |store: &str| {
        let request = ListLvolsRequest { store: store.to_owned(), ..ListLvolsRequest::default() };
        answer(client.lvols().list(request).await)
    };
    let names = |lvols: &[Lvol]| lvols.iter().map(|lvol| lvol.name.clone()).collect::<Vec<_>>();
    let all = list("").await?;
    assert_eq!(names(&all.lvols), ["main", "other"]);
    // The look at all stores of a reactor.
    failpoints.fail_only("DataPath::lvols::")?;
    list("").await.expect_err("the look at all stores fails");
    let of_main = list("main").await?;
    failpoints.disarm()?;
    assert_eq!(names(&of_main.lvols), ["main"]);
    assert_eq!(of_main.resource_version, all.resource_version, "nothing has changed");

    for store in ["main", "other"] {
        create_lvol(&house, store, "late").await?;
    }
    assert_eq!(names(&list("main").await?.lvols), ["late", "main"]);
    let request = WatchLvolsRequest { resource_version: of_main.resource_version, ..WatchLvolsRequest::default() };
    let mut lvols = answer(client.transfers().watch(request).await)?;
    for store in &stores {
        let is_late = |change: &LvolChange| change.lvol.as_ref().is_some_and(|lvol| lvol.name == "late");
        let first = hear(&mut lvols, |_| true).await?;
        ensure!(is_late(&first) && first.kind() == ChangeKind::Changed, "{first:#?}");
        assert_eq!(first.lvol.as_ref().map(|lvol| &lvol.store_uuid), Some(store));
    }
    Ok(())
}

#[tokio::test]
async fn who_watches_snapshots_hears_of_them_wherever_the_replicas_are() -> anyhow::Result<()> {
    let mut house = House::open(&["a", "b"], 256 * MIB).await?;
    house.create_volume("v", 16 * MIB, &["b"]).await?;
    let client = house.client(0).await?;
    let cut = async |name: &str| {
        let cut = SnapshotVolumeRequest { volume: "v".to_owned(), name: name.to_owned(), uuid: String::new() };
        answer(client.volumes().snapshot(cut).await)
    };
    let watch = |resource_version: &str| {
        let request = WatchSnapshotsRequest { volume: "v".to_owned(), resource_version: resource_version.to_owned() };
        let mut volumes = client.patient_volumes();
        async move { volumes.watch_snapshots(request).await }
    };
    let is = |change: &SnapshotChange, kind: ChangeKind, name: &str| {
        change.kind() == kind && change.snapshot.as_ref().is_some_and(|snapshot| snapshot.name == name)
    };
    cut("first").await?;
    let mut changes = answer(watch("").await)?;
    let first = hear(&mut changes, |_| true).await?;
    ensure!(is(&first, ChangeKind::Existing, "first"), "{first:#?}");
    assert_eq!(hear(&mut changes, |_| true).await?.kind(), ChangeKind::Listed);
    cut("second").await?;
    let second = hear(&mut changes, |_| true).await?;
    ensure!(is(&second, ChangeKind::Changed, "second"), "{second:#?}");
    assert_eq!(second.snapshot.as_ref().map(|snapshot| snapshot.size_bytes), Some(16 * MIB));
    drop(changes);

    // From a list on nothing is missed, though nobody followed meanwhile.
    let request = ListSnapshotsRequest { volume: "v".to_owned(), ..ListSnapshotsRequest::default() };
    let listed = answer(client.volumes().list_snapshots(request).await)?;
    assert_eq!(listed.resource_version, second.resource_version);
    cut("third").await?;
    let (volume, snapshot) = ("v".to_owned(), "first".to_owned());
    let request = DeleteSnapshotRequest { volume, snapshot, ..DeleteSnapshotRequest::default() };
    answer(client.volumes().delete_snapshot(request).await)?;
    let mut changes = answer(watch(&listed.resource_version).await)?;
    hear(&mut changes, |change| is(change, ChangeKind::Changed, "third")).await?;
    hear(&mut changes, |change| is(change, ChangeKind::Deleted, "first")).await?;

    // While the only replica is away nothing is told, and nothing is gone.
    house.cluster.node(1).kill()?;
    house.wait_for_engine("v", |engine| engine.state() != EngineState::Healthy).await?;
    house.cluster.node(1).start().await?;
    house.wait_until_healthy("v").await?;
    cut("fourth").await?;
    let fourth = hear(&mut changes, |_| true).await?;
    ensure!(is(&fourth, ChangeKind::Changed, "fourth"), "{fourth:#?}");
    let request = DeleteVolumeRequest { volume: "v".to_owned(), ..DeleteVolumeRequest::default() };
    answer(client.volumes().delete(request).await)?;
    for _ in ["second", "third", "fourth"] {
        assert_eq!(hear(&mut changes, |_| true).await?.kind(), ChangeKind::Deleted);
    }
    assert_eq!(watch("").await.expect_err("it is gone").code(), Code::NotFound);
    Ok(())
}

#[tokio::test]
async fn who_watches_orphans_hears_of_them() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 256 * MIB).await?;
    let client = house.client(0).await?;
    let mut orphans = answer(client.patient_orphans().watch(WatchOrphansRequest::default()).await)?;
    assert_eq!(hear(&mut orphans, |_| true).await?.kind(), ChangeKind::Listed);
    let is = |change: &OrphanChange, kind: ChangeKind, uuid: &str| {
        change.kind() == kind && change.orphan.as_ref().is_some_and(|orphan| orphan.uuid == uuid)
    };
    // One that is made has its owner first: it never is one.
    house.create_volume("v", 16 * MIB, &[]).await?;
    let uuid = lonely_replica(&house).await?;
    let found = hear(&mut orphans, |_| true).await?;
    ensure!(is(&found, ChangeKind::Changed, &uuid), "{found:#?}");
    let listed = answer(client.orphans().list(ListOrphansRequest::default()).await)?;
    assert_eq!((listed.orphans.len(), &listed.resource_version), (1, &found.resource_version));
    let request = DeleteOrphanRequest { uuid: uuid.clone(), ..DeleteOrphanRequest::default() };
    answer(client.orphans().delete(request).await)?;
    let gone = hear(&mut orphans, |_| true).await?;
    ensure!(is(&gone, ChangeKind::Deleted, &uuid), "{gone:#?}");
    house.cluster.node(0).stop().await?;
    while orphans.message().await?.is_some() {}
    Ok(())
}

/// Makes a replica that nobody owns on the first daemon.
pub(crate) async fn lonely_replica(house: &House) -> anyhow::Result<String> {
    let uuid = Uuid::new_v4().to_string();
    let request = CreateReplicaRequest {
        uuid: uuid.clone(),
        volume_uuid: Uuid::new_v4().to_string(),
        name: "lonely".to_owned(),
        size_bytes: MIB,
        block_size_bytes: 4096,
        ..CreateReplicaRequest::default()
    };
    answer(house.client(0).await?.replicas().create(request).await)?;
    Ok(uuid)
}

async fn create_lvol(house: &House, store: &str, name: &str) -> anyhow::Result<Lvol> {
    let (name, store) = (name.to_owned(), store.to_owned());
    let request = CreateLvolRequest { name, store, size_bytes: MIB, ..CreateLvolRequest::default() };
    answer(house.client(0).await?.lvols().create(request).await)
}

#[tokio::test]
async fn who_watches_a_node_hears_of_its_peers() -> anyhow::Result<()> {
    let mut house = House::open(&["a", "b"], 256 * MIB).await?;
    house.create_volume("v", 16 * MIB, &["a", "b"]).await?;
    let client = house.client(0).await?;
    let info = answer(client.node().info(NodeInfoRequest {}).await)?;
    let request = WatchNodeRequest { resource_version: info.resource_version };
    let mut node = answer(client.patient_node().watch(request).await)?;
    house.cluster.node(1).kill()?;
    let away = hear(&mut node, |change| peer_is(change, PeerState::Waiting)).await?;
    assert_eq!(away.kind(), ChangeKind::Changed);
    assert_eq!(away.node.as_ref().map(|node| &node.resource_version), Some(&away.resource_version));
    house.cluster.node(1).start().await?;
    hear(&mut node, |change| peer_is(change, PeerState::Connected)).await?;
    house.wait_until_healthy("v").await?;
    Ok(())
}
