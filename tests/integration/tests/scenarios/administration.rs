//! Changes of a volume while something dies.

use anyhow::ensure;
use integration::MIB;

use crate::scene::{Scene, VOLUME, a_while, eventually};

#[tokio::test]
async fn snapshots_are_taken_and_deleted_while_a_replica_dies() -> anyhow::Result<()> {
    // I24, I25
    let Some(mut scene) = Scene::open(&["a", "b", "c"]).await? else { return Ok(()) };
    scene.write(32 * MIB, 1, 1 << 20).await?;
    let traffic = scene.traffic();
    for name in ["one", "two"] {
        scene.ashlar(&["snapshot", "create", VOLUME, "--name", name])?;
        a_while().await;
    }
    scene.house.cluster.node(2).kill()?;
    scene.ashlar(&["snapshot", "create", VOLUME, "--name", "three"])?;
    scene.ashlar(&["snapshot", "delete", VOLUME, "one"])?;
    scene.house.cluster.node(2).start().await?;
    scene.ashlar(&["snapshot", "delete", VOLUME, "three"])?;
    scene.wait_until_healthy().await?;
    traffic.ends_well(&scene.house).await?;
    scene.write(32 * MIB, 2, 1 << 20).await?;
    scene.ashlar(&["volume", "revert", VOLUME, "two"])?;
    scene.reads_as(32 * MIB, 1, 1 << 20).await?;
    scene.replicas_are_equal().await
}

#[tokio::test]
async fn the_engine_dies_while_a_volume_goes_back() -> anyhow::Result<()> {
    // I26: all replicas go back, or none does.
    let Some(mut scene) = Scene::open(&["a", "b", "c"]).await? else { return Ok(()) };
    scene.write(0, 1, 4 << 20).await?;
    scene.ashlar(&["snapshot", "create", VOLUME, "--name", "then"])?;
    scene.write(0, 2, 4 << 20).await?;
    let server = scene.house.cluster.nodes()[0].server();
    let reverting =
        std::thread::spawn(move || integration::run_ashlar(&["--server", &server, "volume", "revert", VOLUME, "then"]));
    scene.house.cluster.node(0).kill()?;
    let answered = reverting.join().map_err(|_| anyhow::anyhow!("the call panicked"))??.status.success();
    scene.house.cluster.node(0).start().await?;
    scene.wait_until_healthy().await?;
    match scene.reads_as(0, 1, 4 << 20).await {
        Ok(()) => {}
        Err(_) if !answered => scene.reads_as(0, 2, 4 << 20).await?,
        Err(error) => return Err(error.context("it was acknowledged")),
    }
    scene.replicas_are_equal().await
}

#[tokio::test]
async fn a_volume_grows_while_a_replica_is_dead() -> anyhow::Result<()> {
    // I39
    let Some(mut scene) = Scene::open(&["a", "b"]).await? else { return Ok(()) };
    let traffic = scene.traffic();
    scene.house.cluster.node(1).kill()?;
    scene.wait_until_out_of_sync("b").await?;
    scene.ashlar(&["volume", "grow", VOLUME, "--size", "96MiB"])?;
    scene.write(90 * MIB, 3, 1 << 20).await?;
    scene.house.cluster.node(1).start().await?;
    scene.wait_until_healthy().await?;
    scene.reads_as(90 * MIB, 3, 1 << 20).await?;
    scene.ends_well(traffic).await
}

#[tokio::test]
async fn replicas_join_while_nodes_die() -> anyhow::Result<()> {
    // From one replica to three, with the new ones and the engine killed in between; then the first one goes.
    let Some(mut scene) = Scene::open(&["a"]).await? else { return Ok(()) };
    scene.write(16 * MIB, 7, 32 << 20).await?;
    let traffic = scene.traffic();
    scene.ashlar(&["volume", "add-replica", VOLUME, "--node", "b"])?;
    scene.house.cluster.node(1).kill()?;
    scene.ashlar(&["volume", "list"])?;
    scene.house.cluster.node(1).start().await?;
    scene.ashlar(&["volume", "add-replica", VOLUME, "--node", "c"])?;
    scene.house.cluster.node(0).kill()?;
    scene.house.cluster.node(0).start().await?;
    scene.wait_until_healthy().await?;
    scene.ashlar(&["volume", "remove-replica", VOLUME, "--node", "a"])?;
    let volume = scene.wait_until_healthy().await?;
    assert_eq!(volume.replicas.len(), 2);
    scene.reads_as(16 * MIB, 7, 32 << 20).await?;
    scene.ends_well(traffic).await
}

#[tokio::test]
async fn a_replica_is_replaced_by_a_node_that_dies_meanwhile() -> anyhow::Result<()> {
    let Some(mut scene) = Scene::open(&["a", "b"]).await? else { return Ok(()) };
    scene.write(16 * MIB, 7, 32 << 20).await?;
    let traffic = scene.traffic();
    scene.ashlar(&["volume", "replace-replica", VOLUME, "--node", "b", "--by", "c"])?;
    scene.house.cluster.node(2).kill()?;
    a_while().await;
    scene.house.cluster.node(2).start().await?;
    eventually("the replica on b is gone", async || {
        let volume = scene.house.volume(VOLUME).await?;
        Ok(volume.replicas.iter().all(|replica| replica.node != "b"))
    })
    .await?;
    scene.ends_well(traffic).await
}

#[tokio::test]
async fn a_volume_is_deleted_while_a_node_is_dead() -> anyhow::Result<()> {
    // I42, L5: the replica there goes when the node is back, and a namesake is another volume.
    let Some(mut scene) = Scene::open(&["a", "b"]).await? else { return Ok(()) };
    scene.write(0, 1, 1 << 20).await?;
    scene.house.cluster.node(1).kill()?;
    let text = scene.ashlar(&["volume", "delete", VOLUME])?;
    ensure!(text.contains("Not reachable now: b"), "{text}");
    let volume = scene.house.create_volume(VOLUME, 64 * MIB, &["a"]).await?;
    let nqn = integration::export_of(&volume)?.nqn.clone();
    scene.house.cluster.node(1).start().await?;
    eventually("the old replica is deleted", async || {
        let replicas = integration::said(&scene.house.ashlar(1, &["replica", "list", "-o", "json"])?);
        Ok(!replicas.contains("volume_uuid"))
    })
    .await?;
    let found = scene.host.read(integration::Network::addresses(0).nvmf, &nqn, 0, 4096).await?;
    assert_eq!(found, vec![0; 4096], "the namesake is new");
    Ok(())
}

#[tokio::test]
async fn the_only_good_replica_is_lost_and_a_person_decides() -> anyhow::Result<()> {
    // I6
    let Some(mut scene) = Scene::open(&["b", "c"]).await? else { return Ok(()) };
    scene.write(0, 1, 1 << 20).await?;
    scene.house.cluster.node(2).kill()?;
    scene.write(0, 2, 1 << 20).await?;
    scene.house.cluster.node(1).kill()?;
    std::fs::remove_file(scene.house.cluster.nodes()[1].folder().join("main.img"))?;
    scene.house.cluster.node(2).start().await?;
    scene.wait_until_waiting().await?;
    scene.refused(&["volume", "recover", VOLUME, "--node", "b", "--force"])?;
    let text = scene.ashlar(&["volume", "recover", VOLUME, "--node", "c"])?;
    ensure!(text.contains("Nothing was changed"), "{text}");
    scene.ashlar(&["volume", "recover", VOLUME, "--node", "c", "--force"])?;
    scene.reads_as(0, 1, 1 << 20).await?;
    scene.ashlar(&["volume", "add-replica", VOLUME, "--node", "a"])?;
    scene.ashlar(&["volume", "remove-replica", VOLUME, "--node", "b"])?;
    scene.replicas_are_equal().await
}
