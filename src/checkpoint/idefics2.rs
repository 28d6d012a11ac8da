//! Idefics2's connector, as transformers saves it (spec 7.2).
//!
//! `modality_projection.{gate,up,down}_proj`, `perceiver_resampler.latents`, `perceiver_resampler.layers.{l}.{input_latents_norm,
//! input_context_norm,post_attention_layernorm}`, `.self_attn.{q,k,v,o}_proj`, `.mlp.{gate,up,down}_proj`, `perceiver_resampler.norm`;
//! in files below `model.connector.`.

use super::{Heads, Reader, TensorSource};
use crate::Result;
use crate::bridge::{
    DenseWeights, InputMlp, Interpolation, NormConfig, ResamplerConfig, ResamplerLayerWeights, ResamplerWeights,
};
use crate::ops::Activation;

/// Reads an `Idefics2PerceiverResampler`: the connector without its modality projection.
///
/// # Errors
/// Every missing or mis-shaped tensor, by name.
pub fn resampler<'a>(
    source: &dyn TensorSource<'a>,
    prefix: &str,
    heads: Heads,
    rms_norm_eps: f32,
) -> Result<(ResamplerConfig, ResamplerWeights<'a>)> {
    Reader::family("Idefics2 resampler", source, prefix, |r| read(r, heads, rms_norm_eps))
}

/// Reads an `Idefics2Connector`: the modality projection and the resampler.
///
/// # Errors
/// Every missing or mis-shaped tensor, by name.
pub fn connector<'a>(
    source: &dyn TensorSource<'a>,
    prefix: &str,
    heads: Heads,
    rms_norm_eps: f32,
) -> Result<(ResamplerConfig, ResamplerWeights<'a>)> {
    Reader::family("Idefics2 connector", source, prefix, |r| {
        let (mut config, mut weights) = read(&r.sub("perceiver_resampler."), heads, rms_norm_eps)?;
        let [hidden, features] = r.dims("modality_projection.gate_proj.weight");
        config.input_mlp = Some(InputMlp { features, hidden });
        weights.input_mlp = Some(super::swiglu(&r.sub("modality_projection."), features, hidden, config.width));
        Ok((config, weights))
    })
}

fn read<'a>(r: &Reader<'_, 'a>, heads: Heads, rms_norm_eps: f32) -> Result<(ResamplerConfig, ResamplerWeights<'a>)> {
    let [latents, width] = r.dims("latents");
    let layers = r.layers("layers.");
    let [inner, _] = r.dims("layers.0.self_attn.q_proj.weight");
    let [kv, _] = r.dims("layers.0.self_attn.k_proj.weight");
    let [hidden, _] = r.dims("layers.0.mlp.gate_proj.weight");
    let head_dim = r.head_dim("layers.0.self_attn.q_proj.weight", inner, heads.heads);
    r.kv_rows("layers.0.self_attn.k_proj.weight", kv, heads.kv_heads * head_dim);
    let layer = |i: usize| {
        let r = r.sub(format!("layers.{i}."));
        let kv_parts = ["k_proj", "v_proj"].map(|n| r.tensor(&format!("self_attn.{n}.weight"), &[kv, width]));
        ResamplerLayerWeights {
            feature_norm: r.norm("input_context_norm", width),
            latent_norm: r.norm("input_latents_norm", width),
            q: r.plain("self_attn.q_proj", inner, width),
            kv: DenseWeights::plain(kv_parts.into()),
            qk_norm: None,
            out: r.plain("self_attn.o_proj", width, inner),
            ffn_norm: r.norm("post_attention_layernorm", width),
            ffn: super::swiglu(&r.sub("mlp."), width, hidden, width),
        }
    };
    let weights = ResamplerWeights {
        latents: r.tensor("latents", &[latents, width]),
        frame_embeddings: None,
        media_embeddings: None,
        input_mlp: None,
        layers: (0..layers).map(layer).collect(),
        final_norm: Some(r.norm("norm", width)),
        projection: None,
    };
    let config = ResamplerConfig {
        width,
        latents,
        layers,
        heads: heads.heads,
        kv_heads: heads.kv_heads,
        head_dim,
        ffn_hidden: hidden,
        activation: Activation::SwiGlu,
        norm: NormConfig::rms(rms_norm_eps),
        qk_norm: None,
        final_norm: true,
        interpolation: Interpolation::None,
        input_mlp: None,
        projection: None,
    };
    Ok((config, weights))
}
