//! The parameters of `linear`'s kernels.

use super::params::params;

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
    }
}
