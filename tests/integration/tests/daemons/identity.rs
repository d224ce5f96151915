//! Creating twice, and what stays the same: over a repeated request, an orderly restart, and a kill.

use std::net::SocketAddr;

use anyhow::Context;
use cli::client::answer;
use integration::{Host, House, MIB, attach, export_of, unversioned};
use proto::v1::{CreateVolumeRequest, ListReplicasRequest, Volume};
use tonic::Code;

const SIZE: u64 = 64 * MIB;

fn request() -> CreateVolumeRequest {
    CreateVolumeRequest { name: "v".to_owned(), size_bytes: SIZE, ..CreateVolumeRequest::default() }
}

/// Everything a host could tell a volume by.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    nqn: String,
    serial: String,
    model: String,
    nguid: [u8; 16],
    uuid: Option<[u8; 16]>,
    blocks: u64,
    block_size: u32,
}

async fn look(host: &Host, address: SocketAddr, nqn: &str) -> anyhow::Result<Seen> {
    let nqn = nqn.to_owned();
    host.run(move || async move {
        let controller = attach(address, &nqn).await?;
        let namespace = controller.namespace().context("no namespace")?;
        let identity = controller.identify();
        controller.disconnect().await;
        Ok(Seen {
            nqn,
            serial: identity.serial,
            model: identity.model,
            nguid: namespace.nguid,
            uuid: namespace.uuid,
            blocks: namespace.blocks,
            block_size: namespace.block_size,
        })
    })
    .await
}

fn without_history(mut volume: Volume) -> Volume {
    if let Some(engine) = &mut volume.engine {
        // Each start of an engine raises it.
        engine.epoch = 0;
    }
    unversioned(volume)
}

#[tokio::test]
async fn a_repeated_create_returns_the_same_volume() -> anyhow::Result<()> {
    // I30
    let house = House::open(&["a"], 512 * MIB).await?;
    let client = house.client(0).await?;
    let first = answer(client.volumes().create(request()).await)?;
    let second = answer(client.volumes().create(request()).await)?;
    assert_eq!(unversioned(first), unversioned(second));
    let replicas = answer(client.replicas().list(ListReplicasRequest::default()).await)?.replicas;
    assert_eq!(replicas.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_different_create_names_each_difference_and_changes_nothing() -> anyhow::Result<()> {
    // I30
    let house = House::open(&["a"], 512 * MIB).await?;
    let client = house.client(0).await?;
    let before = answer(client.volumes().create(request()).await)?;
    let other = CreateVolumeRequest { size_bytes: SIZE / 2, block_size_bytes: 512, ..request() };
    let status = client.volumes().create(other).await.expect_err("a conflict");
    assert_eq!(status.code(), Code::FailedPrecondition);
    let info = proto::error::info(&status).context("no details")?;
    assert_eq!(info.reason, "CONFLICT");
    assert_eq!(info.metadata["size_bytes"], format!("is {SIZE}, asked for {}", SIZE / 2));
    assert_eq!(info.metadata["block_size_bytes"], "is 4096, asked for 512");
    assert_eq!(unversioned(house.volume("v").await?), unversioned(before));
    Ok(())
}

#[tokio::test]
async fn a_store_is_created_once_too() -> anyhow::Result<()> {
    let house = House::open(&["a"], 512 * MIB).await?;
    // What it does at its disk meanwhile is not what it is.
    let still = |store: proto::v1::Store| proto::v1::Store { work: None, ..store };
    let again = house.create_store(0, "main", 512 * MIB).await?;
    let listed = answer(house.client(0).await?.stores().list(proto::v1::ListStoresRequest::default()).await)?.stores;
    assert_eq!(listed.into_iter().map(still).collect::<Vec<_>>(), [still(again)]);
    Ok(())
}

#[tokio::test]
async fn a_restart_brings_everything_back_as_it_was() -> anyhow::Result<()> {
    // I37
    let mut house = House::open(&["a"], 512 * MIB).await?;
    let host = Host::new()?;
    let before = house.create_volume("v", SIZE, &[]).await?;
    let address = house.cluster.nodes()[0].addresses().nvmf;
    let nqn = export_of(&before)?.nqn.clone();
    let seen = look(&host, address, &nqn).await?;
    assert_eq!(seen.uuid.map(uuid::Uuid::from_bytes).map(|uuid| uuid.to_string()), Some(before.uuid.clone()));
    host.write(address, &nqn, 8192, 7, 64 << 10).await?;

    let status = house.cluster.node(0).stop().await?;
    assert!(status.success(), "{status}\n{}", house.logs());
    house.cluster.node(0).start().await?;
    let after = house.wait_until_healthy("v").await?;
    assert_eq!(without_history(after), without_history(before.clone()));
    assert_eq!(look(&host, address, &nqn).await?, seen);
    assert_eq!(host.read(address, &nqn, 8192, 64 << 10).await?, vec![7; 64 << 10]);

    house.cluster.node(0).kill()?;
    house.cluster.node(0).start().await?;
    let after = house.wait_until_healthy("v").await?;
    assert_eq!(without_history(after), without_history(before));
    assert_eq!(look(&host, address, &nqn).await?, seen);
    assert_eq!(host.read(address, &nqn, 8192, 64 << 10).await?, vec![7; 64 << 10]);
    Ok(())
}

#[tokio::test]
async fn discovery_names_the_volume_and_where_it_is() -> anyhow::Result<()> {
    let house = House::open(&["a"], 512 * MIB).await?;
    let volume = house.create_volume("v", SIZE, &[]).await?;
    let addresses = house.cluster.nodes()[0].addresses();
    let host = Host::new()?;
    for address in [addresses.discovery, addresses.nvmf] {
        let entries =
            host.run(move || async move {
                Ok(nvmf_initiator::discover(address, &nvmf_initiator::Options::default()).await?)
            })
            .await?;
        let found: Vec<_> = entries.iter().map(|entry| (entry.subsystem_nqn.as_str(), entry.address)).collect();
        assert_eq!(found, [(export_of(&volume)?.nqn.as_str(), addresses.nvmf)], "from {address}");
    }
    Ok(())
}
