//! The NVMe/TCP target: volumes exported to hosts. See `docs/nvme-tcp.md`.
//!
//! - [`Directory`]: which subsystems exist and who serves them; shared by all reactors of the process.
//! - [`Listener`]: accepts connections on one reactor, answers the discovery service itself and hands every other
//!   connection to the reactor of the subsystem that its Connect names.
//! - [`Subsystem`]: lives on the reactor of its volume, with its namespaces, controllers and all their connections.
//!
//! Bytes and states are the business of `nvmf-target-protocol`; this crate moves bytes and owns buffers.

#![forbid(unsafe_code)]

mod association;
mod connection;
mod directory;
mod discovery;
mod handshake;
pub mod identity;
mod listener;
mod namespace;
mod signal;
mod statistics;
mod status;
mod subsystem;

pub use nvmf_target_protocol::target::connection::Limits;
pub use nvmf_target_protocol::wire::log_page::AnaState;

pub use crate::association::ControllerInfo;
pub use crate::directory::{AlreadyExported, Directory, Hosts};
pub use crate::identity::Identity;
pub use crate::listener::{Listener, ListenerOptions};
pub use crate::statistics::Statistics;
pub use crate::subsystem::{Subsystem, SubsystemOptions};
