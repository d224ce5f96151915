//! The initiator's end: the one that sends commands.

pub mod connection;
pub mod login;
