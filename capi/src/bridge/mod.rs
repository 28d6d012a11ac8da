//! Bridges from a checkpoint: resampler, gated blocks and their projection, Q-Former and heads.
//!
//! A bridge packs its weights when it is loaded, and then no longer needs the checkpoint.

mod checkpoint;
mod gated_block;
mod qformer;
mod resampler;

pub use checkpoint::*;
pub use gated_block::*;
pub use qformer::*;
pub use resampler::*;

use xattn::bridge::Precision;

use crate::status::{Fault, Result};
use crate::tensor::dtype;

/// Activations and matrices of one real type.
fn precision(call: &str, number: i32) -> Result<Precision> {
    let dtype = dtype(call, "dtype", number)?;
    match dtype.is_float() {
        true => Ok(Precision::uniform(dtype)),
        false => Err(Fault::argument(call, "dtype", "a real xattn_dtype", dtype)),
    }
}
