//! A daemon that is killed in the middle of a deletion, at each of its steps: the next start ends it (L5, I42).

use std::time::Instant;

use anyhow::{Context, ensure};
use cli::client::answer;
use integration::{House, MIB, PATIENCE};
use proto::v1::{GetVolumeRequest, SnapshotVolumeRequest, VolumeState};

use super::failpoints::{Failpoints, tried};
use super::left::{delete, nothing_is_left};

/// What a deletion passes: ten steps, each before it begins and when it is done.
const STEPS: usize = 20;

/// Steps of a look for orphans may be among them: it lists the registry.
const STRANGE: usize = 2;

/// Two daemons, the first with steps that can fail.
async fn open() -> anyhow::Result<(House, Failpoints)> {
    let mut house = House::prepare(&["a", "b"])?;
    let failpoints = Failpoints::of(&mut house, 0);
    house.cluster.start().await?;
    for index in 0..2 {
        house.create_store(index, "main", 256 * MIB).await?;
    }
    Ok((house, failpoints))
}

async fn create(house: &House) -> anyhow::Result<()> {
    house.create_volume("v", 16 * MIB, &["a", "b"]).await?;
    let request = SnapshotVolumeRequest { volume: "v".to_owned(), name: "s".to_owned(), uuid: String::new() };
    answer(house.client(0).await?.volumes().snapshot(request).await).map(drop)
}

/// Waits until a daemon that kills itself is dead.
async fn dies(house: &mut House) -> anyhow::Result<()> {
    let pid = house.cluster.nodes()[0].pid().context("it runs")?;
    let limit = Instant::now() + PATIENCE;
    // Dead, and not waited for yet.
    while !std::fs::read_to_string(format!("/proc/{pid}/stat"))?.contains(") Z ") {
        ensure!(Instant::now() < limit, "it lives\n{}", house.logs());
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    house.cluster.node(0).kill()
}

#[tokio::test]
async fn a_deletion_that_is_killed_at_any_step_ends_by_itself() -> anyhow::Result<()> {
    let (mut house, failpoints) = open().await?;
    create(&house).await?;
    failpoints.arm("count", 0)?;
    answer(house.client(0).await?.volumes().delete(delete("v")).await)?;
    let steps = failpoints.disarm()?;
    nothing_is_left(&house, 2).await?;
    ensure!(steps.len() >= STEPS, "a deletion has more steps: {steps:#?}");
    let tried = tried(STEPS, 4);
    for step in &tried {
        create(&house).await?;
        let client = house.client(0).await?;
        failpoints.arm("kill", *step)?;
        // After the last step the answer may come first.
        let answered = client.volumes().delete(delete("v")).await;
        ensure!(answered.is_err() || *step == STEPS, "{step}: it was to die");
        dies(&mut house).await.with_context(|| format!("step {step}: {}", steps[step - 1]))?;
        failpoints.disarm()?;
        house.cluster.node(0).start().await?;
        // Only what nobody knows to be deleted has to be asked for again.
        let found = house.client(0).await?.volumes().get(GetVolumeRequest { volume: "v".to_owned() }).await;
        if found.is_ok_and(|found| found.into_inner().state() == VolumeState::Created) {
            ensure!(*step <= 1 + STRANGE, "{}: the deletion is on record", steps[step - 1]);
            answer(house.client(0).await?.volumes().delete(delete("v")).await)?;
        }
        nothing_is_left(&house, 2).await.with_context(|| format!("step {step}: {}", steps[step - 1]))?;
    }
    println!("killed at {} of {STEPS} steps of a deletion", tried.len());
    Ok(())
}

/// A volume that goes is not shown to hosts again by the next start, not even until the deletion goes on.
#[tokio::test]
async fn a_volume_that_is_being_deleted_is_not_shown_after_a_restart() -> anyhow::Result<()> {
    let (mut house, failpoints) = open().await?;
    create(&house).await?;
    let shown = |steps: &[String]| steps.iter().filter(|step| step.contains("+a volume is shown")).count();
    // Whether the step is seen at all: a restart shows what is there.
    house.cluster.node(0).kill()?;
    failpoints.arm("count", 0)?;
    house.cluster.node(0).start().await?;
    ensure!(shown(&failpoints.disarm()?) == 1, "the volume is not shown again");
    // As a kill leaves it that comes right after the deletion is on record.
    house.cluster.node(0).kill()?;
    let state = house.cluster.nodes()[0].folder().join("state");
    let record = std::fs::read_dir(state.join("volumes"))?.next().context("the volume is on record")??.path();
    let mut content: serde_json::Value = serde_json::from_slice(&std::fs::read(&record)?)?;
    ensure!(content["record"]["phase"].take() == "created", "{content}");
    content["record"]["phase"] = "deleting".into();
    std::fs::write(&record, content.to_string())?;
    failpoints.arm("count", 0)?;
    house.cluster.node(0).start().await?;
    nothing_is_left(&house, 2).await?;
    let steps = failpoints.disarm()?;
    ensure!(steps.iter().any(|step| step.contains("VolumeRecord")), "the deletion goes on: {steps:#?}");
    ensure!(shown(&steps) == 0, "{steps:#?}");
    Ok(())
}

#[tokio::test]
async fn a_replica_that_was_being_removed_goes_after_a_kill() -> anyhow::Result<()> {
    let (mut house, failpoints) = open().await?;
    create(&house).await?;
    let request =
        || proto::v1::RemoveReplicaRequest { volume: "v".to_owned(), node: "b".to_owned(), ..Default::default() };
    failpoints.arm("count", 0)?;
    answer(house.client(0).await?.volumes().remove_replica(request()).await)?;
    let steps = failpoints.disarm()?;
    answer(house.client(0).await?.volumes().delete(delete("v")).await)?;
    // From when the replica is noted to leave until it has left.
    let call = steps.iter().position(|step| step.contains("a call to a peer")).context("b is told")? + 1;
    for step in [call, call + 1] {
        create(&house).await?;
        failpoints.arm("kill", step)?;
        let answered = house.client(0).await?.volumes().remove_replica(request()).await;
        ensure!(answered.is_err(), "{step}: it was to die");
        dies(&mut house).await?;
        let told = failpoints.disarm()?.iter().any(|step| step.contains("a call to a peer"));
        house.cluster.node(0).start().await?;
        if !told {
            // A look for orphans was among the steps: it died before the removal was on record.
            house.wait_until_healthy("v").await?;
            answer(house.client(0).await?.volumes().remove_replica(request()).await)?;
        }
        super::left::eventually("it is gone", async || Ok(super::left::replicas(&house, 1).await? == 0)).await?;
        super::left::eventually("nobody has it", async || {
            Ok(house.volume("v").await?.replicas.len() == 1 && super::left::orphans(&house, 1).await?.is_empty())
        })
        .await?;
        answer(house.client(0).await?.volumes().delete(delete("v")).await)?;
        nothing_is_left(&house, 2).await?;
    }
    Ok(())
}
