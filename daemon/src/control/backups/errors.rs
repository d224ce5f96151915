//! Errors of targets and of backups, as calls are answered with them.

use backup::{Error, Kind};

use crate::control::error::ControlError;

/// What a call is told that could not look at a target.
pub(super) fn control_error(error: &Error) -> ControlError {
    let text = format!("{} ({}): {}", error.reason(), error.kind(), error.kind().advice());
    let told = match error.kind() {
        Kind::NotFound => ControlError::missing("backup", text),
        Kind::Invalid => ControlError::invalid("backup", text),
        Kind::Auth => ControlError::precondition("TARGET_REFUSED", text),
        Kind::Checksum | Kind::Corrupt => ControlError::damaged_backup(text),
        Kind::Local => ControlError::failed("STATE_DIRECTORY", text),
        _ => ControlError::unavailable("TARGET_UNREACHABLE", text),
    };
    told.with("failure", error.kind())
}

/// What a job does about an error of the node: it is tried again, unless nothing was changed for good.
pub(super) fn of_node(error: &ControlError) -> Error {
    let kind = if error.is_refusal() { Kind::Invalid } else { Kind::SourceBusy };
    Error::new(kind, error.to_string())
}
