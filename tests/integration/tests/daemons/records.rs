//! What the state directory does and does not keep, and what becomes of a daemon whose records are damaged.

use std::fs;

use cli::client::answer;
use integration::{Host, House, MIB, export_of};
use proto::v1::{CreateStoreRequest, CreateVolumeRequest, EngineState, ListStoresRequest, ListVolumesRequest, Volume};

async fn volumes(house: &House) -> anyhow::Result<Vec<Volume>> {
    Ok(answer(house.client(0).await?.volumes().list(ListVolumesRequest::default()).await)?.volumes)
}

#[tokio::test]
async fn a_store_in_memory_serves_and_is_gone_with_the_process() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    house.cluster.start().await?;
    let request = CreateStoreRequest {
        name: "fast".to_owned(),
        path: "memory:".to_owned(),
        size_bytes: 128 * MIB,
        ..CreateStoreRequest::default()
    };
    let store = answer(house.client(0).await?.stores().create(request.clone()).await)?;
    assert!(store.is_volatile);
    let again = answer(house.client(0).await?.stores().create(request).await)?;
    // What it does at its disk meanwhile is not what it is.
    assert_eq!(proto::v1::Store { work: None, ..again }, proto::v1::Store { work: None, ..store });
    let volume = house.create_volume("v", 64 * MIB, &[]).await?;
    let (address, nqn) = (house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    host.write(address, &nqn, 0, 9, 4096).await?;
    assert_eq!(host.read(address, &nqn, 0, 4096).await?, [9; 4096]);

    house.cluster.node(0).stop().await?;
    house.cluster.node(0).start().await?;
    let stores = answer(house.client(0).await?.stores().list(ListStoresRequest::default()).await)?.stores;
    assert_eq!(stores, []);
    // Its volume is not served from nothing, says so, and can be deleted.
    let volume = house.wait_for_engine("v", |engine| engine.state() == EngineState::Starting).await?;
    assert_eq!(volume.engine.map(|engine| engine.state()), Some(EngineState::Starting));
    let output = house.ashlar(0, &["volume", "delete", "v"])?;
    assert!(output.status.success(), "{}", integration::said(&output));
    assert_eq!(volumes(&house).await?, []);
    Ok(())
}

#[tokio::test]
async fn a_damaged_record_fails_alone() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 512 * MIB).await?;
    let good = house.create_volume("good", 64 * MIB, &[]).await?;
    let bad = house.create_volume("bad", 64 * MIB, &[]).await?;
    house.cluster.node(0).stop().await?;
    let state = house.cluster.nodes()[0].folder().join("state");
    let record = state.join("volumes").join(format!("{}.json", bad.uuid));
    fs::write(&record, "{\"format\": 1, \"rec")?;
    fs::write(state.join("engines").join(format!("{}.json", bad.uuid)), "")?;
    house.cluster.node(0).start().await?;
    house.wait_until_healthy("good").await?;
    let found: Vec<_> = volumes(&house).await?.into_iter().map(|volume| volume.uuid).collect();
    assert_eq!(found, [good.uuid]);
    assert!(house.logs().contains(&record.display().to_string()), "the log names the file");
    assert!(record.exists(), "it is left as it is");
    Ok(())
}

#[tokio::test]
async fn without_its_membership_and_its_replica_a_volume_does_not_start() -> anyhow::Result<()> {
    // I5: guessing which replicas are in sync could serve stale data. The replica's copy says it.
    let mut house = House::open(&["a"], 512 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &[]).await?;
    house.cluster.node(0).stop().await?;
    let folder = house.cluster.nodes()[0].folder();
    let (store, away) = (folder.join("main.img"), folder.join("away.img"));
    fs::rename(&store, &away)?;
    fs::remove_file(folder.join("state/registry").join(format!("{}.json", volume.uuid)))?;
    house.cluster.node(0).start().await?;
    let reason = "no record of the volume";
    house.wait_for_engine("v", |engine| engine.reason.contains(reason)).await?;
    // Asking for it again does not make a record up.
    let request = CreateVolumeRequest { name: "v".to_owned(), size_bytes: 64 * MIB, ..CreateVolumeRequest::default() };
    answer(house.client(0).await?.volumes().create(request).await)?;
    house.wait_for_engine("v", |engine| engine.reason.contains(reason)).await?;
    house.cluster.node(0).stop().await?;
    fs::rename(&away, &store)?;
    house.cluster.node(0).start().await?;
    house.wait_until_healthy("v").await?;
    Ok(())
}
