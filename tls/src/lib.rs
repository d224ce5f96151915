//! TLS with certificates on both sides: for the API, and for replicas of other nodes. docs/security.md has the rules.
//!
//! ```text
//!  files ──▶ Certificates ──┬─ for_clients() ───▶ the API's listener      any certificate of the authority; its Identity decides
//!            (the set in    ├─ Session::accept ──▶ the replica listener   only of nodes that are peers
//!             use, replaced ├─ Session::connect ─▶ an engine's connection only of the node that is meant
//!             as a whole)   └─ NodeConnector ───▶ the API of that node    the same
//!  files ──▶ ClientConnector ──────────────────▶ the API, for people      by address or name, as a browser does
//! ```
//!
//! Connections that began with certificates which are not in use any more are judged anew: module `standing`.
//!
//! A [`Session`] does no I/O: bytes go in and out of it, on whatever thread the connection is.

#![forbid(unsafe_code)]

mod certificates;
mod connector;
mod error;
mod files;
mod identity;
pub mod private;
mod session;
mod settings;
mod standing;
mod validity;
mod verifier;

pub use crate::certificates::{Certificates, Report};
pub use crate::connector::{ClientConnector, NodeConnector};
pub use crate::error::TlsError;
pub use crate::files::Files;
pub use crate::identity::{Identity, Role, Who};
pub use crate::session::Session;
pub use crate::standing::TrustedStream;

#[cfg(test)]
mod tests;
