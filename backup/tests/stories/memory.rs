//! A store in memory whose clock is the virtual one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use backup::target::{Body, Content, Folder, Listing, ObjectInfo, Store};
use backup::{Error, Kind, Result};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::task::yield_now;
use tokio::time::Instant;

/// Objects with the times of their last writes.
#[derive(Debug)]
pub(crate) struct MemoryStore {
    objects: Mutex<BTreeMap<String, (Bytes, SystemTime)>>,
    begin: Instant,
    /// What time it is when the store begins.
    clock: SystemTime,
}

impl MemoryStore {
    pub(crate) fn new() -> Self {
        // A clock that is far from ours: nothing may rest on their being equal.
        let clock = UNIX_EPOCH + Duration::from_secs(1_500_000_000);
        Self { objects: Mutex::default(), begin: Instant::now(), clock }
    }

    /// Another store with the same objects, whose clock goes on from here.
    pub(crate) fn copy(&self) -> Self {
        let objects = self.objects.lock().expect("no panic").clone();
        Self { objects: Mutex::new(objects), begin: self.begin, clock: self.clock }
    }

    pub(crate) fn now(&self) -> SystemTime {
        // Whole seconds, as S3 has them.
        self.clock + Duration::from_secs(self.begin.elapsed().as_secs())
    }

    pub(crate) fn keys(&self, part: &str) -> Vec<String> {
        let objects = self.objects.lock().expect("no panic");
        objects.keys().filter(|key| key.contains(part)).cloned().collect()
    }

    pub(crate) fn content(&self, key: &str) -> Option<Bytes> {
        self.objects.lock().expect("no panic").get(key).map(|(bytes, _)| bytes.clone())
    }

    pub(crate) fn set(&self, key: &str, bytes: impl Into<Bytes>) {
        let now = self.now();
        self.objects.lock().expect("no panic").insert(key.to_owned(), (bytes.into(), now));
    }

    pub(crate) fn remove(&self, key: &str) {
        self.objects.lock().expect("no panic").remove(key);
    }

    /// The one key that has this part.
    pub(crate) fn key(&self, part: &str) -> String {
        let keys = self.keys(part);
        assert_eq!(keys.len(), 1, "{part}: {keys:?}");
        keys[0].clone()
    }

    fn below(&self, folder: &str) -> Vec<ObjectInfo> {
        let folder = format!("{folder}/");
        let objects = self.objects.lock().expect("no panic");
        let below = objects.iter().filter(|(key, _)| key.starts_with(&folder));
        below.map(|(key, (bytes, modified))| info(key, bytes, *modified)).collect()
    }
}

fn info(key: &str, bytes: &Bytes, modified: SystemTime) -> ObjectInfo {
    ObjectInfo { key: key.to_owned(), size: bytes.len() as u64, modified }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Body> {
        yield_now().await;
        let bytes = self.content(key).ok_or_else(|| Error::new(Kind::NotFound, key))?;
        // Three pieces, so that something can be cut short.
        let third = bytes.len() / 3;
        let pieces = [bytes.slice(..third), bytes.slice(third..2 * third), bytes.slice(2 * third..)];
        Ok(futures_util::stream::iter(pieces.map(Ok)).boxed())
    }

    async fn put(&self, key: &str, content: Content) -> Result<()> {
        yield_now().await;
        match content {
            Content::Bytes(bytes) => self.set(key, bytes),
            Content::File(path) => self.set(key, std::fs::read(path).expect("a local file")),
        }
        yield_now().await;
        Ok(())
    }

    async fn create(&self, key: &str, bytes: Bytes) -> Result<bool> {
        let absent = self.content(key).is_none();
        if absent {
            self.set(key, bytes);
        }
        Ok(absent)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        yield_now().await;
        self.remove(key);
        yield_now().await;
        Ok(())
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        yield_now().await;
        let objects = self.objects.lock().expect("no panic");
        Ok(objects.get(key).map(|(bytes, modified)| info(key, bytes, *modified)))
    }

    async fn folder(&self, folder: &str) -> Result<Folder> {
        yield_now().await;
        let prefix = format!("{folder}/");
        let mut folders = BTreeSet::new();
        let mut objects = Vec::new();
        for object in self.below(folder) {
            match object.key[prefix.len()..].split_once('/') {
                Some((name, _)) => drop(folders.insert(name.to_owned())),
                None => objects.push(object),
            }
        }
        Ok(Folder { objects, folders: folders.into_iter().collect() })
    }

    fn list(&self, folder: &str) -> Listing {
        futures_util::stream::iter(self.below(folder).into_iter().map(Ok)).boxed()
    }
}
