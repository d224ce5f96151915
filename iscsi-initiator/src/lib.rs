//! An iSCSI host in user space, on the target's protocol crate: the twin of `nvmf-initiator`.
//!
//! - [`LogicalUnit`]: logs in to a target and keeps logged in; reads and writes one of its logical units.
//! - [`Queue`]: the data path, a command without a future, a task or an allocation.
//! - [`discover`]: the targets that a portal knows (SendTargets).
//! - [`load`]: the load generator [`host_load`] on a logical unit.
//!
//! Everything runs on a [`reactor`] and is `!Send`. Whatever a target answers leads to an error, never to a panic or
//! unbounded memory.

#![forbid(unsafe_code)]

mod cdb;
mod connect;
mod discovery;
mod error;
pub mod load;
mod login;
mod options;
mod queue;
mod request;
mod sense;
mod session;
mod unit;

pub use iscsi_target_protocol::chap::{Algorithm, Credentials, Secret, WeakSecret};
pub use iscsi_target_protocol::initiator::connection::Data;
pub use iscsi_target_protocol::initiator::login::Chap;
pub use iscsi_target_protocol::wire::login::Isid;
pub use iscsi_target_protocol::wire::{LoginStatus, Name};

pub use crate::cdb::{Access, Command};
pub use crate::connect::Medium;
pub use crate::discovery::{DiscoveredTarget, discover};
pub use crate::error::{CommandError, ConnectError, ConnectionError};
pub use crate::options::{Options, Reconnect};
pub use crate::queue::{Answer, CommandSink, Queue, SubmitError};
pub use crate::request::Request;
pub use crate::sense::Sense;
pub use crate::unit::LogicalUnit;
