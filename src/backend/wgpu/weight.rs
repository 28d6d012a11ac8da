//! Packing for `linear`: tiles in the order of the kernel, in buffers that fit a binding.

use super::launch::Operand;
use super::{NAME, Wgpu, WgpuMemory};
use crate::ops::{Linear, Operands};
use crate::size::Size;
use crate::tensor::HostTensor;
use crate::{DType, Error, Result, WeightSource};

/// Rows of a tile.
pub(super) const TILE_N: usize = 64;
/// Columns of a tile.
pub(super) const TILE_K: usize = 16;

/// A prepared matrix `[N, K]`, or a pair of them.
///
/// The tile of rows `64 b ..` and columns `16 t ..` holds `element[k][n]`. Tiles are ordered by b,
/// then t, then gate and up. Zeros fill the tiles beyond the ends of the matrix. Blocks b are
/// divided among as many buffers as the limit of a binding requires.
pub(crate) struct PreparedWeight {
    layout: TileLayout,
    chunks: Vec<WgpuMemory>,
}

/// The division of a matrix's tiles among buffers. Follows from the sizes and the device's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TileLayout {
    pub n: usize,
    pub k: usize,
    pub halves: usize,
    pub dtype: DType,
    /// Blocks of 64 rows in each buffer but the last.
    pub blocks_per_chunk: usize,
}

impl TileLayout {
    pub fn new(backend: &Wgpu, n: usize, k: usize, glu: bool, dtype: DType) -> Result<Self> {
        let unsupported = |what: String, available: String| {
            Err(Error::Unsupported { op: Linear::NAME, what, backend: NAME, available })
        };
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return unsupported(format!("weight of {dtype}"), "f32, f16, bf16".into());
        }
        let mut layout = TileLayout { n, k, halves: 1 + usize::from(glu), dtype, blocks_per_chunk: 1 };
        let padded = [layout.blocks(), layout.k_tiles(), layout.halves, TILE_N, TILE_K, dtype.size()];
        Size::<usize>::product(&padded).or_out_of_memory(NAME, "a weight")?;
        let limit = backend.limits.max_storage_buffer_binding_size.min(backend.limits.max_buffer_size);
        let block = layout.block_bytes() as u64;
        if block > limit {
            return unsupported(
                format!("weight with {k} columns of {dtype}"),
                format!("{TILE_N} rows of at most {limit} bytes"),
            );
        }
        layout.blocks_per_chunk = (limit / block.max(1)).min(layout.blocks() as u64).max(1) as usize;
        Ok(layout)
    }

    pub fn k_tiles(&self) -> usize {
        self.k.div_ceil(TILE_K)
    }

    fn blocks(&self) -> usize {
        self.n.div_ceil(TILE_N)
    }

    fn block_bytes(&self) -> usize {
        self.k_tiles() * self.halves * TILE_N * TILE_K * self.dtype.size()
    }

    /// First row, rows and bytes of each buffer.
    pub fn chunks(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        let rows = self.blocks_per_chunk * TILE_N;
        (0..self.n).step_by(rows).map(move |first| {
            let count = rows.min(self.n - first);
            (first, count, count.div_ceil(TILE_N) * self.block_bytes())
        })
    }
}

impl PreparedWeight {
    pub(super) fn pack(backend: &Wgpu, source: &WeightSource<'_>, dtype: DType) -> Result<Self> {
        let (n, k, glu) = source.dims()?;
        let layout = TileLayout::new(backend, n, k, glu, dtype)?;
        let gate = stack(&source.parts, dtype)?;
        let up = stack(&source.up, dtype)?;
        let mut chunks = Vec::new();
        for (first, count, bytes) in layout.chunks() {
            let mut tiles = vec![0u8; bytes];
            for (half, rows) in [&gate, &up].into_iter().take(layout.halves).enumerate() {
                for row in 0..count {
                    layout.place(&rows[(first + row) * k * dtype.size()..][..k * dtype.size()], row, half, &mut tiles);
                }
            }
            let memory = backend.allocate_region(bytes, "a weight")?;
            backend.write_region(&memory, &tiles)?;
            chunks.push(memory);
        }
        Ok(PreparedWeight { layout, chunks })
    }

    pub(super) fn layout(&self) -> TileLayout {
        self.layout
    }

    /// Part `i` as an operand of vec4 (f32) or vec2<u32> (16-bit) elements.
    pub(super) fn part(&self, i: usize) -> Option<Operand<'_>> {
        self.chunks.get(i).map(|chunk| Operand::region(chunk, 4 * self.layout.dtype.size()))
    }
}

impl TileLayout {
    /// Writes the elements of one row of a half to their places in the tiles of its chunk.
    fn place(&self, elements: &[u8], row: usize, half: usize, tiles: &mut [u8]) {
        let size = self.dtype.size();
        let block = row / TILE_N * self.k_tiles();
        for (k, element) in elements.chunks(size).enumerate() {
            let tile = (block + k / TILE_K) * self.halves + half;
            let at = (tile * TILE_K + k % TILE_K) * TILE_N + row % TILE_N;
            tiles[at * size..(at + 1) * size].copy_from_slice(element);
        }
    }
}

/// The rows of all parts, as bytes of `dtype`.
fn stack(parts: &[HostTensor<'_>], dtype: DType) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&part.to_dtype(dtype)?.bytes()?);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_k_major_and_pairs_alternate() {
        let layout = TileLayout { n: 70, k: 20, halves: 2, dtype: DType::F32, blocks_per_chunk: 2 };
        assert_eq!(layout.chunks().collect::<Vec<_>>(), [(0, 70, 2 * 2 * 2 * 4096)]);
        let mut tiles = vec![0u8; 2 * 2 * 2 * 4096];
        let row: Vec<f32> = (0..20).map(|k| k as f32 + 1.0).collect();
        layout.place(bytemuck::cast_slice(&row), 65, 1, &mut tiles);
        let values: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(&tiles);
        // Row 65 is row 1 of block 1; block 1 begins at tile pair 2, its upper half at tile 5;
        // column 17 is column 1 of the next pair.
        assert_eq!(values[5 * 1024 + 1], 1.0);
        assert_eq!(values[5 * 1024 + 15 * 64 + 1], 16.0);
        assert_eq!(values[7 * 1024 + 64 + 1], 18.0);
        assert_eq!(values.iter().filter(|&&v| v != 0.0).count(), 20);
    }

    #[test]
    fn chunks_cover_the_rows_once() {
        let layout = TileLayout { n: 200, k: 16, halves: 1, dtype: DType::BF16, blocks_per_chunk: 2 };
        assert_eq!(layout.chunks().collect::<Vec<_>>(), [(0, 128, 2 * 2048), (128, 72, 2 * 2048)]);
        let none = TileLayout { n: 0, ..layout };
        assert_eq!(none.chunks().count(), 0);
    }
}
