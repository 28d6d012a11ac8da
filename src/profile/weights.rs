//! Random weights of any bridge, from a seed: the same on every machine.
//!
//! Matrices are uniform with variance 1/K, so that activations keep their size through any depth, and numbers are multiples of 2^-20, so
//! that a case is the same whatever rounds it first. Norm factors lie around 1, biases around 0, gates are far from both 0 and 1.

use crate::bridge::{
    DenseWeights, FfnWeights, GatedBlockConfig, GatedBlockWeights, LmHeadWeights, NormConfig, NormWeights,
    QFormerConfig, QFormerLayerWeights, QFormerWeights, ResamplerConfig, ResamplerLayerWeights, ResamplerWeights,
    SelfAttentionWeights, TextEmbeddingWeights,
};
use crate::ops::{Activation, NormKind};
use crate::verify::generate::Rng;
use crate::{HostTensor, Result};

/// What of a Q-Former's text side there is: generation models drop all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text {
    /// Rows of the word embedding.
    pub vocabulary: usize,
    /// Rows of the position embedding.
    pub positions: usize,
}

impl Text {
    /// BERT's own: 30523 words with `[DEC]`, 512 positions.
    pub const BERT: Text = Text { vocabulary: 30523, positions: 512 };
}

/// A seeded source of weights and inputs.
#[derive(Debug, Clone)]
pub struct RandomWeights {
    rng: Rng,
}

impl RandomWeights {
    /// A source whose sequence the seed decides.
    pub fn new(seed: u64) -> Self {
        RandomWeights { rng: Rng::new(seed) }
    }

    /// Numbers uniform around `mean`, with this standard deviation, in f32.
    ///
    /// # Errors
    /// A shape that no tensor has.
    pub fn tensor(&mut self, mean: f32, deviation: f32, shape: &[usize]) -> Result<HostTensor<'static>> {
        let n = shape.iter().product();
        let width = deviation * 12f32.sqrt();
        let mut values = Vec::with_capacity(n);
        // Three draws of 21 bits from each word: big matrices are most of the time that a case takes to build.
        while values.len() < n {
            let bits = self.rng.bits();
            for part in 0..3.min(n - values.len()) {
                let unit = ((bits >> (21 * part)) & 0x1F_FFFF) as f32 / 2_097_152.0 - 0.5;
                values.push(((mean + width * unit) * 1_048_576.0).round() / 1_048_576.0);
            }
        }
        HostTensor::from_slice(&values, shape)
    }

    /// A matrix `[n, k]`.
    ///
    /// # Errors
    /// A shape that no tensor has.
    pub fn matrix(&mut self, n: usize, k: usize) -> Result<HostTensor<'static>> {
        self.tensor(0.0, 1.0 / (k.max(1) as f32).sqrt(), &[n, k])
    }

    /// A dense layer without a bias.
    ///
    /// # Errors
    /// A shape that no tensor has.
    pub fn plain(&mut self, n: usize, k: usize) -> Result<DenseWeights<'static>> {
        Ok(DenseWeights::plain(vec![self.matrix(n, k)?]))
    }

    /// A dense layer with a bias.
    ///
    /// # Errors
    /// A shape that no tensor has.
    pub fn biased(&mut self, n: usize, k: usize) -> Result<DenseWeights<'static>> {
        Ok(DenseWeights::biased(self.matrix(n, k)?, self.tensor(0.0, 0.1, &[n])?))
    }

    /// A norm of its kind.
    ///
    /// # Errors
    /// A shape that no tensor has.
    pub fn norm(&mut self, config: NormConfig, width: usize) -> Result<NormWeights<'static>> {
        let weight = self.tensor(1.0, 0.1, &[width])?;
        let bias = match config.kind {
            NormKind::Layer => Some(self.tensor(0.0, 0.1, &[width])?),
            _ => None,
        };
        Ok(NormWeights { weight, bias })
    }

    fn qk_norm(
        &mut self,
        config: Option<NormConfig>,
        head_dim: usize,
    ) -> Result<Option<(NormWeights<'static>, NormWeights<'static>)>> {
        config.map(|c| Ok((self.norm(c, head_dim)?, self.norm(c, head_dim)?))).transpose()
    }

    fn ffn(
        &mut self,
        activation: Activation,
        input: usize,
        hidden: usize,
        output: usize,
    ) -> Result<FfnWeights<'static>> {
        Ok(FfnWeights {
            gate: if activation.is_glu() { Some(self.matrix(hidden, input)?) } else { None },
            up: self.plain(hidden, input)?,
            down: self.plain(output, hidden)?,
        })
    }

    fn biased_ffn(&mut self, width: usize, hidden: usize) -> Result<FfnWeights<'static>> {
        Ok(FfnWeights { gate: None, up: self.biased(hidden, width)?, down: self.biased(width, hidden)? })
    }

    /// Weights for a resampler of this config, without frame and media embeddings.
    ///
    /// # Errors
    /// A config that no tensors fit.
    pub fn resampler(&mut self, c: &ResamplerConfig) -> Result<ResamplerWeights<'static>> {
        let (inner, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let layer = |r: &mut Self| -> Result<ResamplerLayerWeights<'static>> {
            Ok(ResamplerLayerWeights {
                feature_norm: r.norm(c.norm, c.width)?,
                latent_norm: r.norm(c.norm, c.width)?,
                q: r.plain(inner, c.width)?,
                kv: r.plain(2 * kv, c.width)?,
                qk_norm: r.qk_norm(c.qk_norm, c.head_dim)?,
                out: r.plain(c.width, inner)?,
                ffn_norm: r.norm(c.norm, c.width)?,
                ffn: r.ffn(c.activation, c.width, c.ffn_hidden, c.width)?,
            })
        };
        Ok(ResamplerWeights {
            latents: self.tensor(0.0, 1.0, &[c.latents, c.width])?,
            frame_embeddings: None,
            media_embeddings: None,
            input_mlp: c.input_mlp.map(|m| self.ffn(Activation::SwiGlu, m.features, m.hidden, c.width)).transpose()?,
            layers: (0..c.layers).map(|_| layer(self)).collect::<Result<_>>()?,
            final_norm: if c.final_norm { Some(self.norm(c.norm, c.width)?) } else { None },
            projection: c.projection.map(|n| self.biased(n, c.width)).transpose()?,
        })
    }

    /// Weights for a gated block of this config, with scalar gates.
    ///
    /// # Errors
    /// A config that no tensors fit.
    pub fn gated_block(&mut self, c: &GatedBlockConfig) -> Result<GatedBlockWeights<'static>> {
        let inner = c.heads * c.head_dim;
        Ok(GatedBlockWeights {
            attention_norm: self.norm(c.norm, c.width)?,
            media_norm: c.media_norm.map(|n| self.norm(n, c.media_width)).transpose()?,
            q: self.plain(inner, c.width)?,
            kv: self.plain(c.kv_width(), c.media_width)?,
            qk_norm: self.qk_norm(c.qk_norm, c.head_dim)?,
            out: self.plain(c.width, inner)?,
            attention_gate: self.tensor(0.7, 0.1, &[1])?,
            ffn_norm: self.norm(c.norm, c.width)?,
            ffn: self.ffn(c.activation, c.width, c.ffn_hidden, c.width)?,
            ffn_gate: self.tensor(-0.4, 0.1, &[1])?,
        })
    }

    fn self_attention(&mut self, c: &QFormerConfig, kv_input: usize) -> Result<SelfAttentionWeights<'static>> {
        Ok(SelfAttentionWeights {
            q: self.biased(c.width, c.width)?,
            kv: self.biased(2 * c.width, kv_input)?,
            out: self.biased(c.width, c.width)?,
            norm: self.norm(NormConfig::layer(c.norm_eps), c.width)?,
        })
    }

    /// Weights for a Q-Former of this config, with learned queries.
    ///
    /// # Errors
    /// A config that no tensors fit.
    pub fn qformer(&mut self, c: &QFormerConfig, text: Option<Text>) -> Result<QFormerWeights<'static>> {
        let norm = NormConfig::layer(c.norm_eps);
        let layer = |r: &mut Self, i: usize| -> Result<QFormerLayerWeights<'static>> {
            let crosses = i.checked_rem(c.cross_every) == Some(0);
            Ok(QFormerLayerWeights {
                attention: r.self_attention(c, c.width)?,
                cross_attention: if crosses { Some(r.self_attention(c, c.encoder_width)?) } else { None },
                query_ffn: Some((r.biased_ffn(c.width, c.ffn_hidden)?, r.norm(norm, c.width)?)),
                text_ffn: match text {
                    Some(_) => Some((r.biased_ffn(c.width, c.ffn_hidden)?, r.norm(norm, c.width)?)),
                    None => None,
                },
            })
        };
        Ok(QFormerWeights {
            query_tokens: Some(self.tensor(0.0, 1.0, &[c.queries, c.width])?),
            embedding_norm: self.norm(norm, c.width)?,
            text_embedding: match text {
                None => None,
                Some(t) => Some(TextEmbeddingWeights {
                    words: self.tensor(0.0, 1.0, &[t.vocabulary, c.width])?,
                    positions: self.tensor(0.0, 1.0, &[t.positions, c.width])?,
                }),
            },
            layers: (0..c.layers).map(|i| layer(self, i)).collect::<Result<_>>()?,
        })
    }

    /// Weights for a language-model head.
    ///
    /// # Errors
    /// Sizes that no tensors fit.
    pub fn lm_head(&mut self, width: usize, vocabulary: usize) -> Result<LmHeadWeights<'static>> {
        Ok(LmHeadWeights {
            transform: self.biased(width, width)?,
            norm: self.norm(NormConfig::layer(1e-12), width)?,
            decoder: self.biased(vocabulary, width)?,
        })
    }
}
