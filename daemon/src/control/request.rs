//! Checks of what a request carries.

use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::error::ControlError;
use crate::names;

/// A UUID that must be given.
pub(super) fn uuid(field: &str, text: &str) -> Result<Uuid, ControlError> {
    optional_uuid(field, text)?.ok_or_else(|| ControlError::invalid(field, "a UUID is needed"))
}

/// A UUID that may be left empty.
pub(super) fn optional_uuid(field: &str, text: &str) -> Result<Option<Uuid>, ControlError> {
    if text.is_empty() {
        return Ok(None);
    }
    match Uuid::try_parse(text) {
        Ok(uuid) if !uuid.is_nil() => Ok(Some(uuid)),
        _ => Err(ControlError::invalid(field, format!("`{}` is not a UUID", text.escape_debug()))),
    }
}

/// The name of a new object.
pub(super) fn name(field: &str, text: &str) -> Result<String, ControlError> {
    names::check(text).map_err(|problem| ControlError::invalid(field, problem))?;
    Ok(text.to_owned())
}

/// A volume's size and block size; block size 0 is the default.
pub(super) fn geometry(size_bytes: u64, block_size_bytes: u32) -> Result<(u64, u32), ControlError> {
    let block_size = if block_size_bytes == 0 { 4096 } else { block_size_bytes };
    block_device::Geometry::new(size_bytes, block_size).map_err(|error| ControlError::invalid("size_bytes", error))?;
    Ok((size_bytes, block_size))
}

/// Milliseconds since the Unix epoch.
pub(super) fn unix_milliseconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
