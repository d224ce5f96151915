//! Where a volume's membership is kept.

pub(crate) mod compact;
mod file;
mod record;

use std::io;

use replica::LocalFuture;
use uuid::Uuid;

pub use self::file::FileRegistry;
pub use self::record::{
    MAX_REPLICAS, MAX_RESERVATIONS, MemberState, NewReplica, PendingChange, ReplicaRecord, VolumeRecord,
};

/// The record that a replica keeps a copy of, from the copy's bytes; none if they are of another version, or no record.
pub fn membership_of_copy(bytes: &[u8]) -> Option<VolumeRecord> {
    compact::decode(bytes)
}

/// Durable records, each changed by compare-and-swap on its version.
pub trait Registry {
    /// The record of a volume; none if there is no such volume.
    fn load(&self, volume: Uuid) -> LocalFuture<'_, Result<Option<VolumeRecord>, RegistryError>>;

    /// Replaces a record if its version is `expected`, or makes it if `None` is expected and there is none. Returns the new
    /// version; then the record is durable.
    fn store(&self, expected: Option<u64>, record: &VolumeRecord) -> LocalFuture<'_, Result<u64, RegistryError>>;

    /// Takes a damaged record out of the way, so that one made anew can be stored; what was there is kept for people. One that
    /// is whole stays, and that is an error.
    fn set_aside(&self, volume: Uuid) -> LocalFuture<'_, Result<(), RegistryError>>;

    /// Forgets a volume; no error if there is none.
    fn remove(&self, volume: Uuid) -> LocalFuture<'_, Result<(), RegistryError>>;

    /// All volumes, in the order of their uuids.
    fn list(&self) -> LocalFuture<'_, Result<Vec<Uuid>, RegistryError>>;
}

/// Why a registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The record has another version: someone else changed it.
    #[error("the record of volume {volume} has version {}, not the expected one",
        found.map_or_else(|| "none".to_owned(), |version| version.to_string()))]
    Conflict {
        /// Which volume.
        volume: Uuid,
        /// The version found; none if there is no record.
        found: Option<u64>,
    },
    /// What is stored is no record (I31: trying again does not help).
    #[error("the record of volume {volume} is damaged: {detail}")]
    Damaged {
        /// Which volume.
        volume: Uuid,
        /// How.
        detail: String,
    },
    /// It could not be reached; what is stored may be fine (I31).
    #[error("the registry cannot be reached: {0}")]
    Unreachable(#[from] io::Error),
}
