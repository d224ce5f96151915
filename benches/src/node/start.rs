//! From the start of the process to volumes that are served.

use super::Plan;
use super::stage::{Stage, Started};
use crate::report::{Row, Target, median};

const START: Target = Target::AtMost(5.0);

pub(super) async fn measure(stage: &mut Stage, plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let (mut stops, mut clean, mut killed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.repeat {
        stops.push(stage.stop().await?);
        clean.push(stage.start().await?);
        stage.kill()?;
        killed.push(stage.start().await?);
    }
    let mut all = rows("start after a stop in order", &clean);
    all.extend(rows("start after a kill", &killed));
    all.push(Row::alone("stop in order", "s", median(&stops)).target(Target::AtMost(20.0)).note("the daemon's limit"));
    Ok(all)
}

fn rows(case: &str, starts: &[Started]) -> Vec<Row> {
    let of = |what: fn(&Started) -> f64| median(&starts.iter().map(what).collect::<Vec<_>>());
    vec![
        Row::alone(format!("{case}: until ready"), "s", of(|start| start.ready)).target(START),
        Row::alone(format!("{case}: until every volume is served"), "s", of(|start| start.served)).target(START),
    ]
}
