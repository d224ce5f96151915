//! What happened in a world: one hash over all of it, and the last lines of it in words.

use std::collections::VecDeque;
use std::fmt;

use super::random::mix;

/// How many lines a world keeps unless told otherwise.
const DEFAULT_LINES: usize = 400;

/// The events of a world so far.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    events: u64,
    lines: VecDeque<Line>,
    keep: usize,
}

/// One line of the event log. Kept as values; words are made only when somebody reads it.
#[derive(Debug)]
struct Line {
    at: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Event(&'static str, [u64; 3]),
    Text(String),
}

impl Trace {
    pub(crate) fn new(seed: u64) -> Self {
        Self { hash: mix(seed), events: 0, lines: VecDeque::new(), keep: DEFAULT_LINES }
    }

    /// Takes in one event: its time in nanoseconds, its name and three numbers that tell it from others.
    pub(crate) fn event(&mut self, at: u64, name: &'static str, details: [u64; 3]) {
        self.events += 1;
        for word in [at, hash_bytes(name.as_bytes())].into_iter().chain(details) {
            self.hash = mix(self.hash.rotate_left(5) ^ word);
        }
        self.push(Line { at, what: What::Event(name, details) });
    }

    /// Takes in something that is not worth a line.
    pub(crate) fn silent(&mut self, at: u64, detail: u64) {
        self.events += 1;
        self.hash = mix(mix(self.hash.rotate_left(5) ^ at) ^ detail);
    }

    /// Adds a line of words. Words are part of the hash too: a test may log what it saw.
    pub(crate) fn text(&mut self, at: u64, text: String) {
        self.hash = mix(self.hash.rotate_left(5) ^ hash_bytes(text.as_bytes()));
        self.push(Line { at, what: What::Text(text) });
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    pub(crate) fn keep(&mut self, lines: usize) {
        self.keep = lines;
        self.lines.truncate(lines);
    }

    /// Whether there is a log at all.
    pub(crate) fn keeps_lines(&self) -> bool {
        self.keep > 0
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.iter().map(Line::to_string).collect()
    }

    fn push(&mut self, line: Line) {
        if self.keep == 0 {
            return;
        }
        if self.lines.len() >= self.keep {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, rest) = (self.at / 1_000_000_000, self.at % 1_000_000_000);
        write!(f, "{seconds:>5}.{rest:09} ")?;
        match &self.what {
            What::Event(name, [a, b, c]) => write!(f, "{name} {a} {b} {c}"),
            What::Text(text) => f.write_str(text),
        }
    }
}

/// A hash of bytes for traces: quick, and the same on every machine.
pub(crate) fn hash_bytes(bytes: &[u8]) -> u64 {
    let step = |hash: u64, word| (hash.rotate_left(23) ^ u64::from_le_bytes(word)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(bytes.len() as u64, |hash, word| step(hash, *word));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(step(hash, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_an_event_counts() {
        let hash = |at, name, details| {
            let mut trace = Trace::new(0);
            trace.event(at, name, details);
            trace.hash()
        };
        let base = hash(1, "turn", [1, 2, 3]);
        assert_eq!(base, hash(1, "turn", [1, 2, 3]));
        for other in [hash(2, "turn", [1, 2, 3]), hash(1, "tern", [1, 2, 3]), hash(1, "turn", [1, 2, 4])] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_log_keeps_its_last_lines() {
        let mut trace = Trace::new(0);
        trace.keep(2);
        for line in ["one", "two", "three"] {
            trace.text(1_500_000_000, line.to_owned());
        }
        assert_eq!(trace.lines(), ["    1.500000000 two", "    1.500000000 three"]);
    }
}
