//! Bridges: prepared weights and a sequence of ops.
//!
//! Every bridge is built from a config (sizes and the choices in which public systems differ),
//! weights (named tensors from a file, an engine or a test: `checkpoint/` maps the names) and a
//! [`Precision`]. `prepare` fixes the shapes, `enqueue` runs.
//!
//! # Making configs and weights
//!
//! Begin with `new`, which takes what every bridge of its kind has, or with a preset, then set the
//! other fields. A later version may add a field that has a default; what is written so keeps
//! compiling.
//!
//! ```
//! use xattn::bridge::{NormConfig, ResamplerConfig};
//!
//! // 64 latents of width 1024, 8 heads of 64.
//! let mut config = ResamplerConfig::new(1024, 64, 8, 64);
//! assert_eq!(config, ResamplerConfig::open_flamingo());
//! config.qk_norm = Some(NormConfig::layer(1e-5));
//! assert_eq!((config.layers, config.ffn_hidden, config.output_width()), (6, 4096, 1024));
//! ```

mod gated_block;
mod media_cache;
mod parts;
mod perceiver_resampler;
pub(crate) mod program;
mod qformer;
mod qformer_args;
mod qformer_heads;
mod qformer_weights;
mod resampler_weights;
mod time_embedding;

pub use gated_block::{
    GatedBlock, GatedBlockArgs, GatedBlockCall, GatedBlockConfig, GatedBlockWeights, MediaRule, ProjectMediaArgs,
    ProjectMediaCall,
};
pub use media_cache::{MediaCache, PreparedMediaFill};
pub use parts::{DenseWeights, FfnWeights, NormConfig, NormWeights};
pub use perceiver_resampler::{PerceiverResampler, ResamplerArgs, ResamplerCall};
pub use qformer::QFormer;
pub use qformer_args::{Objective, QFormerArgs, QFormerCall};
pub use qformer_heads::{
    HeadArgs, HeadCall, ItcHeads, ItmHead, LanguageProjection, LmHead, LmHeadWeights, itc_similarity,
};
pub use qformer_weights::{
    CrossAttentionWeights, QFormerConfig, QFormerLayerWeights, QFormerWeights, SelfAttentionWeights,
    TextEmbeddingWeights,
};
pub use resampler_weights::{InputMlp, ResamplerConfig, ResamplerLayerWeights, ResamplerWeights};
pub use time_embedding::{Interpolation, interpolate};

use crate::DType;

/// Element types of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision {
    /// Of inputs, outputs and everything between two ops.
    pub activations: DType,
    /// Of the matrices. Norm weights, biases, gates and embeddings stay in f32 (beside f64, f64).
    pub weights: DType,
}

impl Precision {
    /// Activations and matrices of one dtype.
    pub const fn uniform(dtype: DType) -> Self {
        Precision { activations: dtype, weights: dtype }
    }

    /// f64 activations over matrices rounded to `weights`: the reference's run to judge that dtype.
    pub const fn truth(weights: DType) -> Self {
        Precision { activations: DType::F64, weights }
    }

    /// Element type of norm weights, biases, gates and embeddings.
    pub const fn vectors(self) -> DType {
        match self.activations {
            DType::F64 => DType::F64,
            _ => DType::F32,
        }
    }
}
