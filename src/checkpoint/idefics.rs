//! IDEFICS 9B and 80B, as transformers saves them (spec 4.3).
//!
//! Resampler (`model.perceiver_resampler.`): `latents`, `blocks.{i}.0.{context_layer_norm,latents_layer_norm,q_layer_norm,k_layer_norm,
//! q_proj,k_proj,v_proj,output_proj}`, `blocks.{i}.1.{ln,fc,c_proj}`, `layer_norm`. Gated blocks (`model.gated_cross_attn_layers.{j}.`):
//! `alpha_cross_attn`, `alpha_dense`, `cross_attn.{q,k,v,o}_proj`, `cross_attn.{q,k}_layer_norm`, `input_layernorm`,
//! `post_attention_layernorm`, `mlp.{gate,up,down}_proj`.

use super::{Reader, TensorSource};
use crate::Result;
use crate::bridge::{
    DenseWeights, FfnWeights, GatedBlockConfig, GatedBlockWeights, Interpolation, MediaRule, NormConfig,
    ResamplerConfig, ResamplerLayerWeights, ResamplerWeights,
};
use crate::ops::{Activation, EmptyRow, EmptyRows};
use crate::tensor::HostTensor;

/// Reads an `IdeficsPerceiverResampler`. Norms of q and k are used where their weights are.
///
/// # Errors
/// Every missing or mis-shaped tensor, by name.
pub fn resampler<'a>(
    source: &dyn TensorSource<'a>,
    prefix: &str,
    heads: usize,
) -> Result<(ResamplerConfig, ResamplerWeights<'a>)> {
    Reader::family("IDEFICS resampler", source, prefix, |r| {
        let [latents, width] = r.dims("latents");
        let layers = r.layers("blocks.");
        let [inner, _] = r.dims("blocks.0.0.q_proj.weight");
        let [hidden, _] = r.dims("blocks.0.1.fc.weight");
        let head_dim = r.head_dim("blocks.0.0.q_proj.weight", inner, heads);
        let qk_norm = ["q", "k"].iter().any(|n| r.any_below(&format!("blocks.0.0.{n}_layer_norm.")));
        let layer = |i: usize| {
            let (attention, mlp) = (r.sub(format!("blocks.{i}.0.")), r.sub(format!("blocks.{i}.1.")));
            let kv = ["k_proj.weight", "v_proj.weight"].map(|name| attention.tensor(name, &[inner, width]));
            ResamplerLayerWeights {
                feature_norm: attention.layer_norm("context_layer_norm", width),
                latent_norm: attention.layer_norm("latents_layer_norm", width),
                q: attention.plain("q_proj", inner, width),
                kv: DenseWeights::plain(kv.into()),
                qk_norm: qk_norm.then(|| {
                    (attention.layer_norm("q_layer_norm", head_dim), attention.layer_norm("k_layer_norm", head_dim))
                }),
                out: attention.plain("output_proj", width, inner),
                ffn_norm: mlp.layer_norm("ln", width),
                ffn: FfnWeights {
                    gate: None,
                    up: mlp.plain("fc", hidden, width),
                    down: mlp.plain("c_proj", width, hidden),
                },
            }
        };
        let weights = ResamplerWeights {
            latents: r.tensor("latents", &[latents, width]),
            frame_embeddings: None,
            media_embeddings: None,
            input_mlp: None,
            layers: (0..layers).map(layer).collect(),
            final_norm: Some(r.layer_norm("layer_norm", width)),
            projection: None,
        };
        let norm = NormConfig::layer(1e-5);
        let config = ResamplerConfig {
            width,
            latents,
            layers,
            heads,
            kv_heads: heads,
            head_dim,
            ffn_hidden: hidden,
            activation: Activation::Relu,
            norm,
            qk_norm: qk_norm.then_some(norm),
            final_norm: true,
            interpolation: Interpolation::None,
            input_mlp: None,
            projection: None,
        };
        Ok((config, weights))
    })
}

/// Reads an `IdeficsGatedCrossAttentionLayer`. Norms of q and k are used where their weights are; gates may be scalars (`float`) or one
/// number per channel (`vector`).
///
/// # Errors
/// Every missing or mis-shaped tensor, by name.
pub fn gated_block<'a>(
    source: &dyn TensorSource<'a>,
    prefix: &str,
    heads: usize,
    rms_norm_eps: f32,
) -> Result<(GatedBlockConfig, GatedBlockWeights<'a>)> {
    Reader::family("IDEFICS gated block", source, prefix, |r| {
        let [inner, width] = r.dims("cross_attn.q_proj.weight");
        let [_, media_width] = r.dims("cross_attn.k_proj.weight");
        let [hidden, _] = r.dims("mlp.gate_proj.weight");
        let head_dim = r.head_dim("cross_attn.q_proj.weight", inner, heads);
        let qk_norm = ["q", "k"].iter().any(|n| r.any_below(&format!("cross_attn.{n}_layer_norm.")));
        let kv = ["k_proj", "v_proj"].map(|n| r.tensor(&format!("cross_attn.{n}.weight"), &[inner, media_width]));
        let gate = |name: &str| -> HostTensor<'a> {
            // `[1]` or `[1, 1, width]`.
            if r.source_elements(name) == 1 { r.squeezed(name, &[1]) } else { r.squeezed(name, &[width]) }
        };
        let weights = GatedBlockWeights {
            attention_norm: r.norm("input_layernorm", width),
            media_norm: None,
            q: r.plain("cross_attn.q_proj", inner, width),
            kv: DenseWeights::plain(kv.into()),
            qk_norm: qk_norm
                .then(|| (r.norm("cross_attn.q_layer_norm", head_dim), r.norm("cross_attn.k_layer_norm", head_dim))),
            out: r.plain("cross_attn.o_proj", width, inner),
            attention_gate: gate("alpha_cross_attn"),
            ffn_norm: r.norm("post_attention_layernorm", width),
            ffn: super::swiglu(&r.sub("mlp."), width, hidden, width),
            ffn_gate: gate("alpha_dense"),
        };
        let norm = NormConfig::rms(rms_norm_eps);
        let config = GatedBlockConfig {
            width,
            media_width,
            heads,
            kv_heads: heads,
            head_dim,
            ffn_hidden: hidden,
            activation: Activation::SwiGlu,
            norm,
            media_norm: None,
            qk_norm: qk_norm.then_some(norm),
            rule: MediaRule::Bits,
            // transformers zeroes such rows behind o_proj, which has no bias.
            empty_rows: EmptyRows::all(EmptyRow::Zero),
            ffn_row_mask: false,
        };
        Ok((config, weights))
    })
}
