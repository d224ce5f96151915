//! An NVMe/TCP initiator and load generator on the target's protocol crate
