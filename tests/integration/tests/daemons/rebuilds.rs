//! Rebuilds that are paused, limited, and cut off by restarts, through the command line.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use integration::{Host, House, MIB, PATIENCE, export_of, said};
use proto::v1::{Engine, ListOperationsRequest, Member, MemberState, Operation, OperationKind, OperationState, Volume};

const NODES: [&str; 2] = ["a", "b"];

fn ok(house: &House, arguments: &[&str]) -> anyhow::Result<String> {
    let output = house.ashlar(0, arguments)?;
    ensure!(output.status.success(), "{arguments:?}: {}\n{}", said(&output), house.logs());
    Ok(said(&output))
}

fn on_b(engine: &Engine) -> Option<&Member> {
    engine.members.iter().find(|member| member.node == "b")
}

fn is_paused(engine: &Engine) -> bool {
    on_b(engine).and_then(|member| member.rebuild.as_ref()).is_some_and(|rebuild| rebuild.waiting == "paused")
}

/// The only operation that is under way: the volume's rebuild.
async fn rebuild_of(house: &House, volume: &Volume) -> anyhow::Result<Operation> {
    let request = ListOperationsRequest { only_active: true, volume_uuid: volume.uuid.clone(), ..Default::default() };
    let limit = Instant::now() + PATIENCE;
    loop {
        let operations = house.client(0).await?.list_operations(request.clone()).await?;
        match &operations[..] {
            [only] if only.kind() == OperationKind::Rebuild => return Ok(only.clone()),
            _ => ensure!(Instant::now() < limit, "{operations:#?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn sent(engine: &Engine) -> u64 {
    on_b(engine).and_then(|member| member.rebuild.as_ref()).map_or(0, |rebuild| rebuild.sent_bytes)
}

#[tokio::test]
async fn a_paused_rebuild_stays_paused_over_restarts_and_goes_on_where_it_was() -> anyhow::Result<()> {
    // I20
    let mut house = House::open(&NODES, 512 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &["a"]).await?;
    let (address, nqn) = (house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    for piece in 0..32 {
        host.write(address, &nqn, piece * MIB, 1 + piece as u8, 1 << 20).await?;
    }
    ok(&house, &["volume", "rebuild", "limit", "v", "--rate", "8MiB"])?;
    ok(&house, &["volume", "add-replica", "v", "--node", "b"])?;
    house.wait_for_engine("v", |engine| sent(engine) > 4 * MIB).await?;
    let text = ok(&house, &["volume", "rebuild", "pause", "v"])?;
    ensure!(text.contains("rebuild  paused, at most 8 MiB/s"), "{text}");
    let volume = house.wait_for_engine("v", is_paused).await?;
    let before = sent(volume.engine.as_ref().context("it has an engine")?);
    ensure!(before < 32 * MIB, "{before}");
    let operation = rebuild_of(&house, &volume).await?;
    assert_eq!((operation.state(), operation.reason.as_str()), (OperationState::Waiting, "paused"));
    let refused = house.ashlar(0, &["operation", "cancel", &operation.id])?;
    ensure!(!refused.status.success() && said(&refused).contains("pause the volume's rebuilds"), "{}", said(&refused));

    // The engine's daemon, and then the target's.
    for node in [0, 1] {
        house.cluster.node(node).kill()?;
        house.cluster.node(node).start().await?;
        let volume = house.wait_for_engine("v", is_paused).await?;
        let engine = volume.engine.as_ref().context("it has an engine")?;
        ensure!(on_b(engine).is_some_and(|member| member.state() != MemberState::InSync) && sent(engine) == 0);
        assert_eq!(rebuild_of(&house, &volume).await?.id, operation.id, "it is the same one after a restart");
    }
    ok(&house, &["volume", "rebuild", "limit", "v", "--rate", "0"])?;
    ok(&house, &["volume", "rebuild", "resume", "v"])?;
    let watched = ok(&house, &["operation", "watch", &operation.id])?;
    ensure!(watched.lines().last().is_some_and(|line| line.contains("  succeeded")), "{watched}");
    house.wait_until_healthy("v").await?;
    let log = std::fs::read_to_string(house.cluster.nodes()[0].log())?;
    let line = log.lines().rfind(|line| line.contains("a replica is in sync again")).context("it is logged")?;
    let after: u64 = line.split_once(" sent=").context("what was sent is logged")?.1.parse()?;
    ensure!(before + after <= 33 * MIB, "nothing was sent again: {before} and {after}");
    for piece in 0..32 {
        assert_eq!(host.read(address, &nqn, piece * MIB, 4096).await?, vec![1 + piece as u8; 4096]);
    }
    Ok(())
}
