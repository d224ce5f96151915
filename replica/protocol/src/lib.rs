//! The replica protocol, free of I/O: frames, and the two ends of a connection as state machines.
//!
//! Bytes go in through [`Client::handle`] and [`Server::handle`] in whatever pieces they arrived; events come out, with the
//! data of reads and writes as slices of what was given. What is to be sent comes as headers and small messages that the
//! driver writes in front of its data. `docs/replica-protocol.md` is the specification.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod client;
mod decoder;
mod error;
mod frame;
mod lists;
mod message;
mod server;
mod status;

pub use crate::client::{Answer, Client, ClientEvent, Credits, NoCredit};
pub use crate::decoder::{Decoder, Piece};
pub use crate::error::ProtocolError;
pub use crate::frame::{Flags, Frame, HEADER_SIZE, Kind, checksum};
pub use crate::lists::{
    Chain, ChainEntry, Damage, DamagedRegion, Extent, ExtentKind, Extents, Hashes, LvolKind, Note, Notes,
};
pub use crate::message::{Command, Grant, Hello, Id, Membership, Open, Pong, Refusal, State, Welcome};
pub use crate::server::{Server, ServerEvent};
pub use crate::status::Status;

/// The only version so far.
pub const VERSION: u16 = 1;

/// The most data one Read, Write or ReadLvol moves, in bytes.
pub const MAX_TRANSFER: u32 = 4 << 20;

/// The longest payload of anything but data, in bytes.
pub const MAX_CONTROL: u32 = 128 << 10;

/// The longest text of an error, in bytes.
pub const MAX_TEXT: usize = 1024;

/// The most ranges of one Unmap.
pub const MAX_RANGES: usize = 256;

/// The longest note, in bytes.
pub const MAX_NOTE: u32 = 4032;

/// The most bytes of a snapshot that are mended at once.
pub const MAX_REPAIR: u32 = 64 << 10;

/// How many notes a replica keeps.
pub const NOTES: u8 = 17;

/// The longest copy of a membership record, in bytes.
pub const MAX_MEMBERSHIP: u32 = 3900;

/// The most bytes that are kept with one.
pub const MAX_ATTACHED: u32 = 64 << 10;

/// The sizes of pieces that hashes are asked for, in bytes: powers of two.
pub const GRANULES: core::ops::RangeInclusive<u32> = 4096..=1 << 20;

/// The most extents in one answer.
pub const MAX_EXTENTS: u32 = 4096;

/// The most requests a replica can grant: slots are the low 16 bits of a request id.
pub const MAX_REQUESTS: u32 = 4096;
