//! The bridges of a checkpoint, where each value came from, and what callers may override.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::mllama::EmptyRowBehaviour;
use crate::bridge::{
    DenseWeights, GatedBlockConfig, GatedBlockWeights, LmHeadWeights, QFormerConfig, QFormerWeights, ResamplerConfig,
    ResamplerWeights,
};

/// What no file tells, or what should differ from the file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Overrides {
    /// Which of several copies (an EMA, a teacher) is read: the prefix of its tensors' names.
    /// Empty: the copy without a prefix.
    pub prefix: Option<String>,
    /// Query heads of the resampler or Q-Former. Without a configuration: 8, xGen-MM 16, IDEFICS
    /// 16; Q-Formers have heads of width 64.
    pub heads: Option<usize>,
    /// Query heads of the gated blocks. Without a configuration: 8; in IDEFICS and
    /// Llama-3.2-Vision, heads have width 128.
    pub block_heads: Option<usize>,
    /// Text rows see all media up to theirs, not only the last one (OpenFlamingo's
    /// `only_attend_immediate_media=False`).
    pub attend_preceding: bool,
    /// What text before the first image gets in Llama-3.2-Vision.
    pub empty_rows: EmptyRowBehaviour,
}

/// A gated block of a language model.
#[derive(Debug, Clone)]
pub struct GatedBlockAt<'a> {
    /// The number in the block's name: the layer, or among the blocks (IDEFICS, Meta's Llama).
    pub index: usize,
    /// Prefix of its tensors' names.
    pub prefix: String,
    /// Sizes and choices.
    pub config: GatedBlockConfig,
    /// Weights, still in the file.
    pub weights: GatedBlockWeights<'a>,
}

/// Where a value of a bridge came from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Provenance {
    /// A field of `config.json`, by its dotted path.
    Field(String),
    /// `config.json` lacks the field: the default of the class of this `model_type` counts.
    ClassDefault(String),
    /// The shape of a tensor, or the tensors below a prefix that ends in a dot.
    Shape(String),
    /// An option, as the command line calls it.
    Option(&'static str),
    /// No file says it; the reason for the value.
    Assumed(String),
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Provenance::Field(path) => write!(f, "{path} of config.json"),
            Provenance::ClassDefault(model_type) => {
                write!(f, "default of {model_type}, as config.json has no such field")
            }
            Provenance::Shape(prefix) if prefix.ends_with('.') => write!(f, "tensors below {prefix}"),
            Provenance::Shape(name) => write!(f, "shape of {name}"),
            Provenance::Option(option) => f.write_str(option),
            Provenance::Assumed(reason) => write!(f, "assumed: {reason}"),
        }
    }
}

/// A value of a bridge, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// `resampler`, `gated blocks` or `Q-Former`.
    pub part: &'static str,
    /// What it is: `heads`, `eps`, …
    pub value: &'static str,
    /// The value as text.
    pub shown: String,
    /// Where it came from.
    pub from: Provenance,
}

/// The bridges of a checkpoint. A weight stays in the file until a device packs it.
#[derive(Debug, Clone, Default)]
pub struct Bridges<'a> {
    /// Perceiver resampler or connector.
    pub resampler: Option<(ResamplerConfig, ResamplerWeights<'a>)>,
    /// Llama-3.2-Vision's `multi_modal_projector`.
    pub projector: Option<DenseWeights<'a>>,
    /// Gated cross-attention, in the order of the layers.
    pub gated_blocks: Vec<GatedBlockAt<'a>>,
    /// Q-Former, with its query tokens.
    pub qformer: Option<(QFormerConfig, QFormerWeights<'a>)>,
    /// Projection of the query rows into the language model.
    pub language_projection: Option<DenseWeights<'a>>,
    /// Contrastive head of the image.
    pub image_projection: Option<DenseWeights<'a>>,
    /// Contrastive head of the text.
    pub text_projection: Option<DenseWeights<'a>>,
    /// Matching head.
    pub itm: Option<DenseWeights<'a>>,
    /// Language-model head of LAVIS' first stage.
    pub lm_head: Option<LmHeadWeights<'a>>,
    /// All tensors that were read, each with its part: `resampler`, `projector`, `gated blocks`,
    /// `Q-Former`, `embeddings`, `language projection`, `contrastive heads`, `matching head` or
    /// `language-model head`.
    pub names: BTreeMap<String, &'static str>,
    /// Those of them that are second names of others' weights.
    pub aliases: BTreeSet<String>,
    /// Where each value came from.
    pub origins: Vec<Origin>,
    /// No faults, but worth knowing: unused tensors, a configuration of another model.
    pub notes: Vec<String>,
}
