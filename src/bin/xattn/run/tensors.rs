//! The input and output files of `xattn run`, and what its steps share.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, View};
use xattn::bridge::Precision;
use xattn::checkpoint::{Files, TensorInfo};
use xattn::{DType, Device, Error, HostTensor, Tensor, bit_words, pack_bits, some_of};

use super::finite::{Count, States, wider};
use crate::print::{progress, say};

/// What every step of a run needs.
pub struct Context {
    pub device: Device,
    pub precision: Precision,
    pub inputs: Inputs,
    pub outputs: Outputs,
}

impl Context {
    /// A line on the terminal that the next one replaces.
    pub fn progress(&self, what: &str) {
        progress(what);
    }

    /// A line on standard error that stays.
    pub fn say(&self, what: String) {
        progress("");
        say(what);
    }
}

/// Named tensors of a file, and which of them were read.
pub struct Inputs {
    path: PathBuf,
    file: Files,
    read: RefCell<BTreeSet<String>>,
}

impl Inputs {
    /// Opens a safetensors file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Inputs { path: path.into(), file: Files::open_one(path)?, read: RefCell::default() })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.file.info(name).is_some()
    }

    /// An error about a wrong tensor.
    pub fn fault(&self, name: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("tensor {name}: expected {expected}, found {found}"))
    }

    /// An error about a missing tensor.
    pub fn missing(&self, name: &str, why: &str) -> Error {
        let have = some_of(self.file.tensors().keys(), ", ");
        Error::file(&self.path, format!("tensor {name} is missing ({why}); the file has {have}"))
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, Error> {
        self.read.borrow_mut().insert(name.into());
        self.file.info(name).ok_or_else(|| self.missing(name, "see xattn run --help"))
    }

    /// Reals in the file's type, not read yet.
    pub fn real(&self, name: &str) -> Result<HostTensor<'_>, Error> {
        let dtype = self.info(name)?.dtype();
        match self.file.tensor(name) {
            Ok(tensor) if tensor.dtype().is_float() => Ok(tensor),
            _ => Err(self.fault(name, "f64, f32, f16 or bf16", dtype)),
        }
    }

    /// Integers of a shape, of 32 bits each.
    pub fn integers(&self, name: &str, shape: &[usize]) -> Result<Vec<i32>, Error> {
        let info = self.info(name)?;
        let number: fn(&[u8]) -> i64 = match info.dtype().as_str() {
            "i64" => |b| i64::from_le_bytes(b.try_into().unwrap_or_default()),
            "i32" => |b| i64::from(i32::from_le_bytes(b.try_into().unwrap_or_default())),
            "u8" | "bool" => |b| i64::from(b[0]),
            other => return Err(self.fault(name, "i32, i64, u8 or bool", other)),
        };
        if *info.shape != *shape {
            return Err(self.fault(name, format!("{shape:?}"), format!("{:?}", info.shape)));
        }
        let narrow = |x: i64| i32::try_from(x).map_err(|_| self.fault(name, "numbers of 32 bits", x));
        let size = info.bytes / info.elements().max(1);
        self.file.bytes(name)?.chunks_exact(size.max(1)).map(|b| narrow(number(b))).collect()
    }

    /// Shape of a tensor of a rank.
    pub fn shape<const RANK: usize>(&self, name: &str) -> Result<[usize; RANK], Error> {
        let shape = &*self.info(name)?.shape;
        shape.try_into().map_err(|_| self.fault(name, format!("{RANK} dimensions"), format!("{shape:?}")))
    }

    /// Flags of a shape as a bitset `[rows…, words]` with `per_row` bits.
    pub fn bits(
        &self,
        device: &Device,
        name: &str,
        shape: &[usize],
        rows: &[usize],
        per_row: usize,
    ) -> Result<Tensor, Error> {
        let flags: Vec<u8> = self.integers(name, shape)?.into_iter().map(|f| u8::from(f != 0)).collect();
        let bits = pack_bits(&flags, per_row)?;
        let shape = [rows, &[bit_words(per_row)]].concat();
        Tensor::upload(device, &HostTensor::from_slice(&bits, &shape)?, DType::U32)
    }

    /// Numbers of a shape within `0..=largest`.
    pub fn indices(&self, name: &str, shape: &[usize], largest: usize) -> Result<Vec<i32>, Error> {
        let numbers = self.integers(name, shape)?;
        match numbers.iter().find(|&&n| usize::try_from(n).map_or(true, |n| n > largest)) {
            Some(bad) => Err(self.fault(name, format!("numbers from 0 to {largest}"), bad)),
            None => Ok(numbers),
        }
    }

    /// Refuses unread tensors: a misspelt mask must not be ignored.
    pub fn expect_all_read(&self) -> Result<(), Error> {
        let read = self.read.borrow();
        let names = self.file.tensors().keys().map(|name| &**name);
        let surplus: Vec<&str> = names.filter(|name| !read.contains(*name)).collect();
        if surplus.is_empty() {
            return Ok(());
        }
        let surplus = some_of(surplus, ", ");
        let fault = format!("tensors that this checkpoint does not read: {surplus} (see xattn run --help)");
        Err(Error::file(&self.path, fault))
    }
}

/// Copies an input to the device as activations, with its states.
pub fn upload(run: &Context, name: &str, host: HostTensor<'_>) -> Result<(Tensor, States), Error> {
    let rounded = host.to_dtype(run.precision.activations)?;
    let states = States::of_input(name, &host, &rounded)?;
    Ok((Tensor::upload(&run.device, &rounded, run.precision.activations)?, states))
}

/// A result in the form that the format's writer reads.
struct Stored<'t> {
    dtype: Dtype,
    shape: &'t [usize],
    bytes: Cow<'t, [u8]>,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Results sorted by name, with their states.
#[derive(Default)]
pub struct Outputs(BTreeMap<String, (HostTensor<'static>, States)>);

impl Outputs {
    /// Keeps the result of a step.
    ///
    /// # Errors
    /// None for a tensor in memory.
    pub fn keep(
        &mut self,
        name: impl Into<String>,
        tensor: HostTensor<'static>,
        step: &str,
        operands: &[&States],
    ) -> Result<States, Error> {
        let states = States::after(step, &tensor, operands)?;
        self.0.insert(name.into(), (tensor, states.clone()));
        Ok(states)
    }

    /// Whether nothing was computed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// For each non-finite result of finite inputs a line: name, count, and first step.
    ///
    /// # Errors
    /// None for tensors in memory.
    pub fn warnings(&self, run: &Context) -> Result<Vec<String>, Error> {
        let mut lines = Vec::new();
        for (name, (tensor, states)) in &self.0 {
            let Some(step) = states.since() else { continue };
            let Count { all, nan, infinite } = states.arisen(tensor)?;
            let wider = wider(run.precision.activations);
            lines.push(format!(
                "{name}: {nan} of {all} numbers are NaN and {infinite} are infinite, since {step}{wider}"
            ));
        }
        Ok(lines)
    }

    /// Whether no result has a number that is not NaN.
    ///
    /// # Errors
    /// None for tensors in memory.
    pub fn are_all_nan(&self) -> Result<bool, Error> {
        let counts = self.0.values().map(|(tensor, _)| Count::of(tensor)).collect::<Result<Vec<_>, _>>()?;
        Ok(counts.iter().all(|count| count.nan == count.all) && counts.iter().any(|count| count.all > 0))
    }

    /// Dtype, shape and name of each result, a line each.
    pub fn list(&self) -> String {
        let line = |(name, (t, _)): (&String, &(HostTensor<'_>, States))| {
            format!("{:<5} {:<20} {name}", t.dtype().name(), format!("{:?}", t.shape()))
        };
        self.0.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The bytes of a safetensors file with all of them.
    ///
    /// # Errors
    /// [`Error::File`] if they do not fit the format.
    pub fn bytes(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let mut views = Vec::with_capacity(self.0.len());
        for (name, (tensor, _)) in &self.0 {
            let dtype = match tensor.dtype() {
                DType::F64 => Dtype::F64,
                DType::F32 => Dtype::F32,
                DType::F16 => Dtype::F16,
                DType::BF16 => Dtype::BF16,
                DType::I32 => Dtype::I32,
                _ => Dtype::U32,
            };
            views.push((name.as_str(), Stored { dtype, shape: tensor.shape(), bytes: tensor.bytes()? }));
        }
        safetensors::serialize(views, None).map_err(|e| Error::file(path, e))
    }
}
