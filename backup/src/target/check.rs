//! Whether a target works: each step by itself, with its time or what is wrong.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use super::client::Client;
use super::store::Content;
use super::{Credentials, Opened, Settings, TargetUrl, cloud};
use crate::error::{Error, Kind, Result};
use crate::format::layout;

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The name of the server.
    Resolve,
    /// A connection, or the folder itself.
    Connect,
    /// Listing.
    List,
    /// Writing a new object.
    Put,
    /// Reading it back.
    Get,
    /// Removing it.
    Delete,
}

/// What a target showed.
#[derive(Clone, Debug)]
pub struct Report {
    /// The steps in their order, up to the first that failed.
    pub steps: Vec<(Step, Result<Duration>)>,
    /// How far the target's clock is ahead of ours (positive), in seconds, if it showed it.
    pub skew_seconds: Option<i64>,
    /// Whether an object that exists is not replaced when asked so; None if that was not found out.
    pub conditional_put: Option<bool>,
}

impl Report {
    /// Whether every step went well.
    pub fn is_good(&self) -> bool {
        self.steps.iter().all(|(_, result)| result.is_ok())
    }
}

/// Skew from which signatures are refused, and times in the store mislead people.
pub const LARGEST_SKEW_SECONDS: i64 = 300;

/// Tries a target out. It leaves nothing behind, unless its last step fails.
///
/// # Errors
/// `Invalid` when URL and credentials do not make a target. All else is in the report.
pub async fn check(url: &TargetUrl, credentials: &Credentials, settings: &Settings) -> Result<Report> {
    let opened = super::open(url, credentials, settings)?;
    let mut report = Report { steps: Vec::new(), skew_seconds: None, conditional_put: None };
    // A failure ends the list of steps, which says the rest.
    let _ = run(cloud::host(url, credentials), &opened, settings, &mut report).await;
    Ok(report)
}

async fn run(host: Option<String>, opened: &Opened, settings: &Settings, report: &mut Report) -> Result<()> {
    let client = Client::new(opened.store.clone());
    let key = format!("backupstore/check-{}", uuid::Uuid::new_v4().simple());
    let content = Bytes::from(format!("written by a check: {key}"));
    if let Some(host) = host {
        let resolving = settings.resolver.resolve(host.clone());
        let resolved = async {
            let found = resolving.await.map_err(|error| Error::new(Kind::Resolve, format!("{host}: {error}")))?;
            if found.is_empty() { Err(Error::new(Kind::Resolve, format!("{host}: no address"))) } else { Ok(()) }
        };
        step(report, Step::Resolve, resolved).await?;
    }
    // The first request of all connects. That it is answered, whatever the answer, is all that counts here.
    let connected = async {
        let answer = client.store().head(&key).await;
        answer.map(|_| ()).or_else(|error| if is_answer(error.kind()) { Ok(()) } else { Err(error) })
    };
    step(report, Step::Connect, connected).await?;
    step(report, Step::List, async { client.folder(layout::VOLUMES).await.map(|_| ()) }).await?;
    step(report, Step::Put, client.put(&key, Content::Bytes(content.clone()))).await?;
    report.skew_seconds = skew(&client, &key, opened).await;
    let read = async {
        let found = client.read(&key, 1 << 16).await?;
        if found == content {
            Ok(())
        } else {
            Err(Error::new(Kind::Checksum, format!("{key}: another content than was written")))
        }
    };
    let got = step(report, Step::Get, read).await;
    report.conditional_put = conditional(&client, &key, &content).await;
    // It goes even when reading it failed.
    let deleted = async {
        client.delete(&key).await?;
        match client.head(&key).await? {
            None => Ok(()),
            Some(_) => Err(Error::new(Kind::Server, format!("{key}: removed, and still there"))),
        }
    };
    step(report, Step::Delete, deleted).await?;
    got
}

async fn step(report: &mut Report, step: Step, work: impl Future<Output = Result<()>>) -> Result<()> {
    let begin = Instant::now();
    let result = work.await;
    report.steps.push((step, result.clone().map(|()| begin.elapsed())));
    result
}

/// Whether a failure of this kind is an answer of the target's.
const fn is_answer(kind: Kind) -> bool {
    !matches!(kind, Kind::Resolve | Kind::Connect | Kind::NotMounted | Kind::TimedOut | Kind::Interrupted)
}

/// How far the clock of a server is ahead, by its answers; of a folder, by the time of a file that was just written.
async fn skew(client: &Client, key: &str, opened: &Opened) -> Option<i64> {
    let theirs = match opened.clock.take() {
        Some(time) => time,
        None => client.head(key).await.ok()??.modified,
    };
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match theirs.duration_since(SystemTime::now()) {
        Ok(ahead) => Some(seconds(ahead)),
        Err(behind) => Some(-seconds(behind.duration())),
    }
}

/// Whether the object stays what it is when another is made in its place.
async fn conditional(client: &Client, key: &str, content: &Bytes) -> Option<bool> {
    let made = client.store().create(key, Bytes::from_static(b"another")).await;
    let found = client.find(key, 1 << 16).await.ok()??;
    match made {
        Ok(made) => Some(!made && found == *content),
        Err(_) => None,
    }
}
