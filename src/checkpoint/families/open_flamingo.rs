//! flamingo-pytorch, OpenFlamingo and relatives, which share most names (spec 3.6, 7.5).
//!
//! Resampler: `latents`, `layers.{i}.0.{norm_media,norm_latents,to_q,to_kv,to_out}`,
//! `layers.{i}.1.{0,1,3}`, `norm`; optional `frame_embs`, `media_time_embs` (OpenFlamingo),
//! `media_pos_emb` (flamingo-pytorch), `projection` (xGen-MM). Gated block:
//! `attn.{norm,to_q,to_kv,to_out}`, `attn_gate`, `ff.{0,1,3}`, `ff_gate`. Otter:
//! `layers.{i}.{norm_media,…}`, `layers.{i}.feed_forward.{0,1,3}`, `feed_forward.{0,1,3}`.
//! flamingo-mini: `to_k` and `to_v` in the resampler, `time_pos_emb`, `alpha_attn`, `ffw.{0,1,3}`,
//! `alpha_ffw`.

use crate::Result;
use crate::bridge::{
    DenseWeights, FfnWeights, GatedBlockConfig, GatedBlockWeights, MediaRule, ResamplerConfig, ResamplerLayerWeights,
    ResamplerWeights,
};
use crate::checkpoint::{Reader, TensorSource};
use crate::ops::{EmptyRow, EmptyRows};

/// Reads a `PerceiverResampler`; OpenFlamingo files keep it under `perceiver.`.
///
/// # Errors
/// Every missing or mis-shaped tensor, by name.
pub fn resampler<'a>(
    source: &dyn TensorSource<'a>,
    prefix: &str,
    heads: usize,
) -> Result<(ResamplerConfig, ResamplerWeights<'a>)> {
    resampler_of(source, prefix, &format!("{prefix}projection."), heads)
}

/// The same for separate parts: prefixes of the resampler and of its projection.
fn resampler_of<'a>(
    source: &dyn TensorSource<'a>,
    prefix: &str,
    projection: &str,
    heads: usize,
) -> Result<(ResamplerConfig, ResamplerWeights<'a>)> {
    Reader::family("OpenFlamingo resampler", source, "", |whole| {
        let r = whole.sub(prefix);
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
                ffn: FfnWeights::new(ff.plain("1", hidden, width), ff.plain("3", width, hidden)),
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
        let projected = whole.any_below(projection).then(|| whole.dims::<2>(&format!("{projection}weight"))[0]);
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
            projection: projected.map(|n| whole.biased(projection.trim_end_matches('.'), n, width)),
        };
        let config = ResamplerConfig {
            layers,
            ffn_hidden: hidden,
            projection: projected,
            ..ResamplerConfig::new(width, latents, heads, head_dim)
        };
        Ok((config, weights))
    })
}

/// Reads a `GatedCrossAttentionBlock`. `immediate` is the class's `only_attend_immediate_media`.
///
/// Empty rows follow the public code: zeros for φ = 0 with immediate media, else the mean over all
/// media, also for φ beyond the media (spec 3.2).
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
        let weights = GatedBlockWeights {
            attention_norm: r.layer_norm("attn.norm", width),
            media_norm: None,
            q: r.plain("attn.to_q", inner, width),
            kv: r.plain("attn.to_kv", 2 * inner, media_width),
            qk_norm: None,
            out: r.plain("attn.to_out", width, inner),
            attention_gate: r.tensor(attention_gate, &[1]),
            ffn_norm: ff.layer_norm("0", width),
            ffn: FfnWeights::new(ff.plain("1", hidden, width), ff.plain("3", width, hidden)),
            ffn_gate: r.tensor(ffn_gate, &[1]),
        };
        let config = GatedBlockConfig {
            ffn_hidden: hidden,
            rule: if immediate { MediaRule::Same } else { MediaRule::Preceding },
            empty_rows: EmptyRows {
                no_media: if immediate { EmptyRow::Zero } else { EmptyRow::Uniform },
                beyond_media: EmptyRow::Uniform,
                masked: EmptyRow::Uniform,
            },
            ..GatedBlockConfig::new(width, media_width, heads, r.head_dim("attn.to_q.weight", inner, heads))
        };
        Ok((config, weights))
    })
}

impl ResamplerConfig {
    /// Every OpenFlamingo: 6 layers of 8 heads of 64 over CLIP ViT-L/14's 1024.
    pub fn open_flamingo() -> Self {
        Self::new(1024, 64, 8, 64)
    }

    /// xGen-MM (BLIP-3): OpenFlamingo's with 16 heads of 96 over 1152, 128 latents, output 3072.
    pub fn xgen_mm() -> Self {
        ResamplerConfig { projection: Some(3072), ..Self::new(1152, 128, 16, 96) }
    }
}

/// OpenFlamingo's block: 8 heads of 64 for every width; rows beyond the media get the mean.
fn published_block(width: usize) -> GatedBlockConfig {
    let empty_rows = EmptyRows { no_media: EmptyRow::Zero, beyond_media: EmptyRow::Uniform, masked: EmptyRow::Uniform };
    GatedBlockConfig { empty_rows, ..GatedBlockConfig::new(width, 1024, 8, 64) }
}

impl GatedBlockConfig {
    /// OpenFlamingo 3B (MPT-1B): 24 blocks.
    pub fn open_flamingo_3b() -> Self {
        published_block(2048)
    }

    /// OpenFlamingo 4B (RedPajama-3B): 16 blocks.
    pub fn open_flamingo_4b() -> Self {
        published_block(2560)
    }

    /// OpenFlamingo 9B (MPT-7B): 8 blocks.
    pub fn open_flamingo_9b() -> Self {
        published_block(4096)
    }
}

#[cfg(feature = "checkpoint")]
pub(super) mod family {
    use std::collections::BTreeMap;

    use super::*;
    use crate::checkpoint::config::{Field, Kind};
    use crate::checkpoint::copies::around;
    use crate::checkpoint::find::{Find, shortest_first};
    use crate::checkpoint::row::{Names, Row};
    use crate::checkpoint::{Bridges, Provenance};
    use crate::ops::Activation;

    pub(in super::super) const OPEN_FLAMINGO: Row = Row {
        name: "open-flamingo",
        model_types: &[("flamingo", ""), ("otter", "")],
        // flamingo-mini's configuration has no model type.
        marker: Some("resampler_act"),
        modules: &["perceiver", "resampler", "gated_cross_attn_layer", "gated_cross_attn_layers"],
        fields: &[
            &RESAMPLER_HEADS,
            &RESAMPLER_ACTIVATION,
            &LATENTS,
            &DEPTH,
            &BLOCK_HEADS,
            &BLOCK_ACTIVATION,
            &PREVIOUS,
        ],
        matches: |names| (has_resampler(names) || names.any(is_gate)) && !has_projected_resampler(names),
        find: |find| open_flamingo(find, Some(&RESAMPLER_HEADS), 8, "what OpenFlamingo takes for every model"),
    };

    pub(in super::super) const XGEN_MM: Row = Row {
        name: "xgen-mm",
        model_types: &[("xgenmm", "")],
        marker: None,
        modules: &["vision_tokenizer"],
        fields: &[],
        matches: has_projected_resampler,
        find: |find| open_flamingo(find, None, 16, "what xGen-MM takes for every model"),
    };

    /// Names of activations in flamingo-mini.
    const MINI: &[(&str, Activation)] =
        &[("gelu", Activation::Gelu), ("sqrelu", Activation::SquaredRelu), ("relu", Activation::Relu)];

    const RESAMPLER_HEADS: Field = Field { names: &["resampler_heads"], kind: Kind::Count(8) };
    const RESAMPLER_ACTIVATION: Field =
        Field { names: &["resampler_act"], kind: Kind::Activation(MINI, Activation::Gelu) };
    const LATENTS: Field = Field { names: &["resampler_num_latents"], kind: Kind::Count(64) };
    const DEPTH: Field = Field { names: &["resampler_depth"], kind: Kind::Depth(6) };
    /// Otter's field.
    const PREVIOUS: Field = Field { names: &["only_attend_previous"], kind: Kind::Always(true) };
    const BLOCK_HEADS: Field = Field { names: &["xattn_heads"], kind: Kind::Count(8) };
    const BLOCK_ACTIVATION: Field = Field { names: &["xattn_act"], kind: Kind::Activation(MINI, Activation::Gelu) };

    const RESAMPLER_ENDS: [&str; 2] = ["layers.0.0.norm_media.weight", "layers.0.norm_media.weight"];

    fn has_resampler(names: &Names<'_>) -> bool {
        RESAMPLER_ENDS.iter().any(|end| names.ends(end))
    }

    /// Whether the resampler is xGen-MM's: with a projection, and without gated blocks.
    fn has_projected_resampler(names: &Names<'_>) -> bool {
        has_resampler(names)
            && names.has("vision_tokenizer.")
            && names.ends("projection.weight")
            && !names.ends("attn_gate")
    }

    /// Whether a name is a gate of flamingo-pytorch, OpenFlamingo or Otter (`attn_gate`), or of
    /// flamingo-mini (`alpha_attn`); Llama's `cross_attn_attn_gate` is not.
    fn is_gate(name: &str) -> bool {
        let whole = |rest: &str| rest.is_empty() || rest.ends_with('.');
        ["attn_gate", "alpha_attn"].iter().any(|gate| name.strip_suffix(gate).is_some_and(whole))
    }

    /// Modules in which libraries keep a resampler.
    const MODULES: [&str; 4] = ["perceiver.", "perceiver_resampler.", "resampler.", "vision_tokenizer."];

    /// Places of projections in a resampler, or in a module of a resampler's name.
    fn projections(find: &Find<'_, '_>, resamplers: &[String]) -> Vec<String> {
        let at = |name: &str| -> Option<String> {
            let at = ["weight", "bias"].iter().find_map(|end| name.strip_suffix(end))?;
            let of = at.strip_suffix("projection.")?;
            let known = resamplers.iter().any(|at| at == of) || MODULES.iter().any(|module| of.ends_with(module));
            known.then(|| at.into())
        };
        shortest_first(find.names().filter_map(at).collect())
    }

    /// The projection of the resampler at `at`: its own, that of an equal copy, or one beside no
    /// resampler. Another resampler's counts only if `--prefix` chose this one and not that.
    fn projection_of(find: &mut Find<'_, '_>, resamplers: &[String], at: &str, all: &[String]) -> Option<String> {
        let wanted = find.overrides.prefix.as_deref();
        let has_own = all.iter().any(|place| around(place) == at);
        let counts = |place: &&String| {
            let of = around(place);
            let asked = |wanted: &str| place.starts_with(wanted) && !at.starts_with(wanted);
            let of_others = |wanted| asked(wanted) || !of.starts_with(wanted) || find.is_left_out(of);
            has_own || !resamplers.iter().any(|at| at == of) || wanted.map_or_else(|| find.is_copy(of), of_others)
        };
        let candidates: Vec<String> = all.iter().filter(counts).cloned().collect();
        let chosen = find.choose("projection", None, &candidates, &["projection."]);
        find.source.part.set("resampler");
        for name in candidates.iter().flat_map(|place| find.source.files.below(place)) {
            find.source.assign(name.0, "resampler");
        }
        let chosen = chosen?;
        if around(&chosen) != at && !find.is_copy(around(&chosen)) {
            find.say_shared(&[("resampler", at), ("projection", &chosen)]);
        }
        Some(chosen)
    }

    /// `field` tells the resampler's heads. Where there is none, the configuration tells nothing of
    /// the resampler, and there are `heads`, as `assumed` says, as without a configuration.
    fn open_flamingo<'a>(find: &mut Find<'a, '_>, field: Option<&Field>, heads: usize, assumed: &str) -> Bridges<'a> {
        let mut bridges = Bridges::default();
        let resamplers = find.names().filter_map(|name| {
            // Other modules have latents too, but not these norms.
            let norms = RESAMPLER_ENDS.iter().find_map(|end| name.strip_suffix(end));
            let latents = || name.strip_suffix("latents").filter(|p| MODULES.iter().any(|m| p.ends_with(m)));
            let prefix = norms.or_else(latents).or((name == "latents").then_some(""))?;
            (prefix.is_empty() || prefix.ends_with('.')).then(|| prefix.to_string())
        });
        let mut resamplers = shortest_first(resamplers.collect());
        let all = projections(find, &resamplers);
        find.apart.extend(all.iter().cloned());
        find.add_partial(&mut resamplers);
        let own = ["latents", "layers.", "norm.", "projection."];
        let resampler_at = find.choose("resampler", None, &resamplers, &own);
        let projection = resampler_at.as_deref().and_then(|at| projection_of(find, &resamplers, at, &all));
        if let Some(prefix) = &resampler_at {
            if let Some(c) = find.own_config().filter(|_| field.is_some()) {
                if c.has(&DEPTH).is_some() {
                    find.source.promise.layers.insert(format!("{prefix}layers."), c.count(&DEPTH));
                }
                let width = find.source.files.info(&format!("{prefix}latents")).and_then(|t| t.shape.last().copied());
                if let Some(width) = width.filter(|_| c.has(&LATENTS).is_some()) {
                    find.source.promise.shape(prefix, "latents", &[c.count(&LATENTS), width]);
                }
            }
            let option = (find.overrides.heads, "--heads");
            let heads = find.heads("resampler", "heads", option, field, (heads, Provenance::Assumed(assumed.into())));
            let projection = projection.unwrap_or_else(|| format!("{prefix}projection."));
            let read = resampler_of(&find.source, prefix, &projection, heads);
            bridges.resampler = find.keep(read);
            let activation = find.activation("resampler", &RESAMPLER_ACTIVATION);
            if let Some((config, _)) = &mut bridges.resampler {
                config.activation = activation;
                find.resampler_sizes(config, &format!("{prefix}latents"), &format!("{prefix}layers."));
            }
        }
        let mut blocks: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for name in find.names() {
            let gate = is_gate(name).then(|| &name[..name.rfind('.').map_or(0, |dot| dot + 1)]);
            let projection = || name.strip_suffix("attn.to_kv.weight").filter(|p| p.is_empty() || p.ends_with('.'));
            if let Some(prefix) = gate.or_else(projection) {
                let of_index = blocks.entry(block_index(prefix)).or_default();
                if !of_index.iter().any(|p| p == prefix) {
                    of_index.push(prefix.to_string());
                }
            }
        }
        for (index, prefixes) in &mut blocks {
            find.add_partial(prefixes);
            // Another number is another block, not a copy.
            prefixes.retain(|prefix| block_index(prefix) == *index);
        }
        if resamplers.is_empty() && blocks.is_empty() {
            find.problems
                .push("perceiver.latents: missing (a resampler or gated blocks under any of the known names)".into());
        }
        let mut found = Vec::new();
        let media = bridges.resampler.as_ref().map(|(c, _)| c.output_width());
        for (index, prefixes) in &blocks {
            let own = ["attn.", "attn_gate", "ff.", "ff_gate"];
            let Some(prefix) = find.choose("gated blocks", Some(*index), prefixes, &own) else { continue };
            found.push(*index);
            find.promise_columns(format!("{prefix}attn.to_kv.weight"), media);
            let option = (find.overrides.block_heads, "--block-heads");
            let heads = find.heads(
                "gated blocks",
                "heads",
                option,
                Some(&BLOCK_HEADS),
                (8, Provenance::Assumed(assumed.into())),
            );
            let mut read = gated_block(&find.source, &prefix, heads, !find.overrides.attend_preceding);
            let activation = find.activation("gated blocks", &BLOCK_ACTIVATION);
            if let Ok((config, _)) = &mut read {
                config.activation = activation;
            }
            let preceding = find.overrides.attend_preceding;
            find.rule(
                "gated blocks",
                preceding.then_some("--attend-preceding"),
                if preceding { "all media before" } else { "last medium" },
            );
            find.keep_block(&mut bridges, *index, prefix, read);
        }
        find.report_holes(&found);
        find.expect_one_tree(resampler_at.as_deref().map(|at| ("resampler", at, around(at))), &blocks);
        bridges
    }

    /// The number in a gated block's prefix: the last one, or the one before it for a list in a
    /// list (flamingo-pytorch's `layers.3.1.`).
    fn block_index(prefix: &str) -> usize {
        let parts: Vec<&str> = prefix.trim_end_matches('.').split('.').collect();
        let number = |i: usize| parts.get(i).and_then(|p| p.parse::<usize>().ok());
        let Some(last) = (0..parts.len()).rev().find(|&i| number(i).is_some()) else { return 0 };
        last.checked_sub(1).and_then(number).or(number(last)).unwrap_or(0)
    }
}
