//! The demo's load: a host on a reactor of its own, so that nothing the demo does beside it slows it down.

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{anyhow, ensure};
use nvmf_initiator::load::{self, Job, Load, Pattern, Progress, Report, SharedRecord};
use nvmf_initiator::{Controller, Reconnect};
use reactor::{Config, Reactor};

/// How long a host keeps trying to reach a node that was killed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the load may take to show that it moves.
const MOVE_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);
/// Of the volume: enough to work with, little on the disk.
const REGION: u64 = 64 << 20;

thread_local! {
    /// The load's side, on the reactor's thread.
    static SESSION: RefCell<Option<Session>> = const { RefCell::new(None) };
}

struct Session {
    controller: Rc<Controller>,
    /// What was acknowledged for each block, over all loads.
    record: SharedRecord,
    running: Option<Load>,
}

/// Runs loads on one volume and knows all that was acknowledged.
pub(super) struct LoadRunner {
    reactor: Reactor,
    job: Job,
}

impl LoadRunner {
    pub(super) fn start(runtime: Duration) -> anyhow::Result<Self> {
        let reactor = Reactor::start(Config { name: "load".to_owned(), ..Config::default() })?;
        let job = Job {
            rw: Pattern::RandRw,
            read_percent: 30,
            block_size: 4096,
            depth: 16,
            size: Some(REGION),
            runtime: Some(runtime),
            verify: true,
            flush_every: 1_000,
            ..Job::default()
        };
        Ok(Self { reactor, job })
    }

    /// Connects to the volume.
    pub(super) async fn attach(&self, address: SocketAddr, nqn: &str) -> anyhow::Result<()> {
        let (job, nqn) = (self.job.clone(), nqn.to_owned());
        self.on_reactor(move || async move {
            let options =
                nvmf_initiator::Options { reconnect: Some(Reconnect::within(PATIENCE)), ..load::options(&job) };
            let controller = Controller::connect(address, &nqn, options).await?;
            let record = load::new_record(&controller, &job)?;
            SESSION.set(Some(Session { controller, record, running: None }));
            Ok(())
        })
        .await
    }

    /// Starts a load.
    pub(super) async fn begin(&self) -> anyhow::Result<()> {
        let job = self.job.clone();
        self.on_reactor(move || async move {
            with_session(|session| {
                let load = Load::start(&session.controller, &job, Some(Rc::clone(&session.record)))?;
                session.running = Some(load);
                Ok(())
            })
        })
        .await
    }

    /// Waits until the running load has completed something new; an error if it met one, or stands still.
    pub(super) async fn must_move(&self) -> anyhow::Result<()> {
        let before = self.progress().await?;
        let moved = async {
            loop {
                let now = self.progress().await?;
                ensure!(now.errors + now.faults == 0, "{} errors, {} wrong blocks", now.errors, now.faults);
                // Those in flight before may have been on their way already.
                if now.completed > before.completed + before.in_flight {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let stalled = |_| Err(anyhow!("the load stood still for {} s", MOVE_LIMIT.as_secs()));
        tokio::time::timeout(MOVE_LIMIT, moved).await.unwrap_or_else(stalled)
    }

    async fn progress(&self) -> anyhow::Result<Progress> {
        self.on_reactor(|| async {
            with_session(|session| {
                let running = session.running.as_ref().ok_or_else(|| anyhow!("no load is running"))?;
                Ok(running.progress())
            })
        })
        .await
    }

    /// Waits for the end of the running load.
    pub(super) async fn end(&self) -> anyhow::Result<Report> {
        self.on_reactor(|| async {
            let running = with_session(|session| session.running.take().ok_or_else(|| anyhow!("no load is running")))?;
            Ok(running.finish().await)
        })
        .await
    }

    /// Reads back every block that was ever written, and compares.
    pub(super) async fn check(&self) -> anyhow::Result<Report> {
        let job = self.job.clone();
        let report = self
            .on_reactor(move || async move {
                let (controller, record) =
                    with_session(|session| Ok((Rc::clone(&session.controller), Rc::clone(&session.record))))?;
                Ok(load::check(&controller, &job, &record).await?)
            })
            .await?;
        ensure!(report.is_clean(), "what was acknowledged is not there:\n{report}");
        Ok(report)
    }

    async fn on_reactor<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> anyhow::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = anyhow::Result<T>> + 'static,
    {
        self.reactor.handle().call(work).await?
    }
}

fn with_session<T>(body: impl FnOnce(&mut Session) -> anyhow::Result<T>) -> anyhow::Result<T> {
    SESSION.with_borrow_mut(|session| body(session.as_mut().ok_or_else(|| anyhow!("the volume is not attached"))?))
}
