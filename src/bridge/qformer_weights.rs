//! What a Q-Former is built from: its config and its weights.

use super::program::refuse;
use super::{DenseWeights, FfnWeights, NormWeights, QFormerCall};
use crate::Result;
use crate::ops::{Activation, EmptyRow, Operands};
use crate::tensor::HostTensor;

const NAME: &str = QFormerCall::NAME;

/// Sizes and choices of a Q-Former.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct QFormerConfig {
    /// Width of queries and text.
    pub width: usize,
    /// Attention heads; head_dim is `width / heads`.
    pub heads: usize,
    /// Layers.
    pub layers: usize,
    /// Hidden width of the feed-forward networks.
    pub ffn_hidden: usize,
    /// Width of the image features.
    pub encoder_width: usize,
    /// Layers 0, n, 2n, … cross-attend.
    pub cross_every: usize,
    /// Queries.
    pub queries: usize,
    /// Eps of every LayerNorm.
    pub norm_eps: f32,
    /// Nonlinearity of the feed-forward networks.
    pub activation: Activation,
    /// What a row gets whose keys are all masked: uniform in transformers, the plain softmax in
    /// LAVIS (f32).
    pub empty_row: EmptyRow,
}

impl QFormerConfig {
    /// Eps of BERT's LayerNorms.
    pub const NORM_EPS: f32 = 1e-12;

    /// BLIP-2's Q-Former of these sizes: 12 layers, every second of which cross-attends, 32
    /// queries, a feed-forward network with GELU four times as wide, BERT's eps, and empty rows as
    /// transformers has them. The presets, such as [`QFormerConfig::blip2`], are whole published
    /// configs.
    pub fn new(width: usize, heads: usize, encoder_width: usize) -> Self {
        QFormerConfig {
            width,
            heads,
            layers: 12,
            ffn_hidden: width.saturating_mul(4),
            encoder_width,
            cross_every: 2,
            queries: 32,
            norm_eps: Self::NORM_EPS,
            activation: Activation::Gelu,
            empty_row: EmptyRow::Uniform,
        }
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads.max(1)
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.heads == 0 || !self.width.is_multiple_of(self.heads) {
            return refuse(NAME, "heads", format!("a divisor of the width {}", self.width), self.heads);
        }
        if self.cross_every == 0 {
            return refuse(NAME, "cross_every", "at least 1", 0);
        }
        Ok(())
    }
}

/// Weights of a self-attention with its output layer and norm.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SelfAttentionWeights<'a> {
    /// `[width, width]` and bias.
    pub q: DenseWeights<'a>,
    /// K rows, then V rows.
    pub kv: DenseWeights<'a>,
    /// `[width, width]` and bias.
    pub out: DenseWeights<'a>,
    /// The norm after the residual.
    pub norm: NormWeights<'a>,
}

impl<'a> SelfAttentionWeights<'a> {
    /// The fields say the shapes.
    pub fn new([q, kv, out]: [DenseWeights<'a>; 3], norm: NormWeights<'a>) -> Self {
        SelfAttentionWeights { q, kv, out, norm }
    }
}

/// Weights of a cross-attention: K and V read `encoder_width`.
pub type CrossAttentionWeights<'a> = SelfAttentionWeights<'a>;

/// Weights of one layer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct QFormerLayerWeights<'a> {
    /// Self-attention.
    pub attention: SelfAttentionWeights<'a>,
    /// Cross-attention of the query rows.
    pub cross_attention: Option<CrossAttentionWeights<'a>>,
    /// Feed-forward network and norm of the query rows.
    pub query_ffn: Option<(FfnWeights<'a>, NormWeights<'a>)>,
    /// Feed-forward network and norm of the text rows. Generation models drop it.
    pub text_ffn: Option<(FfnWeights<'a>, NormWeights<'a>)>,
}

impl<'a> QFormerLayerWeights<'a> {
    /// A self-attention alone: set what the layer has beside it.
    pub fn new(attention: SelfAttentionWeights<'a>) -> Self {
        QFormerLayerWeights { attention, cross_attention: None, query_ffn: None, text_ffn: None }
    }
}

/// Weights of the text embedding.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TextEmbeddingWeights<'a> {
    /// `[vocabulary, width]`.
    pub words: HostTensor<'a>,
    /// `[positions, width]`.
    pub positions: HostTensor<'a>,
}

impl<'a> TextEmbeddingWeights<'a> {
    /// Both tables.
    pub fn new(words: HostTensor<'a>, positions: HostTensor<'a>) -> Self {
        TextEmbeddingWeights { words, positions }
    }
}

/// Weights of a Q-Former, in host memory.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct QFormerWeights<'a> {
    /// `[queries, width]`, with leading dimensions of 1. Absent where calls bring their own.
    pub query_tokens: Option<HostTensor<'a>>,
    /// The norm of queries and text embeddings.
    pub embedding_norm: NormWeights<'a>,
    /// Word and position embeddings, where there is text.
    pub text_embedding: Option<TextEmbeddingWeights<'a>>,
    /// Layers.
    pub layers: Vec<QFormerLayerWeights<'a>>,
}

impl<'a> QFormerWeights<'a> {
    /// Without learned queries and text.
    pub fn new(embedding_norm: NormWeights<'a>, layers: Vec<QFormerLayerWeights<'a>>) -> Self {
        QFormerWeights { query_tokens: None, embedding_norm, text_embedding: None, layers }
    }
}
