//! Hashes and scrubs in running daemons: what a disk changed is found, is not served, and is right again once it is mended.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cli::client::answer;
use integration::lvols::{BLOCK, make_chain};
use integration::{Host, House, MIB, PATIENCE, export_of, said};
use proto::v1::{
    GetStoreRequest, SnapshotVolumeRequest, StartScrubRequest, StopScrubRequest, Store, StoreScrub, StoreState,
};

const POLL: Duration = Duration::from_millis(50);

async fn store_of(house: &House) -> anyhow::Result<Store> {
    let request = GetStoreRequest { store: "main".to_owned() };
    answer(house.client(0).await?.stores().get(request).await)
}

/// Waits until the hashes and scrubs of the first daemon's store are as wanted.
async fn wait_for_scrub(house: &House, wanted: impl Fn(&StoreScrub) -> bool) -> anyhow::Result<StoreScrub> {
    let limit = Instant::now() + PATIENCE;
    loop {
        // There is none while the store is still being opened.
        let found = store_of(house).await?;
        match found.scrub {
            Some(scrub) if wanted(&scrub) => return Ok(scrub),
            scrub => ensure!(Instant::now() < limit, "{scrub:?}\n{}", house.logs()),
        }
        tokio::time::sleep(POLL).await;
    }
}

fn all_hashed(scrub: &StoreScrub) -> bool {
    scrub.snapshots == 1 && scrub.hashed_snapshots == 1
}

/// Runs a scrub on the first daemon to its end. Returns the exit code and what it said.
fn scrub(house: &House) -> anyhow::Result<(Option<i32>, String)> {
    let output = house.ashlar(0, &["store", "scrub", "main", "--wait"])?;
    Ok((output.status.code(), said(&output)))
}

/// The place of a block on disk all of whose bytes have one value.
fn find_block(path: &Path, value: u8) -> anyhow::Result<u64> {
    let content = fs::read(path)?;
    let index = content.chunks(BLOCK as usize).position(|block| block.iter().all(|byte| *byte == value));
    Ok(index.context("no such block")? as u64 * BLOCK)
}

fn put_block(path: &Path, offset: u64, value: u8) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&[value; BLOCK as usize], offset)?;
    Ok(file.sync_all()?)
}

/// Changes a block of the first daemon's store while the daemon does not run.
async fn change_block(house: &mut House, path: &Path, offset: u64, value: u8) -> anyhow::Result<()> {
    let status = house.cluster.node(0).stop().await?;
    ensure!(status.success(), "{status}");
    put_block(path, offset, value)?;
    house.cluster.node(0).start().await?;
    wait_for_scrub(house, |_| true).await.map(drop)
}

fn store_file(house: &House) -> PathBuf {
    house.cluster.nodes()[0].folder().join("main.img")
}

#[tokio::test]
async fn what_the_disk_changed_is_found_is_not_served_and_can_be_put_right() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    let path = store_file(&house);
    let chain = make_chain(&Host::new()?, &path, &["cut", "head"], MIB, |layer, _| layer == 0).await?;
    house.cluster.start().await?;
    let (file, uuid) = (path.display().to_string(), chain.store.to_string());
    house.ashlar(0, &["store", "create", "main", "--path", &file, "--uuid", &uuid])?;
    wait_for_scrub(&house, all_hashed).await?;
    let (code, said) = scrub(&house)?;
    ensure!(code == Some(0) && said.contains("compared   1 MiB"), "{code:?} {said}");

    let value = chain.contents[0][5 * BLOCK as usize];
    let offset = find_block(&path, value)?;
    change_block(&mut house, &path, offset, !value).await?;
    let (code, said) = scrub(&house)?;
    ensure!(code == Some(1) && said.contains("1 regions are damaged"), "{code:?} {said}");
    ensure!(house.exported("cut").is_err(), "I22: wrong bytes were served");
    ensure!(house.logs().contains("a scrub found damage"), "{}", house.logs());

    // The marks outlive the daemon, and so does what the scrub found.
    wait_for_record(&house, |record| record.contains("\"bad_regions\": 1") && is_over(record)).await?;
    house.cluster.node(0).kill()?;
    house.cluster.node(0).start().await?;
    let found = wait_for_scrub(&house, |_| true).await?;
    let run = found.run.context("the last scrub is on record")?;
    ensure!(found.damaged_bytes > 0 && run.ended_at > 0 && run.bad_regions == 1, "{run:?}");
    check_what_is_shown(&house)?;
    let store = store_of(&house).await?;
    ensure!(store.state() == StoreState::Ready && store.reason.contains("are damaged"), "{store:?}");
    ensure!(house.exported("cut").is_err(), "I22: wrong bytes were served");

    change_block(&mut house, &path, offset, value).await?;
    let (code, said) = scrub(&house)?;
    ensure!(code == Some(0), "{code:?} {said}");
    assert_eq!(wait_for_scrub(&house, |_| true).await?.damaged_bytes, 0);
    ensure!(house.exported("cut")? == chain.contents[0], "other bytes than before");
    Ok(())
}

/// An operator sees which store and which lvols, and where.
fn check_what_is_shown(house: &House) -> anyhow::Result<()> {
    let shown = |arguments: &[&str]| house.ashlar(0, arguments).map(|output| said(&output));
    let list = shown(&["lvol", "list"])?;
    ensure!(list.contains("the last scrub found 1 regions of it damaged"), "{list}");
    for lvol in ["cut", "head"] {
        let lvol = shown(&["lvol", "get", lvol])?;
        ensure!(lvol.contains("damaged   64 KiB at 0: reads fail"), "{lvol}");
    }
    let stores = shown(&["store", "list"])?;
    ensure!(stores.contains("main: 65536 bytes of its data are damaged"), "{stores}");
    Ok(())
}

/// Waits until the record of the store's scrub is as wanted.
async fn wait_for_record(house: &House, wanted: impl Fn(&str) -> bool) -> anyhow::Result<PathBuf> {
    let path = record_of(house).await?;
    let limit = Instant::now() + PATIENCE;
    loop {
        let record = fs::read_to_string(&path).unwrap_or_default();
        if !record.is_empty() && wanted(&record) {
            return Ok(path);
        }
        ensure!(Instant::now() < limit, "{record}");
        tokio::time::sleep(POLL).await;
    }
}

fn is_over(record: &str) -> bool {
    !record.contains("\"ended\": null")
}

async fn record_of(house: &House) -> anyhow::Result<PathBuf> {
    let uuid = store_of(house).await?.uuid;
    Ok(house.cluster.nodes()[0].folder().join(format!("state/scrubs/{uuid}.json")))
}

#[tokio::test]
async fn a_host_reads_the_other_replica_where_one_is_damaged() -> anyhow::Result<()> {
    const VALUE: u8 = 0x7b;
    let mut house = House::open(&["a", "b"], 256 * MIB).await?;
    let host = Host::new()?;
    let volume = house.create_volume("v", 4 * MIB, &["a", "b"]).await?;
    let export = export_of(&volume)?;
    let (address, nqn) = (export.addresses[0].parse()?, export.nqn.clone());
    host.write(address, &nqn, 0, VALUE, MIB as usize).await?;
    let request = SnapshotVolumeRequest { volume: "v".into(), name: "s".into(), ..SnapshotVolumeRequest::default() };
    answer(house.client(0).await?.volumes().snapshot(request).await)?;
    wait_for_scrub(&house, all_hashed).await?;

    let path = store_file(&house);
    let offset = find_block(&path, VALUE)?;
    change_block(&mut house, &path, offset, !VALUE).await?;
    house.wait_until_healthy("v").await?;
    let (code, said) = scrub(&house)?;
    ensure!(code == Some(1), "{code:?} {said}");
    let replicas = integration::said(&house.ashlar(0, &["replica", "list"])?);
    ensure!(replicas.contains("the last scrub found 1 regions of its snapshots damaged"), "{replicas}");
    let read = host.read(address, &nqn, 0, MIB as usize).await?;
    ensure!(read.iter().all(|byte| *byte == VALUE), "I22: wrong bytes were served");
    Ok(())
}

#[tokio::test]
async fn a_scrub_can_be_stopped_and_goes_on_after_a_kill() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    let path = store_file(&house);
    let chain = make_chain(&Host::new()?, &path, &["cut", "head"], 4 * MIB, |layer, _| layer == 0).await?;
    house.cluster.start().await?;
    let (file, uuid) = (path.display().to_string(), chain.store.to_string());
    house.ashlar(0, &["store", "create", "main", "--path", &file, "--uuid", &uuid])?;
    wait_for_scrub(&house, all_hashed).await?;
    let client = house.client(0).await?;
    let slow = StartScrubRequest { store: "main".into(), bytes_per_second: 64 << 10 };
    let started = answer(client.stores().start_scrub(slow.clone()).await)?.scrub.and_then(|scrub| scrub.run);
    assert_eq!(started.context("a scrub")?.ended_at, 0);
    // I30: the second finds the first.
    answer(client.stores().start_scrub(slow.clone()).await)?;
    wait_for_scrub(&house, |scrub| scrub.run.as_ref().is_some_and(|run| run.bytes > 0)).await?;
    answer(client.stores().stop_scrub(StopScrubRequest { store: "main".into() }).await)?;
    let stopped = wait_for_scrub(&house, |scrub| scrub.run.as_ref().is_some_and(|run| run.ended_at > 0)).await?;
    let run = stopped.run.context("a scrub")?;
    ensure!(run.error.contains("stopped") && (1..4 * MIB).contains(&run.bytes), "{run:?}");

    // As fast as to be on record half way, and not to be through by then.
    let steady = StartScrubRequest { bytes_per_second: 512 << 10, ..slow };
    let begun = answer(client.stores().start_scrub(steady).await)?.scrub.and_then(|scrub| scrub.run);
    let begun = begun.context("a scrub")?;
    wait_for_record(&house, |record| !record.contains("\"bytes\": 0,")).await?;
    house.cluster.node(0).kill()?;
    house.cluster.node(0).start().await?;
    let run = wait_for_scrub(&house, |_| true).await?.run.context("it goes on")?;
    ensure!(run.started_at == begun.started_at && run.bytes_per_second == 512 << 10, "{run:?}");
    ensure!(run.bytes > 0, "it began anew: {run:?}");
    let status = house.cluster.node(0).stop().await?;
    ensure!(status.success(), "a scrub keeps no daemon from ending: {status}");
    house.cluster.node(0).start().await?;
    let ended = |scrub: &StoreScrub| scrub.run.as_ref().is_some_and(|run| run.ended_at > 0);
    let run = wait_for_scrub(&house, ended).await?.run.context("a scrub")?;
    ensure!(run.error.is_empty() && run.bytes == 4 * MIB && run.snapshots == 1, "{run:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_due_is_scrubbed_without_being_asked_for() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    let path = store_file(&house);
    let chain = make_chain(&Host::new()?, &path, &["cut", "head"], MIB, |layer, _| layer == 0).await?;
    house.cluster.start().await?;
    let (file, uuid) = (path.display().to_string(), chain.store.to_string());
    house.ashlar(0, &["store", "create", "main", "--path", &file, "--uuid", &uuid])?;
    let found = wait_for_scrub(&house, all_hashed).await?;
    let month = 30 * 24 * 60 * 60;
    ensure!(found.run.is_none() && found.next_at > month, "{found:?}");
    let (code, said) = scrub(&house)?;
    ensure!(code == Some(0) && said.contains("next"), "{code:?} {said}");
    let record = wait_for_record(&house, is_over).await?;
    let first = wait_for_scrub(&house, |_| true).await?;
    let run = first.run.context("a scrub")?;
    assert_eq!(first.next_at, run.ended_at + month);

    // As if it had been long ago.
    let status = house.cluster.node(0).stop().await?;
    ensure!(status.success(), "{status}");
    let text = fs::read_to_string(&record)?;
    let old = text.replace(&format!("\"ended\": {}", run.ended_at), "\"ended\": 1000");
    ensure!(old != text, "{text}");
    fs::write(&record, old)?;
    house.cluster.node(0).start().await?;
    let due = |scrub: &StoreScrub| scrub.run.as_ref().is_some_and(|found| found.ended_at >= run.ended_at);
    wait_for_scrub(&house, due).await?;
    ensure!(house.logs().contains("a scrub is due"), "{}", house.logs());
    Ok(())
}
