//! `linear` as a matrix product (GEMM) with an epilogue: `shaders/linear.wgsl` or, for few rows,
//! `shaders/linear_few.wgsl`. One dispatch; one per part of a matrix that exceeds a binding.

use super::launch::{Launch, Operand, linear_grid, span};
use super::shader_text::{Binding, ShaderText, Text, lib};
use super::weight::{PreparedWeight, TILE_K, TILE_N, TileLayout};
use super::{Wgpu, WgpuMemory, WgpuRecorder};
use crate::backend::Implements;
use crate::backend::gpu::Kernels;
use crate::backend::gpu::linear::{LinearOperands, LinearParams, linear_params};
use crate::ops::Weight;
use crate::ops::{Activation, Linear, LinearArgs, Matrix, Operands, RowReduce, Source as From};
use crate::size::Size;
use crate::tensor::{Bound, Spec};
use crate::{DType, Error, Result};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum MatrixForm {
    View(DType),
    Pair(DType, DType),
    Tiles { dtype: DType, glu: bool },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Variant {
    /// `linear.wgsl`: rows per invocation, 1, 2 or 4. A workgroup has 16 times as many.
    Tiled { rows: usize },
    /// `linear_few.wgsl`: rows per workgroup.
    Few { rows: usize },
}

impl Variant {
    /// The kernel for a shape. `rows`: all rows, or with a reduction those of a batch entry.
    fn choose(rows: usize, matrix: MatrixForm, reduce: RowReduce) -> Self {
        let tiles = matches!(matrix, MatrixForm::Tiles { .. }) && reduce == RowReduce::None;
        match rows {
            // Bound by reading W once: no stage, no barrier.
            0..=1 if tiles => Variant::Few { rows: 1 },
            2..=4 if tiles => Variant::Few { rows: 4 },
            // One tile of rows: a smaller one computes fewer absent rows.
            0..=16 => Variant::Tiled { rows: 1 },
            // 4 x 4 results per invocation: two loads from workgroup memory for 16 products.
            _ => Variant::Tiled { rows: 4 },
        }
    }

    fn workgroup_rows(self) -> usize {
        match self {
            Variant::Tiled { rows } => TILE_K * rows,
            Variant::Few { rows } => rows,
        }
    }
}

#[derive(Clone, Copy)]
struct Instance {
    op: Linear,
    variant: Variant,
    x: DType,
    matrix: MatrixForm,
    bias: Option<DType>,
    residual: Option<DType>,
    in_place: bool,
    gate: Option<DType>,
    masked: bool,
    out: DType,
}

/// Bytes of a staged tile: a column of k is a row of vec4, and one vec4 more.
const TILE_BYTES: u32 = (TILE_K * (TILE_N / 4 + 1) * 16) as u32;

// What the shaders rely on: at most 4 TILE_K rows of x are staged like as many rows of W, and
// WebGPU's default limits hold.
const _: () = assert!(4 * TILE_K <= TILE_N && TILE_K.is_multiple_of(4));
const _: () = assert!(TILE_N * TILE_K / 4 <= 256 && 3 * TILE_BYTES <= 16 << 10);

impl Instance {
    fn source(self) -> Result<ShaderText> {
        let activation = match self.op.activation {
            Activation::None => "NONE",
            Activation::Gelu => "GELU",
            Activation::Relu => "RELU",
            Activation::SquaredRelu => "SQUARED_RELU",
            Activation::SwiGlu => "SWIGLU",
        };
        let reduce = match self.op.reduce {
            RowReduce::None => "KEEP",
            RowReduce::Max => "MAX",
            RowReduce::Mean => "MEAN",
        };
        let halves = 1 + u32::from(self.op.activation.is_glu());
        let source = match self.variant {
            Variant::Tiled { rows } => {
                let source = ShaderText::new(Linear::NAME, "linear", include_str!("../../../shaders/linear.wgsl"));
                source
                    .constant("TM", format_args!("{rows}u"))
                    .constant("REDUCE", reduce)
                    // An absent second tile still declares one vec4.
                    .workgroup_bytes(2 * TILE_BYTES + if halves == 2 { TILE_BYTES } else { 16 })
            }
            Variant::Few { rows } => {
                let source =
                    ShaderText::new(Linear::NAME, "linear_few", include_str!("../../../shaders/linear_few.wgsl"));
                source.constant("RM", format_args!("{rows}u")).workgroup_bytes((4 * TILE_N * TILE_K) as u32)
            }
        };
        let (weight, up) = self.weights();
        let operands = LinearOperands {
            x: Text::real(Some(self.x)),
            weight,
            up,
            bias: Text::real(self.bias),
            residual: Text::real(self.residual),
            gate: Text::real(self.gate),
            row_mask: Text::u32(self.masked),
            out: Text::write(self.out),
        };
        source
            .constant("ACTIVATION", activation)
            .constant("IN_PLACE", self.in_place)
            .constant("HALVES", format_args!("{halves}u"))
            .constant("TILE_N", format_args!("{TILE_N}u"))
            .constant("DEPTH", format_args!("{TILE_K}u"))
            .library(lib::LINEAR_PARAMS)
            .library(lib::GRID)
            .library(lib::LINEAR_TILE)
            .library(lib::MATH)
            .library(lib::EPILOGUE)
            .operands_of(&LinearOperands::NAMES, operands)
    }

    /// The matrix, or the first one of a pair, and the second.
    fn weights(self) -> (Text, Text) {
        let absent = Text::template(lib::STAGE_ABSENT, Binding::Absent);
        let view = |dtype| Text::real(Some(dtype)).and(lib::STAGE_VIEW);
        match self.matrix {
            MatrixForm::View(dtype) => (view(dtype), absent),
            MatrixForm::Pair(gate, up) => (view(gate), view(up)),
            MatrixForm::Tiles { dtype, glu } => {
                let tiles = match dtype {
                    DType::F16 => lib::PREPARED_F16,
                    DType::BF16 => lib::PREPARED_BF16,
                    _ => lib::PREPARED_F32,
                };
                let tiles = Text::template(tiles, Binding::Constant);
                let half = |n: u32| lib::STAGE_PREPARED.replace("HALF", &format!("{n}u"));
                match (self.variant, glu) {
                    // The kernel reads tiles itself.
                    (Variant::Few { .. }, _) => (tiles, Text::unnamed()),
                    // The second half lies behind the first in one binding.
                    (Variant::Tiled { .. }, true) => (tiles.and(half(0)), Text::unnamed().and(half(1))),
                    (Variant::Tiled { .. }, false) => (tiles.and(half(0)), absent),
                }
            }
        }
    }
}

/// A `linear`, planned: one launch per part of the matrix.
pub(crate) struct Prepared {
    parts: Vec<Part>,
    /// The layout, if the matrix is prepared.
    tiles: Option<TileLayout>,
}

struct Part {
    launch: Launch,
    /// First row of the matrix.
    first: usize,
}

impl Implements<Linear> for Wgpu {
    type Prepared = Prepared;

    fn prepare(&self, op: &Linear, shapes: &LinearArgs<Spec, Spec>) -> Result<Prepared> {
        let s = shapes.sizes();
        let operands = Linear::operands(shapes);
        let dtypes = operands.map(|spec| spec.map(Spec::dtype));
        let matrix = match &shapes.weight {
            Matrix::View(w) => MatrixForm::View(w.dtype()),
            Matrix::Pair(gate, up) => MatrixForm::Pair(gate.dtype(), up.dtype()),
            Matrix::Prepared(w) => MatrixForm::Tiles { dtype: w.dtype(), glu: w.is_glu() },
        };
        let tiles = match &shapes.weight {
            Matrix::Prepared(w) => Some(own(w)?.layout()),
            _ => None,
        };
        let total = s.batch.checked_mul(s.rows).filter(|&m| u32::try_from(m).is_ok());
        let total = total.ok_or_else(|| Error::argument(Linear::NAME, "x", "at most 2^32 - 1 rows", shapes.x))?;
        let walked = if op.reduce == RowReduce::None { total } else { s.rows };
        let variant = Variant::choose(walked, matrix, op.reduce);
        let source = Instance {
            op: *op,
            variant,
            x: shapes.x.dtype(),
            matrix,
            bias: dtypes.bias,
            residual: dtypes.residual,
            in_place: matches!(shapes.residual, Some(From::InPlace)),
            gate: dtypes.gate,
            masked: shapes.row_mask.is_some(),
            out: shapes.out.dtype(),
        }
        .source()?;
        if shapes.out.elements() == 0 {
            return Ok(Prepared { parts: Vec::new(), tiles });
        }
        let mut parts = Vec::new();
        for (first, count, bytes) in self.split(tiles.as_ref(), operands.weight, operands.up, s.n)? {
            let params = LinearParams {
                n_first: first as u32,
                n_count: count as u32,
                k_tiles: tiles.map_or(0, |t| t.k_tiles() as u32),
                ..linear_params(op, shapes)
            };
            let weight = Some(bytes[0]);
            let spans = LinearOperands { weight, up: operands.up.map(|_| bytes[1]), ..operands.map(span) };
            let row_tiles =
                if op.reduce == RowReduce::None { total.div_ceil(variant.workgroup_rows()) } else { s.batch };
            let tiles = Size::<u64>::of(count.div_ceil(TILE_N)) * row_tiles;
            let grid = linear_grid(self, Linear::NAME, tiles.get().unwrap_or(u64::MAX))?;
            parts.push(Part { launch: Launch::new(self, &source, &params, &spans.list(), grid)?, first });
        }
        Ok(Prepared { parts, tiles })
    }

    fn workspace_bytes(_: &Prepared) -> usize {
        0
    }

    unsafe fn record(
        &self,
        prepared: &Prepared,
        recorder: &mut WgpuRecorder<'_>,
        args: &<Linear as Operands>::Args<Bound<WgpuMemory>, Bound<WgpuMemory>>,
        _: &WgpuMemory,
    ) -> Result<()> {
        let weight = match &args.weight {
            Matrix::Prepared(weight) => Some(self.expect_weight(prepared, weight)?),
            _ => None,
        };
        let mut operands = Linear::operands(args).map(|bound| bound.map(Operand::of));
        for (i, part) in prepared.parts.iter().enumerate() {
            let rows = |w| rows_from(w, part.first);
            (operands.weight, operands.up) = match (&args.weight, weight) {
                (Matrix::View(w), _) => (Some(rows(w)), None),
                (Matrix::Pair(w, up), _) => (Some(rows(w)), Some(rows(up))),
                (Matrix::Prepared(_), weight) => (weight.and_then(|w| w.part(i)), None),
            };
            part.launch.record(self, recorder, &operands.list())?;
        }
        Ok(())
    }
}

fn rows_from(w: &Bound<WgpuMemory>, first: usize) -> Operand<'_> {
    Operand::of(w).skip(first * w.spec.stride(0))
}

/// The packed form of a weight, if it was prepared for this backend.
fn own(weight: &Weight) -> Result<&PreparedWeight> {
    weight
        .packed::<PreparedWeight>()
        .ok_or_else(|| Error::argument(Linear::NAME, "weight", "a matrix prepared for wgpu", format!("{weight:?}")))
}

impl Wgpu {
    fn expect_weight<'w>(&self, prepared: &Prepared, weight: &'w Weight) -> Result<&'w PreparedWeight> {
        let own = own(weight)?;
        if Some(own.layout()) == prepared.tiles {
            return Ok(own);
        }
        let expected = match &prepared.tiles {
            Some(t) => format!("a matrix of {} tiles of {}[{}, {}] as prepared", t.halves, t.dtype, t.n, t.k),
            None => "a view, as prepared".into(),
        };
        Err(Error::argument(Linear::NAME, "weight", expected, format!("{weight:?}")))
    }

    /// For each part that fits a binding: first row, rows, and bytes of the matrix and of its pair.
    fn split(
        &self,
        tiles: Option<&TileLayout>,
        view: Option<&Spec>,
        up: Option<&Spec>,
        n: usize,
    ) -> Result<Vec<(usize, usize, [u64; 2])>> {
        if let Some(tiles) = tiles {
            return Ok(tiles.chunks().map(|(first, count, bytes)| (first, count, [bytes as u64, 0])).collect());
        }
        let matrices: Vec<&Spec> = view.into_iter().chain(up).collect();
        let bytes = |w: &Spec, rows: usize| -> u64 {
            if w.dim(1) == 0 {
                return 0;
            }
            // Rows are rounded up to blocks, and may exceed the matrix.
            let elements = (Size::<u64>::of(rows - 1) * w.stride(0)) + w.dim(1);
            (elements * w.dtype().size()).get().unwrap_or(u64::MAX)
        };
        let limit = self.binding_limit();
        let fits = |rows: usize| matrices.iter().all(|w| bytes(w, rows) <= limit);
        let mut rows = n;
        if !fits(n) {
            // Halves the number of blocks of 64 rows until they fit. The launch refuses a block
            // that still exceeds a binding.
            let mut blocks = n.div_ceil(TILE_N);
            while blocks > 1 && !fits(blocks.saturating_mul(TILE_N)) {
                blocks = blocks.div_ceil(2);
            }
            rows = blocks.saturating_mul(TILE_N);
        }
        let part = |first: usize| {
            let count = rows.min(n - first);
            let of = |w: Option<&Spec>| w.map_or(0, |w| bytes(w, count));
            (first, count, [of(view), of(up)])
        };
        Ok((0..n).step_by(rows.max(1)).map(part).collect())
    }
}

/// Every shader of the op but for most mixtures of dtypes, which the accessors do not depend on.
#[cfg(test)]
pub(super) fn instances() -> Vec<ShaderText> {
    use super::tests::{REALS, optional};
    const VARIANTS: [Variant; 4] =
        [Variant::Tiled { rows: 1 }, Variant::Tiled { rows: 4 }, Variant::Few { rows: 1 }, Variant::Few { rows: 4 }];
    let mut all = Vec::new();
    for dtype in REALS {
        for activation in Activation::ALL {
            let glu = activation.is_glu();
            let views = if glu { MatrixForm::Pair(dtype, DType::F32) } else { MatrixForm::View(dtype) };
            for matrix in [views, MatrixForm::Tiles { dtype, glu }] {
                for reduce in [RowReduce::None, RowReduce::Max, RowReduce::Mean] {
                    for variant in VARIANTS {
                        let tiles = matches!(matrix, MatrixForm::Tiles { .. }) && reduce == RowReduce::None;
                        if matches!(variant, Variant::Few { .. }) && !tiles {
                            continue;
                        }
                        for side in optional(&REALS) {
                            for residual in optional(&[dtype]) {
                                for out in REALS {
                                    let instance = Instance {
                                        op: Linear { activation, reduce },
                                        variant,
                                        x: dtype,
                                        matrix,
                                        bias: side.filter(|_| !glu),
                                        residual,
                                        in_place: residual.is_none() && side.is_some(),
                                        gate: side,
                                        masked: side.is_some(),
                                        out,
                                    };
                                    all.push(instance.source().unwrap());
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    all
}
