//! Small files replaced as a whole. Nobody else may read them: some hold secrets.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// What temporary files end with; leftovers of a crash are removed when a folder is opened.
pub(super) const TEMPORARY: &str = ".new";

/// The mode of all files.
const OWNER_ONLY: u32 = 0o600;

/// Replaces a file. When this returns the new content is durable; after a crash before that, the file has the old
/// content or the new.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let temporary = Path::new(&temporary);
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(OWNER_ONLY).open(temporary)?;
    // One that a crash left has the mode that it had.
    file.set_permissions(Permissions::from_mode(OWNER_ONLY))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    sync_folder_of(path)
}

/// Removes a file durably. No error if there is none.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder_of(path),
    }
}

/// Makes a folder durably, with its parents.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    super::modes::make(path)?;
    sync_folder_of(path)
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    // Every path here was made by joining a name to a folder.
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
