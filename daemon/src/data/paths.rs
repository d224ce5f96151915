//! Paths on disks that may hang: first a thread that may hang as well looks at them, so that no reactor does.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use super::Backing;

/// Waits until the path of a store can be opened; makes the file that it is to live in. What goes wrong is told when a reactor
/// opens it, which takes no time from then on.
pub(super) async fn reach(backing: &Backing) {
    let Backing::Path { path, create } = backing.clone() else { return };
    let looked = tokio::task::spawn_blocking(move || match create {
        None => File::open(&path).map(drop),
        Some(size) => make(&path, size),
    });
    if let Ok(Err(error)) = looked.await {
        tracing::debug!(%error, "the path of a store cannot be opened");
    }
}

/// Makes a file of this size, durably. What has content, or is in use, stays as it is.
fn make(path: &Path, size: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.len() > 0 || file.try_lock().is_err() {
        return Ok(());
    }
    file.set_len(size)?;
    file.sync_all()?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_made_once_and_what_is_there_stays() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("store");
        for (create, expected) in [(None, None), (Some(4096), Some(4096)), (Some(8192), Some(4096))] {
            reach(&Backing::Path { path: path.clone(), create }).await;
            assert_eq!(std::fs::metadata(&path).ok().map(|found| found.len()), expected);
        }

        let used = folder.path().join("used");
        let held = File::create(&used).expect("created");
        held.lock().expect("locked");
        reach(&Backing::Path { path: used.clone(), create: Some(4096) }).await;
        assert_eq!(std::fs::metadata(&used).expect("there").len(), 0);
    }
}
