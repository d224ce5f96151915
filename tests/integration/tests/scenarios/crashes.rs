//! Processes that die.

use crate::scene::{Scene, a_while};

#[tokio::test]
async fn a_replica_dies_under_load_and_comes_back() -> anyhow::Result<()> {
    let Some(mut scene) = Scene::open(&["a", "b", "c"]).await? else { return Ok(()) };
    let traffic = scene.traffic();
    a_while().await;
    scene.house.cluster.node(1).kill()?;
    scene.wait_until_out_of_sync("b").await?;
    a_while().await;
    scene.house.cluster.node(1).start().await?;
    scene.wait_until_healthy().await?;
    scene.ends_well(traffic).await
}

#[tokio::test]
async fn a_replica_dies_again_and_again() -> anyhow::Result<()> {
    let Some(mut scene) = Scene::open(&["a", "b"]).await? else { return Ok(()) };
    let traffic = scene.traffic();
    for _ in 0..5 {
        a_while().await;
        scene.house.cluster.node(1).kill()?;
        scene.house.cluster.node(1).start().await?;
    }
    scene.ends_well(traffic).await
}

#[tokio::test]
async fn the_engine_dies_under_load_and_its_host_comes_back() -> anyhow::Result<()> {
    let Some(mut scene) = Scene::open(&["a", "b", "c"]).await? else { return Ok(()) };
    let traffic = scene.traffic();
    for _ in 0..3 {
        a_while().await;
        scene.house.cluster.node(0).kill()?;
        scene.house.cluster.node(0).start().await?;
    }
    scene.ends_well(traffic).await
}

#[tokio::test]
async fn an_engine_without_a_replica_of_its_own_dies_together_with_one() -> anyhow::Result<()> {
    // I7: what was in flight is settled from the one that is left, and the other one follows.
    let Some(mut scene) = Scene::open(&["b", "c"]).await? else { return Ok(()) };
    let traffic = scene.traffic();
    a_while().await;
    scene.house.cluster.node(0).kill()?;
    scene.house.cluster.node(2).kill()?;
    scene.house.cluster.node(0).start().await?;
    a_while().await;
    scene.house.cluster.node(2).start().await?;
    scene.ends_well(traffic).await
}

#[tokio::test]
async fn all_nodes_die_at_once() -> anyhow::Result<()> {
    let Some(mut scene) = Scene::open(&["a", "b", "c"]).await? else { return Ok(()) };
    let traffic = scene.traffic();
    a_while().await;
    for index in 0..3 {
        scene.house.cluster.node(index).kill()?;
    }
    scene.house.cluster.start().await?;
    a_while().await;
    scene.ends_well(traffic).await
}

#[tokio::test]
async fn replicas_die_one_after_the_other_and_the_stale_one_comes_back_first() -> anyhow::Result<()> {
    // I5: c left before b, so c alone must not serve.
    let Some(mut scene) = Scene::open(&["b", "c"]).await? else { return Ok(()) };
    scene.write(0, 1, 1 << 20).await?;
    let traffic = scene.traffic();
    scene.house.cluster.node(2).kill()?;
    scene.wait_until_out_of_sync("c").await?;
    a_while().await;
    scene.house.cluster.node(1).kill()?;
    scene.house.cluster.node(2).start().await?;
    scene.wait_until_waiting().await?;
    a_while().await;
    scene.wait_until_waiting().await?;
    scene.house.cluster.node(1).start().await?;
    scene.ends_well(traffic).await
}

#[tokio::test]
async fn all_nodes_are_restarted_in_turn() -> anyhow::Result<()> {
    // As an upgrade does.
    let Some(mut scene) = Scene::open(&["a", "b", "c"]).await? else { return Ok(()) };
    let traffic = scene.traffic();
    for index in [1, 2, 0] {
        a_while().await;
        let status = scene.house.cluster.node(index).stop().await?;
        anyhow::ensure!(status.success(), "{status}");
        scene.house.cluster.node(index).start().await?;
        scene.wait_until_healthy().await?;
    }
    scene.ends_well(traffic).await
}
