//! A replica as an engine sees it.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use block_device::{BlockDevice, Error, Geometry, Outcome, Range};
use reactor::Instant;
use uuid::Uuid;

pub use replica_protocol::{MAX_ATTACHED, MAX_MEMBERSHIP, MAX_NOTE, Membership, NOTES};

/// Whether a copy of the membership record of so many bytes, with so many attached, needs space of the store. Few bytes do not, nor when
/// the record grows: up to twelve replicas.
pub const fn needs_space(copy: usize, attached: usize) -> bool {
    attached > 1024 || copy + attached > 3890
}

/// A future of control code: boxed, and of this thread.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// An open replica, local or remote. As a [`BlockDevice`] it reads and writes the head at the epoch it was opened with.
///
/// Once it has failed it stays so: everything in flight ends with the failure's error, and so does everything new. Open
/// it again to go on.
pub trait Replica: BlockDevice {
    /// Which replica it is.
    fn id(&self) -> Uuid;

    /// What was granted when it was opened.
    fn granted(&self) -> Granted;

    /// Whether it is reached without a connection.
    fn is_local(&self) -> bool;

    /// Why it failed, if it has.
    fn failure(&self) -> Option<Error>;

    /// Waits until it has failed.
    fn failed(&self) -> LocalFuture<'_, Error>;

    /// Fails it: everything in flight ends with `error` now. What already is at a disk may still land, until the replica is
    /// opened again (I15).
    fn fail(&self, error: Error);

    /// When the oldest request in flight was submitted.
    fn oldest(&self) -> Option<Instant>;

    /// The age of the oldest request at the replica's disk as its node last said; none where `oldest` says it all.
    fn reported_age(&self) -> Option<Duration>;

    /// The chain, oldest first, the head last.
    fn chain(&self) -> LocalFuture<'_, Result<Vec<ChainEntry>, Error>>;

    /// Cuts the head: the snapshot has this size, that of the volume when it was cut, whatever the head has (I24). No write may be in flight
    /// (the engine holds them). The same snapshot again is no error.
    fn snapshot(&self, id: Uuid, size: u64, name: &str) -> LocalFuture<'_, Result<(), Error>>;

    /// Deletes a snapshot of the chain: what it holds stays with whoever reads through it. One that is not there is no
    /// error.
    fn delete_snapshot(&self, id: Uuid) -> LocalFuture<'_, Result<(), Error>>;

    /// Makes the head read as a snapshot of the chain does; snapshots after that one are deleted. No write may be in
    /// flight (the engine holds them).
    fn revert(&self, snapshot: Uuid) -> LocalFuture<'_, Result<(), Error>>;

    /// Makes the head at least so large, durably (I39). Then [`Replica::granted`] tells the new size.
    fn grow(&self, size: u64) -> LocalFuture<'_, Result<(), Error>>;

    /// Own blocks of an lvol of the chain within a range, at most `max` extents of them. What is long comes in parts.
    fn extents(&self, lvol: Uuid, range: Range, max: u32) -> LocalFuture<'_, Result<Extents, Error>>;

    /// Reads through an lvol of the chain.
    fn read_lvol(&self, lvol: Uuid, range: Range) -> LocalFuture<'_, Outcome>;

    /// Hashes of what is read through an lvol of the chain ([`crate::content_hash`]), one for each piece of `granule` bytes: a power
    /// of two from 4 KiB to 1 MiB. At most 4 MiB at once.
    fn hashes(&self, lvol: Uuid, range: Range, granule: u32) -> LocalFuture<'_, Result<Vec<u128>, Error>>;

    /// Changes whenever damage of a snapshot was found in the replica's store: then [`Replica::damage`] is worth a look. May lag a little.
    fn findings(&self) -> u32;

    /// Waits until [`Replica::findings`] is not `seen` any more.
    fn more_findings(&self, seen: u32) -> LocalFuture<'_, ()>;

    /// Regions of the chain's snapshots that are known to be damaged.
    fn damage(&self) -> LocalFuture<'_, Result<Vec<DamagedRegion>, Error>>;

    /// Mends a region of a snapshot of the chain with these bytes, durably. They have to hash to the value that the replica has for it (I22).
    ///
    /// # Errors
    /// [`block_device::ErrorKind::CompareMismatch`] when they do not; [`block_device::ErrorKind::InvalidField`] when there is no such
    /// region, or no value yet. Nothing is changed then.
    fn repair(&self, snapshot: Uuid, offset: u64, data: Vec<u8>) -> LocalFuture<'_, Result<(), Error>>;

    /// Begins a full rebuild: the head becomes a new, empty one without snapshots, marked
    /// [`ReplicaState::Rebuilding`]; what was there is deleted. No request may be in flight.
    fn reset(&self) -> LocalFuture<'_, Result<(), Error>>;

    /// Marks the chain as whole or not, durably.
    fn set_state(&self, state: ReplicaState) -> LocalFuture<'_, Result<(), Error>>;

    /// Keeps a note for the engine: at most [`MAX_NOTE`] bytes, in place of what was there. An answered one survives a kill of the
    /// replica's process, a durable one a power cut.
    fn set_note(&self, place: u8, content: &[u8], durable: bool) -> LocalFuture<'_, Result<(), Error>>;

    /// All notes, in the order of their places.
    fn notes(&self) -> LocalFuture<'_, Result<Vec<Note>, Error>>;

    /// Keeps a copy of the membership record for the engine, durably, in place of the one before: 1 to [`MAX_MEMBERSHIP`]
    /// bytes, and at most [`MAX_ATTACHED`] that are attached. A reset keeps the former only.
    fn set_membership(&self, content: &[u8], attached: &[u8]) -> LocalFuture<'_, Result<(), Error>>;

    /// That copy. The only thing that a replica opened at epoch zero tells.
    fn membership(&self) -> LocalFuture<'_, Result<Membership, Error>>;

    /// A time at which no newer epoch had been granted, as late as is known; it stays what it was once the replica has failed.
    fn confirmed(&self) -> Instant;

    /// Lets go of it: requests in flight still end, new ones are refused.
    fn close(&self);
}

/// What an engine keeps with a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Its place, below [`NOTES`].
    pub place: u8,
    /// Written since the replica's machine started: nothing written later can have been lost.
    pub current: bool,
    /// The engine's bytes.
    pub content: Vec<u8>,
}

/// A region of a snapshot that is damaged: [`REPAIR_REGION`] bytes, or up to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedRegion {
    /// The snapshot.
    pub snapshot: Uuid,
    /// Bytes from its start.
    pub offset: u64,
}

/// Bytes of a region that is mended at once, the same on every replica.
pub const REPAIR_REGION: u64 = lvol::REGION;

/// What to open, and as whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenReplica {
    /// Which replica.
    pub replica: Uuid,
    /// The volume it must belong to.
    pub volume: Uuid,
    /// The epoch asked for. Zero to look at it only: nothing changes, no other grant ends, and all that can be asked is
    /// [`Replica::membership`].
    pub epoch: u64,
    /// The engine that asks: the same epoch is granted again only to the same instance.
    pub instance: Uuid,
}

/// What an open replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The epoch of all its I/O.
    pub epoch: u64,
    /// Size and limits.
    pub geometry: Geometry,
    /// Whether its chain is whole.
    pub state: ReplicaState,
}

/// Whether a replica's chain is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// It is.
    Complete,
    /// A full rebuild began and has not ended.
    Rebuilding,
}

/// One lvol of a replica's chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainEntry {
    /// Its uuid: a snapshot has the same on every replica, a head has its own.
    pub id: Uuid,
    /// When it was made, in seconds since the Unix epoch.
    pub created: u64,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub kind: LvolKind,
    /// Its name, a label.
    pub name: String,
}

/// What an lvol of a chain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LvolKind {
    /// The writable end.
    Head,
    /// An immutable ancestor.
    Snapshot,
}

/// Own blocks of an lvol, in order. What is not listed is read through the parent, or is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents {
    /// The extents.
    pub list: Vec<Extent>,
    /// Where to go on; none when that is all.
    pub next: Option<u64>,
}

/// A run of own blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where, in bytes.
    pub range: Range,
    /// What it holds.
    pub kind: ExtentKind,
}

/// What own blocks hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Data.
    Data,
    /// Zeroes, whatever the parent has there.
    Zero,
}
