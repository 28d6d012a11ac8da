//! A checkpoint as a whole: family, configuration, and the bridges in it, with everything that is wrong with them in one error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use super::json::brief;
use super::mllama::EmptyRowBehaviour;
use super::{AdapterChoice, Family, Files, ModelConfig, find};
use crate::bridge::{
    DenseWeights, GatedBlockConfig, GatedBlockWeights, LmHeadWeights, QFormerConfig, QFormerWeights, ResamplerConfig,
    ResamplerWeights,
};
use crate::{Error, Result};

/// What no file tells, or what is to differ from it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Overrides {
    /// Which of several copies (an EMA, a teacher) is read: what the names of its tensors begin with; empty: those that no copy's prefix
    /// precedes.
    pub prefix: Option<String>,
    /// Query heads of the resampler or Q-Former. Without a configuration: 8, xGen-MM 16, IDEFICS 16; Q-Formers have heads of width 64.
    pub heads: Option<usize>,
    /// Query heads of the gated blocks. Without a configuration: 8; IDEFICS and Llama-3.2-Vision have heads of width 128.
    pub block_heads: Option<usize>,
    /// Text rows see all media up to theirs instead of the last one (OpenFlamingo's `only_attend_immediate_media=False`).
    pub attend_preceding: bool,
    /// What text before the first image gets in Llama-3.2-Vision.
    pub empty_rows: EmptyRowBehaviour,
}

/// A gated block of a language model.
#[derive(Debug, Clone)]
pub struct GatedBlockAt<'a> {
    /// The number in the block's name: of the language model's layer, or among the blocks (IDEFICS, Meta's Llama).
    pub index: usize,
    /// What its tensors' names begin with.
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
    /// `config.json` does not have the field: the default of the class of this `model_type` counts.
    ClassDefault(String),
    /// The shape of a tensor, or the tensors below a prefix that ends in a dot.
    Shape(String),
    /// An option, as the command line calls it.
    Option(&'static str),
    /// Nothing says it; the reason for the value.
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

/// The bridges of a checkpoint, their weights still in the file: each is read when a device packs it.
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
    /// Names of all tensors that were read, each with the part that it belongs to: `resampler`, `projector`, `gated blocks`, `Q-Former`,
    /// `embeddings`, `language projection`, `contrastive heads`, `matching head` or `language-model head`.
    pub names: BTreeMap<String, &'static str>,
    /// Those of them that are second names of others' weights.
    pub aliases: BTreeSet<String>,
    /// Where each value came from.
    pub origins: Vec<Origin>,
    /// What is no fault, and should be known: tensors that nothing reads, a configuration of another model.
    pub notes: Vec<String>,
}

/// An opened checkpoint. `Send + Sync`.
pub struct Checkpoint {
    files: Files,
    family: Family,
    config: Option<ModelConfig>,
}

impl Checkpoint {
    /// Opens a safetensors file, an index file or a folder. The family is the named one, else that of `config.json`, else that of the names:
    /// these tell only where there is no `config.json`, or one without a `model_type`.
    ///
    /// # Errors
    /// Files that cannot be read or contradict themselves, a family that cannot be told.
    pub fn open(path: &Path, family: Option<Family>) -> Result<Self> {
        Self::open_with(path, family, AdapterChoice::Beside)
    }

    /// As [`Checkpoint::open`], with a choice of the adapter that is merged into the tensors.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; an adapter that cannot be merged, is another model's, or must be chosen among several.
    pub fn open_with(path: &Path, family: Option<Family>, adapter: AdapterChoice<'_>) -> Result<Self> {
        let files = Files::open_with(path, adapter)?;
        let config = files.config().map(|(path, text)| ModelConfig::parse(path, text, family)).transpose()?;
        let known = || Family::ALL.map(Family::name).join(", ");
        let unknown_type = config.as_ref().filter(|c| c.family().is_none() && !c.model_type.is_empty());
        let family = match (family, config.as_ref().and_then(ModelConfig::family), unknown_type) {
            (Some(family), _, _) | (None, Some(family), _) => family,
            (None, None, Some(c)) => {
                let path = files.config().map_or(path, |(path, _)| path);
                let fault = format!(
                    "model_type {} is not supported; to read its tensors as those of another family, name it: {}",
                    brief(&c.model_type),
                    known()
                );
                return Err(Error::file(path, fault));
            }
            (None, None, None) => match Family::of_tensors(&files).as_slice() {
                [family] => *family,
                [] => {
                    let shards = files.incomplete().map_or_else(String::new, |said| format!(" ({said})"));
                    let fault = || format!("no family's tensors found{shards}; name one of {}", known());
                    // No name is known to be needed: only what hides all names is a reason.
                    return Err(Error::file(path, files.obstacle(|_| false).unwrap_or_else(fault)));
                }
                several => {
                    let several: Vec<_> = several.iter().map(|f| f.name()).collect();
                    return Err(Error::file(
                        path,
                        format!("tensors of several families; name one of {}", several.join(", ")),
                    ));
                }
            },
        };
        // Without a model_type, the fields count that the family of the names has.
        let config = match (files.config(), config) {
            (Some((path, text)), Some(c)) if c.family().is_none() => {
                Some(ModelConfig::parse(path, text, Some(family))?)
            }
            (_, config) => config,
        };
        Ok(Checkpoint { files, family, config })
    }

    /// The family.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The files.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The configuration, if there is one.
    pub fn config(&self) -> Option<&ModelConfig> {
        self.config.as_ref()
    }

    /// Number of parameters of each part of the bridges. What stands in the file under several names counts once, as in PyTorch: aliases, and
    /// a language-model head that is tied to the word embeddings, which are read and compared.
    ///
    /// # Errors
    /// As [`Files::bytes`].
    pub fn parameters(&self, bridges: &Bridges<'_>) -> Result<BTreeMap<&'static str, usize>> {
        let mut counts = BTreeMap::new();
        let named = |part: &str, end: &str| {
            let mut names = bridges.names.iter().filter(|(name, of)| **of == part && name.ends_with(end));
            names.next().map(|(name, _)| name.as_str())
        };
        let tied = match (named("embeddings", "word_embeddings.weight"), named("language-model head", "decoder.weight"))
        {
            (Some(words), Some(decoder)) if self.files.same(words, decoder)? => Some(decoder),
            _ => None,
        };
        for (name, part) in &bridges.names {
            if let Some(info) = self.files.info(name)
                && !bridges.aliases.contains(name)
                && tied != Some(name.as_str())
            {
                *counts.entry(*part).or_insert(0) += info.elements();
            }
        }
        Ok(counts)
    }

    /// Finds and checks the bridges. No weight is read yet, but of modules that are there under two names: these must hold the same.
    ///
    /// # Errors
    /// [`Error::Weights`] with every missing, surplus or mis-shaped tensor; [`Error::File`] when such a module cannot be read, or the
    /// file has changed since it was opened.
    pub fn bridges(&self, overrides: &Overrides) -> Result<Bridges<'_>> {
        find::bridges(&self.files, self.family, self.config.as_ref(), overrides)
    }
}
