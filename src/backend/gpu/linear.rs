//! The parameters of `linear`'s kernels, and what prepare knows of them.

use super::params::params;
use crate::ops::{Activation, Linear, LinearArgs, Matrix, RowReduce, Source as From};
use crate::tensor::Spec;

params! {
    /// See `shaders/lib/linear_params.wgsl`.
    LinearParams {
        x_offset: u32,
        weight_offset: u32,
        up_offset: u32,
        bias_offset: u32,
        residual_offset: u32,
        gate_offset: u32,
        row_mask_offset: u32,
        out_offset: u32,
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

/// The residual, if it is an operand of its own.
pub(in crate::backend) fn residual_of<R, W>(a: &LinearArgs<R, W>) -> Option<&R> {
    match &a.residual {
        Some(From::From(r)) => Some(r),
        Some(From::InPlace) | None => None,
    }
}

/// Everything but how the matrix lies: sizes, strides, what follows the product. In place, the residual has no strides of its own.
pub(in crate::backend) fn linear_params(op: &Linear, a: &LinearArgs<Spec, Spec>) -> LinearParams {
    let s = a.sizes();
    let stride = |spec: Option<&Spec>, d: usize| spec.map_or(0, |s| s.stride(d) as u32);
    let (view, up) = match &a.weight {
        Matrix::View(w) => (Some(w), None),
        Matrix::Pair(gate, up) => (Some(gate), Some(up)),
        Matrix::Prepared(_) => (None, None),
    };
    let (residual, mask, out) = (residual_of(a), a.row_mask.as_ref(), &a.out);
    LinearParams {
        total_rows: (s.batch * s.rows) as u32,
        rows: s.rows as u32,
        n_count: s.n as u32,
        k: s.k as u32,
        weight_stride: stride(view, 0),
        up_stride: stride(up, 0),
        x_stride_b: stride(Some(&a.x), 0),
        x_stride_r: stride(Some(&a.x), 1),
        residual_stride_b: stride(residual, 0),
        residual_stride_r: stride(residual, 1),
        mask_stride_b: stride(mask, 0),
        mask_stride_r: stride(mask, 1),
        out_stride_b: stride(Some(out), 0),
        out_stride_r: stride(Some(out), 1),
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
