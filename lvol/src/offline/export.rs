//! An lvol's content as far as it can be read, also of one that is damaged.

use std::ops::Range;

use reactor::Disk;
use uuid::Uuid;

use super::findings::Severity;
use super::reader::Reader;
use super::state::State;
use super::{load, rules, superblocks};
use crate::error::StoreError;
use crate::format::record::Stage;

/// Bytes of an lvol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// This.
    Data(Buffered),
    /// Zeroes.
    Zeroes(Range<u64>),
    /// Nobody knows what: why.
    Unknown(Range<u64>, String),
}

/// Data of an lvol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffered {
    /// Bytes from the start of the lvol.
    pub offset: u64,
    /// What is there.
    pub bytes: Vec<u8>,
}

/// An lvol of a store that is not open, to be read from front to back.
pub struct Export<'a> {
    disk: &'a Disk,
    state: State,
    /// The lvol and its ancestors.
    chain: Vec<Uuid>,
    size: u64,
    at: u64,
    /// Why nobody knows what no map of the chain holds, if so.
    end_reason: Option<String>,
    outdated: Option<String>,
}

impl<'a> Export<'a> {
    /// Finds an lvol.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when no record, no directory and no batch names it; [`StoreError::Invalid`] when its blocks are
    /// on their way into its child.
    pub async fn open(disk: &'a Disk, uuid: Uuid) -> Result<Self, StoreError> {
        let found = superblocks::find(disk).await?;
        let superblock =
            found.superblock.ok_or_else(|| StoreError::damaged("no superblock is left that tells where things are"))?;
        let mut state = load::load(disk, superblock).await?;
        rules::check(&mut state);
        let record = &state.lvols.get(&uuid).ok_or(StoreError::NotFound { uuid })?.record;
        let size = record.size;
        if record.deletion == Some(Stage::Merging) {
            let text = format!("{uuid} is half merged into its child, which has all that it had: export the child");
            return Err(StoreError::invalid(text));
        }
        let chain = state.chain(uuid);
        let end_reason = state.chain_end(&chain);
        let fatal = state.findings.iter().find(|finding| finding.severity == Severity::Fatal);
        let outdated = fatal.map(|finding| finding.text.clone());
        Ok(Self { disk, state, chain, size, at: 0, end_reason, outdated })
    }

    /// Bytes of the lvol.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Why its content may be that of an earlier moment, if so: part of the journal is lost.
    pub fn outdated(&self) -> Option<&str> {
        self.outdated.as_deref()
    }

    /// What comes next; `None` at the end. Bytes that the disk does not give back are unknown.
    pub async fn next(&mut self) -> Option<Part> {
        if self.at >= self.size {
            return None;
        }
        let (chain, end_reason) = (&self.chain, self.end_reason.as_deref());
        let reader = Reader { disk: self.disk, state: &self.state, chain, size: self.size, end_reason };
        let (part, end) = reader.part(self.at, self.size).await;
        self.at = end;
        Some(part)
    }
}
