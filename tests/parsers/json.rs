//! JSON that parsers must refuse: repeated names, numbers beyond every type, texts that are no
//! JSON.

use std::collections::BTreeSet;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::harness::Rng;

/// A value, with objects whose names may occur twice and parts that are printed as they are.
#[derive(Clone, Debug)]
pub enum Json {
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    pub fn parse(text: &str) -> Self {
        fn of(value: Value) -> Json {
            match value {
                Value::Array(values) => Json::List(values.into_iter().map(of).collect()),
                Value::Object(members) => {
                    Json::Object(members.into_iter().map(|(name, v)| (quoted(&name), of(v))).collect())
                }
                other => Json::Text(other.to_string()),
            }
        }
        of(serde_json::from_str(text).unwrap())
    }

    pub fn print(&self) -> String {
        let list = |parts: Vec<String>| parts.join(",");
        match self {
            Json::Text(text) => text.clone(),
            Json::List(values) => format!("[{}]", list(values.iter().map(Json::print).collect())),
            Json::Object(members) => {
                format!("{{{}}}", list(members.iter().map(|(name, v)| format!("{name}:{}", v.print())).collect()))
            }
        }
    }

    fn count(&self) -> usize {
        1 + match self {
            Json::Text(_) => 0,
            Json::List(values) => values.iter().map(Json::count).sum(),
            Json::Object(members) => members.iter().map(|(_, v)| v.count()).sum(),
        }
    }

    /// The value of that number, in the order in which they are printed.
    fn node(&mut self, number: usize) -> Option<&mut Json> {
        fn find<'j>(json: &'j mut Json, left: &mut usize) -> Option<&'j mut Json> {
            if *left == 0 {
                return Some(json);
            }
            *left -= 1;
            match json {
                Json::Text(_) => None,
                Json::List(values) => values.iter_mut().find_map(|v| find(v, left)),
                Json::Object(members) => members.iter_mut().find_map(|(_, v)| find(v, left)),
            }
        }
        find(self, &mut { number })
    }

    /// Changes one value, or the members of one object or list.
    pub fn mutate(&mut self, rng: &mut Rng) {
        let number = rng.below(self.count());
        let Some(node) = self.node(number) else { return };
        match (rng.below(8), &mut *node) {
            (0 | 1, Json::Object(members)) if !members.is_empty() => {
                let at = rng.below(members.len());
                match rng.below(5) {
                    0 => drop(members.remove(at)),
                    1 => members.push(members[at].clone()),
                    2 => members[at].0 = quoted_hostile(rng),
                    3 => {
                        let other = members[rng.below(members.len())].0.clone();
                        members[at].0 = other;
                    }
                    _ => {
                        let other = rng.below(members.len());
                        let value = members[other].1.clone();
                        members[at].1 = value;
                    }
                }
            }
            (0 | 1, Json::List(values)) if !values.is_empty() => {
                let at = rng.below(values.len());
                match rng.below(4) {
                    0 => drop(values.remove(at)),
                    1 => values.push(values[at].clone()),
                    2 => values.reverse(),
                    _ => values.extend(vec![values[at].clone(); rng.below(40)]),
                }
            }
            (2..=5, Json::Text(text)) => match text.parse::<i128>() {
                Ok(n) => *text = (n + *rng.pick(&[-8, -4, -1, 1, 2, 4, 8, 1 << 31, 1 << 32, 1 << 63])).to_string(),
                Err(_) => *node = hostile(rng),
            },
            (6, _) => {
                let depth = *rng.pick(&[1, 2, 127, 128, 129, 1000]);
                let inside = node.print();
                *node = Json::Text(format!("{}{inside}{}", "[".repeat(depth), "]".repeat(depth)));
            }
            _ => *node = hostile(rng),
        }
    }
}

/// The value of a text as serde_json sees it. No answer where a name occurs twice, of which it
/// keeps the last, and where it refuses what parsers that ignore a field may pass over: deep
/// nesting, numbers beyond f64, halves of a surrogate pair.
pub fn value(bytes: &[u8]) -> Option<Option<Value>> {
    let passed_over = ["recursion limit exceeded", "number out of range", "surrogate", "hex escape", "occurs twice"];
    let refused = |error: serde_json::Error| passed_over.iter().any(|said| error.to_string().contains(said));
    if serde_json::from_slice::<Once>(bytes).is_err_and(refused) {
        return None;
    }
    Some(serde_json::from_slice(bytes).ok())
}

/// A value in which no name of an object occurs twice.
struct Once;

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Once;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Once, E> {
                Ok(Once)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Once, E> {
                Ok(Once)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Once, E> {
                Ok(Once)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Once, E> {
                Ok(Once)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Once, E> {
                Ok(Once)
            }

            fn visit_str<E>(self, _: &str) -> Result<Once, E> {
                Ok(Once)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Once, A::Error> {
                while list.next_element::<Once>()?.is_some() {}
                Ok(Once)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Once, A::Error> {
                let mut names = BTreeSet::new();
                while let Some((name, Once)) = map.next_entry::<String, Once>()? {
                    if !names.insert(name) {
                        return Err(A::Error::custom("a name occurs twice"));
                    }
                }
                Ok(Once)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A JSON string of plain characters.
fn quoted(text: &str) -> String {
    Value::String(text.into()).to_string()
}

/// Strings at the edges of what may be one.
fn quoted_hostile(rng: &mut Rng) -> String {
    let strings = [
        r#""""#,
        r#""a""#,
        r#""__metadata__""#,
        r#""\u0000""#,
        r#""\ud800""#,
        r#""\ud83d\ude00""#,
        r#""\"\\\/\b\f\n\r\t""#,
        "\"é\u{7f}\u{200b}\"",
        r#""../a.safetensors""#,
        r#""a.safetensors""#,
        r#""F32""#,
        r#""F4""#,
        r#""F6_E2M3""#,
        r#""gelu""#,
        r#""LORA""#,
        r#""\x""#,
        "\"\n\"",
        r#"""#,
    ];
    if rng.one_in(8) { format!("\"{}\"", "ab\u{7f}".repeat(rng.below(2000))) } else { rng.pick(&strings).to_string() }
}

/// A value that hardly any parser wants.
fn hostile(rng: &mut Rng) -> Json {
    let values = [
        "0",
        "-0",
        "1",
        "-1",
        "8",
        "1.5",
        "1e3",
        "1e308",
        "1e309",
        "-1e309",
        "1e-400",
        "2147483647",
        "2147483648",
        "4294967295",
        "4294967296",
        "9007199254740993",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "340282366920938463463374607431768211456",
        "0x10",
        "01",
        "+1",
        ".5",
        "1.",
        "NaN",
        "Infinity",
        "-Infinity",
        "null",
        "true",
        "false",
        "[]",
        "{}",
        "[[]]",
        "[0,0]",
        "[0,8]",
        "{\"a\":{}}",
        "",
        ",",
        ":",
        "}",
        "]",
        "/* */",
        "'a'",
        "nul",
    ];
    if rng.one_in(3) { Json::Text(quoted_hostile(rng)) } else { Json::Text(rng.pick(&values).to_string()) }
}

/// Changes bytes, whatever they mean.
pub fn mutate_bytes(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let at = rng.below(bytes.len() + 1);
    let to = (at + 1 + rng.below(12)).min(bytes.len());
    match rng.below(6) {
        0 if at < bytes.len() => bytes[at] = rng.next() as u8,
        1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
        2 if at < to => drop(bytes.drain(at..to)),
        3 if at < to => {
            let again = bytes[at..to].to_vec();
            bytes.splice(at..at, again);
        }
        4 => bytes.truncate(at),
        _ => {
            let token = *rng.pick(b"{}[],:\"\\0189-+.eE\xff\x00tfn ");
            bytes.insert(at, token);
        }
    }
}

/// A text of the seeds, changed up to three times.
pub fn mutated(rng: &mut Rng, seeds: &[Json]) -> Vec<u8> {
    let mut json = rng.pick(seeds).clone();
    for _ in 0..rng.below(4) {
        json.mutate(rng);
    }
    let mut bytes = json.print().into_bytes();
    if rng.one_in(4) {
        mutate_bytes(rng, &mut bytes);
    }
    bytes
}

/// Texts of about a mebibyte that cost a careless parser many times their size.
pub fn heavy() -> Vec<String> {
    const SIZE: usize = 1 << 20;
    // Just beyond a power of two, where what doubles has just doubled.
    let n = SIZE + 16;
    vec![
        "[".repeat(n),
        "{\"a\":".repeat(n / 5),
        format!("[{}0]", "0,".repeat(n / 2)),
        format!("[{}0]", "[],".repeat(n / 3)),
        format!("\"{}\"", "x".repeat(n)),
        format!("\"{}\"", "\u{7f}".repeat(n)),
        format!("\"{}\"", "\\n".repeat(n / 2)),
        format!("\"{}\\n\"", "x".repeat(n)),
        "9".repeat(n),
        format!("0.{}", "9".repeat(n)),
        format!("{{{}}}", (0..n / 10).map(|i| format!("\"{i:x}\":0")).collect::<Vec<_>>().join(",")),
    ]
}
