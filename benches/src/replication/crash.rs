//! The daemon of the engine is killed under load, and starts again.

use std::time::Instant;

use nvmf_initiator::load::{Job, Pattern};

use super::Plan;
use super::host::Host;
use super::stage::Stage;
use crate::report::{Row, Target};

const SIZE: u64 = 100 << 30;

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let mut stage = Stage::open(&plan.folder, 2 * SIZE).await?;
    let host = Host::new(stage.create_one(SIZE, 3).await?)?;
    let job = Job {
        rw: Pattern::RandWrite,
        block_size: 4096,
        depth: 32,
        // The load outlives the engine, and goes on with the next one.
        runtime: Some(plan.time * 2),
        ..Job::default()
    };
    let load = host.run(job);
    let crash = async {
        tokio::time::sleep(plan.time).await;
        stage.cluster.node(0).kill()?;
        let killed = Instant::now();
        let (started, served) = tokio::join!(stage.cluster.node(0).start(), host.served());
        started?;
        anyhow::Ok((served? - killed).as_secs_f64())
    };
    let (report, seconds) = tokio::join!(load, crash);
    let (report, seconds) = (report?, seconds?);
    stage.healthy().await?;
    let copied = stage.copied()?;
    let written = report.write.count;
    let note = format!("{written} random writes of 4 KiB in all, 3 replicas, sparse");
    let row = Row::alone("engine killed under load on 100 GiB: start to reads and writes served", "s", seconds);
    let compared = copied.compared as f64 / f64::from(1 << 20);
    Ok(vec![
        row.target(Target::AtMost(2.0)).note(note),
        Row::alone("… compared to settle, each of 2 replicas", "MiB", compared / copied.count.max(1) as f64)
            .target(Target::AtMost(1024.0))
            .note(format!("{} replicas settled, {} MiB sent", copied.count, copied.sent >> 20)),
    ])
}
