//! What CUnit says of its tests.

/// A test that ran.
#[derive(Debug, PartialEq)]
pub(crate) struct Test {
    /// With its variant.
    pub(crate) name: String,
    /// `Suite.Test`.
    pub(crate) short: String,
    pub(crate) outcome: Outcome,
}

/// What became of a test, with what it said of itself.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    Passed,
    /// It passed, but says that something of it was left out.
    Skipped(String),
    Failed(String),
}

/// The tests in the output of `iscsi-test-cu`. A test's name, what it logs and its outcome may share a line or be on several.
pub(crate) fn read(output: &str, variant: &str) -> Vec<Test> {
    let mut tests = Vec::new();
    let mut suite = "";
    let mut open: Option<(&str, Vec<&str>)> = None;
    for line in output.lines().map(str::trim) {
        let mut rest = line;
        if let Some(name) = line.strip_prefix("Suite: ") {
            suite = name;
            continue;
        }
        if let Some((name, after)) = line.strip_prefix("Test: ").and_then(|line| line.split_once(" ...")) {
            open = Some((name, Vec::new()));
            rest = after.trim();
        }
        let Some((_, said)) = &mut open else { continue };
        // What the next test logs may follow at once.
        let passed = rest.starts_with("passed");
        if !passed && !rest.starts_with("FAILED") {
            said.extend((!rest.is_empty()).then_some(rest));
            continue;
        }
        let Some((name, said)) = open.take() else { continue };
        let skipped = said.iter().find(|line| line.contains("[SKIPPED]"));
        let outcome = match (passed, skipped) {
            (true, None) => Outcome::Passed,
            (true, Some(line)) => Outcome::Skipped((*line).to_owned()),
            (false, _) => Outcome::Failed(said.join("\n")),
        };
        let short = format!("{suite}.{name}");
        tests.push(Test { name: format!("{variant} {short}"), short, outcome });
    }
    tests
}

/// How many tests CUnit says it ran.
pub(crate) fn total(output: &str) -> Option<usize> {
    let line = output.lines().map(str::trim).find(|line| line.starts_with("tests "))?;
    line.split_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `iscsi-test-cu` 1.19 printed it against another target.
    const OUTPUT: &str = "
     CUnit - A unit testing framework for C - Version 2.1-3
     http://cunit.sourceforge.net/

Suite: GetLBAStatus
  Test: Simple ...passed
  Test: BeyondEol ...    [FAILED] GET_LBA_STATUS successful but should have failed with ILLEGAL_REQUEST
FAILED
    1. test_get_lba_status_beyond_eol.c:38  - CU_ASSERT_EQUAL(_r,0)
  Test: Reset ...passed    [FAILED] PRIN command: failed with sense.
  Test: UnmapSingle ...    [SKIPPED] Logical unit is fully provisioned. Skipping test
passed

Run Summary:    Type  Total    Ran Passed Failed Inactive
              suites      1      1    n/a      0        0
               tests      4      4      3      1        0
";

    #[test]
    fn each_test_has_its_outcome() {
        let tests = read(OUTPUT, "plain");
        let names: Vec<_> = tests.iter().map(|test| test.name.as_str()).collect();
        let expected = ["Simple", "BeyondEol", "Reset", "UnmapSingle"].map(|name| format!("plain GetLBAStatus.{name}"));
        assert_eq!(names, expected);
        assert_eq!(tests[2].outcome, Outcome::Passed);
        assert_eq!(tests[0].outcome, Outcome::Passed);
        assert!(matches!(&tests[1].outcome, Outcome::Failed(said) if said.contains("should have failed")));
        assert!(matches!(&tests[3].outcome, Outcome::Skipped(said) if said.contains("fully provisioned")));
        assert_eq!(total(OUTPUT), Some(4));
    }

    #[test]
    fn a_run_that_was_cut_off_has_no_sum() {
        let cut = OUTPUT.split("Run Summary").next().unwrap_or_default();
        assert_eq!(total(cut), None);
    }
}
