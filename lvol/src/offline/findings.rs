//! What a check found, for the person who has to decide.

use std::fmt;
use std::ops::Range;

use uuid::Uuid;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be; told because it explains something.
    Note,
    /// Something is wrong that costs nothing now: the store opens and serves everything.
    Warning,
    /// An lvol is damaged, or space is lost, until it is repaired. The rest is served.
    Error,
    /// The store does not open.
    Fatal,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Fatal => "fatal",
        })
    }
}

/// Which structure of the store a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structure {
    /// One of the two superblocks.
    Superblock,
    /// A page of a checkpoint that is not what it should be; nobody can say which kind it was.
    Page,
    /// The journal.
    Journal,
    /// The record of an lvol.
    Record,
    /// The map of an lvol.
    Map,
    /// Which clusters are in use.
    Bitmap,
    /// Which lvol reads through which.
    Chain,
    /// The data of lvols.
    Data,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Superblock => "superblock",
            Self::Page => "page",
            Self::Journal => "journal",
            Self::Record => "record",
            Self::Map => "map",
            Self::Bitmap => "bitmap",
            Self::Chain => "chain",
            Self::Data => "data",
        })
    }
}

/// What can be done about a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing is needed.
    Nothing,
    /// A repair does this, and loses nothing that could be read before.
    Repair(String),
    /// A repair does this only for lvols whose loss is accepted.
    AcceptLoss {
        /// All of them must be accepted.
        lvols: Vec<Uuid>,
        /// What is done then.
        what: String,
    },
    /// A repair does this only for lvols whose loss is accepted, and only if their zeroes are to be served.
    ServeZeroes {
        /// All of them must be accepted.
        lvols: Vec<Uuid>,
        /// What is done then.
        what: String,
    },
    /// Nothing here can repair it; what else to do.
    Impossible(String),
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub structure: Structure,
    /// Where that is, in bytes from the start of the disk, if it is in one place.
    pub offset: Option<u64>,
    /// The lvol it is about, if it is about one.
    pub lvol: Option<Uuid>,
    /// The bytes of that lvol that nobody knows any more.
    pub unknown: Vec<Range<u64>>,
    /// What it is and what it means, in words.
    pub text: String,
    /// What can be done.
    pub remedy: Remedy,
}

impl Finding {
    pub(super) fn new(severity: Severity, structure: Structure, text: impl Into<String>, remedy: Remedy) -> Self {
        Self { severity, structure, offset: None, lvol: None, unknown: Vec::new(), text: text.into(), remedy }
    }

    pub(super) fn at(self, offset: u64) -> Self {
        Self { offset: Some(offset), ..self }
    }

    pub(super) fn of(self, lvol: Uuid) -> Self {
        Self { lvol: Some(lvol), ..self }
    }
}

/// What a store is, as far as its superblock tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSummary {
    /// Its identity.
    pub uuid: Uuid,
    /// Its label.
    pub name: String,
    /// Bytes of data clusters in all.
    pub size: u64,
    /// Bytes of clusters that no lvol has.
    pub free: u64,
    /// How many lvols there are, without internal ones.
    pub lvols: usize,
}

/// What a check found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The store, if there is a superblock.
    pub store: Option<StoreSummary>,
    /// What was found, in the order of the disk; after a repair, what was found before it.
    pub findings: Vec<Finding>,
    /// What a repair did, in words, in order. Empty when nothing was written.
    pub repaired: Vec<String>,
    /// What a second check found after a repair.
    pub left: Vec<Finding>,
}

impl Report {
    /// The worst of what is wrong now.
    pub fn worst(&self) -> Severity {
        let now = if self.repaired.is_empty() { &self.findings } else { &self.left };
        now.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Note)
    }
}
