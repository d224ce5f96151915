//! A full store: an error that says so, nothing lost, and the other volumes go on (I32).

use anyhow::{Context, ensure};
use cli::client::answer;
use integration::{Host, House, MIB, attach, export_of};
use nvmf_initiator::{CommandError, Status};
use proto::v1::{CreateVolumeRequest, Volume};
use reactor::Slice;

const STEP: u64 = MIB;

async fn volume_in(house: &House, name: &str, store: &str) -> anyhow::Result<Volume> {
    let request = CreateVolumeRequest {
        name: name.to_owned(),
        size_bytes: 1024 * MIB,
        store: store.to_owned(),
        ..CreateVolumeRequest::default()
    };
    answer(house.client(0).await?.volumes().create(request).await)?;
    house.wait_until_healthy(name).await
}

fn pattern(at: u64) -> Vec<u8> {
    // Never zero, so that what was not written differs.
    vec![(at / STEP % 255) as u8 + 1; STEP as usize]
}

#[tokio::test]
async fn a_full_store_is_capacity_exceeded_at_the_host() -> anyhow::Result<()> {
    let house = House::open(&["a"], 512 * MIB).await?;
    house.create_store(0, "small", 64 * MIB).await?;
    let neighbour = volume_in(&house, "neighbour", "small").await?;
    let elsewhere = volume_in(&house, "elsewhere", "main").await?;
    let filler = volume_in(&house, "filler", "small").await?;
    let address = house.cluster.nodes()[0].addresses().nvmf;
    let host = Host::new()?;
    let neighbour = export_of(&neighbour)?.nqn.clone();
    let elsewhere = export_of(&elsewhere)?.nqn.clone();
    host.write(address, &neighbour, 0, 1, 64 << 10).await?;

    let nqn = export_of(&filler)?.nqn.clone();
    let written = host
        .run(move || async move {
            let controller = attach(address, &nqn).await?;
            let mut at = 0;
            let error = loop {
                match controller.write(at, Slice::from(&pattern(at)[..]), false).await {
                    Ok(()) => at += STEP,
                    Err(error) => break error,
                }
                ensure!(at < 128 * MIB, "more fits than there is room for");
            };
            ensure!(matches!(error, CommandError::Status { status: Status::CapacityExceeded, .. }), "{error}");
            // Reads, overwrites of what is there and flushes go on.
            controller.write(0, Slice::from(&pattern(0)[..]), false).await?;
            controller.flush().await?;
            for at in (0..at).step_by(STEP as usize) {
                ensure!(controller.read(at, STEP as usize).await?[..] == pattern(at)[..], "wrong at {at}");
            }
            // Space that is given back can be used again.
            controller.deallocate(&[(0, at / 2)]).await?;
            controller.flush().await?;
            controller.write(at, Slice::from(&pattern(at)[..]), false).await.context("after giving space back")?;
            Ok(at)
        })
        .await
        .with_context(|| house.logs())?;
    ensure!(written >= 32 * MIB, "only {written} bytes fit into a store of 64 MiB");

    host.write(address, &neighbour, 0, 2, 64 << 10).await.context("an overwrite in the same store")?;
    assert_eq!(host.read(address, &neighbour, 0, 64 << 10).await?, vec![2; 64 << 10]);
    host.write(address, &elsewhere, 0, 3, 1 << 20).await.context("a write in another store")?;
    house.wait_until_healthy("filler").await?;
    Ok(())
}
