//! The workspace's packages, out of `cargo metadata`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process;
use crate::programs::cargo;
use crate::workspace::Workspace;

/// A package of the workspace. Paths are relative to the workspace's root, with `/`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Package {
    pub(super) name: String,
    /// The folder of its manifest.
    pub(super) folder: String,
    pub(super) dependencies: Vec<Dependency>,
    /// The root files of its library and its binaries.
    pub(super) crate_roots: Vec<String>,
    /// The names of its integration tests.
    pub(super) tests: Vec<String>,
}

/// What a package's manifest asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Dependency {
    pub(super) name: String,
    /// Only for tests, examples and benchmarks.
    pub(super) for_tests: bool,
}

impl Package {
    pub(super) fn manifest(&self) -> String {
        format!("{}/Cargo.toml", self.folder)
    }

    /// Whether `path` lies in this package's folder.
    pub(super) fn contains(&self, path: &str) -> bool {
        path.strip_prefix(&self.folder).is_some_and(|rest| rest.starts_with('/'))
    }
}

/// What cargo says about the packages of the workspace.
pub(super) fn read(workspace: &Workspace) -> Result<Vec<Package>> {
    let mut cargo = cargo(workspace);
    let json = process::output(cargo.args(["metadata", "--no-deps", "--format-version", "1", "--offline"]))?;
    parse(&json, &workspace.root)
}

/// The names of all integration tests: those of one package, and those of the others.
pub(crate) fn tests_apart(workspace: &Workspace, package: &str) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let packages = read(workspace)?;
    let (of_it, of_others): (Vec<_>, Vec<_>) = packages.into_iter().partition(|found| found.name == package);
    let tests = |packages: Vec<Package>| packages.into_iter().flat_map(|package| package.tests).collect();
    Ok((tests(of_it), tests(of_others)))
}

/// Reads the output of `cargo metadata --no-deps --format-version 1` for the workspace at `root`.
fn parse(json: &str, root: &Path) -> Result<Vec<Package>> {
    let metadata: Value = serde_json::from_str(json).context("cargo metadata is not JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    packages.iter().map(|package| parse_package(package, root)).collect()
}

fn parse_package(package: &Value, root: &Path) -> Result<Package> {
    let manifest = relative(text(package, "manifest_path")?, root)?;
    let folder = manifest.strip_suffix("/Cargo.toml").context("the workspace's root is a package")?;
    let dependencies = list(package, "dependencies")?.iter().map(parse_dependency).collect::<Result<_>>()?;
    let (mut crate_roots, mut tests) = (Vec::new(), Vec::new());
    for target in list(package, "targets")? {
        if list(target, "kind")?.iter().any(|kind| kind == "lib" || kind == "bin" || kind == "proc-macro") {
            crate_roots.push(relative(text(target, "src_path")?, root)?);
        }
        if list(target, "kind")?.iter().any(|kind| kind == "test") {
            tests.push(text(target, "name")?.to_owned());
        }
    }
    Ok(Package { name: text(package, "name")?.to_owned(), folder: folder.to_owned(), dependencies, crate_roots, tests })
}

fn parse_dependency(dependency: &Value) -> Result<Dependency> {
    // Normal dependencies have the kind null.
    let for_tests = dependency["kind"] == "dev";
    Ok(Dependency { name: text(dependency, "name")?.to_owned(), for_tests })
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("cargo metadata: no {key}"))
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value[key].as_array().with_context(|| format!("cargo metadata: no {key}"))
}

fn relative(path: &str, root: &Path) -> Result<String> {
    let inside = Path::new(path).strip_prefix(root).with_context(|| format!("{path} is outside of the workspace"))?;
    Ok(inside.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_read_with_their_dependencies_and_crate_roots() -> Result<()> {
        let json = r#"{"packages": [{
            "name": "replica-protocol",
            "manifest_path": "/house/replica/protocol/Cargo.toml",
            "dependencies": [{"name": "crc-fast", "kind": null}, {"name": "proptest", "kind": "dev"}],
            "targets": [
                {"kind": ["lib"], "src_path": "/house/replica/protocol/src/lib.rs"},
                {"kind": ["test"], "name": "pairs", "src_path": "/house/replica/protocol/tests/pairs.rs"}
            ]
        }]}"#;
        let packages = parse(json, Path::new("/house"))?;
        let expected = Package {
            name: "replica-protocol".to_owned(),
            folder: "replica/protocol".to_owned(),
            dependencies: vec![
                Dependency { name: "crc-fast".to_owned(), for_tests: false },
                Dependency { name: "proptest".to_owned(), for_tests: true },
            ],
            crate_roots: vec!["replica/protocol/src/lib.rs".to_owned()],
            tests: vec!["pairs".to_owned()],
        };
        assert_eq!(packages, [expected]);
        Ok(())
    }

    #[test]
    fn what_cargo_does_not_say_is_an_error() {
        assert!(parse("{}", Path::new("/house")).is_err());
        assert!(parse("not json", Path::new("/house")).is_err());
        assert!(parse(r#"{"packages": [{"name": "x"}]}"#, Path::new("/house")).is_err());
    }

    #[test]
    fn a_package_contains_its_folder_only() {
        let package = Package { folder: "replica".to_owned(), ..Package::default() };
        assert!(package.contains("replica/src/lib.rs"));
        assert!(!package.contains("replica-x/src/lib.rs"));
        assert!(!package.contains("replica"));
    }
}
