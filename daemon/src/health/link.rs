//! The pair of sockets between the control threads and the thread `health`: a byte a message, and nothing that either could
//! hold while the other waits.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::feed::{Facts, Feed, News};
use crate::control::Control;

/// Are the control threads there? The same byte is the answer.
pub(super) const PING: u8 = b'p';
/// New facts are wanted. The same byte says that they are told.
pub(super) const FACTS: u8 = b'f';
/// Volumes are shown and the API is served.
pub(super) const SERVING: u8 = b'r';
/// The daemon stops.
pub(super) const STOPPING: u8 = b's';

/// A reactor does not answer; the board says so from its looks.
pub(super) const UNREADY: u8 = b'u';
/// All reactors answer again.
pub(super) const READY: u8 = b'y';

/// For reactors and their stores to say how they are.
const FACTS_LIMIT: Duration = Duration::from_secs(2);

/// The end of the control threads.
pub(crate) struct Link {
    stream: UnixStream,
    /// Taken by the task that answers.
    questions: Mutex<Option<UnixStream>>,
    readiness: watch::Sender<Readiness>,
}

/// What services can count on, as the control threads know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) reactors_answer: bool,
    pub(crate) is_stopping: bool,
}

impl Link {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let readiness = watch::Sender::new(Readiness { reactors_answer: true, is_stopping: false });
        Ok(Self { questions: Mutex::new(Some(stream.try_clone()?)), stream, readiness })
    }

    /// The daemon serves from now on.
    pub(crate) fn serving(&self) {
        self.say(SERVING);
    }

    /// It stops.
    pub(crate) fn stopping(&self) {
        self.say(STOPPING);
        self.readiness.send_modify(|readiness| readiness.is_stopping = true);
    }

    /// What services can count on, as it changes.
    pub(crate) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    fn say(&self, byte: u8) {
        // The other end reads all the time; if its thread has failed nobody wants to know.
        let _ = (&self.stream).write(&[byte]);
    }

    /// Answers questions for as long as the runtime lives.
    pub(crate) fn answer(self: &Arc<Self>, control: &Arc<Control>, feed: &Arc<Feed>) -> io::Result<()> {
        let questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(questions) = questions else { return Ok(()) };
        let questions = tokio::net::UnixStream::from_std(questions)?;
        let (link, control, feed) = (Arc::clone(self), Arc::clone(control), Arc::clone(feed));
        let collecting = Arc::new(AtomicBool::new(false));
        tokio::spawn(async move {
            let mut bytes = [0; 64];
            while questions.readable().await.is_ok() {
                let length = match questions.try_read(&mut bytes) {
                    Ok(0) => return,
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(_) => return,
                };
                for byte in &bytes[..length] {
                    match *byte {
                        FACTS if !collecting.swap(true, Ordering::AcqRel) => {
                            let collecting = Arc::clone(&collecting);
                            let (link, control, feed) = (Arc::clone(&link), Arc::clone(&control), Arc::clone(&feed));
                            tokio::spawn(async move {
                                collect(&control, &feed).await;
                                collecting.store(false, Ordering::Release);
                                link.say(FACTS);
                            });
                        }
                        PING => link.say(PING),
                        READY => link.readiness.send_modify(|readiness| readiness.reactors_answer = true),
                        UNREADY => link.readiness.send_modify(|readiness| readiness.reactors_answer = false),
                        _ => {}
                    }
                }
            }
        });
        Ok(())
    }
}

/// Asks the reactors. What cannot be had in time stays as it was told before.
async fn collect(control: &Control, feed: &Feed) {
    let taken = reactor::monotonic_now();
    let asked = async {
        let (stores, engines) = (control.stores.list().await?, control.engines.all().await?);
        Ok::<_, crate::control::ControlError>((stores, engines, control.load().await?))
    };
    match tokio::time::timeout(FACTS_LIMIT, asked).await {
        Ok(Ok((stores, engines, load))) => {
            let engines = engines.into_values().collect();
            feed.tell(News::Facts(Arc::new(Facts { stores, engines, load, taken })));
        }
        Ok(Err(error)) => tracing::warn!(%error, "no facts for metrics"),
        Err(_) => tracing::warn!(limit = ?FACTS_LIMIT, "no facts for metrics: a reactor does not answer"),
    }
}
