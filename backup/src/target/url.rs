//! URLs of targets, as Longhorn writes them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result, invalid};
use crate::format::layout::is_name;

/// Where a target is, and perhaps which backup in it is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetUrl {
    /// Where it is.
    pub place: Place,
    /// The volume of `?volume=`.
    pub volume: Option<String>,
    /// The backup of `?backup=`.
    pub backup: Option<String>,
}

/// Where a target is. A `prefix` has no `/` at its ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `s3://bucket@region/prefix/`
    S3 {
        /// The bucket.
        bucket: String,
        /// The region, if there is one.
        region: Option<String>,
        /// What all keys begin with.
        prefix: String,
    },
    /// `azblob://container@endpoint-suffix/prefix/`
    Azure {
        /// The container.
        container: String,
        /// What follows `account.blob.`, if it is not Azure's own.
        suffix: Option<String>,
        /// What all keys begin with.
        prefix: String,
    },
    /// `gs://bucket/prefix/`
    Google {
        /// The bucket.
        bucket: String,
        /// What all keys begin with.
        prefix: String,
    },
    /// `vfs:///path`
    Folder {
        /// The folder, absolute.
        path: PathBuf,
    },
    /// What has to be mounted by somebody else.
    Mountable {
        /// `nfs` or `cifs`.
        scheme: String,
        /// What follows it.
        rest: String,
    },
}

impl Place {
    /// What all keys of the target begin with in the bucket.
    pub(super) fn prefix(&self) -> &str {
        match self {
            Self::S3 { prefix, .. } | Self::Azure { prefix, .. } | Self::Google { prefix, .. } => prefix,
            Self::Folder { .. } | Self::Mountable { .. } => "",
        }
    }
}

impl FromStr for TargetUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| invalid(format!("{text:?} is no URL of a target: {why}"));
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("s3://bucket@region/path/ or vfs:///path"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if path.split('/').any(|part| part == ".." || part == ".") {
            return Err(wrong("its path has . or .."));
        }
        let prefix = path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        let (name, at) = host.split_once('@').map_or((host, None), |(name, at)| (name, Some(at.to_owned())));
        if name.is_empty() && scheme != "vfs" {
            return Err(wrong("it names no bucket or host"));
        }
        let name = name.to_owned();
        let place = match scheme {
            "s3" => Place::S3 { bucket: name, region: at.filter(|at| !at.is_empty()), prefix },
            "azblob" => Place::Azure { container: name, suffix: at.filter(|at| !at.is_empty()), prefix },
            "gs" => Place::Google { bucket: name, prefix },
            "vfs" if host.is_empty() && !prefix.is_empty() => Place::Folder { path: format!("/{prefix}").into() },
            "vfs" => return Err(wrong("a folder is vfs:///path")),
            "nfs" | "cifs" => Place::Mountable { scheme: scheme.to_owned(), rest: rest.to_owned() },
            _ => return Err(wrong("s3, azblob, gs and vfs are known")),
        };
        let mut url = Self { place, volume: None, backup: None };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "volume" | "backup" if !is_name(value) => return Err(wrong("volume or backup is no name")),
                "volume" => url.volume = Some(value.to_owned()),
                "backup" => url.backup = Some(value.to_owned()),
                // Options of mounts, which are not ours.
                _ => {}
            }
        }
        Ok(url)
    }
}

impl fmt::Display for TargetUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |at: &Option<String>| at.as_ref().map_or(String::new(), |at| format!("@{at}"));
        match &self.place {
            Place::S3 { bucket, region, prefix } => write!(f, "s3://{bucket}{}/{prefix}", at(region))?,
            Place::Azure { container, suffix, prefix } => write!(f, "azblob://{container}{}/{prefix}", at(suffix))?,
            Place::Google { bucket, prefix } => write!(f, "gs://{bucket}/{prefix}")?,
            Place::Folder { path } => write!(f, "vfs://{}", path.display())?,
            Place::Mountable { scheme, rest } => write!(f, "{scheme}://{rest}")?,
        }
        let pairs = [("backup", &self.backup), ("volume", &self.volume)];
        let pairs = pairs.into_iter().filter_map(|(key, value)| value.as_ref().map(|value| format!("{key}={value}")));
        let query = pairs.collect::<Vec<_>>().join("&");
        if query.is_empty() { Ok(()) } else { write!(f, "?{query}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> TargetUrl {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn targets_are_read_and_written() {
        let url = parse("s3://bucket@us-east-1/a/b/?backup=backup-1&volume=vol-1");
        let place = Place::S3 { bucket: "bucket".into(), region: Some("us-east-1".into()), prefix: "a/b".into() };
        assert_eq!(url.place, place);
        assert_eq!((url.volume.as_deref(), url.backup.as_deref()), (Some("vol-1"), Some("backup-1")));
        for text in
            ["s3://bucket/", "azblob://c@core.windows.net/x", "gs://b/x", "vfs:///mnt/backups", "nfs://host:/path?soft"]
        {
            let url = parse(text);
            assert_eq!(parse(&url.to_string()), url, "{text}");
        }
        assert_eq!(parse("vfs:///mnt//backups/").place, Place::Folder { path: "/mnt/backups".into() });
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for text in [
            "",
            "bucket",
            "s3://",
            "s3:///path",
            "vfs://",
            "vfs://host/path",
            "vfs:///",
            "vfs:///a/../../etc",
            "ftp://host/",
            "s3://b/?volume=../x",
            "s3://b/?backup=",
        ] {
            assert!(text.parse::<TargetUrl>().is_err(), "{text}");
        }
    }
}
