//! A host: the built-in NVMe/TCP initiator on a reactor of its own.

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use nvmf_initiator::{Controller, Options, Reconnect};
use reactor::{Config, Reactor};

use crate::PATIENCE;

/// Something that attaches volumes.
pub struct Host {
    reactor: Reactor,
}

impl Host {
    /// A host without connections.
    pub fn new() -> anyhow::Result<Self> {
        // Without spinning: tests share few cores.
        let config = Config { name: "host".to_owned(), busy_poll: Duration::ZERO, ..Config::default() };
        Ok(Self { reactor: Reactor::start(config)? })
    }

    /// Runs `work` on the host's thread. It starts at once, before the returned future is awaited.
    pub fn run<T, F, W>(&self, work: W) -> impl Future<Output = anyhow::Result<T>> + Send + use<T, F, W>
    where
        W: FnOnce() -> F + Send + 'static,
        T: Send + 'static,
        F: Future<Output = anyhow::Result<T>> + 'static,
    {
        let call = self.reactor.handle().call(work);
        async move { call.await? }
    }

    /// Writes `length` bytes of `value` at `offset`, flushed.
    pub async fn write(
        &self,
        address: SocketAddr,
        nqn: &str,
        offset: u64,
        value: u8,
        length: usize,
    ) -> anyhow::Result<()> {
        let nqn = nqn.to_owned();
        self.run(move || async move {
            let controller = attach(address, &nqn).await?;
            controller.write(offset, reactor::Slice::from(&vec![value; length][..]), false).await?;
            controller.flush().await?;
            controller.disconnect().await;
            Ok(())
        })
        .await
    }

    /// Reads `length` bytes at `offset`.
    pub async fn read(&self, address: SocketAddr, nqn: &str, offset: u64, length: usize) -> anyhow::Result<Vec<u8>> {
        let nqn = nqn.to_owned();
        self.run(move || async move {
            let controller = attach(address, &nqn).await?;
            let data = controller.read(offset, length).await?.to_vec();
            controller.disconnect().await;
            Ok(data)
        })
        .await
    }
}

/// Connects as a host that waits for a node that comes back.
pub async fn attach(address: SocketAddr, nqn: &str) -> anyhow::Result<Rc<Controller>> {
    let options = Options { reconnect: Some(Reconnect::within(PATIENCE)), ..Options::default() };
    Ok(Controller::connect(address, nqn, options).await?)
}
