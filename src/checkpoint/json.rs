//! JSON of strangers: what of it may stand in memory, and in a message.

use std::fmt::{self, Display, Write};
use std::path::Path;

use serde::Deserialize;

use crate::regular::RegularFile;
use crate::{Error, Result};

/// Texts beyond this size are refused: the largest index of a public checkpoint has less than a megabyte, the largest header a few.
pub(crate) const MAX_BYTES: u64 = 64 << 20;

/// Strings beyond this size are refused: parsers repeat the ones that they did not expect, up to six times as long.
const MAX_STRING: usize = 32 << 10;

/// Bytes of a name that a message repeats; no public checkpoint has a longer one.
const MAX_NAME: usize = 160;

/// Bytes of a parser's message.
const MAX_MESSAGE: usize = 500;

/// The text of a JSON file.
///
/// # Errors
/// [`Error::File`].
pub(super) fn read(path: &Path) -> Result<String> {
    let file = RegularFile::open(path)?;
    if file.bytes() > MAX_BYTES {
        return Err(Error::file(path, format!("{} bytes: expected at most {MAX_BYTES}", file.bytes())));
    }
    let text = file.read(0, file.bytes() as usize)?;
    String::from_utf8(text).map_err(|e| Error::file(path, format!("not UTF-8: {}", e.utf8_error())))
}

/// Parses a file's text.
pub(super) fn parse<'t, T: Deserialize<'t>>(text: &'t str) -> Result<T, String> {
    if let Some(at) = long_string(text.as_bytes()) {
        return Err(format!("expected strings of at most {MAX_STRING} bytes, found a longer one at byte {at}"));
    }
    serde_json::from_str(text).map_err(message)
}

/// Where a string begins that is too long.
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

/// A name, or another part of a stranger's text, cut where it is long.
pub(crate) fn brief(what: impl Display) -> String {
    cut(what, MAX_NAME)
}

/// A parser's message, cut where it is long.
pub(crate) fn message(what: impl Display) -> String {
    cut(what, MAX_MESSAGE)
}

/// What is displayed, its first bytes only: no more than these are ever in memory.
fn cut(what: impl Display, most: usize) -> String {
    struct Cut(String, usize);
    impl Write for Cut {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let room = self.1 - self.0.len();
            if text.len() <= room {
                self.0.push_str(text);
                return Ok(());
            }
            let end = (0..=room).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            self.0.push_str(&text[..end]);
            Err(fmt::Error)
        }
    }
    let mut cut = Cut(String::new(), most);
    if write!(cut, "{what}").is_err() {
        cut.0.push('…');
    }
    cut.0
}

/// A list of which the first entries are shown.
pub(crate) fn some_of<T: Display>(entries: impl IntoIterator<Item = T>, separator: &str) -> String {
    const SOME: usize = 16;
    let mut text = String::new();
    let mut more = 0usize;
    for (i, entry) in entries.into_iter().enumerate() {
        if i >= SOME {
            more += 1;
            continue;
        }
        let _ = write!(text, "{}{}", if i == 0 { "" } else { separator }, message(entry));
    }
    if more > 0 {
        let _ = write!(text, "{separator}and {more} more");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_is_cut() {
        assert_eq!(brief("short"), "short");
        let long = brief("é".repeat(1000));
        assert_eq!((long.chars().count(), long.len()), (81, 163));
        assert_eq!(some_of(["a", "b"], ", "), "a, b");
        assert!(some_of(0..18, "; ").ends_with("; 15; and 2 more"));
        assert_eq!(some_of(Vec::<String>::new(), ", "), "");
    }

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
