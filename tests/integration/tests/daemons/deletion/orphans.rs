//! Replicas whose owner is dead, lost, another one, or unknown (L5, I42).

use std::fs;

use anyhow::{Context, ensure};
use cli::client::answer;
use integration::{Host, House, MIB, export_of, said};
use nvmf_initiator::{Controller, Options};
use proto::v1::{
    AdoptOrphanRequest, DeleteOrphanRequest, EngineState, ListOrphansRequest, NodeInfoRequest, OrphanKind, OrphanState,
    PeerState,
};
use reactor::{Disk, DiskOptions};
use tonic::Code;
use uuid::Uuid;

use super::left::{delete, eventually, only_orphan, orphans, replicas};

fn delete_orphan(uuid: &str, without: &[&str]) -> DeleteOrphanRequest {
    let without_nodes = without.iter().map(|node| (*node).to_owned()).collect();
    DeleteOrphanRequest { uuid: uuid.to_owned(), without_nodes, ..DeleteOrphanRequest::default() }
}

fn reason(status: &tonic::Status) -> String {
    proto::error::info(status).map(|info| info.reason).unwrap_or_default()
}

#[tokio::test]
async fn a_replica_of_a_dead_owner_is_no_orphan_and_goes_without_it_when_a_person_says_so() -> anyhow::Result<()> {
    let mut house = House::open(&["a", "b"], 256 * MIB).await?;
    let volume = house.create_volume("v", 16 * MIB, &["a", "b"]).await?;
    let there = volume.replicas.iter().find(|replica| replica.node == "b").context("placed")?.replica_uuid.clone();
    let b = house.client(1).await?;
    assert_eq!(orphans(&house, 1).await?, [], "it has an owner");
    let status = b.orphans().delete(delete_orphan(&there, &["a"])).await.expect_err("it has an owner");
    assert_eq!(reason(&status), "NOT_AN_ORPHAN");

    house.cluster.node(0).kill()?;
    let found = only_orphan(&house, 1, OrphanState::Unknown).await?;
    assert_eq!((found.kind(), &found.uuid, &found.volume_uuid), (OrphanKind::Replica, &there, &volume.uuid));
    assert_eq!((found.name.as_str(), found.size_bytes, found.store.as_str()), ("v", 16 * MIB, "main"));
    assert_eq!(found.unasked_nodes, ["a"]);
    ensure!(found.reason.contains("owner not reachable") && found.since_unix_ms > 0, "{found:?}");
    let text = said(&house.ashlar(1, &["orphan", "list"])?);
    ensure!(text.contains("unknown") && text.contains("--without-node a"), "{text}");
    let status = b.orphans().delete(delete_orphan(&there, &[])).await.expect_err("who knows");
    assert_eq!(reason(&status), "OWNER_UNKNOWN");
    let others =
        DeleteOrphanRequest { expected_volume_uuid: Uuid::new_v4().to_string(), ..delete_orphan(&there, &["a"]) };
    assert_eq!(b.orphans().delete(others).await.expect_err("another volume").code(), Code::Aborted);
    assert_eq!(replicas(&house, 1).await?, 1, "nothing was changed");

    for _ in 0..2 {
        let output = house.ashlar(1, &["orphan", "delete", &there, "--without-node", "a"])?;
        ensure!(output.status.success(), "{}", said(&output));
    }
    assert_eq!(replicas(&house, 1).await?, 0);
    // It comes back all the same: its volume lives, and misses the replica.
    house.cluster.node(0).start().await?;
    house.wait_for_engine("v", |engine| engine.state() == EngineState::Degraded).await?;
    Ok(())
}

#[tokio::test]
async fn an_owner_that_comes_back_with_a_new_identity_adopts_what_it_left() -> anyhow::Result<()> {
    let mut house = House::open(&["a", "b"], 256 * MIB).await?;
    let volume = house.create_volume("v", 16 * MIB, &["a", "b"]).await?;
    let (host, address) = (Host::new()?, house.cluster.nodes()[0].addresses().nvmf);
    host.write(address, &export_of(&volume)?.nqn, 0, 7, 8192).await?;
    house.cluster.node(0).kill()?;
    let folder = house.cluster.nodes()[0].folder().to_owned();
    fs::remove_dir_all(folder.join("state"))?;
    house.cluster.node(0).start().await?;
    let there = only_orphan(&house, 1, OrphanState::Orphan).await?;
    ensure!(there.reason.contains("have volume") && there.adoptable, "{there:?}");
    assert_eq!(orphans(&house, 0).await?, [], "its store is not there yet");

    // The store is taken in by the UUID that the error names.
    let path = folder.join("main.img").display().to_string();
    let refused = said(&house.ashlar(0, &["store", "create", "main", "--path", &path])?);
    let uuid = refused.split("--uuid ").nth(1).and_then(|rest| rest.split_whitespace().next()).context("no UUID")?;
    let output = house.ashlar(0, &["store", "create", "main", "--path", &path, "--uuid", uuid])?;
    ensure!(output.status.success(), "{}", said(&output));
    let here = only_orphan(&house, 0, OrphanState::Orphan).await?;
    assert_eq!((here.kind(), &here.volume_uuid), (OrphanKind::Replica, &volume.uuid));
    let output = house.ashlar(0, &["orphan", "adopt", &here.uuid])?;
    ensure!(output.status.success(), "{}", said(&output));
    let back = house.wait_until_healthy("v").await?;
    assert_eq!((&back.uuid, back.replicas.len()), (&volume.uuid, 2));
    assert_eq!(host.read(address, &export_of(&back)?.nqn, 0, 8192).await?, vec![7; 8192]);
    assert_eq!((orphans(&house, 0).await?, orphans(&house, 1).await?), (vec![], vec![]));
    // Again: it is done.
    let request = AdoptOrphanRequest { uuid: here.uuid, ..AdoptOrphanRequest::default() };
    assert_eq!(answer(house.client(0).await?.orphans().adopt(request).await)?.volume_uuid, volume.uuid);
    Ok(())
}

#[tokio::test]
async fn a_namesake_made_later_is_not_taken_for_the_one_that_left_an_orphan() -> anyhow::Result<()> {
    let mut house = House::open(&["a", "b"], 256 * MIB).await?;
    let old = house.create_volume("v", 16 * MIB, &["a", "b"]).await?;
    house.cluster.node(1).kill()?;
    let a = house.client(0).await?;
    assert_eq!(answer(a.volumes().delete(delete("v")).await)?.pending_nodes, ["b"]);
    let info = answer(a.node().info(NodeInfoRequest {}).await)?;
    ensure!(info.peers[0].state() != PeerState::Connected && !info.peers[0].last_error.is_empty(), "{info:?}");
    let new = house.create_volume("v", 16 * MIB, &["a"]).await?;
    // The memory of the deletion is lost.
    house.cluster.node(0).stop().await?;
    fs::remove_dir_all(house.cluster.nodes()[0].folder().join("state/deletions"))?;
    house.cluster.start().await?;
    let found = only_orphan(&house, 1, OrphanState::Orphan).await?;
    assert_eq!((&found.volume_uuid, found.name.as_str()), (&old.uuid, "v"));
    let b = house.client(1).await?;
    let meant = |volume: &str| DeleteOrphanRequest {
        expected_volume_uuid: volume.to_owned(),
        ..delete_orphan(&found.uuid, &[])
    };
    assert_eq!(b.orphans().delete(meant(&new.uuid)).await.expect_err("the namesake's").code(), Code::Aborted);
    answer(b.orphans().delete(meant(&old.uuid)).await)?;
    assert_eq!(replicas(&house, 1).await?, 0);
    assert_eq!(house.wait_until_healthy("v").await?.uuid, new.uuid);
    assert_eq!((orphans(&house, 0).await?, orphans(&house, 1).await?), (vec![], vec![]));
    Ok(())
}

/// Takes the peers out of a daemon's configuration.
fn forget_peers(house: &House, index: usize) -> anyhow::Result<()> {
    let path = house.cluster.nodes()[index].folder().join("node.toml");
    let text = fs::read_to_string(&path)?;
    Ok(fs::write(&path, text.split("[[peers]]").next().context("a part before")?)?)
}

#[tokio::test]
async fn an_owner_that_is_no_peer_keeps_its_replica_and_what_waits_for_no_peer_can_be_given_up() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a", "b"])?;
    forget_peers(&house, 1)?;
    house.cluster.start().await?;
    for index in 0..2 {
        house.create_store(index, "main", 256 * MIB).await?;
    }
    house.create_volume("v", 16 * MIB, &["a", "b"]).await?;
    let found = only_orphan(&house, 1, OrphanState::InUse).await?;
    let b = house.client(1).await?;
    let status = b.orphans().delete(delete_orphan(&found.uuid, &["a"])).await.expect_err("an engine has it open");
    assert_eq!(reason(&status), "IN_USE");
    house.cluster.node(0).stop().await?;
    let found = only_orphan(&house, 1, OrphanState::Unknown).await?;
    assert_eq!(found.unasked_nodes, ["a"], "the copy of the membership names it");

    // A deletion that waits for a node that was taken out of the configuration.
    house.cluster.node(0).start().await?;
    house.wait_until_healthy("v").await?;
    house.cluster.node(1).kill()?;
    let a = house.client(0).await?;
    assert_eq!(answer(a.volumes().delete(delete("v")).await)?.pending_nodes, ["b"]);
    assert_eq!(orphans(&house, 0).await?, [], "b may come back");
    house.cluster.node(0).stop().await?;
    forget_peers(&house, 0)?;
    house.cluster.node(0).start().await?;
    let found = only_orphan(&house, 0, OrphanState::Orphan).await?;
    assert_eq!(found.kind(), OrphanKind::Deletion);
    let a = house.client(0).await?;
    let adopt = AdoptOrphanRequest { uuid: found.uuid.clone(), ..AdoptOrphanRequest::default() };
    assert_eq!(reason(&a.orphans().adopt(adopt).await.expect_err("there is nothing to adopt")), "NOT_ADOPTABLE");
    answer(a.orphans().delete(delete_orphan(&found.uuid, &[])).await)?;
    let info = answer(a.node().info(NodeInfoRequest {}).await)?;
    assert_eq!(info.pending_deletions, []);
    assert_eq!(orphans(&house, 0).await?, []);
    Ok(())
}

/// Nothing makes such a thing but this test: it is found all the same, page by page, and hosts are let go.
#[tokio::test]
async fn a_volume_that_hosts_see_without_an_engine_is_found_and_taken_from_them() -> anyhow::Result<()> {
    let strangers: Vec<String> = (1..=3).map(|number| Uuid::from_u128(number << 64 | 1).to_string()).collect();
    let mut house = House::prepare(&["a"])?;
    let shows = format!("ASHLAR_SHOW_STRANGERS={}", strangers.join(","));
    house.cluster.node(0).launch_with(vec!["env".to_owned(), shows]);
    house.cluster.start().await?;
    let (host, address) = (Host::new()?, house.cluster.nodes()[0].addresses().nvmf);
    let sees = |volume: &str| {
        let nqn = format!("nqn.2026-01.io.ashlar:volume:{volume}");
        host.run(move || async move {
            let connected = Controller::connect(address, &nqn, Options::default()).await;
            let is_seen = connected.is_ok();
            if let Ok(controller) = connected {
                controller.disconnect().await;
            }
            Ok(is_seen)
        })
    };
    ensure!(sees(&strangers[0]).await? && !sees(&Uuid::nil().to_string()).await?);

    let client = house.client(0).await?;
    let page =
        async |page_token: String| answer(client.orphans().list(ListOrphansRequest { page_size: 2, page_token }).await);
    let first = page(String::new()).await?;
    let second = page(first.next_page_token.clone()).await?;
    assert_eq!((first.orphans.len(), second.next_page_token.as_str()), (2, ""));
    let found: Vec<_> = first.orphans.iter().chain(&second.orphans).collect();
    assert_eq!(found.iter().map(|orphan| &orphan.uuid).collect::<Vec<_>>(), strangers.iter().collect::<Vec<_>>());
    for orphan in found {
        assert_eq!((orphan.kind(), orphan.state()), (OrphanKind::Export, OrphanState::Orphan));
    }
    let status = client.orphans().list(ListOrphansRequest { page_size: 2, page_token: "00".to_owned() }).await;
    assert_eq!(status.expect_err("no token").code(), Code::InvalidArgument);
    let text = said(&house.ashlar(0, &["orphan", "list"])?);
    ensure!(strangers.iter().all(|stranger| text.contains(&format!("export {stranger}"))), "{text}");

    let uuid = strangers[0].clone();
    let adopt = AdoptOrphanRequest { uuid: uuid.clone(), ..AdoptOrphanRequest::default() };
    assert_eq!(reason(&client.orphans().adopt(adopt).await.expect_err("there is nothing to adopt")), "NOT_ADOPTABLE");
    for _ in 0..2 {
        let output = house.ashlar(0, &["orphan", "delete", &uuid, "--kind", "export"])?;
        ensure!(output.status.success(), "{}", said(&output));
    }
    ensure!(!sees(&uuid).await? && sees(&strangers[1]).await?);
    assert_eq!(orphans(&house, 0).await?.len(), 2);
    Ok(())
}

/// Deletes an lvol of a store that is not open.
async fn delete_lvol(path: std::path::PathBuf, uuid: Uuid) -> anyhow::Result<()> {
    let work = move || async move {
        let store = lvol::Store::open(Disk::open(&path, &DiskOptions::default())?).await?;
        store.delete(uuid).await?;
        Ok(store.close().await?)
    };
    Host::new()?.run(work).await
}

#[tokio::test]
async fn snapshots_without_a_head_are_found_and_go() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 256 * MIB).await?;
    let volume = house.create_volume("v", 16 * MIB, &["a"]).await?;
    let (host, address) = (Host::new()?, house.cluster.nodes()[0].addresses().nvmf);
    host.write(address, &export_of(&volume)?.nqn, 0, 7, 1 << 20).await?;
    for name in ["one", "two"] {
        let output = house.ashlar(0, &["snapshot", "create", "v", "--name", name])?;
        ensure!(output.status.success(), "{}", said(&output));
    }
    house.cluster.node(0).stop().await?;
    let folder = house.cluster.nodes()[0].folder().to_owned();
    for kind in ["volumes", "engines", "registry"] {
        fs::remove_dir_all(folder.join("state").join(kind))?;
    }
    let replica = volume.replicas[0].replica_uuid.clone();
    delete_lvol(folder.join("main.img"), replica.parse()?).await?;
    house.cluster.node(0).start().await?;
    let found = only_orphan(&house, 0, OrphanState::Orphan).await?;
    assert_eq!((found.kind(), &found.uuid), (OrphanKind::Remains, &replica));
    ensure!(found.used_bytes >= 1 << 20 && found.since_unix_ms > 0, "{found:?}");
    answer(house.client(0).await?.orphans().delete(delete_orphan(&replica, &[])).await)?;
    eventually("they are gone", async || {
        let lvols = answer(house.client(0).await?.lvols().list(proto::v1::ListLvolsRequest::default()).await)?.lvols;
        Ok(lvols.is_empty() && orphans(&house, 0).await?.is_empty())
    })
    .await
}
