//! The control side: what the node runs, on a tokio runtime of its own. It reaches the data path by messages only
//! ([`crate::data`]), so that nothing here can hold up an I/O.

mod backups;
mod changes;
mod deletions;
mod engines;
mod error;
mod events;
mod exports;
mod frontends;
mod locks;
mod lvols;
mod observer;
mod operations;
mod orphans;
mod pages;
mod panics;
mod peers;
mod replicas;
mod request;
mod retry;
mod scrubs;
mod stores;
mod streams;
mod touches;
mod versions;
mod volumes;
mod watched;
mod watches;

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use proto::v1;
use tls::Certificates;
use uuid::Uuid;

pub(crate) use self::backups::{Backups, Facts as BackupFacts};
pub(crate) use self::deletions::Deletions;
pub(crate) use self::engines::Engines;
pub(crate) use self::error::{Comparison, ControlError};
pub(crate) use self::events::{EventSender, EventStream, Events, Happened, channel as event_channel};
pub(crate) use self::frontends::{Frontends, Iscsi, Nvmf};
pub(crate) use self::lvols::{Lvols, Parts};
pub(crate) use self::observer::Observer;
pub(crate) use self::operations::Operations;
pub(crate) use self::orphans::{Counts as OrphanCounts, Orphans};
pub(crate) use self::peers::Peers;
pub(crate) use self::replicas::Replicas;
pub(crate) use self::retry::Backoff;
pub(crate) use self::scrubs::{DAY, Schedule, Scrubs};
pub(crate) use self::stores::Stores;
pub(crate) use self::streams::ChangeStream;
pub(crate) use self::touches::Touches;
pub(crate) use self::volumes::Volumes;

use self::scrubs::ScrubRecords;
use self::watches::Watches;
use crate::config::Config;
use crate::data::DataPath;
use crate::health::Feed;
use crate::logging::LogFilter;
use crate::runs::{End, LastRun};
use crate::security;
use crate::state::StateDirectory;

/// Everything the services act on.
pub(crate) struct Control {
    config: Config,
    state_directory: String,
    node_uuid: Uuid,
    started_at: SystemTime,
    last_run: LastRun,
    log: LogFilter,
    certificates: Option<Arc<Certificates>>,
    pub(crate) events: Arc<Events>,
    data: DataPath,
    watches: Watches,
    peers: Arc<Peers>,
    deletions: Arc<Deletions>,
    pub(crate) stores: Arc<Stores>,
    pub(crate) scrubs: Arc<Scrubs>,
    pub(crate) lvols: Arc<Lvols>,
    pub(crate) replicas: Arc<Replicas>,
    pub(crate) engines: Arc<Engines>,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) operations: Arc<Operations>,
    pub(crate) orphans: Arc<Orphans>,
    pub(crate) backups: Arc<Backups>,
}

impl Control {
    /// Brings back what the state directory says, in the order of dependence. Nothing here waits for a peer or a slow
    /// store: what is not ready yet says so and becomes ready by itself.
    pub(crate) async fn start(
        config: &Config,
        state: &StateDirectory,
        data: DataPath,
        feed: Arc<Feed>,
        last_run: LastRun,
        log: LogFilter,
        certificates: Option<Arc<Certificates>>,
    ) -> anyhow::Result<Arc<Self>> {
        let run = last_run.number + 1;
        let events = Events::start(run, &config.node, state);
        let touches = data.touches().clone();
        data.events().into_iter().for_each(|told| events.collect(told));
        events.note(Happened::of_node(&config.node, state.node_uuid(), "started", &last_run.sentence()));
        let node = config.node.clone();
        let peers = Arc::new(Peers::new(&config.peers, certificates.as_ref()));
        let records = ScrubRecords::load(state.records("scrubs")?, config.scrubs)?;
        let stores = Stores::start(data.clone(), state.records("stores")?, Arc::clone(&records), Arc::clone(&events))?;
        let scrubs = Scrubs::start(data.clone(), Arc::clone(&stores), records);
        let lvols = Arc::new(Lvols::new(data.clone(), Arc::clone(&stores)));
        let replicas = Arc::new(Replicas::new(node.clone(), data.clone(), Arc::clone(&stores)));
        let deletions =
            Deletions::start(node.clone(), Arc::clone(&peers), Arc::clone(&replicas), state.records("deletions")?)?;
        let here = engines::Surroundings {
            node: node.clone(),
            replica_address: config.replica,
            plaintext_stays_here: config.tls.is_none() && !config.insecure,
            nvmf_addresses: config.advertised(&config.nvmf),
            discovery_addresses: config.advertised(&config.discovery),
            portals: config.iscsi.clone(),
            data: data.clone(),
            stores: Arc::clone(&stores),
            replicas: Arc::clone(&replicas),
            peers: Arc::clone(&peers),
            feed,
            events: Arc::clone(&events),
        };
        let recorded = volumes::Recorded::load(state.records("volumes")?)?;
        let engines = Engines::start(here, state.records("engines")?, &recorded.ending()).await?;
        let here = volumes::Surroundings {
            node: node.clone(),
            peers: Arc::clone(&peers),
            replicas: Arc::clone(&replicas),
            engines: Arc::clone(&engines),
            deletions: Arc::clone(&deletions),
        };
        let volumes = Arc::new(Volumes::start(here, recorded, run));
        volumes.resume();
        let observer = Observer::start(Arc::clone(&engines), Arc::clone(&volumes), touches.touched());
        let backups = Backups::start(
            backups::Surroundings {
                volumes: Arc::clone(&volumes),
                engines: Arc::clone(&engines),
                events: Arc::clone(&events),
                rates: (config.backup_rate, config.backup_total_rate),
                run,
                told: Arc::clone(&observer.seen),
            },
            state,
        )?;
        let here = operations::Surroundings {
            backups: Arc::clone(&backups),
            stores: Arc::clone(&stores),
            lvols: Arc::clone(&lvols),
            scrubs: Arc::clone(&scrubs),
            deletions: Arc::clone(&deletions),
            volumes: Arc::clone(&volumes),
            observer,
        };
        let operations = Operations::start(here, state.records("operations")?, run)?;
        let orphans = Orphans::start(orphans::Surroundings {
            node,
            node_uuid: state.node_uuid(),
            data: data.clone(),
            stores: Arc::clone(&stores),
            replicas: Arc::clone(&replicas),
            peers: Arc::clone(&peers),
            engines: Arc::clone(&engines),
            volumes: Arc::clone(&volumes),
            deletions: Arc::clone(&deletions),
            events: Arc::clone(&events),
        });
        Ok(Arc::new_cyclic(|control| Self {
            config: config.clone(),
            state_directory: state.path().display().to_string(),
            node_uuid: state.node_uuid(),
            started_at: SystemTime::now(),
            last_run,
            log,
            certificates,
            events,
            watches: Watches::start(run, Weak::clone(control), &stores, &replicas, &lvols, &orphans, &volumes),
            peers,
            deletions,
            stores,
            scrubs,
            lvols,
            replicas,
            engines,
            volumes,
            operations,
            orphans,
            backups,
            data,
        }))
    }

    /// Deletes a replica that no engine of this node uses.
    pub(crate) async fn delete_replica(&self, request: v1::DeleteReplicaRequest) -> Result<(), ControlError> {
        let user = request::uuid("uuid", &request.uuid).ok().and_then(|replica| self.engines.user_of(replica));
        if let Some(volume) = user {
            let text = format!("the replica belongs to volume `{volume}`, which is served here: delete the volume");
            return Err(ControlError::precondition("IN_USE", text).with("volume", volume));
        }
        self.replicas.delete(request).await
    }

    /// Ends an engine that is not part of a volume of this node.
    pub(crate) async fn delete_engine(&self, volume: Uuid) -> Result<(), ControlError> {
        if self.volumes.contains(volume) {
            let text = format!("the engine belongs to volume {volume}: delete the volume");
            return Err(ControlError::precondition("IN_USE", text).with("volume", volume));
        }
        self.engines.delete(volume).await
    }

    /// The daemon stops: who follows its events hears that, and no more.
    pub(crate) fn stopping(&self, signal: &str) {
        let node = &self.config.node;
        self.events.note(Happened::of_node(node, self.node_uuid, "stopping", &format!("asked to by {signal}")));
        self.events.end();
        self.volumes.end_watches();
        self.operations.end_watches();
        self.watches.end();
        self.backups.end_watches();
    }

    /// A call that may have changed something is over: it may have begun long work, or ended some.
    pub(crate) fn was_asked(&self) {
        self.operations.tell();
        self.watches.tell();
    }

    /// Notes what became of the node.
    pub(crate) fn happened(&self, what: &str, detail: &str) {
        self.events.note(Happened::of_node(&self.config.node, self.node_uuid, what, detail));
    }

    /// What is logged.
    pub(crate) fn log(&self) -> v1::LogFilter {
        v1::LogFilter { filter: self.log.current(), configured: self.config.log.clone() }
    }

    /// Changes what is logged, until the next start.
    pub(crate) fn set_log(&self, filter: &str) -> Result<v1::LogFilter, ControlError> {
        self.log.set(filter).map_err(|problem| ControlError::invalid("filter", problem))?;
        tracing::info!(filter, "what is logged was changed");
        Ok(self.log())
    }

    /// What must be as it was once whatever was asked has ended (I40).
    pub(crate) async fn load(&self) -> Result<Load, ControlError> {
        Ok(Load {
            peers: self.peers.describe(),
            control_tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
            reactor_tasks: self.data.tasks().await?,
            pending_deletions: self.deletions.describe().len(),
            orphans: self.orphans.counts(),
            backups: self.backups.facts(),
        })
    }

    /// Who this node is, now.
    async fn describe(&self) -> Result<v1::NodeInfo, ControlError> {
        let replicas = self.replicas.count().await?;
        let started_at = self.started_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let texts = |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect();
        Ok(v1::NodeInfo {
            name: self.config.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at_unix_ms: i64::try_from(started_at.as_millis()).unwrap_or(i64::MAX),
            pid: std::process::id(),
            state_directory: self.state_directory.clone(),
            reactors: count(self.config.reactors),
            grpc_address: self.config.grpc.to_string(),
            replica_address: self.config.replica.to_string(),
            nvmf_addresses: texts(&self.config.nvmf),
            discovery_addresses: texts(&self.config.discovery),
            iscsi_addresses: texts(&self.config.iscsi),
            peers: self.peers.describe(),
            stores: count(self.stores.count()),
            replicas: count(replicas),
            volumes: count(self.volumes.count()),
            pending_deletions: self.deletions.describe(),
            health_address: self.config.health.to_string(),
            last_run: Some(describe_last_run(&self.last_run)),
            certificate: self.certificates.as_deref().map(security::describe),
            resource_version: String::new(),
        })
    }
}

/// What runs, waits and is left over on the control side.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pub(crate) peers: Vec<v1::Peer>,
    pub(crate) control_tasks: usize,
    pub(crate) reactor_tasks: usize,
    pub(crate) pending_deletions: usize,
    pub(crate) orphans: OrphanCounts,
    pub(crate) backups: BackupFacts,
}

fn describe_last_run(last: &LastRun) -> v1::LastRun {
    let end = match last.ended.as_ref().map(|ended| ended.how) {
        None => v1::RunEnd::First,
        Some(End::Clean) => v1::RunEnd::Clean,
        Some(End::Failed) => v1::RunEnd::Failed,
        Some(End::Panic) => v1::RunEnd::Panic,
        Some(End::Signal) => v1::RunEnd::Signal,
        Some(End::Killed) => v1::RunEnd::Killed,
        Some(End::Power) => v1::RunEnd::Power,
        Some(End::Unknown) => v1::RunEnd::Unknown,
    };
    let ended = last.ended.clone();
    v1::LastRun {
        end: end.into(),
        detail: ended.as_ref().map(|ended| ended.detail.clone()).unwrap_or_default(),
        panic: ended.as_ref().map(|ended| ended.panic.clone()).unwrap_or_default(),
        number: last.number,
        version: last.version.clone(),
        pid: last.pid,
        started_at_unix_ms: last.started_at,
        ended_at_unix_ms: ended.and_then(|ended| ended.at),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
