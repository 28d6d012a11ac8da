//! Llama-3.2-Vision's cross-attention layers, as transformers and Meta save them (spec 7.1).
//!
//! transformers, per layer (`language_model.model.layers.{i}.`): `cross_attn.{q,k,v,o}_proj`,
//! `cross_attn.{q,k}_norm`, `cross_attn_attn_gate`, `cross_attn_mlp_gate`, `input_layernorm`,
//! `post_attention_layernorm`, `mlp.{gate,up,down}_proj`. Meta
//! (`text_model.cross_attention_layers.{j}.`): `attention.w{q,k,v,o}`, `attention.{q,k}_norm`,
//! `gate_attn`, `gate_ffwd`, `attention_norm`, `ffn_norm`, `feed_forward.w{1,3,2}`.

pub use super::presets::EmptyRowBehaviour;
use crate::Result;
use crate::bridge::{DenseWeights, FfnWeights, GatedBlockConfig, GatedBlockWeights, MediaRule, NormConfig};
use crate::checkpoint::{Heads, Reader, TensorSource};
use crate::ops::{Activation, EmptyRow, EmptyRows};

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
            kv_heads: heads.kv_heads,
            ffn_hidden: hidden,
            activation: Activation::SwiGlu,
            norm,
            qk_norm: Some(norm),
            rule: MediaRule::Bits,
            empty_rows: EmptyRows::all(match empty_rows {
                EmptyRowBehaviour::Meta => EmptyRow::Zero,
                EmptyRowBehaviour::Transformers => EmptyRow::AttendAll,
            }),
            ffn_row_mask: true,
            ..GatedBlockConfig::new(width, media_width, heads.heads, head_dim)
        };
        Ok((config, weights))
    })
}

fn published_block(width: usize, heads: usize, ffn_hidden: usize) -> GatedBlockConfig {
    let norm = NormConfig::rms(1e-5);
    GatedBlockConfig {
        media_width: width,
        kv_heads: 8,
        norm,
        qk_norm: Some(norm),
        ffn_row_mask: true,
        ..super::idefics::published_block(width, heads, ffn_hidden)
    }
}

impl GatedBlockConfig {
    /// Llama 3.2 11B Vision: 8 layers. Empty rows as Meta's reference has them.
    pub fn llama_3_2_11b() -> Self {
        published_block(4096, 32, 14336)
    }

    /// Llama 3.2 90B Vision: 20 layers.
    pub fn llama_3_2_90b() -> Self {
        published_block(8192, 64, 28672)
    }
}

#[cfg(feature = "checkpoint")]
pub(super) mod family {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::checkpoint::config::{Field, GATED, Kind, ModelConfig};
    use crate::checkpoint::find::{Find, Promise};
    use crate::checkpoint::row::Row;
    use crate::checkpoint::{Bridges, index_behind};

    pub(in super::super) const MLLAMA: Row = Row {
        name: "mllama",
        model_types: &[("mllama", ""), ("mllama_text_model", "text_config.")],
        marker: None,
        modules: &["multi_modal_projector", "cross_attn", "cross_attention_layers"],
        fields: &[&WIDTH, &HIDDEN, &LAYERS, &HEADS, &KV_HEADS, &EPS, &ACTIVATION, &CROSS_LAYERS, &FEATURES],
        matches: |names| {
            names.any(|name| name.contains(".cross_attn.q_norm.") || name.starts_with("cross_attn.q_norm."))
                || names.any(|name| name.strip_suffix("gate_ffwd").is_some_and(|p| p.is_empty() || p.ends_with('.')))
        },
        find: mllama,
    };

    const WIDTH: Field = Field { names: &["text_config.hidden_size"], kind: Kind::Count(4096) };
    const HIDDEN: Field = Field { names: &["text_config.intermediate_size"], kind: Kind::Count(14336) };
    const LAYERS: Field = Field { names: &["text_config.num_hidden_layers"], kind: Kind::Depth(40) };
    const HEADS: Field = Field { names: &["text_config.num_attention_heads"], kind: Kind::Count(32) };
    const KV_HEADS: Field = Field { names: &["text_config.num_key_value_heads"], kind: Kind::Count(8) };
    const EPS: Field = Field { names: &["text_config.rms_norm_eps"], kind: Kind::Eps(1e-5) };
    const ACTIVATION: Field = Field {
        names: &["text_config.hidden_act", "text_config.hidden_activation"],
        kind: Kind::Activation(GATED, Activation::SwiGlu),
    };
    const CROSS_LAYERS: Field = Field { names: &["text_config.cross_attention_layers"], kind: Kind::Layers };
    const FEATURES: Field = Field { names: &["vision_config.vision_output_dim"], kind: Kind::Count(7680) };

    /// The projector's names in transformers and in Meta's files.
    const PROJECTORS: [&str; 2] = ["multi_modal_projector", "vision_model.vision_projection"];

    /// Numbers of the cross-attention layers.
    fn cross_layers(c: &ModelConfig) -> Vec<usize> {
        c.layers(&CROSS_LAYERS).map_or_else(|| (3..c.count(&LAYERS)).step_by(5).collect(), <[usize]>::to_vec)
    }

    /// Promises of the layer below `prefix`, whose q, k and gate projections have these names.
    fn promise(c: &ModelConfig, p: &mut Promise, prefix: &str, names: &Names) {
        let width = c.count(&WIDTH);
        let head_dim = width / c.count(&HEADS);
        let [q, k, ..] = names.projections;
        p.shape(prefix, &format!("{q}.weight"), &[width, width]);
        p.shape(prefix, &format!("{k}.weight"), &[c.count(&KV_HEADS) * head_dim, width]);
        p.shape(prefix, &format!("{}.weight", names.ffn[0]), &[c.count(&HIDDEN), width]);
    }

    fn mllama<'a>(find: &mut Find<'a, '_>) -> Bridges<'a> {
        let mut bridges = Bridges::default();
        let config = find.own_config();
        let mut blocks: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        let mut bases = BTreeSet::new();
        for name in find.names() {
            for (list, inside) in [("layers.", "cross_attn"), ("cross_attention_layers.", "")] {
                let Some(at) = name.find(list).filter(|&at| at == 0 || name.as_bytes()[at - 1] == b'.') else {
                    continue;
                };
                let base = &name[..at + list.len()];
                let Some(index) = index_behind(base, name) else { continue };
                let prefix = format!("{base}{index}.");
                if name[prefix.len()..].starts_with(inside) {
                    let of_index = blocks.entry(index).or_default();
                    if !of_index.contains(&prefix) {
                        of_index.push(prefix);
                    }
                    bases.insert(base.to_string());
                }
            }
        }
        // The list saved alone, or one layer.
        let mut meta_list = false;
        if blocks.is_empty() {
            for index in TensorSource::indices(&find.source.files, "") {
                let meta = find.has(&format!("{index}.gate_ffwd"));
                if meta || find.has(&format!("{index}.cross_attn.q_proj.weight")) {
                    meta_list |= meta;
                    blocks.insert(index, vec![format!("{index}.")]);
                    bases.insert(String::new());
                }
            }
        }
        let alone =
            blocks.is_empty() && ["cross_attn.q_proj.weight", "attention.wq.weight"].iter().any(|n| find.has(n));
        let meta =
            bases.iter().any(|b| b.ends_with("cross_attention_layers.")) || meta_list || alone && find.has("gate_ffwd");
        let names = if meta { &META } else { &TRANSFORMERS };
        let mut projectors = Vec::new();
        for module in PROJECTORS {
            projectors.extend(find.prefixes_of(&format!("{module}.")).iter().map(|p| format!("{p}{module}.")));
        }
        if projectors.is_empty() && blocks.is_empty() && !alone && find.has("weight") {
            projectors.push(String::new());
        }
        let projector_at = find.choose("projector", None, &projectors, &["weight", "bias"]);
        if let Some(prefix) = &projector_at {
            if let Some(c) = config {
                let shape = vec![c.count(&WIDTH), c.count(&FEATURES)];
                find.source.promise.shapes.insert(format!("{prefix}weight"), shape);
            }
            let read = Reader::family("Llama-3.2-Vision projector", &find.source, prefix, |r| {
                let [n, k] = r.dims("weight");
                Ok(DenseWeights::biased(r.tensor("weight", &[n, k]), r.tensor("bias", &[n])))
            });
            bridges.projector = find.keep(read);
        } else if find.any("vision_model.") {
            find.problems.push("multi_modal_projector.weight: missing".into());
        }
        if let Some(c) = config.filter(|_| !alone) {
            let wanted = find.overrides.prefix.as_deref().unwrap_or_default();
            let base = bases.iter().find(|base| base.starts_with(wanted)).or(bases.first());
            let base = base.cloned().unwrap_or_else(|| "language_model.model.layers.".into());
            // Meta numbers the cross-attention layers among themselves.
            let promised = if meta { (0..cross_layers(c).len()).collect() } else { cross_layers(c) };
            for index in &promised {
                blocks.entry(*index).or_insert_with(|| vec![format!("{base}{index}.")]);
            }
            let layer = if meta { "" } else { ".cross_attn" };
            for index in blocks.keys().filter(|index| !promised.contains(index)) {
                find.problems
                    .push(format!("{base}{index}{layer}: surplus, not in cross_attention_layers of config.json"));
            }
        } else {
            find.report_holes(&blocks.keys().copied().collect::<Vec<_>>());
        }
        if alone {
            blocks.insert(0, vec![String::new()]);
        }
        if blocks.is_empty() && projectors.is_empty() {
            find.problems.push("language_model.model.layers.3.cross_attn.q_proj.weight: missing".into());
        }
        let media = bridges.projector.as_ref().and_then(|p| p.weight.first()).map(|w| w.shape()[0]);
        for (index, prefixes) in &blocks {
            let own = [
                "cross_attn",
                "input_layernorm.",
                "post_attention_layernorm.",
                "mlp.",
                "attention",
                "gate_",
                "ff",
                "feed_",
            ];
            let Some(prefix) = find.choose("gated blocks", Some(*index), prefixes, &own) else { continue };
            let [q, k, ..] = names.projections;
            match config {
                Some(c) => promise(c, &mut find.source.promise, &prefix, names),
                None => find.promise_columns(format!("{prefix}{k}.weight"), media),
            }
            let norm = format!("{prefix}{}.weight", names.qk_norms[0]);
            let [heads, kv_heads] = [q, k].map(|n| find.heads_of_width(&format!("{prefix}{n}.weight"), &norm, 128));
            let option = (find.overrides.block_heads, "--block-heads");
            let heads = Heads {
                heads: find.heads("gated blocks", "heads", option, Some(&HEADS), heads),
                kv_heads: find.heads("gated blocks", "K/V heads", (None, ""), Some(&KV_HEADS), kv_heads),
            };
            let eps = find.eps("gated blocks", &EPS);
            let activation = find.activation("gated blocks", &ACTIVATION);
            let mut read = gated_block(&find.source, &prefix, heads, eps, find.overrides.empty_rows);
            if let Ok((block, _)) = &mut read {
                block.activation = activation;
            }
            let (option, rule) = match find.overrides.empty_rows {
                EmptyRowBehaviour::Meta => (None, "untouched, as in Meta's code"),
                EmptyRowBehaviour::Transformers => (Some("--transformers-empty-rows"), "see all media"),
            };
            find.rule("text before the first image", option, rule);
            find.keep_block(&mut bridges, *index, prefix, read);
        }
        // The model around a projector.
        let root = |at: &String| {
            PROJECTORS.iter().find_map(|module| at.trim_end_matches('.').strip_suffix(module)).map(str::to_string)
        };
        let root = projector_at.as_ref().and_then(root).unwrap_or_default();
        find.expect_one_tree(projector_at.as_deref().map(|at| ("projector", at, root.as_str())), &blocks);
        bridges
    }
}
