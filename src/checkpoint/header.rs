//! The header of a safetensors file: 8 bytes of length, JSON, then the tensors' bytes without gaps.
//!
//! A header is believed only where it agrees with itself and with the size of the file. Parsing
//! holds at most four times the file (and a mebibyte): unused numbers and names are not collected,
//! and no message repeats a long text.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::explain;
use super::json::{self, brief};
use crate::DType;
use crate::tensor::checked_elements;

/// Bytes of the length before the text.
pub(crate) const LENGTH: usize = 8;

/// The largest rank of a tensor: PyTorch's own operators support fewer dimensions.
const MAX_EXTENTS: usize = 16;

/// The largest number of metadata fields.
const MAX_METADATA: usize = 1024;

/// What a header says of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Extents, outermost first. The product of any of them, without those of 0, fits `isize`.
    pub shape: Box<[usize]>,
    /// Bytes in the file.
    pub bytes: usize,
    pub(super) shard: u32,
    /// Offset behind the header.
    pub(crate) start: u64,
    kind: Dtype,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Element type in lower case: `f32`, `bf16`, and types that no bridge reads: `i64`, `f8_e4m3`.
    pub fn dtype(&self) -> String {
        self.kind.to_string().to_lowercase()
    }

    /// Where the bytes are: tensors at one place are the same.
    pub(super) fn place(&self) -> (u32, u64, usize) {
        (self.shard, self.start, self.bytes)
    }

    /// Whether an element is a quantised number: of 8 bits or fewer.
    pub(super) fn is_narrow(&self) -> bool {
        self.kind != Dtype::BOOL && self.kind.bitsize() <= 8
    }

    /// Whether a bridge could read it.
    pub(super) fn is_real(&self) -> bool {
        self.element().is_some_and(DType::is_float)
    }

    /// The element type, if xattn has it.
    pub(crate) fn element(&self) -> Option<DType> {
        Some(match self.kind {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::I32 => DType::I32,
            Dtype::U32 => DType::U32,
            _ => return None,
        })
    }
}

/// What a header holds.
#[derive(Debug, Default)]
pub(crate) struct Header {
    pub tensors: BTreeMap<Box<str>, TensorInfo>,
    pub metadata: BTreeMap<String, String>,
}

/// The beginning of messages about files that end too early.
const CUT: &str = "cut short:";

/// Bytes of the JSON in a file of `file` bytes that begins with `first` (at most 8 bytes).
pub(crate) fn text_bytes(first: &[u8], file: u64) -> Result<usize, String> {
    let Ok(length) = first.try_into().map(u64::from_le_bytes) else {
        return Err(format!("{CUT} {file} of at least {LENGTH} bytes"));
    };
    if length > json::MAX_BYTES {
        return Err(format!("header: expected at most {} bytes, found {length}", json::MAX_BYTES));
    }
    let whole = LENGTH as u64 + length;
    if whole > file {
        return Err(format!("{CUT} {file} of at least {whole} bytes, within the header"));
    }
    Ok(length as usize)
}

/// The message for a file whose header has that fault: what the file is instead, if its first bytes
/// `head` (see [`explain::HEAD`]) are not those of a safetensors file.
pub(crate) fn fault(head: &[u8], fault: String) -> String {
    match explain::explain(head).filter(|_| !explain::is_safetensors(head)) {
        Some(what) => format!("not a safetensors file: {what}"),
        None if fault.starts_with(CUT) => fault,
        None => format!("not a safetensors file: {fault}"),
    }
}

/// Parses the text of a header in front of `data` bytes.
pub(crate) fn parse(text: &[u8], data: u64) -> Result<Header, String> {
    let text = std::str::from_utf8(text).map_err(|e| format!("header: not UTF-8: {e}"))?;
    let header: Header = serde_json::from_str(text).map_err(|e| format!("header: {}", json::message(e)))?;
    expect_covered(&header.tensors, (LENGTH + text.len()) as u64, data)?;
    Ok(header)
}

/// Refuses data that the tensors' bytes do not cover without gaps or overlaps.
fn expect_covered(tensors: &BTreeMap<Box<str>, TensorInfo>, header: u64, data: u64) -> Result<(), String> {
    let mut places: Vec<(u64, u64)> = Vec::with_capacity(tensors.len());
    places.extend(tensors.values().map(|t| (t.start, t.bytes as u64)));
    places.sort_unstable();
    let mut end = 0;
    for place in places {
        if place.0 != end {
            let name = tensors.iter().find(|(_, t)| (t.start, t.bytes as u64) == place).map_or("", |(name, _)| name);
            let name = brief(name);
            return Err(format!(
                "tensor {name}: expected data_offsets from {end} on, behind the tensor before, found {}",
                place.0
            ));
        }
        end += place.1;
    }
    match end.cmp(&data) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(format!("{CUT} {} of {} bytes", header + data, header.saturating_add(end))),
        std::cmp::Ordering::Less => Err(format!("no tensor owns the last {} bytes", data - end)),
    }
}

/// Answers an unexpected string in a visitor: serde's own message would repeat it, up to six times
/// as long. Only `deserialize_any` asks visitors; serde_json answers its other calls itself.
macro_rules! refuse_strings {
    ($expected:literal) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str($expected)
        }

        fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Self::Value, E> {
            Err(E::custom(concat!("expected ", $expected, ", found a string")))
        }
    };
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;
        impl<'de> Visitor<'de> for Whole {
            type Value = Header;
            refuse_strings!("an object of tensors");

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                let mut metadata = None;
                while let Some(name) = map.next_key::<Box<str>>()? {
                    if &*name == "__metadata__" {
                        if metadata.replace(map.next_value::<Strings>()?.0).is_some() {
                            return Err(A::Error::custom("name __metadata__ occurs twice"));
                        }
                        continue;
                    }
                    let Described(tensor) =
                        map.next_value().map_err(|e| A::Error::custom(format_args!("tensor {}: {e}", brief(&name))))?;
                    match header.tensors.entry(name) {
                        Entry::Vacant(place) => drop(place.insert(tensor)),
                        Entry::Occupied(there) => {
                            return Err(A::Error::custom(format_args!("name {} occurs twice", brief(there.key()))));
                        }
                    }
                }
                header.metadata = metadata.unwrap_or_default();
                Ok(header)
            }
        }
        deserializer.deserialize_any(Whole)
    }
}

/// A tensor of the text. A type of its own, so that the public one has no `Deserialize`.
struct Described(TensorInfo);

impl<'de> Deserialize<'de> for Described {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Described;
            refuse_strings!("an object with dtype, shape and data_offsets");

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Described, A::Error> {
                let (mut kind, mut shape, mut offsets) = (None, None, None);
                while let Some(name) = map.next_key::<Box<str>>()? {
                    let twice = match &*name {
                        "dtype" => kind.replace(map.next_value::<Kind>()?.0).is_some(),
                        "shape" => shape.replace(map.next_value::<Extents>()?.0).is_some(),
                        "data_offsets" => offsets.replace(map.next_value::<Offsets>()?.0).is_some(),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            false
                        }
                    };
                    if twice {
                        return Err(A::Error::custom(format_args!("{name} occurs twice")));
                    }
                }
                let kind: Dtype = kind.ok_or_else(|| A::Error::custom("dtype is missing"))?;
                let shape: Box<[usize]> = shape.ok_or_else(|| A::Error::custom("shape is missing"))?;
                let [from, to]: [u64; 2] = offsets.ok_or_else(|| A::Error::custom("data_offsets is missing"))?;
                let Some(bits) = checked_elements(&shape).and_then(|n| n.checked_mul(kind.bitsize())) else {
                    return Err(A::Error::custom(format_args!(
                        "expected extents that can be addressed, found {shape:?}"
                    )));
                };
                if !bits.is_multiple_of(8) {
                    return Err(A::Error::custom(format_args!("expected whole bytes, found {bits} bits")));
                }
                let bytes = bits / 8;
                if from.checked_add(bytes as u64) != Some(to) {
                    return Err(A::Error::custom(format_args!(
                        "expected data_offsets {bytes} bytes apart for {kind}{shape:?}, found [{from}, {to}]"
                    )));
                }
                Ok(Described(TensorInfo { shape, bytes, shard: 0, start: from, kind }))
            }
        }
        deserializer.deserialize_any(Fields)
    }
}

struct Kind(Dtype);

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Kind;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a dtype")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Kind, E> {
                // serde's own message would repeat the name, however long.
                const LONGEST: usize = "F8_E4M3FNUZ".len();
                let known = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(name);
                let kind = if name.len() > LONGEST { None } else { Dtype::deserialize(known).ok() };
                kind.map(Kind).ok_or_else(|| E::custom(format_args!("unknown dtype {}", brief(name))))
            }
        }
        deserializer.deserialize_str(Name)
    }
}

struct Extents(Box<[usize]>);

impl<'de> Deserialize<'de> for Extents {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Extents;
            refuse_strings!("a list of extents");

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Extents, A::Error> {
                let mut extents = [0; MAX_EXTENTS];
                let mut count = 0;
                while let Some(Number(n)) = list.next_element()? {
                    let Some(to) = extents.get_mut(count) else {
                        return Err(A::Error::custom(format_args!(
                            "expected at most {MAX_EXTENTS} extents, found more"
                        )));
                    };
                    *to = usize::try_from(n).map_err(|_| {
                        A::Error::custom(format_args!("expected extents that can be addressed, found {n}"))
                    })?;
                    count += 1;
                }
                Ok(Extents(extents[..count].into()))
            }
        }
        deserializer.deserialize_any(List)
    }
}

struct Offsets([u64; 2]);

impl<'de> Deserialize<'de> for Offsets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Two;
        impl<'de> Visitor<'de> for Two {
            type Value = Offsets;
            refuse_strings!("two data_offsets");

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Offsets, A::Error> {
                let mut next = || -> Result<Option<u64>, A::Error> { Ok(list.next_element()?.map(|Number(n)| n)) };
                match (next()?, next()?, next()?) {
                    (Some(from), Some(to), None) => Ok(Offsets([from, to])),
                    _ => Err(A::Error::custom("expected two data_offsets, found fewer or more")),
                }
            }
        }
        deserializer.deserialize_any(Two)
    }
}

/// A whole number from 0 on.
struct Number(u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;
        impl Visitor<'_> for One {
            type Value = Number;
            refuse_strings!("a whole number");

            fn visit_u64<E>(self, n: u64) -> Result<Number, E> {
                Ok(Number(n))
            }
        }
        deserializer.deserialize_any(One)
    }
}

/// Metadata: an object of strings in which no name occurs twice.
struct Strings(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Strings;
            refuse_strings!("metadata of strings");

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strings, A::Error> {
                let mut strings = BTreeMap::new();
                while let Some((name, text)) = map.next_entry::<String, String>()? {
                    if strings.len() == MAX_METADATA {
                        return Err(A::Error::custom(format_args!(
                            "expected at most {MAX_METADATA} metadata, found more"
                        )));
                    }
                    match strings.entry(name) {
                        Entry::Vacant(place) => drop(place.insert(text)),
                        Entry::Occupied(there) => {
                            return Err(A::Error::custom(format_args!("metadata {} occurs twice", brief(there.key()))));
                        }
                    }
                }
                Ok(Strings(strings))
            }
        }
        deserializer.deserialize_any(Fields)
    }
}
