//! Rules on the packages: names, and who may use whom (the map is in ARCHITECTURE.md).

use super::metadata::{Dependency, Package};
use super::tree::Tree;
use super::{Violation, rust_text};

/// What a package may use of ours.
struct Room {
    name: &'static str,
    uses: &'static [&'static str],
    /// What its tests may use besides.
    tests_use: &'static [&'static str],
}

const fn room(name: &'static str, uses: &'static [&'static str]) -> Room {
    Room { name, uses, tests_use: &[] }
}

/// The house, from the bottom up. A package may use only what stands above its line: dependencies have one direction.
const HOUSE: &[Room] = &[
    room("loop-device", &[]),
    room("certificates", &[]),
    room("ceph", &[]),
    Room { name: "reactor", uses: &[], tests_use: &["loop-device"] },
    room("block-device", &["reactor"]),
    room("replica-protocol", &[]),
    room("nvmf-target-protocol", &[]),
    room("scsi-protocol", &[]),
    room("iscsi-target-protocol", &[]),
    room("proto", &[]),
    Room { name: "tls", uses: &[], tests_use: &["certificates"] },
    // The data path never links its dependencies: nothing but the daemon and the benchmarks use it.
    Room { name: "backup", uses: &[], tests_use: &["ceph"] },
    Room { name: "lvol", uses: &["block-device", "reactor"], tests_use: &["loop-device"] },
    room("replica", &["lvol", "replica-protocol", "block-device", "reactor"]),
    Room { name: "engine", uses: &["replica", "block-device", "reactor"], tests_use: &["lvol"] },
    room("host-load", &["reactor"]),
    room("nvmf-initiator", &["nvmf-target-protocol", "host-load", "reactor"]),
    Room {
        name: "nvmf-target",
        uses: &["nvmf-target-protocol", "block-device", "reactor"],
        tests_use: &["nvmf-initiator"],
    },
    room("iscsi-initiator", &["iscsi-target-protocol", "host-load", "reactor"]),
    Room {
        name: "iscsi-target",
        uses: &["iscsi-target-protocol", "scsi-protocol", "block-device", "reactor"],
        tests_use: &["iscsi-initiator", "host-load"],
    },
    Room {
        name: "daemon",
        uses: &[
            "backup",
            "tls",
            "nvmf-target",
            "iscsi-target",
            "engine",
            "replica",
            "lvol",
            "block-device",
            "reactor",
            "proto",
        ],
        tests_use: &["certificates"],
    },
    // `store check` and `store dump` must work when the daemon does not: docs/decisions/0004-offline-tools-read-the-disk.md.
    room("cli", &["tls", "proto", "iscsi-initiator", "nvmf-initiator", "host-load", "lvol", "reactor"]),
    room("simulator", &["nvmf-target", "nvmf-initiator", "engine", "replica", "lvol", "block-device", "reactor"]),
    room(
        "fuzzing",
        &[
            "backup",
            "replica-protocol",
            "nvmf-target-protocol",
            "scsi-protocol",
            "iscsi-target-protocol",
            "lvol",
            "block-device",
            "reactor",
        ],
    ),
    room("fuzz", &["fuzzing"]),
    room(
        "integration",
        &[
            "cli",
            "proto",
            "tls",
            "nvmf-initiator",
            "iscsi-target-protocol",
            "lvol",
            "block-device",
            "reactor",
            "loop-device",
            "certificates",
            "ceph",
        ],
    ),
    // Of the tests it has what stops threads and freezes disks: for the soak.
    room(
        "benches",
        &[
            "integration",
            "backup",
            "cli",
            "proto",
            "iscsi-target",
            "iscsi-initiator",
            "nvmf-target",
            "nvmf-initiator",
            "host-load",
            "engine",
            "replica",
            "lvol",
            "block-device",
            "reactor",
        ],
    ),
    room("e2e", &["cli"]),
    room("conformance", &["cli", "proto"]),
    room("xtask", &[]),
];

/// Packages of others that only some of ours may use, and why.
const RESTRICTED: &[(&str, &[&str], &str)] = &[
    ("io-uring", &["reactor"], "the reactor is the only crate with system calls"),
    (
        "libc",
        &["reactor", "daemon", "cli", "integration"],
        "system calls belong in the reactor; only programs that handle signals and other processes need a few more",
    ),
    ("md-5", &["iscsi-target-protocol"], CHAP),
    ("sha1", &["iscsi-target-protocol"], CHAP),
    ("sha2", &["iscsi-target-protocol"], CHAP),
    ("sha3", &["iscsi-target-protocol"], CHAP),
    ("nix", &["integration"], "tests make networks of their own; the reactor has its system calls"),
    ("object_store", &["backup", "ceph"], BACKUPS),
    ("ring", &["backup", "certificates"], CRYPTOGRAPHY),
    ("rustls", &["backup", "tls"], CRYPTOGRAPHY),
    ("rustls-webpki", &["tls"], CRYPTOGRAPHY),
    ("tokio-rustls", &["tls"], CRYPTOGRAPHY),
    ("hyper-util", &["backup", "tls", "daemon"], "connections of the control side: to object storage and to peers"),
    (
        "tonic",
        &["proto", "daemon", "cli", "integration"],
        "gRPC is the control side's; the data path knows nothing of it",
    ),
];

/// Why hashes are for one package.
const CHAP: &str = "CHAP needs these hashes, and nothing else should; digests of data are crc-fast's";

/// Why what encrypts is for two packages.
const CRYPTOGRAPHY: &str = "connections are encrypted in `tls`, object storage in `backup`: nothing else knows how";

/// Why object storage and what it needs is for backups and their tests.
const BACKUPS: &str = "object storage is for backups, and the data path links none of it";

/// Packages of others that protocol crates may use: they work on bytes and do no I/O.
const PROTOCOLS_USE: &[&str] = &["crc-fast", "md-5", "sha1", "sha2", "sha3", "subtle"];

/// Names that say nothing about what a package is.
const MEANINGLESS: &[&str] = &["common", "core", "helpers", "misc", "shared", "types", "util", "utils"];

/// Whether `package` is a protocol crate: bytes in, bytes out.
pub(super) fn is_protocol(package: &Package) -> bool {
    package.name.ends_with("-protocol")
}

pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for package in &tree.packages {
        violations.extend(check_name(package));
        violations.extend(check_lints(package, tree));
        let room = HOUSE.iter().find(|room| room.name == package.name);
        if room.is_none() {
            let advice = "not in the map of the house: give it its place in HOUSE (xtask/src/tidy/dependencies.rs) \
                and in ARCHITECTURE.md";
            violations.push(Violation::new(&package.manifest(), 1, "dependencies", advice));
        }
        for dependency in &package.dependencies {
            let advice = room.and_then(|room| check_ours(room, dependency, tree));
            let advice = advice.or_else(|| check_others(package, dependency, tree));
            if let Some(advice) = advice {
                let line = line_of(tree, package, dependency);
                violations.push(Violation::new(&package.manifest(), line, "dependencies", advice));
            }
        }
    }
    violations
}

/// Packages are named like their folders; `tests/` is a shelf and not part of the name.
fn check_name(package: &Package) -> Vec<Violation> {
    let folder = package.folder.strip_prefix("tests/").unwrap_or(&package.folder);
    let expected = folder.replace('/', "-");
    let mut violations = Vec::new();
    if package.name != expected {
        let advice = format!("name the package like its folder: {expected}");
        violations.push(Violation::new(&package.manifest(), 1, "package-name", advice));
    }
    if package.name.split('-').any(|part| MEANINGLESS.contains(&part)) {
        let advice = format!("{} could be anything: give the things in it homes that say what they are", package.name);
        violations.push(Violation::new(&package.manifest(), 1, "package-name", advice));
    }
    violations
}

/// The workspace's lints hold in every package.
fn check_lints(package: &Package, tree: &Tree) -> Option<Violation> {
    let manifest = tree.texts.get(&package.manifest())?;
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[lints]");
    let inherits = lines.nth(1) == Some("workspace = true");
    let advice = "inherit the lints of the workspace: [lints] workspace = true";
    (!inherits).then(|| Violation::new(&package.manifest(), 1, "lints", advice))
}

/// What is wrong with `dependency`, if it is a package of ours that the room may not use.
fn check_ours(room: &Room, dependency: &Dependency, tree: &Tree) -> Option<String> {
    let name = dependency.name.as_str();
    let ours = tree.packages.iter().any(|package| package.name == name);
    let allowed = room.uses.contains(&name) || (dependency.for_tests && room.tests_use.contains(&name));
    if !ours || allowed {
        return None;
    }
    let uses = if room.uses.is_empty() { "nothing of ours".to_owned() } else { room.uses.join(", ") };
    Some(format!("{} may not use {name}, but {uses}: move the code to where it may be, or pass it in", room.name))
}

/// What is wrong with `dependency`, if it is a package of others that has no place in this one of ours.
fn check_others(package: &Package, dependency: &Dependency, tree: &Tree) -> Option<String> {
    let name = dependency.name.as_str();
    let restricted =
        RESTRICTED.iter().find(|(restricted, users, _)| *restricted == name && !users.contains(&package.name.as_str()));
    if let Some((_, users, reason)) = restricted {
        return Some(format!("{name} is for {} only: {reason}", users.join(", ")));
    }
    let ours = tree.packages.iter().any(|package| package.name == name);
    if is_protocol(package) && !dependency.for_tests && !ours && !PROTOCOLS_USE.contains(&name) {
        return Some(format!(
            "protocol crates use {} only; if {name} does no I/O, add it to PROTOCOLS_USE (xtask/src/tidy/dependencies.rs)",
            PROTOCOLS_USE.join(", ")
        ));
    }
    None
}

/// The line of the manifest that asks for `dependency`.
fn line_of(tree: &Tree, package: &Package, dependency: &Dependency) -> usize {
    let manifest = tree.texts.get(&package.manifest()).map_or("", String::as_str);
    let asks = |line: &str| {
        let key = line.split(['=', '.']).next().unwrap_or_default().trim();
        key == dependency.name || (line.contains("package") && rust_text::has_word(line, &dependency.name))
    };
    manifest.lines().position(asks).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINTS: &str = "[lints]\nworkspace = true\n";

    fn package(name: &str, folder: &str, dependencies: &[&str]) -> Package {
        let normal = |name: &&str| Dependency { name: (*name).to_owned(), for_tests: false };
        Package {
            name: name.to_owned(),
            folder: folder.to_owned(),
            dependencies: dependencies.iter().map(normal).collect(),
            crate_roots: Vec::new(),
            tests: Vec::new(),
        }
    }

    fn tree(packages: Vec<Package>) -> Tree {
        let mut tree = Tree::default();
        for package in &packages {
            let lines: String = package.dependencies.iter().map(|d| format!("{}.workspace = true\n", d.name)).collect();
            tree.texts.insert(package.manifest(), format!("{LINTS}[dependencies]\n{lines}"));
        }
        tree.packages = packages;
        tree
    }

    fn messages(packages: Vec<Package>) -> Vec<String> {
        check(&tree(packages)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_tidy_house_has_no_violations() {
        let lvol = package("lvol", "lvol", &["reactor", "block-device", "thiserror"]);
        let packages = vec![
            package("reactor", "reactor", &["io-uring", "libc"]),
            package("block-device", "block-device", &["reactor"]),
            lvol,
            package("replica-protocol", "replica/protocol", &["crc-fast"]),
            package("simulator", "tests/simulator", &["reactor"]),
        ];
        assert_eq!(messages(packages), [""; 0]);
    }

    #[test]
    fn the_map_itself_has_one_direction() {
        for (index, room) in HOUSE.iter().enumerate() {
            for used in room.uses.iter().chain(room.tests_use) {
                assert!(HOUSE[..index].iter().any(|above| above.name == *used), "{} uses {used}", room.name);
            }
        }
    }

    #[test]
    fn a_dependency_against_the_direction_is_found_with_its_line() {
        let packages = vec![package("reactor", "reactor", &[]), package("lvol", "lvol", &["engine", "reactor"])];
        let packages = [packages, vec![package("engine", "engine", &[])]].concat();
        let expected = "lvol/Cargo.toml:4: dependencies: lvol may not use engine, but block-device, reactor: \
            move the code to where it may be, or pass it in";
        assert_eq!(messages(packages), [expected]);
    }

    #[test]
    fn what_tests_may_use_is_for_tests_only() {
        let mut target = package("nvmf-target", "nvmf-target", &["nvmf-initiator"]);
        let initiator = package("nvmf-initiator", "nvmf-initiator", &[]);
        assert_eq!(messages(vec![target.clone(), initiator.clone()]).len(), 1);
        target.dependencies[0].for_tests = true;
        assert_eq!(messages(vec![target, initiator]), [""; 0]);
    }

    #[test]
    fn a_protocol_crate_uses_nothing_of_ours_and_no_io() {
        let protocol = package("replica-protocol", "replica/protocol", &["reactor", "tokio"]);
        let found = messages(vec![protocol, package("reactor", "reactor", &[])]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("may not use reactor, but nothing of ours"), "{found:?}");
        assert!(found[1].contains("protocol crates use crc-fast, "), "{found:?}");
    }

    #[test]
    fn system_calls_are_the_reactors() {
        let found = messages(vec![package("lvol", "lvol", &["io-uring", "libc"])]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("io-uring is for reactor only"), "{found:?}");
        assert!(found[1].contains("libc is for reactor, daemon"), "{found:?}");
    }

    #[test]
    fn a_package_is_named_like_its_folder() {
        let found = messages(vec![package("replica-protocol", "replica/wire", &[])]);
        assert_eq!(found, ["replica/wire/Cargo.toml:1: package-name: name the package like its folder: replica-wire"]);
    }

    #[test]
    fn a_package_with_a_meaningless_name_or_no_place_is_found() {
        let found = messages(vec![package("replica-utils", "replica/utils", &[])]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("replica-utils could be anything"), "{found:?}");
        assert!(found[1].contains("not in the map of the house"), "{found:?}");
    }

    #[test]
    fn a_package_without_the_workspaces_lints_is_found() {
        let mut tree = tree(vec![package("reactor", "reactor", &[])]);
        tree.texts.insert("reactor/Cargo.toml".to_owned(), "[lints]\n[dependencies]\n".to_owned());
        let found = check(&tree);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].rule, "lints");
    }
}
