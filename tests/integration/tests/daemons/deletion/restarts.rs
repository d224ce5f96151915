//! Two daemons that are restarted again and again, killed or in order, with random administration in between (L2).
//!
//! Volumes with one or two replicas are created, written, snapshotted, taken back, grown and deleted, and replicas come and go. After each
//! restart the daemons have what was acknowledged; what was under way is sent again and comes to its end; every create sent again finds
//! the same object; and no daemon has anything without an owner.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cli::client::{Client, answer};
use integration::{Host, House, MIB, PATIENCE, export_of};
use proto::v1::{
    AddReplicaRequest, CreateVolumeRequest, DeleteSnapshotRequest, EngineState, GetVolumeRequest, GrowVolumeRequest,
    ListLvolsRequest, ListSnapshotsRequest, ListVolumesRequest, RemoveReplicaRequest, RevertVolumeRequest,
    SnapshotVolumeRequest,
};
use reactor::simulated::Random;
use uuid::Uuid;

use super::failpoints::is_long;
use super::left::{delete, eventually, nothing_is_left, orphans};

const VOLUMES: [&str; 4] = ["one", "two", "three", "four"];
const SNAPSHOTS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Create { name: String, uuid: String, nodes: Vec<String> },
    Delete(String),
    Write(String, u8),
    Snapshot { volume: String, uuid: String },
    DeleteSnapshot { volume: String, uuid: String },
    Revert { volume: String, uuid: String },
    Grow(String, u64),
    Add(String),
    Remove(String),
}

/// A volume as it was acknowledged.
#[derive(Clone, Debug)]
struct Known {
    uuid: String,
    size: u64,
    replicas: usize,
    content: u8,
    /// With what the volume read as then.
    snapshots: Vec<(String, u8)>,
    made: CreateVolumeRequest,
}

struct Model {
    random: Random,
    volumes: BTreeMap<String, Known>,
    done: BTreeMap<&'static str, u32>,
}

impl Model {
    /// Something that makes sense now.
    fn choose(&mut self) -> Step {
        let name = VOLUMES[self.random.below(4) as usize].to_owned();
        let uuid = Uuid::from_u128(u128::from(self.random.below(u64::MAX)) << 64 | 1).to_string();
        let Some(known) = self.volumes.get(&name).cloned() else {
            let nodes = if self.random.below(2) == 0 { vec!["a"] } else { vec!["a", "b"] };
            return Step::Create { name, uuid, nodes: nodes.into_iter().map(str::to_owned).collect() };
        };
        let volume = name.clone();
        match self.random.below(10) {
            0 => Step::Delete(name),
            1 | 2 => Step::Write(name, self.random.below(255) as u8),
            3 | 4 if known.snapshots.len() < SNAPSHOTS => Step::Snapshot { volume, uuid },
            5 if !known.snapshots.is_empty() => Step::DeleteSnapshot { volume, uuid: known.snapshots[0].0.clone() },
            6 => match known.snapshots.last() {
                Some((uuid, _)) => Step::Revert { volume, uuid: uuid.clone() },
                None => Step::Snapshot { volume, uuid },
            },
            7 if known.size < 32 * MIB => Step::Grow(name, known.size + MIB),
            8 | 9 if known.replicas == 1 => Step::Add(name),
            8 => Step::Remove(name),
            _ => Step::Write(name, self.random.below(255) as u8),
        }
    }

    /// What was acknowledged is so from now on.
    fn note(&mut self, step: &Step) -> anyhow::Result<()> {
        let gone = || "a volume that is not known";
        let kind = match step {
            Step::Create { name, uuid, nodes } => {
                let (uuid, replicas, made) = (uuid.clone(), nodes.len(), create(name, uuid, nodes, 16 * MIB));
                let known = Known { uuid, size: 16 * MIB, replicas, content: 0, snapshots: Vec::new(), made };
                self.volumes.insert(name.clone(), known);
                "created"
            }
            Step::Delete(name) => {
                self.volumes.remove(name);
                "deleted"
            }
            Step::Write(name, value) => {
                self.volumes.get_mut(name).with_context(gone)?.content = *value;
                "written"
            }
            Step::Snapshot { volume, uuid } => {
                let known = self.volumes.get_mut(volume).with_context(gone)?;
                known.snapshots.push((uuid.clone(), known.content));
                "snapshotted"
            }
            Step::DeleteSnapshot { volume, uuid } => {
                self.volumes.get_mut(volume).with_context(gone)?.snapshots.retain(|(known, _)| known != uuid);
                "snapshot deleted"
            }
            Step::Revert { volume, uuid } => {
                let known = self.volumes.get_mut(volume).with_context(gone)?;
                known.content = known.snapshots.iter().find(|(cut, _)| cut == uuid).context("a snapshot")?.1;
                "reverted"
            }
            Step::Grow(name, size) => {
                self.volumes.get_mut(name).with_context(gone)?.size = *size;
                "grown"
            }
            Step::Add(name) => {
                self.volumes.get_mut(name).with_context(gone)?.replicas = 2;
                "replica added"
            }
            Step::Remove(name) => {
                self.volumes.get_mut(name).with_context(gone)?.replicas = 1;
                "replica removed"
            }
        };
        *self.done.entry(kind).or_default() += 1;
        Ok(())
    }
}

fn create(name: &str, uuid: &str, nodes: &[String], size_bytes: u64) -> CreateVolumeRequest {
    let (name, uuid, nodes) = (name.to_owned(), uuid.to_owned(), nodes.to_vec());
    CreateVolumeRequest { name, uuid, nodes, size_bytes, ..CreateVolumeRequest::default() }
}

async fn perform(client: &Client, host: &Host, address: SocketAddr, step: &Step) -> anyhow::Result<()> {
    let volumes = &mut client.volumes();
    match step.clone() {
        Step::Create { name, uuid, nodes } => {
            let made = answer(volumes.create(create(&name, &uuid, &nodes, 16 * MIB)).await)?;
            ensure!(made.uuid == uuid, "another volume was made: {made:#?}");
            Ok(())
        }
        Step::Delete(name) => answer(volumes.delete(delete(&name)).await).map(drop),
        Step::Write(volume, value) => {
            let volume = answer(volumes.get(GetVolumeRequest { volume }).await)?;
            let nqn = export_of(&volume)?.nqn.clone();
            let written = host.run(move || async move {
                let controller = nvmf_initiator::Controller::connect(address, &nqn, Default::default()).await?;
                controller.write(0, reactor::Slice::from(&[value; 4096][..]), false).await?;
                controller.flush().await?;
                controller.disconnect().await;
                Ok(())
            });
            written.await
        }
        Step::Snapshot { volume, uuid } => {
            let request = SnapshotVolumeRequest { volume, name: format!("s-{uuid}"), uuid };
            answer(volumes.snapshot(request).await).map(drop)
        }
        Step::DeleteSnapshot { volume, uuid } => answer(
            volumes.delete_snapshot(DeleteSnapshotRequest { volume, snapshot: uuid, ..Default::default() }).await,
        )
        .map(drop),
        Step::Revert { volume, uuid } => {
            let request = RevertVolumeRequest { volume, snapshot: uuid, discard_newer: true };
            answer(volumes.revert(request).await).map(drop)
        }
        Step::Grow(volume, size_bytes) => {
            answer(volumes.grow(GrowVolumeRequest { volume, size_bytes }).await).map(drop)
        }
        Step::Add(volume) => {
            answer(volumes.add_replica(AddReplicaRequest { volume, node: "b".to_owned(), ..Default::default() }).await)
                .map(drop)
        }
        Step::Remove(volume) => answer(
            volumes.remove_replica(RemoveReplicaRequest { volume, node: "b".to_owned(), ..Default::default() }).await,
        )
        .map(drop),
    }
}

/// Does one thing after the other until one fails, which is returned, or until it is told to end.
async fn work(
    client: Client,
    host: Arc<Host>,
    address: SocketAddr,
    end: Arc<AtomicBool>,
    mut model: Model,
) -> anyhow::Result<(Model, Option<Step>)> {
    while !end.load(Ordering::SeqCst) {
        let step = model.choose();
        if perform(&client, &host, address, &step).await.is_err() {
            return Ok((model, Some(step)));
        }
        model.note(&step)?;
    }
    Ok((model, None))
}

/// The daemons have what was acknowledged, and nothing else.
async fn check(house: &House, model: &Model, host: &Host, address: SocketAddr) -> anyhow::Result<()> {
    let client = house.client(0).await?;
    let found = answer(client.volumes().list(ListVolumesRequest::default()).await)?.volumes;
    let names: Vec<&str> = found.iter().map(|volume| volume.name.as_str()).collect();
    let mut expected: Vec<&str> = model.volumes.keys().map(String::as_str).collect();
    expected.sort_unstable();
    ensure!(names == expected, "{names:?}, not {expected:?}");
    for (name, known) in &model.volumes {
        let volume = house.wait_for_engine(name, |engine| engine.state() == EngineState::Healthy).await?;
        ensure!(volume.uuid == known.uuid && volume.size_bytes == known.size, "{known:#?}: {volume:#?}");
        ensure!(volume.replicas.len() == known.replicas, "{known:#?}: {volume:#?}");
        let request = ListSnapshotsRequest { volume: name.clone(), ..Default::default() };
        let cuts = answer(client.volumes().list_snapshots(request).await)?.snapshots;
        let cuts: Vec<&str> = cuts.iter().map(|cut| cut.uuid.as_str()).collect();
        let expected: Vec<&str> = known.snapshots.iter().map(|(uuid, _)| uuid.as_str()).collect();
        ensure!(cuts == expected, "{name} has {cuts:?}, not {expected:?}");
        let read = host.read(address, &export_of(&volume)?.nqn, 0, 4096).await?;
        ensure!(read == vec![known.content; 4096], "{name} reads {}, not {}", read[0], known.content);
        // Nothing is made twice. Where its replicas are may have changed since.
        if volume.replicas.len() == known.made.nodes.len() && volume.size_bytes == known.made.size_bytes {
            let again = answer(client.volumes().create(known.made.clone()).await)?;
            ensure!((&again.uuid, again.created_at_unix_ms) == (&volume.uuid, volume.created_at_unix_ms), "{again:#?}");
        }
    }
    let lvols_of = |model: &Model, all: usize| -> usize {
        let known = model.volumes.values().filter(|known| known.replicas >= all);
        known.map(|known| 1 + known.snapshots.len()).sum()
    };
    for index in 0..2 {
        let expected = lvols_of(model, index + 1);
        eventually("there are the lvols of the volumes, and no orphans", async || {
            let client = house.client(index).await?;
            let lvols = answer(client.lvols().list(ListLvolsRequest::default()).await)?.lvols.len();
            Ok(lvols == expected && orphans(house, index).await?.is_empty())
        })
        .await
        .with_context(|| format!("daemon {index} should have {expected} lvols: {:#?}", model.volumes))?;
    }
    Ok(())
}

#[tokio::test]
async fn daemons_are_restarted_again_and_again() -> anyhow::Result<()> {
    let restarts = if is_long() { 50 } else { 3 };
    let seed = std::env::var("ASHLAR_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("{restarts} restarts, ASHLAR_SEED={seed}");
    let mut house = House::open(&["a", "b"], 1024 * MIB).await?;
    let (host, address) = (Arc::new(Host::new()?), house.cluster.nodes()[0].addresses().nvmf);
    let mut model = Model { random: Random::new(seed), volumes: BTreeMap::new(), done: BTreeMap::new() };
    for restart in 0..restarts {
        let end = Arc::new(AtomicBool::new(false));
        let (length, victim, in_order) =
            (100 + model.random.below(400), usize::from(model.random.below(3) == 0), model.random.below(3) == 0);
        let working = tokio::spawn(work(house.client(0).await?, Arc::clone(&host), address, Arc::clone(&end), model));
        tokio::time::sleep(Duration::from_millis(length)).await;
        if in_order {
            house.cluster.node(victim).stop().await?;
        } else {
            house.cluster.node(victim).kill()?;
        }
        end.store(true, Ordering::SeqCst);
        let doubt;
        (model, doubt) = working.await??;
        house.cluster.node(victim).start().await?;
        let story = format!("restart {restart} of daemon {victim}, in order: {in_order}, in doubt: {doubt:?}");
        if let Some(step) = doubt {
            let limit = Instant::now() + PATIENCE;
            while let Err(error) = perform(&house.client(0).await?, &host, address, &step).await {
                ensure!(Instant::now() < limit, "{story}: again: {error:#}\n{}", house.logs());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            model.note(&step)?;
        }
        check(&house, &model, &host, address).await.with_context(|| format!("{story}\n{}", house.logs()))?;
    }
    println!("acknowledged: {:?}", model.done);
    for name in model.volumes.into_keys() {
        answer(house.client(0).await?.volumes().delete(delete(&name)).await)?;
    }
    nothing_is_left(&house, 2).await
}
