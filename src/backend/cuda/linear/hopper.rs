//! `linear_hopper.cu`: the GEMMs that it serves, its tiles and tensor maps. Runs where a caller
//! names it ([`CudaLinear::Hopper`]).

use super::super::compile::{KernelText, kernel};
use super::super::launch::{Launch, Operand};
use super::super::runtime::tensor_map::{self, MatrixMap, TensorMap};
use super::super::{Cuda, NAME};
use super::choice::{CudaLinear, Gemm};
use super::kernel;
use crate::backend::gpu::linear::{LinearOperands, LinearParams};
use crate::ops::{Linear, Operands, RowReduce};
use crate::{DType, Error, Result};

/// Rows of a tile.
const ROWS: usize = 128;

/// How the two warpgroups that multiply share the work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HopperTiles {
    /// Half of the rows of a tile of 128 x 256 each.
    Shared,
    /// Tiles of 128 x 128, taken in turn.
    Turns,
}

impl HopperTiles {
    pub fn named(linear: CudaLinear) -> Option<Self> {
        match linear {
            CudaLinear::Hopper => Some(HopperTiles::Shared),
            CudaLinear::HopperTurns => Some(HopperTiles::Turns),
            _ => None,
        }
    }

    const fn columns(self) -> usize {
        match self {
            HopperTiles::Shared => 256,
            HopperTiles::Turns => 128,
        }
    }

    const fn stages(self) -> usize {
        match self {
            HopperTiles::Shared => 4,
            HopperTiles::Turns => 6,
        }
    }

    pub fn source(self, dtype: DType) -> KernelText {
        let (name, turns) = match self {
            HopperTiles::Shared => ("hopper", 0),
            HopperTiles::Turns => ("hopper_turns", 1),
        };
        // Per stage 128 bytes of each row, and two barriers; two for turns.
        let bytes = self.stages() * ((ROWS + self.columns()) * 128 + 16) + 16;
        kernel::source(format!("linear_{name}_{dtype}"), kernel!("linear_hopper.cu"))
            .hopper()
            .constant("ELEMENT", dtype)
            .constant("TILE_M", ROWS)
            .constant("TILE_N", self.columns())
            .constant("STAGES", self.stages())
            .constant("TURNS", turns)
            .threads(384)
            .shared_bytes(bytes as u32)
    }
}

/// Tensor maps of a GEMM's operands, without their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Maps {
    x: MatrixMap,
    weight: MatrixMap,
    /// The second matrix of a pair, which lies as the first.
    up: Option<MatrixMap>,
}

impl Maps {
    /// The maps of a GEMM's operands, or why this kernel does not serve it.
    pub fn of(p: &Gemm, params: &LinearParams, pair: bool, tiles: HopperTiles) -> Result<Self, &'static str> {
        let sixteen = |dtype| matches!(dtype, DType::F16 | DType::BF16);
        if p.x != p.weight || !sixteen(p.x) {
            return Err("x and W have one 16-bit type");
        }
        if !sixteen(p.out) {
            return Err("16-bit results: there are no registers to sum k in blocks");
        }
        if p.reduce != RowReduce::None {
            return Err("no reduction over rows");
        }
        if params.k == 0 {
            return Err("k of 1 or more");
        }
        // The rows of all batch entries are one axis. A single row may have any stride.
        let (total, rows, k) = (params.total_rows as usize, params.rows, params.k as usize);
        let single = k.next_multiple_of(8);
        let batch = params.total_rows / rows;
        let x_stride = match (rows, batch) {
            (1, 1) => single,
            (1, _) => params.x_stride_b as usize,
            (_, 1) => params.x_stride_r as usize,
            _ if u64::from(params.x_stride_b) == u64::from(rows) * u64::from(params.x_stride_r) => {
                params.x_stride_r as usize
            }
            _ => return Err("rows of x whose distance is the same across batch entries"),
        };
        let map = |rows, stride: usize, box_rows: usize| {
            let stride = if rows == 1 { single } else { stride };
            MatrixMap { dtype: p.x, rows, columns: k, row_bytes: 2 * stride, box_rows: box_rows as u32 }
        };
        let n = params.n_count as usize;
        // Half of a tile's columns at a time: both halves of a pair serve the same columns of y.
        let weight = |stride: u32| map(n, stride as usize, tiles.columns() / 2);
        let maps = Maps {
            x: map(total, x_stride, ROWS),
            weight: weight(params.weight_stride),
            up: pair.then(|| weight(params.up_stride)),
        };
        let all_fit = [Some(&maps.x), Some(&maps.weight), maps.up.as_ref()].into_iter().flatten().all(MatrixMap::fits);
        if all_fit { Ok(maps) } else { Err("rows of x and W on multiples of 16 bytes that do not overlap") }
    }

    /// With addresses: x, W, and up or W again.
    fn at(&self, x: u64, weight: u64, up: u64) -> Result<[TensorMap; 3], String> {
        let weight_map = self.weight.at(weight)?;
        Ok([self.x.at(x)?, weight_map, self.up.map_or(Ok(weight_map), |map| map.at(up))?])
    }
}

/// A GEMM by this kernel, planned.
pub(super) struct HopperGemm {
    pub launch: Launch,
    maps: Maps,
}

impl HopperGemm {
    /// Where a caller named the kernel and it serves the GEMM. [`Error::Unsupported`] where the
    /// device or the driver lacks what it needs.
    pub fn new(backend: &Cuda, p: &Gemm, params: &LinearParams, pair: bool) -> Result<Option<Self>> {
        let Some(tiles) = HopperTiles::named(backend.linear) else { return Ok(None) };
        let Ok(maps) = Maps::of(p, params, pair, tiles) else { return Ok(None) };
        let (total, n) = (params.total_rows as usize, params.n_count as usize);
        let columns = tiles.columns() / (1 + usize::from(pair));
        let count = total.div_ceil(ROWS).checked_mul(n.div_ceil(columns)).and_then(|n| u32::try_from(n).ok());
        // Persistent blocks: which block computes a tile changes no result.
        let grid = [count.unwrap_or(u32::MAX).min(backend.limits.multiprocessors.max(1)), 1, 1];
        let launch = Launch::new(backend, &tiles.source(p.x), params, grid)?;
        if count.is_none() {
            return Err(Error::argument(Linear::NAME, "shape", "at most 2^32 - 1 tiles", format!("{total} x {n}")));
        }
        if !tensor_map::available() {
            return Err(Error::Unsupported {
                op: Linear::NAME,
                what: "tensor maps".into(),
                backend: NAME,
                available: "drivers for CUDA 12.0 and later make them".into(),
            });
        }
        Ok(Some(HopperGemm { launch, maps }))
    }

    /// The maps of x, W and up, the first operands. None where an address is not 16-byte aligned.
    pub fn maps(&self, operands: &LinearOperands<Option<Operand>>) -> Result<Option<[TensorMap; 3]>> {
        let LinearOperands { x, weight, up, .. } = operands.map(|o| o.map_or(0, |o| o.address()));
        if ![x, weight, up].iter().all(|at| at.is_multiple_of(tensor_map::ALIGNMENT)) {
            return Ok(None);
        }
        let maps = self.maps.at(x, weight, up);
        maps.map(Some).map_err(|said| Error::argument(Linear::NAME, "x, weight", "what tensor maps can describe", said))
    }
}

pub(super) fn instances() -> Vec<KernelText> {
    let types = [DType::F16, DType::BF16];
    [HopperTiles::Shared, HopperTiles::Turns]
        .into_iter()
        .flat_map(|tiles| types.map(|dtype| tiles.source(dtype)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMS: LinearParams = LinearParams {
        total_rows: 80,
        rows: 40,
        n_count: 72,
        k: 96,
        x_stride_b: 40 * 96,
        x_stride_r: 96,
        weight_stride: 96,
        offsets: [0; 8],
        n_first: 0,
        k_tiles: 0,
        up_stride: 0,
        residual_stride_b: 0,
        residual_stride_r: 0,
        mask_stride_b: 0,
        mask_stride_r: 0,
        out_stride_b: 0,
        out_stride_r: 0,
        gate_step: 0,
        activation: 0,
        reduce: 0,
    };

    fn product(dtype: DType) -> Gemm {
        Gemm { x: dtype, weight: dtype, out: dtype, rows: 80, columns: 72, reduce: RowReduce::None }
    }

    fn of(p: &Gemm, params: &LinearParams) -> Result<Maps, &'static str> {
        Maps::of(p, params, false, HopperTiles::Shared)
    }

    #[test]
    fn what_it_serves_and_why_not() {
        let bf16 = product(DType::BF16);
        let maps = of(&bf16, &PARAMS).unwrap();
        let x = MatrixMap { dtype: DType::BF16, rows: 80, columns: 96, row_bytes: 192, box_rows: 128 };
        assert_eq!((maps.x, maps.weight, maps.up), (x, MatrixMap { rows: 72, ..x }, None));
        let refused = [
            (Gemm { weight: DType::F16, ..bf16 }, PARAMS, "x and W have one 16-bit type"),
            (product(DType::F32), PARAMS, "x and W have one 16-bit type"),
            (Gemm { out: DType::F32, ..bf16 }, PARAMS, "16-bit results: there are no registers to sum k in blocks"),
            (Gemm { reduce: RowReduce::Max, ..bf16 }, PARAMS, "no reduction over rows"),
            (bf16, LinearParams { k: 0, ..PARAMS }, "k of 1 or more"),
            (
                bf16,
                LinearParams { x_stride_b: 40 * 96 + 8, ..PARAMS },
                "rows of x whose distance is the same across batch entries",
            ),
            (
                bf16,
                LinearParams { weight_stride: 100, ..PARAMS },
                "rows of x and W on multiples of 16 bytes that do not overlap",
            ),
            (
                bf16,
                LinearParams { x_stride_b: 40 * 88, x_stride_r: 88, ..PARAMS },
                "rows of x and W on multiples of 16 bytes that do not overlap",
            ),
        ];
        for (p, params, why) in refused {
            assert_eq!(of(&p, &params), Err(why), "{p:?} {params:?}");
        }
    }

    #[test]
    fn rows_that_lie_apart_are_one_axis_where_they_can_be() {
        let bf16 = product(DType::BF16);
        let bytes = |params: LinearParams| of(&bf16, &params).map(|maps| maps.x.row_bytes);
        assert_eq!(bytes(LinearParams { x_stride_b: 40 * 128, x_stride_r: 128, ..PARAMS }), Ok(256));
        // One row of each batch entry: their distance is the entries'.
        assert_eq!(bytes(LinearParams { rows: 1, x_stride_b: 104, x_stride_r: 3, ..PARAMS }), Ok(208));
        assert_eq!(bytes(LinearParams { rows: 80, x_stride_b: 3, ..PARAMS }), Ok(192));
        // A single row of an odd k.
        let single = LinearParams { total_rows: 1, rows: 1, k: 97, n_count: 1, x_stride_b: 1, x_stride_r: 1, ..PARAMS };
        assert_eq!(bytes(single), Ok(208));
    }

    #[test]
    fn instances_are_named_after_their_tiles_and_serve_hopper_alone() {
        let all = instances();
        let entries: Vec<&str> = all.iter().map(KernelText::entry).collect();
        let names = ["linear_hopper_f16", "linear_hopper_bf16", "linear_hopper_turns_f16", "linear_hopper_turns_bf16"];
        assert_eq!(entries, names);
        for source in &all {
            assert_eq!(source.only().map(|arch| arch.to_string()).as_deref(), Some("sm_90a"));
            // A block of Hopper has at most 227 KiB.
            assert!(source.shared() <= 232_448, "{}: {}", source.entry(), source.shared());
        }
    }
}
