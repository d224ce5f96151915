//! `ashlar store check` and `ashlar store dump` on files that daemons wrote: what they say, and their exit codes.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context, ensure};
use integration::lvols::{BLOCK, Chain, make_chain};
use integration::{Host, House, MIB, run_ashlar, said};
use proto::v1::LvolState;
use serde_json::Value;

/// A daemon that has used a store of a head over a snapshot, and was stopped in order.
async fn used_store() -> anyhow::Result<(House, Chain, PathBuf)> {
    let mut house = House::prepare(&["a"])?;
    let path = house.cluster.nodes()[0].folder().join("main.img");
    let chain =
        make_chain(&Host::new()?, &path, &["cut", "head"], 4 * MIB, |layer, block| block % [2, 3][layer] == 0).await?;
    house.cluster.start().await?;
    take_in(&house, &path, &chain)?;
    let status = house.cluster.node(0).stop().await?;
    ensure!(status.success(), "{status}");
    Ok((house, chain, path))
}

fn take_in(house: &House, path: &Path, chain: &Chain) -> anyhow::Result<()> {
    let (path, uuid) = (path.display().to_string(), chain.store.to_string());
    let output = house.ashlar(0, &["store", "create", "main", "--path", &path, "--uuid", &uuid])?;
    ensure!(output.status.success(), "{}", said(&output));
    Ok(())
}

fn check(path: &Path, rest: &[&str]) -> anyhow::Result<Output> {
    run_ashlar(&[&["store", "check", &path.display().to_string()], rest].concat())
}

/// The lines of a dump in JSON.
fn dump(path: &Path) -> anyhow::Result<Vec<Value>> {
    let output = run_ashlar(&["-o", "json", "store", "dump", &path.display().to_string()])?;
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(|line| serde_json::from_str(line).context("one object a line")).collect()
}

fn is(output: &Output, code: i32, text: &str) -> anyhow::Result<()> {
    ensure!(output.status.code() == Some(code) && said(output).contains(text), "{:?}: {}", output.status, said(output));
    Ok(())
}

fn offset_of(items: &[Value], wanted: impl Fn(&Value) -> bool) -> anyhow::Result<u64> {
    items.iter().find(|item| wanted(item)).and_then(|item| item["offset"].as_u64()).context("there is one")
}

/// What a disk may do to a block.
fn damage(path: &Path, offset: u64) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    Ok(file.write_all_at(&[0xa5; BLOCK as usize], offset)?)
}

#[tokio::test]
async fn a_store_that_was_closed_is_clean_and_its_dump_is_all_of_it() -> anyhow::Result<()> {
    let (house, chain, path) = used_store().await?;
    let before = fs::read(&path)?;
    is(&check(&path, &[])?, 0, "nothing is wrong")?;
    is(&check(&path, &["--data"])?, 0, "store main")?;
    let report: Value = serde_json::from_slice(&check(&path, &["-o", "json"])?.stdout)?;
    assert_eq!((&report["exit_code"], &report["store"]["lvols"]), (&0.into(), &2.into()));
    let items = dump(&path)?;
    // Without what the store keeps for itself.
    let listed = |item: &&Value| item["role"].as_str().is_none_or(str::is_empty);
    let kinds = |kind: &str| items.iter().filter(|item| item["kind"] == kind).filter(listed).count();
    assert_eq!((kinds("superblock"), kinds("lvol"), kinds("damaged")), (2, 2, 0));
    for (name, content) in chain.names.iter().zip(&chain.contents) {
        let lvol = items.iter().find(|item| item["name"] == name.as_str()).context("it is listed")?;
        let (uuid, to) = (lvol["uuid"].as_str().context("a UUID")?, house.folder().join(name).display().to_string());
        let export = ["store", "dump", &path.display().to_string(), "--lvol", uuid, "--to", &to];
        is(&run_ashlar(&export)?, 0, "")?;
        assert!(fs::read(&to)? == *content, "{name} differs");
        is(&run_ashlar(&export)?, 8, "exists")?;
    }
    assert!(fs::read(&path)? == before, "something was written");
    Ok(())
}

#[tokio::test]
async fn a_store_in_use_is_refused_and_a_killed_one_is_not_damaged() -> anyhow::Result<()> {
    let (mut house, chain, path) = used_store().await?;
    house.cluster.start().await?;
    house.wait_for_lvol("head", |lvol| lvol.is_some()).await?;
    let disk = path.display().to_string();
    for arguments in [&["check", &disk][..], &["check", &disk, "--repair"], &["dump", &disk]] {
        is(&run_ashlar(&[&["store"], arguments].concat())?, 8, &disk)?;
    }
    // Changes that are in the journal only.
    for number in 0..3 {
        house.ashlar(0, &["lvol", "snapshot", "head", &format!("late-{number}")])?;
    }
    house.cluster.node(0).kill()?;
    // The kernel lets go of the lock some time after the process.
    let limit = std::time::Instant::now() + integration::PATIENCE;
    let mut output = check(&path, &[])?;
    while output.status.code() == Some(8) && std::time::Instant::now() < limit {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        output = check(&path, &[])?;
    }
    is(&output, 0, "5 lvols")?;
    ensure!(said(&output).contains("journal"), "{}", said(&output));
    let batches = dump(&path)?.iter().filter(|item| item["kind"] == "batch").count();
    ensure!(batches > 0, "nothing is left of the journal");
    house.cluster.node(0).start().await?;
    assert!(house.exported("late-2")? == chain.contents[1]);
    Ok(())
}

#[tokio::test]
async fn a_lost_superblock_is_told_and_written_anew() -> anyhow::Result<()> {
    let (mut house, chain, path) = used_store().await?;
    damage(&path, 0)?;
    is(&check(&path, &[])?, 4, "superblock at 0")?;
    is(&check(&path, &[])?, 4, "with --repair")?;
    is(&check(&path, &["--repair"])?, 1, "everything that was wrong is repaired")?;
    is(&check(&path, &[])?, 0, "nothing is wrong")?;
    // Both: no store.
    let second = offset_of(&dump(&path)?, |item| item["kind"] == "superblock" && item["offset"] != 0)?;
    let whole = fs::read(&path)?;
    damage(&path, 0)?;
    damage(&path, second)?;
    let lost = check(&path, &["--repair"])?;
    ensure!(matches!(lost.status.code(), Some(4 | 8)), "{}", said(&lost));
    fs::write(&path, whole)?;
    house.cluster.node(0).start().await?;
    house.wait_for_lvol("head", |lvol| lvol.is_some()).await?;
    assert!(house.exported("head")? == chain.contents[1]);
    Ok(())
}

#[tokio::test]
async fn a_lost_map_costs_its_lvol_until_the_loss_is_accepted() -> anyhow::Result<()> {
    let (mut house, chain, path) = used_store().await?;
    let items = dump(&path)?;
    let head = items.iter().find(|item| item["name"] == "head").context("the head")?;
    let uuid = head["uuid"].as_str().context("a UUID")?;
    damage(&path, offset_of(&items, |item| item["kind"] == "map" && item["map"] == head["map"])?)?;

    let found = check(&path, &[])?;
    is(&found, 4, &format!("lvol {uuid}"))?;
    ensure!(said(&found).contains(&format!("--accept-loss {uuid}")), "{}", said(&found));
    ensure!(dump(&path)?.iter().any(|item| item["kind"] == "damaged"));
    // What is known of it can be had: all that it reads through.
    let to = house.folder().join("rescued");
    let (disk, file) = (path.display().to_string(), to.display().to_string());
    is(&run_ashlar(&["store", "dump", &disk, "--lvol", uuid, "--to", &file])?, 4, "unknown: bytes")?;
    let cut = items.iter().find(|item| item["name"] == "cut").and_then(|cut| cut["uuid"].as_str()).context("a UUID")?;
    let cut_to = house.folder().join("cut").display().to_string();
    is(&run_ashlar(&["store", "dump", &disk, "--lvol", cut, "--to", &cut_to])?, 0, "")?;
    assert!(fs::read(&cut_to)? == chain.contents[0]);

    // The daemon serves the rest (I28).
    house.cluster.node(0).start().await?;
    house.wait_for_lvol("head", |lvol| lvol.is_some()).await?;
    let damaged = house.lvol("head").await?;
    ensure!(damaged.state() == LvolState::Damaged && !damaged.reason.is_empty(), "{damaged:?}");
    assert!(house.exported("cut")? == chain.contents[0]);
    let refused = house.ashlar(0, &["lvol", "export", "head", "-"])?;
    ensure!(refused.status.code() == Some(1) && said(&refused).contains("damaged"), "{}", said(&refused));
    house.cluster.node(0).stop().await?;

    is(&check(&path, &["--repair"])?, 4, uuid)?;
    is(&check(&path, &["--repair", "--accept-loss", uuid])?, 1, "repaired")?;
    is(&check(&path, &[])?, 0, "nothing is wrong")?;
    house.cluster.node(0).start().await?;
    house.wait_for_lvol("head", |lvol| lvol.is_some_and(|lvol| lvol.state() == LvolState::Ready)).await?;
    assert_eq!(house.exported("head")?.len() as u64, 4 * MIB);
    assert!(house.exported("cut")? == chain.contents[0]);
    Ok(())
}

#[test]
fn what_is_no_store_is_said_so() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("zeroes");
    fs::write(&path, vec![0; 16 << 20])?;
    is(&check(&path, &[])?, 8, "no store here")?;
    is(&check(&folder.path().join("absent"), &[])?, 8, "absent")?;
    is(&run_ashlar(&["store", "dump", &path.display().to_string()])?, 8, "no store here")
}
