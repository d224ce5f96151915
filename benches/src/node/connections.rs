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

pub(super) async fn measure(stage: &mut Stage, plan: &Plan) -> anyhow::Result<Vec<Row>> {
    stage.stop().await?;
    stage.start().await?;
    let (pid, each) = (stage.pid()?, usize::from(IO_QUEUES) + 1);
    let mut names = Vec::new();
    for volume in stage.client().await?.list_volumes().await? {
        names.push(nqn_of(&volume)?);
    }
    let few = names.len().min(IDLE_CONNECTIONS / each);
    process::settle(pid).await?;
    let hosts = Hosts::attach(stage, &names[..few]).await?;
    let used = process::watch(pid, plan.idle).await?;
    let case = format!("idle, {} connections to {few} volumes: share of a core", few * each);
    let mut rows = vec![
        Row::alone(case, "%", used.share * 100.0)
            .target(Target::AtMost(0.5))
            .note(format!("a keep alive of each host every 2.5 s; {:.0} wake-ups a second", used.wakeups)),
    ];
    let others = Hosts::attach(stage, &names[few..]).await?;
    let used = process::watch(pid, plan.idle).await?;
    let resident = process::resident(pid)?;
    rows.push(
        Row::alone(format!("idle, {each} connections to each volume: resident memory"), "MiB", resident)
            .target(Target::AtMost(600.0 * stage.volumes as f64 / 1200.0))
            .note(format!("{} connections", names.len() * each)),
    );
    rows.push(
        Row::alone("… share of a core", "%", used.share * 100.0).note(format!("{:.0} wake-ups a second", used.wakeups)),
    );
    hosts.detach().await?;
    others.detach().await?;
    Ok(rows)
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
