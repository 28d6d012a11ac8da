//! Idefics2's connector, as transformers saves it (spec 7.2).
//!
//! `modality_projection.{gate,up,down}_proj`, `perceiver_resampler.latents`,
//! `perceiver_resampler.layers.{l}.{input_latents_norm,
//! input_context_norm,post_attention_layernorm}`, `.self_attn.{q,k,v,o}_proj`,
//! `.mlp.{gate,up,down}_proj`, `perceiver_resampler.norm`; in files below `model.connector.`.

use crate::Result;
use crate::bridge::{DenseWeights, InputMlp, NormConfig, ResamplerConfig, ResamplerLayerWeights, ResamplerWeights};
use crate::checkpoint::reader::swiglu;
use crate::checkpoint::{Heads, Reader, TensorSource};
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
    let [projection, perceiver] =
        ["modality_projection.", "perceiver_resampler."].map(|part| format!("{prefix}{part}"));
    connector_of(source, &projection, &perceiver, heads, rms_norm_eps)
}

/// The same for separate parts: prefixes of the modality projection and of the resampler.
fn connector_of<'a>(
    source: &dyn TensorSource<'a>,
    projection: &str,
    perceiver: &str,
    heads: Heads,
    rms_norm_eps: f32,
) -> Result<(ResamplerConfig, ResamplerWeights<'a>)> {
    Reader::family("Idefics2 connector", source, "", |r| {
        let (mut config, mut weights) = read(&r.sub(perceiver), heads, rms_norm_eps)?;
        let [hidden, features] = r.dims(&format!("{projection}gate_proj.weight"));
        config.input_mlp = Some(InputMlp { features, hidden });
        weights.input_mlp = Some(swiglu(&r.sub(projection), features, hidden, config.width));
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
            ffn: swiglu(&r.sub("mlp."), width, hidden, width),
        }
    };
    let (own, layers_of) = (r.tensor("latents", &[latents, width]), (0..layers).map(layer).collect());
    let weights = ResamplerWeights::new(own, layers_of, Some(r.norm("norm", width)));
    let config = ResamplerConfig {
        layers,
        kv_heads: heads.kv_heads,
        ffn_hidden: hidden,
        activation: Activation::SwiGlu,
        norm: NormConfig::rms(rms_norm_eps),
        ..ResamplerConfig::new(width, latents, heads.heads, head_dim)
    };
    Ok((config, weights))
}

impl ResamplerConfig {
    /// Idefics2 8B: SigLIP's 1152 through a gated MLP to 4096, 3 layers of 16 (4 K/V) heads of 96.
    pub fn idefics2_8b() -> Self {
        ResamplerConfig {
            layers: 3,
            kv_heads: 4,
            activation: Activation::SwiGlu,
            norm: NormConfig::rms(1e-5),
            input_mlp: Some(InputMlp::new(1152, 14336)),
            ..Self::new(4096, 64, 16, 96)
        }
    }
}

#[cfg(feature = "checkpoint")]
pub(super) mod family {
    use super::*;
    use crate::checkpoint::config::{Field, GATED, Kind, ModelConfig};
    use crate::checkpoint::copies::around;
    use crate::checkpoint::find::{Find, Promise, shown_prefix};
    use crate::checkpoint::row::Row;
    use crate::checkpoint::{Bridges, Provenance};

    pub(in super::super) const IDEFICS2: Row = Row {
        name: "idefics2",
        model_types: &[("idefics2", ""), ("idefics2_perceiver", "perceiver_config.")],
        marker: None,
        modules: &["connector", "perceiver_resampler"],
        fields: &[
            &TEXT_TYPE,
            &FEATURES,
            &TEXT_WIDTH,
            &TEXT_HIDDEN,
            &TEXT_EPS,
            &TEXT_ACTIVATION,
            &WIDTH,
            &EPS,
            &ACTIVATION,
            &LATENTS,
            &DEPTH,
            &HEADS,
            &HEAD_DIM,
            &KV_HEADS,
        ],
        matches: |names| names.any(|name| name.ends_with("layers.0.input_context_norm.weight")),
        find: idefics2,
    };

    const FEATURES: Field = Field { names: &["vision_config.hidden_size"], kind: Kind::Count(768) };
    const TEXT_TYPE: Field = Field { names: &["text_config.model_type"], kind: Kind::Text };
    const TEXT_WIDTH: Field = Field { names: &["text_config.hidden_size"], kind: Kind::Count(4096) };
    const TEXT_HIDDEN: Field = Field { names: &["text_config.intermediate_size"], kind: Kind::Count(14336) };
    const TEXT_EPS: Field = Field { names: &["text_config.rms_norm_eps"], kind: Kind::Eps(1e-5) };
    const TEXT_ACTIVATION: Field = Field {
        names: &["text_config.hidden_act", "text_config.hidden_activation"],
        kind: Kind::Activation(GATED, Activation::SwiGlu),
    };
    const WIDTH: Field = Field { names: &["perceiver_config.hidden_size"], kind: Kind::Count(4096) };
    const EPS: Field = Field { names: &["perceiver_config.rms_norm_eps"], kind: Kind::Eps(1e-6) };
    const ACTIVATION: Field =
        Field { names: &["perceiver_config.hidden_act"], kind: Kind::Activation(GATED, Activation::SwiGlu) };
    const LATENTS: Field = Field { names: &["perceiver_config.resampler_n_latents"], kind: Kind::Count(64) };
    const DEPTH: Field = Field { names: &["perceiver_config.resampler_depth"], kind: Kind::Depth(3) };
    const HEADS: Field = Field { names: &["perceiver_config.resampler_n_heads"], kind: Kind::Count(16) };
    const HEAD_DIM: Field = Field { names: &["perceiver_config.resampler_head_dim"], kind: Kind::Count(96) };
    const KV_HEADS: Field = Field { names: &["perceiver_config.num_key_value_heads"], kind: Kind::Count(4) };

    /// Whether the perceiver's own width counts: transformers takes the text's width and eps where
    /// the widths differ (old files on the hub). A perceiver that was saved alone has no text.
    fn own_width(c: &ModelConfig) -> bool {
        c.model_type == "idefics2_perceiver" || c.count(&WIDTH) == c.count(&TEXT_WIDTH)
    }

    /// Promises of the perceiver below `prefix`.
    fn promise(c: &ModelConfig, p: &mut Promise, prefix: &str) {
        let width = c.count(if own_width(c) { &WIDTH } else { &TEXT_WIDTH });
        let head_dim = c.count(&HEAD_DIM);
        p.shape(prefix, "latents", &[c.count(&LATENTS), width]);
        p.shape(prefix, "layers.0.self_attn.q_proj.weight", &[c.count(&HEADS) * head_dim, width]);
        p.shape(prefix, "layers.0.self_attn.k_proj.weight", &[c.count(&KV_HEADS) * head_dim, width]);
        p.shape(prefix, "layers.0.mlp.gate_proj.weight", &[4 * width, width]);
        p.layers.insert(format!("{prefix}layers."), c.count(&DEPTH));
    }

    fn idefics2<'a>(find: &mut Find<'a, '_>) -> Bridges<'a> {
        let mut bridges = Bridges::default();
        let of = |module: &str, prefixes: Vec<String>| -> Vec<String> {
            prefixes.iter().map(|p| format!("{p}{module}")).collect()
        };
        let mut connectors = of("connector.", find.prefixes_of("connector."));
        if connectors.is_empty() && find.source.any_below("modality_projection.") {
            connectors.push(String::new());
        }
        // A copy may have only one of the two.
        let inside = |module: &str| -> Vec<String> {
            of(module, connectors.clone()).into_iter().filter(|prefix| find.source.any_below(prefix)).collect()
        };
        let [mut perceivers, projections] = ["perceiver_resampler.", "modality_projection."].map(inside);
        if perceivers.is_empty() {
            // A name for the messages about a missing perceiver.
            perceivers = of("perceiver_resampler.", connectors.clone());
        }
        // Perceivers without a projection.
        let mut bare = of("perceiver_resampler.", find.prefixes_of("perceiver_resampler."));
        bare.retain(|prefix| !connectors.iter().any(|connector| prefix.starts_with(connector)));
        let parts: Vec<&String> = perceivers.iter().chain(&projections).collect();
        let wanted = find.overrides.prefix.clone();
        if let (Some(one), Some(other), None) = (parts.first(), bare.first(), &wanted) {
            let [one, other] = [around(one), other].map(shown_prefix);
            find.problems.push(format!("resampler: at {one} and at {other}; --prefix chooses"));
        }
        let chosen = |prefix: &String| wanted.as_ref().is_none_or(|wanted| prefix.starts_with(wanted.as_str()));
        let whole = parts.iter().any(|part| chosen(part)) || !parts.is_empty() && !bare.iter().any(chosen);
        let mut prefixes = if whole { perceivers } else { bare };
        if prefixes.is_empty() && find.source.any_below("layers.0.input_context_norm.") {
            prefixes.push(String::new());
        }
        let Some(inside) = find.choose("resampler", None, &prefixes, &["latents", "layers.", "norm."]) else {
            find.report_absent("model.connector.perceiver_resampler.latents: missing");
            return bridges;
        };
        let mut projection = String::new();
        if whole {
            let connector = around(&inside);
            projection = find
                .choose("resampler", None, &projections, &[])
                .unwrap_or_else(|| format!("{connector}modality_projection."));
            // Other tensors in the connector must be read, unless their part was chosen elsewhere.
            let parts = ["modality_projection.", "perceiver_resampler."].map(|part| format!("{connector}{part}"));
            let names = find.source.files.below(connector).map(|(name, _)| name);
            let stray = |name: &&str| !connector.is_empty() && !parts.iter().any(|part| name.starts_with(part));
            find.namespace.extend(names.filter(stray).map(String::from));
            // An equal copy of the resampler may have the projection beside it.
            let copy = format!("{}{}", around(&projection), &inside[connector.len()..]);
            if around(&projection) != connector && !find.is_copy(&copy) {
                find.say_together(&[("resampler", &inside), ("modality projection", &projection)]);
            }
        }
        if let Some(c) = find.own_config() {
            promise(c, &mut find.source.promise, &inside);
            if whole {
                let shape = [c.count(&TEXT_HIDDEN), c.count(&FEATURES)];
                find.source.promise.shape(&projection, "gate_proj.weight", &shape);
            }
        }
        let assumed = |heads| (heads, Provenance::Assumed("those of Idefics2 8B".into()));
        let option = (find.overrides.heads, "--heads");
        let heads = find.heads("resampler", "heads", option, Some(&HEADS), assumed(16));
        // K/V heads are as wide as query heads.
        let [q, k] = ["q_proj", "k_proj"].map(|n| format!("{inside}layers.0.self_attn.{n}.weight"));
        let [q_rows, k_rows] =
            [&q, &k].map(|name| find.source.files.info(name).and_then(|t| t.shape.first().copied()).unwrap_or(0));
        let by_shape = match q_rows.checked_div(heads).filter(|&width| width > 0) {
            Some(width) => ((k_rows / width).max(1), Provenance::Shape(k)),
            None => assumed(4),
        };
        let kv_heads = find.heads("resampler", "K/V heads", (None, ""), Some(&KV_HEADS), by_shape);
        let heads = Heads { heads, kv_heads };
        let own = find.config.is_none_or(|c| match find.own_config() {
            Some(c) => own_width(c),
            None => [&WIDTH, &TEXT_WIDTH].iter().any(|f| c.has(f).is_none()) || c.count(&WIDTH) == c.count(&TEXT_WIDTH),
        });
        let eps = if own { &EPS } else { &TEXT_EPS };
        // The defaults here are those of Mistral's class; another text model has its own.
        if let Some(kind) = find.own_config().and_then(|c| c.text(&TEXT_TYPE)).filter(|kind| *kind != "mistral") {
            let used = [(whole, &TEXT_ACTIVATION), (!own, &TEXT_EPS)];
            for (_, field) in used.iter().filter(|(used, f)| *used && find.config.is_none_or(|c| c.has(f).is_none())) {
                let name = field.names[0];
                find.problems.push(format!("{name} of config.json: not there, and the default of {kind} is not known"));
            }
        }
        let eps = find.eps("resampler", eps);
        let activation = find.activation("resampler", &ACTIVATION);
        if whole {
            find.activation("modality projection", &TEXT_ACTIVATION);
        }
        let mut read = if whole {
            connector_of(&find.source, &projection, &inside, heads, eps)
        } else {
            resampler(&find.source, &inside, heads, eps)
        };
        if let Ok((config, _)) = &mut read {
            config.activation = activation;
            find.resampler_sizes(config, &format!("{inside}latents"), &format!("{inside}layers."));
        }
        bridges.resampler = find.keep(read);
        bridges
    }
}
