//! K and V of media, projected once and read by prefill, chunked prefill and every decode step.
//!
//! One tensor per gated block, `[entries, media · keys_per_media, kv_width]`. An entry belongs to a
//! sequence (or to an image that several sequences share): a call addresses entries through
//! `slots`, so that batches are formed and dissolved without copying. Public code projects the
//! media again at every step (spec 3.3).

use super::program::{PreparedBridge, refuse};
use super::{GatedBlock, ProjectMediaArgs, ProjectMediaCall};
use crate::device::{Device, Recorder, Workspace};
use crate::device::{Tensor, View};
use crate::ops::Cost;
use crate::tensor::Spec;
use crate::{DType, Result};

const NAME: &str = "media_cache";

/// K and V of media for a stack of gated blocks. `Send + Sync`; filling it needs exclusive access.
pub struct MediaCache {
    device: Device,
    layers: Vec<Tensor>,
    entries: usize,
    media: usize,
    keys_per_media: usize,
    dtype: DType,
}

impl MediaCache {
    /// Allocates a cache for `entries` sequences of up to `media` media each.
    ///
    /// # Errors
    /// No blocks, blocks over different media or devices, or memory that cannot be had.
    pub fn new(blocks: &[&GatedBlock], entries: usize, media: usize, keys_per_media: usize) -> Result<Self> {
        let Some(first) = blocks.first() else {
            return refuse(NAME, "blocks", "at least one", "none");
        };
        let dtype = first.precision().activations;
        let mut layers = Vec::with_capacity(blocks.len());
        for block in blocks {
            first.expect_same_media(block)?;
            expect_same_device(first.device(), block, "blocks")?;
            let shape = [entries, media.saturating_mul(keys_per_media), block.config().kv_width()];
            layers.push(Tensor::zeros(block.device(), dtype, &shape)?);
        }
        Ok(MediaCache { device: first.device().clone(), layers, entries, media, keys_per_media, dtype })
    }

    /// Sequences it holds.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Media per sequence, at most.
    pub fn media(&self) -> usize {
        self.media
    }

    /// Tokens per medium.
    pub fn keys_per_media(&self) -> usize {
        self.keys_per_media
    }

    /// K and V of a block, `[entries, media · keys_per_media, kv_width]`, for
    /// [`GatedBlock::prepare`].
    ///
    /// # Errors
    /// A layer that does not exist.
    pub fn kv(&self, layer: usize) -> Result<View<'_>> {
        match self.layers.get(layer) {
            Some(tensor) => Ok(tensor.view()),
            None => refuse(NAME, "layer", format!("one of {}", self.layers.len()), layer),
        }
    }

    /// Layout of [`MediaCache::kv`].
    pub fn spec(&self) -> Spec {
        self.layers[0].spec()
    }

    /// Prepares fills of `count` media of `media_width` at a time, wherever in the cache they go.
    ///
    /// # Errors
    /// Other blocks than those the cache was made for, a device's limits.
    pub fn prepare_fill(&self, blocks: &[&GatedBlock], count: usize) -> Result<PreparedMediaFill> {
        if blocks.len() != self.layers.len() {
            return refuse(NAME, "blocks", self.layers.len(), blocks.len());
        }
        let mut layers = Vec::with_capacity(blocks.len());
        for (block, layer) in blocks.iter().zip(&self.layers) {
            expect_same_device(&self.device, block, "blocks")?;
            let shape = [count, self.keys_per_media, block.config().media_width];
            let media = Spec::contiguous(self.dtype, &shape)?;
            let kv = Spec::contiguous(self.dtype, &[count, self.keys_per_media, layer.spec().dim(2)])?;
            layers.push(block.prepare_media(ProjectMediaArgs { media, kv })?);
        }
        Ok(PreparedMediaFill { layers, count })
    }

    /// Projects new media of one entry into every block's cache: `media`, a gapless
    /// `[count, keys_per_media, media_width]`, becomes media `first..first + count`. These are
    /// 0-based: φ = `first` + 1 sees the first one. Other entries and media stay as they are.
    ///
    /// # Errors
    /// Media that do not fit the cache, a workspace that is too small, a device fault.
    pub fn enqueue_fill(
        &mut self,
        prepared: &PreparedMediaFill,
        recorder: &mut Recorder<'_>,
        entry: usize,
        first: usize,
        media: &View<'_>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let count = prepared.count;
        if entry >= self.entries {
            return refuse(NAME, "entry", format!("one of {}", self.entries), entry);
        }
        if first.checked_add(count).is_none_or(|end| end > self.media) {
            return refuse(
                NAME,
                "first",
                format!("media within 0..{}", self.media),
                format!("{first}..{first}+{count}"),
            );
        }
        if prepared.layers.len() != self.layers.len() {
            return refuse(NAME, "prepared", format!("{} layers", self.layers.len()), prepared.layers.len());
        }
        for (prepared, layer) in prepared.layers.iter().zip(&mut self.layers) {
            let kv = layer
                .view_mut()
                .narrow(0, entry, 1)?
                .narrow(1, first * self.keys_per_media, count * self.keys_per_media)?
                .split(1, count, self.keys_per_media)?
                .merge(0)?;
            prepared.enqueue(recorder, ProjectMediaArgs { media: media.clone(), kv }, workspace)?;
        }
        Ok(())
    }

    /// [`MediaCache::prepare_fill`] and [`MediaCache::enqueue_fill`] in one call, which waits.
    ///
    /// # Errors
    /// As those.
    pub fn fill(&mut self, blocks: &[&GatedBlock], entry: usize, first: usize, media: &View<'_>) -> Result<()> {
        let spec = media.spec();
        if spec.rank() != 3 || spec.dim(1) != self.keys_per_media {
            return refuse(NAME, "media", format!("shape [count, {}, width]", self.keys_per_media), spec);
        }
        if spec.dtype() != self.dtype {
            return refuse(NAME, "media", self.dtype, spec.dtype());
        }
        let prepared = self.prepare_fill(blocks, spec.dim(0))?;
        let mut workspace = Workspace::new(&self.device, prepared.workspace_bytes())?;
        let mut recorder = self.device.recorder()?;
        self.enqueue_fill(&prepared, &mut recorder, entry, first, media, &mut workspace)?;
        self.device.finish(recorder)
    }
}

/// A cache of one device is filled by kernels of that device.
fn expect_same_device(device: &Device, block: &GatedBlock, argument: &'static str) -> Result<()> {
    if block.device().is_same(device) {
        return Ok(());
    }
    let kinds = (device.kind(), block.device().kind());
    let actual = match kinds.0 == kinds.1 {
        true => format!("another device of {}", kinds.1),
        false => kinds.1.to_string(),
    };
    refuse(NAME, argument, format!("all on one device of {}", kinds.0), actual)
}

/// The projection of a number of media into every layer of a cache, prepared.
pub struct PreparedMediaFill {
    layers: Vec<PreparedBridge<ProjectMediaCall>>,
    count: usize,
}

impl PreparedMediaFill {
    /// Scratch memory that [`MediaCache::enqueue_fill`] needs.
    pub fn workspace_bytes(&self) -> usize {
        self.layers.iter().map(PreparedBridge::workspace_bytes).max().unwrap_or(0)
    }

    /// Bytes and operations of one fill, summed over the layers.
    pub fn cost(&self) -> Cost {
        let costs = self.layers.iter().map(PreparedBridge::cost);
        costs.fold(Cost::default(), Cost::plus)
    }

    /// One projection per layer.
    #[cfg(feature = "verify")]
    pub(crate) fn bridges(&self) -> &[PreparedBridge<ProjectMediaCall>] {
        &self.layers
    }

    /// Bytes of the largest activation: media, their K and V, or an intermediate.
    pub fn largest_tensor_bytes(&self) -> usize {
        self.layers.iter().map(PreparedBridge::largest_tensor_bytes).max().unwrap_or(0)
    }
}
