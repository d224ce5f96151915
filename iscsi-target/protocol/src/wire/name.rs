//! iSCSI names (4.2.7).

use alloc::string::String;
use core::fmt;

/// Most bytes of a name (4.2.7.2).
pub const NAME_MAX: usize = 223;

/// A valid iSCSI name in lower case: names that differ in case only are the same (RFC 3722).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    text: String,
}

impl Name {
    /// The name that `text` is; `None` if it is none: not `iqn.`, `eui.` or `naa.`, empty, too long, or with a character
    /// that names do not have.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.to_lowercase();
        let (kind, rest) = text.split_at_checked(4)?;
        let hexadecimal =
            |lengths: &[usize]| lengths.contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_hexdigit());
        // Others than ASCII are letters of some script; what separates, controls or is punctuation is not allowed.
        let allowed =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':') || !c.is_ascii() && c.is_alphanumeric();
        let valid = match kind {
            "iqn." => !rest.is_empty() && rest.chars().all(allowed),
            "eui." => hexadecimal(&[16]),
            "naa." => hexadecimal(&[16, 32]),
            _ => false,
        };
        (valid && text.len() <= NAME_MAX).then_some(Self { text })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_three_kinds_are_valid() {
        for text in [
            "iqn.2001-04.com.example:storage:diskarrays-sn-a8675309",
            "iqn.1993-08.org.debian:01:1234",
            "eui.02004567A425678D",
            "naa.52004567BA64678D",
            "naa.62004567BA64678D0123456789ABCDEF",
        ] {
            assert_eq!(Name::parse(text).unwrap().as_str(), text.to_lowercase());
        }
    }

    #[test]
    fn others_are_not() {
        let long: String = "iqn.".chars().chain(core::iter::repeat_n('a', NAME_MAX - 3)).collect();
        for text in
            ["", "iqn", "iqn.", "nqn.2014-08.org", "eui.12", "naa.x2004567ba64678d", "iqn.a b", "iqn.a\tb", &long]
        {
            assert_eq!(Name::parse(text), None, "{text}");
        }
    }
}
