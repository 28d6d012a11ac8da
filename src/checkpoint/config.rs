//! transformers' `config.json`: the fields that a bridge needs, each obeyed or refused by name.
//!
//! A family lists its fields (see [`Field`]); no other field is read, so its value does no harm.
//! Python writes NaN and Infinity as bare words: they parse as values, which no field accepts.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::json;
use super::row::Row;
use crate::Result;
use crate::ops::Activation;

/// A bound on the loop over promised layers, far above every published model.
const MAX_LAYERS: usize = 10_000;

/// A field of a configuration: paths, possible values, and the default of transformers' class.
#[derive(Debug)]
pub(super) struct Field {
    /// Dotted paths of the field and its aliases; the first one present counts.
    pub names: &'static [&'static str],
    pub kind: Kind,
}

/// What a field holds, with the default of its class.
#[derive(Debug)]
pub(super) enum Kind {
    /// A number of at least 1.
    Count(u32),
    /// A number of layers: at most [`MAX_LAYERS`].
    Depth(u32),
    /// The eps of norms.
    Eps(f32),
    Flag(bool),
    /// The name of an activation that the ops have.
    Activation(&'static [(&'static str, Activation)], Activation),
    /// Numbers of layers; the default is computed.
    Layers,
    /// Any text.
    Text,
    /// The only text that is supported: its absence means the same.
    Only(&'static str),
    /// The only flag that is supported: its absence means the same.
    Always(bool),
}

/// transformers' names of the activations that ungated layers compute.
pub(super) const PLAIN: &[(&str, Activation)] = &[
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("relu", Activation::Relu),
    ("relu2", Activation::SquaredRelu),
];

/// transformers' names of the activations that gated layers compute.
pub(super) const GATED: &[(&str, Activation)] = &[("silu", Activation::SwiGlu), ("swish", Activation::SwiGlu)];

/// A value that a configuration gives.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Count(u32),
    Eps(f32),
    Flag(bool),
    Activation(Activation),
    Layers(Vec<usize>),
    Text(String),
    Only,
}

/// What a bridge needs of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `model_type`; empty where there is none.
    pub model_type: String,
    /// The family's name.
    family: Option<&'static str>,
    /// By the first name of the field: the name found in the text, and its value.
    values: BTreeMap<&'static str, (&'static str, Value)>,
}

/// Without a configuration, every field has its default.
pub(super) static NO_CONFIG: ModelConfig =
    ModelConfig { model_type: String::new(), family: None, values: BTreeMap::new() };

impl ModelConfig {
    /// Reads the text as one of the families in `rows`: the named one, else the one of its
    /// `model_type`. An error says what is wrong with the text.
    pub(super) fn read(text: &str, rows: &[&'static Row], named: Option<&'static Row>) -> Result<Self, String> {
        json::parse::<IgnoredAny>(text).map_err(|e| format!("not a model's configuration: {e}"))?;
        if text.trim() == "null" {
            return Err("expected an object with a model's configuration, found null".into());
        }
        let model_type = match find(text, "model_type")? {
            Found::Nothing | Found::Null => String::new(),
            Found::Text(name) => name,
            other => return Err(format!("model_type: expected a text, found {other}")),
        };
        // The section of the whole model's configuration; empty: all of it.
        let of_type = |row: &'static Row| Some((row, row.model_types.iter().find(|(name, _)| *name == model_type)?.1));
        let by_type = rows.iter().find_map(|row| of_type(row));
        let mut own = by_type.map(|(row, _)| row);
        if model_type.is_empty() {
            for row in rows {
                let Some(marker) = row.marker else { continue };
                if !matches!(find(text, marker)?, Found::Nothing | Found::Null) {
                    own = Some(row);
                }
            }
        }
        // Fields have paths in the whole model's text; a part's own text lacks this section.
        let section = by_type.map_or("", |(_, section)| section);
        let mut config = ModelConfig { model_type, family: own.map(|row| row.name), values: BTreeMap::new() };
        let fields = named.or(own).map_or(&[][..], |row| row.fields);
        for field in fields {
            for &name in field.names {
                // In the text of a part that was saved alone, the section is the whole text.
                let Some(path) = name.strip_prefix(section).or(name.contains('.').then_some(name)) else { continue };
                let found = match (find(text, path)?, &field.kind) {
                    // Fields without a default of their own may be null.
                    (Found::Null, Kind::Layers | Kind::Text | Kind::Only(_) | Kind::Always(_)) => Found::Nothing,
                    (found, _) => found,
                };
                if !matches!(found, Found::Nothing) {
                    let value = field.kind.value(found).map_err(|fault| format!("{path}: {fault}"))?;
                    config.values.insert(field.names[0], (path, value));
                    break;
                }
            }
        }
        Ok(config)
    }

    /// The name of the family that the configuration names.
    pub(super) fn family_name(&self) -> Option<&'static str> {
        self.family
    }

    /// The field's name in the text, where it is there.
    pub(super) fn has(&self, field: &Field) -> Option<&'static str> {
        self.values.get(field.names[0]).map(|(name, _)| *name)
    }

    fn value(&self, field: &Field) -> Option<&Value> {
        self.values.get(field.names[0]).map(|(_, value)| value)
    }

    /// A number, or its default.
    pub(super) fn count(&self, field: &Field) -> usize {
        match (self.value(field), &field.kind) {
            (Some(&Value::Count(n)), _) | (None, &Kind::Count(n) | &Kind::Depth(n)) => n as usize,
            _ => unreachable!("a field's kind is that of its value"),
        }
    }

    /// An eps, or its default.
    pub(super) fn eps(&self, field: &Field) -> f32 {
        match (self.value(field), &field.kind) {
            (Some(&Value::Eps(eps)), _) | (None, &Kind::Eps(eps)) => eps,
            _ => unreachable!("a field's kind is that of its value"),
        }
    }

    /// A flag, or its default.
    pub(super) fn flag(&self, field: &Field) -> bool {
        match (self.value(field), &field.kind) {
            (Some(&Value::Flag(flag)), _) | (None, &Kind::Flag(flag)) => flag,
            _ => unreachable!("a field's kind is that of its value"),
        }
    }

    /// An activation, or its default.
    pub(super) fn activation(&self, field: &Field) -> Activation {
        match (self.value(field), &field.kind) {
            (Some(&Value::Activation(a)), _) | (None, &Kind::Activation(_, a)) => a,
            _ => unreachable!("a field's kind is that of its value"),
        }
    }

    /// A text, where it is given.
    pub(super) fn text(&self, field: &Field) -> Option<&str> {
        match self.value(field) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Numbers of layers, where they are given.
    pub(super) fn layers(&self, field: &Field) -> Option<&[usize]> {
        match self.value(field) {
            Some(Value::Layers(layers)) => Some(layers),
            _ => None,
        }
    }
}

impl Kind {
    fn value(&self, found: Found) -> Result<Value, String> {
        let number = |least: u32, most: u32| match found {
            Found::Whole(n) if (least as u64..=most as u64).contains(&n) => Ok(Value::Count(n as u32)),
            _ => Err(format!("expected a whole number from {least} to {most}, found {}", found.as_written())),
        };
        match self {
            Kind::Count(_) => number(1, u32::MAX),
            Kind::Depth(_) => number(0, MAX_LAYERS as u32),
            Kind::Eps(_) => {
                let eps = match found {
                    Found::Whole(n) => n as f64,
                    Found::Real(eps) => eps,
                    _ => f64::NAN,
                };
                if (0.0..=f32::MAX as f64).contains(&eps) {
                    Ok(Value::Eps(eps as f32))
                } else {
                    Err(format!("expected a number of at least 0, found {}", found.as_written()))
                }
            }
            Kind::Flag(_) => match found {
                Found::Flag(flag) => Ok(Value::Flag(flag)),
                other => Err(format!("expected true or false, found {}", other.as_written())),
            },
            Kind::Activation(known, _) => {
                let activation = match &found {
                    Found::Text(name) => known.iter().find(|(known, _)| known == name).map(|(_, a)| *a),
                    _ => None,
                };
                activation.map(Value::Activation).ok_or_else(|| {
                    let known: Vec<_> = known.iter().map(|(name, _)| *name).collect();
                    format!("expected an activation that is computed ({}), found {found}", known.join(", "))
                })
            }
            Kind::Layers => match found {
                Found::List(layers) => Ok(Value::Layers(layers)),
                other => Err(format!("expected a list of at most {MAX_LAYERS} numbers of layers, found {other}")),
            },
            Kind::Text => match found {
                Found::Text(text) => Ok(Value::Text(text)),
                other => Err(format!("expected the name of a class, found {other}")),
            },
            Kind::Only(text) => match found {
                Found::Text(found) if found == *text => Ok(Value::Only),
                other => Err(format!("expected {text}, which is all that is computed, found {other}")),
            },
            Kind::Always(flag) => match found {
                Found::Flag(found) if found == *flag => Ok(Value::Only),
                other => Err(format!("expected {flag}, as nothing else is computed, found {other}")),
            },
        }
    }
}

/// The value at a path of the text.
#[derive(Debug)]
enum Found {
    /// No field of this name.
    Nothing,
    Null,
    Flag(bool),
    Whole(u64),
    Real(f64),
    Text(String),
    List(Vec<usize>),
    Other(&'static str),
}

impl Found {
    /// As written in the text, for messages about numbers and flags: texts in quotation marks (but
    /// for Python's bare words), whole reals with their point.
    fn as_written(&self) -> String {
        match self {
            Found::Text(text) if !json::NON_FINITE.contains(&text.as_str()) => format!("\"{self}\""),
            Found::Real(n) => format!("{n:?}"),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Nothing => f.write_str("nothing"),
            Found::Null => f.write_str("null"),
            Found::Flag(flag) => write!(f, "{flag}"),
            Found::Whole(n) => write!(f, "{n}"),
            Found::Real(n) => write!(f, "{n}"),
            Found::Text(text) => f.write_str(&json::brief(text)),
            Found::List(_) => f.write_str("a list"),
            Found::Other(what) => f.write_str(what),
        }
    }
}

/// The value at a dotted path. A section that is null or missing holds nothing.
fn find(text: &str, path: &str) -> Result<Found, String> {
    let found = At(Some(path)).deserialize(&mut serde_json::Deserializer::from_str(text));
    found.map_err(|e| format!("{path}: {}", json::message(e)))
}

/// Descends along a dotted path; at its end it takes the value.
struct At<'p>(Option<&'p str>);

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl At<'_> {
    /// A value other than an object: found at the path's end, an error before it.
    fn leaf<E: serde::de::Error>(&self, found: Found) -> Result<Found, E> {
        match self.0 {
            None => Ok(found),
            Some(path) => Err(E::custom(format_args!("expected an object with {path}, found {found}"))),
        }
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        // A section that is null counts as missing.
        Ok(if self.0.is_some() { Found::Nothing } else { Found::Null })
    }

    fn visit_bool<E: serde::de::Error>(self, flag: bool) -> Result<Found, E> {
        self.leaf(Found::Flag(flag))
    }

    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Found, E> {
        self.leaf(Found::Whole(n))
    }

    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Found, E> {
        self.leaf(Found::Real(n as f64))
    }

    fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<Found, E> {
        self.leaf(Found::Real(n))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Found, E> {
        self.leaf(Found::Text(json::brief(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Found, A::Error> {
        let mut layers = Some(Vec::new());
        while let Some(entry) = list.next_element::<Entry>()? {
            match (&mut layers, entry) {
                (Some(layers), Entry(Some(n))) if self.0.is_none() && layers.len() < MAX_LAYERS => layers.push(n),
                _ => layers = None,
            }
        }
        self.leaf(layers.map_or(Found::Other("a list of others"), Found::List))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let Some(path) = self.0 else {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Found::Other("an object"));
        };
        let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
        let mut found = None;
        while let Some(Key(here)) = map.next_key_seed(Named(first))? {
            if !here {
                map.next_value::<IgnoredAny>()?;
            } else if found.replace(map.next_value_seed(At(rest))?).is_some() {
                return Err(A::Error::custom(format_args!("{first} occurs twice")));
            }
        }
        Ok(found.unwrap_or(Found::Nothing))
    }
}

/// Compares a name and keeps nothing of it.
struct Named<'n>(&'n str);
struct Key(bool);

impl<'de> DeserializeSeed<'de> for Named<'_> {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Named<'_> {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Key, E> {
        Ok(Key(name == self.0))
    }
}

/// An entry of a list: a whole number, or anything else.
struct Entry(Option<usize>);

impl<'de> serde::Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match deserializer.deserialize_any(At(None))? {
            Found::Whole(n) => Entry(u32::try_from(n).ok().map(|n| n as usize)),
            _ => Entry(None),
        })
    }
}
