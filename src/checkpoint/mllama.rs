//! Llama-3.2-Vision's cross-attention layers, as transformers and Meta save them (spec 7.1).
//!
//! transformers, per layer (`language_model.model.layers.{i}.`): `cross_attn.{q,k,v,o}_proj`, `cross_attn.{q,k}_norm`,
//! `cross_attn_attn_gate`, `cross_attn_mlp_gate`, `input_layernorm`, `post_attention_layernorm`, `mlp.{gate,up,down}_proj`. Meta
//! (`text_model.cross_attention_layers.{j}.`): `attention.w{q,k,v,o}`, `attention.{q,k}_norm`, `gate_attn`, `gate_ffwd`, `attention_norm`,
//! `ffn_norm`, `feed_forward.w{1,3,2}`.

use super::{Heads, Reader, TensorSource};
use crate::Result;
use crate::bridge::{DenseWeights, FfnWeights, GatedBlockConfig, GatedBlockWeights, MediaRule, NormConfig};
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

/// The names of one library.
struct Names {
    projections: [&'static str; 4],
    qk_norms: [&'static str; 2],
    gates: [&'static str; 2],
    attention_norm: &'static str,
    ffn_norm: &'static str,
    /// Gate, up, down.
    ffn: [&'static str; 3],
}

const TRANSFORMERS: Names = Names {
    projections: ["cross_attn.q_proj", "cross_attn.k_proj", "cross_attn.v_proj", "cross_attn.o_proj"],
    qk_norms: ["cross_attn.q_norm", "cross_attn.k_norm"],
    gates: ["cross_attn_attn_gate", "cross_attn_mlp_gate"],
    attention_norm: "input_layernorm",
    ffn_norm: "post_attention_layernorm",
    ffn: ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
};

const META: Names = Names {
    projections: ["attention.wq", "attention.wk", "attention.wv", "attention.wo"],
    qk_norms: ["attention.q_norm", "attention.k_norm"],
    gates: ["gate_attn", "gate_ffwd"],
    attention_norm: "attention_norm",
    ffn_norm: "ffn_norm",
    ffn: ["feed_forward.w1", "feed_forward.w3", "feed_forward.w2"],
};

/// Reads a `MllamaCrossAttentionDecoderLayer`, or Meta's `CrossAttentionTransformerBlock`.
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
        let n = if r.any_below("attention.w") || r.any_below("feed_forward.") { &META } else { &TRANSFORMERS };
        let [q, k, v, out] = n.projections.map(|name| format!("{name}.weight"));
        let [inner, width] = r.dims(&q);
        let [kv, media_width] = r.dims(&k);
        let [gate, up, down] = n.ffn;
        let [hidden, _] = r.dims(&format!("{gate}.weight"));
        let head_dim = r.head_dim(&q, inner, heads.heads);
        r.kv_rows(&k, kv, heads.kv_heads * head_dim);
        let weights = GatedBlockWeights {
            attention_norm: r.norm(n.attention_norm, width),
            media_norm: None,
            q: DenseWeights::plain(vec![r.tensor(&q, &[inner, width])]),
            kv: DenseWeights::plain([k, v].map(|name| r.tensor(&name, &[kv, media_width])).into()),
            qk_norm: Some((r.norm(n.qk_norms[0], head_dim), r.norm(n.qk_norms[1], head_dim))),
            out: DenseWeights::plain(vec![r.tensor(&out, &[width, inner])]),
            attention_gate: r.squeezed(n.gates[0], &[1]),
            ffn_norm: r.norm(n.ffn_norm, width),
            ffn: FfnWeights {
                gate: Some(r.tensor(&format!("{gate}.weight"), &[hidden, width])),
                up: r.plain(up, hidden, width),
                down: r.plain(down, width, hidden),
            },
            ffn_gate: r.squeezed(n.gates[1], &[1]),
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
