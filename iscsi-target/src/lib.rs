//! The iSCSI target: volumes exported to hosts. See `docs/iscsi.md`.
//!
//! - [`Directory`]: which targets exist and who serves them; shared by all reactors of the process.
//! - [`Listener`]: accepts connections on one reactor, serves discovery sessions itself and hands every other connection to
//!   the reactor of the target that its login names.
//! - [`Target`]: lives on the reactor of its volume, with its logical unit, sessions and all their connections.
//!
//! Bytes and states are the business of `iscsi-target-protocol`, SCSI that of `scsi-protocol`; this crate moves bytes, owns
//! buffers, and does to the device what the unit says.

#![forbid(unsafe_code)]

mod connection;
mod directory;
mod discovery;
mod gate;
mod handshake;
pub mod identity;
mod link;
mod listener;
mod login;
mod management;
mod medium;
mod persist;
mod session;
mod signal;
mod statistics;
mod status;
mod target;
mod tasks;

pub use iscsi_target_protocol::chap::{Algorithm, Credentials, Secret, WeakSecret};
pub use iscsi_target_protocol::target::access::{Access, Chap, InvalidChap};
pub use iscsi_target_protocol::target::connection::Limits;
pub use iscsi_target_protocol::wire::Name;
pub use scsi_protocol::ports::AccessState;
pub use scsi_protocol::reservation::Reservations;

pub use crate::directory::{AlreadyExported, Directory};
pub use crate::identity::Identity;
pub use crate::listener::{Listener, ListenerOptions};
pub use crate::session::SessionInfo;
pub use crate::statistics::Statistics;
pub use crate::target::{ReservationStore, Saved, Target, TargetOptions};
