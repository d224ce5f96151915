//! Volumes that begin as snapshots of others.

use anyhow::ensure;
use integration::{Host, House, MIB, export_of, said};

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
async fn a_clone_goes_its_own_way_and_outlives_its_source() -> anyhow::Result<()> {
    let mut house = House::open(&NODES, 512 * MIB).await?;
    let source = house.create_volume("v", 64 * MIB, &["a", "b"]).await?;
    let address = house.cluster.nodes()[0].addresses().nvmf;
    let nqn = export_of(&source)?.nqn.clone();
    let host = Host::new()?;
    host.write(address, &nqn, 0, 1, 4 << 20).await?;
    ok(&house, &["snapshot", "create", "v", "--name", "base"])?;
    host.write(address, &nqn, 0, 2, 1 << 20).await?;

    let text = ok(&house, &["volume", "clone", "v", "base", "w"])?;
    ensure!(text.contains("snapshot base of volume v"), "{text}");
    let clone = house.wait_until_healthy("w").await?;
    assert_eq!((clone.size_bytes, clone.replicas.len()), (64 * MIB, 2));
    let clone_nqn = export_of(&clone)?.nqn.clone();
    assert_eq!(host.read(address, &clone_nqn, 0, 4 << 20).await?, vec![1; 4 << 20]);
    host.write(address, &clone_nqn, 2 * MIB, 3, 1 << 20).await?;
    assert_eq!(host.read(address, &nqn, 2 * MIB, 1 << 20).await?, vec![1; 1 << 20], "the source has its own");

    // The same request again is the same volume, another one for the same name is refused (I30).
    assert_eq!(ok(&house, &["volume", "clone", "v", "base", "w"])?.lines().nth(1), text.lines().nth(1));
    refused(&house, &["volume", "clone", "v", "base", "w", "--size", "128MiB"])?;
    refused(&house, &["volume", "clone", "v", "none", "x"])?;
    refused(&house, &["volume", "clone", "v", "base", "x", "--size", "32MiB"])?;
    let elsewhere = refused(&house, &["volume", "clone", "v", "base", "x", "--replicas", "c"])?;
    ensure!(elsewhere.contains("node `c` has no replica"), "{elsewhere}");
    ensure!(!ok(&house, &["volume", "list"])?.contains("x "), "a refused clone leaves nothing");

    // The source goes; a node is killed; a replica is rebuilt where no replica of the source ever was.
    ok(&house, &["volume", "delete", "v"])?;
    house.cluster.node(1).kill()?;
    house.cluster.node(1).start().await?;
    ok(&house, &["volume", "add-replica", "w", "--node", "c"])?;
    house.wait_until_healthy("w").await?;
    for node in ["a", "b"] {
        ok(&house, &["volume", "remove-replica", "w", "--node", node])?;
    }
    assert_eq!(host.read(address, &clone_nqn, 0, 2 << 20).await?, vec![1; 2 << 20]);
    assert_eq!(host.read(address, &clone_nqn, 2 * MIB, 1 << 20).await?, vec![3; 1 << 20]);
    assert_eq!(host.read(address, &clone_nqn, 3 * MIB, 1 << 20).await?, vec![1; 1 << 20]);
    assert_eq!(host.read(address, &clone_nqn, 4 * MIB, 1 << 20).await?, vec![0; 1 << 20]);
    Ok(())
}
