//! The parameters of `norm`'s kernels.

use super::params::params;

params! {
    /// See `shaders/lib/norm_rows.wgsl`.
    NormParams {
        x_offset: u32,
        rows_offset: u32,
        add_offset: u32,
        weight_offset: u32,
        bias_offset: u32,
        out_offset: u32,
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
