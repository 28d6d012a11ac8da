//! Bridges: prepared weights and a sequence of ops.
//!
//! Every bridge is built from a config (sizes and the choices in which public systems differ),
//! weights (named tensors from a file, an engine or a test: `checkpoint/` maps the names) and a
//! [`Precision`]. `prepare` fixes the shapes, `enqueue` runs.

mod gated_block;
mod media_cache;
mod parts;
mod perceiver_resampler;
pub(crate) mod program;
mod qformer;
mod qformer_args;
mod qformer_heads;
mod time_embedding;

pub use gated_block::{
    GatedBlock, GatedBlockArgs, GatedBlockCall, GatedBlockConfig, GatedBlockWeights, MediaRule, ProjectMediaArgs,
    ProjectMediaCall,
};
pub use media_cache::{MediaCache, PreparedMediaFill};
pub use parts::{DenseWeights, FfnWeights, NormConfig, NormWeights};
pub use perceiver_resampler::{
    InputMlp, PerceiverResampler, ResamplerArgs, ResamplerCall, ResamplerConfig, ResamplerLayerWeights,
    ResamplerWeights,
};
pub use qformer::{
    CrossAttentionWeights, QFormer, QFormerConfig, QFormerLayerWeights, QFormerWeights, SelfAttentionWeights,
    TextEmbeddingWeights,
};
pub use qformer_args::{Objective, QFormerArgs, QFormerCall};
pub use qformer_heads::{
    HeadArgs, HeadCall, ItcHeads, ItmHead, LanguageProjection, LmHead, LmHeadWeights, itc_similarity,
};
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
