//! Who is measured: each runs on a reactor of its own, all pinned to one core, and the load on the other. One that is not
//! being measured sleeps.

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use block_device::BlockDevice;
use host_load::{Host, Job, Pattern};
use nvmf_initiator::{Controller, Options, load};
use nvmf_target::identity::NAMESPACE_ID;
use nvmf_target::{
    AnaState, Directory, Hosts, Identity, Limits, Listener, ListenerOptions, Subsystem, SubsystemOptions,
};
use reactor::{Config, CountingAllocator, Handle, Reactor};
use uuid::Uuid;

use crate::device;
use crate::echo::{self, Reached, Shape};
use crate::thread::{ProcessorTime, block_on, processor_time};

/// The core of the servers, and that of the load.
pub(crate) const SERVER_CORE: usize = 0;
pub(crate) const LOAD_CORE: usize = 1;

/// How long a load has nothing to do before it sleeps: longer than any answer takes but those of a disk that stalls.
const LOAD_POLLS: Duration = Duration::from_millis(1);

/// Runs before each measurement, so that nobody is measured cold.
pub(crate) const WARM_UP: Duration = Duration::from_millis(300);

/// What stands behind the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing, not even the protocol: the limit.
    Echo,
    /// No protocol either, but a transfer of a disk for each request: the limit of a volume in a file.
    Relay,
    /// Our target over a device that keeps nothing.
    Null,
    /// Our target over plain memory.
    Memory,
    /// Our target over an engine with one local replica in a store in memory.
    Volume,
    /// The same with a second replica, over loopback.
    Two,
    /// The same with a second and a third.
    Three,
    /// Our target over an engine with one local replica in a store in a file.
    File,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Echo, Self::Null, Self::Memory, Self::Volume];

    /// Its name in reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Relay => "relay",
            Self::Null => "null device",
            Self::Memory => "plain memory",
            Self::Volume => "memory volume",
            Self::Two => "2 replicas",
            Self::Three => "3 replicas",
            Self::File => "file volume",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) writes: bool,
    pub(crate) block_size: u32,
    pub(crate) depth: u16,
    pub(crate) connections: u16,
    /// CRC-32C over all data, both ways.
    pub(crate) data_digest: bool,
}

impl Case {
    /// 4 KiB on one connection.
    pub(crate) const fn small(writes: bool, depth: u16) -> Self {
        Self { writes, block_size: 4096, depth, connections: 1, data_digest: false }
    }

    /// How reports call it.
    pub(crate) fn name(self) -> String {
        let what = if self.writes { "write" } else { "read" };
        let Self { block_size, depth, connections, .. } = self;
        format!("{} KiB {what}, {connections} × depth {depth}", block_size >> 10)
    }

    /// The load of this case.
    pub(crate) fn job(self, runtime: Duration) -> Job {
        Job {
            rw: if self.writes { Pattern::RandWrite } else { Pattern::RandRead },
            block_size: self.block_size,
            depth: self.depth,
            jobs: self.connections,
            runtime: Some(runtime),
            ..Job::default()
        }
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) iops: f64,
    pub(crate) p50_ns: f64,
    /// Processor time of the server's thread for each I/O.
    pub(crate) server_ns: f64,
    /// What of it was work outside of the kernel: what it spun is none.
    pub(crate) server_user_ns: f64,
    /// Processor time of the load's thread for each I/O.
    pub(crate) load_ns: f64,
    /// What the server's thread allocated for each I/O, connecting included.
    pub(crate) allocations: f64,
}

/// A server, ready to be measured.
pub(crate) struct Contestant {
    pub(crate) kind: Kind,
    server: Reactor,
    address: SocketAddr,
    nqn: String,
}

/// What a load and its server cost between two moments.
pub(crate) struct Costs {
    pub(crate) server: ProcessorTime,
    pub(crate) load: ProcessorTime,
    /// What the server spun, waiting for something to do.
    pub(crate) spun: Duration,
    pub(crate) allocations: u64,
}

impl Sample {
    pub(crate) fn new(driven: &Driven, costs: &Costs) -> Self {
        let count = driven.count.max(1) as f64;
        let per_io = |time: Duration| time.as_nanos() as f64 / count;
        Self {
            iops: driven.count as f64 / driven.elapsed.as_secs_f64(),
            p50_ns: driven.p50_ns as f64,
            server_ns: per_io(costs.server.total),
            server_user_ns: per_io(costs.server.user.saturating_sub(costs.spun)),
            load_ns: per_io(costs.load.total),
            allocations: costs.allocations as f64 / count,
        }
    }
}

/// How reactors of this run are set up, but for their core.
pub(crate) fn config(name: &str, core: usize) -> Config {
    // On both sides the same: what a machine is set to differs, and on loopback bbr halves large transfers.
    Config { name: name.to_owned(), core: Some(core), congestion: Some("cubic".to_owned()), ..Config::default() }
}

/// The reactor that all loads run on. It polls, as SPDK's perf does: what is measured is the server, and not how long the
/// load's core takes to wake up, which in a guest is some 40 µs.
pub(crate) fn load_reactor() -> anyhow::Result<Reactor> {
    let config = Config { busy_poll: LOAD_POLLS, ..config("load", LOAD_CORE) };
    Reactor::start(config).context("no reactor for the load")
}

impl Contestant {
    /// Starts the server.
    pub(crate) fn start(kind: Kind) -> anyhow::Result<Self> {
        Self::start_on(kind, config("server", SERVER_CORE))
    }

    /// Starts the server on a reactor that is set up so.
    pub(crate) fn start_on(kind: Kind, config: Config) -> anyhow::Result<Self> {
        if kind == Kind::Echo {
            let serve = || async { Ok((echo::serve(([127, 0, 0, 1], 0).into())?, String::new())) };
            return Self::start_with(kind, config, serve);
        }
        Self::start_over(kind, config, move || async move {
            match kind {
                Kind::Memory => device::memory().await,
                Kind::Volume => device::volume(0).await,
                Kind::Two => device::volume(1).await,
                Kind::Three => device::volume(2).await,
                Kind::Echo | Kind::Null => device::null(),
                Kind::File | Kind::Relay => anyhow::bail!("what is in a file needs the file: start_over, start_with"),
            }
        })
    }

    /// Starts a server of ours over what `make` makes on its reactor.
    pub(crate) fn start_over<F>(
        kind: Kind,
        config: Config,
        make: impl FnOnce() -> F + Send + 'static,
    ) -> anyhow::Result<Self>
    where
        F: Future<Output = anyhow::Result<Rc<dyn BlockDevice>>> + 'static,
    {
        let identity = Identity::of_volume(Uuid::from_u128(kind as u128 + 1));
        Self::start_with(kind, config, move || async move { Ok((serve(&identity, make().await?)?, identity.nqn)) })
    }

    /// Starts what `serve` serves on its reactor: where, and by which NQN if it has one.
    pub(crate) fn start_with<F>(
        kind: Kind,
        config: Config,
        serve: impl FnOnce() -> F + Send + 'static,
    ) -> anyhow::Result<Self>
    where
        F: Future<Output = anyhow::Result<(SocketAddr, String)>> + 'static,
    {
        let server = Reactor::start(config).context("no reactor for the server")?;
        let (address, nqn) = block_on(server.handle().call(serve))??;
        Ok(Self { kind, server, address, nqn })
    }

    /// Measures one case for `runtime`.
    pub(crate) fn measure(&self, load: &Handle, case: Case, runtime: Duration) -> anyhow::Result<Sample> {
        self.drive(load, case, WARM_UP)?;
        let server = self.server.handle();
        let times = || anyhow::Ok((block_on(processor_time(&server))?, block_on(processor_time(load))?));
        let allocated = || block_on(server.call(|| async { CountingAllocator::count() }));
        let spun = || self.server.stats().spun();
        let (before, spun_before, allocated_before) = (times()?, spun(), allocated()?);
        let driven = self.drive(load, case, runtime)?;
        let (allocated_after, spun_after, after) = (allocated()?, spun(), times()?);
        let costs = Costs {
            server: after.0 - before.0,
            load: after.1 - before.1,
            spun: spun_after - spun_before,
            allocations: allocated_after - allocated_before,
        };
        Ok(Sample::new(&driven, &costs))
    }

    fn drive(&self, load: &Handle, case: Case, runtime: Duration) -> anyhow::Result<Driven> {
        let (address, nqn, kind) = (self.address, self.nqn.clone(), self.kind);
        block_on(load.call(move || async move {
            match kind {
                Kind::Echo | Kind::Relay => drive_echo(address, case, runtime).await,
                _ => drive_target(address, &nqn, case, runtime).await,
            }
        }))?
    }

    /// Processor time of the server's thread while `connections` are open and idle for `time`, as a share of it.
    pub(crate) fn idle(&self, load: &Handle, connections: u16, time: Duration) -> anyhow::Result<f64> {
        let (address, nqn, server) = (self.address, self.nqn.clone(), self.server.handle());
        block_on(load.call(move || async move {
            let job = Job { jobs: connections, ..Job::default() };
            let controller = Controller::connect(address, &nqn, load::options(&job)).await?;
            // What connecting costs is over then.
            reactor::sleep(WARM_UP).await;
            let (before, start) = (processor_time(&server).await?, reactor::now());
            reactor::sleep(time).await;
            let (used, elapsed) = ((processor_time(&server).await? - before).total, reactor::now() - start);
            controller.disconnect().await;
            Ok(used.as_secs_f64() / elapsed.as_secs_f64())
        }))?
    }
}

/// What a load did.
pub(crate) struct Driven {
    pub(crate) count: u64,
    pub(crate) elapsed: Duration,
    pub(crate) p50_ns: u64,
}

async fn drive_echo(address: SocketAddr, case: Case, runtime: Duration) -> anyhow::Result<Driven> {
    let block_size = case.block_size as usize;
    let shape = if case.writes { Shape::write(block_size) } else { Shape::read(block_size) };
    let reached = echo::load(address, shape, case.depth.into(), case.connections.into(), runtime).await?;
    let Reached { latency, elapsed } = reached;
    Ok(Driven { count: latency.count(), elapsed, p50_ns: latency.percentile(50.0) })
}

pub(crate) async fn drive_target(
    address: SocketAddr,
    nqn: &str,
    case: Case,
    runtime: Duration,
) -> anyhow::Result<Driven> {
    let job = case.job(runtime);
    let options = Options { data_digest: case.data_digest, ..load::options(&job) };
    let controller = Controller::connect(address, nqn, options).await?;
    let driven = drive_host(&controller, &job).await?;
    controller.disconnect().await;
    Ok(driven)
}

/// Runs a job on whatever is connected.
pub(crate) async fn drive_host<H: Host>(host: &Rc<H>, job: &Job) -> anyhow::Result<Driven> {
    let report = host_load::run(host, job, None).await?;
    anyhow::ensure!(report.is_clean(), "the load met errors:\n{report}");
    let figures = if job.rw.writes() { report.write } else { report.read };
    Ok(Driven { count: figures.count, elapsed: report.elapsed, p50_ns: figures.latency.p50 })
}

/// Exports `device` for as long as the reactor runs.
pub(crate) fn serve(identity: &Identity, device: Rc<dyn BlockDevice>) -> anyhow::Result<SocketAddr> {
    let directory = Directory::new();
    let options = SubsystemOptions { identity: identity.clone(), hosts: Hosts::Any, limits: Limits::default() };
    let subsystem = Subsystem::start(&directory, options)?;
    subsystem.attach(NAMESPACE_ID, device, identity, AnaState::Optimized);
    let listener = Listener::bind(&directory, ListenerOptions::new(([127, 0, 0, 1], 0).into()))?;
    let address = listener.local_address();
    reactor::spawn(async move {
        let _kept = (subsystem, listener);
        std::future::pending::<()>().await;
    });
    Ok(address)
}
