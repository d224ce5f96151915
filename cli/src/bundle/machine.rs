//! What the machine says: configuration, preflight, ends of runs, log, kernel and limits.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail, ensure};

use super::redact::redact;
use super::{Collection, MOST_OF_A_PART, json};
use crate::arguments::{BundleOptions, PreflightOptions};
use crate::preflight;

/// Files of the kernel and the system, without those that may hold secrets (command lines, options of mounts).
const FILES: &[&str] = &[
    "/etc/os-release",
    "/proc/version",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/vmstat",
    "/proc/modules",
    "/proc/partitions",
    "/proc/diskstats",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
    "/proc/net/dev",
    "/proc/net/snmp",
    "/proc/net/netstat",
    "/proc/net/sockstat",
    "/proc/sys/kernel/io_uring_disabled",
    "/proc/sys/vm/nr_hugepages",
    "/etc/resolv.conf",
];
/// The same of the daemon's process.
const OF_PROCESS: &[&str] = &["limits", "status", "io", "stat", "schedstat"];
/// Lines of the journal.
const MOST_LINES: &str = "50000";

pub(super) async fn collect(
    collection: &mut Collection,
    options: &BundleOptions,
    config: Option<&Path>,
    state: Option<&Path>,
    pid: Option<u32>,
) {
    let path = config.map(Path::to_owned);
    collection
        .add_blocking("machine/configuration.json", move || {
            let path = path.context("--config names the configuration")?;
            json(&preflight::shown_configuration(Some(&path))?)
        })
        .await;
    let preflight_options = PreflightOptions { config: config.map(Path::to_owned), ..PreflightOptions::default() };
    collection.add_blocking("machine/preflight.json", move || json(&preflight::checks(&preflight_options)?)).await;
    runs(collection, state).await;
    log(collection, options).await;
    for file in FILES {
        let name = format!("machine/{}", file.trim_start_matches('/').replace('/', "-"));
        collection.add_blocking(&name, move || read(Path::new(file))).await;
    }
    let of_process = pid.into_iter().flat_map(|pid| OF_PROCESS.iter().map(move |name| (pid, name)));
    for (pid, name) in of_process {
        let path = PathBuf::from(format!("/proc/{pid}/{name}"));
        collection.add_blocking(&format!("process/{name}"), move || read(&path)).await;
    }
}

/// Why the last runs ended, as far as this user may read it.
async fn runs(collection: &mut Collection, state: Option<&Path>) {
    let Some(folder) = state.map(|state| state.join("runs")) else {
        return collection.add("runs", async { bail!("nobody says where the state directory is") }).await;
    };
    let listed = folder.clone();
    let list = tokio::task::spawn_blocking(move || -> anyhow::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&listed).with_context(|| listed.display().to_string())?;
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
        paths.sort();
        Ok(paths)
    });
    let list = match tokio::time::timeout(collection.limit, list).await {
        Ok(Ok(Ok(list))) => list,
        Ok(Ok(Err(error))) => return collection.add("runs", async { Err(error) }).await,
        _ => return collection.add("runs", async { bail!("{} cannot be read in time", folder.display()) }).await,
    };
    for path in list.into_iter().take(64) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("unnamed");
        let name = format!("runs/{name}");
        collection.add_blocking(&name, move || Ok(redact(&read(&path)?))).await;
    }
}

/// The end of the log: of the file that is named, else of the journal.
async fn log(collection: &mut Collection, options: &BundleOptions) {
    let most = options.log_size.0.min(MOST_OF_A_PART as u64);
    if let Some(path) = options.log.clone() {
        return collection.add_blocking("log.txt", move || Ok(redact(&tail(&path, most)?))).await;
    }
    collection.add("log.txt", async { Ok(redact(&journal(most).await?)) }).await;
}

async fn journal(most: u64) -> anyhow::Result<Vec<u8>> {
    let mut command = tokio::process::Command::new("journalctl");
    command.args(["--unit", "ashlard", "--no-pager", "--output", "short-iso-precise", "--lines", MOST_LINES]);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("cannot run journalctl")?;
    ensure!(output.status.success(), "journalctl: {}", String::from_utf8_lossy(&output.stderr).trim());
    let text = output.stdout;
    ensure!(!text.starts_with(b"-- No entries --"), "the journal has nothing of ashlard; --log names a file");
    // Not more than there is.
    let skipped = text.len().saturating_sub(most as usize);
    Ok(text[skipped..].to_vec())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    let file = File::open(path).with_context(|| path.display().to_string())?;
    file.take(MOST_OF_A_PART as u64 + 1).read_to_end(&mut text).with_context(|| path.display().to_string())?;
    Ok(text)
}

/// The last bytes of a file.
fn tail(path: &Path, most: u64) -> anyhow::Result<Vec<u8>> {
    let shown = || path.display().to_string();
    let mut file = File::open(path).with_context(shown)?;
    let length = file.seek(SeekFrom::End(0)).with_context(shown)?;
    file.seek(SeekFrom::Start(length.saturating_sub(most))).with_context(shown)?;
    let mut text = Vec::new();
    file.take(most).read_to_end(&mut text).with_context(shown)?;
    Ok(text)
}

/// The name of this machine.
pub(super) fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    for_files(&name)
}

/// A name as a part of the names of files, whoever gave it.
pub(super) fn for_files(name: &str) -> String {
    let name: String = name
        .trim()
        .chars()
        .filter(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(*letter))
        .take(63)
        .collect();
    if name.is_empty() { "node".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_path() {
        assert_eq!(for_files("../../etc/x\n"), "....etcx");
        assert_eq!(for_files(" node-a.example "), "node-a.example");
        assert_eq!((for_files("//"), for_files(&"n".repeat(99)).len()), ("node".to_owned(), 63));
    }

    #[test]
    fn the_end_of_a_log_is_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        fs::write(&path, "first\nsecond\nthird\n").expect("written");
        assert_eq!(tail(&path, 6).expect("readable"), b"third\n");
        assert_eq!(tail(&path, 1 << 20).expect("readable").len(), 19);
        assert!(tail(&folder.path().join("absent"), 6).is_err());
    }
}
