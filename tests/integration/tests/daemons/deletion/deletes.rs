//! Deletes: idempotent, never of a namesake, and never waiting for a dead node (I42).

use std::time::Instant;

use anyhow::{Context, ensure};
use cli::client::{Client, answer};
use integration::{House, MIB, PATIENCE};
use proto::v1::{DeleteStoreRequest, DeleteVolumeRequest, GetOperationRequest, NodeInfoRequest, OperationState};
use tonic::Code;

use super::left::{delete, replicas};

#[tokio::test]
async fn a_delete_can_be_repeated_and_leaves_nothing() -> anyhow::Result<()> {
    let house = House::open(&["a", "b"], 512 * MIB).await?;
    let stores = answer(house.client(0).await?.stores().list(proto::v1::ListStoresRequest::default()).await)?;
    house.create_volume("v", 64 * MIB, &["a", "b"]).await?;
    let client = house.client(0).await?;
    for _ in 0..2 {
        let pending = answer(client.volumes().delete(delete("v")).await)?.pending_nodes;
        assert_eq!(pending, [""; 0]);
    }
    assert_eq!((replicas(&house, 0).await?, replicas(&house, 1).await?), (0, 0));
    let after = answer(client.stores().list(proto::v1::ListStoresRequest::default()).await)?;
    assert_eq!(after.stores[0].lvols, stores.stores[0].lvols);
    for folder in ["engines", "volumes", "registry", "deletions"] {
        let folder = house.cluster.nodes()[0].folder().join("state").join(folder);
        let left = std::fs::read_dir(&folder).map(Iterator::count).unwrap_or(0);
        assert_eq!(left, 0, "{}", folder.display());
    }
    // A volume of the same name is another one.
    house.create_volume("v", 32 * MIB, &["a"]).await?;
    Ok(())
}

#[tokio::test]
async fn a_namesake_is_not_deleted() -> anyhow::Result<()> {
    let house = House::open(&["a"], 512 * MIB).await?;
    let first = house.create_volume("v", 64 * MIB, &[]).await?;
    let client = house.client(0).await?;
    answer(client.volumes().delete(delete("v")).await)?;
    let second = house.create_volume("v", 64 * MIB, &[]).await?;
    let late = DeleteVolumeRequest { expected_uuid: first.uuid, ..delete("v") };
    let status = client.volumes().delete(late).await.expect_err("another volume");
    assert_eq!(status.code(), Code::Aborted);
    assert_eq!(house.volume("v").await?.uuid, second.uuid);
    Ok(())
}

#[tokio::test]
async fn a_dead_node_does_not_hold_up_a_delete() -> anyhow::Result<()> {
    let mut house = House::open(&["a", "b"], 512 * MIB).await?;
    house.create_volume("v", 64 * MIB, &["a", "b"]).await?;
    house.cluster.node(1).kill()?;
    let client = house.client(0).await?;
    let pending = answer(client.volumes().delete(delete("v")).await)?.pending_nodes;
    assert_eq!(pending, ["b"]);
    assert!(house.volume("v").await.is_err(), "it is gone at once");
    // The daemon that has to remember it is restarted, then the dead node comes back.
    house.cluster.node(0).kill()?;
    house.cluster.node(0).start().await?;
    let info = answer(house.client(0).await?.node().info(NodeInfoRequest {}).await)?;
    assert_eq!(info.pending_deletions.len(), 1);
    let id = format!("delete-replica-{}", info.pending_deletions[0].replica_uuid);
    let operation = |client: Client| {
        let request = GetOperationRequest { id: id.clone() };
        async move { answer(client.operations().get(request).await) }
    };
    assert_eq!(operation(house.client(0).await?).await?.state(), OperationState::Waiting);
    house.cluster.node(1).start().await?;
    let limit = Instant::now() + PATIENCE;
    loop {
        let info = answer(house.client(0).await?.node().info(NodeInfoRequest {}).await)?;
        if info.pending_deletions.is_empty() {
            break;
        }
        ensure!(Instant::now() < limit, "still waiting: {:#?}", info.pending_deletions);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(replicas(&house, 1).await?, 0);
    assert_eq!(operation(house.client(0).await?).await?.state(), OperationState::Succeeded);
    Ok(())
}

#[tokio::test]
async fn a_late_deletion_can_be_given_up() -> anyhow::Result<()> {
    let mut house = House::open(&["a", "b"], 256 * MIB).await?;
    house.create_volume("v", 16 * MIB, &["a", "b"]).await?;
    house.cluster.node(1).kill()?;
    answer(house.client(0).await?.volumes().delete(delete("v")).await)?;
    let list = |arguments: &[&str]| house.ashlar(0, &[&["-o", "json", "operation"], arguments].concat());
    let listed: serde_json::Value = serde_json::from_slice(&list(&["list", "--active"])?.stdout)?;
    let id = listed[0]["id"].as_str().context("one is under way")?.to_owned();
    for _ in 0..2 {
        let cancelled: serde_json::Value = serde_json::from_slice(&list(&["cancel", &id])?.stdout)?;
        assert_eq!(
            (&cancelled["state"], &cancelled["can_cancel"]),
            (&"cancelled".into(), &false.into()),
            "{cancelled}"
        );
    }
    // Also after a restart, and nobody tries any more.
    house.cluster.node(0).kill()?;
    house.cluster.node(0).start().await?;
    let shown = integration::said(&house.ashlar(0, &["operation", "show", &id])?);
    ensure!(shown.contains("cancelled") && shown.contains("may be on node `b` still"), "{shown}");
    let info = answer(house.client(0).await?.node().info(NodeInfoRequest {}).await)?;
    assert_eq!(info.pending_deletions, []);
    Ok(())
}

#[tokio::test]
async fn a_store_with_replicas_is_not_deleted() -> anyhow::Result<()> {
    let house = House::open(&["a"], 512 * MIB).await?;
    house.create_volume("v", 64 * MIB, &[]).await?;
    let client = house.client(0).await?;
    let request = || DeleteStoreRequest { store: "main".to_owned(), expected_uuid: String::new() };
    let status = client.stores().delete(request()).await.expect_err("it is in use");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(proto::error::info(&status).map(|info| info.reason).as_deref(), Some("STORE_NOT_EMPTY"));
    answer(client.volumes().delete(delete("v")).await)?;
    for _ in 0..2 {
        answer(client.stores().delete(request()).await)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_create_that_failed_half_way_goes_on_when_it_is_repeated() -> anyhow::Result<()> {
    let mut house = House::open(&["a", "b"], 512 * MIB).await?;
    house.cluster.node(1).kill()?;
    let arguments = ["volume", "create", "v", "--size", "64MiB", "--replicas", "a,b"];
    let output = house.ashlar(0, &arguments)?;
    assert_eq!(output.status.code(), Some(1));
    let text = integration::said(&output);
    assert!(text.contains("half made") && text.contains("node `b`"), "{text}");
    let half = house.volume("v").await?;
    house.cluster.node(1).start().await?;
    let output = house.ashlar(0, &arguments)?;
    ensure!(output.status.success(), "{}", integration::said(&output));
    let whole = house.wait_until_healthy("v").await?;
    assert_eq!(whole.uuid, half.uuid);
    assert_eq!((replicas(&house, 0).await?, replicas(&house, 1).await?), (1, 1));
    Ok(())
}
