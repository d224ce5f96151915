//! What an engine is told, and what it tells.

use std::sync::Arc;
use std::time::Duration;

use block_device::{ErrorKind, Meter};
use replica::{RemoteOptions, ReplicaServer};
use uuid::Uuid;

use crate::lease::LEASE;
use crate::notes::CAPACITY;
use crate::rebuilds::{RebuildSettings, Rebuilds};
use crate::registry::{MemberState, RegistryError};

/// The shortest deadline that ordinary disks meet.
pub const MIN_DEADLINE: Duration = Duration::from_millis(500);

/// How an engine works.
#[derive(Clone)]
pub struct EngineConfig {
    /// Which volume.
    pub volume: Uuid,
    /// After how long a replica that does not answer is out of sync; [`MIN_DEADLINE`] at least, and less than the hosts' I/O
    /// time-out (I35).
    pub replica_deadline: Duration,
    /// How long a start waits for replicas that are in sync but do not answer, once another one is there.
    pub open_wait: Duration,
    /// For how long after the replicas in sync confirmed the epoch reads are answered. The same for all engines of a volume, wherever they
    /// run; longer than it takes to find out that a replica is silent (I35).
    pub lease: Duration,
    /// Replicas on this reactor, by uuid: reached without a connection.
    pub local: Vec<(Uuid, ReplicaServer)>,
    /// How the others are reached.
    pub remote: RemoteOptions,
    /// What the rebuilds of all volumes of the node share.
    pub rebuilds: Arc<Rebuilds>,
    /// How those of this volume work at first: [`crate::Engine::set_rebuild`] changes it.
    pub rebuild: RebuildSettings,
    /// Whether copies leave so much to hosts that these are not slowed down much.
    pub rebuild_guard: bool,
    /// Regions that are noted at most as those where writes may be in flight: 4 to 1,000. Fewer leave less to settle after a crash, and are
    /// noted more often.
    pub noted_regions: usize,
    /// Counts what hosts send. Only this engine writes to it.
    pub meter: Arc<Meter>,
}

/// Copies at once on a node.
pub const REBUILDS: usize = 4;

impl EngineConfig {
    /// The usual configuration.
    pub fn new(volume: Uuid) -> Self {
        Self {
            volume,
            replica_deadline: Duration::from_secs(4),
            open_wait: Duration::from_secs(5),
            lease: LEASE,
            local: Vec::new(),
            remote: RemoteOptions::default(),
            rebuilds: Rebuilds::new(REBUILDS, 0),
            rebuild: RebuildSettings::default(),
            rebuild_guard: true,
            noted_regions: CAPACITY,
            meter: Arc::default(),
        }
    }
}

/// Why an engine did not start or do something.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The registry knows no such volume.
    #[error("there is no volume {0}")]
    NoVolume(Uuid),
    /// The configuration cannot work (I35).
    #[error("{0}")]
    Config(String),
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The engine has stopped, or lost the volume to another one.
    #[error("the engine has stopped: {0}")]
    Stopped(String),
    /// The volume does not serve now.
    #[error("the volume is not served now: {0}")]
    Unavailable(String),
    /// No replica could do it.
    #[error("no replica could do it: {0}")]
    Failed(block_device::Error),
}

impl EngineError {
    /// What a caller on the data path would be told.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Failed(error) => error.kind(),
            Self::Stopped(_) => ErrorKind::Fenced,
            Self::Config(_) | Self::NoVolume(_) => ErrorKind::InvalidField,
            Self::Registry(_) | Self::Unavailable(_) => ErrorKind::Unavailable,
        }
    }
}

/// An engine now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineStatus {
    /// Which volume.
    pub volume: Uuid,
    /// The epoch it holds.
    pub epoch: u64,
    /// Bytes.
    pub size: u64,
    /// What it does.
    pub state: EngineState,
    /// Its replicas, in the record's order.
    pub replicas: Vec<ReplicaStatus>,
    /// Requests it has not answered.
    pub in_flight: usize,
    /// Regions of 1 MiB noted with the replicas as those where writes may be in flight.
    pub noted_regions: usize,
    /// How rebuilds work.
    pub rebuild: RebuildSettings,
}

/// What an engine does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineState {
    /// It cannot serve yet, and tries again until it can; requests are answered with Unavailable.
    Waiting {
        /// What it waits for.
        reason: String,
    },
    /// It serves.
    Serving,
    /// It ends.
    Stopping,
    /// It has ended.
    Stopped {
        /// Why.
        reason: String,
    },
}

/// A replica as the engine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Which.
    pub replica: Uuid,
    /// The name of its node.
    pub node: String,
    /// What the registry says of it.
    pub state: MemberState,
    /// Whether it is open.
    pub connected: bool,
    /// Whether it is on the engine's reactor.
    pub local: bool,
    /// The last thing that went wrong with it, if something did.
    pub trouble: Option<String>,
    /// How often it left since it was last in sync for a minute.
    pub departures: u32,
    /// When it is tried again, if it is left alone until then.
    pub next_try: Option<Duration>,
    /// Bytes of the regions in which it may lack something, while it is not in sync; none if that is not known.
    pub changed: Option<u64>,
    /// How far its rebuild or settling is.
    pub copy: Option<CopyProgress>,
    /// Blocks of the volume and regions of snapshots that it could not read, or had wrong, and that were mended from another replica.
    pub repaired: u64,
    /// Those that could not be mended when it was tried last.
    pub unrepaired: u64,
    /// The age of its oldest request in flight.
    pub oldest_request: Option<Duration>,
}

/// How far a rebuild or settling is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyProgress {
    /// What it does, in words.
    pub step: String,
    /// Why it does not go on now, if so.
    pub waiting: Option<String>,
    /// Bytes gone through, of all lvols together: what turned out to be the same or a hole too.
    pub done: u64,
    /// Bytes to go through in all, as far as is known.
    pub total: u64,
    /// Bytes compared by their hashes so far.
    pub compared: u64,
    /// Bytes of data sent to the replica so far.
    pub written: u64,
    /// Bytes compared or sent in a second, lately.
    pub rate: u64,
    /// How long it takes from here at that pace, if that can be said.
    pub remaining: Option<Duration>,
}
