//! Values as YAML 1.2, whose plain subset is small enough to write by hand.
//!
//! Keys are words. A string is written plain only where no reader of any version takes it for something else (`no`, `1e3`, `~`);
//! all others are in double quotes as JSON has them, which YAML reads alike.

use serde_json::Value;

/// A document, with its end of line.
pub(crate) fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block(value, 0, &mut text),
        Value::Array(list) if !list.is_empty() => block(value, 0, &mut text),
        _ => {
            text.push_str(&inline(value));
            text.push('\n');
        }
    }
    text
}

/// A map or a list with something in it, from the start of a line.
fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                text.push_str(&format!("{indent}{}:", scalar(key)));
                under_key(value, depth, text);
            }
        }
        Value::Array(list) => {
            for value in list {
                text.push_str(&format!("{indent}-"));
                item(value, depth, text);
            }
        }
        _ => {}
    }
}

fn under_key(value: &Value, depth: usize, text: &mut String) {
    if is_block(value) {
        text.push('\n');
        block(value, depth + 1, text);
    } else {
        text.push_str(&format!(" {}\n", inline(value)));
    }
}

/// After the dash of a list: a map begins on the same line.
fn item(value: &Value, depth: usize, text: &mut String) {
    if !is_block(value) {
        return text.push_str(&format!(" {}\n", inline(value)));
    }
    let mut inner = String::new();
    block(value, depth + 1, &mut inner);
    // In place of the two spaces that the first line begins with beyond this depth.
    text.push(' ');
    text.push_str(&inner[2 * (depth + 1)..]);
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        // Numbers, flags, null, `[]` and `{}` are as in JSON.
        other => other.to_string(),
    }
}

fn scalar(text: &str) -> String {
    if is_plain(text) { text.to_owned() } else { Value::from(text).to_string() }
}

/// Whether every reader takes it for this very string.
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 8] = ["true", "false", "yes", "no", "on", "off", "null", "y"];
    let first_is_letter = text.starts_with(|first: char| first.is_ascii_alphabetic());
    let harmless = |letter: char| letter.is_ascii_alphanumeric() || "-_./ ".contains(letter);
    let word = WORDS.iter().any(|word| word.eq_ignore_ascii_case(text)) || text.eq_ignore_ascii_case("n");
    first_is_letter && text.chars().all(harmless) && !text.ends_with(' ') && !word
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn maps_and_lists_nest() {
        let value = json!({
            "name": "web",
            "empty": {}, "none": [], "absent": null,
            "members": [{"node": "a", "tags": ["x", "y-1"]}, {"node": "b", "tags": []}],
            "lists": [[1, 2], [true]],
        });
        let expected = "\
absent: null
empty: {}
lists:
  - - 1
    - 2
  - - true
members:
  - node: a
    tags:
      - x
      - y-1
  - node: b
    tags: []
name: web
none: []
";
        assert_eq!(to_yaml(&value), expected);
        assert_eq!(to_yaml(&json!([])), "[]\n");
        assert_eq!(to_yaml(&json!([{"a": 1}])), "- a: 1\n");
    }

    #[test]
    fn strings_that_could_be_something_else_are_quoted() {
        for text in [
            "",
            "no",
            "Yes",
            "null",
            "1",
            "1e3",
            "-",
            "- a",
            "a: b",
            "#x",
            "~",
            "a\nb",
            "ä",
            "x ",
            "0x1f",
            "10.0.0.1:9500",
        ] {
            assert_eq!(to_yaml(&json!(text)), format!("{}\n", json!(text)), "{text}");
        }
        for text in ["in sync", "nvmf", "a-b_c.d", "none of them", "v1/x"] {
            assert_eq!(to_yaml(&json!(text)), format!("{text}\n"));
        }
    }
}
