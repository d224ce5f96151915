//! A machine that attaches volumes: modules, tools, identities, and time-outs in order (I35).

use super::machine::Machine;
use super::node::HOST_IO_MS;
use super::{Check, NodeConfig, kernel};

/// What `ashlard` has unless it is configured otherwise.
const REPLICA_MS: u64 = 4_000;
const UNHEALTHY_MS: u64 = 4_500;
/// A restart of a daemon with much to recover takes some seconds; a reboot of its node minutes.
const RESTART_MS: u64 = 60_000;
/// What open-iscsi and nvme-cli have unless it is changed.
const REPLACEMENT_S: u64 = 120;
const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
const ISCSI_CONFIG: &str = "/etc/iscsi/iscsid.conf";

/// A frontend as hosts see it.
struct Frontend {
    name: &'static str,
    /// The module, as the kernel's folders spell it.
    module: &'static str,
    tool: &'static str,
    package: &'static str,
    identity: &'static str,
    identity_advice: &'static str,
}

const FRONTENDS: [Frontend; 2] = [
    Frontend {
        name: "NVMe/TCP",
        module: "nvme_tcp",
        tool: "nvme",
        package: "nvme-cli",
        identity: "/etc/nvme/hostnqn",
        identity_advice: "`nvme gen-hostnqn > /etc/nvme/hostnqn`: volumes that only some hosts may attach know them by it.",
    },
    Frontend {
        name: "iSCSI",
        module: "iscsi_tcp",
        tool: "iscsiadm",
        package: "open-iscsi",
        identity: "/etc/iscsi/initiatorname.iscsi",
        identity_advice: "`echo InitiatorName=$(iscsi-iname) > /etc/iscsi/initiatorname.iscsi`",
    },
];

pub(super) fn checks(machine: &Machine, config: Option<&NodeConfig>) -> Vec<Check> {
    let mut checks = vec![Check::ok("kernel", machine.read("/proc/sys/kernel/osrelease").unwrap_or_default())];
    let found: Vec<_> = FRONTENDS.iter().map(|frontend| frontend_checks(machine, frontend)).collect();
    // A host needs one of the two: the other is only warned of where one is whole.
    let one_works = found.iter().any(|checks| checks.iter().all(|check| check.verdict < super::Verdict::Fail));
    for check in found.into_iter().flatten() {
        let verdict = if one_works { check.verdict.min(super::Verdict::Warn) } else { check.verdict };
        checks.push(Check { verdict, ..check });
    }
    checks.extend(time_outs(machine, config));
    checks.push(kernel::clock());
    checks.extend(super::names::checks(machine, &[]));
    checks
}

fn frontend_checks(machine: &Machine, frontend: &Frontend) -> Vec<Check> {
    let Frontend { name, module, tool, package, identity, identity_advice } = *frontend;
    let module = match find_module(machine, module) {
        Some(how) => Check::ok(name, format!("module {module} {how}")),
        None => Check::fail(
            name,
            format!("the kernel has no module {module}"),
            format!(
                "Install the kernel's full set of modules (`linux-image-…`, `linux-modules-extra-…`), then `modprobe {module}`."
            ),
        ),
    };
    let tool = match FOLDERS.into_iter().map(|folder| format!("{folder}/{tool}")).find(|path| machine.exists(path)) {
        Some(path) => Check::ok(name, path),
        None => Check::fail(name, format!("no {tool}"), format!("`apt install {package}`")),
    };
    let identity = match machine.read(identity).filter(|text| !text.is_empty()) {
        Some(_) => Check::ok(name, format!("identity in {identity}")),
        None => Check::warn(name, format!("no identity in {identity}"), identity_advice),
    };
    vec![module, tool, identity]
}

/// How the kernel has a module, if it does.
fn find_module(machine: &Machine, module: &str) -> Option<&'static str> {
    if machine.exists(&format!("/sys/module/{module}")) {
        return Some("is loaded");
    }
    let release = machine.read("/proc/sys/kernel/osrelease")?;
    let listed = |list: &str| {
        let text = machine.read(&format!("/lib/modules/{release}/{list}")).unwrap_or_default();
        text.lines().any(|line| {
            let path = line.split(':').next().unwrap_or_default();
            let file = path.rsplit('/').next().unwrap_or_default();
            file.split('.').next().unwrap_or_default().replace('-', "_") == module
        })
    };
    if listed("modules.builtin") {
        return Some("is built in");
    }
    listed("modules.dep").then_some("can be loaded")
}

/// replica deadline < unhealthy < a command's time-out < the loss of the connection.
fn time_outs(machine: &Machine, config: Option<&NodeConfig>) -> Vec<Check> {
    let unhealthy = config.map_or(UNHEALTHY_MS, |config| config.unhealthy_after_ms);
    let replica = config.map_or(REPLICA_MS, |config| config.replica_deadline_ms);
    let nvme =
        machine.number("/sys/module/nvme_core/parameters/io_timeout").map_or(HOST_IO_MS, |seconds| seconds * 1000);
    let mut checks = vec![command_time_out("NVMe", nvme, replica, unhealthy, "nvme_core.io_timeout")];
    checks.extend(scsi_disks(machine).map(|(disk, limit)| {
        command_time_out(&disk, limit * 1000, replica, unhealthy, &format!("/sys/block/{disk}/device/timeout"))
    }));
    checks.extend(controllers(machine).map(|(name, limit)| {
        loss(&format!("{name} gives up"), limit.map(|seconds| seconds * 1000), "nvme connect --ctrl-loss-tmo=600")
    }));
    let iscsi = machine.setting(ISCSI_CONFIG, "node.session.timeo.replacement_timeout");
    let iscsi = iscsi.map_or(Some(REPLACEMENT_S), |text| text.parse().ok());
    // Negative is for ever.
    let advice = "node.session.timeo.replacement_timeout = 120 in /etc/iscsi/iscsid.conf";
    checks.push(loss("iSCSI gives up", iscsi.map(|seconds| seconds * 1000), advice));
    checks
}

fn command_time_out(what: &str, limit: u64, replica: u64, unhealthy: u64, setting: &str) -> Check {
    const NAME: &str = "time-outs";
    if unhealthy < limit {
        return Check::ok(NAME, format!("replica {replica} ms < unhealthy {unhealthy} ms < {what} {limit} ms"));
    }
    Check::fail(
        NAME,
        format!(
            "{what} gives a command up after {limit} ms, a node a replica after {replica} ms, unhealthy after {unhealthy} ms"
        ),
        format!(
            "Raise {setting} above both: hosts must wait longer than a node takes to go on without a replica (I35)."
        ),
    )
}

/// `limit` is none where the host waits for ever.
fn loss(what: &str, limit: Option<u64>, advice: &str) -> Check {
    const NAME: &str = "time-outs";
    match limit {
        None => Check::ok(NAME, format!("{what} a lost connection never")),
        Some(limit) if limit >= RESTART_MS => {
            Check::ok(NAME, format!("{what} a lost connection after {} s", limit / 1000))
        }
        Some(limit) => Check::warn(
            NAME,
            format!("{what} a lost connection after {} s", limit / 1000),
            format!("A restart of a node may take longer: `{advice}`"),
        ),
    }
}

/// Disks of ours over iSCSI, and the seconds that a command may take.
fn scsi_disks(machine: &Machine) -> impl Iterator<Item = (String, u64)> {
    let disks = machine.names("/sys/block").into_iter();
    disks.filter_map(|disk| {
        let vendor = machine.read(&format!("/sys/block/{disk}/device/vendor"))?;
        let limit = machine.number(&format!("/sys/block/{disk}/device/timeout"))?;
        (vendor == "ASHLAR").then_some((disk, limit))
    })
}

/// Controllers of ours over NVMe/TCP, and the seconds that they try to come back; none for ever.
fn controllers(machine: &Machine) -> impl Iterator<Item = (String, Option<u64>)> {
    let names = machine.names("/sys/class/nvme").into_iter();
    names.filter_map(|name| {
        let read = |what: &str| machine.read(&format!("/sys/class/nvme/{name}/{what}"));
        let ours = read("transport")? == "tcp" && read("subsysnqn")?.contains("io.ashlar:");
        let limit = read("ctrl_loss_tmo")?.parse().ok();
        ours.then_some((name, limit))
    })
}

#[cfg(test)]
mod tests {
    use super::super::machine::Fake;
    use super::super::{Verdict, tests_config};
    use super::*;

    const RELEASE: (&str, &str) = ("/proc/sys/kernel/osrelease", "6.12.0-18-amd64\n");

    fn frontend(files: &[(&str, &str)], index: usize) -> Vec<Verdict> {
        frontend_checks(&Fake::new(files).machine(), &FRONTENDS[index]).iter().map(|check| check.verdict).collect()
    }

    #[test]
    fn a_module_is_loaded_built_in_or_to_be_loaded() {
        let dep = "kernel/drivers/nvme/host/nvme-tcp.ko.xz: kernel/drivers/nvme/host/nvme-fabrics.ko.xz\n";
        let find = |files: &[(&str, &str)]| find_module(&Fake::new(files).machine(), "nvme_tcp");
        assert_eq!(find(&[RELEASE, ("/lib/modules/6.12.0-18-amd64/modules.dep", dep)]), Some("can be loaded"));
        let builtin = ("/lib/modules/6.12.0-18-amd64/modules.builtin", "kernel/drivers/nvme/host/nvme-tcp.ko\n");
        assert_eq!(find(&[RELEASE, builtin]), Some("is built in"));
        assert_eq!(find(&[("/sys/module/nvme_tcp/refcnt", "0")]), Some("is loaded"));
        assert_eq!(find(&[RELEASE, ("/lib/modules/6.12.0-18-amd64/modules.dep", "kernel/x/nvmet-tcp.ko:\n")]), None);
    }

    #[test]
    fn a_host_needs_one_frontend() {
        let whole = [
            ("/sys/module/nvme_tcp/refcnt", "0"),
            ("/usr/sbin/nvme", ""),
            ("/etc/nvme/hostnqn", "nqn.2014-08.org:x\n"),
        ];
        assert_eq!(frontend(&whole, 0), [Verdict::Ok; 3]);
        assert_eq!(frontend(&whole, 1), [Verdict::Fail, Verdict::Fail, Verdict::Warn]);
        let worst = |files: &[(&str, &str)]| {
            let found = checks(&Fake::new(files).machine(), None);
            let of_frontends = found.into_iter().filter(|check| FRONTENDS.iter().any(|front| front.name == check.name));
            of_frontends.map(|check| check.verdict).max()
        };
        assert_eq!(worst(&whole), Some(Verdict::Warn));
        assert_eq!(worst(&whole[..1]), Some(Verdict::Fail));
    }

    /// I35.
    #[test]
    fn hosts_wait_longer_than_nodes() {
        let verdicts = |files: &[(&str, &str)], config: Option<&NodeConfig>| {
            let found = time_outs(&Fake::new(files).machine(), config);
            found.iter().map(|check| check.verdict).collect::<Vec<_>>()
        };
        assert_eq!(verdicts(&[], None), [Verdict::Ok; 2], "what Linux has");
        let short = ("/sys/module/nvme_core/parameters/io_timeout", "4\n");
        assert_eq!(verdicts(&[short], None)[0], Verdict::Fail);
        let patient = NodeConfig { replica_deadline_ms: 20_000, unhealthy_after_ms: 40_000, ..tests_config() };
        assert_eq!(verdicts(&[], Some(&patient))[0], Verdict::Fail);
        let iscsi = |text| verdicts(&[(ISCSI_CONFIG, text)], None)[1];
        assert_eq!(iscsi("node.session.timeo.replacement_timeout = 5\n"), Verdict::Warn);
        assert_eq!(iscsi("#node.session.timeo.replacement_timeout = 5\n"), Verdict::Ok);
        assert_eq!(iscsi("node.session.timeo.replacement_timeout = -1\n"), Verdict::Ok);
    }

    #[test]
    fn what_is_attached_is_looked_at_and_nothing_else() {
        let files = [
            ("/sys/block/sda/device/vendor", "ASHLAR  \n"),
            ("/sys/block/sda/device/timeout", "3\n"),
            ("/sys/block/sdb/device/vendor", "OTHER\n"),
            ("/sys/block/sdb/device/timeout", "1\n"),
            ("/sys/class/nvme/nvme0/transport", "tcp\n"),
            ("/sys/class/nvme/nvme0/subsysnqn", "nqn.2026-01.io.ashlar:volume:x\n"),
            ("/sys/class/nvme/nvme0/ctrl_loss_tmo", "30\n"),
            ("/sys/class/nvme/nvme1/transport", "pcie\n"),
            ("/sys/class/nvme/nvme1/subsysnqn", "nqn.other\n"),
            ("/sys/class/nvme/nvme1/ctrl_loss_tmo", "1\n"),
        ];
        let found = time_outs(&Fake::new(&files).machine(), None);
        let verdicts: Vec<_> = found.iter().map(|check| check.verdict).collect();
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Fail, Verdict::Warn, Verdict::Ok], "{found:?}");
        let forever = [files[4], files[5], ("/sys/class/nvme/nvme0/ctrl_loss_tmo", "off\n")];
        let found = time_outs(&Fake::new(&forever).machine(), None);
        assert!(found[1].found.contains("never"), "{found:?}");
    }
}
