//! The kernel: its version, io_uring, huge pages, the clock.

use std::io;

use reactor::{Config, Reactor};

use super::machine::Machine;
use super::{Check, Verdict};

/// The oldest kernel that Ashlar runs on: rings of one thread (DEFER_TASKRUN) are from 6.1.
const OLDEST: (u32, u32) = (6, 1);
/// Clocks that may be wrong by more are not synchronised, whatever the kernel says.
const MOST_ERROR_MS: u128 = 1_000;

pub(super) fn version(machine: &Machine) -> Check {
    const NAME: &str = "kernel";
    let release = machine.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let advice = format!("Ashlar needs Linux {}.{} or newer.", OLDEST.0, OLDEST.1);
    match parse(&release) {
        Some(version) if version >= OLDEST => Check::ok(NAME, release),
        Some(_) => Check::fail(NAME, release, advice),
        None => Check::warn(NAME, format!("`{release}` is no version"), advice),
    }
}

/// `6.12.0-18-amd64` is (6, 12).
fn parse(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// A reactor is started and ended: that shows more than any version or setting.
pub(super) fn io_uring(machine: &Machine) -> Check {
    let started = Reactor::run(&Config::default(), async {});
    judge_ring(machine, started.err())
}

fn judge_ring(machine: &Machine, error: Option<io::Error>) -> Check {
    const NAME: &str = "io_uring";
    const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";
    let disabled = machine.number(SYSCTL).unwrap_or(0);
    let Some(error) = error else {
        return match disabled {
            0 => Check::ok(NAME, "a ring with all that is needed was set up"),
            _ => Check::warn(
                NAME,
                format!("works for this user, but kernel.io_uring_disabled is {disabled}"),
                "The daemon's user may not be allowed: set it to 0, or put the user in the group kernel.io_uring_group.",
            ),
        };
    };
    let filtered = machine
        .read("/proc/self/status")
        .is_some_and(|status| status.lines().any(|line| line.starts_with("Seccomp:") && !line.ends_with('0')));
    let advice = if disabled > 0 {
        format!(
            "kernel.io_uring_disabled is {disabled}: `sysctl kernel.io_uring_disabled=0`, and in /etc/sysctl.d for ever."
        )
    } else if filtered {
        "A seccomp filter refuses it: a container needs a profile that allows io_uring_setup, io_uring_enter and \
         io_uring_register (docs/packaging.md)."
            .to_owned()
    } else {
        "The kernel may be too old, or built without CONFIG_IO_URING.".to_owned()
    };
    Check::fail(NAME, format!("no ring: {error}"), advice)
}

/// Others need them; somebody who comes from there reserves memory for nothing.
pub(super) fn huge_pages(machine: &Machine) -> Check {
    const NAME: &str = "huge pages";
    match machine.number("/proc/sys/vm/nr_hugepages").unwrap_or(0) {
        0 => Check::ok(NAME, "none reserved, none needed"),
        pages => Check::ok(NAME, format!("{pages} reserved; Ashlar does not need them")),
    }
}

pub(super) fn clock() -> Check {
    judge_clock(reactor::kernel_clock())
}

fn judge_clock(clock: io::Result<reactor::KernelClock>) -> Check {
    const NAME: &str = "clock";
    let advice = "Run a time service (systemd-timesyncd, chrony): events, backups and certificates are dated by it. \
                  No data depends on it.";
    match clock {
        Err(error) => Check::warn(
            NAME,
            format!("the kernel does not say: {error}"),
            "A container may not ask: `ashlar preflight` on the machine itself tells.",
        ),
        Ok(clock) if !clock.synchronized => Check::warn(NAME, "not synchronised", advice),
        Ok(clock) if clock.max_error.as_millis() > MOST_ERROR_MS => {
            Check::warn(NAME, format!("may be wrong by {} ms", clock.max_error.as_millis()), advice)
        }
        Ok(clock) => Check {
            name: NAME,
            verdict: Verdict::Ok,
            found: format!("synchronised, within {} ms", clock.max_error.as_millis()),
            advice: String::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::machine::Fake;
    use super::*;

    fn with(files: &[(&str, &str)], check: impl FnOnce(&Machine) -> Check) -> Check {
        check(&Fake::new(files).machine())
    }

    #[test]
    fn kernels_from_6_1_on_will_do() {
        let verdict = |release: &str| with(&[("/proc/sys/kernel/osrelease", release)], version).verdict;
        for good in ["6.1.0\n", "6.12.0-18-amd64", "7.0-rc1", "6.10.3+"] {
            assert_eq!(verdict(good), Verdict::Ok, "{good}");
        }
        assert_eq!(verdict("6.0.19"), Verdict::Fail);
        assert_eq!(verdict("5.15.0-generic"), Verdict::Fail);
        assert_eq!(verdict("unknown"), Verdict::Warn);
    }

    #[test]
    fn the_reason_why_there_is_no_ring_is_looked_for() {
        let refused = || Some(io::Error::from_raw_os_error(1));
        let sysctl = ("/proc/sys/kernel/io_uring_disabled", "2");
        let check = with(&[sysctl], |machine| judge_ring(machine, refused()));
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.advice.contains("sysctl kernel.io_uring_disabled=0"), "{check:?}");
        let check = with(&[("/proc/self/status", "Name: x\nSeccomp:\t2\n")], |machine| judge_ring(machine, refused()));
        assert!(check.advice.contains("seccomp"), "{check:?}");
        let check = with(&[("/proc/self/status", "Seccomp:\t0\n")], |machine| judge_ring(machine, refused()));
        assert!(check.advice.contains("too old"), "{check:?}");
        let check = with(&[sysctl], |machine| judge_ring(machine, None));
        assert_eq!(check.verdict, Verdict::Warn, "root may, the daemon's user may not");
        assert_eq!(with(&[], |machine| judge_ring(machine, None)).verdict, Verdict::Ok);
    }

    #[test]
    fn a_clock_is_synchronised_or_warned_of() {
        let judge = |synchronized, ms| {
            judge_clock(Ok(reactor::KernelClock { synchronized, max_error: Duration::from_millis(ms) })).verdict
        };
        assert_eq!(
            [judge(true, 20), judge(true, 5_000), judge(false, 20)],
            [Verdict::Ok, Verdict::Warn, Verdict::Warn]
        );
        assert_eq!(judge_clock(Err(io::Error::other("no"))).verdict, Verdict::Warn);
    }
}
