//! Stores that grow and have limits, while a volume in them is used.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::ensure;
use cli::client::answer;
use integration::{Host, House, MIB, PATIENCE, export_of, said};
use proto::v1::{
    CreateStoreRequest, CreateVolumeRequest, DeleteStoreRequest, GetStoreRequest, GrowStoreRequest,
    SetStoreLimitsRequest, Store, StoreState,
};
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

/// The file of one store is locked by somebody else, for which the daemon waits some seconds: as if its disk hung.
#[tokio::test]
async fn a_store_whose_making_hangs_holds_up_no_other() -> anyhow::Result<()> {
    let house = House::open(&["a"], 64 * MIB).await?;
    let path = |name: &str| house.cluster.nodes()[0].folder().join(name).display().to_string();
    let create = |name: &str, path: &str| {
        let request = CreateStoreRequest {
            name: name.to_owned(),
            path: path.to_owned(),
            size_bytes: 64 * MIB,
            ..CreateStoreRequest::default()
        };
        let client = house.client(0);
        async move { Ok::<_, anyhow::Error>(client.await?.stores().create(request).await) }
    };
    let held = File::create(path("slow"))?;
    held.set_len(64 * MIB)?;
    held.lock()?;
    let client = house.client(0).await?;
    let request = CreateStoreRequest { name: "slow".to_owned(), path: path("slow"), ..CreateStoreRequest::default() };
    let slow = tokio::spawn(async move { client.stores().create(request).await });
    let limit = Instant::now() + PATIENCE;
    let client = house.client(0).await?;
    while client.stores().get(GetStoreRequest { store: "slow".to_owned() }).await.is_err() {
        ensure!(Instant::now() < limit && !slow.is_finished(), "it is not being made");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    // Its name and path are taken.
    let status = create("other", &path("slow")).await?.expect_err("the same path");
    assert_eq!(proto::error::info(&status).expect("details").reason, "PATH_IN_USE");
    let status = client.stores().delete(DeleteStoreRequest { store: "slow".to_owned(), ..Default::default() }).await;
    assert_eq!(status.expect_err("being made").code(), Code::Unavailable, "I42");
    // Everything else goes on: while one waits for the other, it gives up before the lock is released.
    create("other", &path("other")).await?.map_err(anyhow::Error::from)?;
    answer(client.stores().delete(DeleteStoreRequest { store: "other".to_owned(), ..Default::default() }).await)?;
    house.create_volume("v", MIB, &["a"]).await?;
    drop(held);
    let slow = slow.await??.into_inner();
    assert_eq!((slow.state(), slow.reason.as_str()), (StoreState::Ready, ""));
    Ok(())
}

#[tokio::test]
async fn volumes_beyond_the_overcommit_limit_are_refused_with_the_figures() -> anyhow::Result<()> {
    let house = House::open(&["a"], 256 * MIB).await?;
    let output = house.ashlar(0, &["store", "set-limits", "main", "--overcommit", "100", "--reserve", "1MiB"])?;
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

#[tokio::test]
async fn a_store_is_made_with_its_limits_and_made_again_with_the_same_only() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    house.cluster.start().await?;
    let path = house.cluster.nodes()[0].folder().join("main.img").display().to_string();
    let create = |rest: &[&str]| {
        let place = ["store", "create", "main", "--path", &path, "--size", "64MiB", "--cluster-size", "16KiB"];
        house.ashlar(0, &[&place[..], rest].concat())
    };
    let too_much = create(&["--reserve", "64MiB"])?;
    ensure!(said(&too_much).contains("leaves nothing"), "{}", said(&too_much));
    // Rounded up to clusters.
    let limits = ["--overcommit", "150", "--reserve", "1000001"];
    for _ in 0..2 {
        let made = create(&limits)?;
        ensure!(made.status.success(), "{}", said(&made));
    }
    let made = store(&house).await?;
    let expected = (150, 1_015_808, 16 << 10);
    assert_eq!((made.overcommit_percent, made.reserve_bytes, made.cluster_size_bytes), expected);
    ensure!(create(&[])?.status.success(), "what is not given is not compared");

    let other = create(&["--overcommit", "100", "--reserve", "2MiB"])?;
    let text = said(&other);
    ensure!(text.contains("overcommit_percent is 150, asked for 100"), "{text}");
    ensure!(text.contains("reserve_bytes is 1015808, asked for 2097152"), "{text}");
    assert_eq!(store(&house).await?, made, "I30");

    // The same holds for a store that is taken in.
    ensure!(house.ashlar(0, &["store", "delete", "main"])?.status.success());
    let take_in = |rest: &[&str]| {
        let place = ["store", "create", "main", "--path", &path, "--cluster-size", "16KiB", "--uuid", &made.uuid];
        house.ashlar(0, &[&place[..], rest].concat())
    };
    let other = take_in(&["--overcommit", "100"])?;
    ensure!(said(&other).contains("overcommit_percent is 150, asked for 100"), "{}", said(&other));
    ensure!(store(&house).await.is_err(), "it is not taken in");
    let same = take_in(&limits)?;
    ensure!(same.status.success(), "{}", said(&same));
    assert_eq!(store(&house).await?, made);
    Ok(())
}
