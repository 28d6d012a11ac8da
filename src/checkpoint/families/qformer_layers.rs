//! The layers of a Q-Former. Names differ in a word: `self` in LAVIS, `attention` in transformers.

use crate::Result;
use crate::bridge::{
    DenseWeights, FfnWeights, QFormerConfig, QFormerLayerWeights, QFormerWeights, SelfAttentionWeights,
    TextEmbeddingWeights,
};
use crate::checkpoint::Reader;
use crate::ops::EmptyRow;

/// Where a library keeps the parts of a Q-Former, relative to the reader's prefix.
pub(super) struct Names {
    /// Prefix of `layer.{i}.`, for example `qformer.encoder.`.
    pub encoder: String,
    /// The word before `.query`, `.key`, `.value`.
    pub projections: &'static str,
    /// The norm of queries and text embeddings.
    pub embedding_norm: String,
    /// Prefix of `word_embeddings.weight` and `position_embeddings.weight`.
    pub embeddings: String,
    /// `query_tokens`, if the module has them.
    pub query_tokens: Option<String>,
}

/// Reads a Q-Former; sizes come from the tensors.
pub(super) fn qformer<'a>(
    r: &Reader<'_, 'a>,
    names: &Names,
    heads: usize,
    queries: usize,
    norm_eps: f32,
    empty_row: EmptyRow,
) -> Result<(QFormerConfig, QFormerWeights<'a>)> {
    let layer_prefix = |i: usize| format!("{}layer.{i}.", names.encoder);
    let layers = r.layers(&format!("{}layer.", names.encoder));
    let [width, _] = r.dims(&format!("{}attention.output.dense.weight", layer_prefix(0)));
    // A part exists if any of its tensors does: the others are then missing.
    let crossing: Vec<usize> =
        (0..layers).filter(|&i| r.any_below(&format!("{}crossattention.", layer_prefix(i)))).collect();
    let cross_every = crossing.windows(2).map(|w| w[1] - w[0]).min().unwrap_or(layers).max(1);
    let crosses = |i: usize| !crossing.is_empty() && i.is_multiple_of(cross_every);
    let key = format!("{}crossattention.{}.key.weight", layer_prefix(0), names.projections);
    let encoder_width = if crossing.is_empty() { width } else { r.dims::<2>(&key)[1] };
    let bank = |suffix: &str| {
        let part = |i: usize, part: &str| r.any_below(&format!("{}{part}{suffix}.", layer_prefix(i)));
        let there = (0..layers).any(|i| part(i, "intermediate") || part(i, "output"));
        there.then(|| r.dims::<2>(&format!("{}intermediate{suffix}.dense.weight", layer_prefix(0)))[0])
    };
    let (query_hidden, text_hidden) = (bank("_query"), bank(""));

    let attention = |r: &Reader<'_, 'a>, kv_input: usize| {
        let word = names.projections;
        let part = |name: &str, input: usize| {
            let name = format!("{word}.{name}");
            (r.tensor(&format!("{name}.weight"), &[width, input]), r.tensor(&format!("{name}.bias"), &[width]))
        };
        let ((k, k_bias), (v, v_bias)) = (part("key", kv_input), part("value", kv_input));
        SelfAttentionWeights {
            q: r.biased(&format!("{word}.query"), width, width),
            kv: DenseWeights { weight: vec![k, v], bias: vec![k_bias, v_bias] },
            out: r.biased("output.dense", width, width),
            norm: r.layer_norm("output.LayerNorm", width),
        }
    };
    let ffn = |r: &Reader<'_, 'a>, suffix: &str, hidden: usize| {
        let (up, down) = (format!("intermediate{suffix}.dense"), format!("output{suffix}.dense"));
        let weights = FfnWeights::new(r.biased(&up, hidden, width), r.biased(&down, width, hidden));
        (weights, r.layer_norm(&format!("output{suffix}.LayerNorm"), width))
    };
    let layer = |i: usize| {
        let r = r.sub(layer_prefix(i));
        QFormerLayerWeights {
            attention: attention(&r.sub("attention."), width),
            cross_attention: crosses(i).then(|| attention(&r.sub("crossattention."), encoder_width)),
            query_ffn: query_hidden.map(|hidden| ffn(&r, "_query", hidden)),
            text_ffn: text_hidden.map(|hidden| ffn(&r, "", hidden)),
        }
    };
    let [words, positions] = ["word", "position"].map(|n| format!("{}{n}_embeddings.weight", names.embeddings));
    let weights = QFormerWeights {
        query_tokens: names.query_tokens.as_ref().map(|name| r.squeezed(name, &[queries, width])),
        embedding_norm: r.layer_norm(&names.embedding_norm, width),
        text_embedding: (r.has(&words) || r.has(&positions)).then(|| {
            let ([vocabulary, _], [count, _]) = (r.dims(&words), r.dims(&positions));
            TextEmbeddingWeights::new(r.tensor(&words, &[vocabulary, width]), r.tensor(&positions, &[count, width]))
        }),
        layers: (0..layers).map(layer).collect(),
    };
    let config = QFormerConfig {
        layers,
        ffn_hidden: query_hidden.or(text_hidden).unwrap_or(0),
        cross_every,
        queries,
        norm_eps,
        empty_row,
        ..QFormerConfig::new(width, heads, encoder_width)
    };
    Ok((config, weights))
}
