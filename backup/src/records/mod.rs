//! What a job keeps on the local disk: small files replaced as a whole, block lists, and what it has done so far.
//!
//! [`spool`] has files that are made once and then read, [`journal`] entries that are appended, [`watermark`] a count.

pub(crate) mod files;
pub(crate) mod journal;
pub(crate) mod lists;
pub(crate) mod spool;
pub(crate) mod watermark;
