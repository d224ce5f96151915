//! NVMe/TCP from the socket to the device: over nothing, and over a volume in memory, against the echo server.

use std::time::Duration;

use reactor::{Config, Handle};

use super::{Figures, Plan, against, in_turns};
use crate::contestant::{Case, Contestant, Kind, SERVER_CORE, config, load_reactor};
use crate::report::{Row, Target};

/// What is asked of a device that keeps nothing, and of a volume in memory, of the echo's IOPS.
const NULL: Target = Target::RatioAtLeast(0.8);
const VOLUME: Target = Target::RatioAtLeast(0.65);
const LARGE: Target = Target::RatioAtLeast(0.85);

/// Microseconds over the echo's latency, spinning and asleep.
const ADAPTIVE: Target = Target::MoreByAtMost(2.0);
const ASLEEP: Target = Target::MoreByAtMost(3.0);

/// Nanoseconds outside of the kernel, without a copy of the data: a null device copies nothing.
const USER: Target = Target::AtMost(200.0);

/// Allocations for an I/O that are none: connecting takes some hundred, and a run has hundreds of thousands of I/Os.
const NO_ALLOCATION: Target = Target::AtMost(0.005);

const DIGEST: Target = Target::RatioAtLeast(0.85);

/// Echo, null device and memory volume, set up alike.
struct Servers {
    echo: Contestant,
    null: Contestant,
    volume: Contestant,
}

impl Servers {
    fn start(config: &Config) -> anyhow::Result<Self> {
        let start = |kind| Contestant::start_on(kind, config.clone());
        Ok(Self { echo: start(Kind::Echo)?, null: start(Kind::Null)?, volume: start(Kind::Volume)? })
    }

    /// In this order.
    fn measure(&self, plan: &Plan, load: &Handle, case: Case) -> anyhow::Result<[Figures; 3]> {
        let figures = in_turns(plan, load, &[(&self.echo, case), (&self.null, case), (&self.volume, case)])?;
        Ok([figures[0], figures[1], figures[2]])
    }
}

pub(super) fn measure(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let load = load_reactor()?;
    let load = load.handle();
    let servers = Servers::start(&config("server", SERVER_CORE))?;
    let mut rows = throughput(plan, &load, &servers)?;
    rows.extend(large(plan, &load, &servers)?);
    rows.extend(latency(plan, &load, &servers, "adaptive", ADAPTIVE)?);
    rows.extend(digests(plan, &load, &servers.volume)?);
    drop(servers);
    let asleep = Servers::start(&Config { busy_poll: Duration::ZERO, ..config("server", SERVER_CORE) })?;
    rows.extend(latency(plan, &load, &asleep, "asleep", ASLEEP)?);
    Ok(rows)
}

fn throughput(plan: &Plan, load: &Handle, servers: &Servers) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (depth, connections) in [(32, 1), (128, 1), (32, 8)] {
        for writes in [false, true] {
            let case = Case { connections, ..Case::small(writes, depth) };
            let [echo, null, volume] = servers.measure(plan, load, case)?;
            let name = case.name();
            rows.push(against(format!("{name}, null device against echo"), &null, &echo).target(NULL));
            rows.push(against(format!("{name}, memory volume against echo"), &volume, &echo).target(VOLUME));
            if case == Case::small(false, 32) {
                let case = format!("{name}, null device: time outside of the kernel for a command");
                rows.push(Row::alone(case, "ns", null.server_user_ns).target(USER));
                let case = format!("{name}, memory volume: allocations for an I/O");
                rows.push(Row::alone(case, "", volume.allocations).target(NO_ALLOCATION));
            }
        }
    }
    Ok(rows)
}

/// 128 KiB. A write of that size takes another round trip (R2T), which an echo does not have.
fn large(plan: &Plan, load: &Handle, servers: &Servers) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for writes in [false, true] {
        let case = Case { block_size: 128 << 10, ..Case::small(writes, 32) };
        let [echo, null, volume] = servers.measure(plan, load, case)?;
        rows.push(against(format!("{}, null device against echo", case.name()), &null, &echo).target(LARGE));
        rows.push(against(format!("{}, memory volume against echo", case.name()), &volume, &echo));
    }
    Ok(rows)
}

fn latency(plan: &Plan, load: &Handle, servers: &Servers, how: &str, target: Target) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for writes in [false, true] {
        let case = Case::small(writes, 1);
        let [echo, _, volume] = servers.measure(plan, load, case)?;
        let case = format!("{}, {how}: p50, memory volume against echo", case.name());
        rows.push(Row::compared(case, "µs", volume.p50_us, echo.p50_us).target(target).note(volume.costs()));
    }
    Ok(rows)
}

fn digests(plan: &Plan, load: &Handle, volume: &Contestant) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for writes in [false, true] {
        let without = Case::small(writes, 32);
        let with = Case { data_digest: true, ..without };
        let figures = in_turns(plan, load, &[(volume, with), (volume, without)])?;
        let case = format!("{}, memory volume: data digest on against off", without.name());
        rows.push(against(case, &figures[0], &figures[1]).target(DIGEST));
    }
    Ok(rows)
}
