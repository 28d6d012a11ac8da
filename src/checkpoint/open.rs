//! A whole checkpoint: family, configuration and bridges, with everything wrong in one error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::json::brief;
use super::{AdapterChoice, Bridges, Family, Files, ModelConfig, Overrides, find};
use crate::{Error, Result};

impl Files {
    /// Opens a safetensors file, an index file, or a folder with either. `config.json` beside the
    /// tensors is read, and an adapter beside them is merged.
    ///
    /// # Errors
    /// [`Error::File`] with the file and the fault.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, AdapterChoice::Beside)
    }

    /// As [`Files::open`], with a choice of the PEFT adapter that is merged on reading.
    ///
    /// # Errors
    /// As [`Files::open`]; [`Error::File`] if an adapter cannot be merged or must be chosen.
    pub fn open_with(path: &Path, adapter: AdapterChoice<'_>) -> Result<Self> {
        let parts: Vec<&str> = Family::ALL.iter().flat_map(|family| family.row().modules).copied().collect();
        Files::read(path, adapter, &parts)
    }
}

/// An opened checkpoint. `Send + Sync`.
pub struct Checkpoint {
    files: Files,
    family: Family,
    config: Option<ModelConfig>,
}

impl Checkpoint {
    /// Opens a safetensors file, an index file or a folder. The family is the named one, else that
    /// of `config.json`. Only without a `model_type` do the tensors' names decide.
    ///
    /// # Errors
    /// [`Error::File`]: unreadable or contradictory files, or no single family.
    pub fn open(path: &Path, family: Option<Family>) -> Result<Self> {
        Self::open_with(path, family, AdapterChoice::Beside)
    }

    /// As [`Checkpoint::open`], with a choice of the adapter that is merged into the tensors.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; an adapter of another model, ambiguous or not mergeable.
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
                    // No tensor is needed yet: only obstacles that hide all names count.
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
        // Without a model_type, the names' family decides which fields are read.
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

    /// Number of parameters of each part of the bridges. Tensors with several names count once, as
    /// in PyTorch: aliases, and a language-model head that is tied to the word embeddings (both are
    /// read and compared).
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
        // Names of one place in the file are one parameter, unless an adapter changes one of them.
        let mut places = BTreeSet::new();
        for (name, part) in &bridges.names {
            if let Some(info) = self.files.info(name)
                && !bridges.aliases.contains(name)
                && tied != Some(name.as_str())
                && (self.files.changed(name) || places.insert(info.place()))
            {
                *counts.entry(*part).or_insert(0) += info.elements();
            }
        }
        Ok(counts)
    }

    /// Finds and checks the bridges. Only modules under two names are read: they must be equal.
    ///
    /// # Errors
    /// [`Error::Weights`] with every missing, surplus or mis-shaped tensor; [`Error::File`] if such
    /// a module cannot be read, or the file has changed since it was opened.
    pub fn bridges(&self, overrides: &Overrides) -> Result<Bridges<'_>> {
        find::bridges(&self.files, self.family.row(), self.config.as_ref(), overrides)
    }
}
