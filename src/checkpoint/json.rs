//! JSON from untrusted files: limits on memory and on what messages repeat.

use std::borrow::Cow;
use std::path::Path;

use serde::Deserialize;

use super::explain;
use crate::regular::RegularFile;
pub(crate) use crate::shown::{brief, message, some_of};
use crate::{Error, Result};

/// Longer texts are refused: public indexes have less than a megabyte, public headers a few.
pub(crate) const MAX_BYTES: u64 = 64 << 20;

const BYTE_ORDER_MARK: char = '\u{feff}';

/// Longer strings are refused: parsers repeat unexpected ones in messages, up to six times as long.
const MAX_STRING: usize = 32 << 10;

/// The text of a JSON file, without a byte-order mark.
///
/// # Errors
/// [`Error::File`].
pub(super) fn read(path: &Path) -> Result<String> {
    let file = RegularFile::open(path)?;
    if file.bytes() > MAX_BYTES {
        return Err(Error::file(path, format!("{} bytes: expected at most {MAX_BYTES}", file.bytes())));
    }
    let text = file.read(0, file.bytes() as usize)?;
    if let Some(what) = explain::not_json(&text) {
        return Err(Error::file(path, format!("not a JSON text: {what}")));
    }
    let mut text = String::from_utf8(text).map_err(|e| Error::file(path, format!("not UTF-8: {}", e.utf8_error())))?;
    // Some editors write one.
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len_utf8());
    }
    Ok(text)
}

/// Parses a file's text.
pub(super) fn parse<'t, T: Deserialize<'t>>(text: &'t str) -> Result<T, String> {
    if let Some(at) = long_string(text.as_bytes()) {
        return Err(format!("expected strings of at most {MAX_STRING} bytes, found a longer one at byte {at}"));
    }
    serde_json::from_str(text).map_err(message)
}

/// Python's words for numbers that JSON does not have.
pub(super) const NON_FINITE: [&str; 3] = ["NaN", "-Infinity", "Infinity"];

/// The text with Python's NaN, Infinity and -Infinity as strings.
pub(super) fn quoted_non_finite(text: &str) -> Cow<'_, str> {
    if !NON_FINITE.iter().any(|word| text.contains(word)) {
        return Cow::Borrowed(text);
    }
    let mut quoted = String::with_capacity(text.len() + 64);
    let (mut rest, mut inside, mut escaped) = (text, false, false);
    while let Some(c) = rest.chars().next() {
        let word = NON_FINITE.iter().find(|word| !inside && rest.starts_with(**word));
        let taken = word.map_or(c.len_utf8(), |word| word.len());
        if word.is_some() {
            quoted.extend(["\"", &rest[..taken], "\""]);
        } else {
            quoted.push_str(&rest[..taken]);
            inside ^= c == '"' && !escaped;
            escaped = inside && c == '\\' && !escaped;
        }
        rest = &rest[taken..];
    }
    Cow::Owned(quoted)
}

/// Where a string that is too long begins.
fn long_string(text: &[u8]) -> Option<usize> {
    let mut opened = None;
    let mut escaped = false;
    for (at, byte) in text.iter().enumerate() {
        match (opened, byte) {
            (None, b'"') => opened = Some(at),
            (None, _) => {}
            (Some(from), _) if at - from > MAX_STRING => return Some(from),
            (Some(_), _) if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(_), b'"') => opened = None,
            (Some(_), _) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_have_a_largest_size() {
        let of = |n: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(n));
        assert_eq!(long_string(of(MAX_STRING - 1).as_bytes()), None);
        assert_eq!(long_string(of(MAX_STRING + 1).as_bytes()), Some(5));
        // Many short ones, with quotes and backslashes in them.
        assert_eq!(long_string(r#""a\"\\","#.repeat(MAX_STRING).as_bytes()), None);
        assert_eq!(
            parse::<serde_json::Value>(&of(MAX_STRING + 1)),
            Err("expected strings of at most 32768 bytes, found a longer one at byte 5".into())
        );
    }
}
