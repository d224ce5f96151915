//! The text format of Prometheus, read as strictly as its page says (exposition_formats, version 0.0.4), and a little more.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};

/// What a scrape said.
#[derive(Debug, Default)]
pub struct Exposition {
    samples: BTreeMap<String, Vec<Sample>>,
}

/// One sample.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Exposition {
    /// Reads a scrape. An error for anything that the format or the custom of names does not allow.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        ensure!(text.ends_with('\n'), "it does not end with a line");
        let (mut this, mut families) = (Self::default(), BTreeSet::new());
        let (mut family, mut kind, mut helped) = (String::new(), String::new(), String::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').context("a HELP without text")?;
                ensure!(!help.is_empty() && is_name(name), "{line}");
                helped = name.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, of) = rest.split_once(' ').context("a TYPE without one")?;
                ensure!(matches!(of, "counter" | "gauge" | "histogram") && name == helped, "{line}");
                ensure!(families.insert(name.to_owned()), "family {name} comes twice");
                ensure!(
                    (of == "counter") == name.ends_with("_total"),
                    "counters end in _total, nothing else does: {name}"
                );
                (family, kind) = (name.to_owned(), of.to_owned());
            } else {
                let (name, sample) = parse_sample(line).with_context(|| line.to_owned())?;
                let base = if kind == "histogram" { base_of(&name).context("a histogram")? } else { &name[..] };
                ensure!(base == family, "a sample outside of its family: {line}");
                let others = this.samples.entry(name).or_default();
                ensure!(others.iter().all(|other| other.labels != sample.labels), "it comes twice: {line}");
                ensure!(kind == "gauge" || sample.value >= 0.0, "{line}");
                others.push(sample);
            }
        }
        this.check_histograms()?;
        Ok(this)
    }

    /// The sample of this name with these labels among its own.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let fits = |sample: &&Sample| {
            labels.iter().all(|(key, value)| sample.labels.get(*key).map(String::as_str) == Some(*value))
        };
        self.samples.get(name)?.iter().find(fits).map(|sample| sample.value)
    }

    /// What identifies each series.
    pub fn series(&self) -> BTreeSet<String> {
        let named = |(name, samples): (&String, &Vec<Sample>)| {
            samples.iter().map(|sample| format!("{name}{:?}", sample.labels)).collect::<Vec<_>>()
        };
        self.samples.iter().flat_map(named).collect()
    }

    fn check_histograms(&self) -> anyhow::Result<()> {
        for (name, buckets) in self.samples.iter().filter(|(name, _)| name.ends_with("_bucket")) {
            let base = name.trim_end_matches("_bucket");
            let mut last: BTreeMap<BTreeMap<String, String>, (f64, f64)> = BTreeMap::new();
            for bucket in buckets {
                let mut labels = bucket.labels.clone();
                let end = labels.remove("le").context("a bucket without an end")?;
                let end = if end == "+Inf" { f64::INFINITY } else { end.parse()? };
                if let Some((before, count)) = last.insert(labels, (end, bucket.value)) {
                    ensure!(before < end && count <= bucket.value, "{name}: {bucket:?} after {before} {count}");
                }
            }
            for (labels, (end, count)) in last {
                let labels: Vec<_> = labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
                ensure!(end.is_infinite() && self.get(&format!("{base}_count"), &labels) == Some(count), "{name}");
                ensure!(self.get(&format!("{base}_sum"), &labels).is_some(), "{name}");
            }
        }
        Ok(())
    }
}

fn base_of(name: &str) -> Option<&str> {
    ["_bucket", "_sum", "_count"].iter().find_map(|ending| name.strip_suffix(ending))
}

fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.chars().all(good) && name.starts_with(|c: char| c.is_ascii_lowercase())
}

fn parse_sample(line: &str) -> anyhow::Result<(String, Sample)> {
    let end = line.find(['{', ' ']).context("a name only")?;
    let (name, mut rest) = line.split_at(end);
    ensure!(is_name(name), "no name");
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (key, after) = rest.split_once("=\"").context("no value of a label")?;
            ensure!(is_name(key), "no label: {key}");
            let (value, after) = unquote(after)?;
            ensure!(labels.insert(key.to_owned(), value).is_none(), "{key} twice");
            match after.split_at_checked(1) {
                Some((",", next)) => rest = next,
                Some(("}", next)) => break rest = next,
                _ => bail!("no end of labels"),
            }
        }
    }
    let value = rest.strip_prefix(' ').context("no value")?;
    Ok((name.to_owned(), Sample { labels, value: value.parse()? }))
}

fn unquote(text: &str) -> anyhow::Result<(String, &str)> {
    let (mut value, mut characters) = (String::new(), text.char_indices());
    while let Some((place, c)) = characters.next() {
        match c {
            '"' => return Ok((value, &text[place + 1..])),
            '\\' => match characters.next() {
                Some((_, c @ ('\\' | '"'))) => value.push(c),
                Some((_, 'n')) => value.push('\n'),
                _ => bail!("no escape"),
            },
            c => value.push(c),
        }
    }
    bail!("no end of a label's value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_format_does_not_allow_is_found() {
        let good = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"1\",y=\"\\\"\"} 3\n";
        let read = Exposition::parse(good).expect("good");
        assert_eq!(read.get("a_total", &[("y", "\"")]), Some(3.0));
        let bad = [
            "a 1\n",
            "# HELP a A.\n# TYPE a gauge\na 1",
            "# HELP a A.\n# TYPE a counter\na 1\n",
            "# HELP a A.\n# TYPE a gauge\na 1\na 2\n",
            "# HELP a A.\n# TYPE a gauge\nb 1\n",
            "# HELP a A.\n# TYPE a gauge\na{x=\"1} 1\n",
            "# HELP a A.\n# TYPE a gauge\na{x=\"1\"x=\"2\"} 1\n",
            "# HELP a A.\n# TYPE a gauge\na one\n",
            "# HELP a A.\n# TYPE a gauge\n# HELP a A.\n# TYPE a gauge\n",
            "# HELP a A.\n# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n",
            "# HELP a A.\n# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 3\na_sum 1\na_count 4\n",
            "# HELP a A.\n# TYPE a histogram\na_bucket{le=\"1\"} 2\na_sum 1\na_count 2\n",
        ];
        for text in bad {
            assert!(Exposition::parse(text).is_err(), "{text}");
        }
    }
}
