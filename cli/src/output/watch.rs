//! The same list or object again and again, until interrupted (Ctrl-C), which is an end in order.
//!
//! On a terminal what changes is written over what was there, in one write, so that nothing flickers. Elsewhere, and for programs, only
//! what changed is printed: lines for people, whole documents as JSON or YAML.

use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;

use super::{Output, Width, to_yaml, write};
use crate::client::{self, Changes};

/// Between two looks at what the daemon tells changes of: for what changes with time alone.
const REFRESH: Duration = Duration::from_secs(10);

/// Before a daemon that has stopped to tell them is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Whether a list or an object is shown once, or again and again.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Watch {
    /// Go on until interrupted, and show what changes: at once where the daemon tells it, else every so many seconds
    #[arg(long, short, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "1")]
    pub(crate) watch: Option<Interval>,
}

/// Between two looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interval(Duration);

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds: f64 = text.parse().map_err(|_| "write seconds, as in 2 or 0.5".to_owned())?;
        if (0.1..=3600.0).contains(&seconds) {
            Ok(Self(Duration::from_secs_f64(seconds)))
        } else {
            Err("from 0.1 to 3600 seconds".to_owned())
        }
    }
}

/// What was found, and what is to be known beside it (on standard error, for it is no part of a list).
pub(crate) struct Look<T> {
    pub(crate) value: T,
    pub(crate) notes: Vec<String>,
}

impl<T> From<T> for Look<T> {
    fn from(value: T) -> Self {
        Self { value, notes: Vec::new() }
    }
}

/// Prints what `fetch` finds: once, or again and again.
///
/// # Errors
/// Those of `fetch`. While watching it is tried again when the daemon does not answer.
pub(crate) async fn look<T: Serialize>(
    watch: Watch,
    output: Output,
    fetch: impl AsyncFnMut() -> anyhow::Result<Look<T>>,
    render: impl Fn(&T, Width) -> String,
) -> anyhow::Result<()> {
    look_on(watch, output, fetch, async |_| Ok(None), render).await
}

/// The same for what the daemon tells changes of: it is looked at again as soon as there is one. `follow` asks for them.
///
/// # Errors
/// Those of `fetch`.
pub(crate) async fn look_on<T: Serialize>(
    watch: Watch,
    output: Output,
    mut fetch: impl AsyncFnMut() -> anyhow::Result<Look<T>>,
    mut follow: impl AsyncFnMut(&T) -> anyhow::Result<Option<Changes>>,
    render: impl Fn(&T, Width) -> String,
) -> anyhow::Result<()> {
    let first = fetch().await?;
    let Some(Interval(interval)) = watch.watch else {
        first.notes.iter().for_each(|note| eprintln!("ashlar: {note}"));
        return output.print(&first.value, render);
    };
    let mut screen = Screen::new(output);
    screen.show(&first, &render)?;
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    // Where nothing is told (an older daemon, one that stops), it is asked every interval.
    let mut changes = follow(&first.value).await.ok().flatten();
    let is_told = changes.is_some();
    loop {
        let pause = match (changes.is_some(), is_told) {
            (true, _) => interval.max(REFRESH),
            (false, true) => interval.min(AGAIN),
            (false, false) => interval,
        };
        let told = async {
            match &mut changes {
                Some(changes) => changes.next().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        let goes_on = tokio::select! {
            _ = &mut interrupted => return Ok(()),
            told = told => told,
            () = tokio::time::sleep(pause) => true,
        };
        if !goes_on {
            changes = None;
            continue;
        }
        let found = tokio::select! {
            _ = &mut interrupted => return Ok(()),
            found = fetch() => found,
        };
        match found {
            Ok(found) => {
                screen.show(&found, &render)?;
                if changes.is_none() {
                    changes = follow(&found.value).await.ok().flatten();
                }
            }
            Err(error) if client::is_transient(&error) => screen.trouble(&error)?,
            Err(error) => return Err(error),
        }
    }
}

/// Where it is shown.
struct Screen {
    output: Output,
    /// Written over.
    terminal: bool,
    /// What is shown now.
    text: String,
    /// Lines of the terminal that it takes.
    lines: usize,
    trouble: String,
    notes: Vec<String>,
}

impl Screen {
    fn new(output: Output) -> Self {
        let terminal = !output.is_data() && io::stdout().is_terminal();
        Self { output, terminal, text: String::new(), lines: 0, trouble: String::new(), notes: Vec::new() }
    }

    fn show<T: Serialize>(&mut self, found: &Look<T>, render: impl FnOnce(&T, Width) -> String) -> anyhow::Result<()> {
        let troubled = !std::mem::take(&mut self.trouble).is_empty();
        let text = match self.output {
            Output::Json => format!("{}\n", serde_json::to_string(&found.value)?),
            Output::Yaml => format!("---\n{}", to_yaml(&serde_json::to_value(&found.value)?)),
            output => output.text(&found.value, render)?,
        };
        if self.terminal {
            let notes = found.notes.iter().map(|note| format!("{note}\n"));
            let text: String = std::iter::once(text).chain(notes).collect();
            return if troubled || text != self.text { self.draw(text) } else { Ok(()) };
        }
        if self.notes != found.notes {
            found.notes.iter().for_each(|note| eprintln!("ashlar: {note}"));
            self.notes.clone_from(&found.notes);
        }
        let changed = match self.output.is_data() {
            true if self.text == text => String::new(),
            true => text.clone(),
            false => changes(&self.text, &text),
        };
        self.text = text;
        Ok(write(&changed)?)
    }

    /// The daemon does not answer: what is known stays.
    fn trouble(&mut self, error: &anyhow::Error) -> anyhow::Result<()> {
        let trouble = format!("no answer, trying again: {}", error.to_string().lines().next().unwrap_or_default());
        if self.trouble == trouble {
            return Ok(());
        }
        self.trouble.clone_from(&trouble);
        if !self.terminal {
            eprintln!("ashlar: {trouble}");
            return Ok(());
        }
        let known = self.text.clone();
        self.draw(format!("{known}\n{trouble}\n"))?;
        self.text = known;
        Ok(())
    }

    fn draw(&mut self, text: String) -> anyhow::Result<()> {
        let (columns, rows) = terminal_size().ok_or_else(|| anyhow!("the terminal is gone"))?;
        let lines = fit(&text, columns, rows);
        write(&over(self.lines, &lines))?;
        (self.text, self.lines) = (text, lines.len());
        Ok(())
    }
}

/// Lines that a terminal shows without breaking or scrolling them.
fn fit(text: &str, columns: usize, rows: usize) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(|line| line.chars().take(columns).collect()).collect();
    let room = rows.saturating_sub(1).max(1);
    if lines.len() > room {
        let left = lines.len() - (room - 1);
        lines.truncate(room - 1);
        lines.push(format!("… {left} more lines").chars().take(columns).collect());
    }
    lines
}

/// What puts `lines` in place of as many as there were. Each line is cleared after its new text, and not before: nothing flickers.
fn over(before: usize, lines: &[String]) -> String {
    let up = if before > 0 { format!("\x1b[{before}A\r") } else { "\r".to_owned() };
    let lines: String = lines.iter().map(|line| format!("{line}\x1b[K\n")).collect();
    format!("{up}{lines}\x1b[J")
}

/// The lines of `after` that `before` did not have, whatever the width of their columns, and what of it is gone.
fn changes(before: &str, after: &str) -> String {
    fn words(text: &str) -> Vec<Vec<&str>> {
        text.lines().map(|line| line.split_whitespace().collect()).collect()
    }
    let (old, new) = (words(before), words(after));
    let mut text = String::new();
    for (line, words) in after.lines().zip(&new) {
        if !words.is_empty() && !old.contains(words) {
            text.push_str(&format!("{line}\n"));
        }
    }
    // The first line is that of the columns' names, or says that there is nothing.
    for words in old.iter().skip(1) {
        if let Some(name) = words.first()
            && !new.iter().any(|line| line.first() == Some(name))
        {
            text.push_str(&format!("gone: {name}\n"));
        }
    }
    text
}

/// Columns and rows of the terminal, if there is one.
pub(super) fn terminal_size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).or_else(|_| rustix::termios::tcgetwinsize(io::stderr()));
    // Some say 0.
    size.ok().map(|size| match (size.ws_col, size.ws_row) {
        (0, _) | (_, 0) => (80, 24),
        (columns, rows) => (columns.into(), rows.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_printed_and_what_is_gone() {
        let before = "NAME  STATE\na     healthy\nb     healthy\n";
        assert_eq!(changes("", before), before);
        assert_eq!(changes(before, before), "");
        let after = "NAME       STATE\na          degraded\nlong-name  healthy\n";
        assert_eq!(changes(before, after), "a          degraded\nlong-name  healthy\ngone: b\n");
        let nothing = "There are no volumes.\n";
        assert_eq!(changes(nothing, before), before);
        assert_eq!(changes(before, nothing), format!("{nothing}gone: a\ngone: b\n"));
    }

    #[test]
    fn a_screen_is_written_over_in_place() {
        let lines = ["a".to_owned(), "b".to_owned()];
        assert_eq!(over(0, &lines), "\ra\x1b[K\nb\x1b[K\n\x1b[J");
        assert_eq!(over(3, &lines), "\x1b[3A\ra\x1b[K\nb\x1b[K\n\x1b[J");
    }

    #[test]
    fn what_has_no_room_is_counted() {
        let text = "one long line\n2\n3\n4\n";
        assert_eq!(fit(text, 8, 24), ["one long", "2", "3", "4"]);
        assert_eq!(fit(text, 80, 4), ["one long line", "2", "… 2 more lines"]);
        assert_eq!(fit(text, 80, 1), ["… 4 more lines"]);
    }

    #[test]
    fn an_interval_is_in_seconds_and_in_bounds() {
        assert_eq!("0.5".parse(), Ok(Interval(Duration::from_millis(500))));
        for text in ["0", "-1", "x", "1e9", "NaN"] {
            assert!(text.parse::<Interval>().is_err(), "{text}");
        }
    }
}
