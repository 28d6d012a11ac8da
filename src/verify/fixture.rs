//! Fixture files: weights, inputs and expected outputs of one module of a public implementation.
//!
//! The format is safetensors with `weights.*`, `inputs.*`, `outputs.*` (and `outputs.inter.*`), and the metadata keys `source_package`,
//! `source_class`, `config` (JSON) and `semantics`. Files are hostile: whatever is wrong with one is an error that names the file and
//! the fault, and nothing is allocated that the header asks for and the file does not hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::{DType, Error, HostTensor, Result};

/// Flags of an input: nonzero = set. What files hold as U8.
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
    /// The class that computed them: decides which bridge runs.
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
        Self::parse(path, &read_regular(path)?)
    }

    /// Reads a file's content; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::File`] with the fault.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        Self::build(path, bytes).map_err(|fault| Error::file(path, fault))
    }

    fn build(path: &Path, bytes: &[u8]) -> Result<Self, String> {
        let (header, _) = SafeTensors::read_metadata(bytes).map_err(|e| format!("not a safetensors file: {e}"))?;
        // The crate keeps one of several entries of the same name; a second look finds them.
        let metadata = unique_metadata(&bytes[8..8 + header])?;
        let file = SafeTensors::deserialize(bytes).map_err(|e| format!("not a safetensors file: {e}"))?;
        let field = |name: &str| match metadata.get(name) {
            Some(text) => Ok(text.clone()),
            None => Err(format!("metadata: {name} is missing")),
        };
        let (source_package, source_class) = (field("source_package")?, field("source_class")?);
        let (config, semantics) = (field("config")?, field("semantics")?);
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
        for (name, view) in file.iter() {
            let tensor = || host_tensor(name, view.dtype(), view.shape(), view.data());
            let real = || tensor().and_then(|t| expect_finite(name, t));
            if let Some(short) = name.strip_prefix("weights.") {
                fixture.weights.insert(short.into(), real()?);
            } else if let Some(short) = name.strip_prefix("inputs.") {
                if view.dtype() == Dtype::U8 {
                    let mask = Mask { shape: view.shape().to_vec(), flags: view.data().to_vec() };
                    fixture.masks.insert(short.into(), mask);
                } else {
                    fixture.inputs.insert(short.into(), tensor()?);
                }
            } else if let Some(short) = name.strip_prefix("outputs.inter.") {
                fixture.intermediates.insert(short.into(), tensor()?);
            } else if let Some(short) = name.strip_prefix("outputs.") {
                fixture.outputs.insert(short.into(), tensor()?);
            } else {
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

    /// The same fixture with real weights and inputs rounded once to `dtype` (and stored as f32 or wider): what both the truth and a
    /// device of that dtype begin with.
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

/// The values of `dtype` nearest to those of the tensor, in the tensor's own dtype. Integers stay as they are.
fn round_trip(tensor: &HostTensor<'static>, dtype: DType) -> Result<HostTensor<'static>> {
    if !tensor.dtype().is_float() || tensor.dtype() == dtype {
        return Ok(tensor.clone());
    }
    Ok(tensor.to_dtype(dtype)?.to_dtype(tensor.dtype())?.into_owned())
}

/// Fixture files among `paths`: files as they are, folders recursively (names that end in `.safetensors`), sorted.
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
                // Links to folders are not followed: they may lead in circles.
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

/// The whole content of a regular file: pipes and devices, which have no end, are refused.
fn read_regular(path: &Path) -> Result<Vec<u8>> {
    let about = std::fs::metadata(path).map_err(|e| Error::file(path, e))?;
    if !about.is_file() {
        return Err(Error::file(path, "not a regular file"));
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(about.len()).read_to_end(&mut bytes));
    read.map_err(|e| Error::file(path, e))?;
    Ok(bytes)
}

fn host_tensor(name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) -> Result<HostTensor<'static>, String> {
    let dtype = match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I32 => DType::I32,
        Dtype::U32 => DType::U32,
        other => return Err(format!("tensor {name}: type {other:?}: expected F64, F32, F16, BF16, I32 or U32")),
    };
    HostTensor::from_bytes(dtype, shape, data.to_vec()).map_err(|e| format!("tensor {name}: {e}"))
}

fn expect_finite(name: &str, tensor: HostTensor<'static>) -> Result<HostTensor<'static>, String> {
    if let Ok(values) = tensor.to_f64()
        && let Some(at) = values.iter().position(|x| !x.is_finite())
    {
        return Err(format!("tensor {name}: element {at} is {}", values[at]));
    }
    Ok(tensor)
}

/// Metadata of a header in which no name occurs twice.
fn unique_metadata(header: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let mut reader = serde_json::Deserializer::from_slice(header);
    reader.deserialize_map(Header).map_err(|e| format!("header: {e}"))
}

struct Header;

impl<'de> Visitor<'de> for Header {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut names = BTreeSet::new();
        let mut metadata = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                metadata = map.next_value::<Strings>()?.0;
            } else {
                map.next_value::<serde::de::IgnoredAny>()?;
            }
            if let Some(twice) = names.replace(name) {
                return Err(serde::de::Error::custom(format!("name {twice} occurs twice")));
            }
        }
        Ok(metadata)
    }
}

struct Strings(BTreeMap<String, String>);

impl<'de> serde::Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique;
        impl<'de> Visitor<'de> for Unique {
            type Value = Strings;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strings, A::Error> {
                let mut strings = BTreeMap::new();
                while let Some((name, text)) = map.next_entry::<String, String>()? {
                    if strings.contains_key(&name) {
                        return Err(serde::de::Error::custom(format!("metadata {name} occurs twice")));
                    }
                    strings.insert(name, text);
                }
                Ok(Strings(strings))
            }
        }
        deserializer.deserialize_map(Unique)
    }
}
