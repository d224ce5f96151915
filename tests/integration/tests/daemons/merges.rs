//! A daemon killed in the middle of a deletion: it goes on, and every lvol reads as before (I26).

use std::path::Path;

use anyhow::{Context, ensure};
use cli::client::answer;
use integration::lvols::{Chain, make_chain};
use integration::{Host, House, MIB, run_ashlar, said};
use proto::v1::DeleteLvolRequest;
use serde_json::Value;

const SIZE: u64 = 32 * MIB;

/// In each cluster the child has some blocks: all of them have to be copied or moved.
async fn overlapping(house: &House, path: &Path) -> anyhow::Result<Chain> {
    let written = |layer: usize, block: u64| layer == 0 || block % 16 == layer as u64;
    let chain = make_chain(&Host::new()?, path, &["old", "doomed", "head"], SIZE, written).await?;
    let (path, uuid) = (path.display().to_string(), chain.store.to_string());
    let output = house.ashlar(0, &["store", "create", "main", "--path", &path, "--uuid", &uuid])?;
    ensure!(output.status.success(), "{}", said(&output));
    Ok(chain)
}

/// What is in the store of a daemon that does not run.
async fn at_rest(path: &Path) -> anyhow::Result<Value> {
    let limit = std::time::Instant::now() + integration::PATIENCE;
    loop {
        let output = run_ashlar(&["-o", "json", "store", "check", &path.display().to_string()])?;
        // The kernel lets go of the lock some time after the process.
        if output.status.code() == Some(8) && std::time::Instant::now() < limit {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            continue;
        }
        ensure!(output.status.code() == Some(0), "{}", said(&output));
        return Ok(serde_json::from_slice(&output.stdout)?);
    }
}

#[tokio::test]
async fn a_merge_goes_on_after_kills_in_the_middle_of_it() -> anyhow::Result<()> {
    let mut house = House::prepare(&["a"])?;
    house.cluster.start().await?;
    let path = house.cluster.nodes()[0].folder().join("main.img");
    let chain = overlapping(&house, &path).await?;
    let doomed = house.lvol("doomed").await?.uuid;
    let request = DeleteLvolRequest { lvol: "doomed".to_owned(), ..DeleteLvolRequest::default() };
    let answered = answer(house.client(0).await?.lvols().delete(request).await)?;
    ensure!(answered.remaining.is_some(), "it cannot be gone already");
    let id = format!("merge-{doomed}");
    let shown = house.ashlar(0, &["operation", "show", &id])?;
    ensure!(shown.status.success() && said(&shown).contains("kind       merge"), "{}", said(&shown));

    let mut in_the_middle = 0;
    for _ in 0..3 {
        house
            .wait_for_lvol(&doomed, |lvol| {
                lvol.and_then(|lvol| lvol.deletion.as_ref()).is_none_or(|deletion| deletion.percent > 3)
            })
            .await?;
        house.cluster.node(0).kill()?;
        let found = at_rest(&path).await?;
        in_the_middle += u32::from(found["store"]["lvols"] == 3);
        house.cluster.node(0).start().await?;
        if let Ok(lvol) = house.lvol(&doomed).await {
            let cancel = house.ashlar(0, &["lvol", "cancel-delete", &doomed])?;
            let text = said(&cancel);
            ensure!(!cancel.status.success() || lvol.deletion.is_none(), "{text}");
            ensure!(text.contains("can only go on") || text.contains("no lvol"), "{text}");
        }
    }
    ensure!(in_the_middle > 0, "no kill came before the end: the test has to have more to merge");
    // It may have ended with a run that could not say so.
    let watched = house.ashlar(0, &["operation", "watch", &id])?;
    ensure!(watched.status.success() || said(&watched).contains("there is no operation"), "{}", said(&watched));
    house.wait_for_lvol(&doomed, |lvol| lvol.is_none()).await?;
    for (name, content) in chain.names.iter().zip(&chain.contents).filter(|(name, _)| *name != "doomed") {
        assert!(house.exported(name)? == *content, "{name} reads differently");
    }
    // No orphan space either: all that is used is what the two have.
    let status = house.cluster.node(0).stop().await?;
    ensure!(status.success(), "{status}");
    let left = at_rest(&path).await?;
    assert_eq!((&left["store"]["lvols"], &left["findings"]), (&2.into(), &Value::Array(Vec::new())));
    let (size, free) = (left["store"]["size_bytes"].as_u64(), left["store"]["free_bytes"].as_u64());
    let used = size.zip(free).map(|(size, free)| size - free).context("numbers")?;
    // The hashes of the snapshot take a cluster once they are computed.
    assert!((2 * SIZE..=2 * SIZE + (64 << 10)).contains(&used), "{used}");
    Ok(())
}
