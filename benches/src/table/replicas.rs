//! What a second and a third replica cost: one local, the others over loopback, all behind one reactor.

use super::{Plan, against, in_turns};
use crate::contestant::{Case, Contestant, Kind, load_reactor};
use crate::report::{Row, Target};

/// Of one replica's IOPS.
const TWO_READ: Target = Target::RatioAtLeast(0.9);
const TWO_WRITE: Target = Target::RatioAtLeast(0.45);
const THREE_WRITE: Target = Target::RatioAtLeast(0.3);

/// Microseconds of a write at depth 1, and microseconds over one replica's.
const TWO_LATENCY: Target = Target::AtMost(30.0);
const THREE_LATENCY: Target = Target::MoreByAtMost(35.0);

pub(super) fn measure(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let [one, two, three] = [Kind::Volume, Kind::Two, Kind::Three].map(Contestant::start);
    let (one, two, three) = (one?, two?, three?);
    let load = load_reactor()?;
    let mut rows = Vec::new();
    for writes in [false, true] {
        let case = Case::small(writes, 32);
        let figures = in_turns(plan, &load.handle(), &[(&one, case), (&two, case), (&three, case)])?;
        let (second, third) = if writes { (TWO_WRITE, THREE_WRITE) } else { (TWO_READ, Target::None) };
        rows.push(against(format!("{}, 2 replicas against 1", case.name()), &figures[1], &figures[0]).target(second));
        rows.push(against(format!("{}, 3 replicas against 1", case.name()), &figures[2], &figures[0]).target(third));
    }
    let case = Case::small(true, 1);
    let figures = in_turns(plan, &load.handle(), &[(&one, case), (&two, case), (&three, case)])?;
    for (replicas, target) in [(2, TWO_LATENCY), (3, THREE_LATENCY)] {
        let name = format!("{}, {replicas} replicas: p50 against 1", case.name());
        let ours = &figures[replicas - 1];
        rows.push(Row::compared(name, "µs", ours.p50_us, figures[0].p50_us).target(target).note(ours.costs()));
    }
    Ok(rows)
}
