//! SCSI without I/O and without a transport: what a logical unit does with a command descriptor block (CDB).
//!
//! ```text
//!  CDB ──▶ LogicalUnit::start ──▶ Command ──(its data-out arrives)──▶ LogicalUnit::run ──▶ Action
//!              │                                                                            ├─ Respond: status, data-in, sense
//!              └─▶ Response: refused                                                        ├─ Access, Unmap, Copy: the medium does it
//!                                                                                           └─ Persist: make durable, then respond
//! ```
//!
//! - [`command`]: CDBs parsed into a type that cannot be wrong; [`opcodes`]: the one table of what is supported.
//! - [`mod@unit`]: the logical unit with its I_T nexuses, unit attentions, mode pages and reservations.
//! - [`sense`]: statuses and sense data under the standards' names.
//! - [`reservation`]: persistent reservations, and RESERVE(6) beside them.
//!
//! Architecture invariant: this crate knows no socket, clock, block device or other crate of ours.
//!
//! Sections are cited from SCSI Primary Commands 4 ("SPC"), SCSI Block Commands 3 ("SBC") and SCSI Architecture Model 5
//! ("SAM").
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod attention;
mod bytes;
pub mod command;
pub mod copy;
pub mod inquiry;
pub mod log;
pub mod mode;
pub mod opcodes;
pub mod ports;
pub mod provisioning;
pub mod reservation;
pub mod sense;
pub mod unit;

pub use attention::Attention;
