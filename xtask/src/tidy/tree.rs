//! What the rules look at: the packages and the text files of the workspace.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::metadata::{self, Dependency, Package};
use crate::process;
use crate::workspace::Workspace;

/// The endings of files that are text of ours.
const TEXT_ENDINGS: [&str; 7] = ["rs", "toml", "md", "sh", "proto", "yml", "json"];

/// The packages and text files of the workspace, by paths relative to its root.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) packages: Vec<Package>,
    /// All text files of ours with their content.
    pub(super) texts: BTreeMap<String, String>,
    /// All files, also those that are not text, and all folders.
    pub(super) paths: Vec<String>,
    /// The text files that git ignores; none without git.
    pub(super) ignored: Vec<String>,
}

impl Tree {
    pub(super) fn read(workspace: &Workspace) -> Result<Self> {
        let mut packages = metadata::read(workspace)?;
        packages.extend(fuzz_targets(workspace)?);
        let mut tree = Self { packages, ..Self::default() };
        tree.read_folder(&workspace.root, "", &workspace.target)?;
        tree.ignored = ignored_by_git(tree.texts.keys(), &workspace.root);
        Ok(tree)
    }

    /// The Rust files and their content.
    pub(super) fn rust_files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files_ending(".rs")
    }

    /// The files whose name ends with `ending`, and their content.
    pub(super) fn files_ending(&self, ending: &str) -> impl Iterator<Item = (&str, &str)> {
        let files = self.texts.iter().filter(move |(path, _)| path.ends_with(ending));
        files.map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The package that a file belongs to: the innermost whose folder it lies in.
    pub(super) fn package_of(&self, path: &str) -> Option<&Package> {
        let around = self.packages.iter().filter(|package| package.contains(path));
        around.max_by_key(|package| package.folder.len())
    }

    fn read_folder(&mut self, folder: &Path, prefix: &str, target: &Path) -> Result<()> {
        let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let relative = format!("{prefix}{name}");
            let kind = entry.file_type()?;
            if kind.is_dir() {
                let made = [".git", "target", "fuzz/target", "fuzz/corpus", "fuzz/artifacts"];
                if !made.contains(&relative.as_str()) && entry.path() != target {
                    self.read_folder(&entry.path(), &format!("{relative}/"), target)?;
                    self.paths.push(relative);
                }
            } else if kind.is_file() {
                let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
                if TEXT_ENDINGS.contains(&ending) || relative == ".ci/run" {
                    let text = fs::read_to_string(entry.path()).with_context(|| format!("cannot read {relative}"))?;
                    self.texts.insert(relative.clone(), text);
                }
                self.paths.push(relative);
            }
        }
        Ok(())
    }
}

/// The package of `fuzz/`, which is no member of the workspace: read from its files, since cargo may not have what it needs.
fn fuzz_targets(workspace: &Workspace) -> Result<Option<Package>> {
    let manifest = workspace.root.join("fuzz/Cargo.toml");
    let Ok(text) = fs::read_to_string(&manifest) else { return Ok(None) };
    let dependencies = text.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    let dependencies = dependencies.take_while(|line| !line.starts_with('['));
    let name = |line: &str| line.split_once(" = ").map(|(name, _)| name.to_owned());
    let dependencies = dependencies.filter_map(name).map(|name| Dependency { name, for_tests: false }).collect();
    let mut crate_roots = Vec::new();
    for entry in fs::read_dir(workspace.root.join("fuzz/fuzz_targets")).context("fuzz/fuzz_targets")? {
        crate_roots.push(format!("fuzz/fuzz_targets/{}", entry?.file_name().to_string_lossy()));
    }
    Ok(Some(Package {
        name: "fuzz".to_owned(),
        folder: "fuzz".to_owned(),
        dependencies,
        crate_roots,
        tests: Vec::new(),
    }))
}

/// Which of `paths` git ignores. A source archive has no git, and then nothing is ignored.
fn ignored_by_git<'a>(paths: impl Iterator<Item = &'a String>, root: &Path) -> Vec<String> {
    // Exits with 1 when nothing is ignored.
    let said = process::output(Command::new("git").args(["check-ignore", "--"]).args(paths).current_dir(root));
    said.unwrap_or_default().lines().map(str::to_owned).collect()
}

#[cfg(test)]
impl Tree {
    /// A tree of these files and no packages.
    pub(super) fn of_texts(texts: &[(&str, &str)]) -> Self {
        let texts: BTreeMap<_, _> = texts.iter().map(|&(path, text)| (path.to_owned(), text.to_owned())).collect();
        Self { paths: texts.keys().cloned().collect(), texts, ..Self::default() }
    }
}
