//! What the kernel and the system say of themselves in files, below a root that tests choose.

use std::fs;
use std::path::{Path, PathBuf};

pub(super) struct Machine {
    root: PathBuf,
}

impl Machine {
    /// The one this runs on.
    pub(super) fn this() -> Self {
        Self { root: "/".into() }
    }

    /// A file, without white space at its ends; none if it cannot be read.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok().map(|text| text.trim().to_owned())
    }

    /// A file with nothing but a number.
    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The names in a folder, in order.
    pub(super) fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The value of `key = value` or `key=value` in a file; the last one counts.
    pub(super) fn setting(&self, path: &str, key: &str) -> Option<String> {
        let text = self.read(path)?;
        let values = text.lines().filter_map(|line| line.trim().split_once('='));
        let found = values.rev().find(|(name, _)| name.trim() == key);
        found.map(|(_, value)| value.trim().to_owned())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(Path::new(path).strip_prefix("/").unwrap_or(Path::new(path)))
    }
}

/// A machine made of files.
#[cfg(test)]
pub(super) struct Fake {
    folder: tempfile::TempDir,
}

#[cfg(test)]
impl Fake {
    pub(super) fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = folder.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        Self { folder }
    }

    pub(super) fn machine(&self) -> Machine {
        Machine { root: self.folder.path().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_below_the_root() {
        let fake = Fake::new(&[("/proc/n", "42\n"), ("/etc/x.conf", "# a = 0\na = 1\n a=2\n"), ("/sys/b", "")]);
        let machine = fake.machine();
        assert_eq!((machine.number("/proc/n"), machine.number("/sys/b")), (Some(42), None));
        assert_eq!(machine.setting("/etc/x.conf", "a").as_deref(), Some("2"));
        assert_eq!(machine.setting("/etc/x.conf", "b"), None);
        assert_eq!(machine.names("/proc"), ["n"]);
        assert!(machine.exists("/sys/b") && !machine.exists("/sys/c"));
    }
}
