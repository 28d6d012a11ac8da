//! f64, which only the reference computes with.

use crate::ops::{Op, list};
use crate::tensor::Spec;
use crate::{DType, Error, Result};

/// Refuses f64: no kernel of `backend` computes in more than f32, or silently rounds to it.
///
/// # Errors
/// [`Error::Unsupported`] that names the first such operand.
pub(crate) fn expect_reals<O: Op>(backend: &'static str, shapes: &O::Args<Spec, Spec>) -> Result<()> {
    list::<O>(shapes).into_iter().try_for_each(|(name, spec)| expect_real(backend, O::NAME, name, spec.dtype()))
}

/// As [`expect_reals`], for one operand.
pub(crate) fn expect_real(backend: &'static str, op: &'static str, name: &str, dtype: DType) -> Result<()> {
    if dtype != DType::F64 {
        return Ok(());
    }
    Err(Error::Unsupported { op, what: format!("{name} of {dtype}"), backend, available: "f32, f16, bf16".into() })
}
