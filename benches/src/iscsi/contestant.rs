//! Who is measured: our targets, each on a reactor of its own, and tgt; all on one core, the load on the other.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use block_device::{BlockDevice, Error, ErrorKind};
use iscsi_initiator::{LogicalUnit, Name, load};
use iscsi_target::{
    Access, AccessState, Directory, Identity, Listener, ListenerOptions, ReservationStore, Reservations, Saved, Target,
    TargetOptions,
};
use reactor::{Handle, Reactor};
use uuid::Uuid;

use super::tgt::Tgt;
use crate::contestant::{self, Case, Costs, Driven, SERVER_CORE, Sample, WARM_UP, config};
use crate::device;
use crate::thread::{ProcessorTime, block_on, processor_time};

/// A protocol and what stands behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Our NVMe/TCP target over an engine with one local replica in a store in memory.
    NvmfVolume,
    /// Our iSCSI target over the same.
    IscsiVolume,
    /// Our NVMe/TCP target over plain memory.
    NvmfMemory,
    /// Our iSCSI target over plain memory.
    IscsiMemory,
    /// tgt over a file in memory.
    Tgt,
}

impl Kind {
    pub(super) const OURS: [Self; 4] = [Self::NvmfVolume, Self::IscsiVolume, Self::NvmfMemory, Self::IscsiMemory];
}

/// A server, ready to be measured.
pub(super) struct Contestant {
    pub(super) kind: Kind,
    server: Server,
    pub(super) address: SocketAddr,
    /// NQN or IQN.
    pub(super) name: String,
}

enum Server {
    Ours(Reactor),
    Tgt(Tgt),
}

impl Contestant {
    /// Starts a target of ours.
    pub(super) fn ours(kind: Kind) -> anyhow::Result<Self> {
        let server = Reactor::start(config("server", SERVER_CORE)).context("no reactor for the server")?;
        let uuid = Uuid::from_u128(kind as u128 + 1);
        let (address, name) = block_on(server.handle().call(move || async move {
            let device = match kind {
                Kind::NvmfVolume | Kind::IscsiVolume => device::volume(0).await?,
                Kind::NvmfMemory | Kind::IscsiMemory | Kind::Tgt => device::memory().await?,
            };
            match kind {
                Kind::NvmfVolume | Kind::NvmfMemory => {
                    let identity = nvmf_target::Identity::of_volume(uuid);
                    anyhow::Ok((contestant::serve(&identity, device)?, identity.nqn))
                }
                Kind::IscsiVolume | Kind::IscsiMemory | Kind::Tgt => {
                    let identity = Identity::of_volume(uuid);
                    let name = identity.name.to_string();
                    anyhow::Ok((serve(identity, device)?, name))
                }
            }
        }))??;
        Ok(Self { kind, server: Server::Ours(server), address, name })
    }

    /// tgt, which runs.
    pub(super) fn tgt(tgt: Tgt) -> Self {
        let (address, name) = (tgt.address(), Tgt::NAME.to_owned());
        Self { kind: Kind::Tgt, server: Server::Tgt(tgt), address, name }
    }

    /// Measures one case for `runtime`.
    pub(super) fn measure(&self, load: &Handle, case: Case, runtime: Duration) -> anyhow::Result<Sample> {
        self.drive(load, case, WARM_UP)?;
        let times = || anyhow::Ok((self.processor_time()?, block_on(processor_time(load))?, self.spun()));
        let before = times()?;
        let driven = self.drive(load, case, runtime)?;
        let after = times()?;
        let costs =
            Costs { server: after.0 - before.0, load: after.1 - before.1, spun: after.2 - before.2, allocations: 0 };
        Ok(Sample::new(&driven, &costs))
    }

    /// tgt does not tell whether it spins.
    fn spun(&self) -> Duration {
        match &self.server {
            Server::Ours(reactor) => reactor.stats().spun(),
            Server::Tgt(_) => Duration::ZERO,
        }
    }

    fn processor_time(&self) -> anyhow::Result<ProcessorTime> {
        match &self.server {
            Server::Ours(reactor) => block_on(processor_time(&reactor.handle())),
            Server::Tgt(tgt) => tgt.processor_time(),
        }
    }

    fn drive(&self, load: &Handle, case: Case, runtime: Duration) -> anyhow::Result<Driven> {
        let (address, name, kind) = (self.address, self.name.clone(), self.kind);
        block_on(load.call(move || async move {
            match kind {
                Kind::NvmfVolume | Kind::NvmfMemory => contestant::drive_target(address, &name, case, runtime).await,
                Kind::IscsiVolume | Kind::IscsiMemory | Kind::Tgt => drive(address, &name, case, runtime).await,
            }
        }))?
        .with_context(|| format!("{:?}", self.kind))
    }
}

async fn drive(address: SocketAddr, name: &str, case: Case, runtime: Duration) -> anyhow::Result<Driven> {
    let job = case.job(runtime);
    let name = Name::parse(name).context("a name")?;
    let unit = LogicalUnit::connect(address, &name, load::options(&job)).await?;
    let driven = contestant::drive_host(&unit, &job).await?;
    unit.disconnect().await;
    Ok(driven)
}

/// Nobody reserves anything here.
struct NoReservations;

impl ReservationStore for NoReservations {
    fn save(&self, _record: Vec<u8>) -> Saved {
        Box::pin(async { Err(Error::new(ErrorKind::WriteFailed)) })
    }
}

/// Exports `device` for as long as the reactor runs.
fn serve(identity: Identity, device: Rc<dyn BlockDevice>) -> anyhow::Result<SocketAddr> {
    let directory = Directory::new();
    let options = TargetOptions {
        identity,
        device,
        access: Access::default(),
        access_state: AccessState::Optimized,
        reservations: Reservations::default(),
        store: Rc::new(NoReservations),
    };
    let target = Target::start(&directory, options)?;
    let listener = Listener::bind(&directory, ListenerOptions::new(([127, 0, 0, 1], 0).into()))?;
    let address = listener.local_address();
    reactor::spawn(async move {
        let _kept = (target, listener);
        std::future::pending::<()>().await;
    });
    Ok(address)
}
