//! `ashlar support-bundle`: one file with what helps to find out what is wrong with a node.
//!
//! Whatever is wrong is wrong with the parts too: each is got by itself, within its time, and one that cannot be got is noted in
//! `manifest.json` while the rest goes on. Nothing here reads the files that hold secrets, and texts that others wrote (the log, notes of
//! runs) are looked through for what reads like one. docs/support-bundle.md lists the parts.

mod archive;
mod machine;
mod node;
mod redact;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use serde::Serialize;

use self::archive::Archive;
use crate::arguments::BundleOptions;
use crate::client::Destination;
use crate::commands::utc;
use crate::output::Output;
use crate::preflight;

/// More of a part is left out.
const MOST_OF_A_PART: usize = 16 << 20;

/// A part as the manifest has it.
#[derive(Serialize, Debug)]
struct Part {
    file: String,
    bytes: usize,
    milliseconds: u128,
    /// The rest was left out.
    truncated: bool,
    /// Why it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
}

/// What is in a bundle.
#[derive(Serialize, Debug)]
struct Manifest {
    made_at: String,
    ashlar_version: &'static str,
    server: String,
    /// The machine that the parts in `machine/` are of.
    made_on: String,
    parts: Vec<Part>,
}

/// What is told at the end.
#[derive(Serialize, Debug)]
struct Made {
    file: PathBuf,
    #[serde(flatten)]
    manifest: Manifest,
}

pub(crate) fn run(destination: &Destination, options: &BundleOptions, output: Output) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let made = runtime.block_on(make(destination, options));
    // A part that hangs in the kernel ends with the process.
    runtime.shutdown_background();
    output.print(&made?, |made, _| render(made))
}

async fn make(destination: &Destination, options: &BundleOptions) -> anyhow::Result<Made> {
    let server = destination.server.as_str();
    let limit = Duration::from_secs(options.timeout);
    let config = preflight::configuration(options.config.as_deref());
    let mut collection = Collection { parts: Vec::new(), limit };
    let client = tokio::time::timeout(limit, destination.connect()).await;
    let client = client.unwrap_or_else(|_| Err(anyhow::anyhow!("cannot reach ashlard at {server} in time")));
    let found = node::collect(&mut collection, server, client).await;
    let state = found.as_ref().map(|info| PathBuf::from(&info.state_directory));
    machine::collect(
        &mut collection,
        options,
        config.as_deref(),
        state.as_deref(),
        found.as_ref().map(|info| info.pid),
    )
    .await;

    let name = found.map_or_else(machine::host_name, |info| machine::for_files(&info.name));
    let made_at = utc(unix_ms());
    let stem = format!("ashlar-support-{name}-{}", made_at.replace([':', '-'], ""));
    let file = options.to.clone().unwrap_or_else(|| format!("{stem}.tar.gz").into());
    let (parts, contents): (Vec<Part>, Vec<Vec<u8>>) = collection.parts.into_iter().unzip();
    let manifest = Manifest {
        made_at,
        ashlar_version: env!("CARGO_PKG_VERSION"),
        server: server.to_owned(),
        made_on: machine::host_name(),
        parts,
    };
    write(&file, &stem, &manifest, &contents).with_context(|| file.display().to_string())?;
    Ok(Made { file, manifest })
}

fn unix_ms() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// The file gets its name when it is whole.
fn write(file: &Path, stem: &str, manifest: &Manifest, contents: &[Vec<u8>]) -> anyhow::Result<()> {
    let mut archive = Archive::create(file)?;
    archive.add(&format!("{stem}/manifest.json"), &serde_json::to_vec_pretty(manifest)?)?;
    for (part, content) in manifest.parts.iter().zip(contents) {
        if part.missing.is_none() {
            archive.add(&format!("{stem}/{}", part.file), content)?;
        }
    }
    archive.finish()
}

/// Parts as they come.
struct Collection {
    parts: Vec<(Part, Vec<u8>)>,
    /// Of each part.
    limit: Duration,
}

impl Collection {
    /// Gets a part, or notes why it is not there.
    async fn add(&mut self, file: &str, get: impl Future<Output = anyhow::Result<Vec<u8>>>) {
        let began = Instant::now();
        let got = tokio::time::timeout(self.limit, get).await;
        let got = got.unwrap_or_else(|_| Err(anyhow::anyhow!("not within {} s", self.limit.as_secs())));
        let (mut content, missing) = match got {
            Ok(content) => (content, None),
            Err(error) => (Vec::new(), Some(format!("{error:#}"))),
        };
        let truncated = content.len() > MOST_OF_A_PART;
        content.truncate(MOST_OF_A_PART);
        let milliseconds = began.elapsed().as_millis();
        self.parts
            .push((Part { file: file.to_owned(), bytes: content.len(), milliseconds, truncated, missing }, content));
    }

    /// The same for what may block: a disk or a program that hangs must not hold up the rest.
    async fn add_blocking(&mut self, file: &str, get: impl FnOnce() -> anyhow::Result<Vec<u8>> + Send + 'static) {
        self.add(file, async { tokio::task::spawn_blocking(get).await? }).await;
    }
}

/// A value as a part.
fn json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(value)?)
}

fn render(made: &Made) -> String {
    let missing: Vec<_> = made.manifest.parts.iter().filter(|part| part.missing.is_some()).collect();
    let got = made.manifest.parts.len() - missing.len();
    let mut text = format!("{}: {got} parts\n", made.file.display());
    for part in missing {
        let why = part.missing.as_deref().unwrap_or_default().lines().next().unwrap_or_default();
        text.push_str(&format!("  not there: {}: {why}\n", part.file));
    }
    text.push_str("It has names, addresses and logs of this node, and no data of volumes and no credentials.\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_hangs_or_fails_is_noted_and_the_rest_goes_on() {
        let mut collection = Collection { parts: Vec::new(), limit: Duration::from_millis(20) };
        collection.add("hangs", std::future::pending()).await;
        collection.add("fails", async { anyhow::bail!("no such thing") }).await;
        collection.add_blocking("good", || Ok(b"text".to_vec())).await;
        collection.add("large", async { Ok(vec![0; MOST_OF_A_PART + 1]) }).await;
        let parts: Vec<_> = collection.parts.iter().map(|(part, content)| (part, content.len())).collect();
        assert!(parts[0].0.missing.as_deref().is_some_and(|why| why.starts_with("not within")), "{parts:?}");
        assert_eq!(parts[1].0.missing.as_deref(), Some("no such thing"));
        assert_eq!((parts[2].1, parts[2].0.missing.as_deref(), parts[2].0.truncated), (4, None, false));
        assert_eq!((parts[3].1, parts[3].0.truncated), (MOST_OF_A_PART, true));
    }
}
