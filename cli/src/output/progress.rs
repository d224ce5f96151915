//! How far something is that takes long: a bar on a terminal, now and then a line elsewhere. On standard error, so that what a command
//! prints stays its own.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::size::Size;

/// Between two changes of the bar.
const PAUSE: Duration = Duration::from_millis(200);
/// Between two lines where nobody sees a bar.
const LONG_PAUSE: Duration = Duration::from_secs(10);
/// Before these have gone by nothing can be said of the pace.
const STEADY: Duration = Duration::from_secs(1);
/// Letters of the bar.
const BAR: u64 = 24;

/// Shown until it is dropped.
pub(crate) struct Progress {
    what: String,
    began: Instant,
    /// How much was done when it began.
    first: Option<u64>,
    terminal: bool,
    next: Instant,
    /// A bar is there to be wiped away.
    shown: bool,
}

impl Progress {
    /// `what` is a word for what is done, as in `exported`.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        let (began, terminal) = (Instant::now(), std::io::stderr().is_terminal());
        // What is through soon needs no line.
        let next = if terminal { began } else { began + LONG_PAUSE };
        Self { what: what.into(), began, first: None, terminal, next, shown: false }
    }

    /// `done` of `total` bytes are; 0 for a total that nobody knows.
    pub(crate) fn show(&mut self, done: u64, total: u64) {
        self.show_with(done, total, "");
    }

    /// The same; `note` says what it waits for, or the like.
    pub(crate) fn show_with(&mut self, done: u64, total: u64, note: &str) {
        let first = *self.first.get_or_insert(done);
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + if self.terminal { PAUSE } else { LONG_PAUSE };
        let pace = pace(done.saturating_sub(first), now - self.began);
        let mut line = line(&self.what, done, total, pace, self.terminal);
        if !note.is_empty() {
            line.push_str(&format!(", {note}"));
        }
        if self.terminal {
            self.shown = true;
            let columns = super::watch::terminal_size().map_or(80, |(columns, _)| columns);
            write(&format!("\r\x1b[K{}", line.chars().take(columns.saturating_sub(1)).collect::<String>()));
        } else {
            write(&format!("{line}\n"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            write("\r\x1b[K");
        }
    }
}

fn write(text: &str) {
    let mut stderr = std::io::stderr().lock();
    // Nobody reads: nothing is lost.
    let _ = stderr.write_all(text.as_bytes());
    let _ = stderr.flush();
}

/// Bytes a second.
fn pace(bytes: u64, time: Duration) -> Option<u64> {
    (time >= STEADY).then(|| (u128::from(bytes) * 1000 / time.as_millis().max(1)) as u64).filter(|&pace| pace > 0)
}

fn line(what: &str, done: u64, total: u64, pace: Option<u64>, with_bar: bool) -> String {
    let mut text = if total == 0 {
        format!("{what} {}", Size(done))
    } else {
        let part = |of: u64| (u128::from(done.min(total)) * u128::from(of) / u128::from(total)) as u64;
        let filled = part(BAR) as usize;
        let bar = format!(" [{}{}]", "#".repeat(filled), "-".repeat(BAR as usize - filled));
        let bar = if with_bar { bar } else { String::new() };
        format!("{what}{bar} {} % of {}", part(100), Size(total))
    };
    if let Some(pace) = pace {
        text.push_str(&format!(", {}/s", Size(pace)));
        if total > done {
            text.push_str(&format!(", {} left", duration((total - done).div_ceil(pace).saturating_mul(1000))));
        }
    }
    text
}

/// `2 h 05 min`, `3 min 20 s`, `12 s`.
pub(crate) fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds.div_ceil(1000);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_how_much_of_what_and_how_long_it_takes() {
        let pace = Some(32 << 20);
        let expected = "exported [######------------------] 25 % of 1 GiB, 32 MiB/s, 24 s left";
        assert_eq!(line("exported", 256 << 20, 1 << 30, pace, true), expected);
        assert_eq!(line("exported", 256 << 20, 1 << 30, None, false), "exported 25 % of 1 GiB");
        assert_eq!(line("compared", 3 << 20, 0, pace, true), "compared 3 MiB, 32 MiB/s");
        let over = line("deleted", 5, 4, pace, true);
        assert_eq!(over, format!("deleted [{}] 100 % of 4 B, 32 MiB/s", "#".repeat(24)));
    }

    #[test]
    fn a_pace_needs_a_second() {
        assert_eq!(pace(100, Duration::from_millis(900)), None);
        assert_eq!(pace(1 << 30, Duration::from_secs(4)), Some(1 << 28));
        assert_eq!(pace(0, Duration::from_secs(4)), None);
    }

    #[test]
    fn durations_are_told_in_two_units_at_most() {
        assert_eq!([duration(1), duration(200_000), duration(7_500_000)], ["1 s", "3 min 20 s", "2 h 05 min"]);
    }
}
