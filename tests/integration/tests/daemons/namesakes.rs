//! Commands that mean one object and no namesake: `--expected-uuid`, and replicas with an identity that the caller chose (I30, I42).

use std::process::Output;

use anyhow::{Context, ensure};
use integration::{House, MIB, said};
use uuid::Uuid;

/// A command line on the first daemon.
fn ashlar(house: &House, line: &str) -> anyhow::Result<Output> {
    house.ashlar(0, &line.split(' ').collect::<Vec<_>>())
}

/// It has to succeed, and so does the same again.
fn done(house: &House, line: &str) -> anyhow::Result<()> {
    for _ in 0..2 {
        let output = ashlar(house, line)?;
        ensure!(output.status.success(), "{line}: {}", said(&output));
    }
    Ok(())
}

/// It has to be refused for this reason.
fn refused(house: &House, line: &str, reason: &str) -> anyhow::Result<()> {
    let output = ashlar(house, &format!("{line} -o json"))?;
    ensure!(output.status.code() == Some(1), "{line}: {}", said(&output));
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).with_context(|| said(&output))?;
    ensure!(error["reason"] == reason, "{line}: {error}");
    Ok(())
}

async fn replica_on(house: &House, node: &str) -> anyhow::Result<Option<String>> {
    let placed = house.volume("v").await?.replicas.into_iter().find(|replica| replica.node == node);
    Ok(placed.map(|replica| replica.replica_uuid))
}

#[tokio::test]
async fn a_replica_has_the_uuid_that_was_chosen_and_only_that_one_is_let_go() -> anyhow::Result<()> {
    let house = House::open(&["a", "b"], 256 * MIB).await?;
    let first = house.create_volume("v", 16 * MIB, &["a"]).await?.replicas[0].replica_uuid.clone();
    let (chosen, other, third) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
    done(&house, &format!("volume add-replica v --node b --uuid {chosen}"))?;
    assert_eq!(replica_on(&house, "b").await?.as_ref(), Some(&chosen));
    refused(&house, &format!("volume add-replica v --node b --uuid {other}"), "CONFLICT")?;
    refused(&house, &format!("volume add-replica v --node a --uuid {chosen}"), "CONFLICT")?;
    // Another volume cannot have it either.
    house.create_volume("w", 16 * MIB, &["b"]).await?;
    refused(&house, &format!("volume add-replica w --node a --uuid {chosen}"), "CONFLICT")?;
    assert_eq!(house.volume("w").await?.replicas.len(), 1);

    house.wait_until_healthy("v").await?;
    refused(&house, &format!("volume remove-replica v --node b --expected-uuid {other}"), "OTHER_UUID")?;
    assert_eq!(replica_on(&house, "b").await?.as_ref(), Some(&chosen));
    done(&house, &format!("volume remove-replica v --node b --expected-uuid {chosen}"))?;
    assert_eq!(replica_on(&house, "b").await?, None);

    // One instead of another: which of them goes, and what comes.
    refused(&house, &format!("volume replace-replica v --node a --by b --expected-uuid {other}"), "OTHER_UUID")?;
    assert_eq!(replica_on(&house, "b").await?, None, "nothing was changed");
    let replace = format!("volume replace-replica v --node a --by b --expected-uuid {first} --uuid {third} --wait");
    done(&house, &replace)?;
    assert_eq!((replica_on(&house, "a").await?, replica_on(&house, "b").await?), (None, Some(third)));
    refused(&house, &format!("volume replace-replica v --node a --by b --uuid {other}"), "CONFLICT")?;
    house.wait_until_healthy("v").await?;
    Ok(())
}

#[tokio::test]
async fn a_replica_of_another_nodes_volume_is_refused_and_nothing_is_left_of_it() -> anyhow::Result<()> {
    let mut house = House::open(&["a", "b"], 256 * MIB).await?;
    house.create_volume("v", 16 * MIB, &["a"]).await?;
    // The second daemon's own, of which the first knows nothing.
    let made = house.ashlar(1, &["volume", "create", "w", "--size", "16MiB", "-o", "json"])?;
    ensure!(made.status.success(), "{}", said(&made));
    let w: serde_json::Value = serde_json::from_slice(&made.stdout)?;
    let taken = w["replicas"][0]["replica_uuid"].as_str().context("it has one")?;
    let add = format!("volume add-replica v --node b --uuid {taken}");
    let replace = format!("volume replace-replica v --node a --by b --uuid {taken}");
    for line in [&add, &add, &replace] {
        refused(&house, line, "PEER_REFUSED")?;
        let volume = house.volume("v").await?;
        ensure!(volume.replicas.len() == 1 && volume.reason.is_empty(), "{volume:#?}");
    }
    // Nor on record.
    house.cluster.node(0).stop().await?;
    house.cluster.node(0).start().await?;
    assert_eq!(house.wait_until_healthy("v").await?.replicas.len(), 1);
    // The node has room for one under a UUID of its own, and the other volume is as it was.
    done(&house, "volume add-replica v --node b")?;
    assert_eq!(house.wait_until_healthy("v").await?.replicas.len(), 2);
    let there = house.ashlar(1, &["volume", "show", "w", "-o", "json"])?;
    let there: serde_json::Value = serde_json::from_slice(&there.stdout)?;
    assert_eq!((&there["replicas"], &there["engine"]["state"]), (&w["replicas"], &"healthy".into()));
    Ok(())
}

#[tokio::test]
async fn nothing_is_deleted_that_has_another_uuid_than_expected() -> anyhow::Result<()> {
    let house = House::open(&["a"], 256 * MIB).await?;
    let volume = house.create_volume("v", 16 * MIB, &[]).await?;
    let (snapshot, lvol, other) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
    done(&house, &format!("snapshot create v --name s --uuid {snapshot}"))?;
    done(&house, &format!("lvol create l --store main --size 16MiB --uuid {lvol}"))?;
    let store: serde_json::Value = serde_json::from_slice(&ashlar(&house, "store show main -o json")?.stdout)?;
    let store = store["uuid"].as_str().context("it has one")?;
    let deletions = [
        ("snapshot delete v s", snapshot.as_str()),
        ("volume delete v", &volume.uuid),
        ("lvol delete l", &lvol),
        ("store delete main", store),
    ];
    for (deletion, _) in deletions {
        refused(&house, &format!("{deletion} --expected-uuid {other}"), "OTHER_UUID")?;
    }
    for (deletion, uuid) in deletions {
        done(&house, &format!("{deletion} --expected-uuid {uuid}"))?;
    }
    Ok(())
}
