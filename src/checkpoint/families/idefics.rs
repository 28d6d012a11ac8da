//! IDEFICS 9B and 80B, as transformers saves them (spec 4.3).
//!
//! Resampler (`model.perceiver_resampler.`): `latents`,
//! `blocks.{i}.0.{context_layer_norm,latents_layer_norm,q_layer_norm,k_layer_norm,
//! q_proj,k_proj,v_proj,output_proj}`, `blocks.{i}.1.{ln,fc,c_proj}`, `layer_norm`. Gated blocks
//! (`model.gated_cross_attn_layers.{j}.`): `alpha_cross_attn`, `alpha_dense`,
//! `cross_attn.{q,k,v,o}_proj`, `cross_attn.{q,k}_layer_norm`, `input_layernorm`,
//! `post_attention_layernorm`, `mlp.{gate,up,down}_proj`.

use crate::Result;
use crate::bridge::{
    DenseWeights, FfnWeights, GatedBlockConfig, GatedBlockWeights, MediaRule, NormConfig, ResamplerConfig,
    ResamplerLayerWeights, ResamplerWeights,
};
use crate::checkpoint::reader::swiglu;
use crate::checkpoint::{Reader, TensorSource};
use crate::ops::{Activation, EmptyRow, EmptyRows};
use crate::tensor::HostTensor;

/// Reads an `IdeficsPerceiverResampler`. Norms of q and k are optional.
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
                ffn: FfnWeights::new(mlp.plain("fc", hidden, width), mlp.plain("c_proj", width, hidden)),
            }
        };
        let (own, layers_of) = (r.tensor("latents", &[latents, width]), (0..layers).map(layer).collect());
        let weights = ResamplerWeights::new(own, layers_of, Some(r.layer_norm("layer_norm", width)));
        let config = ResamplerConfig {
            layers,
            ffn_hidden: hidden,
            activation: Activation::Relu,
            qk_norm: qk_norm.then(NormConfig::default),
            ..ResamplerConfig::new(width, latents, heads, head_dim)
        };
        Ok((config, weights))
    })
}

/// Reads an `IdeficsGatedCrossAttentionLayer`. Norms of q and k are optional; gates are scalars
/// (`float`) or one number per channel (`vector`).
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
            ffn: swiglu(&r.sub("mlp."), width, hidden, width),
            ffn_gate: gate("alpha_dense"),
        };
        let norm = NormConfig::rms(rms_norm_eps);
        let config = GatedBlockConfig {
            ffn_hidden: hidden,
            activation: Activation::SwiGlu,
            norm,
            qk_norm: qk_norm.then_some(norm),
            rule: MediaRule::Bits,
            // transformers zeroes such rows behind o_proj, which has no bias.
            empty_rows: EmptyRows::all(EmptyRow::Zero),
            ..GatedBlockConfig::new(width, media_width, heads, head_dim)
        };
        Ok((config, weights))
    })
}

impl ResamplerConfig {
    /// IDEFICS 9B and 80B: 6 layers of 16 heads of 96 over CLIP ViT-H/14's 1280, norms of q and k.
    pub fn idefics() -> Self {
        let qk_norm = Some(NormConfig::default());
        ResamplerConfig { activation: Activation::Relu, qk_norm, ..Self::new(1280, 64, 16, 96) }
    }
}

/// IDEFICS' block over CLIP ViT-H/14's 1280, with norms of q and k.
pub(super) fn published_block(width: usize, heads: usize, ffn_hidden: usize) -> GatedBlockConfig {
    let norm = NormConfig::rms(1e-6);
    GatedBlockConfig {
        ffn_hidden,
        activation: Activation::SwiGlu,
        norm,
        qk_norm: Some(norm),
        rule: MediaRule::Bits,
        ..GatedBlockConfig::new(width, 1280, heads, 128)
    }
}

impl GatedBlockConfig {
    /// IDEFICS 9B: 8 blocks.
    pub fn idefics_9b() -> Self {
        published_block(4096, 32, 11008)
    }

    /// IDEFICS 80B: 20 blocks.
    pub fn idefics_80b() -> Self {
        published_block(8192, 64, 22016)
    }
}

#[cfg(feature = "checkpoint")]
pub(super) mod family {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::checkpoint::config::{Field, GATED, Kind, ModelConfig};
    use crate::checkpoint::copies::around;
    use crate::checkpoint::find::{Find, Promise};
    use crate::checkpoint::row::Row;
    use crate::checkpoint::{Bridges, Provenance, TensorSource, index_behind};

    pub(in super::super) const IDEFICS: Row = Row {
        name: "idefics",
        model_types: &[("idefics", "")],
        marker: None,
        modules: &["perceiver_resampler", "gated_cross_attn_layers"],
        fields: &[
            &WIDTH,
            &HIDDEN,
            &LAYERS,
            &HEADS,
            &INTERVAL,
            &EPS,
            &QK_NORMS,
            &ACTIVATION,
            &USE_RESAMPLER,
            &FEATURES,
            &LATENTS,
            &DEPTH,
            &RESAMPLER_HEADS,
            &HEAD_DIM,
            &RESAMPLER_QK_NORMS,
        ],
        matches: |names| {
            names.has("perceiver_resampler.blocks.")
                || names.ends("blocks.0.0.context_layer_norm.weight")
                || names
                    .any(|name| name.strip_suffix("alpha_cross_attn").is_some_and(|p| p.is_empty() || p.ends_with('.')))
        },
        find: idefics,
    };

    const WIDTH: Field = Field { names: &["hidden_size"], kind: Kind::Count(4096) };
    const HIDDEN: Field = Field { names: &["intermediate_size"], kind: Kind::Count(11008) };
    const LAYERS: Field = Field { names: &["num_hidden_layers"], kind: Kind::Depth(32) };
    const HEADS: Field = Field { names: &["num_attention_heads"], kind: Kind::Count(32) };
    const INTERVAL: Field = Field { names: &["cross_layer_interval"], kind: Kind::Count(1) };
    const EPS: Field = Field { names: &["rms_norm_eps"], kind: Kind::Eps(1e-6) };
    const QK_NORMS: Field = Field { names: &["qk_layer_norms"], kind: Kind::Flag(false) };
    const ACTIVATION: Field =
        Field { names: &["hidden_act", "hidden_activation"], kind: Kind::Activation(GATED, Activation::SwiGlu) };
    const USE_RESAMPLER: Field = Field { names: &["use_resampler"], kind: Kind::Flag(false) };
    const FEATURES: Field =
        Field { names: &["vision_config.embed_dim", "vision_config.hidden_size"], kind: Kind::Count(768) };
    const LATENTS: Field = Field { names: &["perceiver_config.resampler_n_latents"], kind: Kind::Count(64) };
    const DEPTH: Field = Field { names: &["perceiver_config.resampler_depth"], kind: Kind::Depth(6) };
    const RESAMPLER_HEADS: Field = Field { names: &["perceiver_config.resampler_n_heads"], kind: Kind::Count(16) };
    const HEAD_DIM: Field = Field { names: &["perceiver_config.resampler_head_dim"], kind: Kind::Count(96) };
    const RESAMPLER_QK_NORMS: Field =
        Field { names: &["perceiver_config.qk_layer_norms_perceiver"], kind: Kind::Flag(false) };

    /// Promises of the resampler below `prefix`.
    fn promise_resampler(c: &ModelConfig, p: &mut Promise, prefix: &str) {
        let width = c.count(&FEATURES);
        p.shape(prefix, "latents", &[c.count(&LATENTS), width]);
        p.shape(prefix, "blocks.0.0.q_proj.weight", &[c.count(&RESAMPLER_HEADS) * c.count(&HEAD_DIM), width]);
        p.shape(prefix, "blocks.0.1.fc.weight", &[4 * width, width]);
        p.layers.insert(format!("{prefix}blocks."), c.count(&DEPTH));
    }

    /// Promises of the gated block below `prefix`.
    fn promise_block(c: &ModelConfig, p: &mut Promise, prefix: &str) {
        let width = c.count(&WIDTH);
        p.shape(prefix, "cross_attn.q_proj.weight", &[width, width]);
        p.shape(prefix, "cross_attn.k_proj.weight", &[width, c.count(&FEATURES)]);
        p.shape(prefix, "mlp.gate_proj.weight", &[c.count(&HIDDEN), width]);
    }

    fn idefics<'a>(find: &mut Find<'a, '_>) -> Bridges<'a> {
        let mut bridges = Bridges::default();
        let config = find.own_config();
        let mut resamplers: Vec<String> =
            find.prefixes_of("perceiver_resampler.").iter().map(|p| format!("{p}perceiver_resampler.")).collect();
        if resamplers.is_empty() && find.source.any_below("blocks.0.0.") {
            resamplers.push(String::new());
        }
        let own = ["latents", "blocks.", "layer_norm."];
        let resampler_at = find.choose("resampler", None, &resamplers, &own);
        if let Some(prefix) = &resampler_at {
            if let Some(c) = config {
                promise_resampler(c, &mut find.source.promise, prefix);
            }
            let option = (find.overrides.heads, "--heads");
            let [q, norm] = ["q_proj", "q_layer_norm"].map(|n| format!("{prefix}blocks.0.0.{n}.weight"));
            let assumed = match find.heads_of_width(&q, &norm, 96) {
                (_, Provenance::Assumed(_)) => (16, Provenance::Assumed("those of IDEFICS 9B and 80B".into())),
                of_norm => of_norm,
            };
            let heads = find.heads("resampler", "heads", option, Some(&RESAMPLER_HEADS), assumed);
            let read = resampler(&find.source, prefix, heads);
            bridges.resampler = find.keep(read);
            if let Some((r, _)) = &bridges.resampler {
                if config.is_some_and(|c| !c.flag(&USE_RESAMPLER)) {
                    disagree(find, &format!("{prefix}latents"), "use_resampler");
                }
                find.resampler_sizes(r, &format!("{prefix}latents"), &format!("{prefix}blocks."));
                if config.is_some_and(|c| c.flag(&RESAMPLER_QK_NORMS) != r.qk_norm.is_some()) {
                    disagree(find, &format!("{prefix}blocks.0.0.q_layer_norm.weight"), "qk_layer_norms_perceiver");
                }
            }
        } else if config.is_some_and(|c| c.flag(&USE_RESAMPLER)) {
            find.problems.push("model.perceiver_resampler.latents: missing".into());
        }
        let mut lists: Vec<String> = find
            .prefixes_of("gated_cross_attn_layers.")
            .iter()
            .map(|p| format!("{p}gated_cross_attn_layers."))
            .collect();
        // The list of blocks, saved alone.
        let numbers = TensorSource::indices(&find.source.files, "");
        if lists.is_empty() && numbers.iter().any(|i| find.has(&format!("{i}.alpha_cross_attn"))) {
            lists.push(String::new());
        }
        let mut blocks: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for list in &lists {
            for index in TensorSource::indices(&find.source.files, list) {
                blocks.entry(index).or_default().push(format!("{list}{index}."));
            }
        }
        if lists.is_empty() && find.has("alpha_cross_attn") {
            blocks.insert(0, vec![String::new()]);
        } else if !lists.is_empty() {
            let wanted = find.overrides.prefix.as_deref().unwrap_or_default();
            let list = lists.iter().find(|list| list.starts_with(wanted)).unwrap_or(&lists[0]);
            match config {
                Some(c) => {
                    let promised = c.count(&LAYERS) / c.count(&INTERVAL);
                    blocks.retain(|index, _| *index < promised);
                    for index in 0..promised {
                        blocks.entry(index).or_insert_with(|| vec![format!("{list}{index}.")]);
                    }
                }
                None => find.report_holes(&std::iter::once(0).chain(blocks.keys().copied()).collect::<Vec<_>>()),
            }
        } else if resamplers.is_empty() || config.is_some() && find.problems.is_empty() {
            find.problems.push("model.gated_cross_attn_layers.0.alpha_cross_attn: missing".into());
        }
        // Other tensors in a list; in a list that was saved alone, blocks that no configuration
        // promises.
        let in_lists = lists.iter().flat_map(|list| find.source.files.below(list).map(move |(name, _)| (list, name)));
        let stray = |(list, name): &(&String, &str)| match index_behind(list, name) {
            Some(index) => !blocks.contains_key(&index),
            None => !list.is_empty(),
        };
        let strays: BTreeSet<String> = in_lists.filter(stray).map(|(_, name)| name.to_string()).collect();
        for (&index, prefixes) in &blocks {
            let own = ["alpha_", "cross_attn.", "input_layernorm.", "mlp."];
            let Some(prefix) = find.choose("gated blocks", Some(index), prefixes, &own) else { continue };
            let list = around(&prefix);
            find.namespace.extend(strays.iter().filter(|name| name.starts_with(list)).cloned());
            if let Some(c) = config {
                promise_block(c, &mut find.source.promise, &prefix);
            }
            let media = bridges.resampler.as_ref().map(|(c, _)| c.width);
            find.promise_columns(format!("{prefix}cross_attn.k_proj.weight"), media);
            let [q, norm] = ["q_proj", "q_layer_norm"].map(|n| format!("{prefix}cross_attn.{n}.weight"));
            let assumed = find.heads_of_width(&q, &norm, 128);
            let option = (find.overrides.block_heads, "--block-heads");
            let heads = find.heads("gated blocks", "heads", option, Some(&HEADS), assumed);
            let eps = find.eps("gated blocks", &EPS);
            let activation = find.activation("gated blocks", &ACTIVATION);
            let mut read = gated_block(&find.source, &prefix, heads, eps);
            if let Ok((block, _)) = &mut read {
                block.activation = activation;
                if config.is_some_and(|c| c.flag(&QK_NORMS) != block.qk_norm.is_some()) {
                    disagree(find, &format!("{prefix}cross_attn.q_layer_norm.weight"), "qk_layer_norms");
                }
            }
            find.keep_block(&mut bridges, index, prefix, read);
        }
        if blocks.is_empty() {
            // A configuration that promises none.
            find.namespace.extend(strays);
        }
        find.expect_one_tree(resampler_at.as_deref().map(|at| ("resampler", at, around(at))), &blocks);
        bridges
    }

    fn disagree(find: &mut Find<'_, '_>, name: &str, field: &str) {
        let what = if find.has(name) { "surplus" } else { "missing" };
        find.problems.push(format!("{name}: {what}, according to {field} of config.json"));
    }
}
