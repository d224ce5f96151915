//! Rules on deliberate bugs: only the simulator's own build of its bug list has them, and the list is complete.

use super::Violation;
use super::tree::Tree;

/// The feature that makes them possible.
const FEATURE: &str = "deliberate-bugs";

/// The manifests that may name it: where it is, and where it is switched on.
const MANIFESTS: [&str; 2] = ["reactor/Cargo.toml", "tests/simulator/Cargo.toml"];

/// Where each switch is listed.
const LIST: &str = "tests/simulator/src/bugs.rs";

pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let mut violations = check_manifests(tree);
    let list = tree.texts.get(LIST).map_or("", String::as_str);
    let mut switches = Vec::new();
    for (path, text) in tree.rust_files().filter(|(path, _)| *path != LIST && !path.starts_with("xtask/")) {
        for (number, name) in
            (1..).zip(text.lines()).flat_map(|(number, line)| named(line).map(move |name| (number, name)))
        {
            if !list.contains(&format!("\"{name}\"")) {
                let advice = format!("{name} is not in the list of deliberate bugs: add it to {LIST}");
                violations.push(Violation::new(path, number, "bugs", advice));
            }
            switches.push(name);
        }
    }
    for (number, line) in (1..).zip(list.lines()) {
        let listed = line.trim().strip_prefix("in_").and_then(|line| line.split('"').nth(1));
        if let Some(name) = listed.filter(|name| !switches.contains(name)) {
            let advice =
                format!("nothing is switched by {name}: put bug!(\"{name}\") where the line can be made wrong");
            violations.push(Violation::new(LIST, number, "bugs", advice));
        }
    }
    violations
}

/// The names in `bug!("…")` of a line of code.
fn named(line: &str) -> impl Iterator<Item = &str> {
    let code = if line.trim_start().starts_with("//") { "" } else { line };
    let uses = code.match_indices("bug!(\"").filter(|(at, _)| !code[..*at].ends_with(char::is_alphanumeric));
    uses.filter_map(|(at, switch)| code[at + switch.len()..].split('"').next())
}

fn check_manifests(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in tree.files_ending("Cargo.toml").filter(|(path, _)| !MANIFESTS.contains(path)) {
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| line.contains(FEATURE)) {
            let advice = format!("{FEATURE} is for the simulator's bug list only, not for {}", line.trim());
            violations.push(Violation::new(path, number, "bugs", advice));
        }
    }
    for path in MANIFESTS {
        let text = tree.texts.get(path).map_or("", String::as_str);
        let switched_on = |line: &str| {
            let line = line.trim();
            line.contains(FEATURE) && !line.starts_with('#') && !line.starts_with(FEATURE)
        };
        for (number, _) in (1..).zip(text.lines()).filter(|(_, line)| switched_on(line)) {
            let advice =
                format!("{FEATURE} is never on by default, nor by a dependency: only `--features` asks for it");
            violations.push(Violation::new(path, number, "bugs", advice));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 4] = [
        ("reactor/Cargo.toml", "[features]\ndeliberate-bugs = []\n"),
        ("tests/simulator/Cargo.toml", "deliberate-bugs = [\"reactor/deliberate-bugs\"]\n"),
        ("engine/src/core.rs", "    if bug!(\"forget\") && x {\n"),
        (LIST, "    in_cluster(\"forget\", \"it forgets\"),\n"),
    ];

    fn found(changed: &[(&'static str, &'static str)]) -> Vec<(String, usize)> {
        let mut texts = GOOD.to_vec();
        texts.retain(|(path, _)| changed.iter().all(|(other, _)| other != path));
        texts.extend(changed);
        let violations = check(&Tree::of_texts(&texts));
        violations.into_iter().map(|violation| (violation.file, violation.line)).collect()
    }

    #[test]
    fn a_complete_list_and_no_program_with_bugs_is_tidy() {
        assert_eq!(found(&[]), []);
    }

    #[test]
    fn a_program_built_with_bugs_is_found() {
        let daemon = "[dependencies]\nreactor = { workspace = true, features = [\"deliberate-bugs\"] }\n";
        assert_eq!(found(&[("daemon/Cargo.toml", daemon)]), [("daemon/Cargo.toml".to_owned(), 2)]);
        let default = "default = [\"deliberate-bugs\"]\ndeliberate-bugs = [\"reactor/deliberate-bugs\"]\n";
        let path = "tests/simulator/Cargo.toml";
        assert_eq!(found(&[(path, default)]), [(path.to_owned(), 1)]);
    }

    #[test]
    fn a_switch_without_its_line_and_a_line_without_its_switch_are_found() {
        let other = "    if bug!(\"other\") {\n    // bug!(\"in a comment\")\n    debug!(\"a log\");\n";
        let both = [("engine/src/core.rs".to_owned(), 1), (LIST.to_owned(), 1)];
        assert_eq!(found(&[("engine/src/core.rs", other)]), both);
    }
}
