//! Networks that fail.

use crate::scene::{Scene, a_while};

#[tokio::test]
async fn a_replica_is_cut_off_and_comes_back() -> anyhow::Result<()> {
    let Some(scene) = Scene::open(&["a", "b", "c"]).await? else { return Ok(()) };
    let traffic = scene.traffic();
    a_while().await;
    scene.network.cut(0, 2)?;
    scene.wait_until_out_of_sync("c").await?;
    a_while().await;
    scene.network.mend(0, 2)?;
    scene.ends_well(traffic).await
}

#[tokio::test]
async fn what_an_engine_sends_to_a_replica_is_lost() -> anyhow::Result<()> {
    let Some(scene) = Scene::open(&["a", "b"]).await? else { return Ok(()) };
    let traffic = scene.traffic();
    a_while().await;
    scene.network.cut_one_way(0, 1)?;
    scene.wait_until_out_of_sync("b").await?;
    a_while().await;
    scene.network.mend_one_way(0, 1)?;
    scene.ends_well(traffic).await
}

#[tokio::test]
async fn what_a_replica_answers_is_lost() -> anyhow::Result<()> {
    // Its writes happen, and nobody hears of it.
    let Some(scene) = Scene::open(&["a", "b"]).await? else { return Ok(()) };
    let traffic = scene.traffic();
    a_while().await;
    scene.network.cut_one_way(1, 0)?;
    scene.wait_until_out_of_sync("b").await?;
    a_while().await;
    scene.network.mend_one_way(1, 0)?;
    scene.ends_well(traffic).await
}

#[tokio::test]
async fn the_engines_node_is_unplugged_and_plugged_in() -> anyhow::Result<()> {
    // Host and replicas lose it at once; its own replica goes on alone, and nothing is acknowledged twice.
    let Some(scene) = Scene::open(&["a", "b", "c"]).await? else { return Ok(()) };
    let traffic = scene.traffic();
    a_while().await;
    scene.network.unplug(0)?;
    for _ in 0..3 {
        a_while().await;
    }
    scene.network.plug_in(0)?;
    a_while().await;
    scene.ends_well(traffic).await
}

#[tokio::test]
async fn an_engine_loses_all_its_replicas_and_gets_them_back() -> anyhow::Result<()> {
    // I3: none of them is recorded out of sync; the host waits.
    let Some(scene) = Scene::open(&["b", "c"]).await? else { return Ok(()) };
    let traffic = scene.traffic();
    a_while().await;
    scene.network.unplug(1)?;
    scene.network.unplug(2)?;
    for _ in 0..3 {
        a_while().await;
    }
    scene.network.plug_in(1)?;
    scene.network.plug_in(2)?;
    a_while().await;
    scene.ends_well(traffic).await
}
