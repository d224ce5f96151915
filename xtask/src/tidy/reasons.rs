//! Rules on errors of the API: their reasons are in the contract, and no error is without one.

use std::collections::BTreeSet;

use super::Violation;
use super::tree::Tree;

/// Where the reasons are listed, as the values of an enumeration.
const CONTRACT: &str = "proto/ashlar/v1/errors.proto";

/// Whose errors they are.
const DAEMON: &str = "daemon/src/";

/// What makes an error with the reason that comes first in the parentheses.
const WITH_REASON: [&str; 3] = ["ControlError::precondition(", "ControlError::unavailable(", "ControlError::failed("];

/// What makes one without any.
const BARE: [&str; 16] = [
    "new",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];

/// What is made there never leaves: it is told as an error of the peer.
const AMONG_OURSELVES: &str = "daemon/src/control/peers";

pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let contract = tree.texts.get(CONTRACT).map_or("", String::as_str);
    let listed: BTreeSet<_> = contract.lines().filter_map(reason_of).collect();
    let mut violations = Vec::new();
    for (path, text) in tree.rust_files().filter(|(path, _)| path.starts_with(DAEMON)) {
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
        for (at, reason) in given(code) {
            if !listed.contains(reason) {
                let advice = format!("{reason} is no reason of {CONTRACT}: add it there with its code and meaning");
                violations.push(Violation::new(path, line_of(code, at), "reasons", advice));
            }
        }
        for at in bare(code).filter(|_| !path.starts_with(AMONG_OURSELVES)) {
            let advice = "an error without a reason: make a ControlError, or use proto::error::status";
            violations.push(Violation::new(path, line_of(code, at), "reasons", advice));
        }
    }
    violations
}

/// The name in a line of the contract such as `  NOT_FOUND = 2;`.
fn reason_of(line: &str) -> Option<&str> {
    let (name, _) = line.strip_prefix("  ")?.split_once(" = ")?;
    name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_').then_some(name)
}

/// The reasons that are given in a text, and where.
fn given(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let makers = WITH_REASON.iter().flat_map(|maker| code.match_indices(maker));
    makers.filter_map(|(at, maker)| {
        let literal = code[at + maker.len()..].trim_start().strip_prefix('"')?;
        Some((at, literal.split('"').next()?))
    })
}

/// Where errors without a reason are made.
fn bare(code: &str) -> impl Iterator<Item = usize> {
    code.match_indices("Status::").filter_map(|(at, word)| {
        let is_path = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let call = code[at + word.len()..].split_once('(')?.0;
        (!is_path && BARE.contains(&call)).then_some(at)
    })
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: (&str, &str) = (CONTRACT, "enum ErrorReason {\n  // NOT_FOUND: none.\n  NOT_FOUND = 2;\n}\n");

    fn found(path: &str, code: &str) -> Vec<String> {
        check(&Tree::of_texts(&[LIST, (path, code)])).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_reason_that_is_not_in_the_contract_is_found_also_on_the_next_line() {
        let code = "ControlError::precondition(\"NOT_FOUND\", x);\nControlError::unavailable(\n    \"NEW\", x)";
        let expected = format!(
            "daemon/src/a.rs:2: reasons: NEW is no reason of {CONTRACT}: add it there with its code and meaning"
        );
        assert_eq!(found("daemon/src/a.rs", code), [expected]);
        assert!(found("cli/src/a.rs", code).is_empty());
    }

    #[test]
    fn an_error_without_a_reason_is_found() {
        let code = "Err(Status::internal(text))\nfn of(status: ServingStatus::new(x), Status::from(error))\n";
        let expected =
            "daemon/src/a.rs:1: reasons: an error without a reason: make a ControlError, or use proto::error::status";
        assert_eq!(found("daemon/src/a.rs", code), [expected]);
        assert!(found("daemon/src/control/peers.rs", code).is_empty());
        assert!(found("daemon/src/a.rs", &format!("#[cfg(test)]\nmod tests {{ {code} }}")).is_empty());
    }
}
