//! What the control side and the data path tell each other: plain values that can cross threads.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lvol::StoreLimits;
use proto::v1::{EngineState, MemberState};
use uuid::Uuid;

use crate::control::{Comparison, ControlError, Frontends};

/// Where and what a store is.
#[derive(Clone, Debug)]
pub(crate) struct StoreSpec {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) backing: Backing,
    /// Bytes.
    pub(crate) cluster_size: u32,
}

/// How far the space of a store may be used, as far as a request says so.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WantedLimits {
    /// Of all heads; 0 for any size.
    pub(crate) overcommit_percent: Option<u32>,
    /// Bytes.
    pub(crate) reserve: Option<u64>,
}

impl WantedLimits {
    /// The limits with what is not given taken from `others`.
    pub(crate) fn over(&self, others: StoreLimits) -> StoreLimits {
        StoreLimits {
            overcommit_percent: self.overcommit_percent.unwrap_or(others.overcommit_percent),
            reserve: self.reserve.unwrap_or(others.reserve),
        }
    }

    /// An error that names what a store has otherwise (I30). The reserve is one of whole clusters.
    pub(crate) fn compare(&self, store: &str, found: StoreLimits, cluster_size: u32) -> Result<(), ControlError> {
        let cluster = u64::from(cluster_size);
        let reserve = self.reserve.map(|bytes| bytes.div_ceil(cluster).saturating_mul(cluster));
        Comparison::default()
            .optional("overcommit_percent", found.overcommit_percent, self.overcommit_percent)
            .optional("reserve_bytes", found.reserve, reserve)
            .finish("store", store)
    }
}

/// What a store lives in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// A file or block device. A file that does not exist is made with this size in bytes, if one is given.
    Path { path: PathBuf, create: Option<u64> },
    /// Memory of this size in bytes, gone with the process.
    Memory { size: u64 },
}

/// An open store.
#[derive(Clone, Debug)]
pub(crate) struct StoreFacts {
    /// Bytes for data.
    pub(crate) size: u64,
    /// Bytes of it that are free.
    pub(crate) free: u64,
    /// Bytes.
    pub(crate) cluster_size: u32,
    pub(crate) lvols: u32,
    /// Bytes of the file or device in use.
    pub(crate) disk_size: u64,
    /// Bytes of all heads.
    pub(crate) provisioned: u64,
    pub(crate) limits: StoreLimits,
    /// Bytes.
    pub(crate) metadata: u64,
    /// Bytes.
    pub(crate) metadata_room: u64,
    /// Why nothing is written to it any more, if so.
    pub(crate) failure: Option<String>,
    pub(crate) scrub: ScrubFacts,
    pub(crate) work: lvol::StoreWork,
}

/// Hashes and scrubs of an open store.
#[derive(Clone, Debug)]
pub(crate) struct ScrubFacts {
    /// Bytes a second; 0 for off.
    pub(crate) hash_rate: u64,
    /// Snapshots that stay.
    pub(crate) snapshots: usize,
    /// Those of them with all hashes.
    pub(crate) hashed: usize,
    /// Bytes of the disk that are marked.
    pub(crate) damaged: u64,
    /// The scrub under way, or else the last one.
    pub(crate) run: Option<ScrubRun>,
    /// About how many bytes the one under way has not looked at yet.
    pub(crate) left: u64,
    /// When the store was made, in seconds since the Unix epoch.
    pub(crate) store_made: u64,
}

/// A scrub of a store.
#[derive(Clone, Debug)]
pub(crate) struct ScrubRun {
    /// Seconds since the Unix epoch.
    pub(crate) started: u64,
    /// The same; none while it is under way.
    pub(crate) ended: Option<u64>,
    /// Why it ended before it was through.
    pub(crate) error: Option<String>,
    /// Bytes a second.
    pub(crate) rate: u64,
    pub(crate) found: lvol::ScrubReport,
}

/// What hosts know a volume by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExportIdentity {
    pub(crate) nqn: String,
    pub(crate) serial: String,
    /// 32 hexadecimal digits.
    pub(crate) nguid: String,
    pub(crate) iqn: String,
    /// Of the SCSI unit.
    pub(crate) unit_serial: String,
    /// 16 hexadecimal digits.
    pub(crate) naa: String,
}

impl ExportIdentity {
    /// All of it derives from the volume's UUID (I37).
    pub(crate) fn of(volume: Uuid) -> Self {
        let identity = nvmf_target::Identity::of_volume(volume);
        let target = iscsi_target::Identity::of_volume(volume);
        let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            nguid: hexadecimal(&identity.nguid),
            nqn: identity.nqn,
            serial: identity.serial,
            iqn: target.name.to_string(),
            unit_serial: target.serial(),
            naa: hexadecimal(&target.naa()),
        }
    }
}

/// A replica to make.
#[derive(Clone, Debug)]
pub(crate) struct ReplicaSpec {
    pub(crate) uuid: Uuid,
    pub(crate) volume: Uuid,
    pub(crate) name: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Bytes.
    pub(crate) block_size: u32,
}

/// What a new replica begins with: a snapshot of a replica in the same store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplicaOrigin {
    pub(crate) replica: Uuid,
    pub(crate) snapshot: Uuid,
}

/// A replica in an open store.
#[derive(Clone, Debug)]
pub(crate) struct ReplicaFacts {
    pub(crate) spec: ReplicaSpec,
    pub(crate) store: Uuid,
    pub(crate) epoch: u64,
    pub(crate) snapshots: u32,
    /// Bytes.
    pub(crate) used: u64,
    /// Why it cannot be used, if it cannot.
    pub(crate) failure: Option<String>,
    /// Regions of its snapshots that were bad when a scrub looked at them last.
    pub(crate) bad_regions: u64,
}

/// What a replica that may belong to nobody says of itself.
#[derive(Clone, Debug)]
pub(crate) struct SuspectFacts {
    pub(crate) replica: Uuid,
    /// An engine has it open.
    pub(crate) is_open: bool,
    /// The node whose volume it was made for.
    pub(crate) owner: Option<String>,
    /// What its last engine left with it.
    pub(crate) copy: Option<CopyFacts>,
}

/// Who has a volume, by a record of its membership.
#[derive(Clone, Debug)]
pub(crate) struct CopyFacts {
    /// Bytes.
    pub(crate) size: u64,
    /// Bytes.
    pub(crate) block_size: u32,
    pub(crate) members: Vec<MemberSpec>,
}

/// An lvol in an open store.
#[derive(Clone, Debug)]
pub(crate) struct LvolFacts {
    pub(crate) store: Uuid,
    pub(crate) info: lvol::LvolInfo,
    /// The replica that it belongs to, if any.
    pub(crate) owner: Option<replica::Owner>,
    /// When it was asked for.
    pub(crate) usage: Option<lvol::Usage>,
    /// What its store keeps for itself about it, when it was asked for.
    pub(crate) internal: Vec<lvol::InternalInfo>,
    /// Regions that were bad when a scrub looked at it last.
    pub(crate) bad_regions: u64,
    /// Some bytes of it that are known to be wrong, when it was asked for.
    pub(crate) damaged: Vec<block_device::Range>,
}

/// A change of a single lvol.
#[derive(Clone, Debug)]
pub(crate) enum LvolChange {
    Create(lvol::CreateLvol),
    /// Makes one that is incomplete.
    BeginImport(lvol::CreateLvol),
    Delete(Uuid),
    CancelDelete(Uuid),
    Snapshot {
        head: Uuid,
        spec: lvol::SnapshotSpec,
    },
    Clone {
        snapshot: Uuid,
        spec: lvol::CreateLvol,
    },
    Revert {
        head: Uuid,
        snapshot: Uuid,
    },
    /// To this many bytes.
    Grow {
        id: Uuid,
        size: u64,
    },
    Rename {
        id: Uuid,
        name: String,
    },
}

/// Some of an lvol's data on its way.
#[derive(Debug)]
pub(crate) struct LvolPiece {
    /// Bytes from the start of the lvol.
    pub(crate) offset: u64,
    pub(crate) data: Vec<u8>,
}

/// An engine to start.
#[derive(Clone, Debug)]
pub(crate) struct EngineSpec {
    pub(crate) volume: Uuid,
    pub(crate) name: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Bytes.
    pub(crate) block_size: u32,
    pub(crate) members: Vec<MemberSpec>,
    pub(crate) rebuild: engine::RebuildSettings,
    pub(crate) limits: block_device::Limits,
    pub(crate) frontends: Frontends,
}

#[cfg(debug_assertions)]
impl EngineSpec {
    /// A volume that nobody made.
    pub(crate) fn stranger(volume: Uuid) -> Self {
        Self {
            volume,
            name: String::new(),
            size: 1 << 20,
            block_size: 4096,
            members: Vec::new(),
            rebuild: engine::RebuildSettings::default(),
            limits: block_device::Limits::default(),
            frontends: Frontends::default(),
        }
    }
}

/// A replica for an engine.
#[derive(Clone, Debug)]
pub(crate) struct MemberSpec {
    pub(crate) replica: Uuid,
    pub(crate) node: String,
    pub(crate) address: SocketAddr,
    /// The store it is in, if that is one of this node's.
    pub(crate) store: Option<Uuid>,
}

/// A volume as hosts are to see it.
#[derive(Clone, Debug)]
pub(crate) struct ExportFacts {
    /// Why its frontends are not those that are wanted; none if they are.
    pub(crate) trouble: Option<String>,
    /// None if it is not started.
    pub(crate) engine: Option<EngineFacts>,
}

/// A running engine.
#[derive(Clone, Debug)]
pub(crate) struct EngineFacts {
    pub(crate) state: EngineState,
    pub(crate) reason: String,
    pub(crate) epoch: u64,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) members: Vec<MemberFacts>,
}

/// A snapshot of a volume.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFacts {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    /// Seconds since the Unix epoch.
    pub(crate) created: u64,
    /// Bytes.
    pub(crate) size: u64,
}

/// A change of a volume on all its replicas.
#[derive(Clone, Debug)]
pub(crate) enum VolumeChange {
    DeleteSnapshot(Uuid),
    Revert {
        snapshot: Uuid,
        discard_newer: bool,
    },
    /// To this many bytes.
    Grow(u64),
    AddReplica(MemberSpec),
    RemoveReplica(Uuid),
}

/// A replica as a running engine sees it.
#[derive(Clone, Debug)]
pub(crate) struct MemberFacts {
    pub(crate) replica: Uuid,
    pub(crate) state: MemberState,
    pub(crate) reason: String,
    pub(crate) copy: Option<engine::CopyProgress>,
    pub(crate) next_try: Option<Duration>,
    pub(crate) departures: u32,
    pub(crate) connected: bool,
    /// Places that were mended from another replica.
    pub(crate) repaired: u64,
    /// Those that could not be.
    pub(crate) unrepaired: u64,
    /// Bytes in which it may lack something that was acknowledged.
    pub(crate) lag: u64,
    /// The age of its oldest request that is not answered.
    pub(crate) oldest_request: Option<Duration>,
}
