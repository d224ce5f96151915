//! What is asked of a store and what it tells about itself.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

/// How to format a disk.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// The store's identity.
    pub uuid: Uuid,
    /// A label for people, at most 255 bytes.
    pub name: String,
    /// The unit of allocation in bytes: a power of two, 16 KiB to 4 MiB; 64 KiB suits most.
    pub cluster_size: u32,
    /// How far its space may be used.
    pub limits: StoreLimits,
    /// Overwrite a store that is there.
    pub force: bool,
}

/// How far the space of a store may be used. Can be changed later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreLimits {
    /// How large all heads together may be, in percent of the store; 0 for any size. What is there already stays, but nothing is made
    /// or grown beyond it.
    pub overcommit_percent: u32,
    /// Bytes that writes of hosts do not take, so that the store's own work finds space on a full store; rounded up to
    /// clusters.
    pub reserve: u64,
}

impl FormatOptions {
    /// The cluster size that suits most uses, in bytes.
    pub const DEFAULT_CLUSTER_SIZE: u32 = 64 << 10;

    /// The usual options for a store of this identity.
    pub fn new(uuid: Uuid, name: impl Into<String>) -> Self {
        Self {
            uuid,
            name: name.into(),
            cluster_size: Self::DEFAULT_CLUSTER_SIZE,
            limits: StoreLimits::default(),
            force: false,
        }
    }
}

/// A store now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreInfo {
    /// Its identity.
    pub uuid: Uuid,
    /// Its label.
    pub name: String,
    /// Bytes a cluster.
    pub cluster_size: u32,
    /// When it was formatted, since the Unix epoch.
    pub created_at: Duration,
    /// Data clusters in all.
    pub clusters: u64,
    /// Data clusters that can be written now.
    pub free_clusters: u64,
    /// Data clusters that were freed and can be written after the next flush.
    pub pending_clusters: u64,
    /// Bytes of data clusters in all.
    pub size: u64,
    /// Bytes of free and pending clusters, the reserve with them.
    pub free: u64,
    /// Bytes of the disk that the store uses, metadata included.
    pub disk_size: u64,
    /// Bytes of all heads.
    pub provisioned: u64,
    /// How far the space may be used.
    pub limits: StoreLimits,
    /// Bytes of metadata, with all free clusters counted as if they were mapped in the worst way.
    pub metadata: u64,
    /// Bytes that there are for metadata: new lvols end there.
    pub metadata_room: u64,
    /// How many lvols there are, without internal ones.
    pub lvols: usize,
    /// How many internal lvols there are.
    pub internal_lvols: usize,
    /// Bytes of the clusters of internal lvols.
    pub internal_bytes: u64,
    /// What a power cut leaves whole or untouched when it is overwritten, in bytes: larger blocks of lvols can be torn (I29).
    pub atomic_write: u32,
    /// How many maps are in memory: of lvols that are open and of those they read through, and of some that were.
    pub maps_in_memory: usize,
    /// Bytes of memory that these maps take.
    pub map_bytes: u64,
    /// The last user closed it in order: nothing was replayed.
    pub clean_open: bool,
    /// Some lvol is damaged; its space stays in use until the store is repaired.
    pub damaged: bool,
    /// Why nothing is written any more, if a write or flush failed.
    pub failure: Option<String>,
    /// 4 KiB blocks whose data is known to be damaged: reads of them fail until they are mended.
    pub bad_blocks: u64,
}

/// What kind of lvol it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LvolKind {
    /// Writable, the end of its chain.
    Head,
    /// Immutable.
    Snapshot,
}

/// Whether an lvol can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LvolState {
    /// It can.
    Ready,
    /// It cannot: part of its metadata, or of an ancestor's, is damaged (I28).
    Damaged {
        /// What is damaged.
        reason: String,
    },
}

/// An lvol now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LvolInfo {
    /// Its identity.
    pub uuid: Uuid,
    /// Its label.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// 512 or 4096.
    pub block_size: u32,
    /// Head or snapshot.
    pub kind: LvolKind,
    /// The snapshot it reads through.
    pub parent: Option<Uuid>,
    /// The lvols that read through it.
    pub children: Vec<Uuid>,
    /// Since the Unix epoch, in milliseconds.
    pub created_at: Duration,
    /// Bytes of its own clusters.
    pub used_bytes: u64,
    /// Small durable values by name.
    pub attributes: BTreeMap<String, Vec<u8>>,
    /// Whether it can be used.
    pub state: LvolState,
    /// An import of it is under way, or was cut off: it cannot be opened.
    pub incomplete: bool,
    /// How far its deletion is, if it was asked for while others read through it: it cannot be opened any more.
    pub deletion: Option<Deletion>,
}

/// What an internal lvol is for. An lvol has at most one of each role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Hashes of a snapshot's content.
    Hashes,
    /// Where writes of a replica may be in flight.
    Activity,
    /// What is kept with a replica's copy of the membership record.
    Attached,
}

impl Role {
    /// As it is on disk: never zero.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Hashes => 1,
            Self::Activity => 2,
            Self::Attached => 3,
        }
    }

    pub(crate) const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Hashes),
            2 => Some(Self::Activity),
            3 => Some(Self::Attached),
            _ => None,
        }
    }

    /// The role in a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hashes => "hashes",
            Self::Activity => "activity",
            Self::Attached => "attached",
        }
    }
}

/// An internal lvol now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InternalInfo {
    /// Its identity.
    pub uuid: Uuid,
    /// The lvol that it belongs to, and ends with.
    pub owner: Uuid,
    /// What it is for.
    pub role: Role,
    /// Bytes.
    pub size: u64,
    /// 512 or 4096.
    pub block_size: u32,
    /// Bytes of its own clusters.
    pub used_bytes: u64,
    /// Whether it can be used.
    pub state: LvolState,
}

/// The attribute of an lvol of which a repair gave something up, of its own or of what it reads through: how many bytes, as 8 bytes
/// in little-endian order. They read as zeroes.
pub const LOST: &str = "lost";

impl LvolInfo {
    /// Bytes that a repair gave up, of this lvol or of one that it read through then: they read as zeroes, and are not its data.
    pub fn lost_bytes(&self) -> Option<u64> {
        let value = self.attributes.get(LOST)?;
        // Whatever it says, it is there.
        Some(value.as_slice().try_into().map_or(u64::MAX, u64::from_le_bytes))
    }
}

/// How far the deletion of a snapshot is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// Its blocks are on their way into its child. It cannot be cancelled
    /// any more.
    pub merging: bool,
    /// Bytes of clusters that are still the snapshot's own.
    pub left: u64,
    /// The same when the deletion began, or when the store was opened since.
    pub total: u64,
    /// What it waits for.
    pub waits_for: Option<WaitsFor>,
    /// What went wrong at the last attempt; there will be another.
    pub error: Option<String>,
}

/// Why a snapshot that is to be deleted is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// Several lvols read through it: it goes when it is one at most.
    Children,
    /// Someone has it open.
    Users,
    /// Its child, or an ancestor, is damaged.
    Repair,
}

/// An lvol to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateLvol {
    /// Its identity.
    pub uuid: Uuid,
    /// A label for people, 1 to 255 bytes.
    pub name: String,
    /// Bytes, a multiple of the block size.
    pub size: u64,
    /// 512 or 4096.
    pub block_size: u32,
    /// Attributes from the start; not compared when it exists already, since they may have changed.
    pub attributes: BTreeMap<String, Vec<u8>>,
}

/// A snapshot to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotSpec {
    /// The snapshot's identity.
    pub uuid: Uuid,
    /// A label for people, 1 to 255 bytes.
    pub name: String,
    /// The snapshot's attributes.
    pub attributes: BTreeMap<String, Vec<u8>>,
}

/// What an lvol has of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Data.
    Data,
    /// Zeroes that hide the parent.
    Zero,
}

/// A run of an lvol's own blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes from the start of the lvol, a multiple of 4 KiB.
    pub offset: u64,
    /// Bytes; ends at the end of the lvol at the latest.
    pub length: u64,
    /// What is there.
    pub kind: ExtentKind,
}

impl Extent {
    /// The first byte behind it.
    pub const fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// What an lvol takes in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of its own clusters: each cluster is one lvol's.
    pub used: u64,
    /// Bytes that deleting it now would give back. Without children: its own. With one: the clusters that are not needed any more when
    /// its blocks are merged into the child: where both have a cluster, and where the child hides all that it has in one. With several
    /// it stays: none.
    pub unique: u64,
    /// Bytes that read as data, whoever in its chain holds them.
    pub referenced: u64,
}
