//! Why a request failed, in kinds that stay distinct up to the host.

use std::fmt;

/// What went wrong. Frontends map each to its own NVMe status and SCSI sense, so that the host can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The range ends beyond the device.
    InvalidRange,
    /// The request makes no sense: unaligned, too long.
    InvalidField,
    /// The store has no space for it. Reads and overwrites go on. (I32)
    NoSpace,
    /// The medium could not be read, or its content is damaged.
    ReadFailed,
    /// The medium could not be written or made durable.
    WriteFailed,
    /// The bytes differ from those expected.
    CompareMismatch,
    /// The device, or its state now, refuses writes.
    ReadOnly,
    /// A newer epoch owns the volume: whoever sent this must stop (I12, I14).
    Fenced,
    /// Not served here now, may be again soon: starting, moving, no in-sync replica in reach. Worth a retry.
    Unavailable,
    /// A queue or pool is full. Always worth a retry (I33).
    Busy,
    /// The other side did not answer in time.
    TimedOut,
    /// Ended at the caller's wish.
    Aborted,
    /// A bug of ours.
    Internal,
}

impl ErrorKind {
    /// Every kind, for exhaustive tests of mappings.
    pub const ALL: [Self; 13] = [
        Self::InvalidRange,
        Self::InvalidField,
        Self::NoSpace,
        Self::ReadFailed,
        Self::WriteFailed,
        Self::CompareMismatch,
        Self::ReadOnly,
        Self::Fenced,
        Self::Unavailable,
        Self::Busy,
        Self::TimedOut,
        Self::Aborted,
        Self::Internal,
    ];

    /// The kind in words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::InvalidRange => "range beyond the end of the device",
            Self::InvalidField => "invalid request",
            Self::NoSpace => "no space left in the store",
            Self::ReadFailed => "read failed on the medium",
            Self::WriteFailed => "write failed on the medium",
            Self::CompareMismatch => "content differs",
            Self::ReadOnly => "read only",
            Self::Fenced => "fenced by a newer epoch",
            Self::Unavailable => "not available now",
            Self::Busy => "busy",
            Self::TimedOut => "timed out",
            Self::Aborted => "aborted",
            Self::Internal => "internal error",
        }
    }
}

/// A kind, and where it helps a person, words about it.
#[derive(Clone, Debug)]
pub struct Error {
    kind: ErrorKind,
    /// Boxed so that outcomes stay small; most errors on the data path have none.
    detail: Option<Box<str>>,
}

impl Error {
    /// An error of a kind that says it all.
    pub const fn new(kind: ErrorKind) -> Self {
        Self { kind, detail: None }
    }

    /// An error with words for the log and for people.
    pub fn with_detail(kind: ErrorKind, detail: impl fmt::Display) -> Self {
        Self { kind, detail: Some(detail.to_string().into_boxed_str()) }
    }

    /// A failed read of the backing.
    pub fn read_failed(error: &std::io::Error) -> Self {
        Self::with_detail(ErrorKind::ReadFailed, error)
    }

    /// A failed write of the backing; no space stays no space.
    pub fn write_failed(error: &std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::WriteFailed,
        };
        Self::with_detail(kind, error)
    }

    /// What to match on.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The words beside the kind.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.detail {
            Some(detail) => write!(f, "{}: {detail}", self.kind.text()),
            None => f.write_str(self.kind.text()),
        }
    }
}

impl std::error::Error for Error {}
