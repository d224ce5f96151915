//! Names that people give to nodes, stores and volumes.

/// The longest name, in characters: as long as a host name's label.
const LONGEST: usize = 63;

/// Whether `name` can be used; if not, why.
///
/// Letters, digits, '.', '_' and '-', the first a letter or a digit: names end up in tables, in log lines and on
/// command lines, where anything else needs quoting. A name that reads as a UUID is refused, because it could be
/// taken for another object's identity.
pub(crate) fn check(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a name is needed".to_owned());
    }
    if name.chars().count() > LONGEST {
        return Err(format!("`{name}` is longer than {LONGEST} characters"));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !name.chars().all(good) || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(format!(
            "`{}` has characters other than letters, digits, '.', '_' and '-', or starts with one of the last three",
            name.escape_debug()
        ));
    }
    if uuid::Uuid::try_parse(name).is_ok() {
        return Err(format!("`{name}` reads as a UUID, not as a name"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn ordinary_names_pass() {
        for name in ["a", "db-1", "node.example", "Volume_7", &"x".repeat(63)] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn what_would_need_quoting_or_mislead_is_refused() {
        let long = "x".repeat(64);
        for name in ["", "a b", "../a", "-a", ".hidden", "ä", "a\n", &long, "6f1b7c3e-95a2-4b5e-9f0a-111111111111"] {
            assert!(check(name).is_err(), "{name:?}");
        }
    }
}
