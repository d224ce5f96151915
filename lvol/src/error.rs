//! What can go wrong with a store, for whoever manages it.

use std::io;

use block_device::{Error, ErrorKind};
use uuid::Uuid;

/// Why an operation on a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no store on this disk.
    #[error("no store here: {detail}; format the disk first")]
    NotAStore {
        /// What was found instead.
        detail: String,
    },
    /// There is a store on this disk already, and it is not to be overwritten.
    #[error("there is a store already: {uuid} ({name}); nothing was changed")]
    Occupied {
        /// The store that is there.
        uuid: Uuid,
        /// Its name.
        name: String,
    },
    /// The store's own structures are damaged beyond what can be left out. Trying again will not help.
    #[error("the store is damaged: {detail}")]
    Damaged {
        /// Which structure, where, and how.
        detail: String,
    },
    /// The store uses features that this program does not know.
    #[error("the store needs features that this program does not have: {features:#x}")]
    Unsupported {
        /// The unknown feature bits.
        features: u64,
    },
    /// The disk failed. The state of the store is not known to be bad: try again (I31).
    #[error("the disk failed while {doing}: {source}")]
    Io {
        /// What was going on.
        doing: &'static str,
        /// The disk's error.
        source: io::Error,
    },
    /// A write or flush of the store failed earlier: nothing is written any more until it is opened again.
    #[error("the store stopped writing: {detail}")]
    Stopped {
        /// The first failure.
        detail: String,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// There is no such lvol.
    #[error("there is no lvol {uuid}")]
    NotFound {
        /// The lvol asked for.
        uuid: Uuid,
    },
    /// An object with this UUID exists with other parameters; nothing was changed (I30).
    #[error("{uuid} exists already with other parameters: {}", differences.join(", "))]
    Conflict {
        /// The object.
        uuid: Uuid,
        /// Each difference in words.
        differences: Vec<String>,
    },
    /// It is to be deleted, and only waits for those that read through it or have it open.
    #[error("lvol {uuid} is being deleted")]
    Deleting {
        /// The lvol.
        uuid: Uuid,
    },
    /// An import of it is under way, or was cut off: it can be imported again, or deleted.
    #[error("lvol {uuid} is incomplete: its import did not end")]
    Incomplete {
        /// The lvol.
        uuid: Uuid,
    },
    /// Someone has it open.
    #[error("lvol {uuid} is in use")]
    InUse {
        /// The lvol.
        uuid: Uuid,
    },
    /// This lvol is damaged; the store and the other lvols are not affected (I28).
    #[error("lvol {uuid} is damaged: {reason}")]
    LvolDamaged {
        /// The lvol.
        uuid: Uuid,
        /// What is damaged.
        reason: String,
    },
    /// The request makes no sense.
    #[error("{detail}")]
    Invalid {
        /// Why.
        detail: String,
    },
    /// The heads would be larger than the store's overcommit limit allows.
    #[error(
        "the lvols of the store have {provisioned} bytes already, and {more} more would be over its overcommit limit of \
         {allowed} bytes ({percent} %)"
    )]
    Overcommitted {
        /// Bytes of all heads.
        provisioned: u64,
        /// Bytes that were asked for besides.
        more: u64,
        /// Bytes that heads may have in all.
        allowed: u64,
        /// The limit in percent of the store.
        percent: u32,
    },
    /// These are not the bytes that the stored hash was made from; nothing was changed (I22).
    #[error("the bytes for offset {offset} of {uuid} do not match their hash")]
    Mismatch {
        /// The snapshot.
        uuid: Uuid,
        /// Where they should have gone.
        offset: u64,
    },
    /// An lvol could not be read or written.
    #[error(transparent)]
    Access(#[from] Error),
    /// No space for it: of data, or of metadata.
    #[error("no space left in the store: {detail}")]
    NoSpace {
        /// Which kind of space.
        detail: &'static str,
    },
}

impl StoreError {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    /// What an lvol answered.
    pub(crate) fn of_request(error: Error) -> Self {
        match error.kind() {
            ErrorKind::NoSpace => Self::NoSpace { detail: "all clusters are in use" },
            ErrorKind::InvalidField | ErrorKind::InvalidRange => Self::invalid("no whole blocks of the lvol"),
            _ => Self::Io { doing: "reading or writing an lvol", source: io::Error::other(error) },
        }
    }

    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::Invalid { detail: detail.into() }
    }

    pub(crate) fn damaged(detail: impl Into<String>) -> Self {
        Self::Damaged { detail: detail.into() }
    }
}

/// What the data path tells of an error of the store.
impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        if let StoreError::Access(error) = error {
            return error;
        }
        let kind = match &error {
            StoreError::NoSpace { .. } | StoreError::Overcommitted { .. } => ErrorKind::NoSpace,
            StoreError::Closed
            | StoreError::NotFound { .. }
            | StoreError::Deleting { .. }
            | StoreError::Incomplete { .. } => ErrorKind::Unavailable,
            StoreError::Invalid { .. } => ErrorKind::InvalidField,
            StoreError::LvolDamaged { .. } => ErrorKind::ReadFailed,
            StoreError::Mismatch { .. } => ErrorKind::CompareMismatch,
            _ => ErrorKind::WriteFailed,
        };
        Self::with_detail(kind, error)
    }
}
