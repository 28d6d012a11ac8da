//! Fixture files: weights, inputs and expected outputs of one module of a public implementation.
//!
//! The format is safetensors with `weights.*`, `inputs.*`, `outputs.*` (and `outputs.inter.*`), and
//! the metadata keys `source_package`, `source_class`, `config` (JSON) and `semantics`. Files are
//! hostile: an error names the file and the fault, and no allocation exceeds what the file holds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::TensorInfo;
use crate::checkpoint::json::brief;
use crate::checkpoint::{explain, header};
use crate::dtype::with_float;
use crate::regular::RegularFile;
use crate::{DType, Error, Float, HostTensor, Result};

/// The largest `config` in bytes: as a tree of values, a list of numbers takes many times its text.
const MAX_CONFIG: usize = 16 << 10;

/// Flags of an input, stored as U8: nonzero = set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// The flags, row-major.
    pub flags: Vec<u8>,
}

/// A fixture file in memory.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// Where it was read.
    pub path: PathBuf,
    /// The package whose code computed the outputs.
    pub source_package: String,
    /// The class that computed them; it decides which bridge runs.
    pub source_class: String,
    /// How the class was constructed (`ctor`), and how the file was made.
    pub config: Value,
    /// Prose: what is particular about the computation.
    pub semantics: String,
    /// Every metadata field, those above included.
    pub metadata: BTreeMap<String, String>,
    /// Weights under the package's own names, without `weights.`.
    pub weights: BTreeMap<String, HostTensor<'static>>,
    /// Real and integer inputs, without `inputs.`.
    pub inputs: BTreeMap<String, HostTensor<'static>>,
    /// U8 inputs, without `inputs.`.
    pub masks: BTreeMap<String, Mask>,
    /// Expected results, without `outputs.`.
    pub outputs: BTreeMap<String, HostTensor<'static>>,
    /// Expected intermediate results, without `outputs.inter.`.
    pub intermediates: BTreeMap<String, HostTensor<'static>>,
}

impl Fixture {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::File`] with the fault.
    pub fn read(path: &Path) -> Result<Self> {
        let file = RegularFile::open(path)?;
        Self::parse(path, &file.read(0, usize::try_from(file.bytes()).map_err(|e| Error::file(path, e))?)?)
    }

    /// Reads a file's content; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::File`] with the fault.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        Self::build(path, bytes).map_err(|fault| Error::file(path, fault))
    }

    fn build(path: &Path, bytes: &[u8]) -> Result<Self, String> {
        let fault = |fault: String| header::fault(&bytes[..bytes.len().min(explain::HEAD)], fault);
        let first = &bytes[..bytes.len().min(header::LENGTH)];
        let (text, data) = {
            let text = header::text_bytes(first, bytes.len() as u64).map_err(fault)?;
            bytes[header::LENGTH..].split_at(text)
        };
        let header::Header { tensors, metadata } = header::parse(text, data.len() as u64).map_err(fault)?;
        let field = |name: &str| match metadata.get(name) {
            Some(text) => Ok(text.clone()),
            None => Err(format!("metadata: {name} is missing")),
        };
        let (source_package, source_class) = (field("source_package")?, field("source_class")?);
        let (config, semantics) = (field("config")?, field("semantics")?);
        if config.len() > MAX_CONFIG {
            return Err(format!("metadata: config has {} bytes: expected at most {MAX_CONFIG}", config.len()));
        }
        let config: Value = serde_json::from_str(&config).map_err(|e| format!("metadata: config is not JSON: {e}"))?;
        if !config.is_object() {
            return Err("metadata: config is not a JSON object".into());
        }
        let mut fixture = Fixture {
            path: path.to_path_buf(),
            source_package,
            source_class,
            config,
            semantics,
            metadata,
            weights: BTreeMap::new(),
            inputs: BTreeMap::new(),
            masks: BTreeMap::new(),
            outputs: BTreeMap::new(),
            intermediates: BTreeMap::new(),
        };
        for (name, info) in &tensors {
            let data = &data[info.start as usize..][..info.bytes];
            let tensor = || host_tensor(name, info, data);
            if let Some(short) = name.strip_prefix("weights.") {
                fixture.weights.insert(short.into(), expect_finite(name, tensor()?)?);
            } else if let Some(short) = name.strip_prefix("inputs.") {
                if info.dtype() == "u8" {
                    let mask = Mask { shape: info.shape.to_vec(), flags: data.to_vec() };
                    fixture.masks.insert(short.into(), mask);
                } else {
                    fixture.inputs.insert(short.into(), tensor()?);
                }
            } else if let Some(short) = name.strip_prefix("outputs.inter.") {
                fixture.intermediates.insert(short.into(), tensor()?);
            } else if let Some(short) = name.strip_prefix("outputs.") {
                fixture.outputs.insert(short.into(), tensor()?);
            } else {
                let name = brief(name);
                return Err(format!("tensor {name}: expected a name that begins with weights., inputs. or outputs."));
            }
        }
        if fixture.outputs.is_empty() {
            return Err("no tensor outputs.*: nothing to compare".into());
        }
        Ok(fixture)
    }

    /// An input that must be there.
    ///
    /// # Errors
    /// [`Error::File`] naming the input.
    pub fn input(&self, name: &str) -> Result<&HostTensor<'static>> {
        self.inputs.get(name).ok_or_else(|| self.fault(format!("tensor inputs.{name} is missing (or of type U8)")))
    }

    /// A weight that must be there.
    ///
    /// # Errors
    /// [`Error::File`] naming the weight.
    pub fn weight(&self, name: &str) -> Result<&HostTensor<'static>> {
        self.weights.get(name).ok_or_else(|| self.fault(format!("tensor weights.{name} is missing")))
    }

    /// An [`Error::File`] about this fixture.
    pub fn fault(&self, fault: impl ToString) -> Error {
        Error::file(&self.path, fault)
    }

    /// The same fixture with real weights and inputs rounded once to `dtype` (and stored as f32 or
    /// wider): the truth and a device of that dtype both start from it.
    ///
    /// # Errors
    /// An integer dtype.
    pub fn rounded(&self, dtype: DType) -> Result<Self> {
        let round = |tensors: &BTreeMap<String, HostTensor<'static>>| -> Result<BTreeMap<String, HostTensor<'static>>> {
            tensors.iter().map(|(name, t)| Ok((name.clone(), round_trip(t, dtype)?))).collect()
        };
        Ok(Fixture { weights: round(&self.weights)?, inputs: round(&self.inputs)?, ..self.clone() })
    }
}

/// The tensor rounded to `dtype`, in its own dtype. Integers are unchanged.
fn round_trip(tensor: &HostTensor<'static>, dtype: DType) -> Result<HostTensor<'static>> {
    if !tensor.dtype().is_float() || tensor.dtype() == dtype {
        return Ok(tensor.clone());
    }
    tensor.to_dtype(dtype)?.to_dtype(tensor.dtype())?.into_owned()
}

/// Fixture files in `paths`: files as given, `.safetensors` in folders (recursively), sorted.
///
/// # Errors
/// A path that cannot be read, or a folder without fixtures.
pub fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = BTreeSet::new();
    for path in paths {
        let about = std::fs::metadata(path).map_err(|e| Error::file(path, e))?;
        if !about.is_dir() {
            found.insert(path.clone());
            continue;
        }
        let before = found.len();
        let mut folders = vec![path.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).map_err(|e| Error::file(&folder, e))? {
                let entry = entry.map_err(|e| Error::file(&folder, e))?;
                let kind = entry.file_type().map_err(|e| Error::file(entry.path(), e))?;
                // Links to folders are not followed: they may be circular.
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if entry.path().extension().is_some_and(|e| e == "safetensors") {
                    found.insert(entry.path());
                }
            }
        }
        if found.len() == before {
            return Err(Error::file(path, "no file in this folder ends in .safetensors"));
        }
    }
    Ok(found.into_iter().collect())
}

fn host_tensor(name: &str, info: &TensorInfo, data: &[u8]) -> Result<HostTensor<'static>, String> {
    let Some(dtype) = info.element() else {
        let expected = "expected f64, f32, f16, bf16, i32 or u32";
        return Err(format!("tensor {}: {expected}, found {}", brief(name), info.dtype()));
    };
    HostTensor::from_bytes(dtype, &info.shape, data.to_vec()).map_err(|e| format!("tensor {}: {e}", brief(name)))
}

fn expect_finite(name: &str, tensor: HostTensor<'static>) -> Result<HostTensor<'static>, String> {
    let unreadable = |e: Error| format!("tensor {}: {e}", brief(name));
    let bytes = tensor.bytes().map_err(unreadable)?;
    let infinite = with_float!(tensor.dtype(), T => {
        let reals = bytes.chunks_exact(size_of::<T>()).map(|x| Float::to_f64(bytemuck::pod_read_unaligned::<T>(x)));
        reals.enumerate().find(|(_, x)| !x.is_finite())
    }, else None);
    drop(bytes);
    match infinite {
        Some((at, x)) => Err(format!("tensor {}: element {at} is {x}", brief(name))),
        None => Ok(tensor),
    }
}
