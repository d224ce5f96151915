//! The end that sends commands.

pub mod command;
pub mod connection;
