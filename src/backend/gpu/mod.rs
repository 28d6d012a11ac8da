//! What the GPU backends share: operands and parameters of their kernels, a file per op.

mod attention;
mod gated_residual;
mod linear;
mod media_index;
mod norm;
mod operands;
mod params;

pub(super) use attention::{AttentionOperands, AttentionParams, attention_params, keys_kind, place_kind, policy, rule};
pub(super) use gated_residual::{GatedResidualOperands, GatedResidualParams, gated_residual_params};
pub(super) use linear::{LinearOperands, LinearParams, linear_params};
pub(super) use media_index::{MediaIndexOperands, media_index_params};
pub(super) use norm::{NormOperands, norm_params};
pub(super) use operands::{Kernels, operands};
#[cfg(test)]
pub(super) use params::fields;
pub(super) use params::{Params, params};

use crate::tensor::Spec;

/// A stride as kernels take it; 0 of an operand that the call lacks.
fn stride(spec: Option<&Spec>, d: usize) -> u32 {
    spec.map_or(0, |s| s.stride(d) as u32)
}
