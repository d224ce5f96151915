//! The end that owns the namespaces.

pub mod command;
pub mod connection;
pub mod controller;
pub mod subsystem;
