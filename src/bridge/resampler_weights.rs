//! What a resampler is built from: its config and its weights.

use super::time_embedding::Interpolation;
use super::{DenseWeights, FfnWeights, NormConfig, NormWeights};
use crate::ops::Activation;
use crate::tensor::HostTensor;

/// Sizes and choices of a resampler.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ResamplerConfig {
    /// Width of latents and (projected) features.
    pub width: usize,
    /// Learned latents per medium.
    pub latents: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// K/V heads.
    pub kv_heads: usize,
    /// Width of a head; `heads · head_dim` need not be `width`.
    pub head_dim: usize,
    /// Hidden width of the feed-forward network.
    pub ffn_hidden: usize,
    /// Its nonlinearity.
    pub activation: Activation,
    /// Norms of features, latents and before the feed-forward network.
    pub norm: NormConfig,
    /// Norms of q and k per head.
    pub qk_norm: Option<NormConfig>,
    /// Whether a norm follows the last layer (all public code; not the paper's pseudo-code).
    pub final_norm: bool,
    /// What happens when a clip's frames are not as many as its embeddings.
    pub interpolation: Interpolation,
    /// A gated MLP in front (Idefics2's modality projection).
    pub input_mlp: Option<InputMlp>,
    /// Width of a projection behind the final norm (xGen-MM).
    pub projection: Option<usize>,
}

/// The gated MLP (SwiGLU) that maps features to the resampler's width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct InputMlp {
    /// Width of the features.
    pub features: usize,
    /// Hidden width.
    pub hidden: usize,
}

impl InputMlp {
    /// From the width of the features, through a hidden width.
    pub const fn new(features: usize, hidden: usize) -> Self {
        InputMlp { features, hidden }
    }
}

impl ResamplerConfig {
    /// OpenFlamingo's resampler of these sizes: 6 layers, as many K/V heads as query heads, a
    /// feed-forward network with GELU four times as wide, the default norm, also behind the last
    /// layer, and nothing that is optional. The presets, such as
    /// [`ResamplerConfig::open_flamingo`], are whole published configs.
    pub fn new(width: usize, latents: usize, heads: usize, head_dim: usize) -> Self {
        ResamplerConfig {
            width,
            latents,
            layers: 6,
            heads,
            kv_heads: heads,
            head_dim,
            ffn_hidden: width.saturating_mul(4),
            activation: Activation::Gelu,
            norm: NormConfig::default(),
            qk_norm: None,
            final_norm: true,
            interpolation: Interpolation::None,
            input_mlp: None,
            projection: None,
        }
    }

    /// Width of the features that go in.
    pub fn feature_width(&self) -> usize {
        self.input_mlp.map_or(self.width, |m| m.features)
    }

    /// Width of what comes out.
    pub fn output_width(&self) -> usize {
        self.projection.unwrap_or(self.width)
    }
}

/// Weights of a resampler, in host memory.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ResamplerWeights<'a> {
    /// `[latents, width]`.
    pub latents: HostTensor<'a>,
    /// `[frames, width]`, added per frame.
    pub frame_embeddings: Option<HostTensor<'a>>,
    /// `[media, width]`, added per medium of a sequence.
    pub media_embeddings: Option<HostTensor<'a>>,
    /// The MLP in front.
    pub input_mlp: Option<FfnWeights<'a>>,
    /// Layers.
    pub layers: Vec<ResamplerLayerWeights<'a>>,
    /// The norm behind the last layer.
    pub final_norm: Option<NormWeights<'a>>,
    /// The projection behind it.
    pub projection: Option<DenseWeights<'a>>,
}

impl<'a> ResamplerWeights<'a> {
    /// What [`ResamplerConfig::new`] asks for: no embeddings, no MLP in front, no projection.
    pub fn new(
        latents: HostTensor<'a>,
        layers: Vec<ResamplerLayerWeights<'a>>,
        final_norm: Option<NormWeights<'a>>,
    ) -> Self {
        let (frame_embeddings, media_embeddings, input_mlp, projection) = (None, None, None, None);
        ResamplerWeights { latents, frame_embeddings, media_embeddings, input_mlp, layers, final_norm, projection }
    }
}

/// Weights of one layer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ResamplerLayerWeights<'a> {
    /// Norm of the features.
    pub feature_norm: NormWeights<'a>,
    /// Norm of the latents.
    pub latent_norm: NormWeights<'a>,
    /// `[heads · head_dim, width]`.
    pub q: DenseWeights<'a>,
    /// K rows, then V rows: `[2 · kv_heads · head_dim, width]` in one or two parts.
    pub kv: DenseWeights<'a>,
    /// Norms of q and k, `[head_dim]` each.
    pub qk_norm: Option<(NormWeights<'a>, NormWeights<'a>)>,
    /// `[width, heads · head_dim]`.
    pub out: DenseWeights<'a>,
    /// Norm before the feed-forward network.
    pub ffn_norm: NormWeights<'a>,
    /// The feed-forward network.
    pub ffn: FfnWeights<'a>,
}

impl<'a> ResamplerLayerWeights<'a> {
    /// What every layer has: no norms of q and k. The fields say the shapes.
    pub fn new(
        [feature_norm, latent_norm, ffn_norm]: [NormWeights<'a>; 3],
        [q, kv, out]: [DenseWeights<'a>; 3],
        ffn: FfnWeights<'a>,
    ) -> Self {
        ResamplerLayerWeights { feature_norm, latent_norm, q, kv, qk_norm: None, out, ffn_norm, ffn }
    }
}
