//! Volumes in object storage, in the format of Longhorn's backup store: backups, restores, standby volumes.
//!
//! `docs/backup.md` tells the format, the states and what a crash at each step leaves. The modules, from the bytes up: `format` and
//! `block` (no I/O), `records` (what a job keeps on the local disk), `target` (the seam to object stores and folders), `lock`, `source` (the
//! seam to snapshots and devices), `create`, `restore`, `follow`, `remove`, `verify`, `inspect` (what can be done), `schedule` and
//! `retain` (when it is done, and what stays).
//!
//! All of it runs on the control side's tokio runtime. Every operation is a future that may be dropped at any point, like a process
//! that is killed: what is durable is in the store and in the job's folder, and the next run goes on from there.

#![forbid(unsafe_code)]

pub mod backoff;
pub mod block;
pub mod create;
mod delta;
mod error;
pub mod follow;
pub mod format;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod inspect;
pub mod lock;
mod pace;
mod plan;
pub mod progress;
mod records;
pub mod remove;
pub mod restore;
pub mod retain;
pub mod schedule;
pub mod source;
pub mod target;
pub mod verify;

pub use error::{Error, Kind, Result};
pub use pace::Limit;
