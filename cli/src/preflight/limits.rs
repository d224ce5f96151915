//! Limits of the process: open files and locked memory; those of the running daemon where there is one.

use proto::v1::NodeInfo;

use super::Check;
use super::machine::Machine;

/// What the unit sets: a socket for each connection of each host, and a file for each store.
const MANY_FILES: u64 = 65_536;
/// With fewer a node with some volumes and hosts stands still.
const FEW_FILES: u64 = 1_024;
/// Rings and buffers of a reactor.
const LOCKED: u64 = 64 << 20;

pub(super) fn checks(machine: &Machine, running: Option<&NodeInfo>) -> [Check; 2] {
    let of_daemon = running.and_then(|info| Some((info.pid, machine.read(&format!("/proc/{}/limits", info.pid))?)));
    match of_daemon {
        Some((pid, limits)) => judge(&limits, &format!("of ashlard, process {pid}")),
        None => judge(&machine.read("/proc/self/limits").unwrap_or_default(), "of this shell; the unit sets its own"),
    }
}

fn judge(limits: &str, whose: &str) -> [Check; 2] {
    [files(soft(limits, "Max open files"), whose), memory(soft(limits, "Max locked memory"), whose)]
}

/// The soft limit; `unlimited` is the largest number.
fn soft(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn files(limit: Option<u64>, whose: &str) -> Check {
    const NAME: &str = "open files";
    let advice = format!("Set LimitNOFILE={MANY_FILES} in the unit, or `ulimit -n {MANY_FILES}`.");
    match limit {
        None => Check::warn(NAME, "the limit cannot be read", advice),
        Some(limit) if limit < FEW_FILES => Check::fail(NAME, format!("{limit} ({whose})"), advice),
        Some(limit) if limit < MANY_FILES => Check::warn(NAME, format!("{limit} ({whose})"), advice),
        Some(limit) => Check::ok(NAME, format!("{} ({whose})", told(limit))),
    }
}

fn memory(limit: Option<u64>, whose: &str) -> Check {
    const NAME: &str = "locked memory";
    let advice = "Set LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`: kernels may count rings against it.";
    match limit {
        None => Check::warn(NAME, "the limit cannot be read", advice),
        Some(limit) if limit < LOCKED => Check::warn(NAME, format!("{limit} bytes ({whose})"), advice),
        Some(limit) => Check::ok(NAME, format!("{} ({whose})", told(limit))),
    }
}

fn told(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::super::machine::Fake;
    use super::*;

    fn limits(files: &str, memory: &str) -> String {
        format!(
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max open files            {files}                 1048576              files     \n\
             Max locked memory         {memory}              unlimited            bytes     \n"
        )
    }

    #[test]
    fn the_soft_limit_counts() {
        let verdicts = |files, memory| judge(&limits(files, memory), "x").map(|check| check.verdict);
        assert_eq!(verdicts("65536", "unlimited"), [Verdict::Ok, Verdict::Ok]);
        assert_eq!(verdicts("1024", "8388608"), [Verdict::Warn, Verdict::Warn]);
        assert_eq!(verdicts("256", "67108864"), [Verdict::Fail, Verdict::Ok]);
        assert_eq!(judge("", "x").map(|check| check.verdict), [Verdict::Warn, Verdict::Warn]);
    }

    #[test]
    fn those_of_a_running_daemon_go_before_those_of_a_shell() {
        let (own, its) = (limits("256", "0"), limits("65536", "unlimited"));
        let fake = Fake::new(&[("/proc/self/limits", &own), ("/proc/77/limits", &its)]);
        let running = NodeInfo { pid: 77, ..NodeInfo::default() };
        let found = checks(&fake.machine(), Some(&running));
        assert!(found.iter().all(|check| check.verdict == Verdict::Ok), "{found:?}");
        assert_eq!(checks(&fake.machine(), None)[0].verdict, Verdict::Fail);
    }
}
