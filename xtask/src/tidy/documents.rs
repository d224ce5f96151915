//! Rules on what is written: links lead somewhere, invariants that are cited exist, and files that a table names for one cite it.

use std::collections::BTreeSet;

use super::tree::Tree;
use super::{Violation, rust_text};

/// The page that numbers the invariants, a list item each: `- I7 …`.
const INVARIANTS: &str = "docs/invariants.md";

pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in tree.files_ending(".md") {
        violations.extend(check_links(path, text, tree));
    }
    violations.extend(check_invariants(tree));
    for (path, text) in tree.files_ending(".md") {
        violations.extend(check_table(path, text, tree));
    }
    violations
}

/// Relative links lead to a file of the workspace, and their anchors to a heading in it.
fn check_links(path: &str, text: &str, tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (number, line) in prose_lines(text) {
        for link in links(line) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { Some(path.to_owned()) } else { resolve(path, file) };
            let target = target.filter(|target| tree.paths.contains(target) || tree.texts.contains_key(target));
            let problem = match target {
                None => Some(format!("{link} leads nowhere: correct the path, relative to this page's folder")),
                Some(target) if !anchor.is_empty() && target.ends_with(".md") => {
                    let page = tree.texts.get(&target).map_or("", String::as_str);
                    (!anchors(page).contains(anchor)).then(|| format!("{target} has no heading #{anchor}"))
                }
                Some(_) => None,
            };
            violations.extend(problem.map(|advice| Violation::new(path, number, "link", advice)));
        }
    }
    violations
}

/// The lines of a page that are not inside of a fenced block, numbered from 1.
fn prose_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// The targets of the links `[text](target)` of a line.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| {
        // A title may follow the target.
        target.split_whitespace().next().unwrap_or_default()
    })
}

/// `link`, written in the page at `path`, relative to the root; `None` if it leads out of the workspace.
fn resolve(path: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in link.trim_end_matches('/').split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// The anchors that the headings of a page get: lower case, dashes for spaces, no punctuation.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = prose_lines(page).filter(|(_, line)| line.starts_with('#'));
    headings
        .map(|(_, line)| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// Comments and pages cite invariants by number; the numbers are in the page of the invariants.
fn check_invariants(tree: &Tree) -> Vec<Violation> {
    let page = tree.texts.get(INVARIANTS).map_or("", String::as_str);
    let defined: BTreeSet<_> = page.lines().filter_map(|line| invariants(line.strip_prefix("- ")?).next()).collect();
    let mut violations = Vec::new();
    let mut cite = |path: &str, number: usize, text: &str| {
        for invariant in invariants(text).filter(|invariant| !defined.contains(invariant)) {
            let advice = format!("{INVARIANTS} has no I{invariant}: cite one that exists");
            violations.push(Violation::new(path, number, "invariant", advice));
        }
    };
    for (path, text) in tree.rust_files() {
        for (number, line) in (1..).zip(rust_text::lines(text)) {
            cite(path, number, &line.comment);
        }
    }
    for (path, text) in tree.files_ending(".md") {
        for (number, line) in prose_lines(text) {
            cite(path, number, line);
        }
    }
    violations
}

/// In a row `| I7 | `file`, … |` of a table each file is there and cites the number.
fn check_table(path: &str, text: &str, tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (number, line) in prose_lines(text) {
        let Some((first, rest)) = line.strip_prefix("| ").and_then(|row| row.split_once(" | ")) else { continue };
        let Some(invariant) = first.strip_prefix('I').and_then(|number| number.parse::<u32>().ok()) else { continue };
        for file in rest.split('`').skip(1).step_by(2) {
            let cited = |text: &String| invariants(text).any(|cited| cited == invariant);
            if !tree.texts.get(file).is_some_and(cited) {
                let advice =
                    format!("{file} does not cite {first}: cite it where it is kept, or name the file that does");
                violations.push(Violation::new(path, number, "invariant", advice));
            }
        }
    }
    violations
}

/// The numbers of the invariants that `text` cites: words of an I and a number.
fn invariants(text: &str) -> impl Iterator<Item = u32> {
    rust_text::words(text).filter_map(|word| word.strip_prefix('I')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(texts: &[(&str, &str)]) -> Vec<String> {
        check(&Tree::of_texts(texts)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn links_that_lead_somewhere_are_fine() {
        let page = "# A page\n[file](../engine/src/lib.rs), [folder](.) \n[out](https://example.org/x)\n\
            [here](#a-page) and [there](other.md#two-words-io)\n```\n[in a block](nowhere)\n```\n";
        let texts = [("docs/page.md", page), ("docs/other.md", "## Two words: I/O\n"), ("engine/src/lib.rs", "")];
        let mut tree = Tree::of_texts(&texts);
        tree.paths.push("docs".to_owned());
        assert_eq!(check(&tree), []);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let expected = "docs/page.md:2: link: gone.md leads nowhere: correct the path, relative to this page's folder";
        assert_eq!(found(&[("docs/page.md", "# Page\nsee [that](gone.md)\n")]), [expected]);
        assert_eq!(found(&[("README.md", "[out](../secret.md \"title\")\n")]).len(), 1);
    }

    #[test]
    fn an_anchor_without_its_heading_is_found() {
        let texts = [("docs/page.md", "[that](other.md#gone)\n"), ("docs/other.md", "# Here\n")];
        assert_eq!(found(&texts), ["docs/page.md:1: link: docs/other.md has no heading #gone"]);
    }

    #[test]
    fn an_invariant_that_does_not_exist_is_found_where_it_is_cited() {
        let invariants = (INVARIANTS, "- I1 Acknowledged is everywhere.\n- I2 The record first.\n");
        let source = ("engine/src/lib.rs", "// I2, I3\nlet I9 = \"I8\"; // I/O\n");
        let page = ("docs/engine.md", "I1 and (I7)\n");
        let expected = [
            "engine/src/lib.rs:1: invariant: docs/invariants.md has no I3: cite one that exists",
            "docs/engine.md:1: invariant: docs/invariants.md has no I7: cite one that exists",
        ];
        assert_eq!(found(&[invariants, source, page]), expected);
    }

    #[test]
    fn a_file_that_a_table_names_for_an_invariant_cites_it() {
        let invariants = (INVARIANTS, "- I1 Acknowledged is everywhere.\n- I2 The record first.\n");
        let source = ("engine/src/lib.rs", "// I2\n");
        let page =
            ("docs/page.md", "| | in |\n| I1 | `engine/src/lib.rs` |\n| I2 | `engine/src/lib.rs`, `gone.rs` |\n");
        let advice = "cite it where it is kept, or name the file that does";
        let expected = [
            format!("docs/page.md:2: invariant: engine/src/lib.rs does not cite I1: {advice}"),
            format!("docs/page.md:3: invariant: gone.rs does not cite I2: {advice}"),
        ];
        assert_eq!(found(&[invariants, source, page]), expected);
    }
}
