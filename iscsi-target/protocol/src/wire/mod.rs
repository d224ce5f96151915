//! Layouts of RFC 7143: they describe bytes and name values, they decide nothing.
//!
//! Each PDU is encoded and decoded at explicit byte offsets, big-endian. DataSegmentLength and TotalAHSLength belong to
//! the framing and are in no structure.

pub(crate) mod bytes;
pub mod digest;
pub mod login;
pub mod name;
pub mod pdu;
pub mod request;
pub mod response;
pub mod sense;
pub mod text;

pub use login::LoginStatus;
pub use name::Name;
pub use sense::Sense;
