//! `attention`: one launch of the kernel that `variant.rs` chooses, two with split-K; before it,
//! one of `attention_visible` where `row_visible` is wanted. `docs/cuda.md` follows one tile
//! through it.
//!
//! **Split-K.** Each chunk of keys leaves a state per row and head in the workspace: `2 + head_dim`
//! f32. `attention_merge` merges them in ascending order.
//!
//! `attention_media` reads a media plan with dense queries; elsewhere φ tells the same. Ragged
//! problems whose offsets descend may overlap: their common rows get either problem's result, and
//! rows beyond the tiles of the shape stay as they are.

mod instance;
mod variant;

pub(super) use instance::instances;
pub use variant::CudaAttentionVariant;
use variant::Shape;

use super::launch::{Launch, Operand};
use super::{Cuda, CudaMemory, CudaRecorder, NAME};
use crate::backend::gpu::Kernels;
use crate::backend::gpu::attention::{AttentionParams, attention_params};
use crate::backend::{Implements, expect_reals};
use crate::ops::{Attention, AttentionArgs, Operands};
use crate::size::{Size, Word};
use crate::tensor::{Bound, Spec};
use crate::{DType, Error, Result};

/// Blocks that `attention_media` should have before one of them takes more than one tile.
const MANY_BLOCKS: usize = 1024;

pub(crate) struct Prepared {
    main: Option<Launch>,
    merge: Option<Launch>,
    visible: Option<Launch>,
    /// The media plan is read.
    planned: bool,
    state_bytes: usize,
}

fn blocks(n: usize) -> Result<[u32; 3]> {
    match u32::try_from(n) {
        Ok(n) => Ok([n, 1, 1]),
        Err(_) => Err(Error::argument(Attention::NAME, "shape", "at most 2^31 - 1 blocks", n)),
    }
}

/// What chunks leave in the workspace: maximum, sum and values of each (row, head) pair.
fn state_bytes<W: Word>(pairs: usize, chunks: usize, head_dim: usize) -> Size<W> {
    Size::product(&[4, pairs, chunks]) * (Size::of(head_dim) + 2)
}

impl Prepared {
    /// Plans the launches. `named`: the caller's variant; `many_blocks`: [`MANY_BLOCKS`].
    fn new(
        backend: &Cuda,
        op: &Attention,
        a: &AttentionArgs<Spec, Spec>,
        named: Option<CudaAttentionVariant>,
        many_blocks: usize,
    ) -> Result<Self> {
        expect_reals::<Attention>(NAME, a)?;
        let sizes = a.sizes();
        let shape = Shape::of(&op.empty_rows, a);
        let variant = shape.choose(named, backend.arch)?;
        let mut params = attention_params(op, a);

        let mut prepared = Prepared { main: None, merge: None, visible: None, planned: false, state_bytes: 0 };
        if let Some(spec) = a.row_visible.as_ref().filter(|spec| spec.elements() > 0 && sizes.batch > 0) {
            let grid = blocks(spec.elements().div_ceil(instance::THREADS))?;
            prepared.visible = Some(Launch::new(backend, &instance::visible(), &params, grid)?);
        }
        if a.out.elements() == 0 || sizes.batch == 0 {
            return Ok(prepared);
        }
        let rows = prepared.cut(&shape, variant, a, many_blocks, &mut params);
        let per_row_tile = [shape.kv_heads, params.head_tiles as usize, params.panels as usize, params.chunks as usize];
        let grid = blocks(per_row_tile.into_iter().fold(rows, usize::saturating_mul))?;
        prepared.main = Some(Launch::new(backend, &shape.form.source(variant, shape.pairs(variant)), &params, grid)?);
        if params.chunks > 1 {
            let pairs = a.q.dim(0) * sizes.q_rows * sizes.heads;
            let bytes = state_bytes::<usize>(pairs, params.chunks as usize, sizes.head_dim);
            prepared.state_bytes = bytes.or_refuse(Attention::NAME, "q", a.q)?;
            let grid = blocks(pairs.div_ceil(instance::THREADS / 32))?;
            prepared.merge = Some(Launch::new(backend, &instance::merge(), &params, grid)?);
        }
        Ok(prepared)
    }

    /// Fills the tiling parameters; returns the row tiles of all problems.
    fn cut(
        &mut self,
        shape: &Shape,
        variant: CudaAttentionVariant,
        a: &AttentionArgs<Spec, Spec>,
        many_blocks: usize,
        params: &mut AttentionParams,
    ) -> usize {
        let batch = a.sizes().batch;
        let (heads, rows) = shape.tile(variant);
        let head_tiles = shape.group.div_ceil(heads);
        let mut row_tiles = shape.q_rows.div_ceil(rows);
        let mut tile_rows = rows;
        if variant == CudaAttentionVariant::Media {
            let all = [row_tiles, shape.kv_heads, head_tiles].into_iter().fold(batch, usize::saturating_mul);
            let stretch = rows * (all / many_blocks).clamp(1, 4);
            row_tiles = shape.q_rows.div_ceil(stretch);
            tile_rows = stretch;
            params.stretch = stretch as u32;
            self.planned = Attention::operands(a).plan.is_some() && !shape.ragged_q;
            if self.planned {
                // One more per run, if each medium has one; with more, blocks take several items.
                let runs = shape.positions.div_ceil(shape.reach().max(1)).saturating_add(1);
                row_tiles = row_tiles.saturating_add(runs.min(shape.q_rows));
            }
        }
        params.tile_rows = rows as u32;
        params.tile_heads = heads as u32;
        params.row_tiles = row_tiles as u32;
        params.head_tiles = head_tiles as u32;
        params.panels = shape.head_dim.div_ceil(128).max(1) as u32;
        let chunk_keys = variant.chunk_keys().unwrap_or(0);
        params.chunk_keys = chunk_keys as u32;
        params.chunks = if chunk_keys == 0 { 1 } else { shape.reach().div_ceil(chunk_keys).max(1) as u32 };
        match shape.ragged_q {
            // Each problem may end with a tile that is not full.
            true => batch.saturating_add(shape.q_rows / tile_rows),
            false => batch.saturating_mul(row_tiles),
        }
    }

    /// # Safety
    /// As [`Implements::record`].
    unsafe fn record(
        &self,
        backend: &Cuda,
        recorder: &mut CudaRecorder<'_>,
        a: &AttentionArgs<Bound<CudaMemory>, Bound<CudaMemory>>,
        workspace: &CudaMemory,
        visited: Option<&Bound<CudaMemory>>,
    ) -> Result<()> {
        let mut operands = Attention::operands(a).map(|bound| bound.map(Operand::of));
        operands.visited = visited.map(Operand::of);
        operands.plan = operands.plan.filter(|_| self.planned);
        operands.states = self.merge.as_ref().map(|_| Operand::region(workspace, DType::F32, self.state_bytes / 4));
        let operands = operands.list();
        for launch in [&self.visible, &self.main, &self.merge].into_iter().flatten() {
            // SAFETY: passed on.
            unsafe { launch.record(backend, recorder, &operands) }?;
        }
        Ok(())
    }
}

impl Implements<Attention> for Cuda {
    type Prepared = Prepared;

    fn prepare(&self, op: &Attention, shapes: &AttentionArgs<Spec, Spec>) -> Result<Prepared> {
        Prepared::new(self, op, shapes, self.attention, MANY_BLOCKS)
    }

    fn workspace_bytes(prepared: &Prepared) -> usize {
        prepared.state_bytes
    }

    unsafe fn record(
        &self,
        prepared: &Prepared,
        recorder: &mut CudaRecorder<'_>,
        args: &<Attention as Operands>::Args<Bound<CudaMemory>, Bound<CudaMemory>>,
        workspace: &CudaMemory,
    ) -> Result<()> {
        // SAFETY: passed on.
        unsafe { prepared.record(self, recorder, args, workspace, None) }
    }
}

#[cfg(all(test, feature = "verify"))]
mod tests;
