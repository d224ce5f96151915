//! The keys of a target. They belong to one opened target, and are never printed.

use std::collections::BTreeMap;
use std::fmt;

/// Names and values as Longhorn's secrets have them, like `AWS_ACCESS_KEY_ID`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials(BTreeMap<String, String>);

impl Credentials {
    /// Out of pairs.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(pairs.into_iter().collect())
    }

    /// The value of a name; None when it is empty, too.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_printed() {
        let pair = ("AWS_SECRET_ACCESS_KEY".to_owned(), "very secret".to_owned());
        let printed = format!("{:?} {:#?}", Credentials::new([pair.clone()]), Credentials::new([pair]));
        assert!(printed.contains("AWS_SECRET_ACCESS_KEY") && !printed.contains("very"), "{printed}");
    }
}
