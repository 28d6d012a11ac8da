//! One run of a class: inputs onto the device, results off it.

use serde_json::Value;

use super::Fixture;
use crate::bridge::Precision;
use crate::device::Tensor;
use crate::tensor::{HostTensor, bit_words, pack_bits};
use crate::{DType, Device, Error, Result};

/// A fixture on its way through a device.
pub(super) struct Run<'f> {
    pub fixture: &'f Fixture,
    pub device: &'f Device,
    pub precision: Precision,
    results: Vec<(String, HostTensor<'static>)>,
}

impl<'f> Run<'f> {
    pub fn new(fixture: &'f Fixture, device: &'f Device, dtype: DType) -> Self {
        Run { fixture, device, precision: Precision::uniform(dtype), results: Vec::new() }
    }

    pub fn into_results(self) -> Vec<(String, HostTensor<'static>)> {
        self.results
    }

    /// A number of the module's constructor, under any of the names that packages give it.
    pub fn ctor(&self, names: &[&str]) -> Result<usize> {
        let value = self.find_ctor(names).and_then(Value::as_u64);
        match value.and_then(|v| usize::try_from(v).ok()) {
            Some(v) => Ok(v),
            None => {
                Err(self.fixture.fault(format!("config: ctor.{} is missing or no natural number", names.join(" or "))))
            }
        }
    }

    /// A positive real of the constructor, or its default.
    pub fn ctor_real(&self, names: &[&str], default: f32) -> Result<f32> {
        let Some(value) = self.find_ctor(names) else { return Ok(default) };
        match value.as_f64().map(|v| v as f32) {
            Some(v) if v.is_finite() && v >= 0.0 => Ok(v),
            _ => Err(self.fixture.fault(format!("config: ctor.{} is no number of at least 0", names.join(" or ")))),
        }
    }

    /// A flag of the constructor.
    pub fn ctor_flag(&self, name: &str) -> Result<bool> {
        match self.find_ctor(&[name]).and_then(Value::as_bool) {
            Some(v) => Ok(v),
            None => Err(self.fixture.fault(format!("config: ctor.{name} is missing or no flag"))),
        }
    }

    fn find_ctor(&self, names: &[&str]) -> Option<&Value> {
        let ctor = self.fixture.config.get("ctor")?;
        names.iter().find_map(|name| ctor.get(name))
    }

    /// Shape of a real input of a rank.
    pub fn shape<const RANK: usize>(&self, name: &str) -> Result<[usize; RANK]> {
        let found = self.fixture.input(name)?.shape();
        found.try_into().map_err(|_| {
            self.fixture.fault(format!("tensor inputs.{name}: expected {RANK} dimensions, found {found:?}"))
        })
    }

    /// An input as activations, in another shape of equal size.
    pub fn activations(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let host = self.fixture.input(name)?.clone().reshape(shape)?;
        Tensor::upload(self.device, &host, self.precision.activations)
    }

    /// Token ids.
    pub fn ids(&self, name: &str) -> Result<Tensor> {
        Tensor::upload(self.device, self.fixture.input(name)?, DType::I32)
    }

    /// Flags of a shape, if the fixture has them.
    pub fn flags(&self, name: &str, shape: &[usize]) -> Result<Option<&'f [u8]>> {
        match self.fixture.masks.get(name) {
            None => Ok(None),
            Some(mask) if mask.shape == shape => Ok(Some(&mask.flags)),
            Some(mask) => {
                Err(self.fixture.fault(format!("tensor inputs.{name}: expected {shape:?}, found {:?}", mask.shape)))
            }
        }
    }

    /// Flags as a bitset `[rows…, words]` with `per_row` bits.
    pub fn bits(&self, flags: &[u8], rows: &[usize], per_row: usize) -> Result<Tensor> {
        let mut shape = rows.to_vec();
        shape.push(bit_words(per_row));
        self.words(&pack_bits(flags, per_row)?, &shape)
    }

    /// Flags as one word each.
    pub fn words(&self, words: &[u32], shape: &[usize]) -> Result<Tensor> {
        Tensor::upload(self.device, &HostTensor::from_slice(words, shape)?, DType::U32)
    }

    /// Memory for activations.
    pub fn scratch(&self, shape: &[usize]) -> Result<Tensor> {
        Tensor::zeros(self.device, self.precision.activations, shape)
    }

    /// Memory for a result with the file's shape, so that no allocation exceeds the file.
    pub fn result(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self.fixture.outputs.get(name) {
            Some(expected) if expected.elements() == shape.iter().product::<usize>() => self.scratch(shape),
            Some(expected) => Err(self.fixture.fault(format!(
                "tensor outputs.{name}: expected {} elements, found {:?}",
                shape.iter().product::<usize>(),
                expected.shape()
            ))),
            None => Err(self.fixture.fault(format!("tensor outputs.{name} is missing"))),
        }
    }

    /// Downloads a result and keeps it in the shape in which the file has it.
    pub fn keep(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        self.keep_host(name, tensor.download(self.device)?)
    }

    /// Keeps a result that is on the host already.
    pub fn keep_host(&mut self, name: &str, host: HostTensor<'static>) -> Result<()> {
        let shaped = match self.fixture.outputs.get(name) {
            Some(expected) => host.reshape(expected.shape())?,
            None => host,
        };
        self.results.push((name.to_string(), shaped));
        Ok(())
    }

    /// Keeps intermediate results under the names that the file gives them.
    pub fn keep_taps(
        &mut self,
        taps: Vec<(String, HostTensor<'static>)>,
        rename: impl Fn(&str) -> String,
    ) -> Result<()> {
        for (name, host) in taps {
            let name = rename(&name);
            let Some(expected) = self.fixture.intermediates.get(&name) else { continue };
            if expected.elements() == host.elements() {
                let host = if host.dtype().is_float() { host } else { flags_as_reals(&host)? };
                self.results.push((format!("inter.{name}"), host.reshape(expected.shape())?));
            } else {
                return Err(self.fixture.fault(format!(
                    "tensor outputs.inter.{name}: expected {:?}, found {:?}",
                    host.shape(),
                    expected.shape()
                )));
            }
        }
        Ok(())
    }

    /// What a mask should have been.
    pub fn fault(&self, what: impl ToString) -> Error {
        self.fixture.fault(what)
    }
}

fn flags_as_reals(host: &HostTensor<'_>) -> Result<HostTensor<'static>> {
    let reals: Vec<f32> = host.to_vec::<u32>()?.into_iter().map(|x| x as f32).collect();
    HostTensor::from_slice(&reals, host.shape())
}
