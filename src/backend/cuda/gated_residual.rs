//! `gated_residual`: `kernels/gated_residual.cu`, one launch.

use super::compile::{File, KernelText, kernel};
use super::launch::Launch;
use super::{Cuda, NAME};
use crate::backend::expect_reals;
use crate::backend::gpu::OneLaunch;
use crate::backend::gpu::gated_residual::{GatedResidualOperands, GatedResidualParams, gated_residual_params};
use crate::ops::{GatedResidual, GatedResidualArgs, Operands};
use crate::tensor::Spec;
use crate::{Error, Result};

const COLUMNS: File = kernel!("lib/columns.cuh");
const THREADS: u32 = 128;
/// Rows of a thread.
const ROWS: usize = 4;

fn source() -> KernelText {
    let operands = &GatedResidualOperands::NAMES;
    KernelText::new(GatedResidual::NAME, "gated_residual", kernel!("gated_residual.cu"), operands)
        .library(COLUMNS)
        .constant("ROWS", ROWS)
        .threads(THREADS)
}

/// Every index lies within an operand's span: the extents of `out`, which the check found in all
/// operands, bound columns, rows and problems.
impl OneLaunch<GatedResidual> for Cuda {
    fn plan(&self, _: &GatedResidual, shapes: &GatedResidualArgs<Spec, Spec>) -> Result<Option<Launch>> {
        let out = &shapes.out;
        expect_reals::<GatedResidual>(NAME, shapes)?;
        if out.elements() == 0 {
            return Ok(None);
        }
        let [batch, rows, width] = [0, 1, 2].map(|d| out.dim(d));
        let words = width.div_ceil(8);
        let total = words as u64 * (batch * rows.div_ceil(ROWS)) as u64;
        let Ok(total_words) = u32::try_from(total) else {
            let most = "at most 2^32 - 1 groups of 8 columns and 4 rows";
            return Err(Error::argument(GatedResidual::NAME, "out", most, out));
        };
        let params = GatedResidualParams { words: words as u32, total_words, ..gated_residual_params(shapes) };
        let grid = [total_words.div_ceil(THREADS), 1, 1];
        Ok(Some(Launch::new(self, &source(), &params, grid)?))
    }
}

pub(super) fn instances() -> Vec<KernelText> {
    vec![source()]
}
