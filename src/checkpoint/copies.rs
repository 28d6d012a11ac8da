//! Chooses among copies of a part (an EMA, a teacher), and reports parts of different trees of
//! names.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::find::{Find, shown_prefix};
use super::json::some_of;

/// Parts that were found several times, and the choices made.
#[derive(Default)]
pub(super) struct Copies {
    /// Prefixes at which parts were found, chosen or not.
    pub candidates: BTreeSet<String>,
    /// Pairs of prefixes, without numbers, already reported as different.
    differing: BTreeSet<[String; 2]>,
    /// Whether no prefix chose among modules with a part: some may be in missing shards.
    in_several: bool,
    /// Whether a part lies below the prefix that was asked for.
    chosen: bool,
    /// Parts with nothing below that prefix.
    shared: Vec<Shared>,
    /// Prefixes of copies below the prefix that was asked for, which it does not choose: `ema.`
    /// beside the copy without a prefix.
    left_out: BTreeSet<String>,
    /// Parts and the places that were chosen.
    taken: Vec<(&'static str, String)>,
    /// Parts and places that a note already says to be taken together.
    said: BTreeSet<String>,
}

/// A part with nothing below the prefix that was asked for.
struct Shared {
    part: &'static str,
    /// Where it was taken from instead, once for each of its blocks or heads.
    at: Vec<String>,
    /// The problem to report if nothing at all lies below the prefix.
    none_below: String,
}

impl Find<'_, '_> {
    /// The prefix of a part, or of its block `index`. Candidates that `--prefix` does not choose
    /// are left out; the others must hold the same weights under several names. A part with nothing
    /// below that prefix is shared: the nearest module around it counts. `own` are the beginnings
    /// of the part's names when it was saved alone.
    pub fn choose(
        &mut self,
        part: &'static str,
        index: Option<usize>,
        prefixes: &[String],
        own: &[&str],
    ) -> Option<String> {
        self.source.part.set(part);
        let files = self.source.files;
        self.copies.candidates.extend(prefixes.iter().cloned());
        let wanted = self.overrides.prefix.as_deref();
        let outermost: BTreeSet<_> = prefixes.iter().map(|prefix| prefix.split('.').next()).collect();
        self.copies.in_several |= outermost.len() > 1 && wanted.is_none();
        // Candidates in missing shards count only if there are no others.
        let there = |prefix: &&String| files.below(prefix).next().is_some();
        let present: Vec<String> = prefixes.iter().filter(there).cloned().collect();
        let prefixes = if present.is_empty() { prefixes } else { &present };
        let name = index.map_or_else(|| part.to_string(), |index| format!("{} {index}", part.trim_end_matches('s')));
        let mut chosen: Vec<&String> = wanted.map_or(prefixes.iter().collect(), |wanted| below(prefixes, wanted, ""));
        let mut none_below = None;
        if let Some(wanted) = wanted {
            self.copies.left_out.extend(nested(prefixes, wanted));
            if chosen.is_empty() {
                let at = some_of(prefixes.iter().map(|p| shown_prefix(p)), ", ");
                none_below = Some(format!("{name}: none below the prefix {wanted}, but at {at}"));
                chosen = nearest(prefixes, wanted);
            } else {
                self.copies.chosen = true;
            }
        }
        // Among equal copies, the one that the adapter changes most comes first, then the one with
        // most tensors.
        chosen.sort_by_key(|p| {
            let changed = files.below(p).filter(|(name, _)| files.changed(name)).count();
            Reverse((changed, files.below(p).filter(|(name, _)| !self.is_apart(p, name)).count()))
        });
        let (first, aliases) = chosen.split_first()?;
        let mut different = None;
        for alias in aliases {
            let names: Vec<&str> =
                files.below(alias).map(|(name, _)| name).filter(|name| !self.is_apart(alias, name)).collect();
            for name in names {
                let inner = &name[alias.len()..];
                let same = format!("{first}{inner}");
                match files.is_alias(&same, name) {
                    Ok(true) => {
                        self.source.mark(name);
                        self.aliases.insert(name.into());
                    }
                    Ok(false) => {
                        self.source.mark(name);
                        different = different.or(Some((inner, *alias)));
                    }
                    Err(error) => self.fault = self.fault.take().or(Some(error)),
                }
            }
        }
        match (different, none_below) {
            (ambiguous, Some(none_below)) => {
                self.problems.extend(ambiguous.map(|_| none_below.clone()));
                let at = shown_prefix(first);
                match self.copies.shared.iter_mut().find(|shared| shared.part == part) {
                    Some(shared) => shared.at.push(at),
                    None => self.copies.shared.push(Shared { part, at: vec![at], none_below }),
                }
            }
            // The blocks of a model all differ in the same way: one report is enough.
            (Some((inner, alias)), None)
                if self.copies.differing.insert([first, alias].map(|prefix| numberless(prefix))) =>
            {
                let all = some_of(chosen.iter().map(|p| shown_prefix(p)), " and ");
                let place = if inner.is_empty() { String::new() } else { format!(" (in {inner})") };
                self.problems.push(format!("{name}: different weights at {all}{place}; --prefix chooses"));
            }
            _ => {}
        }
        self.copies.taken.push((part, (*first).clone()));
        if first.is_empty() {
            // A module that was saved alone.
            self.namespace.extend(own.iter().map(|name| name.to_string()));
        } else {
            self.namespace.push((*first).clone());
        }
        Some((*first).clone())
    }

    /// Whether a tensor below `prefix` is of another part, which is chosen on its own.
    pub fn is_apart(&self, prefix: &str, name: &str) -> bool {
        let deeper = |apart: &&String| apart.len() > prefix.len() && apart.starts_with(prefix);
        self.apart.iter().filter(deeper).any(|apart| name.starts_with(apart.as_str()))
    }

    /// Whether the module at `prefix` is an equal copy of a part that was chosen.
    pub fn is_copy(&self, prefix: &str) -> bool {
        self.source.files.below(prefix).any(|(name, _)| self.aliases.contains(name))
    }

    /// Adds the places of partial copies of a part, such as an EMA of trained tensors only: those
    /// of the same names behind another prefix, or behind another first module.
    pub fn add_partial(&self, prefixes: &mut Vec<String>) {
        let files = self.source.files;
        let mut inner = HashMap::new();
        for prefix in prefixes.iter().filter(|prefix| !prefix.is_empty()) {
            let (_, rest) = prefix.split_once('.').unwrap_or_default();
            for (name, _) in files.below(prefix).filter(|(name, _)| !self.is_apart(prefix, name)) {
                let tails = [name, &name[prefix.len() - rest.len()..]];
                let tails = &tails[..if rest.is_empty() { 1 } else { 2 }];
                inner.extend(tails.iter().map(|tail| (*tail, name.len() - prefix.len())));
            }
        }
        if inner.is_empty() {
            return;
        }
        let mut found = BTreeSet::new();
        for name in self.names() {
            let dots = name.match_indices('.').map(|(dot, _)| dot + 1);
            let modules = std::iter::once(0).chain(dots);
            if let Some(inner) = modules.filter_map(|at| inner.get(&name[at..])).max() {
                found.insert(&name[..name.len() - inner]);
            }
        }
        prefixes.extend(
            found.into_iter().filter(|at| !prefixes.iter().any(|p| p == at)).map(String::from).collect::<Vec<_>>(),
        );
    }

    /// Whether a place is in a copy that `--prefix` does not choose, though it is below it.
    pub fn is_left_out(&self, place: &str) -> bool {
        names_in(place).chain([place.len()]).any(|at| self.copies.left_out.contains(&place[..at]))
    }

    /// Notes about parts outside the wanted prefix; the only problem if nothing is below it.
    pub fn taken_together(&mut self) -> Vec<String> {
        let mut others: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let said = &self.copies.said;
        for (part, at) in self.copies.taken.iter().filter(|(_, at)| self.is_left_out(at)) {
            if !said.contains(*part) && !said.contains(at) {
                others.entry(part).or_default().push(at);
            }
        }
        let others = others
            .into_iter()
            .map(|(part, at)| format!("{part} at {}, in another copy: taken together", some_of(at, ", ")));
        let others: Vec<String> = others.collect();
        self.notes.extend(others);
        let shared = std::mem::take(&mut self.copies.shared);
        let Some(wanted) = self.overrides.prefix.as_deref().filter(|_| !shared.is_empty()) else { return Vec::new() };
        if !self.copies.chosen {
            self.problems = shared.into_iter().map(|shared| shared.none_below).collect();
            return Vec::new();
        }
        let note = |Shared { part, at, .. }: Shared| {
            format!("{part} at {}, not below the prefix {wanted}: taken together", some_of(at, ", "))
        };
        shared.into_iter().map(note).collect()
    }

    /// Reports parts in different trees of names: those of different copies are a problem, the only
    /// ones in the checkpoint a note. `first` is another part, its place and the module around it;
    /// `blocks` are the places of each gated block.
    pub fn expect_one_tree(&mut self, first: Option<(&str, &str, &str)>, blocks: &BTreeMap<usize, Vec<String>>) {
        let wanted = self.overrides.prefix.as_deref().unwrap_or_default();
        let of = |places: &'_ Vec<String>| -> Vec<String> {
            places.iter().filter(|place| place.starts_with(wanted)).cloned().collect()
        };
        let blocks: Vec<Vec<String>> = blocks.values().map(of).filter(|places| !places.is_empty()).collect();
        // The modules of the first part and of its equal copies.
        let modules = |at: &str, module: &str| -> Vec<String> {
            let name = at.strip_prefix(module).unwrap_or(at);
            let copies = self.copies.candidates.iter().filter(|place| *place != at && self.is_copy(place));
            let copies = copies.filter_map(|place| place.strip_suffix(name).map(String::from));
            std::iter::once(module.into()).chain(copies).collect()
        };
        let modules = first.map_or_else(Vec::new, |(_, at, module)| modules(at, module));
        let beside = |place: &String| modules.iter().any(|module| place.starts_with(module.as_str()));
        // The top level is not a module that could be copied.
        if let (Some((part, at, _)), Some(block)) = (first, blocks.first())
            && !block.iter().any(beside)
        {
            self.say_together(&[(part, at), ("gated blocks", &block[0])]);
        }
        // Blocks are in one tree while they have a place in common.
        let mut trees: Vec<&str> = Vec::new();
        let mut common = BTreeSet::new();
        for places in &blocks {
            let here: BTreeSet<String> = places.iter().map(|place| numberless(place)).collect();
            common.retain(|tree| here.contains(tree));
            if common.is_empty() {
                trees.push(&places[0]);
                common = here;
            }
        }
        if trees.len() > 1 {
            let trees: Vec<_> = trees.into_iter().map(|at| ("gated blocks", at)).collect();
            self.say_together(&trees);
        } else if let Some((part, at, _)) = first
            && let Some(block) = blocks.iter().skip(1).find(|block| !block.iter().any(beside))
            && blocks[0].iter().any(beside)
        {
            // Equal blocks in both trees, and another one in the other tree alone.
            self.say_shared(&[(part, at), ("gated blocks", &block[0])]);
        }
    }

    /// Reports that parts are in different trees of names.
    pub fn say_together(&mut self, parts: &[(&str, &str)]) {
        if self.copies.in_several {
            self.problems.push(format!("{}: of different copies; --prefix chooses", listed(parts)));
        } else {
            self.say_shared(parts);
        }
    }

    /// Notes that a part was taken from a module that belongs to no copy of another part.
    pub fn say_shared(&mut self, parts: &[(&str, &str)]) {
        if self.copies.shared.is_empty() {
            self.copies.said.extend(parts.iter().flat_map(|(part, at)| [*part, *at]).map(String::from));
            self.notes.push(format!("{}: taken together", listed(parts)));
        }
    }
}

/// Parts and their places, as a message shows them.
fn listed(parts: &[(&str, &str)]) -> String {
    some_of(parts.iter().map(|(part, at)| format!("{part} at {}", shown_prefix(at))), " and ")
}

/// The prefixes that begin with `prefix`, without deeper copies: not `ema.perceiver.` beside
/// `perceiver.`. What precedes a copy's name (`ema.`) ends in `end`.
fn below<'p>(prefixes: &'p [String], prefix: &str, end: &str) -> Vec<&'p String> {
    deeper(prefixes, prefix)
        .filter(|(_, before)| before.is_none_or(|before| !before[prefix.len()..].ends_with(end)))
        .map(|(place, _)| place)
        .collect()
}

/// What precedes the deeper copies that [`below`] leaves out.
fn nested(prefixes: &[String], prefix: &str) -> Vec<String> {
    deeper(prefixes, prefix).filter_map(|(_, before)| before.map(String::from)).collect()
}

/// The prefixes that begin with `prefix`. Of a deeper copy, what precedes the name that another one
/// of them has below `prefix`.
fn deeper<'p>(prefixes: &'p [String], prefix: &str) -> impl Iterator<Item = (&'p String, Option<&'p str>)> {
    let below: Vec<&String> = prefixes.iter().filter(|p| p.starts_with(prefix)).collect();
    let names: HashSet<&str> = below.iter().map(|p| &p[prefix.len()..]).collect();
    let (names, from) = (names, prefix.len());
    below.into_iter().map(move |place| {
        let mut begins = names_in(place).filter(|&at| from < at && at < place.len());
        (place, begins.find(|&at| names.contains(&place[at..])).map(|at| &place[..at]))
    })
}

/// Where names may begin within a place: anywhere, as in `ema_perceiver.` and `ema.perceiver.`.
fn names_in(place: &str) -> impl Iterator<Item = usize> {
    place.char_indices().map(|(at, _)| at)
}

/// The prefixes of the nearest module around `prefix` that has any.
fn nearest<'p>(prefixes: &'p [String], prefix: &str) -> Vec<&'p String> {
    let mut module = prefix.trim_end_matches('.');
    loop {
        module = module.rfind('.').map_or("", |dot| &module[..dot]);
        let around = if module.is_empty() { String::new() } else { format!("{module}.") };
        let found = below(prefixes, &around, ".");
        if !found.is_empty() || module.is_empty() {
            return found;
        }
    }
}

/// A prefix without the numbers in it.
fn numberless(prefix: &str) -> String {
    prefix.split('.').filter(|segment| segment.parse::<u32>().is_err()).collect::<Vec<_>>().join(".")
}

/// The module around a part, with its dot.
pub(super) fn around(prefix: &str) -> &str {
    let part = prefix.trim_end_matches('.');
    part.rfind('.').map_or("", |dot| &part[..=dot])
}
