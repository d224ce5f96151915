//! The last line of defence: what reads like a secret in a text that others wrote is left out of a bundle.

/// What stands in its place.
const GONE: &str = "[left out]";
const WORDS: [&str; 6] = ["secret", "password", "passwd", "passphrase", "token", "private_key"];

/// A text without the values behind words like `secret=`, and without private keys.
pub(super) fn redact(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    let mut clean = String::with_capacity(text.len());
    let mut in_key = false;
    for line in text.split_inclusive('\n') {
        let begins = line.contains("-----BEGIN") && line.contains("PRIVATE KEY");
        if begins || in_key {
            in_key = !line.contains("-----END");
            clean.push_str(&format!("{GONE}\n"));
        } else {
            redact_line(line, &mut clean);
        }
    }
    clean.into_bytes()
}

fn redact_line(line: &str, clean: &mut String) {
    let mut rest = line;
    while let Some((before, value)) = split_at_value(rest) {
        clean.push_str(before);
        clean.push_str(GONE);
        rest = &value[end_of_value(value)..];
    }
    clean.push_str(rest);
}

/// What is before a value, with its word and sign, and the value with all after it.
fn split_at_value(line: &str) -> Option<(&str, &str)> {
    let lower = line.to_ascii_lowercase();
    let ends = WORDS.iter().flat_map(|word| lower.match_indices(word).map(move |(at, _)| at + word.len()));
    let values = ends.filter_map(|end| {
        // `"secret": "x"`, `secret = x`, `secret=x`.
        let rest = &line[end..];
        let sign = rest.trim_start_matches(['"', '\'', ' ']);
        let value = sign.strip_prefix(['=', ':'])?.trim_start_matches(' ');
        let is_value = !value.trim().is_empty() && !value.starts_with(GONE);
        is_value.then_some(line.len() - value.len())
    });
    let at = values.min()?;
    Some(line.split_at(at))
}

/// A value ends with its quotes; one without, at white space or a comma.
fn end_of_value(value: &str) -> usize {
    match value.chars().next() {
        Some(quote @ ('"' | '\'')) => value[1..].find(quote).map_or(value.trim_end().len(), |at| at + 2),
        _ => value.find(|letter: char| letter.is_whitespace() || letter == ',').unwrap_or(value.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(text: &str) -> String {
        String::from_utf8(redact(text.as_bytes())).expect("text")
    }

    #[test]
    fn values_behind_words_for_secrets_are_left_out() {
        assert_eq!(clean("login user=u secret=hunter2 ok\n"), "login user=u secret=[left out] ok\n");
        assert_eq!(clean("{\"Secret\": \"hunter 2\", \"b\": 1}"), "{\"Secret\": [left out], \"b\": 1}");
        assert_eq!(clean("password: x, token=y\nnext\n"), "password: [left out], token=[left out]\nnext\n");
        assert_eq!(clean("the secret in FILE: no such file\n"), "the secret in FILE: no such file\n");
        assert_eq!(clean("secret=\n"), "secret=\n");
        assert_eq!(clean("secret=\"open\n"), "secret=[left out]\n");
    }

    #[test]
    fn private_keys_are_left_out_whole() {
        let text = "a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabcd\n-----END RSA PRIVATE KEY-----\nb\n";
        let cleaned = clean(text);
        assert!(cleaned.starts_with("a\n") && cleaned.ends_with("b\n"), "{cleaned}");
        assert!(!cleaned.contains("MIIE") && !cleaned.contains("abcd"), "{cleaned}");
    }

    #[test]
    fn what_is_no_text_does_no_harm() {
        assert_eq!(redact(b"\xff\xfe ok\n"), "\u{fffd}\u{fffd} ok\n".as_bytes());
    }
}
