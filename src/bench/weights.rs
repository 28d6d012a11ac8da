//! Random weights of any bridge, from a seed: the same on every machine.
//!
//! Matrices are uniform with variance 1/K, so that activations keep their size through any depth,
//! and numbers are multiples of 2^-20, so that a case is the same whatever rounds it first. Norm
//! factors lie around 1, biases around 0, gates are far from both 0 and 1.

use crate::bridge::{
    DenseWeights, FfnWeights, GatedBlockConfig, GatedBlockWeights, LmHeadWeights, NormConfig, NormWeights,
    QFormerConfig, QFormerLayerWeights, QFormerWeights, ResamplerConfig, ResamplerLayerWeights, ResamplerWeights,
    SelfAttentionWeights, TextEmbeddingWeights,
};
use crate::ops::{Activation, NormKind};
use crate::verify::generate::{Rng, uniform};
use crate::{DType, HostTensor, Result};

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
    matrices: DType,
}

impl RandomWeights {
    /// A source whose sequence the seed decides.
    pub fn new(seed: u64) -> Self {
        RandomWeights { rng: Rng::new(seed), matrices: DType::F32 }
    }

    /// The same sequence, with matrices that are rounded to `dtype` already: what a device that
    /// holds them so makes of them anyway.
    pub fn with_matrices(self, dtype: DType) -> Self {
        RandomWeights { matrices: dtype, ..self }
    }

    /// Numbers uniform around `mean`, with this standard deviation, in f32.
    ///
    /// # Errors
    /// A shape that no tensor has.
    pub fn tensor(&mut self, mean: f32, deviation: f32, shape: &[usize]) -> Result<HostTensor<'static>> {
        self.rounded(mean, deviation, shape, DType::F32)
    }

    /// The numbers of [`RandomWeights::tensor`], rounded once to `dtype`.
    ///
    /// # Errors
    /// An integer dtype, a shape that no tensor has.
    pub fn rounded(&mut self, mean: f32, deviation: f32, shape: &[usize], dtype: DType) -> Result<HostTensor<'static>> {
        uniform(self.rng.bits(), mean, deviation, dtype, shape)
    }

    /// A matrix `[n, k]`.
    ///
    /// # Errors
    /// A shape that no tensor has.
    pub fn matrix(&mut self, n: usize, k: usize) -> Result<HostTensor<'static>> {
        self.rounded(0.0, 1.0 / (k.max(1) as f32).sqrt(), &[n, k], self.matrices)
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
        Ok(NormWeights::new(weight, bias))
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
        Ok(FfnWeights::new(self.biased(hidden, width)?, self.biased(width, hidden)?))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::generate::PIECE;

    /// A uniform number of deviation s lies within sqrt(3) s of its mean; of n of them the mean is
    /// off by s / sqrt(n), of which six are allowed.
    #[test]
    fn numbers_have_their_mean_and_deviation_and_are_multiples() {
        let n = 2 * PIECE + 5;
        let values = RandomWeights::new(7).tensor(0.5, 0.25, &[n]).unwrap().to_vec::<f32>().unwrap();
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let square = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 6.0 * 0.25 / (n as f64).sqrt(), "mean {mean}");
        assert!((square.sqrt() - 0.25).abs() < 0.002, "deviation {}", square.sqrt());
        assert!(values.iter().all(|x| (x - 0.5).abs() < 0.434 && (x * 1_048_576.0).fract() == 0.0));
        // Pieces differ, and so do tensors of one source; a source of the same seed gives the same.
        assert_ne!(values[..PIECE], values[PIECE..2 * PIECE]);
        let mut again = RandomWeights::new(7);
        assert_eq!(again.tensor(0.5, 0.25, &[n]).unwrap().to_vec::<f32>().unwrap(), values);
        assert_ne!(again.tensor(0.5, 0.25, &[n]).unwrap().to_vec::<f32>().unwrap(), values);
    }

    #[test]
    fn rounded_numbers_are_those_of_f32_rounded() {
        let shape = [3, PIECE / 2 + 1];
        let exact = RandomWeights::new(3).tensor(0.0, 1.0, &shape).unwrap();
        for dtype in [DType::BF16, DType::F16] {
            let rounded = RandomWeights::new(3).rounded(0.0, 1.0, &shape, dtype).unwrap();
            assert_eq!(rounded, exact.to_dtype(dtype).unwrap());
            let matrix = RandomWeights::new(4).with_matrices(dtype).matrix(8, 64).unwrap();
            assert_eq!(matrix, RandomWeights::new(4).matrix(8, 64).unwrap().to_dtype(dtype).unwrap());
        }
        let error = RandomWeights::new(3).rounded(0.0, 1.0, &shape, DType::I32).unwrap_err();
        assert_eq!(error.to_string(), "verify: dtype: expected a real type, got i32");
    }
}
