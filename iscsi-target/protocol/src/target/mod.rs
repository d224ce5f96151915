//! The target's end: the one that owns the logical units.

pub mod access;
pub mod connection;
mod event;
pub mod login;
mod receiving;
mod security;
pub mod session;
pub mod sessions;
mod task;
mod text;

pub use text::TargetRecord;
