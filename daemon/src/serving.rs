//! `grpc.health.v1`: which services answer, for load balancers and gRPC clients. It follows readiness (docs/health.md).

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

use crate::health::Readiness;

/// All services: the empty name stands for the daemon as a whole. Those that are asked of the data path serve as long as its threads answer.
const SERVICES: [(&str, Needs); 13] = [
    ("", Needs::Reactors),
    ("ashlar.v1.NodeService", Needs::Nothing),
    ("ashlar.v1.OperationService", Needs::Reactors),
    ("ashlar.v1.StoreService", Needs::Reactors),
    ("ashlar.v1.LvolService", Needs::Reactors),
    ("ashlar.v1.ReplicaService", Needs::Reactors),
    ("ashlar.v1.EngineService", Needs::Reactors),
    ("ashlar.v1.OrphanService", Needs::Reactors),
    ("ashlar.v1.VolumeService", Needs::Reactors),
    ("ashlar.v1.BackupTargetService", Needs::Nothing),
    ("ashlar.v1.BackupService", Needs::Reactors),
    ("ashlar.v1.StandbyService", Needs::Reactors),
    ("ashlar.v1.BackupScheduleService", Needs::Reactors),
];

/// What a service needs besides the control threads, without which nobody hears from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Nothing,
    Reactors,
}

impl Needs {
    fn status(self, readiness: Readiness) -> ServingStatus {
        match (readiness, self) {
            (Readiness { is_stopping: true, .. }, _) | (Readiness { reactors_answer: false, .. }, Self::Reactors) => {
                ServingStatus::NotServing
            }
            _ => ServingStatus::Serving,
        }
    }
}

/// The service, kept up to date until the daemon stops.
pub(crate) fn start(mut readiness: watch::Receiver<Readiness>) -> (Serving, HealthServer<impl Health>) {
    let reporter = HealthReporter::new();
    let server = HealthServer::new(tonic_health::server::HealthService::from_health_reporter(reporter.clone()));
    let keeper = tokio::spawn(async move {
        loop {
            let now = *readiness.borrow_and_update();
            report(&reporter, now).await;
            if now.is_stopping {
                return reporter;
            }
            if readiness.changed().await.is_err() {
                return reporter;
            }
        }
    });
    (Serving { keeper }, server)
}

/// What keeps it up to date.
pub(crate) struct Serving {
    keeper: JoinHandle<HealthReporter>,
}

impl Serving {
    /// Ends those who watch, after they were told that the daemon stops.
    pub(crate) async fn end(self) {
        // An error is a panic, which is logged.
        let Ok(mut reporter) = self.keeper.await else { return };
        for (service, _) in SERVICES {
            reporter.clear_service_status(service).await;
        }
    }
}

async fn report(reporter: &HealthReporter, now: Readiness) {
    for (service, needs) in SERVICES {
        reporter.set_service_status(service, needs.status(now)).await;
    }
}

#[cfg(test)]
mod tests {
    use tonic::Request;
    use tonic::codegen::tokio_stream::{Stream, StreamExt};
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_server::Health;
    use tonic_health::server::HealthService;

    use super::*;

    const READY: Readiness = Readiness { reactors_answer: true, is_stopping: false };

    #[test]
    fn every_service_of_the_contract_is_named() {
        for service in ["Node", "Operation", "Store", "Lvol", "Replica", "Engine", "Volume"] {
            let name = format!("ashlar.v1.{service}Service");
            assert!(SERVICES.iter().any(|(known, _)| *known == name), "{name}");
        }
    }

    #[test]
    fn what_needs_reactors_follows_them_and_all_follow_the_end() {
        let stalled = Readiness { reactors_answer: false, ..READY };
        let stopping = Readiness { is_stopping: true, ..READY };
        assert_eq!(Needs::Reactors.status(READY), ServingStatus::Serving);
        assert_eq!(Needs::Reactors.status(stalled), ServingStatus::NotServing);
        assert_eq!(Needs::Nothing.status(stalled), ServingStatus::Serving);
        assert_eq!(Needs::Nothing.status(stopping), ServingStatus::NotServing);
    }

    async fn next<S: Stream<Item = Result<tonic_health::pb::HealthCheckResponse, tonic::Status>> + Unpin>(
        stream: &mut S,
    ) -> Option<i32> {
        stream.next().await.map(|answer| answer.expect("no error").status)
    }

    #[tokio::test]
    async fn who_watches_hears_of_the_end_and_is_let_go() {
        let readiness = watch::Sender::new(READY);
        let reporter = HealthReporter::new();
        report(&reporter, READY).await;
        let service = HealthService::from_health_reporter(reporter.clone());
        let request = Request::new(HealthCheckRequest { service: "ashlar.v1.VolumeService".to_owned() });
        let mut stream = service.watch(request).await.expect("it is known").into_inner();
        assert_eq!(next(&mut stream).await, Some(1), "serving");
        let stopping = Readiness { is_stopping: true, ..READY };
        readiness.send_replace(stopping);
        report(&reporter, stopping).await;
        let mut reporter = reporter;
        for (service, _) in SERVICES {
            reporter.clear_service_status(service).await;
        }
        assert_eq!(next(&mut stream).await, Some(2), "not serving");
        assert_eq!(next(&mut stream).await, None);
    }
}
