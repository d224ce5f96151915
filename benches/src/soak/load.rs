//! A load on each of some volumes, as a host's file system and database would have it, on one reactor.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use nvmf_initiator::load::{Job, Load, Pattern, Report};
use nvmf_initiator::{Controller, Options, Reconnect};
use reactor::{Config, Reactor};

/// Longer than any soak.
const FOR_EVER: Duration = Duration::from_secs(30 * 24 * 3600);
/// What a Linux host would wait for.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of each volume that are used.
const REGION: u64 = 8 << 20;

thread_local! {
    /// Those of the reactor's thread.
    static RUNNING: RefCell<Vec<(Rc<Controller>, Load)>> = const { RefCell::new(Vec::new()) };
}

/// Loads that run until the end.
pub(super) struct Loads {
    reactor: Reactor,
}

/// What became of all of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    pub(super) count: u64,
    pub(super) errors: u64,
    pub(super) faults: u64,
    pub(super) reconnects: u64,
    pub(super) longest_ms: f64,
    /// The first that was not clean, in words.
    pub(super) detail: String,
}

impl Loads {
    /// Attaches the volumes with these names and starts a load on each.
    pub(super) async fn start(address: SocketAddr, names: Vec<String>) -> anyhow::Result<Self> {
        // It does not spin: the cores belong to others.
        let config = Config { name: "load".to_owned(), busy_poll: Duration::ZERO, ..Config::default() };
        let reactor = Reactor::start(config)?;
        let starting = reactor.handle().call(move || async move {
            for (number, name) in names.iter().enumerate() {
                start_one(address, name, number as u64).await.with_context(|| name.clone())?;
            }
            anyhow::Ok(())
        });
        starting.await??;
        Ok(Self { reactor })
    }

    /// I/Os that have ended, of each volume.
    pub(super) async fn progress(&self) -> anyhow::Result<Vec<u64>> {
        let look = || async {
            RUNNING.with_borrow(|running| running.iter().map(|(_, load)| load.progress().completed).collect())
        };
        Ok(self.reactor.handle().call(look).await?)
    }

    /// Ends them, and says what became of them.
    pub(super) async fn end(self) -> anyhow::Result<Done> {
        let ending = self.reactor.handle().call(|| async {
            let running = RUNNING.take();
            running.iter().for_each(|(_, load)| load.stop());
            let mut done = Done::default();
            for (controller, load) in running {
                done.add(load.finish().await);
                controller.disconnect().await;
            }
            done
        });
        Ok(ending.await?)
    }
}

async fn start_one(address: SocketAddr, name: &str, seed: u64) -> anyhow::Result<()> {
    let job = Job {
        rw: Pattern::RandRw,
        read_percent: 70,
        block_size: 4096,
        depth: 4,
        size: Some(REGION),
        runtime: Some(FOR_EVER),
        verify: true,
        flush_every: 64,
        seed,
        ..Job::default()
    };
    let options = Options {
        queue_depth: job.depth,
        reconnect: Some(Reconnect::within(COMMAND_TIMEOUT)),
        command_timeout: COMMAND_TIMEOUT,
        ..Options::default()
    };
    let controller = Controller::connect(address, name, options).await?;
    let load = Load::start(&controller, &job, None)?;
    RUNNING.with_borrow_mut(|running| running.push((controller, load)));
    Ok(())
}

impl Done {
    fn add(&mut self, report: Report) {
        let kinds = [&report.read, &report.write, &report.flush];
        self.count += report.read.count + report.write.count;
        self.errors += report.errors.values().sum::<u64>() + u64::from(report.aborted.is_some());
        self.faults += report.verify.failed;
        self.reconnects += report.reconnects;
        let longest = kinds.map(|kind| kind.latency.max).into_iter().max().unwrap_or(0);
        self.longest_ms = self.longest_ms.max(longest as f64 / 1e6);
        if self.detail.is_empty() && !report.is_clean() {
            self.detail = format!("{:?} {:?} {:?}", report.errors, report.aborted, report.verify.faults);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_all_loads_are_counted_and_the_first_is_told() {
        let clean = Report {
            job: Job::default(),
            elapsed: Duration::from_secs(1),
            read: Default::default(),
            write: Default::default(),
            flush: Default::default(),
            errors: Default::default(),
            verify: Default::default(),
            reconnects: 0,
            aborted: None,
        };
        let failed = Report {
            errors: [("Write Fault".to_owned(), 3)].into(),
            aborted: Some("given up".to_owned()),
            ..clean.clone()
        };
        let mut done = Done::default();
        done.add(clean);
        assert_eq!((done.errors, done.detail.as_str()), (0, ""));
        done.add(failed);
        assert_eq!(done.errors, 4);
        assert!(done.detail.contains("Write Fault") && done.detail.contains("given up"), "{}", done.detail);
    }
}
