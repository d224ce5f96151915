//! Records as files in a folder.

use std::io;
use std::path::PathBuf;

use reactor::files;
use replica::LocalFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{Registry, RegistryError, VolumeRecord};

/// The format this version writes, and the only one it reads.
const FORMAT: u32 = 1;

/// The ending of a record's file name.
const ENDING: &str = ".json";

/// Keeps each record as a file of JSON in one folder, replaced as a whole. One process uses the folder: the daemon holds a lock on
/// its state directory.
pub struct FileRegistry {
    folder: PathBuf,
    /// Each makes compare and swap one step for its volumes. Others do not wait: at a start a thousand records change at once.
    swapping: [Mutex<()>; LOCKS],
}

/// So many volumes can be swapped at once.
const LOCKS: usize = 64;

/// A file's content.
#[derive(Serialize, Deserialize)]
struct Content {
    format: u32,
    record: VolumeRecord,
}

/// What is read first: only a known format is looked at further.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl FileRegistry {
    /// The registry in `folder`, which must exist.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), swapping: std::array::from_fn(|_| Mutex::new(())) }
    }

    fn swapping(&self, volume: Uuid) -> &Mutex<()> {
        // Its last byte is as random as any.
        &self.swapping[usize::from(volume.as_bytes()[15]) % LOCKS]
    }

    fn path(&self, volume: Uuid) -> PathBuf {
        self.folder.join(format!("{volume}{ENDING}"))
    }

    async fn read(&self, volume: Uuid) -> Result<Option<VolumeRecord>, RegistryError> {
        match files::read(&self.path(volume)).await {
            Ok(bytes) => parse(volume, &bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn swap(&self, expected: Option<u64>, mut record: VolumeRecord) -> Result<u64, RegistryError> {
        let _swapping = self.swapping(record.volume).lock().await;
        let found = self.read(record.volume).await?.map(|record| record.version);
        if found != expected {
            return Err(RegistryError::Conflict { volume: record.volume, found });
        }
        record.version = expected.unwrap_or(0) + 1;
        let version = record.version;
        let path = self.path(record.volume);
        let mut bytes = serde_json::to_vec_pretty(&Content { format: FORMAT, record }).map_err(io::Error::other)?;
        bytes.push(b'\n');
        files::replace(&path, bytes).await?;
        Ok(version)
    }
}

fn parse(volume: Uuid, bytes: &[u8]) -> Result<VolumeRecord, RegistryError> {
    let damaged = |detail: String| RegistryError::Damaged { volume, detail };
    let Format { format } = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    if format != FORMAT {
        return Err(damaged(format!("it has format {format}, this version knows {FORMAT}")));
    }
    let Content { record, .. } = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    if record.volume != volume {
        return Err(damaged(format!("it is the record of volume {}", record.volume)));
    }
    record.check().map_err(damaged)?;
    Ok(record)
}

impl Registry for FileRegistry {
    fn load(&self, volume: Uuid) -> LocalFuture<'_, Result<Option<VolumeRecord>, RegistryError>> {
        Box::pin(self.read(volume))
    }

    fn store(&self, expected: Option<u64>, record: &VolumeRecord) -> LocalFuture<'_, Result<u64, RegistryError>> {
        Box::pin(self.swap(expected, record.clone()))
    }

    fn set_aside(&self, volume: Uuid) -> LocalFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            let _swapping = self.swapping(volume).lock().await;
            match self.read(volume).await {
                Err(RegistryError::Damaged { .. }) => {}
                Ok(None) => return Ok(()),
                Ok(Some(record)) => return Err(RegistryError::Conflict { volume, found: Some(record.version) }),
                Err(error) => return Err(error),
            }
            let path = self.path(volume);
            let bytes = files::read(&path).await?;
            files::replace(&path.with_extension("damaged"), bytes).await?;
            Ok(files::remove(&path).await?)
        })
    }

    fn remove(&self, volume: Uuid) -> LocalFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            let _swapping = self.swapping(volume).lock().await;
            Ok(files::remove(&self.path(volume)).await?)
        })
    }

    fn list(&self) -> LocalFuture<'_, Result<Vec<Uuid>, RegistryError>> {
        Box::pin(async move {
            let names = files::list(&self.folder).await?;
            let volume = |name: &String| Uuid::parse_str(name.strip_suffix(ENDING)?).ok();
            Ok(names.iter().filter_map(volume).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use reactor::simulated::{NodeId, World};

    use super::*;
    use crate::{MemberState, NewReplica};

    const VOLUME: Uuid = Uuid::from_bytes([7; 16]);

    fn record() -> VolumeRecord {
        let replica = NewReplica {
            replica: Uuid::from_bytes([1; 16]),
            node: "a".to_owned(),
            address: ([10, 0, 0, 1], 9601).into(),
        };
        VolumeRecord::new(VOLUME, 1 << 20, 4096, [replica])
    }

    fn world() -> (World, NodeId) {
        let world = World::new(1);
        let node = world.add_node([10, 0, 0, 1].into());
        (world, node)
    }

    #[test]
    fn a_swap_needs_the_version_that_is_there() {
        let (world, node) = world();
        world.block_on(node, async {
            let registry = FileRegistry::new("/state/volumes");
            assert!(registry.load(VOLUME).await.expect("readable").is_none());
            assert_eq!(registry.store(None, &record()).await.expect("stored"), 1);
            let again = registry.store(None, &record()).await;
            assert!(matches!(again, Err(RegistryError::Conflict { found: Some(1), .. })), "{again:?}");
            let mut changed = record();
            changed.replicas[0].state = MemberState::OutOfSync { since: 5, reason: "unplugged".to_owned() };
            changed.replicas.push(record().replicas.remove(0));
            assert_eq!(registry.store(Some(1), &changed).await.expect("stored"), 2);
            let stale = registry.store(Some(1), &record()).await;
            assert!(matches!(stale, Err(RegistryError::Conflict { found: Some(2), .. })), "{stale:?}");
            changed.version = 2;
            assert_eq!(registry.load(VOLUME).await.expect("readable"), Some(changed));
            assert_eq!(registry.list().await.expect("readable"), [VOLUME]);
            registry.remove(VOLUME).await.expect("removed");
            registry.remove(VOLUME).await.expect("nothing to do");
            assert!(registry.list().await.expect("readable").is_empty());
        });
    }

    #[test]
    fn a_record_survives_a_kill_and_a_power_cut() {
        let (world, node) = world();
        world.block_on(node, async { FileRegistry::new("/state").store(None, &record()).await.expect("stored") });
        world.power_cut(node);
        let loaded = world.block_on(node, async { FileRegistry::new("/state").load(VOLUME).await.expect("readable") });
        assert_eq!(loaded.map(|record| record.version), Some(1));
    }

    #[test]
    fn reservations_are_digits_in_the_file() {
        let (world, node) = world();
        world.block_on(node, async {
            let registry = FileRegistry::new("/state");
            registry.store(None, &record()).await.expect("stored");
            let path = registry.path(VOLUME);
            let text = async || String::from_utf8(files::read(&path).await.expect("readable")).expect("text");
            assert!(!text().await.contains("reservations"));
            let reserved = VolumeRecord { reservations: vec![0x00, 0x5a, 0xff], ..record() };
            registry.store(Some(1), &reserved).await.expect("stored");
            assert_eq!(registry.load(VOLUME).await.expect("readable").expect("there").reservations, [0x00, 0x5a, 0xff]);
            let good = text().await;
            assert!(good.contains("\"005aff\""), "{good}");
            let long = "00".repeat(crate::MAX_RESERVATIONS + 1);
            for wrong in ["005af", "005aüg", "0 5aff", &long] {
                files::replace(&path, good.replace("005aff", wrong).into_bytes()).await.expect("written");
                let loaded = registry.load(VOLUME).await;
                assert!(matches!(loaded, Err(RegistryError::Damaged { .. })), "{loaded:?}");
            }
        });
    }

    #[test]
    fn damaged_is_not_unreachable_and_not_absent() {
        let (world, node) = world();
        world.block_on(node, async {
            let registry = FileRegistry::new("/state");
            let path = registry.path(VOLUME);
            for content in ["", "{", "{\"format\":2,\"record\":{}}", "{\"format\":1,\"record\":{}}"] {
                files::replace(&path, content.into()).await.expect("written");
                let loaded = registry.load(VOLUME).await;
                assert!(matches!(loaded, Err(RegistryError::Damaged { .. })), "{content}: {loaded:?}");
                let stored = registry.store(None, &record()).await;
                assert!(matches!(stored, Err(RegistryError::Damaged { .. })), "{content}: {stored:?}");
            }
        });
        world.fail_files(node, 1.0);
        let loaded = world.block_on(node, async { FileRegistry::new("/state").load(VOLUME).await });
        assert!(matches!(loaded, Err(RegistryError::Unreachable(_))), "{loaded:?}");
    }

    #[test]
    fn a_damaged_record_makes_room_and_is_kept() {
        let (world, node) = world();
        world.block_on(node, async {
            let registry = FileRegistry::new("/state");
            registry.set_aside(VOLUME).await.expect("nothing to do");
            files::replace(&registry.path(VOLUME), b"{".to_vec()).await.expect("written");
            registry.set_aside(VOLUME).await.expect("taken out of the way");
            assert_eq!(registry.store(None, &record()).await.expect("stored"), 1);
            let kept = files::read(&registry.folder.join(format!("{VOLUME}.damaged"))).await.expect("kept");
            assert_eq!(kept, b"{");
            assert_eq!(registry.list().await.expect("readable"), [VOLUME]);
            let whole = registry.set_aside(VOLUME).await;
            assert!(matches!(whole, Err(RegistryError::Conflict { found: Some(1), .. })), "{whole:?}");
        });
    }

    #[test]
    fn a_record_with_nothing_in_sync_is_damaged() {
        let mut lost = record();
        lost.replicas[0].state = MemberState::Rebuilding;
        let bytes = serde_json::to_vec(&Content { format: FORMAT, record: lost }).expect("plain data");
        assert!(matches!(parse(VOLUME, &bytes), Err(RegistryError::Damaged { .. })));
    }

    #[test]
    fn the_text_of_a_record_is_pinned() {
        let text = concat!(
            r#"{"format":1,"record":{"volume":"07070707-0707-0707-0707-070707070707","version":0,"epoch":0,"#,
            r#""instance":"00000000-0000-0000-0000-000000000000","clean":true,"size":1048576,"block_size":4096,"#,
            r#""replicas":[{"replica":"01010101-0101-0101-0101-010101010101","node":"a","address":"10.0.0.1:9601","#,
            r#""state":{"is":"in_sync"}}]}}"#
        );
        assert_eq!(parse(VOLUME, text.as_bytes()).expect("a record"), record());
        assert_eq!(serde_json::to_string(&Content { format: 1, record: record() }).expect("plain data"), text);
    }
}
