//! Volumes that are in use are snapshotted, taken back and grown, with a node killed in between.

use anyhow::{Context, ensure};
use integration::{Host, House, MIB, PATIENCE, attach, export_of, said};
use std::time::Instant;

const NODES: [&str; 3] = ["a", "b", "c"];

fn ok(house: &House, arguments: &[&str]) -> anyhow::Result<String> {
    let output = house.ashlar(0, arguments)?;
    ensure!(output.status.success(), "{arguments:?}: {}\n{}", said(&output), house.logs());
    Ok(said(&output))
}

fn refused(house: &House, arguments: &[&str]) -> anyhow::Result<String> {
    let output = house.ashlar(0, arguments)?;
    ensure!(!output.status.success(), "{arguments:?} was not refused: {}", said(&output));
    Ok(said(&output))
}

#[tokio::test]
async fn a_volume_goes_back_to_a_snapshot_and_keeps_it_through_kills() -> anyhow::Result<()> {
    let mut house = House::open(&NODES, 512 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &NODES).await?;
    let (address, nqn) = (house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    for (value, name) in [(1, "one"), (2, "two"), (3, "three")] {
        host.write(address, &nqn, 0, value, 1 << 20).await?;
        ok(&house, &["snapshot", "create", "v", "--name", name])?;
    }
    host.write(address, &nqn, 0, 9, 1 << 20).await?;
    ensure!(ok(&house, &["snapshot", "list", "v"])?.contains("64 MiB"), "the list tells sizes");
    let text = refused(&house, &["volume", "revert", "v", "two"])?;
    ensure!(text.contains("three") && text.contains("--discard-newer"), "{text}");
    refused(&house, &["volume", "revert", "v", "four"])?;
    assert_eq!(host.read(address, &nqn, 0, 4096).await?, vec![9; 4096]);

    ok(&house, &["volume", "revert", "v", "two", "--discard-newer"])?;
    assert_eq!(host.read(address, &nqn, 0, 1 << 20).await?, vec![2; 1 << 20]);
    ok(&house, &["snapshot", "delete", "v", "one"])?;
    ok(&house, &["snapshot", "delete", "v", "one"]).context("it is gone: nothing to do")?;

    // A node that was away while a snapshot was deleted follows when it is back.
    house.cluster.node(1).kill()?;
    host.write(address, &nqn, MIB, 4, 1 << 20).await?;
    ok(&house, &["snapshot", "delete", "v", "two"])?;
    house.cluster.node(1).start().await?;
    house.wait_until_healthy("v").await?;
    // The engine's node.
    house.cluster.node(0).kill()?;
    house.cluster.node(0).start().await?;
    house.wait_until_healthy("v").await?;
    assert_eq!(host.read(address, &nqn, 0, 1 << 20).await?, vec![2; 1 << 20]);
    assert_eq!(host.read(address, &nqn, MIB, 1 << 20).await?, vec![4; 1 << 20]);
    ensure!(ok(&house, &["snapshot", "list", "v"])?.contains("no snapshots"), "all are deleted");
    Ok(())
}

#[tokio::test]
async fn a_volume_grows_under_a_host_that_learns_of_it() -> anyhow::Result<()> {
    let mut house = House::open(&NODES, 512 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &NODES).await?;
    let (address, nqn) = (house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    host.write(address, &nqn, 0, 1, 1 << 20).await?;
    refused(&house, &["volume", "grow", "v", "--size", "32MiB"])?;
    ensure!(ok(&house, &["volume", "grow", "v", "--size", "128MiB"])?.contains("128 MiB"), "it says so");
    ok(&house, &["volume", "grow", "v", "--size", "128MiB"]).context("it is so large already")?;
    host.write(address, &nqn, 100 * MIB, 7, 1 << 20).await?;
    // The daemon's own notes of the size are only notes.
    house.cluster.node(0).kill()?;
    house.cluster.node(0).start().await?;
    let volume = house.wait_until_healthy("v").await?;
    assert_eq!(volume.size_bytes, 128 * MIB);
    assert_eq!(host.read(address, &nqn, 100 * MIB, 1 << 20).await?, vec![7; 1 << 20]);
    // I39: a node that is away does not become in sync at the old size.
    house.cluster.node(2).kill()?;
    host.write(address, &nqn, 0, 2, 4096).await?;
    ok(&house, &["volume", "grow", "v", "--size", "192MiB"])?;
    host.write(address, &nqn, 190 * MIB, 8, 1 << 20).await?;
    house.cluster.node(2).start().await?;
    house.wait_until_healthy("v").await?;
    assert_eq!(host.read(address, &nqn, 190 * MIB, 1 << 20).await?, vec![8; 1 << 20]);
    Ok(())
}

#[tokio::test]
async fn a_connected_host_sees_the_new_size() -> anyhow::Result<()> {
    let house = House::open(&["a"], 512 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &["a"]).await?;
    let (address, nqn) = (house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    let (grown, waiting) = tokio::sync::oneshot::channel();
    let (attached, ready) = tokio::sync::oneshot::channel();
    let seen = host.run(move || async move {
        let controller = attach(address, &nqn).await?;
        // An error means that the test has ended.
        let _ = attached.send(());
        let _ = waiting.await;
        let limit = Instant::now() + PATIENCE;
        while controller.write(127 * MIB, reactor::Slice::from(&[5; 4096][..]), false).await.is_err() {
            ensure!(Instant::now() < limit, "it never saw the new size");
            reactor::sleep(std::time::Duration::from_millis(50)).await;
        }
        controller.disconnect().await;
        Ok(())
    });
    ready.await.context("the host attached")?;
    ok(&house, &["volume", "grow", "v", "--size", "128MiB"])?;
    let _ = grown.send(());
    seen.await
}

#[tokio::test]
async fn replicas_are_added_replaced_and_removed_in_use() -> anyhow::Result<()> {
    let mut house = House::open(&NODES, 512 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &["a"]).await?;
    let (address, nqn) = (house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    host.write(address, &nqn, 0, 1, 4 << 20).await?;
    refused(&house, &["volume", "add-replica", "v", "--node", "d"])?;
    ok(&house, &["volume", "add-replica", "v", "--node", "b"])?;
    ok(&house, &["volume", "add-replica", "v", "--node", "b"]).context("it is there already")?;
    ensure!(house.wait_until_healthy("v").await?.replicas.len() == 2);

    // The daemon dies while the new one is being rebuilt: the replacement goes on.
    ok(&house, &["volume", "replace-replica", "v", "--node", "b", "--by", "c"])?;
    house.cluster.node(0).kill()?;
    house.cluster.node(0).start().await?;
    let replaced = |volume: &proto::v1::Volume| {
        let nodes: Vec<_> = volume.replicas.iter().map(|replica| replica.node.as_str()).collect();
        nodes == ["a", "c"]
    };
    let limit = Instant::now() + PATIENCE;
    while !replaced(&house.volume("v").await?) {
        ensure!(Instant::now() < limit, "not replaced: {:#?}\n{}", house.volume("v").await?, house.logs());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    house.wait_until_healthy("v").await?;
    let left = said(&house.ashlar(1, &["replica", "list"])?);
    ensure!(!left.contains("ready"), "its content is deleted: {left}");

    ok(&house, &["volume", "remove-replica", "v", "--node", "a"])?;
    ok(&house, &["volume", "remove-replica", "v", "--node", "a"]).context("nothing to do")?;
    refused(&house, &["volume", "remove-replica", "v", "--node", "c"])?;
    house.wait_until_healthy("v").await?;
    assert_eq!(host.read(address, &nqn, 0, 4 << 20).await?, vec![1; 4 << 20]);
    ok(&house, &["volume", "delete", "v"]).map(drop)
}

#[tokio::test]
async fn a_volume_whose_newest_replica_is_gone_opens_by_force_only() -> anyhow::Result<()> {
    // I5, I6
    let mut house = House::open(&NODES, 512 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &["b", "c"]).await?;
    let (address, nqn) = (house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    host.write(address, &nqn, 0, 1, 1 << 20).await?;
    refused(&house, &["volume", "recover", "v", "--node", "b"])?;
    house.cluster.node(2).kill()?;
    host.write(address, &nqn, 0, 2, 1 << 20).await?;
    house.cluster.node(1).kill()?;
    house.cluster.node(2).start().await?;
    let waiting = |engine: &proto::v1::Engine| engine.state() == proto::v1::EngineState::Starting;
    house.wait_for_engine("v", waiting).await?;
    let text = ok(&house, &["volume", "recover", "v", "--node", "c"])?;
    ensure!(text.contains("on b") && text.contains("Nothing was changed"), "{text}");
    refused(&house, &["volume", "recover", "v", "--node", "b", "--force"])?;
    ok(&house, &["volume", "recover", "v", "--node", "c", "--force"])?;
    assert_eq!(host.read(address, &nqn, 0, 1 << 20).await?, vec![1; 1 << 20], "what c had when it left");
    house.cluster.node(1).start().await?;
    house.wait_until_healthy("v").await?;
    assert_eq!(host.read(address, &nqn, 0, 1 << 20).await?, vec![1; 1 << 20]);
    Ok(())
}
