//! Where stores are, or are to be: direct I/O, and space for what they may grow to.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::Deserialize;

use super::Check;
use super::node::free_space;
use crate::size::Size;

const NAME: &str = "store";
/// Bytes of a block in which the kernel counts what a file takes.
const SECTOR: u64 = 512;
/// Stores that are looked at.
const MOST: usize = 64;

/// A record of the state directory, as far as it is needed here.
#[derive(Deserialize)]
struct Versioned {
    record: Record,
}

#[derive(Deserialize)]
struct Record {
    path: PathBuf,
}

pub(super) fn checks(state: Option<&Path>, named: &[PathBuf]) -> Vec<Check> {
    let (recorded, hidden) = match state.map(recorded) {
        Some(Ok(recorded)) => (recorded, None),
        Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => (Vec::new(), Some(error)),
        _ => (Vec::new(), None),
    };
    let mut checks: Vec<Check> = recorded.iter().chain(named).take(MOST).map(|path| check(path)).collect();
    if let Some(error) = hidden {
        let found = format!("those of the state directory are not seen by this user: {error}");
        checks.push(Check::warn(NAME, found, "Run it as the daemon's user: `sudo -u ashlar ashlar preflight`."));
    }
    if checks.is_empty() {
        return vec![Check::ok(NAME, "none yet; --store PATH checks a place for one")];
    }
    checks
}

/// Paths of the stores that the node has. Memory is no path.
fn recorded(state: &Path) -> io::Result<Vec<PathBuf>> {
    let files = fs::read_dir(state.join("stores"))?.flatten();
    let texts = files.filter_map(|file| fs::read(file.path()).ok());
    let mut paths: Vec<_> =
        texts.filter_map(|text| Some(serde_json::from_slice::<Versioned>(&text).ok()?.record.path)).collect();
    paths.retain(|path| path.is_absolute());
    paths.sort();
    Ok(paths)
}

fn check(path: &Path) -> Check {
    match judge(path) {
        Ok(check) => check,
        Err(error) => Check::fail(
            NAME,
            format!("{}: {error}", path.display()),
            "A file or device has to be there, or the folder for a new file, and the daemon's user has to get to it.",
        ),
    }
}

fn judge(path: &Path) -> io::Result<Check> {
    let place = path.display();
    let (existing, folder) = match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => (None, path),
        Ok(metadata) => (Some(metadata), path),
        // A file that is to be made.
        Err(error) => match path.parent() {
            Some(folder) if error.kind() == io::ErrorKind::NotFound && folder.is_dir() => (None, folder),
            _ => return Err(error),
        },
    };
    if let Err(error) = direct(folder, existing.is_some()) {
        return Ok(Check::fail(
            NAME,
            format!("{place}: no direct I/O ({error})"),
            "Choose a file system with O_DIRECT, such as ext4 or XFS, or a block device.",
        ));
    }
    if existing.as_ref().is_some_and(|metadata| metadata.file_type().is_block_device()) {
        return Ok(Check::ok(NAME, format!("{place} is a block device with direct I/O")));
    }
    let (free, total) = free_space(folder)?;
    let missing = existing.map_or(0, |file| file.len().saturating_sub(file.blocks() * SECTOR));
    Ok(space(&place.to_string(), free, total, missing))
}

/// `missing` bytes of the file have no place on the disk yet.
fn space(place: &str, free: u64, total: u64, missing: u64) -> Check {
    if missing > free {
        return Check::warn(
            NAME,
            format!("{place} may still take {}, its file system has {}", Size(missing), Size(free)),
            "Make room, or move the store: when the file system is full, writes fail although the store has space.",
        );
    }
    if free < total / 20 {
        let found = format!("{place}: {} of {} free", Size(free), Size(total));
        return Check::warn(NAME, found, "Little space is left on the file system.");
    }
    Check::ok(NAME, format!("{place}: direct I/O, {} free", Size(free)))
}

/// Opens the file, or one without a name in the folder, as a store does.
fn direct(path: &Path, file: bool) -> io::Result<()> {
    let mut options = OpenOptions::new();
    // The bits of O_DIRECT and O_TMPFILE fit.
    let flags = |flags: OFlags| flags.bits() as i32;
    if file {
        return options.read(true).custom_flags(flags(OFlags::DIRECT)).open(path).map(drop);
    }
    options.read(true).write(true).custom_flags(flags(OFlags::DIRECT | OFlags::TMPFILE)).open(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn stores_are_found_in_the_state_directory() {
        let state = tempfile::tempdir().expect("a folder");
        let folder = state.path().join("stores");
        fs::create_dir(&folder).expect("a folder");
        let record = |name: &str, path: &str| {
            let text =
                format!(r#"{{"format":1,"record":{{"uuid":"u","name":"{name}","path":"{path}","formatted":true}}}}"#);
            fs::write(folder.join(format!("{name}.json")), text).expect("a file");
        };
        record("main", "/no/such/place/main.img");
        record("quick", "memory:");
        fs::write(folder.join("bad.json"), "{").expect("a file");
        assert_eq!(recorded(state.path()).expect("readable"), [PathBuf::from("/no/such/place/main.img")]);
        let found = checks(Some(state.path()), &[]);
        assert_eq!((found.len(), found[0].verdict), (1, Verdict::Fail), "{found:?}");
        assert_eq!(checks(None, &[])[0].verdict, Verdict::Ok);
        assert_eq!(checks(Some(&state.path().join("absent")), &[])[0].verdict, Verdict::Ok);
        // No folder: not to be read by anybody.
        fs::write(state.path().join("file"), "").expect("a file");
        assert_eq!(checks(Some(&state.path().join("file")), &[])[0].verdict, Verdict::Warn);
    }

    #[test]
    fn a_place_is_a_file_a_new_file_or_a_folder() {
        // Beside the sources: /tmp may be a file system without direct I/O.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder");
        let file = folder.path().join("main.img");
        for path in [folder.path(), &file] {
            assert_ne!(check(path).verdict, Verdict::Fail, "{:?}", check(path));
        }
        assert!(fs::read_dir(folder.path()).expect("readable").next().is_none(), "nothing is left behind");
        fs::File::create(&file).and_then(|file| file.set_len(1 << 43)).expect("a sparse file");
        let check = check(&file);
        assert!(check.verdict == Verdict::Warn && check.found.contains("8 TiB"), "{check:?}");
    }

    #[test]
    fn a_file_system_without_direct_io_will_not_do() {
        let check = check(Path::new("/proc/version"));
        assert!(check.verdict == Verdict::Fail && check.found.contains("no direct I/O"), "{check:?}");
    }

    #[test]
    fn space_is_what_the_store_may_still_take() {
        assert_eq!(space("x", 50, 100, 50).verdict, Verdict::Ok);
        assert_eq!(space("x", 50, 100, 51).verdict, Verdict::Warn);
        assert_eq!(space("x", 4, 100, 0).verdict, Verdict::Warn);
    }
}
