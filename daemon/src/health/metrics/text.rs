//! The text format of Prometheus, version 0.0.4.

use std::fmt::{Display, Write};

/// Content type of the format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family counts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A family of metrics.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

pub(super) const fn counter(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Counter, help }
}

pub(super) const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Gauge, help }
}

pub(super) const fn histogram(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Histogram, help }
}

/// Labels with their values.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

/// Samples as text. Those of a family follow its head.
#[derive(Debug, Default)]
pub(super) struct Text(String);

// Writing to a String cannot fail.
impl Text {
    /// The head of a family.
    pub(super) fn family(&mut self, family: Family) {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(self.0, "# HELP {0} {1}\n# TYPE {0} {kind}", family.name, family.help);
    }

    /// One sample.
    pub(super) fn sample(&mut self, family: Family, labels: Labels<'_>, value: impl Display) {
        self.line(family.name, "", labels, &[], value);
    }

    /// A family of a single sample.
    pub(super) fn single(&mut self, family: Family, value: impl Display) {
        self.family(family);
        self.sample(family, &[], value);
    }

    /// A histogram: counts by the upper ends of their classes, in seconds, each with those below; the last class has none.
    pub(super) fn histogram(&mut self, family: Family, labels: Labels<'_>, classes: &[(f64, u64)], all: u64, sum: f64) {
        for (end, count) in classes {
            self.line(family.name, "_bucket", labels, &[("le", &end.to_string())], count);
        }
        self.line(family.name, "_bucket", labels, &[("le", "+Inf")], all);
        self.line(family.name, "_sum", labels, &[], sum);
        self.line(family.name, "_count", labels, &[], all);
    }

    /// Everything so far; the text is empty afterwards.
    pub(super) fn take(&mut self) -> String {
        std::mem::take(&mut self.0)
    }

    fn line(&mut self, name: &str, ending: &str, labels: Labels<'_>, more: Labels<'_>, value: impl Display) {
        self.0.push_str(name);
        self.0.push_str(ending);
        let mut before = '{';
        for (label, content) in labels.iter().chain(more) {
            self.0.push(before);
            self.0.push_str(label);
            self.0.push_str("=\"");
            content.chars().for_each(|c| self.push_escaped(c));
            self.0.push('"');
            before = ',';
        }
        self.0.push_str(if before == ',' { "} " } else { " " });
        let _ = writeln!(self.0, "{value}");
    }

    fn push_escaped(&mut self, c: char) {
        match c {
            '\\' => self.0.push_str("\\\\"),
            '"' => self.0.push_str("\\\""),
            '\n' => self.0.push_str("\\n"),
            c => self.0.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_read_as_the_format_says() {
        let mut text = Text::default();
        let family = gauge("ashlar_things", "Things.");
        text.family(family);
        text.sample(family, &[("name", "a \"b\"\\\n"), ("other", "")], 7);
        text.single(counter("ashlar_all_total", "All."), 0.5);
        let expected = "# HELP ashlar_things Things.\n# TYPE ashlar_things gauge\n\
            ashlar_things{name=\"a \\\"b\\\"\\\\\\n\",other=\"\"} 7\n\
            # HELP ashlar_all_total All.\n# TYPE ashlar_all_total counter\nashlar_all_total 0.5\n";
        assert_eq!(text.take(), expected);
        assert_eq!(text.take(), "");
    }

    #[test]
    fn a_histogram_ends_with_all() {
        let mut text = Text::default();
        text.histogram(histogram("t_seconds", ""), &[("op", "read")], &[(0.000001, 1), (0.000002, 3)], 4, 0.25);
        let expected = "t_seconds_bucket{op=\"read\",le=\"0.000001\"} 1\nt_seconds_bucket{op=\"read\",le=\"0.000002\"} 3\n\
            t_seconds_bucket{op=\"read\",le=\"+Inf\"} 4\nt_seconds_sum{op=\"read\"} 0.25\nt_seconds_count{op=\"read\"} 4\n";
        assert_eq!(text.take(), expected);
    }
}
