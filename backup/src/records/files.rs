//! Small files replaced as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, Result, local};

/// What temporary files end with.
const TEMPORARY: &str = ".new";

/// Largest record that is read.
const LARGEST_RECORD: u64 = 1 << 20;

/// A name beside `path` that nobody else has: an attempt that was dropped may still be writing its own.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}{TEMPORARY}", NEXT.fetch_add(1, Ordering::Relaxed)));
    PathBuf::from(name)
}

/// Makes a file that only its owner reads.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).read(true).write(true).truncate(true).mode(0o600).open(path)
}

/// Gives a synced temporary file its name, durably.
pub(crate) fn publish(temporary: &Path, path: &Path) -> io::Result<()> {
    fs::rename(temporary, path)?;
    sync_folder_of(path)
}

/// Replaces a record. When this returns it is durable; a crash before leaves the old one or the new one.
pub(crate) fn write_record<T: Serialize>(path: &Path, record: &T) -> Result<()> {
    let text = serde_json::to_vec(record).map_err(|error| Error::new(Kind::Local, format!("record: {error}")))?;
    let write = || {
        let name = temporary(path);
        let mut file = create(&name)?;
        file.write_all(&text)?;
        file.sync_all()?;
        publish(&name, path)
    };
    write().map_err(local(path.display()))
}

/// Reads a record; None if there is none.
pub(crate) fn read_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let length = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(local(path.display()))?.len(),
    };
    if length > LARGEST_RECORD {
        return Err(Error::new(Kind::Local, format!("{}: {length} bytes are no record", path.display())));
    }
    let text = fs::read(path).map_err(local(path.display()))?;
    let record = serde_json::from_slice(&text);
    record.map(Some).map_err(|error| Error::new(Kind::Local, format!("{}: {error}", path.display())))
}

/// Removes a file. No error if there is none.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder_of(path),
    };
    removed.map_err(local(path.display()))
}

/// Removes a folder with all that is in it. No error if there is none.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(local(path.display())),
    }
}

/// Makes a folder with its parents, and removes what attempts that were killed left in it.
pub(crate) fn open_folder(path: &Path) -> Result<()> {
    let open = || {
        if !path.is_dir() {
            fs::create_dir_all(path)?;
            sync_folder_of(path)?;
        }
        for entry in fs::read_dir(path)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == &TEMPORARY[1..]) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    };
    open().map_err(local(path.display()))
}

pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_replaced_and_leftovers_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("record.json");
        assert_eq!(read_record::<u32>(&path), Ok(None));
        write_record(&path, &7).expect("written");
        write_record(&path, &8).expect("replaced");
        fs::write(temporary(&path), "half").expect("a leftover");
        open_folder(folder.path()).expect("opened");
        assert_eq!(read_record::<u32>(&path), Ok(Some(8)));
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
        fs::write(&path, "nonsense").expect("damaged");
        assert_eq!(read_record::<u32>(&path).expect_err("damaged").kind(), Kind::Local);
    }
}
