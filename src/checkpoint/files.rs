//! Safetensors files on disk: one file, or a folder with shards and their index.
//!
//! Only headers are read when a checkpoint is opened, each by one read into memory of ours; a tensor's bytes are read when somebody needs
//! them. Files are hostile: an index may only name files beside it, whatever contradicts itself is an error that names the file and the
//! fault, and so is a file that changes while it is in use.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::header::{self, TensorInfo};
use super::json::{self, brief, some_of};
use super::{TensorSource, adapter, index, index_behind};
use crate::regular::{Range, RegularFile};
use crate::{Error, HostTensor, Result};

/// The converter that errors about `.pt` files point to.
const CONVERTER: &str = "scripts/convert-checkpoint";

/// What torch's activation checkpointing puts into the names of modules.
const WRAPPER: &str = "_checkpoint_wrapped_module.";

/// The safetensors files of a checkpoint. `Send + Sync`.
///
/// The files stay open and are never mapped: whatever another process does to them meanwhile, memory that was read stays as it is, and a
/// read that comes later fails with [`Error::File`] when size, modification time or inode are not those at opening any more.
pub struct Files {
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<Box<str>, TensorInfo>,
    config: Option<(PathBuf, String)>,
    index: Option<PathBuf>,
    /// Pairs of tensors that were compared and hold the same.
    same: Mutex<BTreeSet<[String; 2]>>,
}

struct Shard {
    file: RegularFile,
    /// Where the tensors' bytes begin.
    data: u64,
}

impl Files {
    /// Opens a safetensors file, an index file, or a folder with either; `config.json` beside the tensors is read too.
    ///
    /// # Errors
    /// [`Error::File`] with the file and the fault.
    pub fn open(path: &Path) -> Result<Self> {
        let about = std::fs::metadata(path).map_err(|e| Error::file(path, e))?;
        let (folder, file) = if about.is_dir() {
            (path.to_path_buf(), find_in(path)?)
        } else {
            (path.parent().map_or_else(PathBuf::new, Path::to_path_buf), path.to_path_buf())
        };
        let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if adapter::is_weights(name) && exists(&folder.join(adapter::CONFIG)) {
            return Err(adapter::refusal(&folder.join(adapter::CONFIG)));
        }
        let mut files = Files::nothing(path);
        if file.extension() == Some(OsStr::new("json")) {
            files.open_index(&folder, &file)?;
            files.index = Some(file);
        } else {
            files.open_shard(&file)?;
        }
        files.unwrap_names()?;
        let config = folder.join("config.json");
        if exists(&config) {
            files.config = Some((config.clone(), json::read(&config)?));
        }
        Ok(files)
    }

    /// Opens one safetensors file, whatever lies beside it.
    ///
    /// # Errors
    /// [`Error::File`] with the fault.
    pub fn open_one(path: &Path) -> Result<Self> {
        let mut files = Files::nothing(path);
        files.open_shard(path)?;
        Ok(files)
    }

    fn nothing(path: &Path) -> Self {
        Files {
            path: path.to_path_buf(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            config: None,
            index: None,
            same: Mutex::default(),
        }
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors by name, without the `_checkpoint_wrapped_module.` of torch's activation checkpointing.
    pub fn tensors(&self) -> &BTreeMap<Box<str>, TensorInfo> {
        &self.tensors
    }

    /// What the header says of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Number of safetensors files.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Every file that was read, and what it is: `checkpoint`, `shard`, `index` or `config`.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let part = if self.index.is_some() { "shard" } else { "checkpoint" };
        let shards = self.shards.iter().map(move |shard| (part, shard.file.path()));
        let index = self.index.iter().map(|path| ("index", path.as_path()));
        shards.chain(index).chain(self.config.iter().map(|(path, _)| ("config", path.as_path())))
    }

    /// `config.json`: its path and text.
    pub fn config(&self) -> Option<(&Path, &str)> {
        self.config.as_ref().map(|(path, text)| (path.as_path(), text.as_str()))
    }

    /// A tensor, still in its file: see [`HostTensor::bytes`].
    ///
    /// # Errors
    /// [`Error::File`] about a tensor that is not there, or has a type that no bridge reads.
    pub fn tensor(&self, name: &str) -> Result<HostTensor<'_>> {
        let (info, range) = self.find(name)?;
        let Some(dtype) = info.element() else {
            let file = self.shards[info.shard as usize].file.path();
            let expected = "expected f64, f32, f16, bf16, i32 or u32";
            return Err(Error::file(file, format!("tensor {}: {expected}, found {}", brief(name), info.dtype())));
        };
        HostTensor::in_file(dtype, &info.shape, range)
    }

    /// The bytes of a tensor of any type.
    ///
    /// # Errors
    /// [`Error::File`] about a tensor that is not there, or a file that cannot be read or has changed since it was opened;
    /// [`Error::OutOfMemory`].
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.find(name)?.1.read()
    }

    /// Whether two tensors are equal in type, shape and bytes. What was found equal is not read again.
    ///
    /// # Errors
    /// As [`Files::bytes`].
    pub(super) fn same(&self, a: &str, b: &str) -> Result<bool> {
        let ((one, first), (other, second)) = (self.find(a)?, self.find(b)?);
        if (one.dtype(), &one.shape) != (other.dtype(), &other.shape) {
            return Ok(false);
        }
        let known = || self.same.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = [a.to_string(), b.to_string()];
        if known().contains(&pair) {
            return Ok(true);
        }
        let equal = first.read()? == second.read()?;
        if equal {
            known().insert(pair);
        }
        Ok(equal)
    }

    /// The tensors whose names begin with `prefix`.
    pub(super) fn below<'s>(&'s self, prefix: &'s str) -> impl Iterator<Item = (&'s str, &'s TensorInfo)> {
        let from = (std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded);
        let on = self.tensors.range::<str, _>(from).map(|(name, info)| (&**name, info));
        on.take_while(move |(name, _)| name.starts_with(prefix))
    }

    fn find(&self, name: &str) -> Result<(&TensorInfo, Range<'_>)> {
        let info = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::file(&self.path, format!("tensor {}: not there", brief(name))))?;
        let shard = &self.shards[info.shard as usize];
        Ok((info, Range::new(&shard.file, shard.data + info.start, info.bytes)))
    }

    fn open_index(&mut self, folder: &Path, path: &Path) -> Result<()> {
        let fault = |fault: String| Error::file(path, fault);
        let map = index::parse(&json::read(path)?).map_err(fault)?;
        let missing = map.files().filter(|name| std::fs::metadata(folder.join(name)).is_err());
        let missing = some_of(missing, ", ");
        if !missing.is_empty() {
            return Err(fault(format!("weight_map: missing shards: {missing}")));
        }
        for name in map.files() {
            self.open_shard(&folder.join(name))?;
        }
        let holder = |info: &TensorInfo| self.shards[info.shard as usize].file.path().file_name().unwrap_or_default();
        let elsewhere = self.tensors.iter().filter_map(|(tensor, info)| {
            let holder = holder(info).to_string_lossy();
            match map.file_of(tensor) {
                None => Some(format!("{}: in {holder}, but not in weight_map", brief(tensor))),
                Some(file) if *file != holder => {
                    Some(format!("{}: weight_map says {file}, but it is in {holder}", brief(tensor)))
                }
                Some(_) => None,
            }
        });
        let nowhere = map
            .tensors()
            .filter(|(tensor, _)| !self.tensors.contains_key(*tensor))
            .map(|(tensor, file)| format!("{}: weight_map says {file}, but it is in no shard", brief(tensor)));
        let problems = some_of(elsewhere.chain(nowhere), "; ");
        if problems.is_empty() { Ok(()) } else { Err(fault(problems)) }
    }

    fn unwrap_names(&mut self) -> Result<()> {
        let wrapped: Vec<Box<str>> = self.tensors.keys().filter(|name| name.contains(WRAPPER)).cloned().collect();
        for name in wrapped {
            let plain = name.replace(WRAPPER, "").into_boxed_str();
            let info = self.tensors.remove(&name);
            if self.tensors.contains_key(&plain) {
                let fault = format!("tensor {} is also there as {}", brief(&plain), brief(&name));
                return Err(Error::file(&self.path, fault));
            }
            self.tensors.extend(info.map(|info| (plain, info)));
        }
        Ok(())
    }

    fn open_shard(&mut self, path: &Path) -> Result<()> {
        let fault = |fault: String| Error::file(path, format!("not a safetensors file: {fault}"));
        let file = RegularFile::open(path)?;
        let first = file.read(0, header::LENGTH.min(file.bytes() as usize))?;
        if is_pickle_name(path) || is_pickle(&first) {
            return Err(pickle_error(path));
        }
        let text = header::text_bytes(&first, file.bytes()).map_err(fault)?;
        let data = (header::LENGTH + text) as u64;
        let text = file.read(header::LENGTH as u64, text)?;
        let tensors = header::parse(&text, file.bytes() - data).map_err(fault)?.tensors;
        drop(text);
        let shard = self.shards.len() as u32;
        for (name, mut info) in tensors {
            if let Some(other) = self.tensors.get(&name) {
                let other = self.shards[other.shard as usize].file.path().display();
                return Err(Error::file(path, format!("tensor {} is also in {other}", brief(&name))));
            }
            info.shard = shard;
            self.tensors.insert(name, info);
        }
        self.shards.push(Shard { file, data });
        Ok(())
    }
}

impl<'a> TensorSource<'a> for &'a Files {
    fn tensor(&self, name: &str) -> Option<HostTensor<'a>> {
        Files::tensor(self, name).ok()
    }

    fn indices(&self, prefix: &str) -> BTreeSet<usize> {
        self.below(prefix).filter_map(|(name, _)| index_behind(prefix, name)).collect()
    }

    fn any_below(&self, prefix: &str) -> bool {
        self.below(prefix).next().is_some()
    }
}

/// The one file or index of a folder that holds its tensors; transformers' own names first.
fn find_in(folder: &Path) -> Result<PathBuf> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::file(folder, e))? {
        let entry = entry.map_err(|e| Error::file(folder, e))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    let adapter = names.iter().any(|n| n == adapter::CONFIG);
    if adapter {
        names.retain(|n| !adapter::is_weights(n));
    }
    for usual in ["model.safetensors", "model.safetensors.index.json"] {
        if names.iter().any(|n| n == usual) {
            return Ok(folder.join(usual));
        }
    }
    for ending in [".safetensors.index.json", ".safetensors"] {
        let found: Vec<&String> = names.iter().filter(|n| n.ends_with(ending)).collect();
        match found.as_slice() {
            [] => {}
            [one] => return Ok(folder.join(one)),
            several => {
                return Err(Error::file(
                    folder,
                    format!("several files could hold the checkpoint; name one of {}", some_of(several, ", ")),
                ));
            }
        }
    }
    match names.iter().find(|n| is_pickle_name(Path::new(n))) {
        Some(pickle) => Err(pickle_error(&folder.join(pickle))),
        None if adapter => Err(adapter::refusal(&folder.join(adapter::CONFIG))),
        None => Err(Error::file(folder, "no file in this folder ends in .safetensors")),
    }
}

fn is_pickle_name(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
    ["pt", "pth", "bin", "ckpt", "pkl"].contains(&extension.as_str())
}

fn pickle_error(path: &Path) -> Error {
    let fault =
        format!("a PyTorch pickle, which can run code when it is read; convert it: {CONVERTER} IN OUT.safetensors");
    Error::file(path, fault)
}

/// Whether a file begins as `torch.save` writes it: a zip archive, or a bare pickle.
fn is_pickle(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04") || matches!(start, [0x80, 2..=5, 0x8a, ..])
}

/// Whether there is anything of that name, be it a link that leads nowhere.
fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}
