//! One line on a terminal that says how far something is.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::size::Size;

/// Between two changes of the line.
const PAUSE: Duration = Duration::from_millis(200);

/// Shown on stderr, if that is a terminal, and gone when it is dropped.
pub(super) struct Progress {
    what: &'static str,
    total: u64,
    /// None where nobody looks.
    next: Option<Instant>,
    shown: bool,
}

impl Progress {
    pub(super) fn new(what: &'static str, total: u64) -> Self {
        let next = std::io::stderr().is_terminal().then(Instant::now);
        Self { what, total, next, shown: false }
    }

    /// `done` of the bytes are.
    pub(super) fn show(&mut self, done: u64) {
        let now = Instant::now();
        if self.next.is_some_and(|next| now >= next) {
            self.next = Some(now + PAUSE);
            self.shown = true;
            write(&line(self.what, done, self.total));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            write("");
        }
    }
}

/// In place of what the line had.
fn write(text: &str) {
    let mut stderr = std::io::stderr().lock();
    // Nobody reads: nothing is lost.
    let _ = write!(stderr, "\r\x1b[K{text}");
    let _ = stderr.flush();
}

fn line(what: &str, done: u64, total: u64) -> String {
    let percent = u128::from(done.min(total)) * 100 / u128::from(total.max(1));
    format!("{what} {} of {} ({percent} %)", Size(done), Size(total))
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn it_says_how_much_of_what() {
        assert_eq!(line("exported", 256 << 20, 1 << 30), "exported 256 MiB of 1 GiB (25 %)");
        assert_eq!(line("exported", 0, 0), "exported 0 B of 0 B (0 %)");
    }
}
