//! One daemon killed again and again, in the middle of I/O and of administration, on a file and on a loop device.
//!
//! A host writes all the time and checks what it reads; volumes come and go, and snapshots are taken. After each restart the
//! daemon has exactly what it had acknowledged; the one request that was under way happened or did not, and can be sent
//! again; every create sent again finds the same object; and the store holds no lvol that belongs to nobody (L2, I26, I30).
//!
//! ASHLAR_KILLS says how often, 50 without it; ASHLAR_SEED repeats the choices of a run.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cli::client::{Client, answer};
use integration::{Host, House, MIB, PATIENCE, export_of};
use loop_device::LoopDevice;
use nvmf_initiator::load::{self, Job, Load, Pattern, Report};
use nvmf_initiator::{Controller, Options, Reconnect};
use proto::v1::{
    CreateStoreRequest, CreateVolumeRequest, DeleteVolumeRequest, EngineState, ListReplicasRequest, ListStoresRequest,
    ListVolumesRequest, SnapshotVolumeRequest, Store, Volume,
};
use reactor::simulated::Random;
use tonic::Code;
use uuid::Uuid;

const STORE_SIZE: u64 = 1 << 30;

/// The volume that is written all the time, and its size.
const MAIN: &str = "main";
const MAIN_SIZE: u64 = 64 * MIB;

/// Volumes besides, at most.
const OTHERS: usize = 5;

/// Snapshots of a volume, at most.
const SNAPSHOTS: usize = 30;

/// Something that is asked of the daemon.
#[derive(Clone, Debug)]
enum Step {
    Create(CreateVolumeRequest),
    Delete(DeleteVolumeRequest),
    Snapshot(SnapshotVolumeRequest),
}

/// A volume that was acknowledged.
#[derive(Clone, Debug)]
struct Known {
    request: CreateVolumeRequest,
    created_at: i64,
    snapshots: Vec<SnapshotVolumeRequest>,
}

/// All that the daemon has acknowledged.
struct Model {
    random: Random,
    volumes: BTreeMap<String, Known>,
    /// What was asked for and never answered.
    doubt: Option<Step>,
    count: u64,
}

impl Model {
    fn choose(&mut self) -> Step {
        let others: Vec<String> = self.volumes.keys().filter(|name| *name != MAIN).cloned().collect();
        let uuid = Uuid::from_u128(u128::from(self.random.next_u64()) << 64 | 1).to_string();
        match self.random.below(10) {
            0..=3 if others.len() < OTHERS => {
                self.count += 1;
                let name = format!("v{}", self.count);
                Step::Create(CreateVolumeRequest {
                    name,
                    size_bytes: (1 + self.random.below(16)) * MIB,
                    uuid,
                    ..CreateVolumeRequest::default()
                })
            }
            4..=6 if !others.is_empty() => {
                let volume = others[self.random.index(others.len())].clone();
                let expected_uuid = self.volumes[&volume].request.uuid.clone();
                Step::Delete(DeleteVolumeRequest { volume, expected_uuid })
            }
            _ => {
                let names: Vec<&String> = self.volumes.keys().collect();
                let volume = names[self.random.index(names.len())].clone();
                if self.volumes[&volume].snapshots.len() >= SNAPSHOTS {
                    let expected_uuid = self.volumes[&volume].request.uuid.clone();
                    return match volume.as_str() {
                        MAIN => Step::Create(self.volumes[MAIN].request.clone()),
                        _ => Step::Delete(DeleteVolumeRequest { volume, expected_uuid }),
                    };
                }
                Step::Snapshot(SnapshotVolumeRequest { volume, name: format!("s-{uuid}"), uuid })
            }
        }
    }

    /// Asks for one thing after the other until the daemon does not answer any more.
    async fn work(mut self, client: Client) -> anyhow::Result<Self> {
        loop {
            let step = self.choose();
            self.doubt = Some(step.clone());
            match self.perform(&client, step).await {
                Ok(()) => self.doubt = None,
                Err(error) if is_unreachable(&error) => return Ok(self),
                Err(error) => return Err(error.context(format!("{:?}", self.doubt))),
            }
        }
    }

    /// Asks for something, and notes what was acknowledged.
    async fn perform(&mut self, client: &Client, step: Step) -> anyhow::Result<()> {
        match step {
            Step::Create(request) => {
                let volume = answer(client.volumes().create(request.clone()).await)?;
                ensure!(volume.uuid == request.uuid, "another volume was made: {volume:#?}");
                let created_at = volume.created_at_unix_ms;
                let known = self.volumes.entry(request.name.clone());
                let known = known.or_insert(Known { request, created_at, snapshots: Vec::new() });
                ensure!(known.created_at == created_at, "it was made again: {volume:#?}");
            }
            Step::Delete(request) => {
                answer(client.volumes().delete(request.clone()).await)?;
                self.volumes.remove(&request.volume);
            }
            Step::Snapshot(request) => {
                let snapshot = answer(client.volumes().snapshot(request.clone()).await)?;
                ensure!(snapshot.uuid == request.uuid, "another snapshot was taken: {snapshot:#?}");
                let snapshots = &mut self.volumes.get_mut(&request.volume).context("a volume")?.snapshots;
                if !snapshots.contains(&request) {
                    snapshots.push(request);
                }
            }
        }
        Ok(())
    }

    /// What was acknowledged is there, and nothing else but what may have been under way.
    fn check_volumes(&self, found: &[Volume]) -> anyhow::Result<()> {
        let doubtful = |volume: &str| match &self.doubt {
            Some(Step::Create(request)) => request.name == volume,
            Some(Step::Delete(request)) => request.volume == volume,
            Some(Step::Snapshot(_)) | None => false,
        };
        for (name, known) in &self.volumes {
            let volume = found.iter().find(|volume| volume.name == *name);
            match volume {
                Some(volume) => {
                    ensure!(volume.uuid == known.request.uuid, "{name} is another volume: {volume:#?}");
                    ensure!(volume.size_bytes == known.request.size_bytes, "{name} has another size: {volume:#?}");
                }
                None => ensure!(doubtful(name), "{name} is gone"),
            }
        }
        let unknown = found.iter().find(|volume| !self.volumes.contains_key(&volume.name) && !doubtful(&volume.name));
        ensure!(unknown.is_none(), "nobody asked for {unknown:#?}, or it was deleted");
        Ok(())
    }

    /// Asks again for everything: nothing is made twice.
    async fn repeat_all(&mut self, client: &Client) -> anyhow::Result<()> {
        let known: Vec<Known> = self.volumes.values().cloned().collect();
        for known in known {
            // One snapshot of each does: they are many.
            let snapshot = known.snapshots.get(self.random.index(known.snapshots.len().max(1))).cloned();
            let steps = [Some(Step::Create(known.request)), snapshot.map(Step::Snapshot)];
            for step in steps.into_iter().flatten() {
                let text = format!("again: {step:?}");
                self.perform(client, step).await.context(text)?;
            }
        }
        Ok(())
    }

    /// Replicas and lvols are those of the volumes: none is left over, none is missing.
    async fn check_no_orphans(&self, client: &Client) -> anyhow::Result<()> {
        let limit = Instant::now() + PATIENCE;
        // What is deleted may be on its way out.
        while let Err(error) = self.find_orphans(client).await {
            if Instant::now() > limit {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn find_orphans(&self, client: &Client) -> anyhow::Result<()> {
        let replicas = answer(client.replicas().list(ListReplicasRequest::default()).await)?.replicas;
        let mut expected: BTreeMap<&str, usize> =
            self.volumes.values().map(|known| (known.request.uuid.as_str(), known.snapshots.len())).collect();
        for replica in &replicas {
            let snapshots = expected.remove(replica.volume_uuid.as_str());
            ensure!(snapshots == Some(replica.snapshots as usize), "{snapshots:?} snapshots expected: {replica:#?}");
        }
        ensure!(expected.is_empty(), "no replica of {expected:?}");
        let snapshots: usize = self.volumes.values().map(|known| known.snapshots.len()).sum();
        let store = only_store(client).await?;
        let expected = self.volumes.len() + snapshots;
        ensure!(
            store.lvols as usize == expected,
            "not {expected} lvols: {store:#?}\n{replicas:#?}\n{:#?}",
            self.volumes
        );
        Ok(())
    }
}

/// Whether nobody knows if what was asked for has happened.
fn is_unreachable(error: &anyhow::Error) -> bool {
    let status = error.downcast_ref::<tonic::Status>();
    status.is_none_or(|status| matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled))
}

async fn only_store(client: &Client) -> anyhow::Result<Store> {
    let stores = answer(client.stores().list(ListStoresRequest {}).await)?.stores;
    stores.into_iter().next().context("no store")
}

/// A load that goes on until it is told to stop, and the count of its I/Os.
struct Writer {
    stop: Arc<AtomicBool>,
    completed: Arc<AtomicU64>,
}

impl Writer {
    /// Waits until the load has got somewhere from here.
    async fn moves_on(&self) -> anyhow::Result<()> {
        let (start, limit) = (self.completed.load(Ordering::Relaxed), Instant::now() + PATIENCE);
        while self.completed.load(Ordering::Relaxed) < start + 200 {
            ensure!(Instant::now() < limit, "the load stands still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

async fn write_until_stopped(
    address: std::net::SocketAddr,
    nqn: String,
    stop: Arc<AtomicBool>,
    completed: Arc<AtomicU64>,
) -> anyhow::Result<(Report, Report)> {
    let job = Job {
        rw: Pattern::RandRw,
        depth: 8,
        size: Some(MAIN_SIZE),
        runtime: Some(Duration::from_secs(24 * 3600)),
        verify: true,
        flush_every: 100,
        ..Job::default()
    };
    let reconnect = Reconnect { max_delay: Duration::from_millis(100), ..Reconnect::within(PATIENCE) };
    let options = Options { reconnect: Some(reconnect), ..load::options(&job) };
    let controller = Controller::connect(address, &nqn, options).await?;
    let record = load::new_record(&controller, &job)?;
    let load = Load::start(&controller, &job, Some(Rc::clone(&record)))?;
    while !stop.load(Ordering::Relaxed) {
        reactor::sleep(Duration::from_millis(5)).await;
        completed.store(load.progress().completed, Ordering::Relaxed);
    }
    load.stop();
    let report = load.finish().await;
    let check = load::check(&controller, &job, &record).await?;
    controller.disconnect().await;
    Ok((report, check))
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

async fn kill_again_and_again(mut house: House, path: String, size_bytes: u64) -> anyhow::Result<()> {
    let kills = number("ASHLAR_KILLS").unwrap_or(50);
    let seed = number("ASHLAR_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("{kills} kills on {path}, ASHLAR_SEED={seed}");
    house.cluster.start().await?;
    let client = house.client(0).await?;
    let request = CreateStoreRequest { name: "main".to_owned(), path, size_bytes, ..CreateStoreRequest::default() };
    answer(client.stores().create(request).await)?;
    let mut model = Model { random: Random::new(seed), volumes: BTreeMap::new(), doubt: None, count: 0 };
    let main = CreateVolumeRequest {
        name: MAIN.to_owned(),
        size_bytes: MAIN_SIZE,
        uuid: Uuid::from_u128(1 << 64 | 1).to_string(),
        ..CreateVolumeRequest::default()
    };
    model.perform(&client, Step::Create(main)).await?;
    let volume = house.wait_for_engine(MAIN, |engine| engine.state() == EngineState::Healthy).await?;
    let (address, nqn) = (house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    let host = Host::new()?;
    let writer = Writer { stop: Arc::default(), completed: Arc::default() };
    let load = {
        let (stop, completed) = (Arc::clone(&writer.stop), Arc::clone(&writer.completed));
        host.run(move || write_until_stopped(address, nqn, stop, completed))
    };
    for kill in 0..kills {
        model =
            kill_once(&mut house, &writer, model).await.with_context(|| format!("kill {kill}\n{}", house.logs()))?;
    }
    writer.stop.store(true, Ordering::Relaxed);
    let (report, check) = load.await?;
    ensure!(report.is_clean(), "the load met errors:\n{report}");
    ensure!(check.is_clean() && check.verify.checked > 0, "what was acknowledged is not there:\n{check}");
    ensure!(report.reconnects >= kills, "the host noticed {} of {kills} kills", report.reconnects);
    println!("{} volumes made, {} snapshots of the main one", model.count, model.volumes[MAIN].snapshots.len());
    delete_all(&house, model).await
}

async fn kill_once(house: &mut House, writer: &Writer, mut model: Model) -> anyhow::Result<Model> {
    let more = Duration::from_millis(model.random.below(150));
    let working = tokio::spawn(model.work(house.client(0).await?));
    writer.moves_on().await?;
    tokio::time::sleep(more).await;
    house.cluster.node(0).kill()?;
    let mut model = working.await??;
    house.cluster.node(0).start().await?;
    let client = house.client(0).await?;
    model.check_volumes(&answer(client.volumes().list(ListVolumesRequest {}).await)?.volumes)?;
    house.wait_for_engine(MAIN, |engine| engine.state() == EngineState::Healthy).await?;
    if let Some(step) = model.doubt.take() {
        let text = format!("after the kill: {step:?}");
        model.perform(&client, step).await.context(text)?;
    }
    model.repeat_all(&client).await?;
    model.check_no_orphans(&client).await?;
    Ok(model)
}

/// In the end all space comes back.
async fn delete_all(house: &House, mut model: Model) -> anyhow::Result<()> {
    let client = house.client(0).await?;
    for volume in model.volumes.keys().cloned().collect::<Vec<_>>() {
        model.perform(&client, Step::Delete(DeleteVolumeRequest { volume, ..DeleteVolumeRequest::default() })).await?;
    }
    model.check_no_orphans(&client).await?;
    let limit = Instant::now() + PATIENCE;
    loop {
        let store = only_store(&client).await?;
        if store.free_bytes == store.size_bytes {
            return Ok(());
        }
        if Instant::now() > limit {
            bail!("space is lost: {store:#?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_daemon_on_a_file_is_killed_again_and_again() -> anyhow::Result<()> {
    let house = House::prepare(&["a"])?;
    let path = house.cluster.nodes()[0].folder().join("main.img").display().to_string();
    kill_again_and_again(house, path, STORE_SIZE).await
}

#[tokio::test]
async fn a_daemon_on_a_loop_device_is_killed_again_and_again() -> anyhow::Result<()> {
    // Detached when the daemon and its folder are gone.
    let folder = tempfile::tempdir()?;
    let device = match LoopDevice::over(&folder.path().join("backing"), STORE_SIZE, 512) {
        Ok(device) => device,
        Err(reason) => {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
    let house = House::prepare(&["a"])?;
    kill_again_and_again(house, device.path().display().to_string(), 0).await
}
