//! `gated_residual` for GPUs: operands and parameters of its kernels.

use super::{Kernels, operands, params, stride};
use crate::ops::{GatedResidual, GatedResidualArgs};
use crate::tensor::Spec;

operands! {
    /// See `shaders/gated_residual.wgsl`, `kernels/gated_residual.cu`.
    GatedResidualOperands { x, y, gate, row_mask, out }
}

params! {
    /// See `shaders/gated_residual.wgsl`.
    GatedResidualParams of GatedResidualOperands {
        words: u32,
        total_words: u32,
        rows: u32,
        width: u32,
        x_stride_b: u32,
        x_stride_r: u32,
        y_stride_b: u32,
        y_stride_r: u32,
        mask_stride_b: u32,
        mask_stride_r: u32,
        out_stride_b: u32,
        out_stride_r: u32,
        gate_step: u32,
    }
}

impl Kernels for GatedResidual {
    type Params = GatedResidualParams;
    type Operands<T> = GatedResidualOperands<T>;

    fn operands<T>(a: &GatedResidualArgs<T, T>) -> GatedResidualOperands<Option<&T>> {
        let x = a.x.operand();
        GatedResidualOperands {
            x,
            y: Some(&a.y),
            gate: Some(&a.gate),
            row_mask: a.row_mask.as_ref(),
            out: Some(&a.out),
        }
    }
}

/// Everything but the words: each backend has its own.
pub(in crate::backend) fn gated_residual_params(a: &GatedResidualArgs<Spec, Spec>) -> GatedResidualParams {
    let GatedResidualOperands { x, y, row_mask, out, .. } = GatedResidual::operands(a);
    GatedResidualParams {
        rows: a.out.dim(1) as u32,
        width: a.out.dim(2) as u32,
        x_stride_b: stride(x, 0),
        x_stride_r: stride(x, 1),
        y_stride_b: stride(y, 0),
        y_stride_r: stride(y, 1),
        mask_stride_b: stride(row_mask, 0),
        mask_stride_r: stride(row_mask, 1),
        out_stride_b: stride(out, 0),
        out_stride_r: stride(out, 1),
        gate_step: u32::from(a.gate.dim(0) > 1),
        ..Default::default()
    }
}
