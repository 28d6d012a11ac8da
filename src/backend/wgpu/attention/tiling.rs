//! The tiling and the grid of each variant of `attention`.

use super::instance::Kernel;
use super::variant::{PAIRS, PANEL, Shape, WgpuAttentionVariant};
use crate::backend::gpu::attention::AttentionParams;

pub(super) struct Tiling {
    pub kernel: Kernel,
    tile_rows: usize,
    tile_heads: usize,
    /// Row tiles of a problem that has all rows.
    row_tiles: usize,
    head_tiles: usize,
    panels: usize,
    chunks: usize,
    chunk_keys: usize,
    kv_heads: usize,
    q_rows: usize,
    ragged_q: bool,
    batch: usize,
}

impl Tiling {
    pub fn new(shape: &Shape, variant: WgpuAttentionVariant, batch: usize) -> Self {
        let group = shape.group.max(1);
        let (kernel, tile_rows, tile_heads) = if variant.is_decode() {
            let heads = shape.decode_heads();
            (Kernel::Decode { heads: heads as u32 }, 1, heads)
        } else {
            let heads = group.min(PAIRS);
            let kernel = if variant == WgpuAttentionVariant::Media { Kernel::Media } else { Kernel::General };
            (kernel, (PAIRS / heads).min(shape.q_rows).max(1), heads)
        };
        Tiling {
            kernel,
            tile_rows,
            tile_heads,
            row_tiles: shape.q_rows.div_ceil(tile_rows),
            head_tiles: group.div_ceil(tile_heads),
            panels: shape.head_dim.div_ceil(PANEL),
            chunks: shape.chunks(variant),
            chunk_keys: variant.chunk_keys().unwrap_or(0),
            kv_heads: shape.kv_heads,
            q_rows: shape.q_rows,
            ragged_q: shape.ragged_q,
            batch,
        }
    }

    /// Fills in the parameters, for all problems.
    pub fn fill(&self, params: &mut AttentionParams) {
        params.problems = self.batch as u32;
        params.tile_rows = self.tile_rows as u32;
        params.tile_heads = self.tile_heads as u32;
        params.row_tiles = self.row_tiles as u32;
        params.head_tiles = self.head_tiles as u32;
        params.panels = self.panels as u32;
        params.chunks = self.chunks as u32;
        params.chunk_keys = self.chunk_keys as u32;
        params.turns = 1;
    }

    fn per_tile(&self) -> usize {
        self.kv_heads * self.head_tiles * self.panels * self.chunks
    }

    /// Workgroups for `problems` problems, or for all of them if ragged.
    pub fn workgroups(&self, problems: usize) -> u64 {
        let tiles = match (self.ragged_q, self.kernel) {
            (false, _) => problems * self.row_tiles,
            (true, Kernel::Decode { .. }) => self.q_rows,
            // A problem may end with a partial tile.
            (true, _) => self.q_rows / self.tile_rows + problems,
        };
        (tiles * self.per_tile()) as u64
    }

    /// How many tiles a workgroup takes in turn: ragged problems that overlap may have more tiles
    /// than the grid has workgroups.
    pub fn turns(&self, [x, y, _]: [u32; 3], problems: usize) -> u32 {
        if !self.ragged_q {
            return 1;
        }
        let grid = u64::from(x) * u64::from(y);
        let most = (problems as u64).saturating_mul((self.row_tiles * self.per_tile()) as u64);
        // Workgroups are counted in 32 bits.
        most.min(u64::from(u32::MAX)).div_ceil(grid.max(1)).clamp(1, (u64::from(u32::MAX) / grid.max(1)).max(1)) as u32
    }
}
