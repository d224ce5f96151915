//! Single lvols through the API and the command line: their whole life, and what is refused.

use anyhow::{Context, ensure};
use cli::client::answer;
use integration::lvols::{hash_snapshots, make_chain};
use integration::{Host, House, MIB, export_of, said};
use proto::v1::{
    CancelDeleteLvolRequest, CloneLvolRequest, CreateLvolRequest, DeleteLvolRequest, GrowLvolRequest, LvolState,
    RenameLvolRequest, RevertLvolRequest, SnapshotLvolRequest, SnapshotVolumeRequest,
};
use tonic::{Code, Status};

fn create(name: &str, size_bytes: u64) -> CreateLvolRequest {
    CreateLvolRequest { name: name.to_owned(), store: "main".to_owned(), size_bytes, ..CreateLvolRequest::default() }
}

fn reason(status: &Status) -> String {
    proto::error::info(status).map(|info| info.reason).unwrap_or_default()
}

/// Runs `ashlar lvol` with JSON.
fn json(house: &House, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
    let output = house.ashlar(0, &[&["lvol"], arguments, &["-o", "json"]].concat())?;
    ensure!(output.status.success(), "{arguments:?}: {}", said(&output));
    serde_json::from_slice(&output.stdout).with_context(|| format!("{arguments:?}: {}", said(&output)))
}

/// What `ashlar lvol` says when it fails.
fn refused(house: &House, arguments: &[&str]) -> anyhow::Result<String> {
    let output = house.ashlar(0, &[&["lvol"], arguments].concat())?;
    ensure!(output.status.code() == Some(1), "{arguments:?}: {}", said(&output));
    Ok(said(&output))
}

#[tokio::test]
async fn the_whole_life_of_an_lvol() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 512 * MIB).await?;
    let web = json(&house, &["create", "web", "--store", "main", "--size", "64MiB"])?;
    assert_eq!(json(&house, &["create", "web", "--store", "main", "--size", "64MiB"])?, web, "I30");
    let text = refused(&house, &["create", "web", "--store", "main", "--size", "32MiB", "--block-size", "512"])?;
    ensure!(text.contains("size_bytes is 67108864, asked for 33554432"), "{text}");
    ensure!(text.contains("block_size_bytes is 4096, asked for 512"), "{text}");

    let uuid = "00000000-0000-4000-8000-000000000001";
    let monday = json(&house, &["snapshot", "web", "monday", "--uuid", uuid])?;
    assert_eq!((monday["uuid"].as_str(), monday["is_snapshot"].as_bool()), (Some(uuid), Some(true)));
    assert_eq!(json(&house, &["snapshot", "web", "monday", "--uuid", uuid])?["uuid"], uuid, "I30");
    let text = refused(&house, &["snapshot", "web", "monday"])?;
    ensure!(text.contains("has an lvol `monday` already"), "{text}");
    let other = json(&house, &["clone", "monday", "other", "--size", "128MiB"])?;
    assert_eq!(json(&house, &["clone", "monday", "other", "--size", "128MiB"])?["uuid"], other["uuid"], "I30");
    assert_eq!((&other["parent_uuid"], &other["size_bytes"]), (&uuid.into(), &(128 * MIB).into()));
    assert_eq!(json(&house, &["grow", "web", "--size", "96MiB"])?["size_bytes"], 96 * MIB);
    assert_eq!(json(&house, &["grow", "web", "--size", "96MiB"])?["size_bytes"], 96 * MIB, "I30");
    let text = refused(&house, &["grow", "web", "--size", "64MiB"])?;
    ensure!(text.contains("cannot have 67108864"), "{text}");
    assert_eq!(json(&house, &["rename", "other", "clone"])?["name"], "clone");
    let text = refused(&house, &["rename", "clone", "web"])?;
    ensure!(text.contains("has an lvol `web` already"), "{text}");
    assert_eq!(json(&house, &["revert", "web", "monday"])?["parent_uuid"], uuid);
    let text = refused(&house, &["revert", "web", "clone"])?;
    ensure!(text.contains("does not read through"), "{text}");

    // Kills and restarts keep all of it.
    let before = house.lvols().await?;
    house.cluster.node(0).kill()?;
    house.cluster.node(0).start().await?;
    assert_eq!(house.lvols().await?, before);
    let names: Vec<_> = before.iter().map(|lvol| lvol.name.as_str()).collect();
    assert_eq!(names, ["clone", "monday", "web"]);
    let listed = said(&house.ashlar(0, &["lvol", "list", "--store", "main"])?);
    ensure!(listed.lines().count() == 4 && listed.lines().all(|line| line.chars().count() <= 80), "{listed}");

    // Two read through it: it is marked, and can be kept.
    let deleted = json(&house, &["delete", "monday"])?;
    ensure!(deleted["remaining"]["deletion"]["waits_for"].as_str().is_some_and(|text| text.contains("several")));
    let text = refused(&house, &["delete", "monday", "--wait"])?;
    ensure!(text.contains("stays for now"), "{text}");
    let text = refused(&house, &["clone", "monday", "third"])?;
    ensure!(text.contains("being deleted"), "{text}");
    for _ in 0..2 {
        assert_eq!(json(&house, &["cancel-delete", "monday"])?["state"], "ready", "I30");
    }
    json(&house, &["delete", "monday"])?;
    let text = refused(&house, &["delete", "clone", "--uuid", uuid])?;
    ensure!(text.contains("not the expected one"), "{text}");
    json(&house, &["delete", "clone", "--uuid", other["uuid"].as_str().unwrap_or_default()])?;
    house.wait_for_lvol("monday", |lvol| lvol.is_none()).await?;
    for _ in 0..2 {
        assert!(json(&house, &["delete", "web", "--wait"])?["remaining"].is_null(), "I42");
    }
    assert_eq!(house.lvols().await?, []);
    ensure!(house.ashlar(0, &["store", "delete", "main"])?.status.success(), "it is empty");
    Ok(())
}

#[tokio::test]
async fn snapshots_in_a_chain_are_deleted_with_progress_and_the_rest_reads_as_before() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    let host = Host::new()?;
    let path = house.cluster.nodes()[0].folder().join("main.img");
    let chain = make_chain(&host, &path, &["s1", "s2", "s3", "head"], 16 * MIB, |layer, block| {
        block % [2, 3, 5, 7][layer] == 0
    })
    .await?;
    house.cluster.start().await?;
    let (path, store) = (path.display().to_string(), chain.store.to_string());
    let output = house.ashlar(0, &["store", "create", "main", "--path", &path, "--uuid", &store])?;
    ensure!(output.status.success(), "{}", said(&output));
    let check = |names: &[&str]| {
        for (name, content) in chain.names.iter().zip(&chain.contents) {
            let listed = names.contains(&name.as_str());
            ensure!(!listed || house.exported(name)? == *content, "{name} reads differently");
        }
        anyhow::Ok(())
    };
    check(&["s1", "s2", "s3", "head"])?;
    let deleted = answer(house.client(0).await?.lvols().delete(delete("s2")).await)?;
    if let Some(remaining) = deleted.remaining {
        let deletion = remaining.deletion.context("it is being deleted")?;
        assert_eq!((remaining.state, deletion.waits_for.as_str()), (LvolState::Deleting.into(), ""));
    }
    check(&["s1", "s3", "head"])?;
    house.wait_for_lvol("s2", |lvol| lvol.is_none()).await?;
    check(&["s1", "s3", "head"])?;
    for name in ["s3", "s1"] {
        json(&house, &["delete", name, "--wait"])?;
        ensure!(house.lvol(name).await.is_err(), "{name} is gone");
    }
    check(&["head"])?;
    let head = json(&house, &["get", "head"])?;
    let used = head["used_bytes"].as_u64().context("a number")?;
    assert_eq!(head["usage"]["unique_bytes"].as_u64(), Some(used));
    let data = chain.contents[3].chunks(4096).filter(|block| block.iter().any(|byte| *byte != 0)).count();
    assert_eq!(head["usage"]["referenced_bytes"].as_u64(), Some(4096 * data as u64));
    Ok(())
}

#[tokio::test]
async fn what_is_written_after_a_snapshot_is_gone_after_a_revert() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    let host = Host::new()?;
    let path = house.cluster.nodes()[0].folder().join("main.img");
    let chain = make_chain(&host, &path, &["s1", "head"], MIB, |layer, block| block % 2 == layer as u64).await?;
    house.cluster.start().await?;
    let (path, store) = (path.display().to_string(), chain.store.to_string());
    house.ashlar(0, &["store", "create", "main", "--path", &path, "--uuid", &store])?;
    assert!(house.exported("head")? == chain.contents[1]);
    json(&house, &["revert", "head", "s1"])?;
    assert!(house.exported("head")? == chain.contents[0]);
    Ok(())
}

fn delete(lvol: &str) -> DeleteLvolRequest {
    DeleteLvolRequest { lvol: lvol.to_owned(), ..DeleteLvolRequest::default() }
}

/// The answer of each call that changes this lvol.
async fn all_changes(house: &House, lvol: &str) -> anyhow::Result<Vec<Result<(), Status>>> {
    let (lvols, lvol) = (house.client(0).await?, lvol.to_owned());
    let (name, uuid) = ("new".to_owned(), String::new());
    let answers = vec![
        lvols.lvols().delete(delete(&lvol)).await.map(drop),
        lvols.lvols().cancel_delete(CancelDeleteLvolRequest { lvol: lvol.clone() }).await.map(drop),
        lvols
            .lvols()
            .snapshot(SnapshotLvolRequest { lvol: lvol.clone(), name: name.clone(), uuid: uuid.clone() })
            .await
            .map(drop),
        lvols
            .lvols()
            .create_clone(CloneLvolRequest { snapshot: lvol.clone(), name: name.clone(), size_bytes: 0, uuid })
            .await
            .map(drop),
        lvols.lvols().revert(RevertLvolRequest { lvol: lvol.clone(), snapshot: lvol.clone() }).await.map(drop),
        lvols.lvols().grow(GrowLvolRequest { lvol: lvol.clone(), size_bytes: 1 << 30 }).await.map(drop),
        lvols.lvols().rename(RenameLvolRequest { lvol: lvol.clone(), name: name.clone() }).await.map(drop),
        lvols.lvols().create(CreateLvolRequest { uuid: lvol, ..create("new", MIB) }).await.map(drop),
    ];
    Ok(answers)
}

#[tokio::test]
async fn lvols_of_replicas_are_shown_and_never_touched() -> anyhow::Result<()> {
    let house = House::open(&["a"], 512 * MIB).await?;
    let volume = house.create_volume("v", 64 * MIB, &[]).await?;
    let (host, address) = (Host::new()?, house.cluster.nodes()[0].addresses().nvmf);
    host.write(address, &export_of(&volume)?.nqn, MIB, 7, MIB as usize).await?;
    let cut = SnapshotVolumeRequest { volume: "v".to_owned(), name: "s".to_owned(), uuid: String::new() };
    answer(house.client(0).await?.volumes().snapshot(cut).await)?;
    let before = house.lvols().await?;
    assert_eq!(before.len(), 2);
    for lvol in &before {
        assert_eq!((&lvol.volume_uuid, &lvol.replica_uuid), (&volume.uuid, &volume.replicas[0].replica_uuid));
        for answer in all_changes(&house, &lvol.uuid).await? {
            let status = answer.expect_err("it was changed");
            assert_eq!(
                (status.code(), reason(&status).as_str()),
                (Code::FailedPrecondition, "REPLICA_LVOL"),
                "{status}"
            );
            let info = proto::error::info(&status).context("details")?;
            assert_eq!(info.metadata["volume_uuid"], volume.uuid);
            assert_eq!(info.metadata["replica_uuid"], lvol.replica_uuid);
        }
    }
    assert_eq!(house.lvols().await?, before, "nothing was changed");
    let text = refused(&house, &["delete", "s"])?;
    ensure!(text.contains(&format!("of volume {}", volume.uuid)) && text.contains("ashlar volume"), "{text}");

    // A cut can be read, but not the head, which changes.
    let content = house.exported("s")?;
    assert!(content[..MIB as usize].iter().all(|byte| *byte == 0));
    assert!(content[MIB as usize..2 * MIB as usize].iter().all(|byte| *byte == 7));
    let text = refused(&house, &["export", "v", "-"])?;
    ensure!(text.contains("take a snapshot"), "{text}");
    // A name that a replica has is free for others; then it names two.
    json(&house, &["create", "v", "--store", "main", "--size", "1MiB"])?;
    let text = refused(&house, &["get", "v"])?;
    ensure!(text.contains("2 lvols are called `v`") && text.contains(&before[1].uuid), "{text}");
    Ok(())
}

#[tokio::test]
async fn what_a_store_keeps_for_itself_is_shown_with_its_lvol_and_never_touched() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    let host = Host::new()?;
    let path = house.cluster.nodes()[0].folder().join("main.img");
    let chain = make_chain(&host, &path, &["s", "head"], 4 * MIB, |layer, _| layer == 0).await?;
    hash_snapshots(&host, &path).await?;
    house.cluster.start().await?;
    let (path, store) = (path.display().to_string(), chain.store.to_string());
    house.ashlar(0, &["store", "create", "main", "--path", &path, "--uuid", &store])?;
    let snapshot = house.lvol("s").await?;
    let internal = &snapshot.internal[0];
    assert_eq!(internal.role, "hashes");
    for answer in all_changes(&house, &internal.uuid).await? {
        let status = answer.expect_err("it was changed");
        assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "INTERNAL_LVOL"), "{status}");
        ensure!(status.message().contains(&snapshot.uuid), "{status}");
    }
    assert_eq!(house.lvol("s").await?.internal.len(), snapshot.internal.len());
    Ok(())
}

#[tokio::test]
async fn bad_arguments_are_told_and_change_nothing() -> anyhow::Result<()> {
    let house = House::open(&["a"], 512 * MIB).await?;
    let client = house.client(0).await?;
    let bad = [
        ("a b", create("a b", MIB), "name"),
        ("no name", create("", MIB), "name"),
        ("a UUID for a name", create("00000000-0000-4000-8000-000000000001", MIB), "name"),
        ("no size", create("v", 0), "size_bytes"),
        ("no whole blocks", create("v", 4097), "size_bytes"),
        ("beyond all", create("v", u64::MAX - 4095), ""),
        ("blocks of 1000", CreateLvolRequest { block_size_bytes: 1000, ..create("v", MIB) }, "size_bytes"),
        ("nil", CreateLvolRequest { uuid: "00000000-0000-0000-0000-000000000000".into(), ..create("v", MIB) }, "uuid"),
        ("no UUID", CreateLvolRequest { uuid: "v".into(), ..create("v", MIB) }, "uuid"),
    ];
    for (what, request, field) in bad {
        let status = client.lvols().create(request).await.expect_err(what);
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
        ensure!(status.message().starts_with(field), "{what}: {status}");
    }
    let elsewhere = CreateLvolRequest { store: "none".into(), ..create("v", MIB) };
    let status = client.lvols().create(elsewhere).await.expect_err("no such store");
    assert_eq!(status.code(), Code::NotFound);
    let codes = all_changes(&house, "absent").await?.into_iter().map(|answer| answer.map_err(|status| status.code()));
    let codes: Vec<_> = codes.collect();
    // Deleted already; and the last is no UUID.
    assert_eq!((codes[0], codes[7]), (Ok(()), Err(Code::InvalidArgument)));
    assert_eq!(codes[1..7], [Err(Code::NotFound); 6]);
    assert_eq!(house.lvols().await?, []);
    Ok(())
}

#[tokio::test]
async fn one_uuid_is_one_lvol_on_a_node() -> anyhow::Result<()> {
    let house = House::open(&["a"], 512 * MIB).await?;
    house.create_store(0, "second", 64 * MIB).await?;
    let client = house.client(0).await?;
    let uuid = "00000000-0000-4000-8000-000000000001".to_owned();
    let first = CreateLvolRequest { uuid: uuid.clone(), ..create("v", MIB) };
    let made = answer(client.lvols().create(first.clone()).await)?;
    for (differs, request) in [
        ("store is main, asked for second", CreateLvolRequest { store: "second".into(), ..first.clone() }),
        ("name is v, asked for w", CreateLvolRequest { name: "w".into(), ..first.clone() }),
        ("uuid is", CreateLvolRequest { uuid: "00000000-0000-4000-8000-000000000002".into(), ..first.clone() }),
    ] {
        let status = client.lvols().create(request).await.expect_err(differs);
        assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "CONFLICT"));
        ensure!(status.message().contains(differs), "{status}");
    }
    // Another store has names of its own.
    answer(client.lvols().create(CreateLvolRequest { store: "second".into(), ..create("v", MIB) }).await)?;
    let status = house.lvol("v").await.expect_err("two");
    assert_eq!(reason(&status), "AMBIGUOUS");
    assert_eq!(house.lvol(&uuid).await?, made);
    // The overcommit limit holds for lvols too.
    ensure!(house.ashlar(0, &["store", "set-limits", "second", "--overcommit", "100"])?.status.success());
    let large = CreateLvolRequest { store: "second".into(), ..create("large", 512 * MIB) };
    let status = client.lvols().create(large).await.expect_err("too large");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERCOMMITTED"));
    Ok(())
}

#[tokio::test]
async fn creates_of_one_name_at_the_same_time_make_one_lvol() -> anyhow::Result<()> {
    let house = House::open(&["a"], 64 * MIB).await?;
    let client = house.client(0).await?;
    let calls = (0..8).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.lvols().create(create("v", MIB)).await })
    });
    let mut uuids = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        uuids.push(answer(call.await?)?.uuid);
    }
    uuids.dedup();
    assert_eq!((uuids.len(), house.lvols().await?.len()), (1, 1));
    Ok(())
}
