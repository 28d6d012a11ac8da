//! `gated_residual`: `kernels/gated_residual.cu`, one launch.

use super::compile::{File, Source, kernel};
use super::launch::{Launch, Operand};
use super::{Cuda, CudaMemory, CudaRecorder, NAME};
use crate::backend::gpu::GatedResidualParams;
use crate::backend::{Implements, expect_reals};
use crate::ops::{GatedResidual, GatedResidualArgs, Operands, Source as From};
use crate::tensor::{Bound, Spec};
use crate::{Error, Result};

const COLUMNS: File = kernel!("lib/columns.cuh");
const THREADS: u32 = 128;
/// Rows of a thread.
const ROWS: usize = 4;

fn source() -> Source {
    const OPERANDS: &[&str] = &["x", "y", "gate", "row_mask", "out"];
    Source::new(GatedResidual::NAME, "gated_residual", kernel!("gated_residual.cu"), OPERANDS)
        .library(COLUMNS)
        .constant("ROWS", ROWS)
        .threads(THREADS)
}

/// A `gated_residual`, planned. None where there is nothing to do.
pub(crate) struct Prepared(Option<Launch>);

impl Implements<GatedResidual> for Cuda {
    type Prepared = Prepared;

    fn prepare(&self, _: &GatedResidual, shapes: &GatedResidualArgs<Spec, Spec>) -> Result<Prepared> {
        let out = &shapes.out;
        expect_reals::<GatedResidual>(NAME, shapes)?;
        let x = match &shapes.x {
            From::From(x) => Some(x),
            From::InPlace => None,
        };
        if out.elements() == 0 {
            return Ok(Prepared(None));
        }
        let mask = shapes.row_mask.as_ref();
        let [batch, rows, width] = [0, 1, 2].map(|d| out.dim(d));
        let words = width.div_ceil(8);
        let total = words as u64 * (batch * rows.div_ceil(ROWS)) as u64;
        let Ok(total_words) = u32::try_from(total) else {
            return Err(Error::argument(
                GatedResidual::NAME,
                "out",
                "at most 2^32 - 1 groups of 8 columns and 4 rows",
                out,
            ));
        };
        let stride = |spec: Option<&Spec>, d: usize| spec.map_or(0, |s| s.stride(d) as u32);
        let params = GatedResidualParams {
            words: words as u32,
            total_words,
            rows: rows as u32,
            width: width as u32,
            x_stride_b: stride(x, 0),
            x_stride_r: stride(x, 1),
            y_stride_b: stride(Some(&shapes.y), 0),
            y_stride_r: stride(Some(&shapes.y), 1),
            mask_stride_b: stride(mask, 0),
            mask_stride_r: stride(mask, 1),
            out_stride_b: stride(Some(out), 0),
            out_stride_r: stride(Some(out), 1),
            gate_step: u32::from(shapes.gate.dim(0) > 1),
            ..Default::default()
        };
        let grid = [total_words.div_ceil(THREADS), 1, 1];
        Ok(Prepared(Some(Launch::new(self, &source(), &params, grid)?)))
    }

    fn workspace_bytes(_: &Prepared) -> usize {
        0
    }

    unsafe fn enqueue(
        &self,
        prepared: &Prepared,
        recorder: &mut CudaRecorder<'_>,
        args: &<GatedResidual as Operands>::Args<Bound<CudaMemory>, Bound<CudaMemory>>,
        _: &CudaMemory,
    ) -> Result<()> {
        let Some(launch) = &prepared.0 else { return Ok(()) };
        let x = match &args.x {
            From::From(x) => Operand::of(x),
            From::InPlace => Operand::absent(),
        };
        let operands = [
            x,
            Operand::of(&args.y),
            Operand::of(&args.gate),
            Operand::maybe(args.row_mask.as_ref()),
            Operand::of(&args.out),
        ];
        // SAFETY: the caller's promise, for the operands in the kernel's order; every index lies within an operand's span, since columns,
        // rows and problems are bounded by `out`'s extents, which the check found in all of them.
        unsafe { launch.record(self, recorder, &operands) }
    }
}

/// Every kernel of the op.
pub(super) fn instances() -> Vec<Source> {
    vec![source()]
}
