//! Quantities as Kubernetes writes them, as far as sizes of blocks need them: `2097152`, `2Mi`, `2M`.

/// Suffixes and what they multiply with.
const SUFFIXES: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

/// The number of bytes, if the text is a whole number of them.
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| text.strip_suffix(suffix).map(|digits| (digits, *factor)))
        .unwrap_or((text, 1));
    // `parse` takes a sign, which no size has.
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_suffix() {
        for (text, bytes) in [("2097152", 2 << 20), ("16Mi", 16 << 20), ("2M", 2_000_000), ("0", 0), ("1Ki", 1024)] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_none() {
        for text in ["", "Mi", "-1", "+1", "1.5Mi", "1e6", "2 Mi", "99999999999999999999", "18446744073709551615Ki"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
