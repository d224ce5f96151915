//! The threads of the data path.

use std::sync::Arc;

use anyhow::Context;
use reactor::{Pulse, Reactor};
use tls::Certificates;

use super::{DataPath, Inner};
use crate::config::Config;
use crate::security::NodeSecurity;
use crate::state::StateDirectory;

/// The running reactors.
pub(crate) struct Reactors {
    reactors: Vec<Reactor>,
    config: Config,
}

impl Reactors {
    /// Starts as many as configured.
    pub(crate) fn start(config: &Config) -> anyhow::Result<Self> {
        let reactors = (0..config.reactors).map(|number| {
            let name = name(number);
            let options = reactor::Config { name, busy_poll: config.busy_poll, ..reactor::Config::default() };
            Reactor::start(options).with_context(|| format!("cannot start reactor {number} (Linux 6.1 is needed)"))
        });
        Ok(Self { reactors: reactors.collect::<anyhow::Result<_>>()?, config: config.clone() })
    }

    /// What shows whether they run, with their names.
    pub(crate) fn pulses(&self) -> Vec<(String, Pulse)> {
        self.reactors.iter().enumerate().map(|(number, reactor)| (name(number), reactor.pulse())).collect()
    }

    /// What reaches them from other threads.
    pub(crate) fn data_path(&self, state: &StateDirectory, certificates: Option<&Arc<Certificates>>) -> DataPath {
        let targets = iscsi_target::Directory::new();
        let (events, told) = crate::control::event_channel();
        let inner = Inner {
            handles: self.reactors.iter().map(Reactor::handle).collect(),
            replicas: replica::Directory::new(),
            subsystems: nvmf_target::Directory::new(),
            hidden: super::hidden::HiddenCount::new(&targets),
            targets,
            registry: state.registry(),
            node: self.config.node.clone(),
            security: certificates.map(|certificates| Arc::new(NodeSecurity(Arc::clone(certificates))) as Arc<_>),
            replica_deadline: self.config.replica_deadline,
            hash_rate: self.config.hash_rate,
            scrub_ended: tokio::sync::Notify::new(),
            rebuilds: engine::Rebuilds::new(self.config.rebuilds, self.config.rebuild_rate),
            rebuild_guard: self.config.rebuild_guard,
            events,
            touches: crate::control::Touches::new(),
            told: std::sync::Mutex::new(Some(told)),
        };
        DataPath { inner: Arc::new(inner) }
    }

    /// Ends them all.
    pub(crate) fn stop(self) {
        for (number, reactor) in self.reactors.into_iter().enumerate() {
            if let Err(error) = reactor.stop() {
                tracing::error!(reactor = number, %error, "a reactor had failed");
            }
        }
    }
}

/// What a reactor and its thread are called.
fn name(number: usize) -> String {
    format!("reactor-{number}")
}
