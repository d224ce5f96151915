//! Stores that grow and have limits, while a volume in them is used.

use anyhow::ensure;
use cli::client::answer;
use integration::{Host, House, MIB, export_of, said};
use proto::v1::{CreateVolumeRequest, GetStoreRequest, GrowStoreRequest, SetStoreLimitsRequest, Store};
use tonic::Code;

fn grow(size_bytes: u64) -> GrowStoreRequest {
    GrowStoreRequest { store: "main".to_owned(), size_bytes }
}

async fn store(house: &House) -> anyhow::Result<Store> {
    answer(house.client(0).await?.stores().get(GetStoreRequest { store: "main".to_owned() }).await)
}

#[tokio::test]
async fn a_store_grows_in_use_and_after_kills_in_the_middle_of_it() -> anyhow::Result<()> {
    let mut house = House::open(&["a"], 64 * MIB).await?;
    let volume = house.create_volume("v", 1024 * MIB, &["a"]).await?;
    let nqn = export_of(&volume)?.nqn.clone();
    let host = Host::new()?;
    let address = house.cluster.nodes()[0].addresses().nvmf;
    host.write(address, &nqn, 0, 1, MIB as usize).await?;
    let before = store(&house).await?;

    let smaller = house.client(0).await?.stores().grow(grow(32 * MIB)).await.expect_err("smaller");
    assert_eq!(smaller.code(), Code::InvalidArgument);
    let output = house.ashlar(0, &["store", "grow", "main", "--size", "96MiB"])?;
    ensure!(output.status.success(), "{}", said(&output));
    let grown = store(&house).await?;
    assert!(grown.disk_bytes == 96 * MIB && grown.size_bytes > before.size_bytes + 24 * MIB, "{grown:?}");
    assert_eq!(answer(house.client(0).await?.stores().grow(grow(96 * MIB)).await)?.size_bytes, grown.size_bytes, "I30");

    // Each time the request may have done nothing, all or part of it; the same one again does the rest (I26).
    for round in 1..6 {
        let (size, client) = ((96 + 32 * round) * MIB, house.client(0).await?);
        let request = tokio::spawn(async move { client.stores().grow(grow(size)).await });
        tokio::time::sleep(std::time::Duration::from_millis(2 * round)).await;
        house.cluster.node(0).kill()?;
        house.cluster.node(0).start().await?;
        // Whether it was answered is not what counts.
        drop(request.await?);
        house.wait_until_healthy("v").await?;
        assert_eq!(answer(house.client(0).await?.stores().grow(grow(size)).await)?.disk_bytes, size);
        host.write(address, &nqn, round * MIB, 1, MIB as usize).await?;
        let length = (round + 1) * MIB;
        assert!(host.read(address, &nqn, 0, length as usize).await?.iter().all(|byte| *byte == 1));
    }
    Ok(())
}

#[tokio::test]
async fn volumes_beyond_the_overcommit_limit_are_refused_with_the_figures() -> anyhow::Result<()> {
    let house = House::open(&["a"], 256 * MIB).await?;
    let output = house.ashlar(0, &["store", "limits", "main", "--overcommit", "100", "--reserve", "1MiB"])?;
    ensure!(output.status.success() && said(&output).contains("at most 100 %"), "{}", said(&output));
    house.create_volume("v", 64 * MIB, &["a"]).await?;
    let request = CreateVolumeRequest { name: "w".to_owned(), size_bytes: 512 * MIB, ..CreateVolumeRequest::default() };
    let status = house.client(0).await?.volumes().create(request).await.expect_err("beyond the limit");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let info = proto::error::info(&status).expect("details");
    assert_eq!((info.reason.as_str(), info.metadata["asked_bytes"].as_str()), ("OVERCOMMITTED", "536870912"));
    let too_much =
        SetStoreLimitsRequest { reserve_bytes: Some(512 * MIB), store: "main".to_owned(), ..Default::default() };
    let status = house.client(0).await?.stores().set_limits(too_much).await.expect_err("more than there is");
    assert_eq!(status.code(), Code::InvalidArgument);
    let now = store(&house).await?;
    assert_eq!((now.overcommit_percent, now.reserve_bytes, now.provisioned_bytes), (100, MIB, 64 * MIB));
    Ok(())
}
