//! `gated_residual`: `shaders/gated_residual.wgsl`, one dispatch.

use super::launch::{Launch, Operand, linear_grid, span};
use super::source::{Absent, Source, lib};
use super::{Wgpu, WgpuMemory, WgpuRecorder};
use crate::backend::Implements;
use crate::backend::gpu::GatedResidualParams;
use crate::ops::{GatedResidual, GatedResidualArgs, Operands, Source as From};
use crate::tensor::{Bound, Spec};
use crate::{DType, Error, Result};

fn source(x: Option<DType>, y: DType, gate: DType, masked: bool, out: DType) -> Result<Source> {
    Source::new(GatedResidual::NAME, "gated_residual", include_str!("../../../shaders/gated_residual.wgsl"))
        .library(lib::GRID)
        .library(lib::MATH)
        .read("x", x, Absent::Real)?
        .read("y", Some(y), Absent::Real)?
        .read("gate", Some(gate), Absent::Real)?
        .read("row_mask", masked.then_some(DType::U32), Absent::U32)?
        .write("out", out)
}

/// A `gated_residual`, planned. None where there is nothing to do.
pub(crate) struct Prepared(Option<Launch>);

impl Implements<GatedResidual> for Wgpu {
    type Prepared = Prepared;

    fn prepare(&self, _: &GatedResidual, shapes: &GatedResidualArgs<Spec, Spec>) -> Result<Prepared> {
        let out = &shapes.out;
        let x = match &shapes.x {
            From::From(x) => Some(x),
            From::InPlace => None,
        };
        let mask = shapes.row_mask.as_ref();
        let source = source(x.map(Spec::dtype), shapes.y.dtype(), shapes.gate.dtype(), mask.is_some(), out.dtype())?;
        if out.elements() == 0 {
            return Ok(Prepared(None));
        }
        let [batch, rows, width] = [0, 1, 2].map(|d| out.dim(d));
        // A row that begins in the middle of a word takes one word more.
        let words = width / 2 + 1;
        let total = batch * rows * words;
        if u32::try_from(total).is_err() {
            return Err(Error::argument(GatedResidual::NAME, "out", "at most 2^32 - 1 words", out));
        }
        let stride = |spec: Option<&Spec>, d: usize| spec.map_or(0, |s| s.stride(d) as u32);
        let params = GatedResidualParams {
            words: words as u32,
            total_words: total as u32,
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
        let spans = [x.and_then(span), span(&shapes.y), span(&shapes.gate), mask.and_then(span), span(out)];
        let grid = linear_grid(self, GatedResidual::NAME, total.div_ceil(256) as u64)?;
        Ok(Prepared(Some(Launch::new(self, &source, &params, &spans, grid)?)))
    }

    fn workspace_bytes(_: &Prepared) -> usize {
        0
    }

    unsafe fn enqueue(
        &self,
        prepared: &Prepared,
        recorder: &mut WgpuRecorder<'_>,
        args: &<GatedResidual as Operands>::Args<Bound<WgpuMemory>, Bound<WgpuMemory>>,
        _: &WgpuMemory,
    ) -> Result<()> {
        let Some(launch) = &prepared.0 else { return Ok(()) };
        let x = match &args.x {
            From::From(x) => Some(Operand::of(x)),
            From::InPlace => None,
        };
        let operands = [
            x,
            Some(Operand::of(&args.y)),
            Some(Operand::of(&args.gate)),
            args.row_mask.as_ref().map(Operand::of),
            Some(Operand::of(&args.out)),
        ];
        launch.record(self, recorder, &operands)
    }
}

/// Every shader of the op.
#[cfg(test)]
pub(super) fn instances() -> Vec<Source> {
    use super::tests::{REALS, optional};
    let mut all = Vec::new();
    for out in REALS {
        for x in optional(&REALS) {
            for y in REALS {
                for gate in REALS {
                    for masked in [false, true] {
                        all.push(source(x, y, gate, masked, out).unwrap());
                    }
                }
            }
        }
    }
    all
}
