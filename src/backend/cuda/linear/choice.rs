//! What a caller may name, and what the choice of a kernel depends on.

use crate::DType;
use crate::ops::RowReduce;

/// Names one of our kernels for the matrix products (GEMMs) that it serves, for tests and
/// profilers. Others keep to the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaLinear {
    /// What the table says.
    #[default]
    Auto,
    /// The kernel that serves everything.
    Any,
    /// Tensor cores, 64 x 64.
    Tile64,
    /// `Tile64` with copies seven steps ahead instead of three. The same bits.
    Tile64Deep,
    /// Tensor cores, 128 x 128.
    Tile128,
    /// Compute capability 9.0 (wgmma, TMA), 128 x 256, where x, W and result have 16 bits. Others
    /// keep to the table.
    Hopper,
    /// `Hopper` with 128 x 128: one warpgroup runs its epilogue while the other multiplies.
    HopperTurns,
}

impl CudaLinear {
    /// What `XATTN_CUDA_LINEAR` may say.
    pub(in crate::backend::cuda) const WORDS: &[(&str, CudaLinear)] = &[
        ("auto", CudaLinear::Auto),
        ("any", CudaLinear::Any),
        ("64", CudaLinear::Tile64),
        ("64-deep", CudaLinear::Tile64Deep),
        ("128", CudaLinear::Tile128),
        ("hopper", CudaLinear::Hopper),
        ("hopper-turns", CudaLinear::HopperTurns),
    ];

    pub(super) fn is_hopper(self) -> bool {
        matches!(self, CudaLinear::Hopper | CudaLinear::HopperTurns)
    }
}

/// What the choice depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gemm {
    pub x: DType,
    pub weight: DType,
    pub out: DType,
    /// All rows, or with a reduction those of a batch entry.
    pub rows: usize,
    /// Rows of the matrix, both of a pair's counted.
    pub columns: usize,
    pub reduce: RowReduce,
}
