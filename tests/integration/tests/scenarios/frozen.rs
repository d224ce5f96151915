//! Processes that hang and go on later.

use crate::scene::{Scene, a_while};

#[tokio::test]
async fn a_replica_hangs_is_left_behind_and_goes_on() -> anyhow::Result<()> {
    // I16: what it still had in flight when it went on does no harm.
    let Some(mut scene) = Scene::open(&["a", "b", "c"]).await? else { return Ok(()) };
    let traffic = scene.traffic();
    a_while().await;
    scene.house.cluster.node(1).pause()?;
    scene.wait_until_out_of_sync("b").await?;
    a_while().await;
    scene.house.cluster.node(1).resume()?;
    scene.wait_until_healthy().await?;
    scene.ends_well(traffic).await
}

#[tokio::test]
async fn an_engine_hangs_and_goes_on() -> anyhow::Result<()> {
    let Some(mut scene) = Scene::open(&["a", "b"]).await? else { return Ok(()) };
    let traffic = scene.traffic();
    a_while().await;
    scene.house.cluster.node(0).pause()?;
    for _ in 0..6 {
        a_while().await;
    }
    scene.house.cluster.node(0).resume()?;
    a_while().await;
    scene.ends_well(traffic).await
}
