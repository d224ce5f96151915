//! What a node is configured for, against what the machine has: reactors, time-outs, state directory.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::machine::Machine;
use super::{Check, NodeConfig};
use crate::size::Size;

/// What Linux hosts wait for a command, if nobody changed it (nvme_core.io_timeout; SCSI disks the same).
pub(super) const HOST_IO_MS: u64 = 30_000;
/// Records, the registry and notes of runs take little; a full disk stops the engine (I2).
const LITTLE_SPACE: u64 = 64 << 20;
const UNITS: [&str; 3] = [
    "/etc/systemd/system/ashlard.service",
    "/usr/lib/systemd/system/ashlard.service",
    "/lib/systemd/system/ashlard.service",
];

pub(super) fn checks(machine: &Machine, config: &NodeConfig) -> [Check; 4] {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    [
        reactors(config.reactors, cores),
        time_outs(config),
        stop_limit(machine, config),
        state_directory(&config.state_dir),
    ]
}

fn reactors(reactors: usize, cores: usize) -> Check {
    const NAME: &str = "cores";
    let found = format!("{cores} for {reactors} reactors");
    if reactors <= cores {
        return Check::ok(NAME, found);
    }
    Check::warn(NAME, found, "Set `reactors` to the number of cores at most: they take turns otherwise.")
}

/// I35: whoever waits for another one waits longer than that one takes to give up.
fn time_outs(config: &NodeConfig) -> Check {
    const NAME: &str = "time-outs";
    let (replica, unhealthy) = (config.replica_deadline_ms, config.unhealthy_after_ms);
    let found = format!(
        "replica {replica} ms < unhealthy {unhealthy} ms < hosts {HOST_IO_MS} ms (what Linux has unless it is changed)"
    );
    if replica < unhealthy && unhealthy < HOST_IO_MS {
        return Check::ok(NAME, found);
    }
    let advice = "Each has to be below the next: lower replica_deadline_ms or unhealthy_after_ms, or raise \
                  nvme_core.io_timeout on all hosts (`ashlar preflight --host` there).";
    Check::fail(NAME, found.replace(" < ", ", "), advice)
}

/// systemd kills what takes longer, which costs a recovery.
fn stop_limit(machine: &Machine, config: &NodeConfig) -> Check {
    const NAME: &str = "stop";
    let ours = config.shutdown_timeout_ms;
    let Some(unit) = UNITS.into_iter().find(|unit| machine.exists(unit)) else {
        return Check::ok(NAME, format!("takes {ours} ms at most; no unit of systemd is installed"));
    };
    let theirs =
        machine.setting(unit, "TimeoutStopSec").and_then(|text| text.trim_end_matches('s').parse::<u64>().ok());
    let found = |theirs: u64| format!("takes {ours} ms at most; systemd kills after {theirs} s");
    match theirs {
        Some(theirs) if theirs * 1000 > ours => Check::ok(NAME, found(theirs)),
        Some(theirs) => {
            Check::warn(NAME, found(theirs), format!("Raise TimeoutStopSec in {unit} above shutdown_timeout_ms."))
        }
        None => Check::ok(NAME, format!("takes {ours} ms at most; {unit} sets no limit that can be read")),
    }
}

fn state_directory(path: &Path) -> Check {
    const NAME: &str = "state";
    let place = path.display();
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Check::ok(NAME, format!("{place} is made at the first start"));
        }
        Err(error) => return Check::fail(NAME, format!("{place}: {error}"), "The daemon's user needs to get there."),
    };
    if !metadata.is_dir() {
        return Check::fail(NAME, format!("{place} is no folder"), "Set `state_dir` to another one.");
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        let advice = format!("`chmod 700 {place}`: the files in it are closed, but their names need nobody either.");
        return Check::warn(NAME, format!("{place} is open to others ({mode:o})"), advice);
    }
    match free_space(path) {
        Ok((free, _)) if free >= LITTLE_SPACE => Check::ok(NAME, format!("{place}, {} free", Size(free))),
        Ok((free, _)) => Check::fail(
            NAME,
            format!("{place} has {} free", Size(free)),
            "Make room: an engine that cannot record what it must stops.",
        ),
        Err(error) => Check::warn(NAME, format!("{place}: {error}"), "How much space there is could not be read."),
    }
}

/// Bytes that are free for anybody, and bytes in all, of the file system with `path`.
pub(super) fn free_space(path: &Path) -> io::Result<(u64, u64)> {
    let found = rustix::fs::statvfs(path)?;
    Ok((found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::Verdict;
    use super::super::machine::Fake;
    use super::super::tests_config;
    use super::*;

    /// I35.
    #[test]
    fn time_outs_have_an_order() {
        let verdict = |replica, unhealthy| {
            let times = NodeConfig { replica_deadline_ms: replica, unhealthy_after_ms: unhealthy, ..tests_config() };
            time_outs(&times).verdict
        };
        assert_eq!(verdict(4_000, 4_500), Verdict::Ok);
        assert_eq!(verdict(4_000, 4_000), Verdict::Fail);
        assert_eq!(verdict(4_000, 30_000), Verdict::Fail);
    }

    #[test]
    fn a_stop_ends_before_systemd_ends_it() {
        let verdict = |text: &str| {
            let fake = Fake::new(&[(UNITS[1], text)]);
            stop_limit(&fake.machine(), &tests_config()).verdict
        };
        assert_eq!(verdict("[Service]\nTimeoutStopSec=30\n"), Verdict::Ok);
        assert_eq!(verdict("TimeoutStopSec=20s\n"), Verdict::Warn);
        assert_eq!(verdict(""), Verdict::Ok);
    }

    #[test]
    fn more_reactors_than_cores_are_warned_of() {
        assert_eq!([reactors(2, 2).verdict, reactors(3, 2).verdict], [Verdict::Ok, Verdict::Warn]);
    }

    #[test]
    fn a_state_directory_is_a_closed_folder_with_room() {
        let folder = tempfile::tempdir().expect("a folder");
        let set = |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).expect("ours");
        set(0o755);
        assert_eq!(state_directory(folder.path()).verdict, Verdict::Warn);
        set(0o700);
        assert_eq!(state_directory(folder.path()).verdict, Verdict::Ok);
        assert_eq!(state_directory(&folder.path().join("absent")).verdict, Verdict::Ok);
        let file = folder.path().join("file");
        fs::write(&file, "").expect("a file");
        assert_eq!(state_directory(&file).verdict, Verdict::Fail);
        // It has no space at all.
        assert_eq!(state_directory(Path::new("/proc/self")).verdict, Verdict::Warn);
    }
}
