//! One daemon killed again and again, in the middle of I/O and of administration, on a file and on a loop device.
//!
//! A host writes all the time and checks what it reads; other volumes come and go, as new ones and as clones; blocks of them are
//! written; snapshots are taken and deleted, volumes go back to them, and grow. After each restart the daemon has exactly what
//! it had acknowledged, to the byte; the one request that was under way happened or did not, as a whole, and can be sent
//! again; every create sent again finds the same object; and the store holds no lvol that belongs to nobody (L2, I26, I30).
//!
//! ASHLAR_KILLS says how often, 50 without it; ASHLAR_SEED repeats the choices of a run.

mod checks;
mod model;
mod power;
mod tree;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cli::client::answer;
use integration::{Host, House, MIB, PATIENCE, export_of};
use loop_device::LoopDevice;
use nvmf_initiator::load::{self, Job, Load, Pattern, Report};
use nvmf_initiator::{Controller, Options, Reconnect};
use proto::v1::{CreateStoreRequest, CreateVolumeRequest, DeleteVolumeRequest, EngineState};
use uuid::Uuid;

use crate::checks::only_store;
use crate::model::{Daemon, MAIN, MAIN_SIZE, Model, Step};

const STORE_SIZE: u64 = 1024 * MIB;

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
    let address = house.cluster.nodes()[0].addresses().nvmf;
    let daemon = Daemon { host: Arc::new(Host::new()?), address, killed: Arc::default() };
    let mut model = Model::new(seed, daemon.clone());
    let main = CreateVolumeRequest {
        name: MAIN.to_owned(),
        size_bytes: MAIN_SIZE,
        uuid: Uuid::from_u128(1 << 64 | 1).to_string(),
        ..CreateVolumeRequest::default()
    };
    model.perform(&client, Step::Create(main)).await?;
    let volume = house.wait_for_engine(MAIN, |engine| engine.state() == EngineState::Healthy).await?;
    let nqn = export_of(&volume)?.nqn.clone();
    let writer = Writer { stop: Arc::default(), completed: Arc::default() };
    let load = {
        let (stop, completed) = (Arc::clone(&writer.stop), Arc::clone(&writer.completed));
        daemon.host.run(move || write_until_stopped(address, nqn, stop, completed))
    };
    for kill in 0..kills {
        let killed = kill_once(&mut house, &writer, &daemon, model).await;
        model = killed.with_context(|| format!("kill {kill}\n{}", house.logs()))?;
    }
    writer.stop.store(true, Ordering::Relaxed);
    let (report, check) = load.await?;
    ensure!(report.is_clean(), "the load met errors:\n{report}");
    ensure!(check.is_clean() && check.verify.checked > 0, "what was acknowledged is not there:\n{check}");
    ensure!(report.reconnects >= kills, "the host noticed {} of {kills} kills", report.reconnects);
    println!("acknowledged: {:?}", model.done);
    delete_all(&house, model).await
}

async fn kill_once(house: &mut House, writer: &Writer, daemon: &Daemon, mut model: Model) -> anyhow::Result<Model> {
    let more = Duration::from_millis(model.random.below(150));
    let working = tokio::spawn(model.work(house.client(0).await?));
    writer.moves_on().await?;
    tokio::time::sleep(more).await;
    daemon.killed.store(true, Ordering::SeqCst);
    house.cluster.node(0).kill()?;
    let model = working.await??;
    daemon.killed.store(false, Ordering::SeqCst);
    house.cluster.node(0).start().await?;
    go_on(house, daemon, model, "the kill").await
}

/// After a start the daemon has all that it had acknowledged; what was in doubt can be sent again, and so can all else.
async fn go_on(house: &House, daemon: &Daemon, mut model: Model, after: &str) -> anyhow::Result<Model> {
    let client = house.client(0).await?;
    model.check_volumes(&client).await?;
    model.check_contents(house, daemon).await.with_context(|| format!("in doubt: {:?}", model.doubt))?;
    if let Some(step) = model.doubt.take() {
        let text = format!("after {after}: {step:?}");
        model.perform(&client, step).await.context(text)?;
    }
    model.repeat_all(&client).await?;
    model.check_no_orphans(&client).await?;
    model.check_contents(house, daemon).await?;
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
