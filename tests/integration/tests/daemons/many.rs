//! What is asked of the data path does not grow with the number of volumes (L1).

use std::time::Instant;

use anyhow::ensure;
use integration::{House, MIB, PATIENCE, said};

use crate::deletion::failpoints::Failpoints;

const VOLUMES: usize = 30;
/// Messages to the only reactor, and what background work may send meanwhile: far fewer than one for each volume.
const FEW: usize = 6;

#[tokio::test]
async fn a_list_asks_each_reactor_once_however_many_volumes_there_are() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    let steps = Failpoints::of(&mut house, 0);
    house.cluster.start().await?;
    house.create_store(0, "main", 256 * MIB).await?;
    for number in 0..VOLUMES {
        house.create_volume(&format!("v{number}"), 16 * MIB, &[]).await?;
    }
    let client = house.client(0).await?;
    let begun = Instant::now();
    // What making the volumes has left to be looked at is over at some time; what a list asks is always there.
    loop {
        steps.arm("count", 0)?;
        let listed = client.list_volumes().await?.len();
        let passed = steps.disarm()?;
        ensure!(listed == VOLUMES, "{listed}");
        ensure!(!passed.is_empty(), "it asks somebody");
        if passed.len() <= FEW {
            break;
        }
        ensure!(begun.elapsed() < PATIENCE, "a list takes {} steps: {passed:?}", passed.len());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let shown = said(&house.ashlar(0, &["volume", "list"])?);
    ensure!(shown.lines().count() == VOLUMES + 1, "{shown}");
    Ok(())
}
