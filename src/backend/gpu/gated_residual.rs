//! The parameters of `gated_residual`'s kernels.

use super::params::params;

params! {
    /// See `shaders/gated_residual.wgsl`.
    GatedResidualParams {
        x_offset: u32,
        y_offset: u32,
        gate_offset: u32,
        row_mask_offset: u32,
        out_offset: u32,
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
