//! A node's replicas, and how an engine reaches them: directly, or through a connection.
//!
//! ```text
//!  engine ── dyn Replica ─┬─ LocalReplica ───────────────────────────────┐
//!                         │                                              ├─ Gate ─ lvol head
//!                         └─ RemoteReplica ──TCP── Connection ─ LocalReplica
//! ```
//!
//! What keeps connections private is behind [`Security`]. A [`ReplicaServer`] sits on the reactor that owns its store. A [`ReplicaListener`] takes connections on any reactor and
//! hands each to the server of the replica it asks for. `docs/replication.md` and `docs/replica-protocol.md` have the rules.

#![forbid(unsafe_code)]

mod connection;
mod directory;
mod error;
mod gate;
mod handle;
mod hashes;
mod listener;
mod remote;
mod server;
mod status;
mod stream;

pub use crate::directory::Directory;
pub use crate::error::OpenError;
pub use crate::handle::{
    ChainEntry, DamagedRegion, Extent, ExtentKind, Extents, Granted, LocalFuture, LvolKind, MAX_ATTACHED,
    MAX_MEMBERSHIP, MAX_NOTE, Membership, NOTES, Note, OpenReplica, REPAIR_REGION, Replica, ReplicaState, needs_space,
};
pub use crate::hashes::content_hash;
pub use crate::listener::{ReplicaHost, ReplicaListener};
pub use crate::remote::{RemoteOptions, RemoteReplica};
pub use crate::server::{LocalReplica, Origin, Owner, ReplicaError, ReplicaInfo, ReplicaServer, ReplicaSpec, owners};
pub use crate::stream::{SecureSession, Security};
