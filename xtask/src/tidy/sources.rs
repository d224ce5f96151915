//! Rules on the text of sources: unsafe code, protocol crates, length, markers, exceptions without a reason.

use super::Violation;
use super::dependencies::is_protocol;
use super::metadata::Package;
use super::rust_text::{self, Line};
use super::tree::Tree;

/// Packages with unsafe code, and why. All others forbid it.
const UNSAFE: &[(&str, &str)] = &[("reactor", "system calls, and buffers that the kernel writes to")];

/// A file longer than this holds more than one concern.
const MAX_LINES: usize = 700;

/// Words that say that something is not done. Taken apart here, so that this file has none of them.
const UNDONE: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];

/// Macros that say so.
const UNDONE_MACROS: &[&str] = &[concat!("to", "do!"), concat!("un", "implemented!")];

pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for path in &tree.ignored {
        let advice = "git ignores this file, so nobody else will ever have it: narrow the pattern in .gitignore";
        violations.push(Violation::new(path, 1, "ignored", advice));
    }
    for (path, text) in &tree.texts {
        violations.extend(check_undone(path, text));
    }
    for (path, text) in tree.rust_files() {
        let lines = rust_text::lines(text);
        violations.extend(check_length(path, text));
        violations.extend(check_exceptions(path, &lines));
        if let Some(package) = tree.package_of(path) {
            violations.extend(check_unsafe(path, &lines, package));
            violations.extend(check_protocol(path, &lines, package));
        }
    }
    violations
}

fn check_length(path: &str, text: &str) -> Option<Violation> {
    let length = text.lines().count();
    let advice = format!("{length} lines; split it by concern, {MAX_LINES} are the limit");
    (length > MAX_LINES).then(|| Violation::new(path, MAX_LINES + 1, "length", advice))
}

fn check_undone(path: &str, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let word = UNDONE.iter().find(|word| rust_text::has_word(line, word));
        if let Some(found) = word.or_else(|| UNDONE_MACROS.iter().find(|name| line.contains(**name))) {
            let advice = format!("{found}: do it now, or say in words what is and open an issue for the rest");
            violations.push(Violation::new(path, number, "undone", advice));
        }
    }
    violations
}

/// `#[allow]`, `#[expect]` and `#[ignore]` are exceptions from a rule; each says why.
fn check_exceptions(path: &str, lines: &[Line]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let attribute = ["allow", "expect", "ignore"].into_iter().find(|name| {
            let start = line.code.trim_start().trim_start_matches(['#', '!', '[', ' ']);
            line.code.trim_start().starts_with('#') && rust_text::words(start).next() == Some(name)
        });
        let Some(attribute) = attribute else { continue };
        let code = attribute_code(&lines[index..]);
        let inside = rust_text::has_word(&code, "reason") || (attribute == "ignore" && code.contains('='));
        let beside = !line.comment.is_empty() || (index > 0 && is_comment(&lines[index - 1]));
        if !inside && !beside {
            let advice = format!("#[{attribute}] needs its reason: reason = \"…\", or a comment beside it");
            violations.push(Violation::new(path, index + 1, "reason", advice));
        }
    }
    violations
}

/// The code of the attribute that begins on the first line, up to the line where its bracket closes.
fn attribute_code(lines: &[Line]) -> String {
    let mut code = String::new();
    for line in lines {
        code.push_str(&line.code);
        if code.matches('[').count() <= code.matches(']').count() {
            break;
        }
    }
    code
}

fn is_comment(line: &Line) -> bool {
    line.code.trim().is_empty() && !line.comment.is_empty()
}

fn check_unsafe(path: &str, lines: &[Line], package: &Package) -> Vec<Violation> {
    if UNSAFE.iter().any(|(name, _)| *name == package.name) {
        return Vec::new();
    }
    let mut violations = Vec::new();
    if package.crate_roots.iter().any(|root| root == path) && !has_attribute(lines, "forbid(unsafe_code)") {
        violations.push(Violation::new(path, 1, "unsafe", "begin the crate with #![forbid(unsafe_code)]"));
    }
    for (number, line) in (1..).zip(lines) {
        if rust_text::has_word(&line.code, "unsafe") {
            let allowed: Vec<_> = UNSAFE.iter().map(|(name, reason)| format!("{name} ({reason})")).collect();
            let advice = format!("unsafe code is for {} only; offer a safe function there", allowed.join(", "));
            violations.push(Violation::new(path, number, "unsafe", advice));
        }
    }
    violations
}

/// Protocol crates are `no_std` and do no I/O; the reactor, the simulator and the fuzzers drive the same code.
fn check_protocol(path: &str, lines: &[Line], package: &Package) -> Vec<Violation> {
    if !is_protocol(package) || !path.starts_with(&format!("{}/src/", package.folder)) || is_test_file(path) {
        return Vec::new();
    }
    let mut violations = Vec::new();
    if package.crate_roots.iter().any(|root| root == path) && !has_attribute(lines, "no_std") {
        violations.push(Violation::new(path, 1, "protocol", "begin the protocol crate with #![no_std]"));
    }
    for (number, line) in (1..).zip(without_tests(lines)) {
        if uses_std(&line.code) {
            let advice =
                "protocol crates are free of std and of I/O: use core and alloc, take bytes and time as arguments";
            violations.push(Violation::new(path, number, "protocol", advice));
        }
    }
    violations
}

fn has_attribute(lines: &[Line], attribute: &str) -> bool {
    lines.iter().any(|line| line.code.replace(' ', "").contains(&format!("#![{attribute}]")))
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// The lines before the module of tests, which is the last thing in a file.
fn without_tests(lines: &[Line]) -> &[Line] {
    let is_tests = |pair: &[Line]| {
        pair[0].code.trim() == "#[cfg(test)]"
            && pair[1].code.trim_start().starts_with("mod ")
            && pair[1].code.contains('{')
    };
    let end = lines.windows(2).position(is_tests).unwrap_or(lines.len());
    &lines[..end]
}

fn uses_std(code: &str) -> bool {
    let path_into_std = code.match_indices("std").any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + "std".len()..];
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_') && after.trim_start().starts_with("::")
    });
    path_into_std || code.contains("extern crate std")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "#![no_std]\n#![forbid(unsafe_code)]\n";

    fn tree(name: &str, folder: &str, files: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::of_texts(files);
        tree.packages.push(Package {
            name: name.to_owned(),
            folder: folder.to_owned(),
            dependencies: Vec::new(),
            crate_roots: vec![format!("{folder}/src/lib.rs")],
            tests: Vec::new(),
        });
        tree
    }

    fn found(tree: &Tree) -> Vec<(&'static str, usize)> {
        check(tree).iter().map(|violation| (violation.rule, violation.line)).collect()
    }

    fn found_in(text: &str) -> Vec<(&'static str, usize)> {
        found(&Tree::of_texts(&[("somewhere/src/file.rs", text)]))
    }

    #[test]
    fn a_source_that_git_ignores_is_found() {
        let mut tree = Tree::of_texts(&[("somewhere/src/target/mod.rs", "")]);
        tree.ignored.push("somewhere/src/target/mod.rs".to_owned());
        assert_eq!(found(&tree), [("ignored", 1)]);
    }

    #[test]
    fn a_long_file_is_found() {
        assert_eq!(found_in(&"//\n".repeat(MAX_LINES)), []);
        assert_eq!(found_in(&"//\n".repeat(MAX_LINES + 1)), [("length", MAX_LINES + 1)]);
    }

    #[test]
    fn what_is_undone_is_found_in_any_text() {
        for word in UNDONE {
            assert_eq!(found_in(&format!("fn f() {{}}\n// {word}: more\n")), [("undone", 2)]);
            assert_eq!(found(&Tree::of_texts(&[("docs/page.md", &format!("{word}\n"))])), [("undone", 1)]);
        }
        for name in UNDONE_MACROS {
            assert_eq!(found_in(&format!("{name}()")), [("undone", 1)]);
        }
        assert_eq!(found_in("// TODOS\n"), []);
    }

    #[test]
    fn an_exception_needs_its_reason() {
        assert_eq!(found_in("#[allow(dead_code)]\nfn f() {}\n"), [("reason", 1)]);
        assert_eq!(found_in("#![allow(dead_code)]\n"), [("reason", 1)]);
        assert_eq!(found_in("fn f() {}\n\n#[ignore]\n#[test]\nfn g() {}\n"), [("reason", 3)]);
        assert_eq!(found_in("#[expect(\n    dead_code\n)]\nfn f() {}\n"), [("reason", 1)]);
    }

    #[test]
    fn an_exception_with_its_reason_is_fine() {
        assert_eq!(found_in("#[allow(dead_code, reason = \"seen by the kernel only\")]\nfn f() {}\n"), []);
        assert_eq!(found_in("#[expect(\n    dead_code,\n    reason = \"why\"\n)]\nfn f() {}\n"), []);
        assert_eq!(found_in("// Seen by the kernel only.\n#[allow(dead_code)]\nfn f() {}\n"), []);
        assert_eq!(found_in("#[allow(dead_code)] // Seen by the kernel only.\nfn f() {}\n"), []);
        assert_eq!(found_in("#[ignore = \"takes an hour\"]\nfn f() {}\n"), []);
        assert_eq!(found_in("allow(x); let s = \"#[allow(y)]\";\n"), []);
    }

    #[test]
    fn unsafe_code_is_found_outside_of_the_reactor() {
        let files =
            [("lvol/src/lib.rs", "#![forbid(unsafe_code)]\n"), ("lvol/src/map.rs", "fn f() {\n unsafe { g() }\n}\n")];
        assert_eq!(found(&tree("lvol", "lvol", &files)), [("unsafe", 2)]);
        let files = [("reactor/src/lib.rs", ""), ("reactor/src/ring.rs", "fn f() {\n unsafe { g() }\n}\n")];
        assert_eq!(found(&tree("reactor", "reactor", &files)), []);
    }

    #[test]
    fn a_crate_that_does_not_forbid_unsafe_code_is_found() {
        assert_eq!(
            found(&tree("lvol", "lvol", &[("lvol/src/lib.rs", "// #![forbid(unsafe_code)]\n")])),
            [("unsafe", 1)]
        );
    }

    #[test]
    fn a_protocol_crate_with_std_is_found() {
        let protocol = |text: &str| found(&tree("x-protocol", "x/protocol", &[("x/protocol/src/lib.rs", text)]));
        assert_eq!(protocol("#![forbid(unsafe_code)]\n"), [("protocol", 1)]);
        assert_eq!(protocol(&format!("{ROOT}use std::io::Read;\n")), [("protocol", 3)]);
        assert_eq!(protocol(&format!("{ROOT}extern crate std;\n")), [("protocol", 3)]);
        assert_eq!(protocol(&format!("{ROOT}fn f(x: ::std::fs::File) {{}}\n")), [("protocol", 3)]);
        assert_eq!(protocol(&format!("{ROOT}use core::fmt; // as in std::fmt\nuse nostd::x;\n")), []);
    }

    #[test]
    fn tests_of_a_protocol_crate_may_use_std() {
        let with_tests = format!("{ROOT}#[cfg(test)]\nmod tests {{\n    extern crate std;\n}}\n");
        let files = [("x/protocol/src/lib.rs", with_tests.as_str()), ("x/protocol/tests/pairs.rs", "use std::time;\n")];
        assert_eq!(found(&tree("x-protocol", "x/protocol", &files)), []);
        // A module of tests in a file of its own does not end the file.
        let early = format!("{ROOT}#[cfg(test)]\nmod tests;\nuse std::io;\n");
        assert_eq!(found(&tree("x-protocol", "x/protocol", &[("x/protocol/src/lib.rs", &early)])), [("protocol", 5)]);
    }
}
