//! Which kernel of ours serves which matrix product (GEMM), and their texts.

use super::super::compile::{File, KernelText, kernel};
use super::choice::{CudaLinear, Gemm};
use crate::DType;
use crate::backend::gpu::linear::LinearOperands;
use crate::ops::{Linear, Operands, RowReduce};

const PARAMS: File = kernel!("lib/linear_params.cuh");
const COLUMNS: File = kernel!("lib/columns.cuh");
const EPILOGUE: File = kernel!("lib/epilogue.cuh");
const TILE: File = kernel!("lib/linear_tile.cuh");

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kernel {
    /// `linear_any.cu`.
    Any,
    /// `linear_few.cu`.
    Few(DType),
    /// `linear_f32.cu`.
    F32 { reduce: bool },
    /// `linear.cu`, whose copies are `stages` - 1 steps of k ahead.
    Tensor { dtype: DType, side: usize, stages: usize, block_sums: bool, reduce: bool },
}

/// Blocks that a large tile should make: about the SMs of a large device. Not the device's own
/// number, so that a shape means the same sums everywhere.
const FILLED: usize = 128;
/// Steps of k in shared memory.
const STAGES: usize = 4;
/// The same where few blocks run, each alone on its SM: a single block then has to keep all loads
/// of its SM in flight. 7 steps of 64 bytes from 128 rows are 56 KiB; four steps' 24 KiB are less
/// than an SM's share of what hides the latency of memory.
const DEEP: usize = 8;
/// Most rows of `linear_few.cu`.
const FEW: usize = 8;

impl Kernel {
    /// The table: the first row that fits.
    pub fn choose(p: &Gemm, named: CudaLinear) -> Self {
        // What those do not serve is the table's.
        let named = if named.is_hopper() { CudaLinear::Auto } else { named };
        let reduce = p.reduce != RowReduce::None;
        let large = p.rows.div_ceil(128).saturating_mul(p.columns.div_ceil(128)) >= FILLED;
        match p.x {
            // Tensor cores multiply two operands of one type; mixtures are not tuned.
            _ if p.x != p.weight || named == CudaLinear::Any => Kernel::Any,
            // Bound by reading W once: no tile with absent rows.
            _ if p.rows <= FEW && !reduce && named == CudaLinear::Auto => Kernel::Few(p.x),
            // Exact f32: fused multiply-adds, never TF32.
            DType::F32 => Kernel::F32 { reduce },
            DType::F16 | DType::BF16 => {
                let staged = |side, stages, block_sums| Kernel::Tensor { dtype: p.x, side, stages, block_sums, reduce };
                let tensor = |side, block_sums| staged(side, STAGES, block_sums);
                match named {
                    // One value per column: batch entries have few rows; the small tile fits.
                    _ if reduce => tensor(64, true),
                    // Too few blocks for the large tile; the small one has room to sum in blocks.
                    CudaLinear::Tile64 => tensor(64, true),
                    CudaLinear::Tile64Deep => staged(64, DEEP, true),
                    CudaLinear::Auto if !large => tensor(64, true),
                    // Tensor cores round sums towards zero: f32 results show it, 16-bit not.
                    _ => tensor(128, p.out == DType::F32),
                }
            }
            _ => Kernel::Any,
        }
    }

    /// Rows and columns of the result per block. A pair of matrices halves the columns.
    pub fn tile(self, pair: bool) -> (usize, usize) {
        let halves = 1 + usize::from(pair);
        match self {
            Kernel::Any => (16, 16),
            Kernel::Few(_) => (FEW, 8 / halves),
            Kernel::F32 { .. } => (128, 64 / halves),
            Kernel::Tensor { side, .. } => (side, side / halves),
        }
    }

    pub fn source(self) -> KernelText {
        let suffix = |reduce: bool| if reduce { "_reduce" } else { "" };
        match self {
            Kernel::Any => source("linear_any".into(), kernel!("linear_any.cu")).shared_bytes(3 * 16 * 33 * 4),
            Kernel::Few(dtype) => source(format!("linear_few_{dtype}"), kernel!("linear_few.cu"))
                .constant("ELEMENT", dtype)
                .min_blocks(2)
                .shared_bytes(8 * 32 * 4),
            Kernel::F32 { reduce } => {
                let tiles = Tiles { rows: 128, columns: 64, stages: 3 };
                let source = source(format!("linear_f32{}", suffix(reduce)), kernel!("linear_f32.cu"));
                tiles.constants(source, DType::F32).constant("BLOCK_SUMS", 1).constant("REDUCE", u32::from(reduce))
            }
            Kernel::Tensor { dtype, side, stages, block_sums, reduce } => {
                // Warps of 64 x 32 or 32 x 32.
                let (warp_m, threads, blocks) = match (side, block_sums, reduce) {
                    (64, _, false) if stages == DEEP => (32, 128, 3),
                    (64, _, false) => (32, 128, 4),
                    (64, _, true) => (32, 128, 3),
                    (_, true, _) => (64, 256, 1),
                    (_, false, _) => (64, 256, 2),
                };
                let tiles = Tiles { rows: side, columns: side, stages };
                let to_f32 = if side == 128 && block_sums { "_to_f32" } else { "" };
                let deep = if stages == DEEP { "_deep" } else { "" };
                let entry = format!("linear_{dtype}_{side}{deep}{to_f32}{}", suffix(reduce));
                let source = source(entry, kernel!("linear.cu"));
                tiles
                    .constants(source, dtype)
                    .constant("WARP_M", warp_m)
                    .constant("WARP_N", 32)
                    .constant("BLOCK_SUMS", u32::from(block_sums))
                    .constant("REDUCE", u32::from(reduce))
                    .threads(threads)
                    .min_blocks(blocks)
            }
        }
    }

    /// Every kernel that the table can name.
    pub fn all() -> Vec<Kernel> {
        let mut all = vec![Kernel::Any, Kernel::F32 { reduce: false }, Kernel::F32 { reduce: true }];
        all.extend([DType::F32, DType::F16, DType::BF16].map(Kernel::Few));
        for dtype in [DType::F16, DType::BF16] {
            for (side, stages, block_sums, reduce) in [
                (64, STAGES, true, false),
                (64, DEEP, true, false),
                (64, STAGES, true, true),
                (128, STAGES, false, false),
                (128, STAGES, true, false),
            ] {
                all.push(Kernel::Tensor { dtype, side, stages, block_sums, reduce });
            }
        }
        all
    }
}

pub(super) fn source(entry: String, body: File) -> KernelText {
    KernelText::new(Linear::NAME, entry, body, &LinearOperands::NAMES)
        .library(PARAMS)
        .library(COLUMNS)
        .library(EPILOGUE)
}

pub(super) const FACTORS_THREADS: u32 = 256;

/// alpha and beta for cuBLASLt.
pub(super) fn factors() -> KernelText {
    KernelText::new(Linear::NAME, "linear_factors", kernel!("linear_factors.cu"), &["gate", "factors"])
        .library(PARAMS)
        .threads(FACTORS_THREADS)
}

/// Neighbouring columns of a piece: `COLUMNS` of `lib/columns.cuh`.
pub(super) const PIECE: usize = 8;
/// Pieces per block of `linear_activation.cu`, and per thread.
pub(super) const ACTIVATION_PIECES: u32 = 1024;
const ACTIVATION_EACH: u32 = 4;

/// The activation of what cuBLASLt has written.
pub(super) fn activation() -> KernelText {
    KernelText::new(Linear::NAME, "linear_activation", kernel!("linear_activation.cu"), &["out"])
        .library(PARAMS)
        .library(COLUMNS)
        .library(EPILOGUE)
        .constant("EACH", ACTIVATION_EACH)
        .threads(ACTIVATION_PIECES / ACTIVATION_EACH)
}

/// The constants of `lib/linear_tile.cuh`.
struct Tiles {
    rows: usize,
    columns: usize,
    stages: usize,
}

impl Tiles {
    fn constants(self, source: KernelText, dtype: DType) -> KernelText {
        // A step is 64 bytes of each row. Then the sums lie there, f32 rows with a gap of eight.
        let pipeline = self.stages * (self.rows + self.columns) * 64;
        let sums = self.rows * (self.columns + 8) * 4;
        source
            .library(TILE)
            .constant("ELEMENT", dtype)
            .constant("TILE_M", self.rows)
            .constant("TILE_N", self.columns)
            .constant("STAGES", self.stages)
            .shared_bytes(pipeline.max(sums) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(dtype: DType, rows: usize, columns: usize) -> Gemm {
        Gemm { x: dtype, weight: dtype, out: dtype, rows, columns, reduce: RowReduce::None }
    }

    fn entry(p: Gemm) -> String {
        Kernel::choose(&p, CudaLinear::Auto).source().entry().to_string()
    }

    #[test]
    fn the_table() {
        let bf16 = DType::BF16;
        let base = product(bf16, 256, 1024);
        let mixed = Gemm { weight: DType::F32, ..base };
        let max = Gemm { reduce: RowReduce::Max, ..base };
        let rows: &[(Gemm, &str)] = &[
            (mixed, "linear_any"),
            (product(bf16, 1, 4096), "linear_few_bf16"),
            (product(DType::F16, 8, 4096), "linear_few_f16"),
            (product(DType::F32, 8, 64), "linear_few_f32"),
            (product(DType::F32, 9, 64), "linear_f32"),
            (Gemm { rows: 4, ..max }, "linear_bf16_64_reduce"),
            (Gemm { x: DType::F32, weight: DType::F32, ..max }, "linear_f32_reduce"),
            (product(bf16, 9, 4096), "linear_bf16_64"),
            // 2 x 63 blocks of 128 x 128, then 2 x 64.
            (product(bf16, 256, 128 * 63), "linear_bf16_64"),
            (product(bf16, 256, 128 * 64), "linear_bf16_128"),
            (product(DType::F16, 16384, 4096), "linear_f16_128"),
            (Gemm { out: DType::F32, ..product(bf16, 16384, 4096) }, "linear_bf16_128_to_f32"),
            (Gemm { out: DType::F32, ..base }, "linear_bf16_64"),
        ];
        for (p, name) in rows {
            assert_eq!(entry(*p), *name, "{p:?}");
        }
    }

    #[test]
    fn a_kernel_can_be_named_where_it_can_serve() {
        let named = |p: &Gemm, named| Kernel::choose(p, named).source().entry().to_string();
        let few = product(DType::BF16, 3, 33);
        assert_eq!(named(&few, CudaLinear::Any), "linear_any");
        assert_eq!(named(&few, CudaLinear::Tile64), "linear_bf16_64");
        assert_eq!(named(&few, CudaLinear::Tile64Deep), "linear_bf16_64_deep");
        assert_eq!(named(&few, CudaLinear::Tile128), "linear_bf16_128");
        assert_eq!(named(&Gemm { out: DType::F32, ..few }, CudaLinear::Tile128), "linear_bf16_128_to_f32");
        assert_eq!(named(&Gemm { reduce: RowReduce::Mean, ..few }, CudaLinear::Tile128), "linear_bf16_64_reduce");
        assert_eq!(named(&product(DType::F32, 3, 33), CudaLinear::Tile128), "linear_f32");
        // Beside a kernel of compute capability 9.0 the table's is prepared.
        assert_eq!(named(&few, CudaLinear::Hopper), "linear_few_bf16");
        assert_eq!(named(&product(DType::F16, 16384, 4096), CudaLinear::HopperTurns), "linear_f16_128");
    }

    #[test]
    fn every_choice_is_an_instance() {
        let entries: Vec<String> = Kernel::all().iter().map(|k| k.source().entry().to_string()).collect();
        let mut unique = entries.clone();
        unique.sort();
        unique.dedup();
        assert_eq!((entries.len(), unique.len()), (16, 16));
        let reals = [DType::F32, DType::F16, DType::BF16];
        for (x, out) in reals.into_iter().flat_map(|x| reals.map(|out| (x, out))) {
            for (rows, reduce) in
                [(1, RowReduce::None), (64, RowReduce::Max), (99, RowReduce::None), (9999, RowReduce::None)]
            {
                for &(_, named) in CudaLinear::WORDS {
                    let p = Gemm { x, weight: x, out, rows, columns: 4096, reduce };
                    let chosen = Kernel::choose(&p, named);
                    assert!(Kernel::all().contains(&chosen), "{p:?} {named:?}: {chosen:?}");
                }
            }
        }
    }
}
