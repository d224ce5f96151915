//! Why a replica does not open.

use block_device::Error;

/// Why a replica was not opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// Its node does not answer.
    #[error("not reachable: {0}")]
    Unreachable(String),
    /// It has granted this epoch to another engine, or a higher one (I12).
    #[error("it has granted epoch {stored} to another engine")]
    Fenced {
        /// The epoch it has stored.
        stored: u64,
    },
    /// Its node has no such replica.
    #[error("there is no such replica on its node")]
    NotFound,
    /// It is a replica of another volume.
    #[error("{0}")]
    Mismatch(String),
    /// Its store could not do it now.
    #[error(transparent)]
    Failed(Error),
}
