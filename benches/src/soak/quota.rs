//! The processor time that the daemon gets at most, as a container's limit holds it: a group of the kernel's `cpu` controller (cgroup).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// In so many microseconds the daemon gets its share.
const PERIOD: u64 = 100_000;

/// Where the `cpu` controller may be, and how a share is written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// `cpu.cfs_quota_us` and `cpu.cfs_period_us`.
    One,
    /// `cpu.max`.
    Two,
}

/// A group with a limit. It goes when it is dropped, once nobody is in it.
pub(super) struct Quota {
    group: PathBuf,
}

/// How often the daemon had to wait for its next share.
pub(super) struct Throttled {
    pub(super) periods: u64,
    pub(super) of: u64,
}

impl Quota {
    /// Holds a process to `percent` of one processor. An error says why that is not possible here.
    pub(super) fn hold(pid: u32, percent: u32) -> anyhow::Result<Self> {
        let (version, root) = find(Path::new("/sys/fs/cgroup"))?;
        let group = root.join(format!("ashlar-soak-{pid}"));
        if version == Version::Two {
            // It may be given to groups below already.
            let given = fs::write(root.join("cgroup.subtree_control"), "+cpu");
            given.with_context(|| format!("{} does not give the cpu controller to groups below it", root.display()))?;
        }
        fs::create_dir(&group).with_context(|| format!("cannot make the group {}", group.display()))?;
        let quota = Self { group };
        for (file, text) in limit(version, percent) {
            quota.write(file, &text)?;
        }
        quota.write("cgroup.procs", &pid.to_string())?;
        Ok(quota)
    }

    /// What became of it so far.
    pub(super) fn throttled(&self) -> anyhow::Result<Throttled> {
        let path = self.group.join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        parse(&text).with_context(|| format!("{} says nothing of shares: {text}", path.display()))
    }

    fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let path = self.group.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {text} to {}", path.display()))
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.group) {
            eprintln!("{} stays: {error}", self.group.display());
        }
    }
}

/// The controller, in whichever version it is mounted.
fn find(mounts: &Path) -> anyhow::Result<(Version, PathBuf)> {
    let two = fs::read_to_string(mounts.join("cgroup.controllers")).unwrap_or_default();
    if two.split_whitespace().any(|controller| controller == "cpu") {
        return Ok((Version::Two, mounts.to_owned()));
    }
    let one = mounts.join("cpu");
    ensure!(one.join("cpu.cfs_quota_us").exists(), "there is no cpu controller in {}", mounts.display());
    Ok((Version::One, one))
}

fn limit(version: Version, percent: u32) -> Vec<(&'static str, String)> {
    let quota = PERIOD * u64::from(percent) / 100;
    match version {
        Version::One => vec![("cpu.cfs_period_us", PERIOD.to_string()), ("cpu.cfs_quota_us", quota.to_string())],
        Version::Two => vec![("cpu.max", format!("{quota} {PERIOD}"))],
    }
}

fn parse(text: &str) -> Option<Throttled> {
    let field = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(field, _)| *field == name)?.1.parse().ok()
    };
    Some(Throttled { periods: field("nr_throttled")?, of: field("nr_periods")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_written_as_each_version_reads_it() {
        assert_eq!(limit(Version::Two, 150), [("cpu.max", "150000 100000".to_owned())]);
        let one = [("cpu.cfs_period_us", "100000".to_owned()), ("cpu.cfs_quota_us", "50000".to_owned())];
        assert_eq!(limit(Version::One, 50), one);
    }

    #[test]
    fn the_controller_is_found_in_either_version_or_said_to_be_missing() {
        let mounts = tempfile::tempdir().expect("a folder");
        let found = || find(mounts.path()).map_err(|error| error.to_string());
        assert!(found().expect_err("nothing is there").contains("no cpu controller"));
        fs::create_dir(mounts.path().join("cpu")).expect("made");
        fs::write(mounts.path().join("cpu/cpu.cfs_quota_us"), "-1").expect("written");
        assert_eq!(found().map(|found| found.0), Ok(Version::One));
        fs::write(mounts.path().join("cgroup.controllers"), "cpuset cpu io").expect("written");
        assert_eq!(found().map(|found| found.0), Ok(Version::Two));
    }

    #[test]
    fn a_process_is_held_and_its_group_goes_with_it() {
        let mut busy = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("a shell");
        let held = Quota::hold(busy.id(), 10);
        let used_up = held.as_ref().ok().map(until_used_up);
        busy.kill().expect("it runs");
        busy.wait().expect("it has ended");
        match held {
            Ok(quota) => {
                let Throttled { periods, of } = used_up.expect("it was held").expect("the kernel counts");
                assert!(periods <= of, "{periods} of {of}");
                let group = quota.group.clone();
                drop(quota);
                assert!(!group.exists());
            }
            Err(error) => println!("skipped: {error:#}"),
        }
    }

    /// Waits until a busy process has had to wait a few times.
    fn until_used_up(quota: &Quota) -> anyhow::Result<Throttled> {
        loop {
            let seen = quota.throttled()?;
            if seen.periods >= 3 {
                return Ok(seen);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    #[test]
    fn what_the_kernel_counts_is_read() {
        let Throttled { periods, of } = parse("usage_usec 1\nnr_periods 70\nnr_throttled 12\n").expect("counted");
        assert_eq!((periods, of), (12, 70));
        assert!(parse("usage_usec 1\n").is_none());
    }
}
