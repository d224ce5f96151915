//! The format of the backup store: names, places, and the files as bytes. No I/O.
//!
//! `docs/backup.md` describes it. Each file has a module: [`volume`] (volume.cfg), [`backup`] (backup_NAME.cfg), [`lock`].

pub mod backup;
mod go_json;
pub mod layout;
pub mod lock;
pub mod quantity;
pub mod time;
pub mod volume;

pub use go_json::Doubled;
