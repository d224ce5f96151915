//! Errors of the data path, told to people: what happened, and what to do.

use std::io;
use std::path::Path;

use engine::{EngineError, RegistryError};
use lvol::StoreError;
use replica::ReplicaError;

use super::StoreSpec;
use crate::control::ControlError;

/// A path that cannot be opened.
pub(super) fn disk_error(path: &Path, error: &io::Error) -> ControlError {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            let text = format!("{shown} does not exist; to make a new file there, give a size");
            ControlError::precondition("NO_SUCH_PATH", text)
        }
        io::ErrorKind::WouldBlock => {
            let text = format!("{shown} is in use by another process or store: {error}");
            ControlError::precondition("PATH_IN_USE", text)
        }
        io::ErrorKind::InvalidInput => {
            let text = format!("{shown} cannot be used: {error}; its file system may have no direct I/O (O_DIRECT)");
            ControlError::precondition("NO_DIRECT_IO", text)
        }
        io::ErrorKind::StorageFull => ControlError::exhausted(format!("{shown}: {error}")),
        _ => ControlError::precondition("PATH_FAILED", format!("{shown} cannot be used: {error}")),
    }
}

/// A store that cannot be formatted or opened.
pub(super) fn store_error(spec: &StoreSpec, error: StoreError) -> ControlError {
    match error {
        StoreError::Occupied { uuid, name } => {
            let text = format!("it holds store {uuid} (`{name}`) already: take that one in with --uuid {uuid}");
            ControlError::precondition("STORE_EXISTS", text).with("uuid", uuid).with("store", name)
        }
        StoreError::NotAStore { detail } => {
            let text = format!("what is there is not a store: {detail}");
            ControlError::precondition("NOT_A_STORE", text)
        }
        StoreError::Invalid { detail } => ControlError::invalid("store", detail),
        error => other(error),
    }
    .with("store", &spec.name)
}

/// A store that cannot be changed as asked.
pub(super) fn change_error(error: StoreError) -> ControlError {
    match error {
        StoreError::Invalid { detail } => ControlError::invalid("store", detail),
        error => other(error),
    }
}

/// An lvol that cannot be changed, read or filled.
pub(super) fn lvol_error(error: StoreError) -> ControlError {
    match error {
        StoreError::NotFound { uuid } => ControlError::not_found("lvol", uuid),
        StoreError::Deleting { .. } => ControlError::precondition("DELETING", error),
        StoreError::Incomplete { .. } => ControlError::precondition("INCOMPLETE", error),
        StoreError::InUse { .. } => ControlError::precondition("IN_USE", error),
        StoreError::LvolDamaged { .. } => ControlError::precondition("LVOL_DAMAGED", error),
        StoreError::Invalid { detail } => ControlError::invalid("lvol", detail),
        error => other(error),
    }
}

/// A replica that cannot be made or deleted.
pub(super) fn replica_error(error: ReplicaError) -> ControlError {
    match error {
        ReplicaError::Store(error) => other(error),
        ReplicaError::NotFound { replica } => ControlError::not_found("replica", replica),
        error @ ReplicaError::Conflict { .. } => ControlError::precondition("CONFLICT", error),
        error @ ReplicaError::InUse { .. } => ControlError::precondition("IN_USE", error),
        error @ ReplicaError::NoOrigin(_) => ControlError::precondition("NO_SOURCE", error),
        ReplicaError::OtherVolume { replica, volume } => {
            ControlError::other_uuid("the volume of replica", replica, volume)
        }
    }
}

/// An engine that cannot start or do something.
pub(super) fn engine_error(volume: &str, error: EngineError) -> ControlError {
    match error {
        EngineError::Registry(error) => registry_error(error),
        EngineError::Unavailable(_) => ControlError::unavailable("ENGINE_STARTING", error),
        EngineError::NoVolume(_) => {
            let text = format!("which replicas of volume `{volume}` are in sync is not on record any more");
            ControlError::precondition("NO_MEMBERSHIP", text)
        }
        EngineError::Failed(error) if error.kind() == block_device::ErrorKind::NoSpace => {
            ControlError::exhausted(error)
        }
        error => ControlError::precondition("ENGINE", error),
    }
}

/// Membership records that cannot be read or written.
pub(super) fn registry_error(error: RegistryError) -> ControlError {
    match error {
        RegistryError::Unreachable(_) => ControlError::unavailable("REGISTRY", error),
        error => ControlError::failed("REGISTRY", error),
    }
}

fn other(error: StoreError) -> ControlError {
    match error {
        error @ StoreError::NoSpace { .. } => ControlError::exhausted(error),
        StoreError::Overcommitted { provisioned, more, allowed, percent } => {
            ControlError::overcommitted(error.to_string())
                .with("provisioned_bytes", provisioned)
                .with("asked_bytes", more)
                .with("allowed_bytes", allowed)
                .with("overcommit_percent", percent)
        }
        error @ StoreError::Conflict { .. } => ControlError::precondition("CONFLICT", error),
        error @ (StoreError::Damaged { .. } | StoreError::LvolDamaged { .. }) => {
            ControlError::precondition("STORE_DAMAGED", error)
        }
        error @ StoreError::Unsupported { .. } => ControlError::precondition("STORE_FORMAT", error),
        error @ StoreError::Closed => ControlError::unavailable("STORE_CLOSED", error),
        error => ControlError::failed("STORE", error),
    }
}
