//! NVMe over TCP without I/O: the bytes on the wire, the target's and the host's connection state
//! machines, and the target's controller (its admin command set) as pure code.
//!
//! Bytes, time and completions come in as arguments; headers, events and completions come out. Payload
//! is never copied here: what arrives is handed on as slices of the caller's receive buffer, what
//! leaves is described by a header and stays with the caller.
//!
//! - [`wire`]: layouts and names of the specifications, nothing that decides.
//! - [`target`]: the end that owns the namespaces: [`target::connection`] (one TCP connection),
//!   [`target::controller`] (one controller), [`target::command`] (I/O commands parsed).
//! - [`host`]: the end that sends commands.
//!
//! Architecture invariant: this crate knows no socket, clock, block device or other crate of ours.
//!
//! Sections are cited from NVM Express Base Specification 2.0 ("Base"), NVMe over TCP Transport
//! Specification 1.0 ("TCP") and NVM Command Set Specification 1.0 ("NVM").
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod framing;
pub mod host;
mod sink;
mod slots;
pub mod target;
pub mod wire;

pub use framing::Digests;
pub use sink::HeaderSink;
