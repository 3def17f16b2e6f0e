//! A Rust file taken apart into code and comments.
//!
//! Rules look for words. To find `todo!` where it is called, and not where a text or a comment speaks of it,
//! the source is read once and split: `code` has comments and the inside of literals replaced by blanks,
//! `comments` the rest replaced by blanks. Both keep every line and column in place.

use std::path::{Path, PathBuf};

/// What a file is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The library or a binary.
    Product,
    /// Tests, benchmarks, examples.
    Test,
    /// A build script.
    Build,
}

/// A Rust file, taken apart.
#[derive(Debug)]
pub struct Source {
    /// Where it is, from the root of the checkout.
    pub path: PathBuf,
    /// What it is compiled for; parts of a product file may be for tests all the same.
    pub kind: Kind,
    /// As it is.
    pub text: String,
    /// Without comments and the inside of literals.
    pub code: String,
    /// Nothing but the comments.
    pub comments: String,
    /// For each line, whether it is compiled for tests only.
    test_lines: Vec<bool>,
}

impl Source {
    /// Takes a file apart.
    pub fn new(path: &Path, text: &str, kind: Kind) -> Self {
        let (code, comments) = split(text);
        let test_lines = match kind {
            Kind::Test => vec![true; text.lines().count() + 1],
            Kind::Product | Kind::Build => test_lines(&code),
        };
        Self {
            path: path.to_owned(),
            kind,
            text: text.to_owned(),
            code,
            comments,
            test_lines,
        }
    }

    /// Whether a line, counted from 1, is compiled for tests only.
    pub fn is_test(&self, line: usize) -> bool {
        self.test_lines
            .get(line.saturating_sub(1))
            .copied()
            .unwrap_or_default()
    }

    /// The line, from 1, that a byte of the file is in.
    pub fn line_of(&self, at: usize) -> usize {
        line_of(&self.text, at)
    }
}

/// The line, from 1, that a byte of a text is in.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// Where a word or path stands by itself, not as a part of a longer one.
pub(crate) fn occurrences<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_name = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let (first_is_name, last_is_name) = (is_name(word.as_bytes().first()), is_name(word.as_bytes().last()));
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = at.checked_sub(1).and_then(|index| code.as_bytes().get(index));
        let after = code.as_bytes().get(at + word.len());
        !(first_is_name && is_name(before) || last_is_name && is_name(after))
    })
}

/// The end of the block that opens with the first brace at or after `from`: the byte after its closing brace.
pub(crate) fn block_end(code: &str, from: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// Whether an attribute makes what follows a test: `cfg(test)`, alone or as one of several conditions.
pub(crate) fn is_test_attribute(attribute: &str) -> bool {
    let compact: String = attribute
        .chars()
        .filter(|character| !character.is_whitespace())
        .collect();
    ["cfg(test)", "cfg(all(test", "cfg(any(test"]
        .iter()
        .any(|condition| compact.starts_with(condition))
}

fn test_lines(code: &str) -> Vec<bool> {
    let mut lines = vec![false; code.lines().count() + 1];
    for (at, _) in code.match_indices("#[") {
        let Some(attribute) = code.get(at + 2..) else {
            continue;
        };
        if !is_test_attribute(attribute) {
            continue;
        }
        let opens = code[at..].find('{').map(|offset| at + offset);
        let ends = code[at..].find(';').map(|offset| at + offset);
        let end = match (opens, ends) {
            (Some(brace), Some(semicolon)) if semicolon < brace => semicolon,
            (Some(brace), _) => block_end(code, brace).unwrap_or(code.len()),
            (None, Some(semicolon)) => semicolon,
            (None, None) => code.len(),
        };
        for line in lines
            .iter_mut()
            .take(line_of(code, end))
            .skip(line_of(code, at) - 1)
        {
            *line = true;
        }
    }
    lines
}

/// Code without comments and literals, and comments without code; both as long as the text.
fn split(text: &str) -> (String, String) {
    let bytes = text.as_bytes();
    let mut code = vec![b' '; bytes.len()];
    let mut comments = code.clone();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let rest = &bytes[at..];
        let end = at
            + if rest.starts_with(b"//") {
                rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())
            } else if rest.starts_with(b"/*") {
                block_comment_len(rest)
            } else if let Some(len) = literal_len(bytes, at) {
                // The quotes stay, so that an empty literal can be told from a full one by looking at the
                // text.
                code[at] = b'"';
                code[at + len - 1] = b'"';
                at += len;
                continue;
            } else {
                code[at] = byte;
                at += 1;
                continue;
            };
        comments[at..end].copy_from_slice(&bytes[at..end]);
        at = end;
    }
    for (at, _) in text.match_indices('\n') {
        code[at] = b'\n';
        comments[at] = b'\n';
    }
    (into_text(code), into_text(comments))
}

fn into_text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Block comments nest.
fn block_comment_len(text: &[u8]) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < text.len() {
        if text[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// The length of the string or character literal that begins at `at`, prefix included.
fn literal_len(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    if rest[0] == b'\'' {
        return character_len(rest);
    }
    let in_name = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if rest[0] != b'"' && in_name {
        return None;
    }
    let prefix = [&b"br"[..], b"cr", b"b", b"c", b"r", b""]
        .into_iter()
        .find(|prefix| {
            let raw = prefix.ends_with(b"r");
            let after = rest.get(prefix.len()..).unwrap_or_default();
            let hashes = if raw { leading_hashes(after) } else { 0 };
            rest.starts_with(prefix) && after.get(hashes) == Some(&b'"')
        })?;
    let after = &rest[prefix.len()..];
    if prefix.ends_with(b"r") {
        let hashes = leading_hashes(after);
        let mut closing = vec![b'"'];
        closing.resize(hashes + 1, b'#');
        let body = &after[hashes + 1..];
        let len = body
            .windows(closing.len())
            .position(|window| window == closing)
            .map_or(body.len(), |found| found + closing.len());
        return Some(prefix.len() + hashes + 1 + len);
    }
    Some(prefix.len() + quoted_len(after))
}

fn leading_hashes(text: &[u8]) -> usize {
    text.iter().take_while(|byte| **byte == b'#').count()
}

/// From the opening quote to the closing one, both included.
fn quoted_len(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// A character literal, or nothing when the quote begins a lifetime.
fn character_len(text: &[u8]) -> Option<usize> {
    if text.get(1) == Some(&b'\\') {
        return text
            .iter()
            .skip(3)
            .position(|byte| *byte == b'\'')
            .map(|found| found + 4);
    }
    // One character of up to four bytes, then the closing quote.
    let character = std::str::from_utf8(text.get(1..text.len().min(5))?)
        .or_else(|error| std::str::from_utf8(&text[1..1 + error.valid_up_to()]))
        .ok()?
        .chars()
        .next()?;
    let len = character.len_utf8();
    (character != '\'' && text.get(1 + len) == Some(&b'\'')).then_some(len + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new(Path::new("file.rs"), text, Kind::Product)
    }

    #[test]
    fn comments_and_literals_are_blanked_in_place() {
        let text = "let a = \"todo!()\"; // dbg!\nlet b = r#\"x\"y\"#; /* /* n */ m */ let c = 'x';";
        let source = source(text);
        assert_eq!(source.code.len(), text.len());
        assert!(!source.code.contains("todo"));
        assert!(!source.code.contains("dbg"));
        assert!(source.comments.contains("dbg!"));
        assert!(source.code.ends_with("let c = \" \";"));
        assert_eq!(source.code.lines().count(), 2);
    }

    #[test]
    fn lifetimes_are_no_characters() {
        let source = source("fn f<'a>(x: &'a str) -> &'a str { x } // 'a'\nlet y = '\\'';let z = '\\n';");
        assert!(source.code.contains("<'a>(x: &'a str)"));
        assert!(source.code.contains("let z = "));
    }

    #[test]
    fn escaped_quotes_do_not_end_a_string() {
        let source = source(r#"let a = "x\"y"; let b = b"\\"; real();"#);
        assert!(source.code.contains("real();"));
        assert!(!source.code.contains('y'));
    }

    #[test]
    fn test_modules_are_found() {
        let source = source("fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n");
        let lines: Vec<bool> = (1..=6).map(|line| source.is_test(line)).collect();
        assert_eq!(lines, [false, true, true, true, true, false]);
    }

    #[test]
    fn words_are_whole() {
        let found: Vec<usize> = occurrences("todo! xtodo! unsafe_code unsafe {", "unsafe").collect();
        assert_eq!(found, [25]);
    }
}
