//! Files that hold secrets: only for their owner.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::TlsError;

/// Any right of group or others.
const OTHERS: u32 = 0o077;

/// Reads a file of `limit` bytes at most that nobody but its owner has a right on, and that belongs to the user of this process or to root. What is
/// not a file of a disk (a pipe, as shells make them) has no such rights to look at.
///
/// # Errors
/// When it cannot be read, others have rights on it, or it is longer.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    // Of the file that is open, whatever becomes of the path.
    let metadata = file.metadata().map_err(unreadable)?;
    if let Some(problem) = problem(&metadata) {
        return Err(TlsError::NotPrivate { path: path.to_owned(), problem });
    }
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(unreadable)?;
    match content.len() as u64 > limit {
        true => Err(TlsError::content(path, format!("more than {limit} bytes"))),
        false => Ok(content),
    }
}

/// What keeps a file from being its owner's alone.
fn problem(metadata: &Metadata) -> Option<String> {
    if !metadata.is_file() {
        return None;
    }
    let (owner, us) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != us && owner != 0 {
        return Some(format!("it belongs to the user {owner}, neither to root nor to the user of this process ({us})"));
    }
    let mode = metadata.mode() & 0o7777;
    (mode & OTHERS != 0)
        .then(|| format!("group or others have rights on it (mode {mode:04o}), and it holds a secret: `chmod 600` it"))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_others_have_rights_on_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        fs::write(&path, "content").expect("written");
        for (mode, good) in
            [(0o600, true), (0o400, true), (0o700, true), (0o640, false), (0o604, false), (0o620, false)]
        {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("ours");
            let result = read(&path, 100);
            assert_eq!(result.is_ok(), good, "{mode:o}: {result:?}");
            if let Err(error) = result {
                assert!(error.to_string().contains(&format!("mode {mode:04o}")), "{error}");
            }
        }
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("ours");
        assert!(read(&path, 6).is_err(), "too long");
        assert!(matches!(read(&folder.path().join("absent"), 6), Err(TlsError::Unreadable { .. })));
    }
}
