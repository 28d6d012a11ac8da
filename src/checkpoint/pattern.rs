//! The regular expressions that PEFT takes as keys of `rank_pattern` and `alpha_pattern`.
//!
//! PEFT asks Python's `re.match(rf"(.*\.)?({key})$", name)`. Syntax that Python and other engines
//! read differently, or only one of them has, is refused.

use regex_lite::{Regex, RegexBuilder};

/// The longest key that is not a plain name.
const MAX_KEY: usize = 512;

/// The most memory of a compiled key, in bytes.
const MAX_COMPILED: usize = 16 << 10;

/// The deepest nesting of groups.
const MAX_DEPTH: u32 = 32;

/// Only Python has possessive quantifiers; only Rust's regex has named classes and word edges.
const OTHERWISE: [&str; 7] = ["*+", "++", "?+", "}+", "[:", "\\<", "\\>"];

/// A key, ready to be compared with names.
#[derive(Debug)]
pub(super) enum Pattern {
    /// A name, whose dots match any character: most keys, which take only their text's memory.
    Name(String),
    Expression(Regex),
}

impl Pattern {
    /// Reads a key.
    pub fn parse(key: &str) -> Result<Self, String> {
        if key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.') {
            return Ok(Pattern::Name(key.into()));
        }
        if key.len() > MAX_KEY {
            return Err(format!("it has more than {MAX_KEY} bytes"));
        }
        if let Some(part) = OTHERWISE.iter().find(|part| key.contains(**part)) {
            return Err(format!("{part} is read differently by regular expressions of other libraries"));
        }
        let whole = format!(r"^(?:.*\.)?(?:{key})$");
        let mut builder = RegexBuilder::new(&whole);
        let expression = builder.size_limit(MAX_COMPILED).nest_limit(MAX_DEPTH).build();
        expression.map(Pattern::Expression).map_err(|e| e.to_string())
    }

    /// Whether a module's name, or its end behind a dot, matches the key.
    pub fn matches(&self, name: &str) -> bool {
        let key = match self {
            Pattern::Expression(expression) => return expression.is_match(name),
            Pattern::Name(key) => key,
        };
        let mut rest = name.chars();
        let same =
            key.bytes().rev().all(|k| rest.next_back().is_some_and(|c| c != '\n' && (k == b'.' || c == char::from(k))));
        let parents = rest.as_str();
        same && (parents.is_empty() || parents.ends_with('.') && !parents.contains('\n'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers are those of Python's `re.match(rf"(.*\.)?({key})$", name)`.
    #[test]
    fn keys_as_python_matches_them() {
        for (key, name, found) in [
            ("q_proj", "model.layers.0.q_proj", true),
            ("q_proj", "q_proj", true),
            ("q_proj", "model.my_q_proj", false),
            ("q_proj", "model.q_proj.x", false),
            ("layers.0.q", "model.layers.0.q", true),
            ("layers.0.q", "model.layers.x0.q", false),
            ("layers.0.q", "layersx0.q", true),
            ("^model.layers.0.q", "model.layers.0.q", true),
            ("^layers.0.q", "model.layers.0.q", false),
            (r"layers\.(0|1[0-9])\.q_proj", "m.layers.12.q_proj", true),
            (r"layers\.(0|1[0-9])\.q_proj", "m.layers.2.q_proj", false),
            (r".*\.[qk]_proj", "a.b.k_proj", true),
            (r".*\.[^qk]_proj", "a.b.k_proj", false),
            (r"layers\.\d+\.(?:q|v)_proj", "layers.07.v_proj", true),
            (r"layers\.\d{2,3}\.q", "layers.7.q", false),
            (r"layers\.\d{2,3}\.q", "layers.777.q", true),
            ("q|k", "m.k", true),
            ("q|k", "m.kk", false),
            ("(q|k)$", "m.q", true),
            ("q$k", "m.q", false),
            (r"\w+?_proj", "up_proj", true),
            ("", "m.", true),
            ("", "m", false),
            ("(a*)*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac", false),
            ("[]x]+", "m.]x", true),
            (r"[\d.]+", "1.2", true),
            ("é", "m.é", true),
        ] {
            let pattern = Pattern::parse(key).unwrap_or_else(|e| panic!("{key}: {e}"));
            assert_eq!(pattern.matches(name), found, "{key} {name}");
        }
    }

    #[test]
    fn what_is_not_understood() {
        for (key, said) in [
            ("(?=a)", "look-around is not supported"),
            ("*a", "uncounted repetition operator must be applied to a sub-expression"),
            (r"\d{,1}", "expected decimal number, but found no digits"),
            ("a*+", "*+ is read differently by regular expressions of other libraries"),
            ("[[:alpha:]]", "[: is read differently by regular expressions of other libraries"),
            ("(((){999}){999}){999}", "compiled regex exceeded size limit"),
            (r"a\1", "backreferences are not supported"),
            (r"a\Z", "unrecognized escape sequence"),
            (&"é".repeat(300), "it has more than 512 bytes"),
        ] {
            assert_eq!(Pattern::parse(key).err().as_deref(), Some(said), "{key}");
        }
        assert!(Pattern::parse(&format!("{}a{}", "(".repeat(99), ")".repeat(99))).is_err());
    }
}
