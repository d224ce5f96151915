//! iSCSI without I/O: the PDUs, and the state machines of a login, of a session and of its connections, at both ends.
//!
//! Bytes, time and completions come in as arguments; headers, events and completions come out. Payload
//! is never copied here: what arrives is handed on as slices of the caller's receive buffer, what
//! leaves is described by a header and stays with the caller. docs/iscsi.md tells states, keys, failures and limits.
//!
//! - [`wire`]: layouts and names of the standard, nothing that decides.
//! - [`negotiation`]: what both ends agree on; [`chap`]: who they are.
//! - [`target`]: the end that owns the logical units: [`target::login`] and [`target::connection`] (one TCP connection),
//!   [`target::session`] (what connections share), [`target::sessions`] (who is logged in).
//! - [`initiator`]: the end that sends commands.
//!
//! Architecture invariant: this crate knows no socket, clock, block device or other crate of ours, and no SCSI beyond the
//! bytes of a CDB, a status and sense data.
//!
//! Sections are those of RFC 7143 where nothing else is said.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod chap;
mod framing;
pub mod initiator;
pub mod negotiation;
mod serial;
mod sink;
mod slots;
pub mod target;
mod violation;
pub mod wire;

pub use framing::Digests;
pub use sink::HeaderSink;
pub use violation::Violation;
