//! From named tensors to bridges: one file per family of checkpoints (`families/`), with the names
//! that its public library saves.
//!
//! A family's functions read names relative to a prefix, infer sizes from the tensors, check every
//! shape and report all that is missing or mis-shaped in one error. The tensors may come from a
//! file, from an engine or from a test: see [`TensorSource`].
//!
//! ```
//! # #[cfg(feature = "checkpoint")] {
//! use xattn::bridge::{GatedBlock, Precision};
//! use xattn::checkpoint::{Checkpoint, Overrides};
//! use xattn::{DType, Device};
//!
//! # // A small OpenFlamingo: media of width 8, text of width 12.
//! # let (media, text, inner) = (8, 12, 512);
//! # let path = std::env::temp_dir().join(format!("xattn-checkpoint-{}.safetensors", std::process::id()));
//! # let (layer, block) = ("perceiver.layers.0", "lang_encoder.gated_cross_attn_layers.0");
//! # let mut shapes = vec![("perceiver.latents".to_string(), vec![4, media]), (format!("{block}.attn_gate"), vec![1])];
//! # shapes.push((format!("{block}.ff_gate"), vec![1]));
//! # for (norm, width) in [("perceiver.norm", media), ("perceiver.layers.0.0.norm_media", media),
//! #     ("perceiver.layers.0.0.norm_latents", media), ("perceiver.layers.0.1.0", media)] {
//! #     for part in ["weight", "bias"] { shapes.push((format!("{norm}.{part}"), vec![width])); }
//! # }
//! # for norm in ["attn.norm", "ff.0"] {
//! #     for part in ["weight", "bias"] { shapes.push((format!("{block}.{norm}.{part}"), vec![text])); }
//! # }
//! # for (module, to_q, to_kv, to_out, up, down, width) in [(layer, "0.to_q", "0.to_kv", "0.to_out", "1.1", "1.3", media),
//! #     (block, "attn.to_q", "attn.to_kv", "attn.to_out", "ff.1", "ff.3", text)] {
//! #     for (name, n, k) in [(to_q, inner, width), (to_kv, 2 * inner, media), (to_out, width, inner),
//! #         (up, 4 * width, width), (down, width, 4 * width)] {
//! #         shapes.push((format!("{module}.{name}.weight"), vec![n, k]));
//! #     }
//! # }
//! # let zeros = vec![0u8; 4 * 2 * inner * text];
//! # let tensors = shapes.iter().map(|(name, shape)| {
//! #     let bytes = &zeros[..4 * shape.iter().product::<usize>()];
//! #     (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
//! # });
//! # safetensors::serialize_to_file(tensors, None, &path).unwrap();
//! // `path` is a file or a folder; the family is that of its `config.json`, else that of its names.
//! let checkpoint = Checkpoint::open(&path, None)?;
//! let bridges = checkpoint.bridges(&Overrides::default())?;
//! let block = &bridges.gated_blocks[0];
//! assert_eq!((checkpoint.family().name(), block.config.width, block.config.media_width), ("open-flamingo", 12, 8));
//! assert_eq!(bridges.resampler.as_ref().map(|(config, _)| config.latents), Some(4));
//! let precision = Precision { activations: DType::F32, weights: DType::BF16 };
//! let block = GatedBlock::new(&Device::cpu(), &block.config, &block.weights, precision)?;
//! # assert_eq!(block.config().heads, 8);
//! # std::fs::remove_file(&path).unwrap();
//! # }
//! # Ok::<(), xattn::Error>(())
//! ```

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
