//! `linear` for GPUs: operands and parameters of its kernels.

use super::{Kernels, operands, params, stride};
use crate::ops::{Activation, Linear, LinearArgs, Matrix, RowReduce, Source};
use crate::tensor::Spec;

operands! {
    /// See `shaders/lib/linear_params.wgsl`, `kernels/lib/linear_params.cuh`.
    LinearOperands {
        x,
        /// The matrix, or the first one of a pair. A prepared matrix is the backend's to give.
        weight,
        /// The second one.
        up,
        bias,
        /// A residual that is not `out` itself.
        residual,
        gate,
        row_mask,
        out,
    }
}

params! {
    /// See `shaders/lib/linear_params.wgsl`.
    LinearParams of LinearOperands {
        total_rows: u32,
        rows: u32,
        n_first: u32,
        n_count: u32,
        k: u32,
        k_tiles: u32,
        weight_stride: u32,
        up_stride: u32,
        x_stride_b: u32,
        x_stride_r: u32,
        residual_stride_b: u32,
        residual_stride_r: u32,
        mask_stride_b: u32,
        mask_stride_r: u32,
        out_stride_b: u32,
        out_stride_r: u32,
        gate_step: u32,
        activation: u32,
        reduce: u32,
    }
}

impl Kernels for Linear {
    type Params = LinearParams;
    type Operands<T> = LinearOperands<T>;

    fn operands<T>(a: &LinearArgs<T, T>) -> LinearOperands<Option<&T>> {
        let (weight, up) = match &a.weight {
            Matrix::View(w) => (Some(w), None),
            Matrix::Pair(gate, up) => (Some(gate), Some(up)),
            Matrix::Prepared(_) => (None, None),
        };
        let residual = a.residual.as_ref().and_then(Source::operand);
        LinearOperands {
            x: Some(&a.x),
            weight,
            up,
            bias: a.bias.as_ref(),
            residual,
            gate: a.gate.as_ref(),
            row_mask: a.row_mask.as_ref(),
            out: Some(&a.out),
        }
    }
}

/// Everything but how the matrix lies. In place, the residual has no strides of its own.
pub(in crate::backend) fn linear_params(op: &Linear, a: &LinearArgs<Spec, Spec>) -> LinearParams {
    let s = a.sizes();
    let LinearOperands { x, weight, up, residual, row_mask, out, .. } = Linear::operands(a);
    LinearParams {
        total_rows: (s.batch * s.rows) as u32,
        rows: s.rows as u32,
        n_count: s.n as u32,
        k: s.k as u32,
        weight_stride: stride(weight, 0),
        up_stride: stride(up, 0),
        x_stride_b: stride(x, 0),
        x_stride_r: stride(x, 1),
        residual_stride_b: stride(residual, 0),
        residual_stride_r: stride(residual, 1),
        mask_stride_b: stride(row_mask, 0),
        mask_stride_r: stride(row_mask, 1),
        out_stride_b: stride(out, 0),
        out_stride_r: stride(out, 1),
        gate_step: u32::from(a.gate.as_ref().is_some_and(|g| g.dim(0) > 1)),
        activation: match op.activation {
            Activation::None => 0,
            Activation::Gelu => 1,
            Activation::Relu => 2,
            Activation::SquaredRelu => 3,
            Activation::SwiGlu => 4,
        },
        reduce: match op.reduce {
            RowReduce::None => 0,
            RowReduce::Max => 1,
            RowReduce::Mean => 2,
        },
        ..Default::default()
    }
}
