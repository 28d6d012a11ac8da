//! Foreign text in messages: the beginning of a long text, the first of many entries, and no
//! character that a terminal would act on.

use std::fmt::{self, Display, Write};

/// Bytes of a name that a message repeats; no public checkpoint has a longer one.
#[cfg(feature = "checkpoint")]
const MAX_NAME: usize = 160;

/// Bytes of a parser's message.
const MAX_MESSAGE: usize = 500;

/// A name, or another part of foreign text, cut if it is long.
#[cfg(feature = "checkpoint")]
pub(crate) fn brief(what: impl Display) -> String {
    cut(what, MAX_NAME)
}

/// A parser's message, cut if it is long.
pub(crate) fn message(what: impl Display) -> String {
    cut(what, MAX_MESSAGE)
}

/// The first bytes of what is displayed. The rest is never in memory.
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
    if write!(cut, "{}", escaped(what)).is_err() {
        cut.0.push('…');
    }
    cut.0
}

/// Text of a file, or its path, for printing: control characters, line separators and changes of
/// the writing direction are escaped as in Rust (`\n`, `\u{1b}`). Escapes in the text stay as they
/// are. Width and alignment are ignored.
pub fn escaped(what: impl Display) -> impl Display {
    Escaped(what)
}

struct Escaped<T>(T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escaping<'f, 'b>(&'f mut fmt::Formatter<'b>);
        impl Write for Escaping<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                if text.bytes().all(|b| matches!(b, b' '..=b'~')) {
                    return self.0.write_str(text);
                }
                let mut from = 0;
                for (at, c) in text.char_indices().filter(|(_, c)| is_obeyed(*c)) {
                    self.0.write_str(&text[from..at])?;
                    write!(self.0, "{}", c.escape_default())?;
                    from = at + c.len_utf8();
                }
                self.0.write_str(&text[from..])
            }
        }
        write!(Escaping(f), "{}", self.0)
    }
}

/// Whether a terminal acts on the character instead of showing it.
fn is_obeyed(c: char) -> bool {
    let direction =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || direction || matches!(c, '\u{2028}' | '\u{2029}')
}

/// A list: its first three entries, and how many more there are.
pub fn some_of<T: Display>(entries: impl IntoIterator<Item = T>, separator: &str) -> String {
    const SOME: usize = 3;
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
        // Clauses keep their semicolon, words do not.
        let before = match separator {
            ", " | " and " => " ",
            other => other,
        };
        let _ = write!(text, "{before}and {more} more");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_is_cut() {
        #[cfg(feature = "checkpoint")]
        {
            assert_eq!(brief("short"), "short");
            let long = brief("é".repeat(1000));
            assert_eq!((long.chars().count(), long.len()), (81, 163));
        }
        assert_eq!(message("é".repeat(1000)).len(), 500 + "…".len());
        assert_eq!(some_of(["a", "b", "c"], ", "), "a, b, c");
        assert_eq!(some_of(0..4, "; "), "0; 1; 2; and 1 more");
        assert_eq!(some_of(0..4, " and "), "0 and 1 and 2 and 1 more");
        assert_eq!(some_of((0..50).map(|i| format!("layer {i}")), ", "), "layer 0, layer 1, layer 2 and 47 more");
        assert_eq!(some_of(Vec::<String>::new(), ", "), "");
    }

    #[test]
    fn what_a_terminal_obeys_is_escaped() {
        for (text, shown) in [
            ("plain, größe, 模型, \\ \"q\"", "plain, größe, 模型, \\ \"q\""),
            ("a\nnote: fine\r\tb\0", r"a\nnote: fine\r\tb\u{0}"),
            ("\u{1b}[2Jä\u{9b}31m\u{7f}", r"\u{1b}[2Jä\u{9b}31m\u{7f}"),
            ("a\u{202e}b\u{2066}c\u{200f}d\u{2028}e\u{2029}", r"a\u{202e}b\u{2066}c\u{200f}d\u{2028}e\u{2029}"),
            (r"\u{1b}\n", r"\u{1b}\n"),
            ("", ""),
        ] {
            assert_eq!(escaped(text).to_string(), shown, "{text:?}");
            assert_eq!(message(text), shown);
            assert_eq!(some_of([text, "x"], ", "), format!("{shown}, x"));
            #[cfg(feature = "checkpoint")]
            assert_eq!(brief(text), shown);
        }
        // The escaped text is what is cut.
        assert_eq!(message("\u{1b}".repeat(1000)).len(), 500 + "…".len());
    }
}
