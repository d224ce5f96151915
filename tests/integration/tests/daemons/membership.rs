//! Who is in sync when a node has lost its records, and two daemons that both have an engine of a volume.

use std::fs;
use std::path::PathBuf;

use anyhow::ensure;
use cli::client::answer;
use integration::{Host, House, MIB, export_of, said};
use nvmf_initiator::{Controller, Options};
use proto::v1::{CreateEngineRequest, Engine, EngineState, GetEngineRequest, MemberState, ReplicaPlacement, Volume};

const LENGTH: usize = 1 << 20;

/// Where the first daemon keeps who is in sync.
fn record_of(house: &House, volume: &Volume) -> PathBuf {
    house.cluster.nodes()[0].folder().join("state/registry").join(format!("{}.json", volume.uuid))
}

/// What `ashlar` says on the first daemon, where it has to succeed.
fn ashlar(house: &House, arguments: &[&str]) -> anyhow::Result<String> {
    let output = house.ashlar(0, arguments)?;
    ensure!(output.status.success(), "{arguments:?}: {}\n{}", said(&output), house.logs());
    Ok(said(&output))
}

#[tokio::test]
async fn a_lost_record_is_made_anew_when_all_replicas_are_there_or_by_force() -> anyhow::Result<()> {
    // I5, I6
    let mut house = House::open(&["a", "b", "c"], 256 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &["a", "b", "c"]).await?;
    let (address, nqn) = (house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    host.write(address, &nqn, 0, 1, LENGTH).await?;
    house.cluster.node(2).kill()?;
    host.write(address, &nqn, 0, 2, LENGTH).await?;
    let lacking = |engine: &Engine| engine.members.iter().any(|member| member.state() == MemberState::OutOfSync);
    house.wait_for_engine("v", lacking).await?;

    house.cluster.node(0).stop().await?;
    fs::remove_file(record_of(&house, &volume))?;
    house.cluster.node(0).start().await?;
    let waits_for_c = |engine: &Engine| {
        engine.state() == EngineState::Starting && engine.reason.contains("on c (") && !engine.reason.contains("on b (")
    };
    house.wait_for_engine("v", waits_for_c).await?;
    let consequence = ashlar(&house, &["volume", "recover", "v", "--node", "b"])?;
    for part in ["says in sync: on a, b", "on c (", "Nothing was changed"] {
        ensure!(consequence.contains(part), "{consequence}");
    }
    house.wait_for_engine("v", waits_for_c).await?;
    house.cluster.node(2).start().await?;
    house.wait_until_healthy("v").await?;
    ensure!(host.read(address, &nqn, 0, LENGTH).await? == [2; LENGTH], "what c missed is there");

    // A damaged record is as good as none, and kept for people.
    house.cluster.node(0).stop().await?;
    house.cluster.node(1).kill()?;
    house.cluster.node(2).kill()?;
    let record = record_of(&house, &volume);
    fs::write(&record, "{")?;
    house.cluster.node(0).start().await?;
    house.wait_for_engine("v", |engine| engine.reason.contains("on b (") && engine.reason.contains("on c (")).await?;
    ashlar(&house, &["volume", "recover", "v", "--node", "a", "--force"])?;
    house.wait_for_engine("v", |engine| engine.state() == EngineState::Degraded).await?;
    ensure!(fs::read(record.with_extension("damaged"))? == b"{", "it was kept");
    ensure!(host.read(address, &nqn, 0, LENGTH).await? == [2; LENGTH], "what a has");
    host.write(address, &nqn, 0, 3, LENGTH).await?;
    house.cluster.node(1).start().await?;
    house.cluster.node(2).start().await?;
    house.wait_until_healthy("v").await?;
    ensure!(host.read(address, &nqn, 0, LENGTH).await? == [3; LENGTH], "all follow");
    Ok(())
}

/// The engine that the second daemon has of the volume.
async fn second(house: &House, volume: &Volume) -> anyhow::Result<Engine> {
    let request = GetEngineRequest { volume_uuid: volume.uuid.clone() };
    answer(house.client(1).await?.engines().get(request).await)
}

#[tokio::test]
async fn an_engine_on_another_node_takes_the_volume_and_the_first_tells_its_hosts_to_go_there() -> anyhow::Result<()> {
    // I14
    let mut house = House::open(&["a", "b"], 256 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &["a", "b"]).await?;
    let nqn = export_of(&volume)?.nqn.clone();
    let [first, other] = [0, 1].map(|node| house.cluster.nodes()[node].addresses().nvmf);
    let host = Host::new()?;
    host.write(first, &nqn, 0, 7, LENGTH).await?;
    let placement = |replica: &ReplicaPlacement| ReplicaPlacement { address: String::new(), ..replica.clone() };
    let request = CreateEngineRequest {
        volume_uuid: volume.uuid.clone(),
        name: "v".to_owned(),
        size_bytes: volume.size_bytes,
        block_size_bytes: volume.block_size_bytes,
        replicas: volume.replicas.iter().map(placement).collect(),
    };
    answer(house.client(1).await?.engines().create(request).await)?;
    // Nobody uses the volume: the first engine hears of its end all the same.
    let lost = |engine: &Engine| engine.state() == EngineState::Failed;
    house.wait_for_engine("v", lost).await?;
    // A host that does not try again: others wait for a path that leads somewhere.
    let name = nqn.clone();
    let read = host.run(move || async move {
        let controller = Controller::connect(first, &name, Options::default()).await?;
        Ok(controller.read(0, LENGTH).await.map(drop)?)
    });
    let refused = read.await.expect_err("it is not its volume any more");
    ensure!(format!("{refused:#}").to_lowercase().contains("inaccessible"), "a status of the path: {refused:#}");
    ensure!(host.read(other, &nqn, 0, LENGTH).await? == [7; LENGTH], "all that was acknowledged is there");
    host.write(other, &nqn, 0, 8, LENGTH).await?;

    // Its records are out of date: a restart does not bring it back, and takes nothing from the second.
    house.cluster.node(0).stop().await?;
    house.cluster.node(0).start().await?;
    house.wait_for_engine("v", |engine| lost(engine) && engine.reason.contains("out of date")).await?;
    ensure!(host.read(other, &nqn, 0, LENGTH).await? == [8; LENGTH], "it goes on");
    let engine = second(&house, &volume).await?;
    ensure!(matches!(engine.state(), EngineState::Healthy | EngineState::Degraded), "{engine:?}");
    Ok(())
}
