//! All requests of a volume's host, so that a wrong read can be explained.

use std::fmt::Write;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use crate::model::{Crash, Value, Violation};

/// Values from here on are those of writes to an engine that had lost its volume when they were submitted.
pub(super) const GHOSTS: Value = 1 << 63;

/// How many entries of a unit's history are printed, the newest.
const PRINTED: usize = 24;

/// What hosts did and saw, in order.
#[derive(Default)]
pub(super) struct History(Vec<Entry>);

struct Entry {
    start: Duration,
    end: Option<Duration>,
    what: What,
}

enum What {
    Write { name: &'static str, units: Range<usize>, value: Value, outcome: Outcome },
    Read { first: usize, values: Rc<[Value]> },
    Flush { outcome: Outcome },
    Crash(Crash),
    Note(String),
}

/// What the host knows of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing yet, or never: its path was cut off.
    Unknown,
    Acknowledged,
    Failed(String),
}

/// Names an entry.
#[derive(Clone, Copy)]
pub(super) struct EntryId(usize);

impl History {
    pub(super) fn write(&mut self, now: Duration, name: &'static str, units: Range<usize>, value: Value) -> EntryId {
        self.push(now, What::Write { name, units, value, outcome: Outcome::Unknown })
    }

    pub(super) fn flush(&mut self, now: Duration) -> EntryId {
        self.push(now, What::Flush { outcome: Outcome::Unknown })
    }

    pub(super) fn end(&mut self, entry: EntryId, now: Duration, result: Outcome) {
        let entry = &mut self.0[entry.0];
        entry.end = Some(now);
        if let What::Write { outcome, .. } | What::Flush { outcome } = &mut entry.what {
            *outcome = result;
        }
    }

    pub(super) fn read(&mut self, start: Duration, now: Duration, first: usize, values: &[Value]) {
        let id = self.push(start, What::Read { first, values: values.into() });
        self.0[id.0].end = Some(now);
    }

    pub(super) fn crash(&mut self, now: Duration, crash: Crash) {
        self.push(now, What::Crash(crash));
    }

    pub(super) fn note(&mut self, now: Duration, text: String) {
        self.push(now, What::Note(text));
    }

    fn push(&mut self, start: Duration, what: What) -> EntryId {
        self.0.push(Entry { start, end: None, what });
        EntryId(self.0.len() - 1)
    }

    /// Which invariants a wrong read breaks and why, with the history of its unit.
    pub(super) fn explain(&self, violation: &Violation) -> String {
        let Violation { unit, found, allowed } = violation;
        let broken = self.broken(violation);
        let mut text = format!("{broken}: unit {unit} reads as {found}, allowed: {allowed:?}\n");
        let lines: Vec<String> = self.0.iter().filter_map(|entry| entry.line(*unit)).collect();
        let left_out = lines.len().saturating_sub(PRINTED);
        if left_out > 0 {
            let _ = writeln!(text, "  ({left_out} earlier entries of the unit are left out)");
        }
        lines[left_out..].iter().for_each(|line| {
            let _ = writeln!(text, "  {line}");
        });
        text
    }

    fn broken(&self, violation: &Violation) -> &'static str {
        let Violation { unit, found, .. } = violation;
        if *found >= GHOSTS {
            return "I13, I14 broken: a write to an engine that had lost the volume is there";
        }
        let Some(place) = self.0.iter().rposition(|entry| entry.wrote(*unit, *found)) else {
            return match found {
                0 => "I1, I4 broken: what was acknowledged is gone",
                _ => "I19 broken: nobody wrote this here",
            };
        };
        let later = &self.0[place + 1..];
        let superseded = later.iter().any(|entry| entry.acknowledged_write(*unit));
        let outcome = match &self.0[place].what {
            What::Write { outcome, .. } => outcome,
            _ => &Outcome::Unknown,
        };
        match (outcome, superseded) {
            (Outcome::Acknowledged, true) if later.iter().any(Entry::is_power_cut) => {
                "I4 broken: an older value is back after a power cut, a flushed one is gone"
            }
            (Outcome::Acknowledged, true) => "I1, I9 broken: an older value is back, an acknowledged one is gone",
            (Outcome::Acknowledged, false) => "I9, I10 broken: a value is back that a read had ruled out",
            (Outcome::Failed(_), true) => {
                "I15 broken: a write that had failed took effect after a later acknowledged one"
            }
            (Outcome::Failed(_), false) => "I10 broken: a failed write is there that a read had ruled out",
            (Outcome::Unknown, true) => {
                "I15 broken: a write that was cut off took effect after a later acknowledged one"
            }
            (Outcome::Unknown, false) => "I7, I9 broken: a write is there that a read had ruled out",
        }
    }
}

impl Entry {
    fn wrote(&self, unit: usize, wanted: Value) -> bool {
        matches!(&self.what, What::Write { units, value, .. } if units.contains(&unit) && *value == wanted)
    }

    fn acknowledged_write(&self, unit: usize) -> bool {
        matches!(&self.what,
            What::Write { units, outcome: Outcome::Acknowledged, .. } if units.contains(&unit))
    }

    fn is_power_cut(&self) -> bool {
        matches!(self.what, What::Crash(Crash::PowerCut))
    }

    /// The entry as the unit has seen it; none if it has not.
    fn line(&self, unit: usize) -> Option<String> {
        let told = |outcome: &Outcome| match outcome {
            Outcome::Unknown => "never answered".to_owned(),
            Outcome::Acknowledged => "acknowledged".to_owned(),
            Outcome::Failed(error) => format!("failed: {error}"),
        };
        let text = match &self.what {
            What::Write { name, units, value, outcome } if units.contains(&unit) => {
                format!("{name} {value} (units {}..{}): {}", units.start, units.end, told(outcome))
            }
            What::Read { first, values } => format!("read {}", values.get(unit.checked_sub(*first)?)?),
            What::Flush { outcome } => format!("flush: {}", told(outcome)),
            What::Crash(Crash::Kill) => "the path to the volume is lost".to_owned(),
            What::Crash(Crash::PowerCut) => "every replica in sync has lost its power".to_owned(),
            What::Note(text) => text.clone(),
            What::Write { .. } => return None,
        };
        let end = self.end.map_or_else(String::new, |end| format!(" to {:.6}", end.as_secs_f64()));
        Some(format!("{:.6}{end}: {text}", self.start.as_secs_f64()))
    }
}
