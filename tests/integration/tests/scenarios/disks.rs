//! Disks that hang, and file systems that are full, under one node's store.

use std::fs::File;
use std::process::Command;

use anyhow::ensure;

use crate::scene::{Scene, a_while};

/// A write never ends while the file system is frozen; the process and its connections live (I41).
#[tokio::test]
async fn a_replicas_disk_hangs() -> anyhow::Result<()> {
    let Some(scene) = Scene::open_with_disk(&["a", "b", "c"], 1).await? else { return Ok(()) };
    let traffic = scene.traffic();
    a_while().await;
    scene.disk()?.freeze()?;
    scene.wait_until_out_of_sync("b").await?;
    a_while().await;
    scene.disk()?.thaw()?;
    scene.ends_well(traffic).await
}

#[tokio::test]
async fn the_disk_beside_the_engine_hangs() -> anyhow::Result<()> {
    let Some(scene) = Scene::open_with_disk(&["a", "b"], 0).await? else { return Ok(()) };
    let traffic = scene.traffic();
    a_while().await;
    scene.disk()?.freeze()?;
    scene.wait_until_out_of_sync("a").await?;
    a_while().await;
    scene.disk()?.thaw()?;
    scene.ends_well(traffic).await
}

#[tokio::test]
async fn a_replicas_file_system_is_full() -> anyhow::Result<()> {
    let Some(scene) = Scene::open_with_disk(&["a", "b"], 1).await? else { return Ok(()) };
    let filler = scene.disk()?.path().join("filler");
    // A store's file is sparse: nothing keeps others from taking its room.
    let filled = Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "status=none"])
        .arg(format!("of={}", filler.display()))
        .output()?;
    ensure!(!filled.status.success() && File::open(&filler)?.metadata()?.len() > 0, "it is not full");
    let traffic = scene.traffic();
    scene.wait_until_out_of_sync("b").await?;
    a_while().await;
    std::fs::remove_file(&filler)?;
    scene.ends_well(traffic).await
}
