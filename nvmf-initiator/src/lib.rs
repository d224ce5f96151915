//! An NVMe/TCP host in user space, on the target's protocol crate.
//!
//! - [`Controller`]: connects to a subsystem and keeps it connected; reads and writes its namespace.
//! - [`Queue`]: the data path, a command without a future, a task or an allocation.
//! - [`discover`]: the subsystems that a discovery controller knows.
//! - [`load`]: the load generator [`host_load`] on a controller.
//!
//! Everything runs on a [`reactor`] and is `!Send`. Whatever a controller answers leads to an error, never to a panic
//! or unbounded memory.

#![forbid(unsafe_code)]

mod connect;
mod controller;
mod discovery;
mod error;
pub mod load;
mod options;
mod queue;
mod request;
mod session;

pub use nvmf_target_protocol::host::command::Command;
pub use nvmf_target_protocol::wire::Status;
pub use nvmf_target_protocol::wire::discovery::{DiscoveryEntry, SubsystemType};

pub use crate::connect::Namespace;
pub use crate::controller::Controller;
pub use crate::discovery::discover;
pub use crate::error::{CommandError, ConnectError, ConnectionError, StatusName};
pub use crate::options::{Options, Reconnect};
pub use crate::queue::{Answer, CommandSink, Queue, SubmitError};
pub use crate::request::Request;
