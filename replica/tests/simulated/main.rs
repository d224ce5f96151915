//! Replicas in a simulated world: real stores on simulated disks, and the simulated network.

mod node;
mod notes;
mod remote;
mod server;
