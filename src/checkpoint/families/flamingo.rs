//! The paper's Flamingo, whose weights nobody published; names are our own (`golden/` families H).
//!
//! Resampler: `latents`, `time_embeddings`, `layers.{i}.{media_norm,latents_norm,ffw_norm}`,
//! `.attn.{wq,wk,wv,wo}`, `.ffw.{w1,w2}`, `final_norm`. Gated block: `attn_norm`,
//! `attn.{wq,wk,wv,wo}`, `ffw_norm`, `ffw.{w1,w2}`, `alpha_xattn`, `alpha_dense`, and optionally
//! `media_norm`, the paper's norm of K and V.

use crate::Result;
use crate::bridge::{
    DenseWeights, FfnWeights, GatedBlockConfig, GatedBlockWeights, Interpolation, MediaRule, NormConfig,
    ResamplerConfig, ResamplerLayerWeights, ResamplerWeights,
};
use crate::checkpoint::{Reader, TensorSource};
use crate::ops::{Activation, EmptyRow, EmptyRows};

/// Reads a resampler. `interpolation` decides how time embeddings stretch to longer clips.
///
/// # Errors
/// Every missing or mis-shaped tensor, by name.
pub fn resampler<'a>(
    source: &dyn TensorSource<'a>,
    prefix: &str,
    heads: usize,
    interpolation: Interpolation,
) -> Result<(ResamplerConfig, ResamplerWeights<'a>)> {
    Reader::family("Flamingo resampler", source, prefix, |r| {
        let [latents, width] = r.dims("latents");
        let [frames, _] = r.dims("time_embeddings");
        let layers = r.layers("layers.");
        let [inner, _] = r.dims("layers.0.attn.wq");
        let [hidden, _] = r.dims("layers.0.ffw.w1");
        let head_dim = r.head_dim("layers.0.attn.wq", inner, heads);
        let layer = |i: usize| {
            let r = r.sub(format!("layers.{i}."));
            ResamplerLayerWeights {
                feature_norm: r.layer_norm("media_norm", width),
                latent_norm: r.layer_norm("latents_norm", width),
                q: matrices(&r, &["attn.wq"], inner, width),
                kv: matrices(&r, &["attn.wk", "attn.wv"], inner, width),
                qk_norm: None,
                out: matrices(&r, &["attn.wo"], width, inner),
                ffn_norm: r.layer_norm("ffw_norm", width),
                ffn: ffn(&r, width, hidden),
            }
        };
        let weights = ResamplerWeights {
            latents: r.tensor("latents", &[latents, width]),
            frame_embeddings: Some(r.tensor("time_embeddings", &[frames, width])),
            media_embeddings: None,
            input_mlp: None,
            layers: (0..layers).map(layer).collect(),
            final_norm: Some(r.layer_norm("final_norm", width)),
            projection: None,
        };
        let config = ResamplerConfig {
            layers,
            ffn_hidden: hidden,
            activation: Activation::SquaredRelu,
            interpolation,
            ..ResamplerConfig::new(width, latents, heads, head_dim)
        };
        Ok((config, weights))
    })
}

/// Reads a GATED XATTN-DENSE block. Rows that see no medium get zeros.
///
/// # Errors
/// Every missing or mis-shaped tensor, by name.
pub fn gated_block<'a>(
    source: &dyn TensorSource<'a>,
    prefix: &str,
    heads: usize,
    immediate: bool,
) -> Result<(GatedBlockConfig, GatedBlockWeights<'a>)> {
    Reader::family("Flamingo gated block", source, prefix, |r| {
        let [inner, width] = r.dims("attn.wq");
        let [_, media_width] = r.dims("attn.wk");
        let [hidden, _] = r.dims("ffw.w1");
        let media_norm = r.any_below("media_norm.");
        let weights = GatedBlockWeights {
            attention_norm: r.layer_norm("attn_norm", width),
            media_norm: media_norm.then(|| r.layer_norm("media_norm", media_width)),
            q: matrices(r, &["attn.wq"], inner, width),
            kv: matrices(r, &["attn.wk", "attn.wv"], inner, media_width),
            qk_norm: None,
            out: matrices(r, &["attn.wo"], width, inner),
            attention_gate: r.tensor("alpha_xattn", &[1]),
            ffn_norm: r.layer_norm("ffw_norm", width),
            ffn: ffn(r, width, hidden),
            ffn_gate: r.tensor("alpha_dense", &[1]),
        };
        let config = GatedBlockConfig {
            ffn_hidden: hidden,
            activation: Activation::SquaredRelu,
            media_norm: media_norm.then(NormConfig::default),
            rule: if immediate { MediaRule::Same } else { MediaRule::Preceding },
            empty_rows: EmptyRows::all(EmptyRow::Zero),
            ..GatedBlockConfig::new(width, media_width, heads, r.head_dim("attn.wq", inner, heads))
        };
        Ok((config, weights))
    })
}

fn matrices<'a>(r: &Reader<'_, 'a>, names: &[&str], n: usize, k: usize) -> DenseWeights<'a> {
    DenseWeights::plain(names.iter().map(|name| r.tensor(name, &[n, k])).collect())
}

fn ffn<'a>(r: &Reader<'_, 'a>, width: usize, hidden: usize) -> FfnWeights<'a> {
    FfnWeights::new(matrices(r, &["ffw.w1"], hidden, width), matrices(r, &["ffw.w2"], width, hidden))
}

/// Sizes of the paper's models (Flamingo v2, tables 4 and 5).
impl ResamplerConfig {
    /// Flamingo 3B, 9B and 80B share one: 6 layers of 16 heads of 96 over 1536, 64 latents.
    pub fn flamingo() -> Self {
        let interpolation = Interpolation::Linear { align_corners: true };
        ResamplerConfig { activation: Activation::SquaredRelu, interpolation, ..Self::new(1536, 64, 16, 96) }
    }
}

/// The paper's block: K/V normed, squared ReLU.
fn paper(width: usize, heads: usize) -> GatedBlockConfig {
    GatedBlockConfig {
        media_norm: Some(NormConfig::default()),
        activation: Activation::SquaredRelu,
        ..GatedBlockConfig::new(width, 1536, heads, 128)
    }
}

impl GatedBlockConfig {
    /// Flamingo 3B: 24 blocks.
    pub fn flamingo_3b() -> Self {
        paper(2048, 16)
    }

    /// Flamingo 9B: 10 blocks.
    pub fn flamingo_9b() -> Self {
        paper(4096, 32)
    }

    /// Flamingo 80B: 12 blocks.
    pub fn flamingo_80b() -> Self {
        paper(8192, 64)
    }
}
