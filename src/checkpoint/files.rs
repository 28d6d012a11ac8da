//! Safetensors files on disk: one file, or a folder with shards and their index.
//!
//! Opening a checkpoint reads only headers, each by one read into our own memory; a tensor's bytes
//! are read on demand. Files are hostile: an index may only name files beside it. A file that
//! contradicts itself, or changes while in use, is an error that names the file and the fault. A
//! shard that cannot be read or disagrees with its index is a note, and the reason why a tensor is
//! missing: a bridge does not need the language model's.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::adapter::{self, Adapter, AdapterChoice};
use super::folder::{self, Found};
use super::header::{self, TensorInfo};
use super::json::{self, brief};
use super::shards::Absent;
use super::{TensorSource, explain, index_behind, names};
use crate::regular::{Range, RegularFile};
use crate::{Error, HostTensor, Result};

/// The matrices that an adapter adds to a tensor.
#[derive(Debug, Clone)]
pub(super) struct Update {
    /// `lora_A`, [rank, inputs].
    pub a: TensorInfo,
    /// `lora_B`, [outputs, rank].
    pub b: TensorInfo,
    /// Alpha over the rank, or over its square root.
    pub scale: f32,
    /// Whether W is [inputs, outputs].
    pub transposed: bool,
}

/// The safetensors files of a checkpoint. `Send + Sync`.
///
/// The files stay open and are never mapped, so memory that was read cannot change under another
/// process's writes. A later read fails with [`Error::File`] if size, modification time or inode
/// differ from those at opening.
pub struct Files {
    pub(super) path: PathBuf,
    pub(super) shards: Vec<Shard>,
    /// How many of the shards (the last ones) are an adapter's.
    pub(super) adapters: usize,
    pub(super) tensors: BTreeMap<Box<str>, TensorInfo>,
    /// What the adapter adds to tensors.
    pub(super) updates: BTreeMap<Box<str>, Update>,
    pub(super) adapter: Option<Adapter>,
    /// Whether an adapter lies beside the tensors and was not asked for.
    pub(super) left_out: bool,
    /// The file's own versions of tensors that the adapter replaces.
    pub(super) originals: BTreeMap<Box<str>, TensorInfo>,
    /// Names that were not saved because the tensor shares another's memory.
    pub(super) tied: Vec<Box<str>>,
    /// Tensors that an index names and no readable shard holds.
    pub(super) absent: Absent,
    pub(super) notes: Vec<String>,
    config: Option<(PathBuf, String)>,
    index: Option<PathBuf>,
    /// Pairs of tensors that were compared and hold the same.
    same: Mutex<BTreeSet<[String; 2]>>,
}

pub(super) struct Shard {
    pub file: RegularFile,
    /// Where the tensors' bytes begin.
    pub data: u64,
}

/// What a shard holds.
pub(super) struct Opened {
    pub shard: Shard,
    pub tensors: BTreeMap<Box<str>, TensorInfo>,
    /// Names left out of the file because another tensor is the same, each with that tensor.
    pub tied: Vec<(Box<str>, Box<str>)>,
}

impl Files {
    /// What [`Files::open_with`] opens. `parts`: modules of bridges that people save alone.
    pub(super) fn read(path: &Path, adapter: AdapterChoice<'_>, parts: &[&str]) -> Result<Self> {
        let about = std::fs::metadata(path).map_err(|e| Error::file(path, e))?;
        let mut files = Files::nothing(path);
        let folder = if about.is_dir() {
            match folder::find(path)? {
                Found::File(file) => files.open_file(path, &file)?,
                Found::Shards(shards, of) => files.open_shards(path, &shards, of)?,
            }
            path.to_path_buf()
        } else {
            let folder = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
            files.open_file(&folder, path)?;
            files.note_one_of_several(path);
            folder
        };
        adapter::expect_no_adapter(path, &files.tensors)?;
        files.unwrap_names()?;
        let config = folder.join("config.json");
        if exists(&config) {
            files.config = Some((config.clone(), json::read(&config)?));
        }
        files.open_adapter(&folder, adapter, parts)?;
        Ok(files)
    }

    /// Opens one safetensors file, whatever lies beside it; its names stay as they are.
    ///
    /// # Errors
    /// [`Error::File`] with the fault.
    pub fn open_one(path: &Path) -> Result<Self> {
        let mut files = Files::nothing(path);
        files.add(open_shard(path)?, &mut Vec::new());
        Ok(files)
    }

    fn nothing(path: &Path) -> Self {
        Files {
            path: path.to_path_buf(),
            shards: Vec::new(),
            adapters: 0,
            tensors: BTreeMap::new(),
            updates: BTreeMap::new(),
            adapter: None,
            left_out: false,
            originals: BTreeMap::new(),
            tied: Vec::new(),
            absent: Absent::default(),
            notes: Vec::new(),
            config: None,
            index: None,
            same: Mutex::default(),
        }
    }

    /// Opens a safetensors file or an index: the first bytes tell which.
    fn open_file(&mut self, folder: &Path, file: &Path) -> Result<()> {
        adapter::expect_base(folder, file)?;
        let head = || explain::head(&RegularFile::open(file)?);
        if file.extension() == Some("json".as_ref()) && !explain::is_safetensors(&head()?) {
            self.index = Some(file.into());
            return self.open_index(folder, file);
        }
        match open_shard(file) {
            Ok(opened) => self.add(opened, &mut Vec::new()),
            Err(_) if explain::is_index(&head()?) => {
                self.index = Some(file.into());
                return self.open_index(folder, file);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors by name, without the segments that training wrappers add: `_orig_mod`, `module`,
    /// `_fsdp_wrapped_module`, `_checkpoint_wrapped_module`, `base_model.model`,
    /// `modules_to_save.NAME`, `original_module`.
    ///
    /// If PEFT trained a whole module (`modules_to_save`), its trained copy is listed, not the
    /// `original_module`. Two tensors with one name are merged if they hold the same; otherwise all
    /// tensors of that wrapper keep their full names. A tensor that was not saved because it is
    /// tied to another (`__metadata__` of safetensors' `save_model`) is listed by its own name.
    pub fn tensors(&self) -> &BTreeMap<Box<str>, TensorInfo> {
        &self.tensors
    }

    /// What the header says of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Number of safetensors files, without the adapter's.
    pub fn shards(&self) -> usize {
        self.shards.len() - self.adapters
    }

    /// Notes for the user: missing or unreadable shards, a wrong index, a merged adapter.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Why a tensor that an index names is missing: for example, which missing shard would hold it.
    pub fn why_absent(&self, name: &str) -> Option<String> {
        self.absent.why(name)
    }

    /// The adapter that is merged into the tensors.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// Whether an adapter beside the tensors was left out, as [`AdapterChoice::None`] asks.
    pub fn leaves_adapter_out(&self) -> bool {
        self.left_out
    }

    /// Every file that was read, as `checkpoint`, `shard`, `index`, `config` or `adapter`.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let own = self.shards();
        let part = if self.index.is_some() || own > 1 { "shard" } else { "checkpoint" };
        let shards = self.shards.iter().enumerate();
        let shards = shards.map(move |(i, shard)| (if i < own { part } else { "adapter" }, shard.file.path()));
        let index = self.index.iter().map(|path| ("index", path.as_path()));
        let config = self.config.iter().map(|(path, _)| ("config", path.as_path()));
        shards.chain(index).chain(config).chain(self.adapter.iter().map(|adapter| ("adapter", adapter.config_path())))
    }

    /// `config.json`: its path and text.
    pub fn config(&self) -> Option<(&Path, &str)> {
        self.config.as_ref().map(|(path, text)| (path.as_path(), text.as_str()))
    }

    /// A tensor, still in its file: see [`HostTensor::bytes`]. Reading its bytes merges the
    /// adapter.
    ///
    /// # Errors
    /// [`Error::File`] if the tensor is missing, or no bridge reads its type.
    pub fn tensor(&self, name: &str) -> Result<HostTensor<'_>> {
        let (info, range) = self.find(name)?;
        let Some(dtype) = info.element() else {
            let expected = "expected f64, f32, f16, bf16, i32 or u32";
            return Err(Error::file(
                range.path(),
                format!("tensor {}: {expected}, found {}", brief(name), info.dtype()),
            ));
        };
        match self.updates.get(name) {
            Some(update) => HostTensor::merged(dtype, &info.shape, self.merged(range, dtype, info, update)?),
            None => HostTensor::in_file(dtype, &info.shape, range),
        }
    }

    /// The bytes of a tensor of any type.
    ///
    /// # Errors
    /// [`Error::File`] if the tensor is missing, or its file cannot be read or has changed since it
    /// was opened; [`Error::OutOfMemory`].
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let (info, range) = self.find(name)?;
        match (self.updates.get(name), info.element()) {
            (Some(update), Some(dtype)) => self.merged(range, dtype, info, update)?.read(),
            _ => range.read(),
        }
    }

    /// Whether two tensors are equal in type, shape and bytes. Equal pairs are remembered.
    ///
    /// # Errors
    /// As [`Files::bytes`].
    pub(super) fn same(&self, a: &str, b: &str) -> Result<bool> {
        let ((one, first), (other, second)) = (self.find(a)?, self.find(b)?);
        if (one.dtype(), &one.shape) != (other.dtype(), &other.shape) {
            return Ok(false);
        }
        let changed = [a, b].iter().any(|name| self.updates.contains_key(*name));
        if one.place() == other.place() && !changed {
            return Ok(true);
        }
        let known = || self.same.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = [a.to_string(), b.to_string()];
        if known().contains(&pair) {
            return Ok(true);
        }
        let equal = if changed { self.bytes(a)? == self.bytes(b)? } else { first.same(&second)? };
        if equal {
            known().insert(pair);
        }
        Ok(equal)
    }

    /// Whether the adapter changes a tensor.
    pub(super) fn changed(&self, name: &str) -> bool {
        self.updates.contains_key(name) || self.originals.contains_key(name)
    }

    /// Whether both hold the same, or did before the adapter changed `name` alone.
    ///
    /// # Errors
    /// As [`Files::bytes`].
    pub(super) fn is_alias(&self, name: &str, alias: &str) -> Result<bool> {
        let (Some(info), Some(other)) = (self.originals.get(name).or(self.info(name)), self.info(alias)) else {
            return Ok(false);
        };
        if self.changed(name) && !self.changed(alias) { self.equal(info, other) } else { self.same(name, alias) }
    }

    /// The names of all tensors, also of those in missing shards.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(|name| &**name).chain(self.absent.names())
    }

    /// The tensors whose names begin with `prefix`.
    pub(super) fn below<'s>(&'s self, prefix: &'s str) -> impl Iterator<Item = (&'s str, &'s TensorInfo)> {
        names::below(&self.tensors, prefix)
    }

    fn find(&self, name: &str) -> Result<(&TensorInfo, Range<'_>)> {
        let info = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::file(&self.path, format!("tensor {}: not there", brief(name))))?;
        Ok((info, self.range(info)))
    }

    /// Where a tensor's bytes are.
    pub(super) fn range(&self, info: &TensorInfo) -> Range<'_> {
        let shard = &self.shards[info.shard as usize];
        Range::new(&shard.file, shard.data + info.start, info.bytes)
    }

    /// Whether two tensors of the files hold the same.
    pub(super) fn equal(&self, one: &TensorInfo, other: &TensorInfo) -> Result<bool> {
        let alike = (one.dtype(), &one.shape) == (other.dtype(), &other.shape);
        Ok(alike && (one.place() == other.place() || self.range(one).same(&self.range(other))?))
    }

    /// Adds a shard; tensors that another shard already has go to `again`.
    pub(super) fn add(&mut self, opened: Opened, again: &mut Vec<(Box<str>, TensorInfo)>) {
        let shard = self.shards.len() as u32;
        self.shards.push(opened.shard);
        let mut tensors = opened.tensors;
        for (tied, kept) in opened.tied {
            if let (Some(info), false) = (tensors.get(&kept).cloned(), tensors.contains_key(&tied)) {
                self.tied.extend([tied.clone(), kept]);
                tensors.insert(tied, info);
            }
        }
        if shard == 0 {
            self.tensors = tensors;
            return;
        }
        for (name, mut info) in tensors {
            info.shard = shard;
            match self.tensors.entry(name) {
                Entry::Vacant(place) => drop(place.insert(info)),
                Entry::Occupied(there) => again.push((there.key().clone(), info)),
            }
        }
    }

    /// Takes the wrappers out of the names: see [`Files::tensors`].
    fn unwrap_names(&mut self) -> Result<()> {
        struct One {
            name: names::Wrapped,
            full: Box<str>,
            info: TensorInfo,
        }
        let count = self.tensors.keys().filter(|name| names::unwrap(name).is_some()).count();
        if count == 0 {
            return Ok(());
        }
        let mut all = Vec::with_capacity(count);
        let others =
            std::mem::take(&mut self.tensors).into_iter().filter_map(|(full, info)| match names::unwrap(&full) {
                None => Some((full, info)),
                Some(name) => {
                    all.push(One { name, full, info });
                    None
                }
            });
        self.tensors = others.collect();
        all.sort_by(|a, b| (&a.name.plain, &a.full).cmp(&(&b.name.plain, &b.full)));
        // A tensor whose module has a trained copy is not read.
        let before = all.len();
        let mut trained = BTreeSet::new();
        for run in all.chunk_by(|a, b| a.name.plain == b.name.plain) {
            if run.iter().any(|one| one.name.original) && run.iter().any(|one| !one.name.original) {
                trained.insert(run[0].name.plain.clone());
            }
        }
        all.retain(|one| !one.name.original || !trained.contains(&one.name.plain));
        if all.len() < before {
            let count = before - all.len();
            self.notes.push(format!("tensors below original_module: {count} are not read, their trained copies are"));
        }
        // Wrappers with a tensor that differs from another of the same name.
        let mut differ = BTreeSet::new();
        for run in all.chunk_by(|a, b| a.name.plain == b.name.plain) {
            let first = self.tensors.get(&run[0].name.plain).unwrap_or(&run[0].info);
            for one in run {
                if !self.equal(first, &one.info)? {
                    differ.extend(run.iter().map(|one| one.full[..one.name.wrapper].to_string()));
                    break;
                }
            }
        }
        for tied in &mut self.tied {
            if let Some(name) = names::unwrap(tied) {
                *tied = name.plain;
            }
        }
        // The first of each group of equal tensors. A map that is built from a list has no holes.
        let mut renamed: Vec<(Box<str>, TensorInfo)> = Vec::with_capacity(all.len());
        let mut placed: Option<Box<str>> = None;
        for One { name, full, info } in all {
            if differ.contains(&full[..name.wrapper]) {
                renamed.push((full, info));
            } else if !self.tensors.contains_key(&name.plain) && placed.as_ref() != Some(&name.plain) {
                placed = Some(name.plain.clone());
                renamed.push((name.plain, info));
            }
        }
        if self.tensors.is_empty() {
            self.tensors = renamed.into_iter().collect();
        } else {
            self.tensors.extend(renamed);
        }
        Ok(())
    }
}

/// Opens a safetensors file and reads its header.
pub(super) fn open_shard(path: &Path) -> Result<Opened> {
    read_shard(path)?.map_err(|fault| Error::file(path, fault))
}

/// The same; the inner error is a readable file that is not safetensors, and says what it is.
pub(super) fn read_shard(path: &Path) -> Result<Result<Opened, String>> {
    let file = RegularFile::open(path)?;
    let fault = |fault: String| Ok(Err(header::fault(&explain::head(&file)?, fault)));
    let first = file.read(0, header::LENGTH.min(file.bytes() as usize))?;
    let text = match header::text_bytes(&first, file.bytes()) {
        Ok(text) => text,
        Err(what) => return fault(what),
    };
    let data = (header::LENGTH + text) as u64;
    let text = file.read(header::LENGTH as u64, text)?;
    let header::Header { tensors, metadata } = match header::parse(&text, file.bytes() - data) {
        Ok(header) => header,
        Err(what) => return fault(what),
    };
    drop(text);
    let tied =
        metadata.into_iter().filter(|(name, kept)| tensors.contains_key(&**kept) && !tensors.contains_key(&**name));
    let tied = tied.map(|(name, kept)| (name.into(), kept.into())).collect();
    Ok(Ok(Opened { shard: Shard { file, data }, tensors, tied }))
}

impl<'a> TensorSource<'a> for &'a Files {
    fn tensor(&self, name: &str) -> Option<HostTensor<'a>> {
        Files::tensor(self, name).ok()
    }

    fn indices(&self, prefix: &str) -> BTreeSet<usize> {
        let there = self.below(prefix).map(|(name, _)| name);
        there.chain(self.absent.below(prefix)).filter_map(|name| index_behind(prefix, name)).collect()
    }

    fn any_below(&self, prefix: &str) -> bool {
        self.below(prefix).next().is_some() || self.absent.below(prefix).next().is_some()
    }

    fn listed(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.absent.why(name).is_some()
    }
}

/// Whether anything has that name, even a dangling link.
pub(super) fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}
