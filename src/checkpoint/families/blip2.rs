//! BLIP-2 and InstructBLIP, as transformers and LAVIS save them (spec 5.3).

use super::qformer_layers::{Names, qformer};
use crate::Result;
use crate::bridge::{DenseWeights, LmHeadWeights, QFormerConfig, QFormerWeights};
use crate::checkpoint::{Reader, TensorSource};
use crate::ops::EmptyRow;

/// Which library's names, and which module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// transformers BLIP-2: `query_tokens`, `qformer.{layernorm,encoder}.…`, `embeddings.…`.
    Blip2,
    /// transformers InstructBLIP, relative to `qformer.`: `embeddings.layernorm`, `encoder.…`.
    InstructBlip,
    /// LAVIS: `query_tokens`, and in `Qformer.`: `bert.embeddings.LayerNorm`, `bert.encoder.…`.
    Lavis,
}

/// Default eps of every LayerNorm in a Q-Former.
pub const NORM_EPS: f32 = QFormerConfig::NORM_EPS;

/// Reads a Q-Former. `queries` is checked against `query_tokens` if the module has them.
///
/// # Errors
/// Every missing or mis-shaped tensor, by name.
pub fn read_qformer<'a>(
    source: &dyn TensorSource<'a>,
    prefix: &str,
    layout: Layout,
    heads: usize,
    queries: usize,
    norm_eps: f32,
) -> Result<(QFormerConfig, QFormerWeights<'a>)> {
    let (root, inside) = match layout {
        Layout::Blip2 => (Some(""), "qformer."),
        Layout::InstructBlip => (None, ""),
        Layout::Lavis => (Some(""), "bert."),
    };
    Reader::family(layout.family(), source, prefix, |r| {
        qformer(r, &layout.names(root, inside), heads, queries, norm_eps, layout.empty_row())
    })
}

impl Layout {
    const fn family(self) -> &'static str {
        match self {
            Layout::Blip2 => "BLIP-2 Q-Former",
            Layout::InstructBlip => "InstructBLIP Q-Former",
            Layout::Lavis => "LAVIS Q-Former",
        }
    }

    /// The result of a row that sees no key.
    const fn empty_row(self) -> EmptyRow {
        match self {
            Layout::Blip2 | Layout::InstructBlip => EmptyRow::Uniform,
            // LAVIS adds -10000 to every score of such a row, which f32 keeps as the plain softmax.
            Layout::Lavis => EmptyRow::AttendAll,
        }
    }

    /// The names of a Q-Former whose tensors begin with `inside`, and of the query tokens and text
    /// embeddings in the module around it.
    fn names(self, root: Option<&str>, inside: &str) -> Names {
        let (projections, norm) = match self {
            Layout::Blip2 => ("attention", "layernorm"),
            Layout::InstructBlip => ("attention", "embeddings.layernorm"),
            Layout::Lavis => ("self", "embeddings.LayerNorm"),
        };
        // transformers' BLIP-2 keeps the embeddings beside the Q-Former.
        let around = if self == Layout::Blip2 { root.unwrap_or(inside) } else { inside };
        Names {
            encoder: format!("{inside}encoder."),
            projections,
            embedding_norm: format!("{inside}{norm}"),
            embeddings: format!("{around}embeddings."),
            query_tokens: root.map(|root| format!("{root}query_tokens")),
        }
    }
}

/// Reads a dense layer `name.weight`, `name.bias` of any size: projections and heads.
///
/// # Errors
/// A missing or mis-shaped tensor, by name.
pub fn read_dense<'a>(source: &dyn TensorSource<'a>, name: &str) -> Result<DenseWeights<'a>> {
    Reader::family("dense layer", source, "", |r| {
        let [n, k] = r.dims(&format!("{name}.weight"));
        Ok(r.biased(name, n, k))
    })
}

/// Reads LAVIS' language-model head below `prefix`: `transform.{dense,LayerNorm}`,
/// `decoder.weight`, and `decoder.bias` or `bias`.
///
/// # Errors
/// Every missing or mis-shaped tensor, by name.
pub fn read_lm_head<'a>(source: &dyn TensorSource<'a>, prefix: &str) -> Result<LmHeadWeights<'a>> {
    Reader::family("LAVIS language-model head", source, prefix, |r| {
        let [vocabulary, width] = r.dims("decoder.weight");
        let bias = if r.has("decoder.bias") { "decoder.bias" } else { "bias" };
        Ok(LmHeadWeights {
            transform: r.biased("transform.dense", width, width),
            norm: r.layer_norm("transform.LayerNorm", width),
            decoder: DenseWeights::biased(
                r.tensor("decoder.weight", &[vocabulary, width]),
                r.tensor(bias, &[vocabulary]),
            ),
        })
    })
}

impl QFormerConfig {
    /// BLIP-2 over EVA ViT-g/14 (1408): BERT-base with cross-attention in every second layer, 32
    /// queries. Empty rows follow transformers.
    pub fn blip2() -> Self {
        Self::new(768, 12, 1408)
    }

    /// BLIP-2 over CLIP ViT-L/14 (1024).
    pub fn blip2_vit_l() -> Self {
        Self::new(768, 12, 1024)
    }

    /// InstructBLIP: BLIP-2's, with text.
    pub fn instruct_blip() -> Self {
        Self::blip2()
    }
}

#[cfg(feature = "checkpoint")]
pub(super) mod family {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::qformer_place::{BESIDE, LM_HEAD, PARTS, Place};
    use super::*;
    use crate::checkpoint::config::{Field, Kind, ModelConfig, PLAIN};
    use crate::checkpoint::find::{Find, shown_prefix};
    use crate::checkpoint::json::some_of;
    use crate::checkpoint::row::Row;
    use crate::checkpoint::{Bridges, Provenance};
    use crate::ops::Activation;

    const FIELDS: &[&Field] =
        &[&QUERIES, &WIDTH, &LAYERS, &HEADS, &HIDDEN, &EPS, &INTERVAL, &FEATURES, &ACTIVATION, &POSITIONS];

    /// Q-Formers of other models have these layers too; the query tokens tell them apart.
    pub(in super::super) const BLIP2: Row = Row {
        name: "blip-2",
        model_types: &[("blip-2", ""), ("blip_2", ""), ("blip_2_qformer", "qformer_config.")],
        marker: None,
        modules: &["qformer", "language_projection"],
        fields: FIELDS,
        matches: |names| {
            names.has_beside("qformer.encoder.layer.", "query_tokens")
                && !names.has_beside("qformer.embeddings.layernorm.", "query_tokens")
        },
        find: |find| find_qformer(find, Layout::Blip2),
    };

    pub(in super::super) const INSTRUCT_BLIP: Row = Row {
        name: "instructblip",
        model_types: &[
            ("instructblip", ""),
            ("instructblipvideo", ""),
            ("instructblip_qformer", "qformer_config."),
            ("instructblipvideo_qformer", "qformer_config."),
        ],
        marker: None,
        modules: BLIP2.modules,
        fields: FIELDS,
        matches: |names| names.has_beside("qformer.embeddings.layernorm.", "query_tokens"),
        find: |find| find_qformer(find, Layout::InstructBlip),
    };

    pub(in super::super) const LAVIS: Row = Row {
        name: "lavis",
        model_types: &[],
        marker: None,
        modules: &["Qformer"],
        fields: FIELDS,
        matches: |names| names.has_beside("Qformer.bert.", "query_tokens"),
        find: |find| find_qformer(find, Layout::Lavis),
    };

    const QUERIES: Field = Field { names: &["num_query_tokens"], kind: Kind::Count(32) };
    const WIDTH: Field = Field { names: &["qformer_config.hidden_size"], kind: Kind::Count(768) };
    const LAYERS: Field = Field { names: &["qformer_config.num_hidden_layers"], kind: Kind::Depth(12) };
    const HEADS: Field = Field { names: &["qformer_config.num_attention_heads"], kind: Kind::Count(12) };
    const HIDDEN: Field = Field { names: &["qformer_config.intermediate_size"], kind: Kind::Count(3072) };
    const EPS: Field = Field { names: &["qformer_config.layer_norm_eps"], kind: Kind::Eps(NORM_EPS) };
    const INTERVAL: Field = Field { names: &["qformer_config.cross_attention_frequency"], kind: Kind::Count(2) };
    const FEATURES: Field =
        Field { names: &["vision_config.hidden_size", "qformer_config.encoder_hidden_size"], kind: Kind::Count(1408) };
    const ACTIVATION: Field = Field {
        names: &["qformer_config.hidden_act", "qformer_config.hidden_activation"],
        kind: Kind::Activation(PLAIN, Activation::Gelu),
    };
    const POSITIONS: Field = Field { names: &["qformer_config.position_embedding_type"], kind: Kind::Only("absolute") };

    fn promise(find: &mut Find<'_, '_>, c: &ModelConfig, layers: &str) {
        let p = &mut find.source.promise;
        let width = c.count(&WIDTH);
        p.layers.insert(layers.into(), c.count(&LAYERS));
        p.shape(layers, "0.attention.output.dense.weight", &[width, width]);
        p.shape(layers, "0.crossattention.attention.key.weight", &[width, c.count(&FEATURES)]);
        for bank in ["", "_query"] {
            p.shape(layers, &format!("0.intermediate{bank}.dense.weight"), &[c.count(&HIDDEN), width]);
        }
    }

    fn find_qformer<'a>(find: &mut Find<'a, '_>, layout: Layout) -> Bridges<'a> {
        const PART: &str = "Q-Former";
        let mut bridges = Bridges::default();
        let Some(place) = Place::find(find, layout) else {
            let module = if layout == Layout::Lavis { "Qformer.bert." } else { "qformer." };
            find.report_absent(&format!("{module}encoder.layer.0.attention.output.dense.weight: missing"));
            return bridges;
        };
        let Place { root, inside, .. } = &place;
        if let Some(root) = root {
            refuse_another(find, root, inside);
        }
        let layers = format!("{inside}encoder.layer.");
        let first = format!("{layers}0.attention.output.dense.weight");
        if let Some(c) = find.own_config() {
            promise(find, c, &layers);
        }
        let assumed = find.heads_of_width(&first, "", 64);
        let option = (find.overrides.heads, "--heads");
        let heads = find.heads(PART, "heads", option, Some(&HEADS), assumed);
        let eps = find.eps(PART, &EPS);
        let activation = find.activation(PART, &ACTIVATION);
        // If nothing lies beside the Q-Former, the caller may supply the queries.
        let beside =
            |root: &String| find.names().any(|name| name.starts_with(root.as_str()) && !name.starts_with(inside));
        let asked = find.own_config().is_some_and(|c| c.family_name().is_some()) || root.as_ref().is_some_and(beside);
        let all = place.tokens(find);
        let tokens = match (find.choose("embeddings", None, &all, &[]), root) {
            (Some(tokens), Some(_)) => {
                place.say_outside(find, "query tokens", &tokens);
                Some(tokens)
            }
            (_, root) => root.as_ref().filter(|_| asked).map(|root| format!("{root}query_tokens")),
        };
        let mut names = layout.names(root.as_deref(), inside);
        if layout == Layout::Blip2 {
            let all = place.copies(find, &["embeddings."]);
            if let Some(at) = find.choose("embeddings", None, &all, &[]) {
                place.say_outside(find, "embeddings", &at);
                names.embeddings = at;
            }
            // The other tensors there may be a text model's.
            find.namespace.retain(|at| *at != names.embeddings);
        }
        find.source.part.set(PART);
        let shape = tokens.as_ref().and_then(|tokens| find.source.files.info(tokens));
        let found = shape.and_then(|t| t.shape.iter().rev().nth(1).copied());
        let promised =
            find.own_config().filter(|c| root.is_some() && c.family_name().is_some()).map(|c| c.count(&QUERIES));
        let queries = promised.or(found).unwrap_or(32);
        let names = Names { query_tokens: tokens.clone(), ..names };
        let read = Reader::family(layout.family(), &find.source, "", |r| {
            qformer(r, &names, heads, queries, eps, layout.empty_row())
        });
        if let Some((mut config, weights)) = find.keep(read) {
            config.activation = activation;
            if !config.width.is_multiple_of(heads) {
                let from = find.origin(PART, "heads");
                find.problems
                    .push(format!("{first}: its width {} is no multiple of {heads} heads ({from})", config.width));
            }
            if let Some(every) = find.own_config().map(|c| c.count(&INTERVAL))
                && let Some(layer) =
                    (0..config.layers).find(|i| i.is_multiple_of(every) != i.is_multiple_of(config.cross_every))
            {
                let (name, what) = (format!("{layers}{layer}.crossattention.attention.key.weight"), "according to");
                let state = if layer.is_multiple_of(every) { "missing" } else { "surplus" };
                find.problems.push(format!("{name}: {state}, {what} cross_attention_frequency {every} of config.json"));
            }
            match &tokens {
                Some(tokens) => find.sizes(PART, tokens, &[("queries", queries)]),
                None => {
                    find.record_origin(PART, "queries", queries, Provenance::Assumed("the caller brings them".into()))
                }
            }
            find.sizes(PART, &first, &[("width", config.width)]);
            let sizes = [("layers", config.layers), ("hidden", config.ffn_hidden), ("features", config.encoder_width)];
            find.sizes(PART, &layers, &sizes);
            find.sizes(PART, &layers, &[("cross-attention every", config.cross_every)]);
            bridges.qformer = Some((config, weights));
        }
        let words = ["word", "position"].map(|table| format!("{}{table}_embeddings.weight", names.embeddings));
        for name in words.iter().chain(&tokens) {
            find.source.assign(name, "embeddings");
        }
        heads_beside(find, &mut bridges, &place, layout);
        for name in [format!("{inside}position_ids"), format!("{}position_ids", names.embeddings)] {
            if find.has(&name) {
                find.source.mark(name);
            }
        }
        if let Some(root) = root {
            name_unread(find, root);
            place.name_unread(find);
        }
        bridges
    }

    /// Refuses a second Q-Former with its own name (Video-LLaMA's `video_Qformer` reads the output
    /// of `Qformer`): the projection and the heads may be that one's.
    fn refuse_another(find: &mut Find<'_, '_>, root: &str, inside: &str) {
        let another = |name: &str| -> Option<String> {
            let module = name.strip_prefix(root)?.split('.').next()?;
            module.to_ascii_lowercase().ends_with("_qformer").then(|| format!("{root}{module}."))
        };
        let others: BTreeSet<String> = find.names().filter_map(another).collect();
        if find.overrides.prefix.is_none() && !others.is_empty() {
            let [others, own] = [some_of(others, ", "), shown_prefix(inside)];
            find.problems.push(format!(
                "Q-Former: at {own}, and another at {others}, which may come before the projection; --prefix {own} reads the first all the same"
            ));
        }
    }

    /// The heads beside a Q-Former, as far as they are there.
    fn heads_beside<'a>(find: &mut Find<'a, '_>, bridges: &mut Bridges<'a>, place: &Place, layout: Layout) {
        let width = bridges.qformer.as_ref().map(|(q, _)| q.width);
        let mut lm_heads = place.copies(find, &[LM_HEAD]);
        // The place in a Q-Former that was saved alone.
        let own = format!("{}cls.predictions.", place.inside.strip_suffix("bert.").unwrap_or(&place.inside));
        if lm_heads.is_empty() && find.source.any_below(&own) {
            lm_heads.push(own);
        }
        if layout == Layout::Lavis
            && let Some(lm_head) = find.choose("language-model head", None, &lm_heads, &[])
        {
            place.say_outside(find, "language-model head", &lm_head);
            let read = read_lm_head(&find.source, &lm_head);
            bridges.lm_head = find.keep(read);
            // BERT keeps the decoder's bias under two names.
            let [one, other] = ["decoder.bias", "bias"].map(|name| format!("{lm_head}{name}"));
            if find.has(&one) && find.has(&other) {
                find.aliases.insert(other.clone());
                find.source.mark(other);
            }
        }
        let mut dense = |part: &'static str, names: &[&str]| {
            let prefixes = place.copies(find, names);
            let prefix = find.choose(part, None, &prefixes, &[])?;
            place.say_outside(find, part, &prefix);
            find.promise_columns(format!("{prefix}weight"), width);
            let read = read_dense(&find.source, prefix.trim_end_matches('.'));
            find.keep(read)
        };
        bridges.language_projection = dense("language projection", &PARTS[2..7]);
        bridges.image_projection = dense("contrastive heads", &PARTS[7..9]);
        bridges.text_projection = dense("contrastive heads", &PARTS[9..11]);
        bridges.itm = dense("matching head", &PARTS[11..]);
    }

    /// Notes unread modules beside a Q-Former that are no known part of the model.
    fn name_unread(find: &mut Find<'_, '_>, root: &str) {
        let mut unread: BTreeMap<&str, usize> = BTreeMap::new();
        let is_unread = find.unread();
        for (name, info) in find.source.files.below(root) {
            let module = name[root.len()..].split('.').next().unwrap_or_default();
            // Copies that were not chosen are expected.
            let mut known = find.namespace.iter().chain(&find.copies.candidates);
            let ours = known.any(|prefix| name.starts_with(prefix.as_str()));
            if !ours && !BESIDE.contains(&module) && is_unread(info) {
                *unread.entry(module).or_default() += 1;
            }
        }
        if !unread.is_empty() {
            let shown = unread.iter().map(|(module, count)| format!("{root}{module} ({count} tensors)"));
            find.notes.push(format!("not read, though beside the Q-Former: {}", some_of(shown, ", ")));
        }
    }
}
