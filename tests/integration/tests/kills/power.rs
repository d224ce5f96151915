//! The machine of a daemon loses its power again and again, in the middle of administration: each time the disk, with the state directory and
//! the store on it, has what was synced and nothing else.
//!
//! After each start the daemon has all that it had acknowledged, to the byte (what is written is flushed), as after a kill; the one request
//! that was under way happened or did not, and can be sent again (L2, I4, I26, I30).
//!
//! ASHLAR_CUTS says how often, 10 without it; ASHLAR_SEED repeats the choices of a run.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, ensure};
use cli::client::answer;
use integration::{FileSystem, Host, House, MIB, Network, PoweredDisk};
use proto::v1::{CreateVolumeRequest, LastRun, NodeInfoRequest, RunEnd};
use uuid::Uuid;

use crate::model::{Daemon, MAIN, MAIN_SIZE, Model, Step};
use crate::{delete_all, go_on, number};

const DISK_SIZE: u64 = 768 * MIB;
const STORE_SIZE: u64 = 512 * MIB;

async fn cut_again_and_again(kind: FileSystem) -> anyhow::Result<()> {
    // Mounts of its own, which go with the test.
    let Some(_network) = Network::enter(0)? else { return Ok(()) };
    let cuts = number("ASHLAR_CUTS").unwrap_or(10);
    let seed = number("ASHLAR_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("{cuts} power cuts, {kind:?}, ASHLAR_SEED={seed}");
    let images = tempfile::tempdir()?;
    let mut disk = PoweredDisk::make(kind, images.path(), &images.path().join("disk"), DISK_SIZE)?;
    let folder = tempfile::Builder::new().prefix("node-").tempdir_in(disk.path())?;
    let mut house = House::prepare_in(folder, &["a"], "")?;
    // The configuration, which a test writes and no daemon syncs.
    disk.settle()?;
    house.cluster.start().await?;
    house.create_store(0, "main", STORE_SIZE).await?;
    let address = house.cluster.nodes()[0].addresses().nvmf;
    let daemon = Daemon { host: Arc::new(Host::new()?), address, killed: Arc::default() };
    let mut model = Model::new(seed, daemon.clone());
    let main = CreateVolumeRequest {
        name: MAIN.to_owned(),
        size_bytes: MAIN_SIZE,
        uuid: Uuid::from_u128(1 << 64 | 1).to_string(),
        ..CreateVolumeRequest::default()
    };
    model.perform(&house.client(0).await?, Step::Create(main)).await?;
    for cut in 0..cuts {
        let survived = cut_once(&mut house, &mut disk, &daemon, model).await;
        model = survived.with_context(|| format!("power cut {cut}\n{}", house.logs()))?;
    }
    println!("acknowledged: {:?}", model.done);
    delete_all(&house, model).await
}

async fn cut_once(
    house: &mut House,
    disk: &mut PoweredDisk,
    daemon: &Daemon,
    mut model: Model,
) -> anyhow::Result<Model> {
    // From the middle of the first request on.
    let time = Duration::from_millis(model.random.below(600));
    let working = tokio::spawn(model.work(house.client(0).await?));
    tokio::time::sleep(time).await;
    daemon.killed.store(true, Ordering::SeqCst);
    house.cluster.node(0).kill()?;
    let model = working.await??;
    disk.cut()?;
    daemon.killed.store(false, Ordering::SeqCst);
    house.cluster.node(0).start().await?;
    let client = house.client(0).await?;
    let last = answer(client.node().info(NodeInfoRequest {}).await)?.last_run;
    ensure!(last.as_ref().map(LastRun::end) == Some(RunEnd::Killed), "its run is not on record: {last:?}");
    go_on(house, daemon, model, "the power cut").await
}

#[tokio::test]
async fn a_machine_with_a_journal_loses_its_power_again_and_again() -> anyhow::Result<()> {
    cut_again_and_again(FileSystem::Journal).await
}

#[tokio::test]
async fn a_machine_without_a_journal_loses_its_power_again_and_again() -> anyhow::Result<()> {
    cut_again_and_again(FileSystem::NoJournal).await
}
