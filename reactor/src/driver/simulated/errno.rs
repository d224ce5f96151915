//! The errors of Linux that a simulated kernel answers with.

use std::io;

/// Input or output failed.
pub(super) const EIO: i32 = 5;
/// A descriptor that does not allow this.
pub(super) const EBADF: i32 = 9;
/// No space left.
pub(super) const ENOSPC: i32 = 28;
/// No buffer for what was received.
pub(super) const ENOBUFS: i32 = 105;

/// The error with this number.
pub(super) fn error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}
