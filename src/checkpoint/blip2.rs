//! BLIP-2 and InstructBLIP, as transformers and LAVIS save them (spec 5.3).

use super::qformer_names::{Names, qformer};
use super::{Reader, TensorSource};
use crate::Result;
use crate::bridge::{DenseWeights, LmHeadWeights, QFormerConfig, QFormerWeights};
use crate::ops::EmptyRow;

/// Which library's names, and which module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// transformers BLIP-2: `query_tokens`, `qformer.layernorm`, `qformer.encoder.…`, `embeddings.…`.
    Blip2,
    /// transformers InstructBLIP, relative to `qformer.`: `embeddings.layernorm`, `encoder.…`.
    InstructBlip,
    /// LAVIS: `query_tokens`, and relative to `Qformer.`: `bert.embeddings.LayerNorm`, `bert.encoder.…`.
    Lavis,
}

/// Default eps of every LayerNorm in a Q-Former.
pub const NORM_EPS: f32 = 1e-12;

/// Reads a Q-Former. `queries` is checked against `query_tokens` where the module has them.
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
    let (family, names, empty_row) = match layout {
        Layout::Blip2 => (
            "BLIP-2 Q-Former",
            Names {
                encoder: "qformer.encoder.",
                projections: "attention",
                embedding_norm: "qformer.layernorm",
                embeddings: "embeddings.",
                query_tokens: Some("query_tokens"),
            },
            EmptyRow::Uniform,
        ),
        Layout::InstructBlip => (
            "InstructBLIP Q-Former",
            Names {
                encoder: "encoder.",
                projections: "attention",
                embedding_norm: "embeddings.layernorm",
                embeddings: "embeddings.",
                query_tokens: None,
            },
            EmptyRow::Uniform,
        ),
        Layout::Lavis => (
            "LAVIS Q-Former",
            Names {
                encoder: "bert.encoder.",
                projections: "self",
                embedding_norm: "bert.embeddings.LayerNorm",
                embeddings: "bert.embeddings.",
                query_tokens: Some("query_tokens"),
            },
            // LAVIS adds -10000 to every score of such a row, which f32 keeps as the plain softmax.
            EmptyRow::AttendAll,
        ),
    };
    Reader::family(family, source, prefix, |r| qformer(r, &names, heads, queries, norm_eps, empty_row))
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

/// Reads LAVIS' language-model head below `prefix`: `transform.{dense,LayerNorm}`, `decoder.weight`, and `decoder.bias` or `bias`.
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
