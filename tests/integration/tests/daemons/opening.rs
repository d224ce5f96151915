//! A store that takes long to open: what is in the others can be used, and every list says what it leaves out (L2).

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use cli::client::answer;
use integration::{House, MIB, PATIENCE, said};
use proto::v1::{
    CreateLvolRequest, GetLvolRequest, GetStoreRequest, ListLvolsRequest, ListReplicasRequest, Lvol, StoreState,
};
use tonic::Code;

/// Keeps the daemon from opening a store, for as long as it is kept: the daemon tries for some seconds.
fn hold(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    file.lock()?;
    Ok(file)
}

async fn create(house: &House, name: &str, store: &str) -> anyhow::Result<Lvol> {
    let (name, store) = (name.to_owned(), store.to_owned());
    let request = CreateLvolRequest { name, store, size_bytes: MIB, block_size_bytes: 4096, ..Default::default() };
    answer(house.client(0).await?.lvols().create(request).await)
}

async fn wait_for_store(house: &House, store: &str) -> anyhow::Result<()> {
    let limit = Instant::now() + PATIENCE;
    loop {
        let found = answer(house.client(0).await?.stores().get(GetStoreRequest { store: store.into() }).await)?;
        match found.state() {
            StoreState::Ready => return Ok(()),
            // It was given up meanwhile: the same create again opens it.
            StoreState::Failed => drop(house.ashlar(0, &["store", "create", store, "--path", &found.path])?),
            _ => {}
        }
        ensure!(Instant::now() < limit, "{found:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn one_store_that_does_not_open_hides_no_other_and_is_named_by_every_list() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 64 * MIB).await?;
    house.create_store(0, "slow", 64 * MIB).await?;
    let (here, there) = (create(&house, "here", "main").await?, create(&house, "there", "slow").await?);
    house.create_volume("v", MIB, &["a"]).await?;
    let status = house.cluster.node(0).stop().await?;
    ensure!(status.success(), "{status}");
    let held = hold(&house.cluster.nodes()[0].folder().join("slow.img"))?;
    house.cluster.node(0).start().await?;
    wait_for_store(&house, "main").await?;

    let client = house.client(0).await?;
    let list = answer(client.lvols().list(ListLvolsRequest::default()).await)?;
    ensure!(list.lvols.iter().any(|lvol| lvol.uuid == here.uuid), "{list:?}");
    ensure!(list.lvols.iter().all(|lvol| lvol.uuid != there.uuid), "{list:?}");
    let [slow] = &list.unopened[..] else { anyhow::bail!("{list:?}") };
    ensure!(slow.name == "slow" && slow.state() != StoreState::Ready && !slow.reason.is_empty(), "{slow:?}");
    let replicas = answer(client.replicas().list(ListReplicasRequest::default()).await)?;
    assert_eq!(replicas.unopened.len(), 1, "{replicas:?}");
    for what in ["lvol", "replica"] {
        let output = house.ashlar(0, &[what, "list"])?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success() && error.contains(&format!("{what}s of store slow are not listed")), "{error}");
    }
    let one = ListLvolsRequest { store: "main".into(), ..Default::default() };
    ensure!(answer(client.lvols().list(one).await)?.unopened.is_empty(), "it has all of that store");

    // What is in open stores can be used.
    let get = |lvol: &str| GetLvolRequest { lvol: lvol.to_owned(), with_usage: true };
    assert_eq!(answer(client.lvols().get(get(&here.uuid)).await)?.uuid, here.uuid);
    create(&house, "new", "main").await?;
    let output = house.ashlar(0, &["lvol", "delete", &here.uuid])?;
    ensure!(output.status.success(), "{}", said(&output));
    // What may be in the other is not said to be absent.
    for lvol in [there.uuid.as_str(), "there"] {
        match client.lvols().get(get(lvol)).await {
            Err(status) if status.code() == Code::Unavailable => ensure!(status.message().contains("slow"), "{status}"),
            // By now it is known not to open.
            Err(status) if status.code() == Code::NotFound => {}
            other => anyhow::bail!("{other:?}"),
        }
    }
    drop(held);
    wait_for_store(&house, "slow").await?;
    let list = answer(client.lvols().list(ListLvolsRequest::default()).await)?;
    ensure!(list.unopened.is_empty() && list.lvols.iter().any(|lvol| lvol.uuid == there.uuid), "{list:?}");
    Ok(())
}
