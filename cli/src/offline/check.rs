//! `ashlar store check`.

use std::process::ExitCode;

use lvol::offline::{CheckOptions, Finding, Remedy, Report, Severity, check};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Exit, print, with_disk};
use crate::arguments::CheckStore;
use crate::output::{Output, to_yaml};
use crate::size::Size;

/// How many ranges of an lvol the text names before it only counts; JSON has them all.
const RANGES: usize = 16;

pub(crate) fn run(options: &CheckStore, output: Output) -> ExitCode {
    let check_options = CheckOptions {
        repair: options.repair,
        accept_loss: options.accept_loss.clone(),
        serve_zeroes: options.serve_zeroes,
        data: options.data,
    };
    with_disk(&options.disk, !options.repair, async move |disk| {
        let report = check(&disk, &check_options).await?;
        match output {
            Output::Json => print(&format!("{:#}\n", to_json(&report)))?,
            Output::Yaml => print(&to_yaml(&to_json(&report)))?,
            Output::Table | Output::Wide => print(&render(&report))?,
        }
        Ok(exit(&report))
    })
}

fn exit(report: &Report) -> Exit {
    let wrong = report.worst() >= Severity::Warning;
    match (wrong, report.repaired.is_empty()) {
        (true, _) => Exit::ErrorsLeft,
        (false, true) => Exit::Clean,
        (false, false) => Exit::Repaired,
    }
}

fn render(report: &Report) -> String {
    let mut text = report.findings.iter().map(render_finding).collect::<String>();
    if !report.repaired.is_empty() {
        text.push_str("repaired:\n");
        report.repaired.iter().for_each(|step| text.push_str(&format!("  {step}\n")));
        if !report.left.is_empty() {
            text.push_str("left:\n");
            text.extend(report.left.iter().map(render_finding));
        }
    }
    if let Some(store) = &report.store {
        let used = Size(store.size - store.free);
        let (size, lvols) = (Size(store.size), store.lvols);
        text.push_str(&format!("store {} ({}): {lvols} lvols, {used} of {size} in use\n", store.name, store.uuid));
    }
    text.push_str(match exit(report) {
        Exit::Clean => "nothing is wrong\n",
        Exit::Repaired => "everything that was wrong is repaired\n",
        _ => "there are errors\n",
    });
    text
}

fn render_finding(finding: &Finding) -> String {
    let mut text = format!("{}: {}", finding.severity, finding.structure);
    if let Some(offset) = finding.offset {
        text.push_str(&format!(" at {offset}"));
    }
    if let Some(lvol) = finding.lvol {
        text.push_str(&format!(", lvol {lvol}"));
    }
    text.push_str(&format!(": {}\n", finding.text));
    if !finding.unknown.is_empty() {
        let named: Vec<String> =
            finding.unknown.iter().take(RANGES).map(|range| format!("{}-{}", range.start, range.end - 1)).collect();
        let more = finding.unknown.len().saturating_sub(RANGES);
        let more = if more > 0 { format!(" and {more} more (-o json has all)") } else { String::new() };
        text.push_str(&format!("  bytes {}{more}\n", named.join(", ")));
    }
    match &finding.remedy {
        Remedy::Nothing => {}
        Remedy::Repair(what) => text.push_str(&format!("  with --repair: {what}\n")),
        Remedy::AcceptLoss { lvols, what } => {
            text.push_str(&format!("  with --repair {}: {what}\n", accept(lvols)));
        }
        Remedy::ServeZeroes { lvols, what } => {
            text.push_str(&format!("  with --repair --serve-zeroes {}: {what}\n", accept(lvols)));
        }
        Remedy::Impossible(what) => text.push_str(&format!("  cannot be repaired here: {what}\n")),
    }
    text
}

fn accept(lvols: &[Uuid]) -> String {
    let accept: Vec<String> = lvols.iter().map(|lvol| format!("--accept-loss {}", name(*lvol))).collect();
    accept.join(" ")
}

fn name(lvol: Uuid) -> String {
    if lvol.is_nil() { "unnamed".to_owned() } else { lvol.to_string() }
}

fn names(lvols: &[Uuid]) -> Vec<String> {
    lvols.iter().map(|lvol| name(*lvol)).collect()
}

fn to_json(report: &Report) -> Value {
    let store = report.store.as_ref().map(|store| {
        json!({
            "uuid": store.uuid.to_string(),
            "name": store.name,
            "size_bytes": store.size,
            "free_bytes": store.free,
            "lvols": store.lvols,
        })
    });
    json!({
        "store": store,
        "findings": report.findings.iter().map(finding_to_json).collect::<Vec<_>>(),
        "repaired": report.repaired,
        "left": report.left.iter().map(finding_to_json).collect::<Vec<_>>(),
        "exit_code": exit(report) as u8,
    })
}

fn finding_to_json(finding: &Finding) -> Value {
    let ranges = finding.unknown.iter().map(|range| json!({"offset": range.start, "length": range.end - range.start}));
    let remedy = match &finding.remedy {
        Remedy::Nothing => json!({"kind": "nothing"}),
        Remedy::Repair(what) => json!({"kind": "repair", "what": what}),
        Remedy::AcceptLoss { lvols, what } => json!({"kind": "accept-loss", "lvols": names(lvols), "what": what}),
        Remedy::ServeZeroes { lvols, what } => json!({"kind": "serve-zeroes", "lvols": names(lvols), "what": what}),
        Remedy::Impossible(what) => json!({"kind": "impossible", "what": what}),
    };
    json!({
        "severity": finding.severity.to_string(),
        "structure": finding.structure.to_string(),
        "offset": finding.offset,
        "lvol": finding.lvol.map(|lvol| lvol.to_string()),
        "unknown": ranges.collect::<Vec<_>>(),
        "text": finding.text,
        "remedy": remedy,
    })
}

#[cfg(test)]
mod tests {
    use lvol::offline::Structure;

    use super::*;

    fn finding(severity: Severity) -> Finding {
        Finding {
            severity,
            structure: Structure::Map,
            offset: Some(4096),
            lvol: Some(Uuid::from_u128(1)),
            unknown: vec![0..4096, 8192..12288],
            text: "what its map had is not known".to_owned(),
            remedy: Remedy::AcceptLoss { lvols: vec![Uuid::from_u128(1)], what: "they become zeroes".to_owned() },
        }
    }

    #[test]
    fn a_finding_says_what_where_and_what_to_do() {
        let expected = "\
error: map at 4096, lvol 00000000-0000-0000-0000-000000000001: what its map had is not known
  bytes 0-4095, 8192-12287
  with --repair --accept-loss 00000000-0000-0000-0000-000000000001: they become zeroes
";
        assert_eq!(render_finding(&finding(Severity::Error)), expected);
    }

    #[test]
    fn the_exit_code_is_that_of_fsck() {
        let report = |findings: &[Severity], repaired: &[&str], left: &[Severity]| {
            exit(&Report {
                findings: findings.iter().map(|severity| finding(*severity)).collect(),
                repaired: repaired.iter().map(|step| (*step).to_owned()).collect(),
                left: left.iter().map(|severity| finding(*severity)).collect(),
                ..Report::default()
            })
        };
        assert_eq!(report(&[Severity::Note], &[], &[]), Exit::Clean);
        assert_eq!(report(&[Severity::Warning], &[], &[]), Exit::ErrorsLeft);
        assert_eq!(report(&[Severity::Fatal], &["all"], &[Severity::Note]), Exit::Repaired);
        assert_eq!(report(&[Severity::Error], &["some"], &[Severity::Error]), Exit::ErrorsLeft);
    }
}
