//! Many at once: idle connections, and one busy volume beside many that have little to do.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use block_device::{BlockDevice, Geometry, MemoryDevice};
use host_load::{Job, Pattern};
use nvmf_initiator::{Controller, load};
use nvmf_target::identity::NAMESPACE_ID;
use nvmf_target::{
    AnaState, Directory, Hosts, Identity, Limits, Listener, ListenerOptions, Subsystem, SubsystemOptions,
};
use reactor::{Handle, Reactor};
use uuid::Uuid;

use super::Plan;
use crate::contestant::{SERVER_CORE, WARM_UP, config, load_reactor};
use crate::report::{Row, Target, median};
use crate::thread::{block_on, processor_time};

/// Connections of the idle measurement: controllers with an admin queue and three for I/O each.
const CONTROLLERS: usize = 300;
const IO_QUEUES: u16 = 3;

/// Share of a core, in percent, that is none.
const IDLE: Target = Target::AtMost(0.5);

/// Volumes of the fairness measurement, of which one has work for all, and its depth.
const VOLUMES: usize = 100;
const GREEDY_DEPTH: u16 = 128;
const VOLUME_SIZE: u64 = 4 << 20;
const FAIR: Target = Target::RatioAtMost(3.0);

pub(super) fn measure(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let load = load_reactor()?;
    let load = load.handle();
    Ok(vec![idle(plan, &load, true)?, idle(plan, &load, false)?, fairness(plan, &load)?])
}

/// What a target with many connections and nothing to do uses of its core, while hosts say that they are alive, or say nothing.
fn idle(plan: &Plan, load: &Handle, alive: bool) -> anyhow::Result<Row> {
    let server = Reactor::start(config("server", SERVER_CORE)).context("no reactor for the server")?;
    let (address, names) = block_on(server.handle().call(|| async { serve() }))??;
    let busy = server.handle();
    // Longer than two keep alives are apart.
    let time = (plan.time * 5).max(Duration::from_secs(5));
    let share = block_on(load.call(move || async move {
        let mut controllers = Vec::new();
        for number in 0..CONTROLLERS {
            let name = &names[number % names.len()];
            let job = Job { jobs: IO_QUEUES, ..Job::default() };
            let mut options = load::options(&job);
            if !alive {
                options.keep_alive = Duration::ZERO;
            }
            controllers.push(Controller::connect(address, name, options).await?);
        }
        // What connecting costs is over then.
        reactor::sleep(Duration::from_secs(1)).await;
        let (before, start) = (processor_time(&busy).await?, reactor::now());
        reactor::sleep(time).await;
        let (used, elapsed) = ((processor_time(&busy).await? - before).total, reactor::now() - start);
        for controller in controllers {
            controller.disconnect().await;
        }
        anyhow::Ok(used.as_secs_f64() / elapsed.as_secs_f64())
    }))??;
    let connections = CONTROLLERS * (usize::from(IO_QUEUES) + 1);
    let (how, note) = match alive {
        true => ("", format!("with a keep alive of each of {CONTROLLERS} hosts every 2.5 s")),
        false => (", no keep alives", "hosts with a time-out of none".to_owned()),
    };
    let row = Row::alone(format!("idle, {connections} connections{how}: share of a core"), "%", share * 100.0);
    Ok(row.target(IDLE).note(note))
}

/// The 99th percentile of volumes that read at depth 1, with and without one beside them at a great depth.
fn fairness(plan: &Plan, load: &Handle) -> anyhow::Result<Row> {
    let server = Reactor::start(config("server", SERVER_CORE)).context("no reactor for the server")?;
    let (address, names) = block_on(server.handle().call(|| async { serve() }))??;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..plan.repeat {
        alone.push(p99_of_modest(load, address, &names, plan.time, false)?);
        beside.push(p99_of_modest(load, address, &names, plan.time, true)?);
    }
    let case = format!("{} volumes at depth 1 beside one at {GREEDY_DEPTH}: p99 against without it", VOLUMES - 1);
    let row = Row::compared(case, "µs", median(&beside) / 1000.0, median(&alone) / 1000.0);
    Ok(row.target(FAIR).note("4 KiB reads of plain memory, all on one reactor"))
}

/// Nanoseconds: the median over the volumes of each one's 99th percentile.
fn p99_of_modest(
    load: &Handle,
    address: SocketAddr,
    names: &[String],
    time: Duration,
    greedy: bool,
) -> anyhow::Result<f64> {
    let names = names.to_vec();
    block_on(load.call(move || async move {
        let mut jobs = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let is_greedy = index == 0;
            if is_greedy && !greedy {
                continue;
            }
            let depth = if is_greedy { GREEDY_DEPTH } else { 1 };
            let job =
                Job { rw: Pattern::RandRead, block_size: 4096, depth, runtime: Some(time + WARM_UP), ..Job::default() };
            let controller = Controller::connect(address, name, load::options(&job)).await?;
            jobs.push((is_greedy, reactor::spawn(async move { one(&controller, &job).await })));
        }
        let mut p99 = Vec::new();
        for (is_greedy, job) in jobs {
            let measured = job.await.context("a load ended early")??;
            if !is_greedy {
                p99.push(measured);
            }
        }
        Ok(median(&p99))
    }))?
}

async fn one(controller: &Rc<Controller>, job: &Job) -> anyhow::Result<f64> {
    let report = host_load::run(controller, job, None).await?;
    controller.disconnect().await;
    anyhow::ensure!(report.is_clean(), "the load met errors:\n{report}");
    Ok(report.read.latency.p99 as f64)
}

/// Volumes in plain memory, each a subsystem of its own.
fn serve() -> anyhow::Result<(SocketAddr, Vec<String>)> {
    let directory = Directory::new();
    let mut subsystems = Vec::new();
    let mut names = Vec::new();
    for number in 0..VOLUMES {
        let identity = Identity::of_volume(Uuid::from_u128(1000 + number as u128));
        let options = SubsystemOptions { identity: identity.clone(), hosts: Hosts::Any, limits: Limits::default() };
        let subsystem = Subsystem::start(&directory, options)?;
        let device: Rc<dyn BlockDevice> = Rc::new(MemoryDevice::new(Geometry::new(VOLUME_SIZE, 4096)?)?);
        subsystem.attach(NAMESPACE_ID, device, &identity, AnaState::Optimized);
        subsystems.push(subsystem);
        names.push(identity.nqn);
    }
    let listener = Listener::bind(&directory, ListenerOptions::new(([127, 0, 0, 1], 0).into()))?;
    let address = listener.local_address();
    reactor::spawn(async move {
        let _kept = (subsystems, listener);
        std::future::pending::<()>().await;
    });
    Ok((address, names))
}
