//! The file with a target's credentials: lines of `NAME=value`. It is read for each use; what is in it is in no message, log or error.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use backup::target::Credentials;

/// Largest file that is read.
const LARGEST: u64 = 64 << 10;

/// The credentials of a file; none without one. The error says what to do and nothing of the content.
pub(super) fn read(path: &str) -> Result<Credentials, String> {
    if path.is_empty() {
        return Ok(Credentials::default());
    }
    let path = Path::new(path);
    let shown = path.display();
    if !path.is_absolute() {
        return Err(format!("{shown} does not begin with `/`"));
    }
    // A pipe would block its reader.
    let opened =
        OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed()).open(path);
    let file = opened.map_err(|error| format!("{shown} cannot be opened: {error}"))?;
    check(&file).map_err(|problem| format!("{shown} {problem}"))?;
    let mut text = String::new();
    file.take(LARGEST + 1)
        .read_to_string(&mut text)
        .map_err(|error| format!("{shown} cannot be read: {}", error.kind()))?;
    parse(&text).map_err(|problem| format!("{shown} {problem}"))
}

fn check(file: &File) -> Result<(), String> {
    let found = file.metadata().map_err(|error| format!("cannot be looked at: {error}"))?;
    if !found.is_file() {
        return Err("is no file".to_owned());
    }
    if found.mode() & 0o077 != 0 {
        return Err(format!("may be used by others than its owner (mode {:o}): chmod 600", found.mode() & 0o7777));
    }
    let user = rustix::process::geteuid().as_raw();
    if found.uid() != 0 && found.uid() != user {
        return Err(format!("belongs to user {}, neither root nor the daemon's user {user}", found.uid()));
    }
    if found.len() > LARGEST {
        return Err(format!("is larger than {LARGEST} bytes"));
    }
    Ok(())
}

fn parse(text: &str) -> Result<Credentials, String> {
    let mut pairs = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let is_name =
            |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let pair = line.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
        let (name, value) = pair
            .filter(|(name, _)| is_name(name))
            .ok_or_else(|| format!("line {}: not of the form NAME=value", index + 1))?;
        pairs.push((name.to_owned(), value.to_owned()));
    }
    Ok(Credentials::new(pairs))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_a_private_file_is_read_and_no_error_shows_what_is_in_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys");
        let text = path.to_str().expect("a path").to_owned();
        let write = |content: &str, mode| {
            std::fs::write(&path, content).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
        };
        write("# ours\n\nAWS_ACCESS_KEY_ID = key\nAWS_SECRET_ACCESS_KEY=sec=ret\n", 0o600);
        let pairs = [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "sec=ret")];
        let expected = Credentials::new(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(read(&text) == Ok(expected));
        assert!(read("") == Ok(Credentials::default()));
        write("AWS_SECRET_ACCESS_KEY=s3cret", 0o640);
        assert!(read(&text).is_err_and(|error| error.contains("chmod 600")));
        write("fine=1\ns3cret", 0o600);
        let error = read(&text).expect_err("no pair");
        assert!(error.contains("line 2") && !error.contains("s3cret"), "{error}");
        assert!(read("keys").is_err_and(|error| error.contains('/')));
        assert!(read(folder.path().to_str().expect("a path")).is_err_and(|error| error.contains("no file")));
        assert!(read(&format!("{text}-absent")).is_err());
    }
}
