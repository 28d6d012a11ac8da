//! The reference, which judges all backends: plain f64 loops like the equations of `ops/`.
//!
//! The same loops in f32 with permuted reductions are the *yardstick*. In f64, with f32 roundings
//! in the mean of each LayerNorm, they measure the effect of these roundings on results
//! (`docs/numerics.md`, sections 1 and 4).

mod attention;
mod dense;
mod gated_residual;
mod linear;
mod media_index;
mod norm;
mod real;

use super::Backend;
use super::host::host_backend;
use crate::ops::WeightSource;
use crate::size::Size;
use crate::tensor::{HostTensor, room};
use crate::{DType, Result};
use real::Rounding;

pub(crate) struct Reference {
    arithmetic: Arithmetic,
    /// Roundings in the means of LayerNorms; only for [`Reference::with_rounded_means`].
    rounding: Option<Rounding>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    /// f64, index order.
    F64,
    /// f32, reductions in an order drawn from the seed (0: index order).
    F32 { permutation: u64 },
}

/// The matrices, rounded to their dtype.
pub(crate) struct PlainWeight {
    pub parts: HostTensor<'static>,
    pub up: Option<HostTensor<'static>>,
}

impl Reference {
    pub fn truth() -> Self {
        Reference { arithmetic: Arithmetic::F64, rounding: None }
    }

    /// The truth, with roundings of random sign in the mean of each LayerNorm.
    #[cfg(feature = "verify")]
    pub fn with_rounded_means(seed: u64) -> Self {
        Reference { rounding: Some(Rounding { seed }), ..Reference::truth() }
    }

    pub fn yardstick(permutation: u64) -> Self {
        Reference { arithmetic: Arithmetic::F32 { permutation }, rounding: None }
    }
}

impl Backend for Reference {
    type Weight = PlainWeight;
    host_backend!("reference");

    fn name(&self) -> String {
        match self.arithmetic {
            Arithmetic::F64 => "plain loops in f64".into(),
            Arithmetic::F32 { .. } => "plain loops in f32".into(),
        }
    }

    fn details(&self) -> String {
        match self.arithmetic {
            Arithmetic::F64 if self.rounding.is_some() => "roundings of f32 in the means of LayerNorms".into(),
            Arithmetic::F64 => "the judge: readable, never timed".into(),
            Arithmetic::F32 { permutation } => format!("yardstick, reductions in order {permutation}"),
        }
    }

    fn prepare_weight(&self, source: &WeightSource<'_>, dtype: DType) -> Result<PlainWeight> {
        let stack = |parts: &[HostTensor<'_>]| -> Result<HostTensor<'static>> {
            let rows = parts.iter().map(|part| part.shape()[0]).sum();
            let bytes =
                Size::product(&[rows, parts[0].shape()[1], dtype.size()]).or_out_of_memory("reference", "a weight")?;
            let mut bytes = room("reference", bytes, "a weight")?;
            for part in parts {
                bytes.extend_from_slice(&part.to_dtype(dtype)?.bytes()?);
            }
            HostTensor::from_bytes(dtype, &[rows, parts[0].shape()[1]], bytes)
        };
        let up = if source.up.is_empty() { None } else { Some(stack(&source.up)?) };
        Ok(PlainWeight { parts: stack(&source.parts)?, up })
    }
}
