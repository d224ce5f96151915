//! The file of a lock.

use super::go_json;
use crate::error::{Result, corrupt};

/// Largest file that is read.
pub const LARGEST: u64 = 4096;

/// What a lock is for. Those of one type go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockType {
    /// Backups and restores.
    Shared,
    /// Removal and garbage collection.
    Delete,
}

/// The content of a lock's file. A type that we do not know is kept as its number: it excludes both of ours.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct LockFile {
    /// Its name, also that of the file.
    pub name: String,
    /// 1 shared, 2 delete.
    #[serde(rename = "Type")]
    pub kind: u32,
    /// Whether its owner has it.
    #[serde(default)]
    pub acquired: bool,
}

impl LockType {
    /// Its number in files.
    pub const fn number(self) -> u32 {
        match self {
            Self::Shared => 1,
            Self::Delete => 2,
        }
    }
}

impl LockFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When it is none: `Corrupt`.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|error| corrupt(format!("lock: {error}")))
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = String::from("{\"Name\":");
        go_json::push_string(&mut out, &self.name);
        out.push_str(&format!(",\"Type\":{},\"Acquired\":{}}}", self.kind, self.acquired));
        out.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_comes_back() {
        let text = br#"{"Name":"lock-0123456789abcdef","Type":2,"Acquired":true}"#;
        let lock = LockFile::parse(text).expect("a lock");
        assert_eq!((lock.kind, lock.acquired), (LockType::Delete.number(), true));
        assert_eq!(lock.to_bytes(), text);
    }

    #[test]
    fn what_is_no_lock_is_damage() {
        for text in
            ["", "{}", "[]", r#"{"Name":"a","Type":"2"}"#, r#"{"Name":"a","Type":-1}"#, r#"{"Name":"a","Type":1"#]
        {
            assert!(LockFile::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
