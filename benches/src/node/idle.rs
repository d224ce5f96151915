//! A daemon that nobody wants anything of.

use super::stage::Stage;
use super::{Plan, process};
use crate::report::{Row, Target};

pub(super) async fn measure(stage: &mut Stage, plan: &Plan) -> anyhow::Result<Vec<Row>> {
    // What making the volumes took does not count.
    stage.stop().await?;
    stage.start().await?;
    let pid = stage.pid()?;
    process::settle(pid).await?;
    let used = process::watch(pid, plan.idle).await?;
    let each = process::resident(pid)? * 1024.0 / stage.volumes as f64;
    Ok(vec![
        Row::alone("idle: share of a core", "%", used.share * 100.0)
            .target(Target::AtMost(0.1))
            .note("none is what is asked for; below 0.1 % is none"),
        Row::alone("idle: wake-ups a second, all threads", "1/s", used.wakeups).target(Target::AtMost(1.0)),
        Row::alone("idle: resident memory for each volume", "KiB", each)
            .target(Target::AtMost(256.0))
            .note("all of the process, shared out"),
    ])
}
