//! Llama-3.2-Vision's cross-attention layers, as transformers saves them (spec 7.1).
//!
//! Per layer (`language_model.model.layers.{i}.`): `cross_attn.{q,k,v,o}_proj`, `cross_attn.{q,k}_norm`, `cross_attn_attn_gate`,
//! `cross_attn_mlp_gate`, `input_layernorm`, `post_attention_layernorm`, `mlp.{gate,up,down}_proj`.

use super::{Heads, Reader, TensorSource};
use crate::Result;
use crate::bridge::{DenseWeights, GatedBlockConfig, GatedBlockWeights, MediaRule, NormConfig};
use crate::ops::{Activation, EmptyRow, EmptyRows};

/// What text before the first image gets. Implementations differ (transformers issue 39379).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EmptyRowBehaviour {
    /// Meta's reference: neither branch touches such rows.
    #[default]
    Meta,
    /// transformers: they attend to every vision token, only the feed-forward branch is masked.
    Transformers,
}

/// Reads a `MllamaCrossAttentionDecoderLayer`.
///
/// # Errors
/// Every missing or mis-shaped tensor, by name.
pub fn gated_block<'a>(
    source: &dyn TensorSource<'a>,
    prefix: &str,
    heads: Heads,
    rms_norm_eps: f32,
    empty_rows: EmptyRowBehaviour,
) -> Result<(GatedBlockConfig, GatedBlockWeights<'a>)> {
    Reader::family("Llama-3.2-Vision cross-attention layer", source, prefix, |r| {
        let [inner, width] = r.dims("cross_attn.q_proj.weight");
        let [kv, media_width] = r.dims("cross_attn.k_proj.weight");
        let [hidden, _] = r.dims("mlp.gate_proj.weight");
        let head_dim = r.head_dim("cross_attn.q_proj.weight", inner, heads.heads);
        if kv != heads.kv_heads * head_dim {
            r.problem(format!("cross_attn.k_proj.weight: expected {} rows, found {kv}", heads.kv_heads * head_dim));
        }
        let kv_parts = ["k_proj", "v_proj"].map(|n| r.tensor(&format!("cross_attn.{n}.weight"), &[kv, media_width]));
        let weights = GatedBlockWeights {
            attention_norm: r.norm("input_layernorm", width),
            media_norm: None,
            q: r.plain("cross_attn.q_proj", inner, width),
            kv: DenseWeights::plain(kv_parts.into()),
            qk_norm: Some((r.norm("cross_attn.q_norm", head_dim), r.norm("cross_attn.k_norm", head_dim))),
            out: r.plain("cross_attn.o_proj", width, inner),
            attention_gate: r.squeezed("cross_attn_attn_gate", &[1]),
            ffn_norm: r.norm("post_attention_layernorm", width),
            ffn: super::swiglu(&r.sub("mlp."), width, hidden, width),
            ffn_gate: r.squeezed("cross_attn_mlp_gate", &[1]),
        };
        let norm = NormConfig::rms(rms_norm_eps);
        let config = GatedBlockConfig {
            width,
            media_width,
            heads: heads.heads,
            kv_heads: heads.kv_heads,
            head_dim,
            ffn_hidden: hidden,
            activation: Activation::SwiGlu,
            norm,
            media_norm: None,
            qk_norm: Some(norm),
            rule: MediaRule::Bits,
            empty_rows: EmptyRows::all(match empty_rows {
                EmptyRowBehaviour::Meta => EmptyRow::Zero,
                EmptyRowBehaviour::Transformers => EmptyRow::AttendAll,
            }),
            ffn_row_mask: true,
        };
        Ok((config, weights))
    })
}
