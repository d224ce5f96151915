//! Who may look into the state directory: its owner.

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::OpenError;

/// Any right of group or others.
const OTHERS: u32 = 0o077;
/// That of changing something.
const WRITE: u32 = 0o022;
/// What a folder of ours has.
const FOLDER: u32 = 0o700;

/// Makes a folder with its parents, if it is not there.
pub(super) fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER).create(path)
}

/// Takes the rights of others on the directory and everything in it away. A directory that belongs to somebody else, or in which others
/// could have changed something, is refused: what it says may not be ours.
pub(super) fn close(folder: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Io { path: folder.to_owned(), source };
    let found = fs::metadata(folder).map_err(failed)?;
    if let Some(problem) = problem(&found) {
        return Err(OpenError::NotPrivate { path: folder.to_owned(), problem });
    }
    if found.mode() & OTHERS != 0 {
        tracing::info!(folder = %folder.display(), "others could read the state directory: not any more");
    }
    close_all(folder, &found).map_err(failed)
}

fn problem(found: &Metadata) -> Option<String> {
    let (owner, us) = (found.uid(), rustix::process::geteuid().as_raw());
    if owner != us {
        return Some(format!("it belongs to the user {owner}, not to that of this process ({us})"));
    }
    let mode = found.mode() & 0o777;
    let text = format!("group or others may change it (mode {mode:03o}): look what is in it, then `chmod 700` it");
    (mode & WRITE != 0).then_some(text)
}

fn close_all(path: &Path, found: &Metadata) -> io::Result<()> {
    if found.mode() & OTHERS != 0 {
        fs::set_permissions(path, Permissions::from_mode(found.mode() & 0o777 & !OTHERS))?;
    }
    if !found.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let found = entry.metadata()?;
        // Where a link leads is not ours; nothing here makes one.
        if found.is_dir() || found.is_file() {
            close_all(&entry.path(), &found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::StateDirectory;
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").mode() & 0o777
    }

    #[test]
    fn what_others_could_read_is_closed_and_a_directory_that_they_could_change_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("state");
        drop(StateDirectory::open(&state, "a").expect("new"));
        assert_eq!((mode(&state), mode(&state.join("registry"))), (0o700, 0o700));
        for (name, open, closed) in [("", 0o755, 0o700), ("registry", 0o750, 0o700), ("node.json", 0o666, 0o600)] {
            let path = state.join(name);
            fs::set_permissions(&path, Permissions::from_mode(open)).expect("ours");
            drop(StateDirectory::open(&state, "a").expect("closed"));
            assert_eq!(mode(&path), closed, "{name}");
        }
        fs::set_permissions(&state, Permissions::from_mode(0o770)).expect("ours");
        let refused = StateDirectory::open(&state, "a").err().expect("others could change it").to_string();
        assert!(refused.contains("(mode 770)"), "{refused}");
    }
}
