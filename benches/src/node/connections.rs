//! Hosts that are attached, and want nothing but to stay.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use nvmf_initiator::{Controller, Options};
use reactor::{Config, Reactor};

use super::stage::{Stage, nqn_of};
use super::{Plan, process};
use crate::report::{Row, Target};

/// Connections for I/O of each host; one more is its admin queue.
const IO_QUEUES: u16 = 3;
/// Hosts that connect at once.
const AT_ONCE: usize = 32;
/// As many connections as the issue of an idle target names.
const IDLE_CONNECTIONS: usize = 1200;

/// Connections of each host.
const EACH: usize = IO_QUEUES as usize + 1;

pub(super) async fn measure(stage: &mut Stage, plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let names = begin(stage).await?;
    let pid = stage.pid()?;
    let few = names.len().min(IDLE_CONNECTIONS / EACH);
    process::settle(pid).await?;
    let hosts = Hosts::attach(stage, &names[..few]).await?;
    let used = process::watch(pid, plan.idle).await?;
    let case = format!("idle, {} connections to {few} volumes: share of a core", few * EACH);
    let mut rows = vec![
        Row::alone(case, "%", used.share * 100.0)
            .target(Target::AtMost(0.5))
            .note(format!("a keep alive of each host every 2.5 s; {:.0} wake-ups a second", used.wakeups)),
    ];
    let others = Hosts::attach(stage, &names[few..]).await?;
    let used = process::watch(pid, plan.idle).await?;
    rows.push(memory_row(stage.volumes, Some(process::resident(pid)?)));
    rows.push(
        Row::alone("… share of a core", "%", used.share * 100.0).note(format!("{:.0} wake-ups a second", used.wakeups)),
    );
    hosts.detach().await?;
    others.detach().await?;
    Ok(rows)
}

/// Only the memory, without a look at what else is used.
pub(super) async fn memory(stage: &mut Stage, idle: Duration) -> anyhow::Result<Row> {
    let names = begin(stage).await?;
    let hosts = Hosts::attach(stage, &names).await?;
    tokio::time::sleep(idle).await;
    let resident = process::resident(stage.pid()?)?;
    hosts.detach().await?;
    Ok(memory_row(stage.volumes, Some(resident)))
}

/// A daemon that has just started, as making the volumes took memory, too; and how hosts find them.
async fn begin(stage: &mut Stage) -> anyhow::Result<Vec<String>> {
    stage.stop().await?;
    stage.start().await?;
    stage.client().await?.list_volumes().await?.iter().map(nqn_of).collect()
}

/// The row of mebibytes, if there are any.
pub(super) fn memory_row(volumes: usize, resident: Option<f64>) -> Row {
    let case = format!("memory: {volumes} volumes, {EACH} connections each, idle");
    let row = Row { ours: resident, ..Row::alone(case, "MiB", 0.0) };
    row.target(Target::AtMost(600.0 * volumes as f64 / 1200.0)).note(format!("{} connections", volumes * EACH))
}

/// Files that a daemon with so many volumes has open when hosts have connected to all, and so have the hosts: room for twice the connections.
pub(super) const fn files(volumes: usize) -> u64 {
    (volumes * EACH * 2 + 400) as u64
}

/// Hosts on a reactor of their own.
struct Hosts {
    reactor: Reactor,
}

thread_local! {
    /// Those of the reactor's thread.
    static ATTACHED: RefCell<Vec<Rc<Controller>>> = const { RefCell::new(Vec::new()) };
}

impl Hosts {
    async fn attach(stage: &Stage, names: &[String]) -> anyhow::Result<Self> {
        let reactor = Reactor::start(Config { name: "hosts".to_owned(), ..Config::default() })?;
        let (address, names) = (stage.hosts_address(), names.to_vec());
        let attaching = reactor.handle().call(move || async move {
            let options = Options { io_queues: IO_QUEUES, ..Options::default() };
            for some in names.chunks(AT_ONCE) {
                let connecting: Vec<_> = some
                    .iter()
                    .map(|name| {
                        let (name, options) = (name.clone(), options.clone());
                        reactor::spawn(async move { Controller::connect(address, &name, options).await })
                    })
                    .collect();
                for controller in connecting {
                    let controller = controller.await.context("a connection was given up")??;
                    ATTACHED.with_borrow_mut(|attached| attached.push(controller));
                }
            }
            // What connecting takes is over then.
            reactor::sleep(Duration::from_secs(1)).await;
            anyhow::Ok(())
        });
        attaching.await??;
        Ok(Self { reactor })
    }

    async fn detach(self) -> anyhow::Result<()> {
        let detaching = self.reactor.handle().call(|| async {
            for controller in ATTACHED.take() {
                controller.disconnect().await;
            }
        });
        Ok(detaching.await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allowed_grows_with_the_volumes() {
        assert_eq!(memory_row(1200, Some(599.0)).met, Some(true));
        assert_eq!(memory_row(600, Some(301.0)).met, Some(false));
        let unmeasured = memory_row(1200, None);
        assert_eq!((unmeasured.ours, unmeasured.met), (None, None));
        assert_eq!(unmeasured.case, "memory: 1200 volumes, 4 connections each, idle");
        assert_eq!(files(1200), 10_000, "what the documentation says");
    }
}
