//! A daemon that somebody follows while nothing changes: what is not told is looked at every two seconds.

use anyhow::{Context, bail, ensure};
use cli::client::answer;
use proto::v1::{ChangeKind, WatchLvolsRequest, WatchReplicasRequest, WatchVolumesRequest};

use super::stage::Stage;
use super::{Plan, process};
use crate::report::{Row, Target};

/// Of a core, in percent, for a list that is looked at.
const LITTLE: Target = Target::AtMost(1.0);

pub(super) async fn measure(stage: &mut Stage, plan: &Plan) -> anyhow::Result<Vec<Row>> {
    // What making the volumes took does not count.
    stage.stop().await?;
    stage.start().await?;
    let (pid, client) = (stage.pid()?, stage.client().await?);
    process::settle(pid).await?;

    let mut changes = answer(client.patient_volumes().watch(WatchVolumesRequest::default()).await)?;
    let next = async || Ok(changes.message().await?.context("the watch ended")?.kind());
    let volumes = follow(pid, plan, stage.volumes, next).await.context("volumes")?;
    drop(changes);
    let mut changes = answer(client.patient_replicas().watch(WatchReplicasRequest::default()).await)?;
    let next = async || Ok(changes.message().await?.context("the watch ended")?.kind());
    let replicas = follow(pid, plan, stage.volumes, next).await.context("replicas")?;
    drop(changes);
    let mut changes = answer(client.transfers().watch(WatchLvolsRequest::default()).await)?;
    let next = async || Ok(changes.message().await?.context("the watch ended")?.kind());
    let lvols = follow(pid, plan, stage.volumes, next).await.context("lvols")?;

    let row = |what: &str, used: process::Usage| {
        Row::alone(format!("watched, nothing changes: {what}, share of a core"), "%", used.share * 100.0)
    };
    let looked_at = |used: process::Usage| format!("a look every 2 s, {:.1} ms each", used.share * 2000.0);
    Ok(vec![
        row("volumes", volumes).target(Target::AtMost(0.1)).note("changes are told, nothing is looked at"),
        row("replicas", replicas).target(LITTLE).note(looked_at(replicas)),
        row("lvols", lvols).target(LITTLE).note(looked_at(lvols)),
    ])
}

/// What the daemon uses while a list of `count` objects is followed. That it was is certain only if nothing comes.
async fn follow(
    pid: u32,
    plan: &Plan,
    count: usize,
    mut next: impl AsyncFnMut() -> anyhow::Result<ChangeKind>,
) -> anyhow::Result<process::Usage> {
    let mut listed = 0;
    while next().await? != ChangeKind::Listed {
        listed += 1;
    }
    ensure!(listed == count, "{listed} are listed, not {count}");
    tokio::select! {
        used = process::watch(pid, plan.idle) => used,
        changed = next() => bail!("something changes: {:?}", changed?),
    }
}
