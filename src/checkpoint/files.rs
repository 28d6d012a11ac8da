//! Safetensors files on disk: one file, or a folder with shards and their index, mapped into memory.
//!
//! Only headers are read when a checkpoint is opened; a tensor's bytes are first touched when it is packed for a device. Files are
//! hostile: an index may only name files beside it, and whatever contradicts itself is an error that names the file and the fault.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserializer, MapAccess, Visitor};

use super::{TensorSource, index_behind};
use crate::{DType, Error, HostTensor, Result};

/// The converter that errors about `.pt` files point to.
const CONVERTER: &str = "scripts/convert-checkpoint";

/// What torch's activation checkpointing puts into the names of modules.
const WRAPPER: &str = "_checkpoint_wrapped_module.";

/// JSON files beyond this size are refused: the largest index of a public checkpoint has less than a megabyte.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// What a header says of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type as the file names it: checkpoints also hold types that bridges do not use.
    pub dtype: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub bytes: usize,
    float: Option<DType>,
    shard: usize,
    start: usize,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The safetensors files of a checkpoint.
///
/// The files are mapped, not copied: another process that shortens one of them while it is in use ends this one (as with every memory map).
pub struct Files {
    path: PathBuf,
    shards: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, TensorInfo>,
    config: Option<(PathBuf, String)>,
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
        let mut files = Files { path: path.to_path_buf(), shards: Vec::new(), tensors: BTreeMap::new(), config: None };
        if file.extension() == Some(OsStr::new("json")) {
            files.open_index(&folder, &file)?;
        } else {
            refuse_pickle(&file)?;
            files.open_shard(&file)?;
        }
        files.unwrap_names()?;
        let config = folder.join("config.json");
        if std::fs::symlink_metadata(&config).is_ok() {
            files.config = Some((config.clone(), read_text(&config)?));
        }
        Ok(files)
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors by name, without the `_checkpoint_wrapped_module.` of torch's activation checkpointing.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Number of safetensors files.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// `config.json`: its path and text.
    pub fn config(&self) -> Option<(&Path, &str)> {
        self.config.as_ref().map(|(path, text)| (path.as_path(), text.as_str()))
    }

    /// A tensor whose bytes stay in the map. `None` when it is not there or has a type that no bridge reads.
    pub fn tensor(&self, name: &str) -> Option<HostTensor<'_>> {
        let info = self.tensors.get(name)?;
        let bytes = self.shards[info.shard].1.get(info.start..info.start + info.bytes)?;
        HostTensor::from_bytes(info.float?, &info.shape, Cow::Borrowed(bytes)).ok()
    }

    fn open_index(&mut self, folder: &Path, path: &Path) -> Result<()> {
        let fault = |fault: String| Error::file(path, fault);
        let text = read_text(path)?;
        let index: Index = serde_json::from_str(&text).map_err(|e| fault(format!("not an index of shards: {e}")))?;
        let map = index.weight_map.0;
        if map.is_empty() {
            return Err(fault("weight_map names no tensor".into()));
        }
        let names: BTreeSet<&String> = map.values().collect();
        let hostile: Vec<String> = names.iter().filter(|n| !is_plain_name(n)).map(|n| format!("{n:?}")).collect();
        if !hostile.is_empty() {
            return Err(fault(format!(
                "weight_map: expected names of .safetensors files beside the index, found {}",
                hostile.join(", ")
            )));
        }
        let missing: Vec<&str> =
            names.iter().filter(|n| std::fs::metadata(folder.join(n)).is_err()).map(|n| n.as_str()).collect();
        if !missing.is_empty() {
            return Err(fault(format!("weight_map: missing shards: {}", missing.join(", "))));
        }
        for name in names {
            self.open_shard(&folder.join(name))?;
        }
        let mut problems = Vec::new();
        for (tensor, info) in &self.tensors {
            let holder = self.shards[info.shard].0.file_name().unwrap_or_default().to_string_lossy();
            match map.get(tensor) {
                None => problems.push(format!("{tensor}: in {holder}, but not in weight_map")),
                Some(file) if *file != holder => {
                    problems.push(format!("{tensor}: weight_map says {file}, but it is in {holder}"));
                }
                Some(_) => {}
            }
        }
        for (tensor, file) in map.iter().filter(|(tensor, _)| !self.tensors.contains_key(*tensor)) {
            problems.push(format!("{tensor}: weight_map says {file}, but it is in no shard"));
        }
        if problems.is_empty() { Ok(()) } else { Err(fault(problems.join("; "))) }
    }

    fn unwrap_names(&mut self) -> Result<()> {
        let wrapped: Vec<String> = self.tensors.keys().filter(|name| name.contains(WRAPPER)).cloned().collect();
        for name in wrapped {
            let plain = name.replace(WRAPPER, "");
            let info = self.tensors.remove(&name);
            if self.tensors.contains_key(&plain) {
                return Err(Error::file(&self.path, format!("tensor {plain} is also there as {name}")));
            }
            self.tensors.extend(info.map(|info| (plain, info)));
        }
        Ok(())
    }

    fn open_shard(&mut self, path: &Path) -> Result<()> {
        let fault = |fault: String| Error::file(path, fault);
        let about = std::fs::metadata(path).map_err(|e| Error::file(path, e))?;
        if !about.is_file() {
            return Err(fault("not a regular file".into()));
        }
        let file = File::open(path).map_err(|e| Error::file(path, e))?;
        // SAFETY: the map is read only and lives in `Files`; that nobody shortens the file meanwhile is the documented condition of
        // `Files`, as for every memory map.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::file(path, e))?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|e| fault(format!("not a safetensors file: {e}")))?;
        let data = 8 + header;
        // The crate keeps one of several entries of the same name; a second look finds them.
        let text = map.get(8..data).ok_or_else(|| fault("header: cut short".into()))?;
        serde_json::from_slice::<UniqueNames>(text).map_err(|e| fault(format!("header: {e}")))?;
        let shard = self.shards.len();
        for (name, tensor) in metadata.tensors() {
            let (start, end) = tensor.data_offsets;
            // An extent of 0 lets the others be of any size.
            if tensor.shape.iter().try_fold(8, |bytes: usize, &n| bytes.checked_mul(n)).is_none() {
                return Err(fault(format!(
                    "tensor {name}: expected extents that can be addressed, found {:?}",
                    tensor.shape
                )));
            }
            let info = TensorInfo {
                dtype: format!("{:?}", tensor.dtype).to_lowercase(),
                shape: tensor.shape.clone(),
                bytes: end - start,
                float: dtype(tensor.dtype),
                shard,
                start: data + start,
            };
            if let Some(other) = self.tensors.get(&name) {
                let other = self.shards[other.shard].0.display();
                return Err(fault(format!("tensor {name} is also in {other}")));
            }
            self.tensors.insert(name, info);
        }
        self.shards.push((path.to_path_buf(), map));
        Ok(())
    }
}

impl<'a> TensorSource<'a> for &'a Files {
    fn tensor(&self, name: &str) -> Option<HostTensor<'a>> {
        Files::tensor(self, name)
    }

    fn indices(&self, prefix: &str) -> BTreeSet<usize> {
        let from = (std::ops::Bound::Included(prefix.to_string()), std::ops::Bound::Unbounded);
        let below = self.tensors.range::<String, _>(from).take_while(|(name, _)| name.starts_with(prefix));
        below.filter_map(|(name, _)| index_behind(prefix, name)).collect()
    }

    fn any_below(&self, prefix: &str) -> bool {
        let from = (std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded);
        self.tensors.range::<str, _>(from).next().is_some_and(|(name, _)| name.starts_with(prefix))
    }
}

fn dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I32 => DType::I32,
        Dtype::U32 => DType::U32,
        _ => return None,
    })
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
                let several: Vec<&str> = several.iter().map(|n| n.as_str()).collect();
                return Err(Error::file(
                    folder,
                    format!("several files could hold the checkpoint; name one of {}", several.join(", ")),
                ));
            }
        }
    }
    match names.iter().find(|n| is_pickle_name(Path::new(n))) {
        Some(pickle) => Err(pickle_error(&folder.join(pickle))),
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

/// Refuses what `torch.save` writes, by name or by content (a zip archive, or a bare pickle).
fn refuse_pickle(path: &Path) -> Result<()> {
    let mut start = [0u8; 4];
    let about = std::fs::metadata(path).map_err(|e| Error::file(path, e))?;
    if about.is_file() && about.len() >= 4 {
        File::open(path).and_then(|mut f| f.read_exact(&mut start)).map_err(|e| Error::file(path, e))?;
    }
    if is_pickle_name(path)
        || start == *b"PK\x03\x04"
        || (start[0] == 0x80 && (2..=5).contains(&start[1]) && start[2] == 0x8a)
    {
        return Err(pickle_error(path));
    }
    Ok(())
}

/// Whether a name of an index is that of a safetensors file in the same folder.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let one = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == OsStr::new(name));
    // A backslash separates folders on other systems.
    one && !name.contains(['\\', ':', '\0']) && name.ends_with(".safetensors")
}

fn read_text(path: &Path) -> Result<String> {
    let about = std::fs::metadata(path).map_err(|e| Error::file(path, e))?;
    if !about.is_file() {
        return Err(Error::file(path, "not a regular file"));
    }
    if about.len() > MAX_JSON_BYTES {
        return Err(Error::file(path, format!("{} bytes: expected at most {MAX_JSON_BYTES}", about.len())));
    }
    let mut text = String::new();
    File::open(path)
        .and_then(|f| f.take(MAX_JSON_BYTES).read_to_string(&mut text))
        .map_err(|e| Error::file(path, e))?;
    Ok(text)
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: UniqueMap,
}

/// An object of strings in which no name occurs twice.
struct UniqueMap(BTreeMap<String, String>);

impl<'de> serde::Deserialize<'de> for UniqueMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(UniqueMap(deserializer.deserialize_map(Unique(std::marker::PhantomData))?))
    }
}

/// An object in which no name occurs twice, whatever its values.
struct UniqueNames;

impl<'de> serde::Deserialize<'de> for UniqueNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Unique::<serde::de::IgnoredAny>(std::marker::PhantomData))?;
        Ok(UniqueNames)
    }
}

struct Unique<V>(std::marker::PhantomData<V>);

impl<'de, V: serde::Deserialize<'de>> Visitor<'de> for Unique<V> {
    type Value = BTreeMap<String, V>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, V>()? {
            if entries.contains_key(&name) {
                return Err(serde::de::Error::custom(format!("name {name} occurs twice")));
            }
            entries.insert(name, value);
        }
        Ok(entries)
    }
}
