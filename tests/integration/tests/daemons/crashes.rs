//! Daemons killed and restarted under load: hosts ride through, and everything acknowledged is there.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::ensure;
use integration::{Host, House, MIB, PATIENCE, export_of};
use nvmf_initiator::load::{self, Job, Load, Pattern, Report};
use nvmf_initiator::{Controller, Options, Reconnect};
use proto::v1::{EngineState, MemberState};

fn job() -> Job {
    Job {
        rw: Pattern::RandRw,
        depth: 8,
        size: Some(16 * MIB),
        runtime: Some(Duration::from_secs(4)),
        verify: true,
        flush_every: 200,
        ..Job::default()
    }
}

/// Runs a verified load, then reads back everything that was written.
async fn load_and_check(address: SocketAddr, nqn: String, job: Job) -> anyhow::Result<(Report, Report)> {
    let options = Options { reconnect: Some(Reconnect::within(PATIENCE)), ..load::options(&job) };
    let controller = Controller::connect(address, &nqn, options).await?;
    let record = load::new_record(&controller, &job)?;
    let report = Load::start(&controller, &job, Some(Rc::clone(&record)))?.finish().await;
    let check = load::check(&controller, &job, &record).await?;
    controller.disconnect().await;
    Ok((report, check))
}

fn all_well(report: &Report, check: &Report) -> anyhow::Result<()> {
    ensure!(report.is_clean(), "the load met errors:\n{report}");
    ensure!(check.is_clean() && check.verify.checked > 0, "what was acknowledged is not there:\n{check}");
    Ok(())
}

#[tokio::test]
async fn the_daemon_of_a_single_replica_is_killed_twice() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 512 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &[]).await?;
    let (address, nqn) = (house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    let load = host.run(move || load_and_check(address, nqn, job()));
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        house.cluster.node(0).kill()?;
        house.cluster.node(0).start().await?;
    }
    let (report, check) = load.await?;
    all_well(&report, &check)?;
    ensure!(report.reconnects > 0, "the host did not notice");
    Ok(())
}

#[tokio::test]
async fn a_restart_in_order_under_load_is_no_error_either() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 512 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &[]).await?;
    let (address, nqn) = (house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    let load = host.run(move || load_and_check(address, nqn, job()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let status = house.cluster.node(0).stop().await?;
    ensure!(status.success(), "{status}\n{}", house.logs());
    house.cluster.node(0).start().await?;
    let (report, check) = load.await?;
    all_well(&report, &check)?;
    ensure!(report.reconnects > 0, "the host did not notice");
    Ok(())
}

#[tokio::test]
async fn a_replica_is_killed_under_load_and_rebuilt() -> anyhow::Result<()> {
    let nodes = ["a", "b", "c"];
    let mut house = House::open(&nodes, 512 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &nodes).await?;
    let (address, nqn) = (house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    let load = host.run(move || load_and_check(address, nqn, job()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    house.cluster.node(2).kill()?;
    let volume = house.wait_for_engine("v", |engine| engine.state() == EngineState::Degraded).await?;
    let engine = volume.engine.unwrap_or_default();
    let states: Vec<_> = engine.members.iter().map(|member| (member.node.as_str(), member.state())).collect();
    assert_eq!(states[..2], [("a", MemberState::InSync), ("b", MemberState::InSync)]);
    assert_ne!(states[2].1, MemberState::InSync);

    house.cluster.node(2).start().await?;
    let (report, check) = load.await?;
    all_well(&report, &check)?;
    assert_eq!(report.reconnects, 0, "the host's own node was never gone");
    house.wait_until_healthy("v").await?;
    Ok(())
}

#[tokio::test]
async fn the_rebuilt_replica_has_everything() -> anyhow::Result<()> {
    // I17, I21: written while it was away, read when it is the only one left with its engine.
    let mut house = House::open(&["a", "b"], 512 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &["b", "a"]).await?;
    let (address, nqn) = (house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    host.write(address, &nqn, 0, 1, 1 << 20).await?;
    house.cluster.node(1).kill()?;
    host.write(address, &nqn, 512 << 10, 2, 1 << 20).await?;
    house.wait_for_engine("v", |engine| engine.state() == EngineState::Degraded).await?;
    house.cluster.node(1).start().await?;
    house.wait_until_healthy("v").await?;

    // The engine's own replica is lost for good: its store is gone.
    house.cluster.node(0).kill()?;
    std::fs::remove_file(house.cluster.nodes()[0].folder().join("main.img"))?;
    house.cluster.node(0).start().await?;
    house.wait_for_engine("v", |engine| engine.state() == EngineState::Degraded).await?;
    let expected = [vec![1; 512 << 10], vec![2; 1 << 20]].concat();
    ensure!(host.read(address, &nqn, 0, expected.len()).await? == expected, "the rebuilt replica differs");
    Ok(())
}

#[tokio::test]
async fn the_engines_node_is_killed_with_three_replicas() -> anyhow::Result<()> {
    let nodes = ["a", "b", "c"];
    let mut house = House::open(&nodes, 512 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &nodes).await?;
    let (address, nqn) = (house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    let load = host.run(move || load_and_check(address, nqn, job()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    house.cluster.node(0).kill()?;
    house.cluster.node(0).start().await?;
    let (report, check) = load.await?;
    all_well(&report, &check)?;
    house.wait_until_healthy("v").await?;
    Ok(())
}
