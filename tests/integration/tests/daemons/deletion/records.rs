//! Records of the state directory without those that belong to them (L5).

use std::fs;
use std::path::PathBuf;

use anyhow::ensure;
use cli::client::answer;
use integration::{Host, House, MIB, export_of, said};
use proto::v1::{DeleteOrphanRequest, Orphan, OrphanKind, OrphanState, Volume};

use super::left::{nothing_is_left, only_orphan, orphans};

fn record(house: &House, kind: &str, volume: &Volume) -> PathBuf {
    house.cluster.nodes()[0].folder().join("state").join(kind).join(format!("{}.json", volume.uuid))
}

/// Stops the daemon, does something to its records, and starts it.
async fn meanwhile(house: &mut House, change: impl FnOnce(&House) -> anyhow::Result<()>) -> anyhow::Result<()> {
    house.cluster.node(0).stop().await?;
    change(house)?;
    house.cluster.node(0).start().await
}

fn adopt(house: &House, orphan: &Orphan, more: &[&str]) -> anyhow::Result<()> {
    let output = house.ashlar(0, &[&["orphan", "adopt", orphan.uuid.as_str()], more].concat())?;
    ensure!(output.status.success(), "{}", said(&output));
    Ok(())
}

#[tokio::test]
async fn whichever_record_is_lost_the_others_bring_the_volume_back() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 256 * MIB).await?;
    let volume = house.create_volume("v", 16 * MIB, &["a"]).await?;
    let (host, address, nqn) =
        (Host::new()?, house.cluster.nodes()[0].addresses().nvmf, export_of(&volume)?.nqn.clone());
    host.write(address, &nqn, 0, 7, 4096).await?;

    meanwhile(&mut house, |house| Ok(fs::remove_file(record(house, "engines", &volume))?)).await?;
    let found = only_orphan(&house, 0, OrphanState::Orphan).await?;
    assert_eq!((found.kind(), &found.uuid), (OrphanKind::Volume, &volume.uuid));
    adopt(&house, &found, &[])?;
    assert_eq!(house.wait_until_healthy("v").await?.uuid, volume.uuid);
    assert_eq!(host.read(address, &nqn, 0, 4096).await?, vec![7; 4096]);

    meanwhile(&mut house, |house| Ok(fs::remove_file(record(house, "volumes", &volume))?)).await?;
    let found = only_orphan(&house, 0, OrphanState::Orphan).await?;
    assert_eq!((found.kind(), found.name.as_str()), (OrphanKind::Engine, "v"));
    adopt(&house, &found, &[])?;
    assert_eq!(house.wait_until_healthy("v").await?.replicas, volume.replicas);

    // A record that is there and cannot be read may say anything.
    let engine = record(&house, "engines", &volume);
    let good = fs::read(&engine)?;
    meanwhile(&mut house, |house| Ok(fs::write(record(house, "engines", &volume), "{")?)).await?;
    let found = only_orphan(&house, 0, OrphanState::Unknown).await?;
    let output = house.ashlar(0, &["orphan", "adopt", &found.uuid, "--without-node", "a"])?;
    ensure!(!output.status.success() && said(&output).contains("cannot be read"), "{}", said(&output));
    let output = house.ashlar(0, &["orphan", "delete", &found.uuid])?;
    ensure!(!output.status.success(), "{}", said(&output));
    meanwhile(&mut house, |_| Ok(fs::write(&engine, good)?)).await?;
    house.wait_until_healthy("v").await?;
    assert_eq!(orphans(&house, 0).await?, []);

    // Both: what is left is who was in sync, and the replica.
    let forget = |house: &House| {
        fs::remove_file(record(house, "volumes", &volume))?;
        Ok(fs::remove_file(record(house, "engines", &volume))?)
    };
    meanwhile(&mut house, forget).await?;
    let found = orphans(&house, 0).await?;
    let kinds: Vec<_> = found.iter().map(|found| (found.kind(), found.state())).collect();
    let sure = OrphanState::Orphan;
    assert_eq!(kinds, [(OrphanKind::Replica, sure), (OrphanKind::Membership, sure)]);
    let output = house.ashlar(0, &["orphan", "adopt", &found[1].uuid])?;
    ensure!(!output.status.success() && said(&output).contains("name"), "{}", said(&output));
    adopt(&house, &found[1], &["--name", "again"])?;
    house.wait_until_healthy("again").await?;
    assert_eq!(host.read(address, &nqn, 0, 4096).await?, vec![7; 4096]);
    assert_eq!(orphans(&house, 0).await?, []);

    // Or it all goes.
    meanwhile(&mut house, forget).await?;
    for found in orphans(&house, 0).await? {
        let request =
            DeleteOrphanRequest { uuid: found.uuid.clone(), kind: found.kind, ..DeleteOrphanRequest::default() };
        answer(house.client(0).await?.orphans().delete(request).await)?;
    }
    nothing_is_left(&house, 1).await
}
