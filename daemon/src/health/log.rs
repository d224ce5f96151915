//! Log lines of the thread `health`, written by another one: a thread that is stopped while it writes a line, or a reader who
//! does not read, holds the lock of standard error.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// Lines that wait; more are lost.
const MOST: usize = 64;

type Line = Box<dyn FnOnce() + Send>;

/// Where to write.
#[derive(Clone)]
pub(super) struct Log {
    lines: SyncSender<Line>,
}

impl Log {
    pub(super) fn start() -> io::Result<Self> {
        let (lines, waiting): (_, Receiver<Line>) = sync_channel(MOST);
        thread::Builder::new()
            .name("health-log".to_owned())
            .spawn(move || waiting.into_iter().for_each(|line| line()))?;
        Ok(Self { lines })
    }

    /// Has a line written soon.
    pub(super) fn say(&self, line: impl FnOnce() + Send + 'static) {
        // One that finds no room is lost: what it says is in the pages, too.
        let _ = self.lines.try_send(Box::new(line));
    }
}
