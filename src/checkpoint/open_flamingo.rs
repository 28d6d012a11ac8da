//! flamingo-pytorch, OpenFlamingo and their relatives, whose modules share most names (spec 3.6, 7.5).
//!
//! Resampler: `latents`, `layers.{i}.0.{norm_media,norm_latents,to_q,to_kv,to_out}`, `layers.{i}.1.{0,1,3}`, `norm`; optional
//! `frame_embs`, `media_time_embs` (OpenFlamingo), `media_pos_emb` (flamingo-pytorch), `projection` (xGen-MM). Gated block:
//! `attn.{norm,to_q,to_kv,to_out}`, `attn_gate`, `ff.{0,1,3}`, `ff_gate`. Otter: `layers.{i}.{norm_media,…}`,
//! `layers.{i}.feed_forward.{0,1,3}`, `feed_forward.{0,1,3}`. flamingo-mini: `to_k` and `to_v` in the resampler, `time_pos_emb`,
//! `alpha_attn`, `ffw.{0,1,3}`, `alpha_ffw`.

use super::{Heads, Reader, TensorSource};
use crate::Result;
use crate::bridge::{
    DenseWeights, FfnWeights, GatedBlockConfig, GatedBlockWeights, Interpolation, MediaRule, NormConfig,
    ResamplerConfig, ResamplerLayerWeights, ResamplerWeights,
};
use crate::ops::{Activation, EmptyRow, EmptyRows};

/// torch.nn.LayerNorm's default.
const NORM: NormConfig = NormConfig::layer(1e-5);

/// Reads a `PerceiverResampler`; OpenFlamingo files keep it under `perceiver.`.
///
/// # Errors
/// Every missing or mis-shaped tensor, by name.
pub fn resampler<'a>(
    source: &dyn TensorSource<'a>,
    prefix: &str,
    heads: usize,
) -> Result<(ResamplerConfig, ResamplerWeights<'a>)> {
    Reader::family("OpenFlamingo resampler", source, prefix, |r| {
        let [latents, width] = r.dims("latents");
        let layers = r.layers("layers.");
        // Otter keeps attention and feed-forward network in one module.
        let flat = ["norm_media.", "feed_forward."].iter().any(|n| r.any_below(&format!("layers.0.{n}")));
        let (attention, ff) = if flat { ("", "feed_forward.") } else { ("0.", "1.") };
        let [inner, _] = r.dims(&format!("layers.0.{attention}to_q.weight"));
        let [hidden, _] = r.dims(&format!("layers.0.{ff}1.weight"));
        let head_dim = r.head_dim(&format!("layers.0.{attention}to_q.weight"), inner, heads);
        // flamingo-mini, which always has time embeddings.
        let split = |i: usize| ["to_k.", "to_v."].iter().any(|n| r.any_below(&format!("layers.{i}.{attention}{n}")));
        let layer = |i: usize| {
            let (attention, ff) = (r.sub(format!("layers.{i}.{attention}")), r.sub(format!("layers.{i}.{ff}")));
            let kv = if split(i) {
                DenseWeights::plain(
                    ["to_k.weight", "to_v.weight"].map(|name| attention.tensor(name, &[inner, width])).into(),
                )
            } else {
                attention.plain("to_kv", 2 * inner, width)
            };
            ResamplerLayerWeights {
                feature_norm: attention.layer_norm("norm_media", width),
                latent_norm: attention.layer_norm("norm_latents", width),
                q: attention.plain("to_q", inner, width),
                kv,
                qk_norm: None,
                out: attention.plain("to_out", width, inner),
                ffn_norm: ff.layer_norm("0", width),
                ffn: FfnWeights { gate: None, up: ff.plain("1", hidden, width), down: ff.plain("3", width, hidden) },
            }
        };
        let frames = if r.has("frame_embs") {
            let [frames, _] = r.dims("frame_embs");
            Some(r.tensor("frame_embs", &[frames, width]))
        } else if r.has("time_pos_emb") || split(0) {
            let [frames, _, _] = r.dims("time_pos_emb");
            Some(r.tensor("time_pos_emb", &[frames, 1, width]))
        } else {
            None
        };
        let projection = r.any_below("projection.").then(|| r.dims::<2>("projection.weight")[0]);
        let media = ["media_time_embs", "media_pos_emb"].into_iter().find(|name| r.has(name)).map(|name| {
            let [media, _, _] = r.dims(name);
            r.tensor(name, &[media, 1, width])
        });
        let weights = ResamplerWeights {
            latents: r.tensor("latents", &[latents, width]),
            frame_embeddings: frames,
            media_embeddings: media,
            input_mlp: None,
            layers: (0..layers).map(layer).collect(),
            final_norm: Some(r.layer_norm("norm", width)),
            projection: projection.map(|n| r.biased("projection", n, width)),
        };
        let config = ResamplerConfig {
            width,
            latents,
            layers,
            heads,
            kv_heads: heads,
            head_dim,
            ffn_hidden: hidden,
            activation: Activation::Gelu,
            norm: NORM,
            qk_norm: None,
            final_norm: true,
            interpolation: Interpolation::None,
            input_mlp: None,
            projection,
        };
        Ok((config, weights))
    })
}

/// Reads a `GatedCrossAttentionBlock`. `immediate` is the class's `only_attend_immediate_media`.
///
/// Empty rows are those of the public code: zeros for φ = 0 with immediate media, else the mean over all media, also for φ beyond
/// the media (spec 3.2).
///
/// # Errors
/// Every missing or mis-shaped tensor, by name.
pub fn gated_block<'a>(
    source: &dyn TensorSource<'a>,
    prefix: &str,
    heads: usize,
    immediate: bool,
) -> Result<(GatedBlockConfig, GatedBlockWeights<'a>)> {
    Reader::family("OpenFlamingo gated block", source, prefix, |r| {
        let [inner, width] = r.dims("attn.to_q.weight");
        let [_, media_width] = r.dims("attn.to_kv.weight");
        // flamingo-mini, Otter, or the others.
        let (ff, attention_gate, ffn_gate) = match (r.any_below("ffw."), r.any_below("feed_forward.")) {
            (true, _) => ("ffw.", "alpha_attn", "alpha_ffw"),
            (_, true) => ("feed_forward.", "attn_gate", "ff_gate"),
            _ => ("ff.", "attn_gate", "ff_gate"),
        };
        let ff = r.sub(ff);
        let [hidden, _] = ff.dims("1.weight");
        let Heads { heads, kv_heads } = Heads::equal(heads);
        let weights = GatedBlockWeights {
            attention_norm: r.layer_norm("attn.norm", width),
            media_norm: None,
            q: r.plain("attn.to_q", inner, width),
            kv: r.plain("attn.to_kv", 2 * inner, media_width),
            qk_norm: None,
            out: r.plain("attn.to_out", width, inner),
            attention_gate: r.tensor(attention_gate, &[1]),
            ffn_norm: ff.layer_norm("0", width),
            ffn: FfnWeights { gate: None, up: ff.plain("1", hidden, width), down: ff.plain("3", width, hidden) },
            ffn_gate: r.tensor(ffn_gate, &[1]),
        };
        let config = GatedBlockConfig {
            width,
            media_width,
            heads,
            kv_heads,
            head_dim: r.head_dim("attn.to_q.weight", inner, heads),
            ffn_hidden: hidden,
            activation: Activation::Gelu,
            norm: NORM,
            media_norm: None,
            qk_norm: None,
            rule: if immediate { MediaRule::Same } else { MediaRule::Preceding },
            empty_rows: EmptyRows {
                no_media: if immediate { EmptyRow::Zero } else { EmptyRow::Uniform },
                beyond_media: EmptyRow::Uniform,
                masked: EmptyRow::Uniform,
            },
            ffn_row_mask: false,
        };
        Ok((config, weights))
    })
}
