//! Small files of the control side, written so that a power cut leaves the old or the new content.

use std::io;
use std::path::{Path, PathBuf};

use crate::core::perform;
use crate::driver::{Operation, Output};

/// Reads a whole small file.
pub async fn read(path: &Path) -> io::Result<Vec<u8>> {
    match perform(Operation::ReadFile { path: path.to_owned() }).await.0? {
        Output::Content(content) => Ok(content),
        other => unreachable!("a driver answers ReadFile with the content, not {other:?}"),
    }
}

/// Replaces a file, or makes it: when this returns the new content is durable; after a crash before that the file has
/// the old content or the new.
pub async fn replace(path: &Path, content: Vec<u8>) -> io::Result<()> {
    perform(Operation::ReplaceFile { path: path.to_owned(), content }).await.0.map(drop)
}

/// Removes a file durably. No error if there is none.
pub async fn remove(path: &Path) -> io::Result<()> {
    perform(Operation::RemoveFile { path: path.to_owned() }).await.0.map(drop)
}

/// The names of the files in a folder, sorted; none if there is no such folder.
pub async fn list(folder: &Path) -> io::Result<Vec<String>> {
    match perform(Operation::ListFolder { path: PathBuf::from(folder) }).await.0? {
        Output::Names(names) => Ok(names),
        other => unreachable!("a driver answers ListFolder with names, not {other:?}"),
    }
}
