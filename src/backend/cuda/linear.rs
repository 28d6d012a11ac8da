//! `linear`: one launch of the kernel that [`Kernel::choose`] names.

use super::launch::{Launch, Operand};
use super::reals::expect_reals;
use super::source::{File, Source, kernel};
use super::weight::{PreparedWeight, RowLayout};
use super::{Cuda, CudaMemory, CudaRecorder};
use crate::backend::gpu::{linear_params, residual_of};
use crate::backend::{Backend, Implements, Weight};
use crate::ops::{Linear, LinearArgs, Matrix, Operands, RowReduce, Source as From};
use crate::tensor::{Bound, Spec};
use crate::{Error, Result};

const OPERANDS: &[&str] = &["x", "weight", "up", "bias", "residual", "gate", "row_mask", "out"];
const PARAMS: File = kernel!("lib/linear_params.cuh");
const COLUMNS: File = kernel!("lib/columns.cuh");
const EPILOGUE: File = kernel!("lib/epilogue.cuh");

/// Which kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kernel {
    /// `linear_any.cu`.
    Any,
}

impl Kernel {
    /// Rows and columns of the result that a block makes.
    fn tile(self) -> (usize, usize) {
        match self {
            Kernel::Any => (16, 16),
        }
    }

    fn source(self) -> Source {
        let source = |entry: &'static str, body: File| {
            Source::new(Linear::NAME, entry, body, OPERANDS).library(PARAMS).library(COLUMNS).library(EPILOGUE)
        };
        match self {
            Kernel::Any => source("linear_any", kernel!("linear_any.cu")).shared_bytes(3 * 16 * 33 * 4),
        }
    }
}

/// A `linear`, planned. Without a launch where there is nothing to write.
pub(crate) struct Prepared {
    launch: Option<Launch>,
    /// Of a prepared matrix.
    rows: Option<RowLayout>,
}

impl Implements<Linear> for Cuda {
    type Prepared = Prepared;

    fn prepare(&self, op: &Linear, shapes: &LinearArgs<Spec, Spec>) -> Result<Prepared> {
        let (view, up, rows) = match &shapes.weight {
            Matrix::View(w) => (Some(w), None, None),
            Matrix::Pair(gate, up) => (Some(gate), Some(up), None),
            Matrix::Prepared(w) => (None, None, Some(own(w)?.layout())),
        };
        expect_reals(
            Linear::NAME,
            &[
                ("x", Some(&shapes.x)),
                ("weight", view),
                ("weight_up", up),
                ("bias", shapes.bias.as_ref()),
                ("residual", residual_of(shapes)),
                ("gate", shapes.gate.as_ref()),
                ("out", Some(&shapes.out)),
            ],
        )?;
        let s = shapes.sizes();
        let total = s.batch.checked_mul(s.rows).filter(|&m| u32::try_from(m).is_ok());
        let total = total.ok_or_else(|| Error::argument(Linear::NAME, "x", "at most 2^32 - 1 rows", shapes.x))?;
        if shapes.out.elements() == 0 {
            return Ok(Prepared { launch: None, rows });
        }
        let kernel = Kernel::Any;
        let mut params = linear_params(op, shapes);
        if let Some(rows) = &rows {
            (params.weight_stride, params.up_stride) = (rows.stride() as u32, rows.stride() as u32);
        }
        if let Some(From::InPlace) = shapes.residual {
            (params.residual_stride_b, params.residual_stride_r) = (params.out_stride_b, params.out_stride_r);
        }
        let (tile_rows, tile_columns) = kernel.tile();
        let row_tiles = if op.reduce == RowReduce::None { total.div_ceil(tile_rows) } else { s.batch };
        let tiles = row_tiles.checked_mul(s.n.div_ceil(tile_columns)).and_then(|n| u32::try_from(n).ok());
        let grid = [tiles.unwrap_or(u32::MAX), 1, 1];
        Ok(Prepared { launch: Some(Launch::new(self, &kernel.source(), &params, grid)?), rows })
    }

    fn workspace_bytes(_: &Prepared) -> usize {
        0
    }

    unsafe fn enqueue(
        &self,
        prepared: &Prepared,
        recorder: &mut CudaRecorder<'_>,
        args: &<Linear as Operands>::Args<Bound<CudaMemory>, Bound<CudaMemory>>,
        _: &CudaMemory,
    ) -> Result<()> {
        let (weight, up) = match &args.weight {
            Matrix::View(w) => (Operand::of(w), Operand::absent()),
            Matrix::Pair(gate, up) => (Operand::of(gate), Operand::of(up)),
            Matrix::Prepared(w) => {
                let own = expect_weight(prepared, w)?;
                let layout = own.layout();
                let all = Operand::region(&own.memory(), layout.dtype);
                (all, if layout.halves == 2 { all.skip(layout.half()) } else { Operand::absent() })
            }
        };
        let Some(launch) = &prepared.launch else { return Ok(()) };
        let residual = match &args.residual {
            None => Operand::absent(),
            Some(From::From(r)) => Operand::of(r),
            Some(From::InPlace) => Operand::of(&args.out),
        };
        let operands = [
            Operand::of(&args.x),
            weight,
            up,
            Operand::maybe(args.bias.as_ref()),
            residual,
            Operand::maybe(args.gate.as_ref()),
            Operand::maybe(args.row_mask.as_ref()),
            Operand::of(&args.out),
        ];
        // SAFETY: the caller's promise, for the operands in the kernel's order; every index lies within an operand's span, since columns,
        // rows and k are bounded by the extents that the check found in all of them.
        unsafe { launch.record(self, recorder, &operands) }
    }
}

/// The rows of a weight, if it was prepared for this backend.
fn own(weight: &Weight) -> Result<&PreparedWeight> {
    Cuda::unwrap_weight(weight)
        .ok_or_else(|| Error::argument(Linear::NAME, "weight", "a matrix prepared for cuda", format!("{weight:?}")))
}

fn expect_weight<'w>(prepared: &Prepared, weight: &'w Weight) -> Result<&'w PreparedWeight> {
    let own = own(weight)?;
    if Some(own.layout()) == prepared.rows {
        return Ok(own);
    }
    let expected = match &prepared.rows {
        Some(r) => format!(
            "{} of {}[{}, {}] as prepared",
            if r.halves == 2 { "a pair" } else { "a matrix" },
            r.dtype,
            r.n,
            r.k
        ),
        None => "a view, as prepared".into(),
    };
    Err(Error::argument(Linear::NAME, "weight", expected, format!("{weight:?}")))
}

/// Every kernel of the op.
pub(super) fn instances() -> Vec<Source> {
    vec![Kernel::Any.source()]
}
