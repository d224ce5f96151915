//! The seam: what a target can do.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::error::Result;

/// The content of an object, as it comes.
pub type Body = BoxStream<'static, Result<Bytes>>;

/// The objects below a folder, as they come.
pub type Listing = BoxStream<'static, Result<ObjectInfo>>;

/// What an object becomes.
#[derive(Clone, Debug)]
pub enum Content {
    /// These bytes.
    Bytes(Bytes),
    /// What this local file has.
    File(PathBuf),
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

/// What a listing says of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its key, with `/` between folders.
    pub key: String,
    /// Its bytes.
    pub size: u64,
    /// When it was written last, by the store's clock.
    pub modified: SystemTime,
}

/// What is in one folder itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folder {
    /// Objects.
    pub objects: Vec<ObjectInfo>,
    /// The names of folders in it.
    pub folders: Vec<String>,
}

/// Most objects and folders of one folder that are listed at once.
pub(crate) const LARGEST_FOLDER: usize = 1 << 20;

/// Objects under keys. Each method is one attempt; dropping its future may leave it done or not.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync {
    /// The content of an object; `NotFound` when the store says that there is none.
    async fn get(&self, key: &str) -> Result<Body>;

    /// Makes or replaces an object as a whole. Durable when it returns.
    async fn put(&self, key: &str, content: Content) -> Result<()>;

    /// Makes an object if there is none; false if there is one. Servers exist that replace it.
    async fn create(&self, key: &str, bytes: Bytes) -> Result<bool>;

    /// Removes an object. No error if there is none.
    async fn delete(&self, key: &str) -> Result<()>;

    /// What is known of an object; None when the store says that there is none.
    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>>;

    /// What is in a folder; nothing if there is none.
    async fn folder(&self, folder: &str) -> Result<Folder>;

    /// All objects below a folder.
    fn list(&self, folder: &str) -> Listing;

    /// Removes what writes that were cut off left below a folder, where a store leaves such things.
    async fn sweep(&self, _folder: &str) -> Result<()> {
        Ok(())
    }
}
