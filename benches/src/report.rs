//! Rows with a target each: as text while they come, as JSON at the end.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

/// What a row is to reach.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// Ours over the baseline.
    RatioAtLeast(f64),
    /// Ours.
    AtMost(f64),
    /// Ours over the baseline.
    RatioAtMost(f64),
    /// Ours less the baseline.
    MoreByAtMost(f64),
    /// It is there to explain others.
    None,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: Option<f64>,
    pub(crate) baseline: Option<f64>,
    pub(crate) ratio: Option<f64>,
    pub(crate) target: Target,
    /// None: not measured, or there is no target.
    pub(crate) met: Option<bool>,
    /// What the baseline is, or why something was left out.
    pub(crate) note: String,
}

impl Row {
    /// Something compared with something else.
    pub(crate) fn compared(case: impl Into<String>, unit: &'static str, ours: f64, baseline: f64) -> Self {
        let ratio = Some(ours / baseline);
        Self { baseline: Some(baseline), ratio, ..Self::alone(case, unit, ours) }
    }

    /// Something measured by itself.
    pub(crate) fn alone(case: impl Into<String>, unit: &'static str, ours: f64) -> Self {
        Self {
            case: case.into(),
            unit,
            ours: Some(ours),
            baseline: None,
            ratio: None,
            target: Target::None,
            met: None,
            note: String::new(),
        }
    }

    /// Something that could not be compared.
    pub(crate) fn left_out(case: impl Into<String>, unit: &'static str, ours: f64, reason: impl Into<String>) -> Self {
        Self { note: reason.into(), ..Self::alone(case, unit, ours) }
    }

    pub(crate) fn target(mut self, target: Target) -> Self {
        self.target = target;
        self.met = match target {
            Target::RatioAtLeast(least) => self.ratio.map(|ratio| ratio >= least),
            Target::AtMost(most) => self.ours.map(|ours| ours <= most),
            Target::RatioAtMost(most) => self.ratio.map(|ratio| ratio <= most),
            Target::MoreByAtMost(most) => self.ours.zip(self.baseline).map(|(ours, base)| ours - base <= most),
            Target::None => None,
        };
        self
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// How much of its target it reaches: 1 is just met, more is better. None without a target, or without a figure.
    pub(crate) fn reached(&self) -> Option<f64> {
        let of =
            |most: f64, value: Option<f64>| value.map(|value| if value <= 0.0 { f64::INFINITY } else { most / value });
        match self.target {
            Target::RatioAtLeast(least) => self.ratio.map(|ratio| ratio / least),
            Target::AtMost(most) => of(most, self.ours),
            Target::RatioAtMost(most) => of(most, self.ratio),
            Target::MoreByAtMost(most) => {
                self.ours.zip(self.baseline).and_then(|(ours, base)| of(base + most, Some(ours)))
            }
            Target::None => None,
        }
    }

    fn render(&self) -> String {
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), readable);
        let target = match self.target {
            Target::RatioAtLeast(least) => format!("≥ {:.0} %", least * 100.0),
            Target::AtMost(most) => format!("≤ {}", readable(most)),
            Target::RatioAtMost(most) => format!("≤ {:.0} %", most * 100.0),
            Target::MoreByAtMost(most) => format!("≤ +{}", readable(most)),
            Target::None => String::new(),
        };
        let met = self.met.map_or("", |met| if met { "met" } else { "MISSED" });
        let ratio = self.ratio.map_or_else(String::new, |ratio| format!("{:.1} %", ratio * 100.0));
        let note = if self.note.is_empty() { String::new() } else { format!("  ({})", self.note) };
        format!(
            "  {:<64} {:>9} {:>9} {:<9} {:>8} {:>8} {:<6}{note}",
            self.case,
            number(self.ours),
            number(self.baseline),
            self.unit,
            ratio,
            target,
            met
        )
    }
}

/// Few digits, as many as say something.
fn readable(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn header() -> String {
    format!("  {:<64} {:>9} {:>9} {:<9} {:>8} {:>8}", "", "ours", "baseline", "", "ratio", "target")
}

/// All rows of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    seconds: f64,
    repeat: usize,
    /// What sizes were divided by: figures of a quick run say nothing.
    scale: u64,
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(time: Duration, repeat: usize, scale: u64) -> Self {
        println!("{}", header());
        Self { seconds: time.as_secs_f64(), repeat, scale, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, rows: Vec<Row>) {
        rows.iter().for_each(|row| println!("{}", row.render()));
        self.rows.extend(rows);
    }

    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// What was printed.
    pub(crate) fn text(&self) -> String {
        let rows = self.rows.iter().map(Row::render);
        std::iter::once(header()).chain(rows).map(|line| line + "\n").collect()
    }

    /// The rows that miss their target.
    pub(crate) fn missed(&self) -> Vec<&str> {
        self.rows.iter().filter(|row| row.met == Some(false)).map(|row| row.case.as_str()).collect()
    }

    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The middle of what was measured.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_met_or_missed() {
        let row = || Row::compared("case", "IOPS", 95.0, 100.0);
        assert_eq!(row().target(Target::RatioAtLeast(0.95)).met, Some(true));
        assert_eq!(row().target(Target::RatioAtLeast(0.96)).met, Some(false));
        assert_eq!(row().target(Target::RatioAtMost(0.95)).met, Some(true));
        assert_eq!(row().target(Target::RatioAtMost(0.94)).met, Some(false));
        assert_eq!(row().target(Target::AtMost(94.0)).met, Some(false));
        assert_eq!(row().target(Target::MoreByAtMost(-5.0)).met, Some(true));
        assert_eq!(row().target(Target::None).met, None);
        let left_out = Row::left_out("case", "IOPS", 95.0, "no fio");
        assert_eq!(left_out.target(Target::RatioAtLeast(0.95)).met, None, "nothing to compare with");
    }

    #[test]
    fn numbers_have_the_digits_that_count() {
        assert_eq!([0.0, 1.234, 12.34, 123.4, 61_234.5].map(readable), ["0", "1.23", "12.3", "123", "61234"]);
    }
}
