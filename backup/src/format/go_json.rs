//! JSON as Go's encoder writes it, which is how the store's files are written: byte for byte.

use std::collections::BTreeMap;

use crate::error::{Result, corrupt};

/// Appends a string with its quotes.
pub(super) fn push_string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

/// A string with its quotes.
fn string(text: &str) -> String {
    let mut out = String::new();
    push_string(&mut out, text);
    out
}

/// Appends a map of strings, in the order of its keys; none at all is null.
pub(super) fn push_map(out: &mut String, map: Option<&BTreeMap<String, String>>) {
    let Some(map) = map else {
        out.push_str("null");
        return;
    };
    out.push('{');
    for (index, (key, value)) in map.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        push_string(out, key);
        out.push(':');
        push_string(out, value);
    }
    out.push('}');
}

/// A field that is a JSON string inside of a JSON string. Its bytes stay as they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubled {
    /// The outer string's content, a JSON string.
    inner: String,
    value: String,
}

impl Doubled {
    /// The field with this value.
    pub fn new(value: &str) -> Self {
        Self { inner: string(value), value: value.to_owned() }
    }

    /// The field out of the outer string's content.
    pub(super) fn from_outer(outer: String) -> Result<Self> {
        let value = serde_json::from_str::<String>(&outer)
            .map_err(|_| corrupt(format!("{outer:?} should be a JSON string in a JSON string")))?;
        Ok(Self { inner: outer, value })
    }

    /// What it says.
    pub fn value(&self) -> &str {
        &self.value
    }

    pub(super) fn push(&self, out: &mut String) {
        push_string(out, &self.inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_as_go_does() {
        assert_eq!(string("a<b>&\"\\\n\u{1}\u{2028}é"), r#""a\u003cb\u003e\u0026\"\\\n\u0001\u2028é""#);
        let read: String = serde_json::from_str(&string("a<b>&\"\\\n\u{1}\u{2028}é")).expect("JSON");
        assert_eq!(read, "a<b>&\"\\\n\u{1}\u{2028}é");
    }

    #[test]
    fn a_doubled_field_comes_back_byte_for_byte() {
        for value in ["", "lz4", "a & \"b\"", "back\\slash"] {
            let mut written = String::new();
            Doubled::new(value).push(&mut written);
            let outer: String = serde_json::from_str(&written).expect("JSON");
            let read = Doubled::from_outer(outer).expect("a string in a string");
            assert_eq!(read.value(), value);
            let mut again = String::new();
            read.push(&mut again);
            assert_eq!(again, written);
        }
        let mut written = String::new();
        Doubled::new("lz4").push(&mut written);
        assert_eq!(written, r#""\"lz4\"""#);
    }

    #[test]
    fn a_field_that_is_not_doubled_is_damage() {
        for outer in ["lz4", "", "\"lz4", "7", "\"a\"b"] {
            assert!(Doubled::from_outer(outer.to_owned()).is_err(), "{outer}");
        }
    }
}
