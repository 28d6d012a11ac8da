//! The input and output files of `xattn run`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use xattn::{DType, Device, Error, HostTensor, Tensor, bit_words, pack_bits};

use super::Context;

struct Raw {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Named tensors of a file, and which of them were read.
pub struct Inputs {
    path: PathBuf,
    tensors: BTreeMap<String, Raw>,
    read: RefCell<BTreeSet<String>>,
}

impl Inputs {
    /// Reads a safetensors file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        if !std::fs::metadata(path).map_err(|e| Error::file(path, e))?.is_file() {
            return Err(Error::file(path, "not a regular file"));
        }
        let bytes = std::fs::read(path).map_err(|e| Error::file(path, e))?;
        let file =
            SafeTensors::deserialize(&bytes).map_err(|e| Error::file(path, format!("not a safetensors file: {e}")))?;
        let tensors = file
            .iter()
            .map(|(name, t)| {
                let raw = Raw { dtype: t.dtype(), shape: t.shape().to_vec(), bytes: t.data().to_vec() };
                (name.to_string(), raw)
            })
            .collect();
        Ok(Inputs { path: path.into(), tensors, read: RefCell::default() })
    }

    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// An error about a tensor that is not what it should be.
    pub fn fault(&self, name: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("tensor {name}: expected {expected}, found {found}"))
    }

    /// An error about a tensor that is not there.
    pub fn missing(&self, name: &str, why: &str) -> Error {
        let have: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        Error::file(&self.path, format!("tensor {name} is missing ({why}); the file has {}", have.join(", ")))
    }

    fn raw(&self, name: &str) -> Result<&Raw, Error> {
        self.read.borrow_mut().insert(name.into());
        self.tensors.get(name).ok_or_else(|| self.missing(name, "see xattn run --help"))
    }

    /// Reals, in the file's type.
    pub fn real(&self, name: &str) -> Result<HostTensor<'static>, Error> {
        let raw = self.raw(name)?;
        let dtype = match raw.dtype {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => return Err(self.fault(name, "f64, f32, f16 or bf16", format!("{other:?}"))),
        };
        HostTensor::from_bytes(dtype, &raw.shape, raw.bytes.clone())
    }

    /// Integers that fit 32 bits, of a shape.
    pub fn integers(&self, name: &str, shape: &[usize]) -> Result<Vec<i32>, Error> {
        let raw = self.raw(name)?;
        let wide: Vec<i64> = match raw.dtype {
            Dtype::I64 => {
                raw.bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default())).collect()
            }
            Dtype::I32 => {
                let four = |b: &[u8]| i32::from_le_bytes(b.try_into().unwrap_or_default());
                raw.bytes.chunks_exact(4).map(|b| i64::from(four(b))).collect()
            }
            Dtype::U8 | Dtype::BOOL => raw.bytes.iter().map(|&b| i64::from(b)).collect(),
            other => return Err(self.fault(name, "i32, i64, u8 or bool", format!("{other:?}"))),
        };
        if raw.shape != shape {
            return Err(self.fault(name, format!("{shape:?}"), format!("{:?}", raw.shape)));
        }
        let narrow = |x: i64| i32::try_from(x).map_err(|_| self.fault(name, "numbers of 32 bits", x));
        wide.into_iter().map(narrow).collect()
    }

    /// Shape of a tensor of a rank.
    pub fn shape<const RANK: usize>(&self, name: &str) -> Result<[usize; RANK], Error> {
        let shape = &self.raw(name)?.shape;
        shape.as_slice().try_into().map_err(|_| self.fault(name, format!("{RANK} dimensions"), format!("{shape:?}")))
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
        let bits = pack_bits(&flags, per_row);
        let shape = [rows, &[bit_words(per_row)]].concat();
        Tensor::upload(device, &HostTensor::from_slice(&bits, &shape)?, DType::U32)
    }

    /// Product of extents of a tensor: one extent of 0 lets the others be of any size in a file.
    pub fn product(&self, name: &str, extents: &[usize]) -> Result<usize, Error> {
        let product = extents.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
        product.ok_or_else(|| self.fault(name, "fewer elements", format!("extents {extents:?}")))
    }

    /// Numbers of a shape within `0..=largest`.
    pub fn indices(&self, name: &str, shape: &[usize], largest: usize) -> Result<Vec<i32>, Error> {
        let numbers = self.integers(name, shape)?;
        match numbers.iter().find(|&&n| usize::try_from(n).map_or(true, |n| n > largest)) {
            Some(bad) => Err(self.fault(name, format!("numbers from 0 to {largest}"), bad)),
            None => Ok(numbers),
        }
    }

    /// Refuses tensors that nothing read: a misspelt mask must not be left out silently.
    pub fn expect_all_read(&self) -> Result<(), Error> {
        let read = self.read.borrow();
        let surplus: Vec<&str> = self.tensors.keys().map(String::as_str).filter(|n| !read.contains(*n)).collect();
        if surplus.is_empty() {
            return Ok(());
        }
        let fault =
            format!("tensors that this checkpoint does not read: {} (see xattn run --help)", surplus.join(", "));
        Err(Error::file(&self.path, fault))
    }
}

/// Copies a tensor to the device as activations.
pub fn upload(run: &Context, host: HostTensor<'_>) -> Result<Tensor, Error> {
    Tensor::upload(&run.device, &host, run.precision.activations)
}

/// Results, in the order of their names.
#[derive(Default)]
pub struct Outputs(BTreeMap<String, HostTensor<'static>>);

impl Outputs {
    /// Keeps a result.
    pub fn keep(&mut self, name: impl Into<String>, tensor: HostTensor<'static>) {
        self.0.insert(name.into(), tensor);
    }

    /// Refuses a path that cannot be written to, before anything is computed for it.
    pub fn check(path: &Path) -> Result<(), Error> {
        let folder = match path.parent() {
            Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
            Some(folder) => folder,
            None => return Err(Error::file(path, "not the name of a file")),
        };
        if path.is_dir() {
            return Err(Error::file(path, "expected the name of a file, found a folder"));
        }
        if !std::fs::metadata(folder).map_err(|e| Error::file(folder, e))?.is_dir() {
            return Err(Error::file(folder, "expected a folder for the output, found something else"));
        }
        Ok(())
    }

    /// Writes all of them beside `path`, then moves the file there.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let mut views = Vec::with_capacity(self.0.len());
        for (name, tensor) in &self.0 {
            let dtype = match tensor.dtype() {
                DType::F64 => Dtype::F64,
                DType::F32 => Dtype::F32,
                DType::F16 => Dtype::F16,
                DType::BF16 => Dtype::BF16,
                DType::I32 => Dtype::I32,
                _ => Dtype::U32,
            };
            let view =
                TensorView::new(dtype, tensor.shape().to_vec(), tensor.bytes()).map_err(|e| Error::file(path, e))?;
            views.push((name.as_str(), view));
        }
        let bytes = safetensors::serialize(views, None).map_err(|e| Error::file(path, e))?;
        let Some(name) = path.file_name() else { return Err(Error::file(path, "not the name of a file")) };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(hidden);
        let written = std::fs::File::options().write(true).create_new(true).open(&temporary).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)
        });
        written.map_err(|e| {
            // The first error is the one to report.
            let _ = std::fs::remove_file(&temporary);
            Error::file(path, e)
        })
    }
}
