//! What the GPU backends share: the parameters of their kernels.

mod attention;
mod gated_residual;
mod linear;
mod media_index;
mod norm;
mod params;

pub(super) use attention::{AttentionParams, attention_params, exists, per_row, place};
pub(super) use gated_residual::GatedResidualParams;
#[cfg(feature = "cuda")]
pub(super) use linear::residual_of;
pub(super) use linear::{LinearParams, linear_params};
pub(super) use media_index::MediaIndexParams;
pub(super) use norm::NormParams;
pub(super) use params::Params;
#[cfg(any(feature = "wgpu", all(feature = "cuda", feature = "verify")))]
pub(super) use params::params;
