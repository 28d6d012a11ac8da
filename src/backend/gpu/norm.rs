//! `norm` for GPUs: operands and parameters of its kernels.

use super::{Kernels, operands, params, stride};
use crate::ops::{Norm, NormArgs};
use crate::tensor::Spec;

operands! {
    /// See `shaders/lib/norm_rows.wgsl`, `kernels/norm.cu`.
    NormOperands { x, rows, add, weight, bias, out }
}

params! {
    /// See `shaders/lib/norm_rows.wgsl`.
    NormParams of NormOperands {
        total_rows: u32,
        dim_b: u32,
        dim_c: u32,
        width: u32,
        x_stride_a: u32,
        x_stride_b: u32,
        x_stride_c: u32,
        rows_stride_a: u32,
        rows_stride_b: u32,
        last_row: u32,
        add_stride_a: u32,
        add_stride_b: u32,
        add_stride_c: u32,
        out_stride_a: u32,
        out_stride_b: u32,
        out_stride_c: u32,
        eps: f32,
    }
}

impl Kernels for Norm {
    type Params = NormParams;
    type Operands<T> = NormOperands<T>;

    fn operands<T>(a: &NormArgs<T, T>) -> NormOperands<Option<&T>> {
        let x = a.x.operand();
        let (weight, bias) = (a.weight.as_ref(), a.bias.as_ref());
        NormOperands { x, rows: a.rows.as_ref(), add: a.add.as_ref(), weight, bias, out: Some(&a.out) }
    }
}

/// The parameters of a call that has elements.
pub(in crate::backend) fn norm_params(op: &Norm, a: &NormArgs<Spec, Spec>) -> NormParams {
    let NormOperands { x, rows, add, out, .. } = Norm::operands(a);
    let [dim_b, dim_c, width] = [1, 2, 3].map(|d| a.out.dim(d));
    NormParams {
        total_rows: (a.out.elements() / width) as u32,
        dim_b: dim_b as u32,
        dim_c: dim_c as u32,
        width: width as u32,
        x_stride_a: stride(x, 0),
        x_stride_b: stride(x, 1),
        x_stride_c: stride(x, 2),
        rows_stride_a: stride(rows, 0),
        rows_stride_b: stride(rows, 1),
        last_row: x.map_or(0, |x| x.dim(1).saturating_sub(1) as u32),
        add_stride_a: stride(add, 0),
        add_stride_b: stride(add, 1),
        add_stride_c: stride(add, 2),
        out_stride_a: stride(out, 0),
        out_stride_b: stride(out, 1),
        out_stride_c: stride(out, 2),
        eps: op.eps,
        ..Default::default()
    }
}
