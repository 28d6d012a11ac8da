//! Which reals kernels have.

use super::NAME;
use crate::tensor::Spec;
use crate::{DType, Error, Result};

/// Refuses operands that no kernel reads: f64 is the reference's.
pub(super) fn expect_reals(op: &'static str, operands: &[(&'static str, Option<&Spec>)]) -> Result<()> {
    for (name, spec) in operands {
        if spec.is_some_and(|spec| spec.dtype() == DType::F64) {
            return Err(Error::Unsupported {
                op,
                what: format!("{name} of {}", DType::F64),
                backend: NAME,
                available: "f32, f16, bf16".into(),
            });
        }
    }
    Ok(())
}
