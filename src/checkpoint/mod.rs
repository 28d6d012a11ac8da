//! From named tensors to bridges: one file per family of checkpoints (`families/`), with the names
//! that its public library saves.
//!
//! A family's functions read names relative to a prefix, infer sizes from the tensors and check
//! every shape. One error lists all tensors that are missing or have a wrong shape. The tensors may
//! come from a file, from an engine or from a test: see [`TensorSource`].

#[cfg(feature = "checkpoint")]
mod adapter;
#[cfg(feature = "checkpoint")]
mod adapter_config;
#[cfg(feature = "checkpoint")]
mod adapter_names;
#[cfg(feature = "checkpoint")]
mod bridges;
#[cfg(feature = "checkpoint")]
mod config;
#[cfg(feature = "checkpoint")]
mod copies;
#[cfg(feature = "checkpoint")]
pub(crate) mod explain;
mod families;
#[cfg(feature = "checkpoint")]
mod files;
#[cfg(feature = "checkpoint")]
mod find;
#[cfg(feature = "checkpoint")]
mod folder;
#[cfg(feature = "checkpoint")]
pub(crate) mod header;
#[cfg(feature = "checkpoint")]
mod index;
#[cfg(feature = "checkpoint")]
pub(crate) mod json;
#[cfg(feature = "checkpoint")]
mod names;
#[cfg(feature = "checkpoint")]
mod obstacle;
#[cfg(feature = "checkpoint")]
mod open;
#[cfg(feature = "checkpoint")]
mod pattern;
mod reader;
#[cfg(feature = "checkpoint")]
mod row;
#[cfg(feature = "checkpoint")]
mod shards;

#[cfg(feature = "checkpoint")]
pub use adapter::{Adapter, AdapterChoice};
#[cfg(feature = "checkpoint")]
pub use bridges::{Bridges, GatedBlockAt, Origin, Overrides, Provenance};
#[cfg(feature = "checkpoint")]
pub use config::ModelConfig;
pub use families::*;
#[cfg(feature = "checkpoint")]
pub use files::Files;
#[cfg(feature = "checkpoint")]
pub use header::TensorInfo;
#[cfg(feature = "checkpoint")]
pub use open::Checkpoint;
pub use reader::Reader;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::tensor::HostTensor;

/// Where named tensors come from.
pub trait TensorSource<'a> {
    /// The tensor of that name.
    fn tensor(&self, name: &str) -> Option<HostTensor<'a>>;

    /// The numbers behind `prefix` in names: 0 and 3 for `layers.0.q`, `layers.3.q` and `layers.`.
    fn indices(&self, prefix: &str) -> BTreeSet<usize>;

    /// Whether any tensor's name begins with `prefix`.
    fn any_below(&self, prefix: &str) -> bool;

    /// Whether the tensor exists, or is known to be in a missing file.
    fn listed(&self, name: &str) -> bool {
        self.tensor(name).is_some()
    }

    /// The shape that a configuration promises for a tensor. If none, the tensors decide.
    fn promised(&self, name: &str) -> Option<Vec<usize>> {
        let _ = name;
        None
    }
}

impl<'a> TensorSource<'a> for BTreeMap<String, HostTensor<'a>> {
    fn tensor(&self, name: &str) -> Option<HostTensor<'a>> {
        self.get(name).cloned()
    }

    fn indices(&self, prefix: &str) -> BTreeSet<usize> {
        self.keys().filter_map(|name| index_behind(prefix, name)).collect()
    }

    fn any_below(&self, prefix: &str) -> bool {
        self.keys().any(|name| name.starts_with(prefix))
    }
}

impl<'a> TensorSource<'a> for HashMap<String, HostTensor<'a>> {
    fn tensor(&self, name: &str) -> Option<HostTensor<'a>> {
        self.get(name).cloned()
    }

    fn indices(&self, prefix: &str) -> BTreeSet<usize> {
        self.keys().filter_map(|name| index_behind(prefix, name)).collect()
    }

    fn any_below(&self, prefix: &str) -> bool {
        self.keys().any(|name| name.starts_with(prefix))
    }
}

/// The number between `prefix` and the next dot.
fn index_behind(prefix: &str, name: &str) -> Option<usize> {
    let digits = name.strip_prefix(prefix)?.split_once('.')?.0;
    // `parse` also takes a sign, which no library writes.
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// How the rows of a projection split into heads, which no tensor's shape tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// K/V heads.
    pub kv_heads: usize,
}

impl Heads {
    /// As many K/V heads as query heads.
    pub const fn equal(heads: usize) -> Self {
        Heads { heads, kv_heads: heads }
    }
}
