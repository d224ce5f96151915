//! Classes of work, and how much of each there is at one time: many calls of one class keep none of another out.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use proto::v1::ErrorReason;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status};

use super::name_of;

/// What a call is, as far as it matters for how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Looks.
    Read,
    /// Changes something.
    Change,
    /// Follows what comes.
    Watch,
    /// Moves data.
    Transfer,
    /// Asks whether somebody is there, or what can be called.
    Probe,
}

/// Room for the calls of a class.
struct Limits {
    /// At one time.
    running: usize,
    /// That wait for their turn; one more is refused.
    waiting: usize,
    /// How long one may take when its client says nothing.
    duration: Duration,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Class {
    const ALL: [Self; 5] = [Self::Read, Self::Change, Self::Watch, Self::Transfer, Self::Probe];

    /// The class of the method that is called at `path`. What nobody knows is a change.
    pub(super) fn of(path: &str) -> Self {
        let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
        match (service, method) {
            (_, "Watch" | "WatchSnapshots" | "Events") => Self::Watch,
            (service, _) if service.starts_with("grpc.") => Self::Probe,
            ("ashlar.v1.LvolService", "Export" | "Import") => Self::Transfer,
            (_, method) if ["List", "Get", "Info"].iter().any(|word| method.starts_with(word)) => Self::Read,
            _ => Self::Change,
        }
    }

    const fn limits(self) -> Limits {
        match self {
            // Longer than a list waits for stores that are being opened.
            Self::Read => Limits { running: 64, waiting: 1024, duration: Duration::from_secs(15) },
            // Longer than a creation waits for peers and its engine, and less than `ashlar` waits.
            Self::Change => Limits { running: 64, waiting: 1024, duration: Duration::from_secs(55) },
            // A watch that is cut off goes on where it was.
            Self::Watch => Limits { running: 128, waiting: 0, duration: DAY },
            Self::Transfer => Limits { running: 16, waiting: 0, duration: Duration::from_secs(7 * 24 * 60 * 60) },
            Self::Probe => Limits { running: 32, waiting: 128, duration: Duration::from_secs(60) },
        }
    }

    /// How long a call may take when its client says nothing.
    pub(super) const fn duration(self) -> Duration {
        self.limits().duration
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "reads",
            Self::Change => "changes",
            Self::Watch => "watches",
            Self::Transfer => "transfers",
            Self::Probe => "probes",
        })
    }
}

/// Room for the calls of all classes.
pub(super) struct Rooms {
    rooms: [Room; Class::ALL.len()],
}

struct Room {
    /// For those that run and those that wait.
    all: Arc<Semaphore>,
    running: Arc<Semaphore>,
}

/// One call's place, until it is dropped.
pub(super) struct Place {
    _one_of_all: OwnedSemaphorePermit,
    _running: OwnedSemaphorePermit,
}

impl Default for Rooms {
    fn default() -> Self {
        Self { rooms: Class::ALL.map(|class| Room::new(&class.limits())) }
    }
}

impl Rooms {
    /// Waits for a place, in order; refuses at once if too many wait already.
    pub(super) async fn enter(&self, class: Class) -> Result<Place, Status> {
        let room = &self.rooms[class as usize];
        let one_of_all = Arc::clone(&room.all).try_acquire_owned().map_err(|_| busy(class))?;
        // Nobody closes it.
        let running = Arc::clone(&room.running).acquire_owned().await.map_err(|_| busy(class))?;
        Ok(Place { _one_of_all: one_of_all, _running: running })
    }

    #[cfg(test)]
    pub(super) fn taken(&self, class: Class) -> usize {
        class.limits().running - self.rooms[class as usize].running.available_permits()
    }
}

impl Room {
    fn new(limits: &Limits) -> Self {
        let all = Arc::new(Semaphore::new(limits.running + limits.waiting));
        Self { all, running: Arc::new(Semaphore::new(limits.running)) }
    }
}

fn busy(class: Class) -> Status {
    let Limits { running, waiting, .. } = class.limits();
    let text = match waiting {
        0 => format!("{running} {class} are under way already: try again later"),
        _ => format!("{running} {class} are under way and {waiting} more wait already: try again soon"),
    };
    let details = [("class", class.to_string()), ("limit", running.to_string()), ("waiting", waiting.to_string())];
    proto::error::status(Code::Unavailable, &text, name_of(ErrorReason::Busy), details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_method_has_its_class() {
        for (path, class) in [
            ("/ashlar.v1.VolumeService/List", Class::Read),
            ("/ashlar.v1.VolumeService/ListSnapshots", Class::Read),
            ("/ashlar.v1.NodeService/Info", Class::Read),
            ("/ashlar.v1.NodeService/GetLog", Class::Read),
            ("/ashlar.v1.NodeService/Events", Class::Watch),
            ("/ashlar.v1.VolumeService/Watch", Class::Watch),
            ("/ashlar.v1.VolumeService/WatchSnapshots", Class::Watch),
            ("/grpc.health.v1.Health/Watch", Class::Watch),
            ("/grpc.health.v1.Health/Check", Class::Probe),
            ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Class::Probe),
            ("/ashlar.v1.LvolService/Export", Class::Transfer),
            ("/ashlar.v1.LvolService/Import", Class::Transfer),
            ("/ashlar.v1.VolumeService/Export", Class::Change),
            ("/ashlar.v1.VolumeService/Create", Class::Change),
            ("/ashlar.v1.OperationService/Cancel", Class::Change),
            ("/", Class::Change),
            ("", Class::Change),
        ] {
            assert_eq!(Class::of(path), class, "{path}");
        }
    }

    #[test]
    fn classes_are_where_they_are_looked_for() {
        for (place, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, place);
        }
    }

    #[tokio::test]
    async fn a_class_that_is_full_refuses_and_the_others_go_on() {
        let rooms = Rooms::default();
        let Limits { running, .. } = Class::Transfer.limits();
        let mut places = Vec::new();
        for _ in 0..running {
            places.push(rooms.enter(Class::Transfer).await.expect("room"));
        }
        let refused = rooms.enter(Class::Transfer).await.err().expect("no room");
        let info = proto::error::info(&refused).expect("details");
        assert_eq!((refused.code(), info.reason.as_str()), (Code::Unavailable, "BUSY"));
        assert_eq!((info.metadata["class"].as_str(), &info.metadata["limit"]), ("transfers", &running.to_string()));
        assert!(rooms.enter(Class::Read).await.is_ok());
        places.pop();
        assert!(rooms.enter(Class::Transfer).await.is_ok());
    }

    #[tokio::test]
    async fn beyond_those_that_run_some_wait_and_one_more_is_refused() {
        let rooms = Rooms::default();
        let Limits { running, waiting, .. } = Class::Probe.limits();
        let mut places = Vec::new();
        for _ in 0..running {
            places.push(rooms.enter(Class::Probe).await.expect("room"));
        }
        let mut queue: Vec<_> = (0..waiting).map(|_| Box::pin(rooms.enter(Class::Probe))).collect();
        for waiting in &mut queue {
            assert!(is_pending(waiting).await);
        }
        assert!(!is_pending(&mut Box::pin(rooms.enter(Class::Probe))).await, "it is refused at once");
        places.pop();
        let _first = queue.remove(0).await.expect("it is the next one");
        assert!(is_pending(&mut queue[0]).await, "there was one place");
    }

    async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
        std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())).await
    }
}
