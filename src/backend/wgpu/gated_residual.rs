//! `gated_residual`: `shaders/gated_residual.wgsl`, one dispatch.

use super::Wgpu;
use super::launch::{Launch, linear_grid, span};
use super::shader_text::{ShaderText, Text, lib};
use crate::backend::gpu::gated_residual::{GatedResidualOperands, GatedResidualParams, gated_residual_params};
use crate::backend::gpu::{Kernels, OneLaunch};
use crate::ops::{GatedResidual, GatedResidualArgs, Operands};
use crate::tensor::Spec;
use crate::{DType, Error, Result};

fn source(x: Option<DType>, y: DType, gate: DType, masked: bool, out: DType) -> Result<ShaderText> {
    let operands = GatedResidualOperands {
        x: Text::real(x),
        y: Text::real(Some(y)),
        gate: Text::real(Some(gate)),
        row_mask: Text::u32(masked),
        out: Text::write(out),
    };
    ShaderText::new(GatedResidual::NAME, "gated_residual", include_str!("../../../shaders/gated_residual.wgsl"))
        .library(lib::GRID)
        .library(lib::MATH)
        .operands_of(&GatedResidualOperands::NAMES, operands)
}

impl OneLaunch<GatedResidual> for Wgpu {
    fn plan(&self, _: &GatedResidual, shapes: &GatedResidualArgs<Spec, Spec>) -> Result<Option<Launch>> {
        let (operands, out) = (GatedResidual::operands(shapes), &shapes.out);
        let x = operands.x.map(Spec::dtype);
        let source = source(x, shapes.y.dtype(), shapes.gate.dtype(), shapes.row_mask.is_some(), out.dtype())?;
        if out.elements() == 0 {
            return Ok(None);
        }
        let [batch, rows, width] = [0, 1, 2].map(|d| out.dim(d));
        // A row that begins in the middle of a word takes one word more.
        let words = width / 2 + 1;
        let total = batch * rows * words;
        let Ok(total_words) = u32::try_from(total) else {
            return Err(Error::argument(GatedResidual::NAME, "out", "at most 2^32 - 1 words", out));
        };
        let params = GatedResidualParams { words: words as u32, total_words, ..gated_residual_params(shapes) };
        let grid = linear_grid(self, GatedResidual::NAME, total.div_ceil(256) as u64)?;
        Ok(Some(Launch::new(self, &source, &params, &operands.map(span).list(), grid)?))
    }
}

#[cfg(test)]
pub(super) fn instances() -> Vec<ShaderText> {
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
