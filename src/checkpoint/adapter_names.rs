//! Names of an adapter's tensors: what each is, and which of the base's it changes.

use std::collections::{BTreeMap, BTreeSet};

use super::files::Files;
use super::json::brief;
use super::names;

/// What an adapter's tensor is.
pub(super) enum Part<'n> {
    /// `lora_A` (0) or `lora_B` (1) of a module, and whether it is an embedding.
    Matrix(usize, &'n str, bool),
    /// A copy of the base's tensor of that name.
    Copy(&'n str),
}

/// What a tensor of an adapter is for, by its name without wrappers.
pub(super) fn part(name: &str) -> Result<Part<'_>, String> {
    let of = |part: &str| {
        let (module, rest) = name.split_once(part)?;
        // Embeddings' matrices are parameters, others' modules; some keep the adapter's name.
        let known = rest.is_empty() || rest == ".weight" || rest == ".default.weight" || rest == ".default";
        known.then_some(module)
    };
    for (number, [linear, embedding]) in
        [[".lora_A", ".lora_embedding_A"], [".lora_B", ".lora_embedding_B"]].into_iter().enumerate()
    {
        if let Some(module) = of(linear) {
            return Ok(Part::Matrix(number, module, false));
        }
        if let Some(module) = of(embedding) {
            return Ok(Part::Matrix(number, module, true));
        }
    }
    if name.split('.').any(|segment| segment.starts_with("lora_") || segment == "token_adapter") {
        return Err(format!("tensor {}: not one that xattn merges", brief(name)));
    }
    Ok(Part::Copy(name))
}

/// The base's name for a tensor of an adapter; none where training did not change it.
pub(super) fn base_name(name: &str) -> Option<String> {
    let name = name.replace("modules_to_save.default.", "").replace("modules_to_save.", "").replace("base_layer.", "");
    match names::unwrap(&name) {
        Some(name) if name.original => None,
        Some(name) => Some(name.plain.into()),
        None => Some(name),
    }
}

impl Files {
    /// The base's tensors for the adapter's names, and their prefixes where the adapter has others.
    ///
    /// transformers' classes name some modules differently in memory and in files, so names are
    /// compared without `model` segments. If none matches, the base may hold the trained model
    /// below a prefix, with all of the adapter's tensors in it. Or it may be a part of that model
    /// that people save alone: one of the modules `parts`.
    pub(super) fn resolve(&self, wanted: &[String], parts: &[&str]) -> (BTreeMap<String, Vec<Box<str>>>, Vec<String>) {
        let is_part = |prefix: &str| parts.contains(&names::last_module(prefix));
        let mut found: BTreeMap<String, Vec<Box<str>>> = BTreeMap::new();
        let mut open = Vec::new();
        for name in wanted {
            match self.tensors.get_key_value(name.as_str()) {
                Some((base, _)) => drop(found.insert(name.clone(), vec![base.clone()])),
                None => open.push((name, short(name))),
            }
        }
        let Some((_, first)) = open.first() else { return (found, Vec::new()) };
        let mut known: BTreeMap<String, Option<&Box<str>>> = BTreeMap::new();
        for name in self.tensors.keys() {
            known.entry(short(name)).and_modify(|one| *one = None).or_insert(Some(name));
        }
        // With `outer` before the names of the adapter, and without their `inner`.
        let all = |outer: &str, inner: &str| -> Vec<(&String, &Box<str>)> {
            let base = |name: &str| known.get(&format!("{outer}{}", name.strip_prefix(inner)?)).copied().flatten();
            open.iter().filter_map(|(name, short)| Some((*name, base(short)?))).collect()
        };
        let mut add = |pairs: Vec<(&String, &Box<str>)>| {
            pairs.into_iter().for_each(|(name, base)| found.entry(name.clone()).or_default().push(base.clone()));
        };
        // Layers of a bridge share names with a language model's or an image encoder's: unless they
        // are found in full, the adapter must name a part of the bridge.
        let names_part = || {
            let prefixes = |name: &str| name.match_indices('.').any(|(dot, _)| is_part(&name[..=dot]));
            open.iter().any(|(_, name)| prefixes(name))
        };
        let own = all("", "");
        let whole = open.len() < wanted.len() || own.len() == open.len();
        // Only a language model beside a bridge has this name in transformers.
        let beside = || own.iter().all(|(name, _)| short(name).starts_with("language_model."));
        if whole || !own.is_empty() && (names_part() || beside()) {
            add(own);
            return (found, Vec::new());
        }
        if !names_part() {
            return (found, Vec::new());
        }
        let outer = known.keys().filter_map(|name| name.strip_suffix(first.as_str()));
        let outer: BTreeSet<&str> = outer.filter(|prefix| prefix.ends_with('.')).collect();
        let copies: Vec<&str> = outer.into_iter().filter(|outer| all(outer, "").len() == open.len()).collect();
        if !copies.is_empty() {
            copies.iter().for_each(|outer| add(all(outer, "")));
            return (found, copies.into_iter().map(String::from).collect());
        }
        let inner = open.iter().flat_map(|(_, name)| name.match_indices('.').map(move |(dot, _)| &name[..=dot]));
        let inner: BTreeSet<&str> = inner.filter(|prefix| is_part(prefix)).collect();
        let mut parts: Vec<_> = inner.into_iter().map(|inner| all("", inner)).filter(|part| !part.is_empty()).collect();
        // Two parts with the same names are ambiguous: neither is chosen.
        if let (Some(part), true) = (parts.pop(), parts.is_empty()) {
            add(part);
        }
        (found, Vec::new())
    }
}

/// A name without its `model` segments.
pub(super) fn short(name: &str) -> String {
    name.split('.').filter(|segment| *segment != "model").collect::<Vec<_>>().join(".")
}
