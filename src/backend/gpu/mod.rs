//! What the GPU backends share: operands and parameters of their kernels, a file per op.

pub(super) mod attention;
pub(super) mod gated_residual;
pub(super) mod linear;
pub(super) mod media_index;
pub(super) mod norm;
mod one_launch;
mod operands;
mod params;

pub(super) use one_launch::{Launches, OneLaunch};
pub(super) use operands::{Kernels, MOST_OPERANDS, operands};
#[cfg(test)]
pub(super) use params::fields;
pub(super) use params::{Params, params};

use crate::tensor::Spec;

/// A stride as kernels take it; 0 of an operand that the call lacks.
fn stride(spec: Option<&Spec>, d: usize) -> u32 {
    spec.map_or(0, |s| s.stride(d) as u32)
}
