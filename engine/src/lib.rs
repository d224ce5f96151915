//! The one writer of a volume: membership, write path, read choice, snapshots, rebuild.
//!
//! ```text
//!  submit ─ Flight (order of overlaps) ─ Core ─┬─ replicas in sync ──── all answered ─ record says so? ─ acknowledge
//!                                              └─ replicas being copied        │
//!                     Session: open, epochs, start over                recording failures
//!                     Copy: rebuild, settle                             in the Registry
//! ```
//!
//! `docs/replication.md` has the rules, and the reasons for their order.

#![forbid(unsafe_code)]

mod admission;
mod allocation;
mod config;
mod connector;
mod copy;
mod core;
mod cuts;
mod engine;
mod flight;
mod guard;
mod intent;
mod latency;
mod lease;
mod members;
mod membership;
mod mending;
mod notes;
mod noting;
mod reading;
mod rebuilds;
mod recording;
mod regions;
mod registry;
mod reservations;
mod resize;
mod restoring;
mod revert;
mod session;
mod snapshot;
mod spreading;
mod together;

pub use crate::config::{
    CopyProgress, EngineConfig, EngineError, EngineState, EngineStatus, MIN_DEADLINE, REBUILDS, ReplicaStatus,
};
pub use crate::connector::Connector;
pub use crate::engine::Engine;
pub use crate::rebuilds::{RebuildSettings, Rebuilds};
pub use crate::registry::{
    FileRegistry, MAX_REPLICAS, MAX_RESERVATIONS, MemberState, NewReplica, PendingChange, Registry, RegistryError,
    ReplicaRecord, VolumeRecord, membership_of_copy,
};
pub use crate::restoring::{Survey, restore, survey, survey_with};
