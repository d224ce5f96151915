//! Where a backup reads from: replicas in sync, wherever they are.

use anyhow::ensure;
use integration::MIB;
use proto::v1::{Engine, MemberState};

use super::{Depot, SIZE};

/// Whether the replica on a node is in sync.
fn is_in_sync(engine: &Engine, node: &str) -> bool {
    engine.members.iter().any(|member| member.node == node && member.state() == MemberState::InSync)
}

#[tokio::test]
async fn a_backup_reads_from_other_nodes_when_only_those_are_in_sync() -> anyhow::Result<()> {
    // Slow enough for a node to be killed in the middle.
    let mut depot = Depot::open(&["a", "b", "c"], "backup_bytes_per_second = 4194304").await?;
    depot.house.create_volume("vol", SIZE, &["b", "c"]).await?;
    let ok = |depot: &Depot, arguments: &[&str]| depot.house.ashlar(0, arguments).map(|output| output.status.success());
    ensure!(ok(&depot, &["volume", "rebuild", "pause", "vol"])?);
    depot.write("vol", 0, 1, 7 * MIB).await?;
    depot.write("vol", 16 * MIB, 2, 9 * MIB).await?;
    // One here that has nothing of it: it must not be read.
    ensure!(ok(&depot, &["volume", "add-replica", "vol", "--node", "a"])?);
    depot.snapshot("vol", "one").await?;
    let first = depot.content(0, "vol").await?;
    let volume = depot.house.volume("vol").await?;
    let engine = volume.engine.unwrap_or_default();
    ensure!(!is_in_sync(&engine, "a") && is_in_sync(&engine, "b") && is_in_sync(&engine, "c"), "{engine:#?}");

    let backup = depot.back_up("one", "first").await?;
    depot.wait_for(0, &backup.id, |found| found.done_bytes.is_some_and(|done| done > 3 * MIB)).await?;
    depot.house.cluster.node(1).kill()?;
    depot.wait_until_done(0, &backup).await?;

    // What changed since, of the only replica that is left in sync.
    depot.write("vol", 4 * MIB, 3, 3 * MIB).await?;
    depot.snapshot("vol", "two").await?;
    let second = depot.content(0, "vol").await?;
    let backup = depot.back_up("two", "second").await?;
    let ended = depot.wait_until_done(0, &backup).await?;
    ensure!(ended.reason.starts_with("incremental"), "{ended:#?}");
    let volume = depot.house.volume("vol").await?;
    let engine = volume.engine.unwrap_or_default();
    ensure!(!is_in_sync(&engine, "a") && !is_in_sync(&engine, "b") && is_in_sync(&engine, "c"), "{engine:#?}");
    for (name, content) in [("first", first), ("second", second)] {
        let restored = depot.restore(2, name, name).await?;
        depot.wait_until_done(2, &restored).await?;
        ensure!(depot.content(2, name).await? == content, "{name} differs");
    }
    Ok(())
}
