//! Whether the daemon is live, ready, and gets I/O done, told by a thread that waits for nobody: docs/health.md.

mod board;
mod feed;
mod http;
mod link;
mod log;
mod metrics;
mod notify;
mod pages;
mod ticks;
mod watchdog;

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use reactor::Pulse;
use tls::Certificates;

pub(crate) use self::feed::{Feed, News, Volume};
pub(crate) use self::link::{Link, Readiness};

use self::board::{About, Board};
use self::notify::Notifier;
use self::pages::Pages;
use self::ticks::Ticks;
use crate::config::Config;
use crate::listening;
use crate::runs::LastRun;

/// The least that is told to systemd: three times in its limit.
const SHORTEST_WATCHDOG: Duration = Duration::from_millis(50);

/// The thread, as the others see it.
pub(crate) struct Health {
    pub(crate) feed: Arc<Feed>,
    /// Questions of the thread come here, and the daemon's phase goes out of it.
    pub(crate) link: Link,
}

/// Starts the thread and its listener.
pub(crate) fn start(
    config: &Config,
    last_run: LastRun,
    reactors: Vec<(String, Pulse)>,
    certificates: Option<Arc<Certificates>>,
) -> anyhow::Result<Health> {
    let listener = listening::bind_waiting(config.health)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .with_context(|| format!("cannot serve health at {} (health)", config.health))?;
    let (feed, follower) = feed::feed();
    let (ours, theirs) = UnixStream::pair().context("cannot make a pair of sockets")?;
    ours.set_nonblocking(true)?;
    let notifier = Notifier::from_environment().context("NOTIFY_SOCKET cannot be used")?;
    let about = About {
        node: config.node.clone(),
        started: std::time::SystemTime::now(),
        unhealthy_after: config.unhealthy_after,
        last_run,
        certificates,
    };
    let link = Link::new(theirs)?;
    let log = log::Log::start()?;
    thread::Builder::new()
        .name("health".to_owned())
        .spawn(move || {
            let board = Board::new(about, follower, reactors);
            // The board is not Send: it is made here.
            if let Err(error) = run(listener, ours, board, notifier, log.clone()) {
                log.say(move || tracing::error!(%error, "health is not served any more"));
            }
        })
        .context("cannot start the thread `health`")?;
    Ok(Health { feed: Arc::new(feed), link })
}

fn run(
    listener: TcpListener,
    questions: UnixStream,
    board: Board,
    notifier: Notifier,
    log: log::Log,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let pages = Rc::new(Pages::new(board, tokio::net::UnixStream::from_std(questions)?, notifier, log));
        tokio::task::spawn_local(Rc::clone(&pages).hear());
        tokio::task::spawn_local(Rc::clone(&pages).watch(Ticks::every(watchdog::INTERVAL)?));
        tokio::task::spawn_local(Rc::clone(&pages).tell_systemd());
        http::serve(listener, pages).await;
        Ok(())
    })
}

/// How often systemd hears that the daemon is live.
fn watchdog_interval(limit: Duration) -> Duration {
    (limit / 3).max(SHORTEST_WATCHDOG)
}

/// Where the daemon is between its start and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Serving,
    Stopping,
}

/// A volume that is told of on the command line and in the metrics.
#[derive(Clone, Copy, Debug)]
struct Progress {
    in_flight: u64,
    /// Of the oldest request in flight.
    age: Duration,
    is_healthy: bool,
}
