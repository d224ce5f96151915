//! From start to stop.
//!
//! ```text
//!  starting ──▶ serving ──signal──▶ draining ──▶ ended in order, exit 0
//!     │                                │ limit, or a second signal
//!     └─▶ failed, exit 1               └──▶ ended as by a kill, exit 1: nothing acknowledged is lost
//! ```

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use proto::v1::backup_schedule_service_server::BackupScheduleServiceServer;
use proto::v1::backup_service_server::BackupServiceServer;
use proto::v1::backup_target_service_server::BackupTargetServiceServer;
use proto::v1::engine_service_server::EngineServiceServer;
use proto::v1::lvol_service_server::LvolServiceServer;
use proto::v1::node_service_server::NodeServiceServer;
use proto::v1::operation_service_server::OperationServiceServer;
use proto::v1::orphan_service_server::OrphanServiceServer;
use proto::v1::replica_service_server::ReplicaServiceServer;
use proto::v1::standby_service_server::StandbyServiceServer;
use proto::v1::store_service_server::StoreServiceServer;
use proto::v1::volume_service_server::VolumeServiceServer;
use tls::Certificates;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tower_layer::{Identity, Stack};

use crate::calls::Calls;
use crate::config::Config;
use crate::control::Control;
use crate::data::DataPath;
use crate::health::{Health, Link};
use crate::listening;
use crate::logging::LogFilter;
use crate::runs::LastRun;
use crate::security::{self, Authorize};
use crate::services::Services;
use crate::serving::{self, Serving};
use crate::state::StateDirectory;

/// How many calls of one client run at once; more wait.
const CALLS_PER_CONNECTION: usize = 64;
/// How often a client that follows something is asked whether it is there; without an answer its connection ends after 20 s.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long calls in progress may take to end when the daemon stops.
const CALLS_LIMIT: Duration = Duration::from_secs(3);

/// Starts the node, serves until a signal, stops it. Returns the signal's name.
pub(crate) async fn run(
    config: &Config,
    state: &StateDirectory,
    data: DataPath,
    health: Health,
    last_run: LastRun,
    log: LogFilter,
    certificates: Option<Arc<Certificates>>,
) -> anyhow::Result<&'static str> {
    // Before anything starts, so that no signal meets the default action half way.
    let mut signals = Signals::new()?;
    let hangup = signal(SignalKind::hangup()).context("cannot take signals")?;
    let listener = listening::bind(config.grpc)
        .await
        .with_context(|| format!("cannot serve the API at {} (grpc)", config.grpc))?;
    let feed = Arc::clone(&health.feed);
    let control =
        Control::start(config, state, data.clone(), Arc::clone(&feed), last_run, log, certificates.clone()).await?;
    let link = Arc::new(health.link);
    link.answer(&control, &feed)?;
    // Hosts and engines come in when there is something to find: a host that meets an unknown volume gives up.
    data.listen(config).await?;
    show_strangers_if_asked_to(&data).await?;
    let api = Api::start(listener, Arc::clone(&control), certificates.clone(), &link)?;
    security::watch(certificates, Arc::clone(&control), hangup);
    tracing::info!(
        node = %config.node, uuid = %state.node_uuid(), state = %state.path().display(), grpc = %config.grpc,
        replica = %config.replica, nvmf = ?config.nvmf, discovery = ?config.discovery, iscsi = ?config.iscsi, health = %config.health, "ashlard serves"
    );
    link.serving();
    fail_if_asked_to();

    let name = signals.next().await;
    tracing::info!(signal = name, "stopping");
    link.stopping();
    control.stopping(name);
    tokio::select! {
        () = stop(api, &control, &data) => {
            tracing::info!("stopped in order");
            Ok(name)
        }
        () = tokio::time::sleep(config.shutdown_timeout) => {
            bail!("not stopped in order within {} ms; the next start recovers", config.shutdown_timeout.as_millis())
        }
        name = signals.next() => bail!("a second signal ({name}) while stopping; the next start recovers"),
    }
}

/// Tests want to see what becomes of a panic. Not in programs that are released.
fn fail_if_asked_to() {
    #[cfg(debug_assertions)]
    if std::env::var_os("ASHLAR_PANIC_WHEN_SERVING").is_some() {
        panic!("asked for by ASHLAR_PANIC_WHEN_SERVING");
    }
}

/// Nothing shows hosts a volume without an engine's record. Tests want to see what becomes of one that is shown all the same.
async fn show_strangers_if_asked_to(_data: &DataPath) -> anyhow::Result<()> {
    #[cfg(debug_assertions)]
    if let Ok(volumes) = std::env::var("ASHLAR_SHOW_STRANGERS") {
        for volume in volumes.split(',') {
            _data.export(0, crate::data::EngineSpec::stranger(volume.parse()?)).await?.1?;
        }
    }
    Ok(())
}

/// First no new work comes in, then engines drain, flush and mark their volumes clean, then the stores close.
async fn stop(api: Api, control: &Arc<Control>, data: &DataPath) {
    api.stop().await;
    tracing::debug!("the API has ended");
    data.stop_hosts().await;
    control.engines.stop().await;
    tracing::debug!("the engines have ended");
    data.stop_replicas_and_stores().await;
    control.events.close().await;
}

/// The API while it is served.
struct Api {
    end: oneshot::Sender<()>,
    serving: Serving,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Api {
    fn start(
        listener: TcpListener,
        control: Arc<Control>,
        certificates: Option<Arc<Certificates>>,
        link: &Link,
    ) -> anyhow::Result<Self> {
        let (end, ended) = oneshot::channel();
        let (serving, health) = serving::start(link.readiness());
        let router = router(Services::new(control))?.add_service(health);
        let incoming = security::incoming(listener, certificates);
        let server = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async {
            // An error means that nobody will send: the same thing.
            let _ = ended.await;
        }));
        Ok(Self { end, serving, server })
    }

    /// Lets the calls in progress end; for [`CALLS_LIMIT`] at most, because a client that is stuck must not keep volumes from
    /// being flushed.
    async fn stop(self) {
        let Self { end, serving, mut server } = self;
        serving.end().await;
        // An error means that the server has ended already.
        let _ = end.send(());
        match tokio::time::timeout(CALLS_LIMIT, &mut server).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the API ended with an error"),
            Ok(Err(ended)) => tracing::error!(%ended, "the API had ended"),
            Err(_) => {
                tracing::info!("clients keep the API open: cut off");
                server.abort();
            }
        }
    }
}

fn router(services: Services) -> anyhow::Result<Router<Stack<Authorize, Stack<Calls, Identity>>>> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .layer(Calls::new())
        .layer(Authorize)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(NodeServiceServer::new(services.clone()))
        .add_service(StoreServiceServer::new(services.clone()))
        .add_service(LvolServiceServer::new(services.clone()))
        .add_service(ReplicaServiceServer::new(services.clone()))
        .add_service(EngineServiceServer::new(services.clone()))
        .add_service(OperationServiceServer::new(services.clone()))
        .add_service(OrphanServiceServer::new(services.clone()))
        .add_service(BackupTargetServiceServer::new(services.clone()))
        .add_service(BackupServiceServer::new(services.clone()))
        .add_service(StandbyServiceServer::new(services.clone()))
        .add_service(BackupScheduleServiceServer::new(services.clone()))
        .add_service(VolumeServiceServer::new(services)))
}

/// The signals that ask the daemon to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let take = |kind| signal(kind).context("cannot take signals");
        Ok(Self { terminate: take(SignalKind::terminate())?, interrupt: take(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
