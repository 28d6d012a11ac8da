//! A sharded checkpoint and its index. Where they disagree, a note says why a tensor is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::files::{Files, Opened, open_shard, read_shard};
use super::header::TensorInfo;
use super::json::{self, brief, some_of};
use super::{adapter, folder, index, names};
use crate::{Error, Result};

/// The state of a shard that an index names.
#[derive(Debug, PartialEq)]
enum State {
    Open,
    Missing,
    /// What the file is instead of safetensors.
    Other(String),
}

/// Tensors that an index names and no readable shard holds.
#[derive(Debug, Default)]
pub(super) struct Absent {
    shards: Vec<(Box<str>, State)>,
    of: BTreeMap<Box<str>, u32>,
    /// Tensors that two shards hold with different values.
    twice: BTreeMap<Box<str>, [Box<str>; 2]>,
    /// The message about missing shards whose content is unknown.
    unknown: Option<String>,
}

impl Absent {
    /// The names of the tensors, without wrappers.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.below("")
    }

    /// Those that begin with `prefix`.
    pub fn below<'s>(&'s self, prefix: &'s str) -> impl Iterator<Item = &'s str> {
        let of = names::below(&self.of, prefix).map(|(name, _)| name);
        of.chain(names::below(&self.twice, prefix).map(|(name, _)| name))
    }

    /// Why a tensor is missing.
    pub fn why(&self, name: &str) -> Option<String> {
        if let Some([one, other]) = self.twice.get(name) {
            return Some(format!("{one} and {other} hold it with different values"));
        }
        let (shard, state) = &self.shards[*self.of.get(name)? as usize];
        Some(match state {
            State::Open => format!("the index names {shard}, which does not hold it"),
            State::Missing => format!("it is in {shard}, which is not there"),
            State::Other(what) => format!("it is in {shard}, which cannot be read: {what}"),
        })
    }
}

impl Files {
    /// Opens the shards that an index names, if they exist and can be read.
    pub(super) fn open_index(&mut self, folder: &Path, path: &Path) -> Result<()> {
        let fault = |fault: String| Error::file(path, fault);
        let map = index::parse(&json::read(path)?).map_err(fault)?;
        let mut states = Vec::with_capacity(map.files().len());
        let mut again = Vec::new();
        // For each open shard, its number in the index.
        let mut numbers = Vec::new();
        for (number, name) in map.files().iter().enumerate() {
            let state = match read(&folder.join(&**name))? {
                Some(Ok(opened)) => {
                    self.add(opened, &mut again);
                    numbers.push(number as u32);
                    State::Open
                }
                Some(Err(what)) => State::Other(what),
                None => State::Missing,
            };
            states.push((name.clone(), state));
        }
        if numbers.is_empty() {
            let count = states.len();
            return Err(fault(if states.iter().all(|(_, state)| *state == State::Missing) {
                format!("not one of its {count} shards is there: {}", some_of(map.files(), ", "))
            } else {
                let shown = states.iter().map(|(name, state)| match state {
                    State::Other(what) => with_reason(name, what),
                    _ => with_reason(name, "not there"),
                });
                format!("not one of its {count} shards can be read: {}", some_of(shown, ", "))
            }));
        }
        self.absent.shards = states;
        self.compare_copies(again, |name, [one, other]| {
            let listed = map.tensors().get(name)?;
            [one, other].into_iter().find(|shard| numbers[*shard as usize] == *listed)
        })?;
        self.note_differences(path, &map, &numbers);
        Ok(())
    }

    /// Notes that only one shard was named, and that the content of the others is unknown.
    pub(super) fn note_one_of_several(&mut self, path: &Path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(of) = index::shards(&[&name]).filter(|&of| of > 1) {
            self.say_incomplete(format!("{name}: one of {of} shards; what is in the others is not known"));
        }
    }

    /// Opens shards without their index.
    pub(super) fn open_shards(&mut self, folder: &Path, shards: &[PathBuf], of: usize) -> Result<()> {
        let mut again = Vec::new();
        for shard in shards {
            self.add(open_shard(shard)?, &mut again);
        }
        self.compare_copies(again, |_, _| None)?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let note = format!("{name}: {} of {of} shards are there, and no index of them", shards.len());
        if shards.len() < of {
            self.say_incomplete(note)
        } else {
            self.notes.push(note)
        }
        Ok(())
    }

    /// Notes missing shards whose content is unknown.
    fn say_incomplete(&mut self, note: String) {
        self.absent.unknown = Some(note.clone());
        self.notes.push(note);
    }

    /// The message about missing shards whose content is unknown.
    pub(super) fn incomplete(&self) -> Option<&str> {
        self.absent.unknown.as_deref()
    }

    /// Settles tensors in two shards: equal ones are one, else `choose` takes one or none.
    fn compare_copies(
        &mut self,
        again: Vec<(Box<str>, TensorInfo)>,
        choose: impl Fn(&str, [u32; 2]) -> Option<u32>,
    ) -> Result<()> {
        let mut settled = Few::default();
        for (name, info) in again {
            let Some(first) = self.tensors.get(&name).cloned() else { continue };
            let equal = self.equal(&first, &info)?;
            let chosen = choose(&name, [first.shard, info.shard]);
            if let (Some(shard), false) = (chosen, equal) {
                settled.add(|| format!("{} (of {})", brief(&name), self.shard_name(shard)));
            }
            match chosen {
                Some(shard) if shard == info.shard => drop(self.tensors.insert(name, info)),
                Some(_) => {}
                None if equal => {}
                None => {
                    self.tensors.remove(&name);
                    let mut shards = [first.shard, info.shard].map(|shard| self.shard_name(shard).into());
                    shards.sort_unstable();
                    self.absent.twice.insert(name, shards);
                }
            }
        }
        if settled.count > 0 {
            let (count, names) = (settled.count, settled.shown());
            self.notes
                .push(format!("{count} tensors are in two shards with different values; the index chooses: {names}"));
        }
        if !self.absent.twice.is_empty() {
            let count = self.absent.twice.len();
            let names = some_of(self.absent.twice.keys().map(brief), ", ");
            self.notes
                .push(format!("{count} tensors are in two shards with different values and are not read: {names}"));
        }
        Ok(())
    }

    /// Files of the checkpoint that was read, each as `shard`, `index` or `adapter`: shards of the
    /// same index or set of names, and indexes beside a shard. Some may not exist.
    pub fn siblings(&self) -> BTreeSet<(&'static str, PathBuf)> {
        let mut found = BTreeSet::new();
        let read = self.paths().find(|(what, _)| *what == "index").map(|(_, path)| path);
        if let Some(folder) = read.and_then(Path::parent) {
            found.extend(self.absent.shards.iter().map(|(name, _)| ("shard", folder.join(&**name))));
        }
        let mut folders: BTreeMap<PathBuf, (Vec<String>, Vec<index::WeightMap>)> = BTreeMap::new();
        for place in self.shards.iter().flat_map(|shard| places(shard.file.path())) {
            let (Some(folder), Some(name)) = (place.parent(), place.file_name().and_then(|name| name.to_str())) else {
                continue;
            };
            let (names, maps) = folders.entry(folder.into()).or_insert_with(|| {
                let names = folder::names(if folder == Path::new("") { Path::new(".") } else { folder });
                let names = names.unwrap_or_default();
                let indexes = names.iter().filter(|name| name.ends_with(".index.json")).map(|name| folder.join(name));
                let indexes: Vec<PathBuf> = indexes.collect();
                let unread = indexes.iter().filter(|path| Some(path.as_path()) != read);
                let maps = unread.filter_map(|path| index::parse(&json::read(path).ok()?).ok()).collect();
                found.extend(indexes.into_iter().map(|path| ("index", path)));
                let adapter = names.iter().filter(|name| adapter::is_weights(name) || **name == adapter::CONFIG);
                found.extend(adapter.map(|name| ("adapter", folder.join(name))));
                (names, maps)
            });
            if found.contains(&("shard", place.clone())) {
                continue;
            }
            let alike = names.iter().filter(|other| index::shards(&[name, other]).is_some()).cloned();
            let listed =
                maps.iter().map(index::WeightMap::files).filter(|files| files.iter().any(|file| **file == *name));
            let listed = listed.flatten().map(|file| file.to_string());
            found.extend(alike.chain(index::set(name)).chain(listed).map(|name| ("shard", folder.join(name))));
        }
        found
    }

    fn shard_name(&self, shard: u32) -> String {
        let path = self.shards[shard as usize].file.path();
        path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Notes where index and shards differ, and remembers tensors that cannot be read.
    fn note_differences(&mut self, path: &Path, map: &index::WeightMap, numbers: &[u32]) {
        let (mut in_missing, mut in_others) = (0usize, 0usize);
        let (mut nowhere, mut elsewhere, mut unlisted) = (Few::default(), Few::default(), Few::default());
        for (tensor, &file) in map.tensors() {
            match self.tensors.get(tensor) {
                Some(info) if numbers[info.shard as usize] == file => {}
                Some(info) => elsewhere.add(|| format!("{} (in {})", brief(tensor), self.shard_name(info.shard))),
                None => {
                    match &self.absent.shards[file as usize].1 {
                        State::Open if self.absent.twice.contains_key(tensor) => continue,
                        State::Open => nowhere.add(|| brief(tensor)),
                        State::Missing => in_missing += 1,
                        State::Other(_) => in_others += 1,
                    }
                    let plain = names::unwrap(tensor).map_or_else(|| tensor.clone(), |name| name.plain);
                    self.absent.of.insert(plain, file);
                }
            }
        }
        if self.tensors.len() + self.absent.of.len() > map.tensors().len() {
            for tensor in self.tensors.keys().filter(|tensor| !map.tensors().contains_key(*tensor)) {
                unlisted.add(|| brief(tensor));
            }
        }
        let index = path.file_name().unwrap_or_default().to_string_lossy();
        let shards = &self.absent.shards;
        let (of, mut missing, mut others) = (shards.len(), Few::default(), Few::default());
        for (name, state) in shards {
            match state {
                State::Open => {}
                State::Missing => missing.add(|| name.to_string()),
                State::Other(what) => others.add(|| with_reason(name, what)),
            }
        }
        let mut notes = Vec::new();
        for (few, what, tensors) in [(missing, "are not there", in_missing), (others, "cannot be read", in_others)] {
            if few.count > 0 {
                let (count, names) = (few.count, few.shown());
                notes.push(format!("{index}: {count} of {of} shards {what} ({names}); {tensors} tensors are in them"));
            }
        }
        for (few, what) in [
            (nowhere, "tensors that it lists are in no shard"),
            (elsewhere, "tensors are in another shard than it says"),
            (unlisted, "tensors of the shards are not in it"),
        ] {
            if few.count > 0 {
                notes.push(format!("{index}: {} {what}: {}", few.count, few.shown()));
            }
        }
        self.notes.append(&mut notes);
    }
}

/// A path, and the targets of its chain of symbolic links.
fn places(path: &Path) -> Vec<PathBuf> {
    /// The longest chain of links.
    const LINKS: usize = 40;
    let mut places = vec![path.to_path_buf()];
    while let Some(to) = places.last().filter(|_| places.len() < LINKS).and_then(|last| {
        let to = std::fs::read_link(last).ok()?;
        Some(last.parent().unwrap_or(Path::new("")).join(to))
    }) {
        places.push(to);
    }
    places
}

/// How many there are, and the first few.
#[derive(Default)]
struct Few {
    count: usize,
    first: Vec<String>,
}

impl Few {
    fn add(&mut self, name: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < 3 {
            self.first.push(name());
        }
    }

    fn shown(&self) -> String {
        // The rest is only counted.
        some_of(
            self.first.iter().map(String::as_str).chain(std::iter::repeat_n("", self.count - self.first.len())),
            ", ",
        )
    }
}

/// A name, and behind it what is there under it.
fn with_reason(name: &str, what: &str) -> String {
    [name, what].join(": ")
}

/// A shard that an index names, or what is in its place, if anything; no devices or pipes.
fn read(shard: &Path) -> Result<Option<Result<Opened, String>>> {
    match std::fs::metadata(shard) {
        Ok(about) if about.is_dir() => Ok(Some(Err("a folder".into()))),
        Ok(about) if !about.is_file() => Ok(Some(Err("not a regular file".into()))),
        Ok(_) => read_shard(shard).map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        // A dangling or circular link.
        Err(e) if shard.is_symlink() => Ok(Some(Err(e.to_string()))),
        Err(e) => Err(Error::file(shard, e)),
    }
}
