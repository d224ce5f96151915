//! Damage that a scrub finds in one replica is mended from another one, without a read of a host (I22).

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cli::client::answer;
use integration::{Host, House, MIB, PATIENCE, export_of, said};
use proto::v1::{GetStoreRequest, SnapshotVolumeRequest, StoreScrub};

const BLOCK: usize = 4096;
const VALUE: u8 = 0x7b;

async fn wait_for_scrub(
    house: &House,
    node: usize,
    wanted: impl Fn(&StoreScrub) -> bool,
) -> anyhow::Result<StoreScrub> {
    let limit = Instant::now() + PATIENCE;
    loop {
        let request = GetStoreRequest { store: "main".to_owned() };
        match answer(house.client(node).await?.stores().get(request).await)?.scrub {
            Some(scrub) if wanted(&scrub) => return Ok(scrub),
            scrub => ensure!(Instant::now() < limit, "{scrub:?}\n{}", house.logs()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn store_file(house: &House, node: usize) -> PathBuf {
    house.cluster.nodes()[node].folder().join("main.img")
}

/// The places of blocks on disk all of whose bytes are [`VALUE`].
fn places(path: &Path) -> anyhow::Result<Vec<u64>> {
    let content = fs::read(path)?;
    let blocks = content.chunks(BLOCK).enumerate();
    Ok(blocks
        .filter(|(_, block)| block.iter().all(|byte| *byte == VALUE))
        .map(|(index, _)| (index * BLOCK) as u64)
        .collect())
}

/// Turns a bit of the blocks at these places while the daemon does not run.
async fn flip(house: &mut House, node: usize, places: &[u64]) -> anyhow::Result<()> {
    let status = house.cluster.node(node).stop().await?;
    ensure!(status.success(), "{status}");
    let file = OpenOptions::new().write(true).open(store_file(house, node))?;
    for place in places {
        file.write_all_at(&[VALUE ^ 4], place + 99)?;
    }
    file.sync_all()?;
    house.cluster.node(node).start().await?;
    wait_for_scrub(house, node, |_| true).await.map(drop)
}

#[tokio::test]
async fn bits_that_turned_in_a_snapshot_are_found_and_put_right_from_the_other_replica() -> anyhow::Result<()> {
    let mut house = House::open(&["a", "b"], 256 * MIB).await?;
    let host = Host::new()?;
    let volume = house.create_volume("v", 4 * MIB, &["a", "b"]).await?;
    let export = export_of(&volume)?;
    let (address, nqn) = (export.addresses[0].parse()?, export.nqn.clone());
    host.write(address, &nqn, 0, VALUE, MIB as usize).await?;
    let request = SnapshotVolumeRequest { volume: "v".into(), name: "s".into(), ..SnapshotVolumeRequest::default() };
    answer(house.client(0).await?.volumes().snapshot(request).await)?;

    // The engine's own replica, then the one behind a connection.
    for node in [0, 1] {
        wait_for_scrub(&house, node, |scrub| scrub.snapshots == 1 && scrub.hashed_snapshots == 1).await?;
        let path = store_file(&house, node);
        let before = places(&path)?;
        ensure!(before.len() == MIB as usize / BLOCK, "{} blocks", before.len());
        // Two in one region, one in another.
        let turned = [before[5], before[6], before[200]];
        flip(&mut house, node, &turned).await?;
        house.wait_until_healthy("v").await?;

        let output = house.ashlar(node, &["store", "scrub", "main", "--wait"])?;
        let told = said(&output);
        ensure!(output.status.code() == Some(1) && told.contains("2 regions are damaged"), "{told}");
        wait_for_scrub(&house, node, |scrub| scrub.damaged_bytes == 0).await?;
        ensure!(places(&path)? == before, "equal to the byte");
        let name = house.cluster.nodes()[node].name().to_owned();
        let mended = move |engine: &proto::v1::Engine| {
            engine.members.iter().any(|member| member.node == name && (member.repaired, member.unrepaired) == (2, 0))
        };
        house.wait_for_engine("v", mended).await?;
        let shown = said(&house.ashlar(0, &["volume", "show", "v"])?);
        ensure!(shown.contains("2 damaged places mended"), "{shown}");
        let output = house.ashlar(node, &["store", "scrub", "main", "--wait"])?;
        ensure!(output.status.code() == Some(0), "{}", said(&output));
        house.wait_until_healthy("v").await?;
    }
    let read = host.read(address, &nqn, 0, MIB as usize).await?;
    ensure!(read.iter().all(|byte| *byte == VALUE), "other bytes than were written");
    Ok(())
}

#[tokio::test]
async fn damage_in_the_only_replica_is_an_error_and_shown() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 256 * MIB).await?;
    let host = Host::new()?;
    let volume = house.create_volume("v", 4 * MIB, &["a"]).await?;
    let export = export_of(&volume)?;
    let (address, nqn) = (export.addresses[0].parse()?, export.nqn.clone());
    host.write(address, &nqn, 0, VALUE, MIB as usize).await?;
    let request = SnapshotVolumeRequest { volume: "v".into(), name: "s".into(), ..SnapshotVolumeRequest::default() };
    answer(house.client(0).await?.volumes().snapshot(request).await)?;
    wait_for_scrub(&house, 0, |scrub| scrub.snapshots == 1 && scrub.hashed_snapshots == 1).await?;
    let place = *places(&store_file(&house, 0))?.first().context("the host's blocks")?;
    flip(&mut house, 0, &[place]).await?;
    house.wait_until_healthy("v").await?;
    let output = house.ashlar(0, &["store", "scrub", "main", "--wait"])?;
    ensure!(output.status.code() == Some(1), "{}", said(&output));
    house.wait_for_engine("v", |engine| engine.members[0].unrepaired == 1).await?;
    let shown = said(&house.ashlar(0, &["volume", "show", "v"])?);
    ensure!(shown.contains("1 damaged places, no good copy"), "{shown}");
    ensure!(host.read(address, &nqn, 0, 16 * BLOCK).await.is_err(), "I22: wrong bytes were served");
    Ok(())
}
