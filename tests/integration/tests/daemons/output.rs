//! What `ashlar` prints: tables for people, JSON for programs.

use anyhow::Context;
use integration::{House, MIB, export_of, said};
use serde_json::Value;

fn json(house: &House, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = house.ashlar(0, &[arguments, &["-o", "json"]].concat())?;
    anyhow::ensure!(output.status.success(), "{arguments:?}: {}", said(&output));
    serde_json::from_slice(&output.stdout).with_context(|| format!("{arguments:?}: {}", said(&output)))
}

#[tokio::test]
async fn every_command_has_json() -> anyhow::Result<()> {
    let house = House::open(&["a", "b"], 512 * MIB).await?;
    let created = json(&house, &["volume", "create", "v", "--size", "64MiB", "--replica-count", "2"])?;
    let volume = house.wait_until_healthy("v").await?;
    assert_eq!(created["uuid"], volume.uuid);
    let shown = json(&house, &["volume", "show", "v"])?;
    assert_eq!(shown["engine"]["state"], "healthy");
    assert_eq!(shown["engine"]["members"][1]["state"], "in sync");
    assert_eq!(shown["engine"]["nvmf"]["nqn"], export_of(&volume)?.nqn);
    assert_eq!(json(&house, &["volume", "list"])?[0]["name"], "v");
    assert_eq!(json(&house, &["store", "list"])?[0]["state"], "ready");
    assert_eq!(json(&house, &["replica", "list"])?[0]["volume_uuid"], volume.uuid);
    let peer = json(&house, &["node", "info"])?["peers"][0].clone();
    assert_eq!((&peer["name"], &peer["state"]), (&Value::from("b"), &Value::from("connected")));
    assert_eq!(json(&house, &["orphan", "list"])?, Value::Array(Vec::new()));
    json(&house, &["orphan", "delete", "00000000-0000-4000-8000-000000000002"])?;
    let uuid = "00000000-0000-4000-8000-000000000001";
    let cut = json(&house, &["volume", "snapshot", "v", "--name", "s", "--uuid", uuid])?;
    assert_eq!((&cut["uuid"], &cut["name"]), (&Value::from(uuid), &Value::from("s")));
    assert_eq!(json(&house, &["replica", "list"])?[0]["snapshots"], 1);
    assert_eq!(json(&house, &["volume", "delete", "v"])?["pending_nodes"], Value::Array(Vec::new()));
    json(&house, &["store", "delete", "main"])?;
    Ok(())
}

#[tokio::test]
async fn tables_fit_80_columns() -> anyhow::Result<()> {
    let house = House::open(&["a"], 512 * MIB).await?;
    house.create_volume("a-volume-with-a-name", 64 * MIB, &[]).await?;
    for noun in ["store", "volume", "replica"] {
        let output = house.ashlar(0, &[noun, "list"])?;
        let text = said(&output);
        assert!(text.lines().count() == 2, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
    Ok(())
}
