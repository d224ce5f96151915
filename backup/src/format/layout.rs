//! Where things are in a store, and which names are ours.

use crate::block::Checksum;
use crate::error::{Result, invalid};

/// The folder of everything.
pub(crate) const ROOT: &str = "backupstore";

/// The folder of all volumes.
pub const VOLUMES: &str = "backupstore/volumes";

/// Longest name of a volume or a backup: file systems have no longer ones.
const LONGEST_NAME: usize = 255;

/// What surrounds the name of a backup in its file's name.
const BACKUP: (&str, &str) = ("backup_", ".cfg");

/// What surrounds a checksum in a block's file name.
const BLOCK: (&str, &str) = ("", ".blk");

/// Whether this can be the name of a volume or a backup: `^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`.
pub fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
    (2..=LONGEST_NAME).contains(&bytes.len()) && bytes[0].is_ascii_alphanumeric() && bytes.iter().all(inner)
}

/// The folder of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFolder {
    folder: String,
    volume: String,
}

impl VolumeFolder {
    /// Where the volume of this name is.
    ///
    /// # Errors
    /// When it cannot be a name.
    pub fn new(volume: &str) -> Result<Self> {
        if !is_name(volume) {
            return Err(invalid(format!("{volume:?} is no name of a volume: two or more of a-z A-Z 0-9 _ . -")));
        }
        let hash = Checksum::of(volume.as_bytes()).to_string();
        Ok(Self { folder: format!("{VOLUMES}/{}/{}/{volume}", &hash[..2], &hash[2..4]), volume: volume.to_owned() })
    }

    /// The volume's name.
    pub fn volume(&self) -> &str {
        &self.volume
    }

    /// The folder itself.
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// The file of the volume.
    pub fn config(&self) -> String {
        format!("{}/volume.cfg", self.folder)
    }

    /// The folder of the backups' files.
    pub fn backups(&self) -> String {
        format!("{}/backups", self.folder)
    }

    /// The file of a backup.
    ///
    /// # Errors
    /// When it cannot be a name.
    pub fn backup(&self, name: &str) -> Result<String> {
        if !is_name(name) {
            return Err(invalid(format!("{name:?} is no name of a backup: two or more of a-z A-Z 0-9 _ . -")));
        }
        Ok(format!("{}/{}{name}{}", self.backups(), BACKUP.0, BACKUP.1))
    }

    /// The folder of all blocks.
    pub fn blocks(&self) -> String {
        format!("{}/blocks", self.folder)
    }

    /// The folder of the blocks whose checksums begin with this byte.
    pub fn blocks_beginning(&self, first: u8) -> String {
        format!("{}/blocks/{first:02x}", self.folder)
    }

    /// The file of a block.
    pub fn block(&self, checksum: &Checksum) -> String {
        let name = checksum.to_string();
        format!("{}/blocks/{}/{}/{name}{}", self.folder, &name[..2], &name[2..4], BLOCK.1)
    }

    /// The folder of the locks.
    pub fn locks(&self) -> String {
        format!("{}/locks", self.folder)
    }

    /// The file of a lock of this name.
    pub fn lock(&self, name: &str) -> String {
        format!("{}/{name}.lck", self.locks())
    }
}

/// The last part of a key.
pub(crate) fn file_name(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

/// The backup whose file this is, if it is one.
pub(crate) fn backup_of(key: &str) -> Option<&str> {
    let name = file_name(key).strip_prefix(BACKUP.0)?.strip_suffix(BACKUP.1)?;
    is_name(name).then_some(name)
}

/// The checksum of the block whose file this is, if it is one.
pub(crate) fn block_of(key: &str) -> Option<Checksum> {
    Checksum::parse(file_name(key).strip_suffix(BLOCK.1)?)
}

/// The lock whose file this is, if it is one.
pub(crate) fn lock_of(key: &str) -> Option<&str> {
    let name = file_name(key).strip_suffix(".lck")?;
    name.starts_with("lock-").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_lies_where_the_real_store_has_it() {
        let folder = VolumeFolder::new("vol-lz4").expect("a name");
        assert_eq!(folder.config(), "backupstore/volumes/19/25/vol-lz4/volume.cfg");
        let backup = folder.backup("backup-1").expect("a name");
        assert_eq!(backup, "backupstore/volumes/19/25/vol-lz4/backups/backup_backup-1.cfg");
        assert_eq!(backup_of(&backup), Some("backup-1"));
    }

    #[test]
    fn names_that_leave_the_folder_or_are_none_are_refused() {
        for name in ["", "a", ".a", "..", "a/b", "a b", "-a", "ä1", "a\0", "../../etc", &"a".repeat(256)] {
            assert!(!is_name(name), "{name:?}");
            assert!(VolumeFolder::new(name).is_err(), "{name:?}");
        }
        for name in ["a1", "A_b.c-d", &"a".repeat(255)] {
            assert!(is_name(name), "{name:?}");
        }
    }

    #[test]
    fn files_of_others_are_no_files_of_ours() {
        assert_eq!(backup_of("x/backups/backup_.cfg"), None);
        assert_eq!(backup_of("x/backups/backup_ok.cfg.tmp"), None);
        assert_eq!(block_of("x/blocks/00/11/0011.blk"), None);
        assert_eq!(lock_of("x/locks/README"), None);
    }
}
