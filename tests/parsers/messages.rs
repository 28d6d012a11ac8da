//! The messages that a parser's source holds, so that a corpus can be shown to reach each of them.

/// A message with gaps: the texts between them.
#[derive(Debug, Clone, PartialEq)]
pub struct Message(Vec<String>);

impl Message {
    /// Of the literal of a source.
    fn new(literal: &str) -> Self {
        let (mut parts, mut part) = (Vec::new(), String::new());
        let mut rest = literal.chars().peekable();
        while let Some(c) = rest.next() {
            match c {
                '{' if rest.peek() == Some(&'{') => part.extend(rest.next()),
                '}' if rest.peek() == Some(&'}') => part.extend(rest.next()),
                '{' => {
                    parts.push(std::mem::take(&mut part));
                    rest.by_ref().find(|&c| c == '}');
                }
                c => part.push(c),
            }
        }
        parts.push(part);
        Message(parts)
    }

    /// Whether a text holds the message's parts, in their order.
    fn is_in(&self, text: &str) -> bool {
        let mut rest = text;
        self.0.iter().all(|part| match rest.find(part.as_str()) {
            Some(at) => {
                rest = &rest[at + part.len()..];
                true
            }
            None => false,
        })
    }

    fn shown(&self) -> String {
        self.0.join("{}")
    }
}

/// The messages of a source: literals of several words outside of comments and tests.
pub fn messages(source: &str) -> Vec<Message> {
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let (mut found, mut rest) = (Vec::new(), source);
    while let Some(at) = rest.find(['"', '/', '\'']) {
        let (sign, behind) = (rest.as_bytes()[at], &rest[at + 1..]);
        rest = match sign {
            b'/' if behind.starts_with('/') => behind.split_once('\n').map_or("", |(_, next)| next),
            b'\'' if behind.starts_with("\"'") => &behind[2..],
            b'"' => {
                let mut literal = String::new();
                let mut chars = behind.char_indices();
                loop {
                    match chars.next() {
                        Some((_, '\\')) => match chars.next() {
                            Some((_, '\n')) => {
                                // The rest of a line that goes on behind spaces.
                                let rest = chars.as_str();
                                let skip = rest.len() - rest.trim_start().len();
                                chars.by_ref().take(skip).for_each(drop);
                                if skip == 0 {
                                    continue;
                                }
                            }
                            Some((_, c)) => literal.push(c),
                            None => break,
                        },
                        Some((_, '"')) | None => break,
                        Some((_, c)) => literal.push(c),
                    }
                }
                // Names of files and fields, and separators of lists, are no messages.
                if literal.contains(' ') && literal.contains(char::is_alphabetic) {
                    found.push(Message::new(&literal));
                }
                chars.as_str()
            }
            _ => behind,
        };
    }
    found.dedup();
    found
}

/// Asserts that the texts contain each message of the sources, except those that are named.
///
/// A text with a longer message, such as `metadata {} occurs twice`, does not count for one whose
/// parts it holds, such as `{} occurs twice`.
#[track_caller]
pub fn all_reached(sources: &[&str], texts: &[String], but: &[&str]) {
    let messages: Vec<Message> = sources.iter().flat_map(|source| messages(source)).collect();
    assert!(messages.len() > 1, "no messages found");
    for name in but {
        assert!(messages.iter().any(|m| m.shown().contains(name)), "{name} is no message any more");
    }
    let longer = |message: &Message| -> Vec<&Message> {
        messages.iter().filter(|other| *other != message && message.is_in(&other.0.join("X"))).collect()
    };
    let missing: Vec<String> = messages
        .iter()
        .filter(|message| !but.iter().any(|name| message.shown().contains(name)))
        .filter(|message| {
            let longer = longer(message);
            !texts.iter().any(|text| message.is_in(text) && !longer.iter().any(|other| other.is_in(text)))
        })
        .map(Message::shown)
        .collect();
    assert!(missing.is_empty(), "no input reaches:\n{}", missing.join("\n"));
    println!("{} messages, each reached", messages.len());
}

#[test]
fn messages_of_a_source() {
    let source = r#"
        // "no message of a comment"
        let c = '"'; let path = "a.b"; let text = format!("tensor {name}: expected {n} \"bytes\"");
        let long = "one sentence \
                    in two lines {{}}"; /* */ let x = 1 / 2;
        #[cfg(test)] mod tests { const A: &str = "not here"; }
    "#;
    let found: Vec<String> = messages(source).iter().map(Message::shown).collect();
    assert_eq!(found, ["tensor {}: expected {} \"bytes\"", "one sentence in two lines {}"]);
    let message = Message::new("tensor {name}: expected {n} bytes");
    assert!(message.is_in("a file: tensor q: expected 3 bytes, found 4"));
    assert!(!message.is_in("tensor q: found 4 bytes, expected 3"));
    let two = r#"f("{a} occurs twice"); f("name {a} occurs twice");"#;
    let reached = |texts: &[&str]| {
        let texts: Vec<String> = texts.iter().map(|t| t.to_string()).collect();
        std::panic::catch_unwind(|| all_reached(&[two], &texts, &[])).is_ok()
    };
    assert!(reached(&["name q occurs twice", "q occurs twice"]));
    assert!(!reached(&["name q occurs twice"]) && !reached(&["q occurs twice"]));
}
