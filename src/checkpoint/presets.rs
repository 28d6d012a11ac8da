//! Sizes of published models: what a config is when no weights are at hand (benchmarks, engines that allocate first).
//!
//! Sources: Flamingo v2, tables 4 and 5; the `config` defaults of open_flamingo, transformers `idefics`, `idefics2`, `mllama`, `blip_2`,
//! `instructblip`, xGen-MM (spec sections 2.4, 3.5, 4, 5, 7 and 13).

use crate::bridge::{GatedBlockConfig, InputMlp, Interpolation, MediaRule, NormConfig, QFormerConfig, ResamplerConfig};
use crate::ops::{Activation, EmptyRow, EmptyRows, NormKind};

/// LayerNorm's eps in every Flamingo-like model.
const LAYER: NormConfig = NormConfig::layer(1e-5);

/// A resampler without qk norms, input MLP and projection, as wide inside as its heads are.
fn resampler(width: usize, latents: usize, heads: usize, head_dim: usize, activation: Activation) -> ResamplerConfig {
    ResamplerConfig {
        width,
        latents,
        layers: 6,
        heads,
        kv_heads: heads,
        head_dim,
        ffn_hidden: 4 * width,
        activation,
        norm: LAYER,
        qk_norm: None,
        final_norm: true,
        interpolation: Interpolation::None,
        input_mlp: None,
        projection: None,
    }
}

impl ResamplerConfig {
    /// Flamingo 3B, 9B and 80B share one: 6 layers of 16 heads of 96 over 1536, 64 latents.
    pub fn flamingo() -> Self {
        let interpolation = Interpolation::Linear { align_corners: true };
        ResamplerConfig { interpolation, ..resampler(1536, 64, 16, 96, Activation::SquaredRelu) }
    }

    /// Every OpenFlamingo: 6 layers of 8 heads of 64 over CLIP ViT-L/14's 1024.
    pub fn open_flamingo() -> Self {
        resampler(1024, 64, 8, 64, Activation::Gelu)
    }

    /// IDEFICS 9B and 80B: 6 layers of 16 heads of 96 over CLIP ViT-H/14's 1280, norms of q and k.
    pub fn idefics() -> Self {
        ResamplerConfig { qk_norm: Some(LAYER), ..resampler(1280, 64, 16, 96, Activation::Relu) }
    }

    /// Idefics2 8B: SigLIP's 1152 through a gated MLP to 4096, then 3 layers of 16 query and 4 K/V heads of 96.
    pub fn idefics2_8b() -> Self {
        ResamplerConfig {
            layers: 3,
            kv_heads: 4,
            norm: NormConfig::rms(1e-5),
            input_mlp: Some(InputMlp { features: 1152, hidden: 14336 }),
            ..resampler(4096, 64, 16, 96, Activation::SwiGlu)
        }
    }

    /// xGen-MM (BLIP-3): OpenFlamingo's with 16 heads of 96 over 1152, 128 latents, projected to 3072.
    pub fn xgen_mm() -> Self {
        ResamplerConfig { projection: Some(3072), ..resampler(1152, 128, 16, 96, Activation::Gelu) }
    }

    /// Number of parameters, latents included, frame and media embeddings not.
    pub fn parameters(&self) -> usize {
        let (inner, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let norm = norm_parameters(self.norm, self.width);
        let layer = 3 * norm
            + self.width * (2 * inner + 2 * kv)
            + self.qk_norm.map_or(0, |n| 2 * norm_parameters(n, self.head_dim))
            + matrices(self.activation) * self.width * self.ffn_hidden;
        self.latents * self.width
            + self.layers * layer
            + if self.final_norm { norm } else { 0 }
            + self.input_mlp.map_or(0, |m| m.hidden * (2 * m.features + self.width))
            + self.projection.map_or(0, |n| n * (self.width + 1))
    }
}

/// A block whose heads are as many for K and V, with a feed-forward network four times as wide.
fn block(width: usize, media_width: usize, heads: usize, head_dim: usize) -> GatedBlockConfig {
    GatedBlockConfig {
        width,
        media_width,
        heads,
        kv_heads: heads,
        head_dim,
        ffn_hidden: 4 * width,
        activation: Activation::Gelu,
        norm: LAYER,
        media_norm: None,
        qk_norm: None,
        rule: MediaRule::Same,
        empty_rows: EmptyRows::default(),
        ffn_row_mask: false,
    }
}

/// The paper's block: K/V normed, squared ReLU.
fn flamingo(width: usize, heads: usize) -> GatedBlockConfig {
    GatedBlockConfig { media_norm: Some(LAYER), activation: Activation::SquaredRelu, ..block(width, 1536, heads, 128) }
}

/// OpenFlamingo's block: 8 heads of 64 whatever the width; rows beyond the media get the mean.
fn open_flamingo(width: usize) -> GatedBlockConfig {
    let empty_rows = EmptyRows { no_media: EmptyRow::Zero, beyond_media: EmptyRow::Uniform, masked: EmptyRow::Uniform };
    GatedBlockConfig { empty_rows, ..block(width, 1024, 8, 64) }
}

fn idefics(width: usize, heads: usize, ffn_hidden: usize) -> GatedBlockConfig {
    let norm = NormConfig::rms(1e-6);
    GatedBlockConfig {
        ffn_hidden,
        activation: Activation::SwiGlu,
        norm,
        qk_norm: Some(norm),
        rule: MediaRule::Bits,
        ..block(width, 1280, heads, 128)
    }
}

fn llama_3_2(width: usize, heads: usize, ffn_hidden: usize) -> GatedBlockConfig {
    let norm = NormConfig::rms(1e-5);
    GatedBlockConfig {
        media_width: width,
        kv_heads: 8,
        norm,
        qk_norm: Some(norm),
        ffn_row_mask: true,
        ..idefics(width, heads, ffn_hidden)
    }
}

impl GatedBlockConfig {
    /// Flamingo 3B: 24 blocks.
    pub fn flamingo_3b() -> Self {
        flamingo(2048, 16)
    }

    /// Flamingo 9B: 10 blocks.
    pub fn flamingo_9b() -> Self {
        flamingo(4096, 32)
    }

    /// Flamingo 80B: 12 blocks.
    pub fn flamingo_80b() -> Self {
        flamingo(8192, 64)
    }

    /// OpenFlamingo 3B (MPT-1B): 24 blocks.
    pub fn open_flamingo_3b() -> Self {
        open_flamingo(2048)
    }

    /// OpenFlamingo 4B (RedPajama-3B): 16 blocks.
    pub fn open_flamingo_4b() -> Self {
        open_flamingo(2560)
    }

    /// OpenFlamingo 9B (MPT-7B): 8 blocks.
    pub fn open_flamingo_9b() -> Self {
        open_flamingo(4096)
    }

    /// IDEFICS 9B: 8 blocks.
    pub fn idefics_9b() -> Self {
        idefics(4096, 32, 11008)
    }

    /// IDEFICS 80B: 20 blocks.
    pub fn idefics_80b() -> Self {
        idefics(8192, 64, 22016)
    }

    /// Llama 3.2 11B Vision: 8 layers. Empty rows as Meta's reference has them.
    pub fn llama_3_2_11b() -> Self {
        llama_3_2(4096, 32, 14336)
    }

    /// Llama 3.2 90B Vision: 20 layers.
    pub fn llama_3_2_90b() -> Self {
        llama_3_2(8192, 64, 28672)
    }

    /// Number of parameters, with scalar gates.
    pub fn parameters(&self) -> usize {
        let inner = self.heads * self.head_dim;
        2 * norm_parameters(self.norm, self.width)
            + self.media_norm.map_or(0, |n| norm_parameters(n, self.media_width))
            + self.qk_norm.map_or(0, |n| 2 * norm_parameters(n, self.head_dim))
            + 2 * inner * self.width
            + self.kv_width() * self.media_width
            + matrices(self.activation) * self.width * self.ffn_hidden
            + 2
    }
}

impl QFormerConfig {
    /// BLIP-2 over EVA ViT-g/14 (1408): BERT-base with cross-attention in every second layer, 32 queries. Empty rows as transformers has
    /// them.
    pub fn blip2() -> Self {
        QFormerConfig {
            width: 768,
            heads: 12,
            layers: 12,
            ffn_hidden: 3072,
            encoder_width: 1408,
            cross_every: 2,
            queries: 32,
            norm_eps: super::blip2::NORM_EPS,
            activation: Activation::Gelu,
            empty_row: EmptyRow::Uniform,
        }
    }

    /// BLIP-2 over CLIP ViT-L/14 (1024).
    pub fn blip2_vit_l() -> Self {
        QFormerConfig { encoder_width: 1024, ..Self::blip2() }
    }

    /// InstructBLIP: BLIP-2's, with text.
    pub fn instruct_blip() -> Self {
        Self::blip2()
    }

    /// Number of parameters without the query tokens: with a feed-forward network for text or not, and `embeddings` rows of word and
    /// position embeddings together.
    pub fn parameters(&self, text_ffn: bool, embeddings: usize) -> usize {
        let norm = 2 * self.width;
        let dense = |n: usize, k: usize| n * (k + 1);
        let attention = |kv: usize| 2 * dense(self.width, self.width) + dense(2 * self.width, kv) + norm;
        let ffn = dense(self.ffn_hidden, self.width) + dense(self.width, self.ffn_hidden) + norm;
        let crossing = self.layers.div_ceil(self.cross_every.max(1));
        norm + self.layers * (attention(self.width) + if text_ffn { 2 * ffn } else { ffn })
            + crossing * attention(self.encoder_width)
            + embeddings * self.width
    }
}

fn norm_parameters(norm: NormConfig, width: usize) -> usize {
    if norm.kind == NormKind::Layer { 2 * width } else { width }
}

/// Matrices of a feed-forward network.
fn matrices(activation: Activation) -> usize {
    if activation.is_glu() { 3 } else { 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Millions with one digit, as the sources give them.
    fn millions(parameters: usize) -> String {
        format!("{:.1}", parameters as f64 / 1e6)
    }

    /// Counts that spec 3.5 and 5.1 took from the executed public classes.
    #[test]
    fn parameters_are_those_of_the_public_classes() {
        assert_eq!(millions(ResamplerConfig::open_flamingo().parameters()), "63.0");
        assert_eq!(millions(GatedBlockConfig::open_flamingo_3b().parameters()), "36.7");
        assert_eq!(millions(GatedBlockConfig::open_flamingo_4b().parameters()), "56.1");
        assert_eq!(millions(GatedBlockConfig::open_flamingo_9b().parameters()), "139.5");
        let q = QFormerConfig::blip2();
        assert_eq!(millions(q.parameters(false, 0)), "105.1");
        assert_eq!(millions(q.parameters(true, 0)), "161.8");
        assert_eq!(millions(q.parameters(true, 30522 + 512)), "185.7");
    }

    /// Spec 2.4: 170M with heads of 96, and blocks of 1.16, 1.80 and 8.36 billion.
    #[test]
    fn parameters_are_those_of_the_paper_with_media_of_1536() {
        assert_eq!(millions(ResamplerConfig::flamingo().parameters()), "170.0");
        let blocks = |block: GatedBlockConfig, n: usize| format!("{:.2}", (n * block.parameters()) as f64 / 1e9);
        assert_eq!(blocks(GatedBlockConfig::flamingo_3b(), 24), "1.16");
        assert_eq!(blocks(GatedBlockConfig::flamingo_9b(), 10), "1.80");
        assert_eq!(blocks(GatedBlockConfig::flamingo_80b(), 12), "8.36");
    }
}
