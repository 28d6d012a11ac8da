//! The index of a sharded checkpoint: which file holds which tensor.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Component, Path};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::json::{self, brief};

/// The largest number of files: published models have some hundreds.
const MAX_FILES: usize = 4096;

/// Which file holds each tensor, all of them beside the index.
#[derive(Debug)]
pub(super) struct WeightMap {
    tensors: BTreeMap<Box<str>, u32>,
    files: Vec<Box<str>>,
}

impl WeightMap {
    /// The files, in order of first occurrence.
    pub fn files(&self) -> &[Box<str>] {
        &self.files
    }

    /// The tensors and the numbers of their files.
    pub fn tensors(&self) -> &BTreeMap<Box<str>, u32> {
        &self.tensors
    }
}

/// The stem of a shard's name, its number and the number of shards:
/// `model-00001-of-00002.safetensors`.
fn parts(name: &str) -> Option<(&str, &str, &str)> {
    let (start, total) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = start.rsplit_once('-')?;
    (1..=total.parse().ok()?).contains(&number.parse::<usize>().ok()?).then_some((stem, number, total))
}

/// The number of shards, if these names are all of one checkpoint.
pub(super) fn shards(names: &[&str]) -> Option<usize> {
    fn of(name: &str) -> Option<(&str, usize)> {
        let (stem, _, total) = parts(name)?;
        Some((stem, total.parse().ok()?))
    }
    let first = of(names.first()?)?;
    names.iter().all(|name| of(name) == Some(first)).then_some(first.1)
}

/// The names of all shards in the set of shard `name`; none for another name, or too many shards.
pub(super) fn set(name: &str) -> Vec<String> {
    let Some((stem, number, total)) = parts(name) else { return Vec::new() };
    let count = total.parse().ok().filter(|count| *count <= MAX_FILES).unwrap_or(0);
    let width = number.len();
    (1..=count).map(|i| format!("{stem}-{i:0width$}-of-{total}.safetensors")).collect()
}

/// Parses the text of an index.
pub(super) fn parse(text: &str) -> Result<WeightMap, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: WeightMap,
    }
    let Index { weight_map } = json::parse(text).map_err(|fault| format!("not an index of shards: {fault}"))?;
    if weight_map.tensors.is_empty() { Err("weight_map names no tensor".into()) } else { Ok(weight_map) }
}

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut tensors = BTreeMap::new();
                let mut files: BTreeMap<Box<str>, u32> = BTreeMap::new();
                while let Some((tensor, file)) = map.next_entry::<Box<str>, Box<str>>()? {
                    if !is_plain_name(&file) {
                        return Err(A::Error::custom(format_args!(
                            "weight_map: expected names of .safetensors files beside the index, found {}",
                            brief(format_args!("{file:?}"))
                        )));
                    }
                    let next = files.len();
                    if next == MAX_FILES && !files.contains_key(&file) {
                        return Err(A::Error::custom(format_args!("weight_map: expected at most {MAX_FILES} files")));
                    }
                    let number = *files.entry(file).or_insert(next as u32);
                    match tensors.entry(tensor) {
                        Entry::Vacant(place) => drop(place.insert(number)),
                        Entry::Occupied(there) => {
                            return Err(A::Error::custom(format_args!("name {} occurs twice", brief(there.key()))));
                        }
                    }
                }
                let mut names = vec![Box::default(); files.len()];
                for (name, number) in files {
                    names[number as usize] = name;
                }
                Ok(WeightMap { tensors, files: names })
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// Whether a name of an index is a safetensors file in the same folder.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let one = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == OsStr::new(name));
    // A backslash separates folders on other systems.
    one && !name.contains(['\\', ':', '\0']) && name.ends_with(".safetensors")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_of_one_checkpoint() {
        assert_eq!(shards(&["a-00001-of-00003.safetensors", "a-00003-of-00003.safetensors"]), Some(3));
        for other in [
            &["a-00001-of-00003.safetensors", "b-00003-of-00003.safetensors"][..],
            &["a-00001-of-00003.safetensors", "a-00003-of-00004.safetensors"],
            &["a-00004-of-00003.safetensors"],
            &["a-x-of-00003.safetensors"],
            &["a.safetensors"],
            &[],
        ] {
            assert_eq!(shards(other), None, "{other:?}");
        }
    }

    #[test]
    fn the_other_shards() {
        let name = |i: usize| format!("a-{i:05}-of-00003.safetensors");
        assert_eq!(set("a-00002-of-00003.safetensors"), [name(1), name(2), name(3)]);
        assert_eq!(set("a-2-of-2.safetensors"), ["a-1-of-2.safetensors", "a-2-of-2.safetensors"]);
        assert_eq!(set("a-00001-of-04096.safetensors").len(), 4096);
        for other in ["a.safetensors", "a-00004-of-00003.safetensors", "a-00001-of-04097.safetensors"] {
            assert_eq!(set(other), Vec::<String>::new(), "{other}");
        }
    }
}
