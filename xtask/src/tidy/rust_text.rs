//! Rust source as lines of code and of comments: enough of a lexer that no rule is fooled by a string.

/// One line of a Rust file, taken apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Line {
    /// The code, with what is inside of strings and characters left out.
    pub(super) code: String,
    /// The text of comments, doc comments too, without their slashes.
    pub(super) comment: String,
}

/// Takes a Rust file apart, line by line.
pub(super) fn lines(source: &str) -> Vec<Line> {
    let mut lexer = Lexer { rest: source, lines: vec![Line::default()] };
    while !lexer.rest.is_empty() {
        lexer.step();
    }
    lexer.lines
}

/// Whether `word` occurs in `text` with no letter, digit or underscore beside it.
pub(super) fn has_word(text: &str, word: &str) -> bool {
    words(text).any(|found| found == word)
}

/// The words of `text`: runs of letters, digits and underscores.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !is_word(c)).filter(|word| !word.is_empty())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

struct Lexer<'a> {
    rest: &'a str,
    lines: Vec<Line>,
}

impl<'a> Lexer<'a> {
    /// Consumes the next token, or one character of code.
    fn step(&mut self) {
        if let Some(comment) = self.rest.strip_prefix("//") {
            let end = comment.find('\n').unwrap_or(comment.len());
            self.comment(&comment[..end]);
            self.rest = &comment[end..];
        } else if self.rest.starts_with("/*") {
            self.block_comment();
        } else if let Some(hashes) = raw_string_hashes(self.rest) {
            self.raw_string(hashes);
        } else if self.rest.starts_with('"') {
            self.quoted('"');
        } else if self.rest.starts_with('\'') && is_character(self.rest) {
            self.quoted('\'');
        } else if self.rest.starts_with(is_word) {
            // Whole words, so that the r of `for"` is not taken for a raw string.
            let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
            let word = self.take(end);
            self.code(word);
        } else {
            let width = self.rest.chars().next().map_or(0, char::len_utf8);
            let character = self.take(width);
            if character == "\n" { self.lines.push(Line::default()) } else { self.code(character) }
        }
    }

    fn block_comment(&mut self) {
        let (mut depth, mut end) = (0_usize, 0);
        while end < self.rest.len() {
            let rest = &self.rest.as_bytes()[end..];
            if rest.starts_with(b"/*") {
                depth += 1;
                end += 2;
            } else if rest.starts_with(b"*/") {
                depth -= 1;
                end += 2;
                if depth == 0 {
                    break;
                }
            } else {
                end += 1;
            }
        }
        // Both ends of the comment are ASCII, or the end of the text.
        let text = self.take(end);
        for (index, line) in text.split('\n').enumerate() {
            if index > 0 {
                self.lines.push(Line::default());
            }
            self.comment(line);
        }
    }

    /// A raw string whose prefix (`r`, `br`, `cr`) is next, with this many `#`.
    fn raw_string(&mut self, hashes: usize) {
        let terminator = format!("\"{}", "#".repeat(hashes));
        let start = self.rest.find('"').map_or(self.rest.len(), |quote| quote + 1);
        let end = self.rest[start..].find(&terminator).map_or(self.rest.len(), |at| start + at + terminator.len());
        self.literal(end);
    }

    fn quoted(&mut self, quote: char) {
        let mut characters = self.rest.char_indices().skip(1);
        while let Some((at, character)) = characters.next() {
            if character == '\\' {
                characters.next();
            } else if character == quote {
                return self.literal(at + 1);
            }
        }
        self.literal(self.rest.len());
    }

    /// Consumes a literal; of its text only the line breaks count.
    fn literal(&mut self, end: usize) {
        let text = self.take(end);
        self.code("\"");
        for _ in text.matches('\n') {
            self.lines.push(Line::default());
        }
        self.code("\"");
    }

    fn take(&mut self, end: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn code(&mut self, text: &str) {
        if let Some(line) = self.lines.last_mut() {
            line.code.push_str(text);
        }
    }

    fn comment(&mut self, text: &str) {
        if let Some(line) = self.lines.last_mut() {
            line.comment.push_str(text);
        }
    }
}

/// The number of `#` if `text` begins with a raw string.
fn raw_string_hashes(text: &str) -> Option<usize> {
    let after = ["r", "br", "cr"].iter().find_map(|prefix| text.strip_prefix(prefix))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// Whether the quote that `text` begins with opens a character, not a lifetime.
fn is_character(text: &str) -> bool {
    let mut characters = text.chars().skip(1);
    match (characters.next(), characters.next()) {
        (Some('\\'), _) => true,
        (Some(_), Some(second)) => second == '\'',
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(source: &str) -> Vec<String> {
        lines(source).into_iter().map(|line| line.code).collect()
    }

    fn comments(source: &str) -> Vec<String> {
        lines(source).into_iter().map(|line| line.comment).collect()
    }

    #[test]
    fn comments_and_code_are_told_apart() {
        assert_eq!(code("let a = 1; // unsafe\n/// unsafe\nb"), ["let a = 1; ", "", "b"]);
        assert_eq!(comments("let a = 1; // one\n/// two\nb"), [" one", "/ two", ""]);
    }

    #[test]
    fn strings_are_left_out_of_the_code() {
        assert_eq!(code(r#"f("unsafe // \" no", x)"#), [r#"f("", x)"#]);
        assert_eq!(code("f(r#\"unsafe \" // \"#, x)"), ["f(\"\", x)"]);
        assert_eq!(code("f(br\"unsafe\", x)"), ["f(\"\", x)"]);
        assert_eq!(code("f(\"one\ntwo\", x)"), ["f(\"", "\", x)"]);
    }

    #[test]
    fn a_word_that_ends_like_a_raw_prefix_is_no_raw_string() {
        assert_eq!(code("for\"a\\\"b\" c"), ["for\"\" c"]);
    }

    #[test]
    fn lifetimes_are_no_characters() {
        assert_eq!(code("fn f<'a>(x: &'a str) { '\"'; '\\''; 'x' }"), ["fn f<'a>(x: &'a str) { \"\"; \"\"; \"\" }"]);
    }

    #[test]
    fn block_comments_nest_and_span_lines() {
        assert_eq!(code("a /* b /* c */ \n d */ e"), ["a ", " e"]);
        assert_eq!(comments("a /* I7 \n I8 */ e"), ["/* I7 ", " I8 */"]);
        assert_eq!(code("a /* never ends \u{fc}"), ["a "]);
    }

    #[test]
    fn words_have_bounds() {
        assert!(has_word("unsafe { x }", "unsafe"));
        assert!(!has_word("forbid(unsafe_code)", "unsafe"));
        assert!(!has_word("", "unsafe"));
    }
}
