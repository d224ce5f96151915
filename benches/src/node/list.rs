//! A list of all volumes.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::ensure;
use cli::cluster::program;

use super::Plan;
use super::stage::Stage;
use crate::report::{Row, Target, median};

const QUICK: Target = Target::AtMost(50.0);

pub(super) async fn measure(stage: &Stage, plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let client = stage.client().await?;
    let mut calls = Vec::new();
    for _ in 0..plan.often {
        let begun = Instant::now();
        let volumes = client.list_volumes().await?.len();
        calls.push(milliseconds(begun));
        ensure!(volumes == stage.volumes, "the list has {volumes} volumes, not {}", stage.volumes);
    }
    let ashlar = program("ashlar")?;
    let mut commands = Vec::new();
    for _ in 0..plan.often {
        let mut command = Command::new(&ashlar);
        command.args(["--server", &stage.server(), "volume", "list"]).stdin(Stdio::null()).stderr(Stdio::inherit());
        let begun = Instant::now();
        let output = command.output()?;
        commands.push(milliseconds(begun));
        let lines = String::from_utf8_lossy(&output.stdout).lines().count();
        ensure!(output.status.success() && lines > stage.volumes, "`ashlar volume list` has {lines} lines");
    }
    Ok(vec![
        Row::alone("list of all volumes, over the API", "ms", median(&calls)).target(QUICK).note("all pages"),
        Row::alone("list of all volumes, `ashlar volume list`", "ms", median(&commands))
            .target(QUICK)
            .note("from the start of the process to its end"),
    ])
}

pub(super) fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
