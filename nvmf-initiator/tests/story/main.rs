//! The initiator against a target in a simulated world: what it does, what it survives, what it finds.

mod commands;
mod failures;
mod fake;
mod hostile;
mod loads;

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use nvmf_initiator::{ConnectError, Controller, Options};
use reactor::simulated::{NodeId, World};

use crate::fake::{Fake, NQN};

/// A world with a target on one machine and a host on another.
struct Stage {
    world: World,
    fake: Rc<Fake>,
    host: NodeId,
}

fn address() -> SocketAddr {
    ([10, 0, 0, 1], 4420).into()
}

fn options() -> Options {
    Options { command_timeout: Duration::from_secs(8), ..Options::default() }
}

async fn connect(options: Options) -> Result<Rc<Controller>, ConnectError> {
    Controller::connect(address(), NQN, options).await
}

impl Stage {
    fn new() -> Self {
        let world = World::new(11);
        let target = world.add_node(address().ip());
        let host = world.add_node([10, 0, 0, 2].into());
        let fake = Fake::new();
        let listening = Rc::clone(&fake);
        world.block_on(target, async move { listening.listen(address()) });
        Self { world, fake, host }
    }

    /// Runs a part of the story on the host.
    fn host<F>(&self, part: F) -> F::Output
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.world.block_on(self.host, part)
    }
}
