//! What a second reactor adds: two volumes on a reactor each, against one alone.
//!
//! Load and servers share the cores of a small machine, so what counts is not IOPS but what the servers' threads do with a second of processor
//! time: what the load costs is not in it.

use std::time::Duration;

use reactor::{Config, Handle};

use super::Plan;
use crate::contestant::{Case, Contestant, Kind, LOAD_CORE, SERVER_CORE, Sample, config};
use crate::report::{Row, Target, median};

/// Two reactors against one, per second of processor time.
const TWICE: Target = Target::RatioAtLeast(1.8);

/// A server, and the load on the other core.
struct Pair {
    server: Contestant,
    load: reactor::Reactor,
}

impl Pair {
    fn start(server: usize, load: usize) -> anyhow::Result<Self> {
        // A server that spins has its core for itself, and would count that.
        let asleep = |name: &str, core| Config { busy_poll: Duration::ZERO, ..config(name, core) };
        let server = Contestant::start_on(Kind::Volume, asleep("server", server))?;
        Ok(Self { server, load: reactor::Reactor::start(asleep("load", load))? })
    }
}

pub(super) fn measure(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let pairs = [Pair::start(SERVER_CORE, LOAD_CORE)?, Pair::start(LOAD_CORE, SERVER_CORE)?];
    let mut rows = Vec::new();
    for writes in [false, true] {
        let case = Case::small(writes, 32);
        let (mut one, mut two) = (Vec::new(), Vec::new());
        for _ in 0..plan.repeat {
            one.push(a_second(&pairs[0].server.measure(&pairs[0].load.handle(), case, plan.time)?));
            two.push(together(&pairs, case, plan.time)?);
        }
        let name = format!("{}, memory volumes: 2 reactors against 1, per second of processor time", case.name());
        let row = Row::compared(name, "IOPS", median(&two), median(&one)).target(TWICE);
        rows.push(row.note("of the servers' threads; each has its load on the other core"));
    }
    Ok(rows)
}

/// What both do at the same time, each with a second of its own.
fn together(pairs: &[Pair; 2], case: Case, time: Duration) -> anyhow::Result<f64> {
    let loads: [Handle; 2] = [pairs[0].load.handle(), pairs[1].load.handle()];
    std::thread::scope(|scope| {
        let threads =
            pairs.iter().zip(&loads).map(|(pair, load)| scope.spawn(move || pair.server.measure(load, case, time)));
        let threads: Vec<_> = threads.collect();
        let mut sum = 0.0;
        for thread in threads {
            let sample = thread.join().map_err(|_| anyhow::anyhow!("a measurement panicked"))??;
            sum += a_second(&sample);
        }
        Ok(sum)
    })
}

/// I/Os in a second of the server's processor time.
fn a_second(sample: &Sample) -> f64 {
    1e9 / sample.server_ns
}
