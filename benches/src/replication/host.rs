//! A host on a reactor of its own, so that nothing the benchmark does beside it slows it down.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::ensure;
use nvmf_initiator::load::{self, Job, Report};
use nvmf_initiator::{Controller, Options, Reconnect};
use reactor::{Config, Reactor, Slice};

/// Longer than any stall that is measured.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between attempts to reach a volume that is not served.
const PAUSE: Duration = Duration::from_millis(5);

pub(super) struct Host {
    reactor: Reactor,
    address: SocketAddr,
    nqn: String,
}

impl Host {
    pub(super) fn new((address, nqn): (SocketAddr, String)) -> anyhow::Result<Self> {
        let reactor = Reactor::start(Config { name: "load".to_owned(), ..Config::default() })?;
        Ok(Self { reactor, address, nqn })
    }

    /// Runs a load to its end.
    pub(super) async fn run(&self, job: Job) -> anyhow::Result<Report> {
        self.run_all(vec![job]).await.map(|mut reports| reports.remove(0))
    }

    /// Runs loads one after the other.
    pub(super) async fn run_all(&self, jobs: Vec<Job>) -> anyhow::Result<Vec<Report>> {
        let (address, nqn) = (self.address, self.nqn.clone());
        let work = move || async move {
            let depth = jobs.iter().map(|job| job.depth).max().unwrap_or(1);
            let options = Options {
                queue_depth: depth,
                reconnect: Some(Reconnect::within(PATIENCE)),
                command_timeout: PATIENCE,
                ..Options::default()
            };
            let controller = Controller::connect(address, &nqn, options).await?;
            let mut reports = Vec::new();
            for job in &jobs {
                let report = load::run(&controller, job, None).await?;
                ensure!(report.is_clean(), "the load met errors:\n{report}");
                reports.push(report);
            }
            controller.disconnect().await;
            Ok(reports)
        };
        self.reactor.handle().call(work).await?
    }

    /// Connects anew until it works, writes a block, reads it, and says when that was done.
    pub(super) async fn served(&self) -> anyhow::Result<Instant> {
        let (address, nqn) = (self.address, self.nqn.clone());
        let work = move || async move {
            let limit = Instant::now() + PATIENCE;
            loop {
                match Controller::connect(address, &nqn, Options::default()).await {
                    Ok(controller) => {
                        controller.write(0, Slice::zeroes(4096), false).await?;
                        controller.read(0, 4096).await?;
                        let served = Instant::now();
                        controller.disconnect().await;
                        return Ok(served);
                    }
                    Err(error) => ensure!(Instant::now() < limit, "the volume is not served: {error}"),
                }
                reactor::sleep(PAUSE).await;
            }
        };
        self.reactor.handle().call(work).await?
    }
}
