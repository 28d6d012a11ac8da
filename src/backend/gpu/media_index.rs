//! The parameters of `media_index`'s kernels.

use super::params::params;

params! {
    /// See `shaders/media_index.wgsl`.
    MediaIndexParams {
        tokens_offset: u32,
        carry_in_offset: u32,
        media_count_offset: u32,
        carry_out_offset: u32,
        phi_offset: u32,
        plan_offset: u32,
        batch: u32,
        rows: u32,
        token: u32,
        end_token: u32,
        tokens_stride_b: u32,
        tokens_stride_r: u32,
        carry_in_stride: u32,
        media_count_stride: u32,
        carry_out_stride: u32,
        phi_stride_b: u32,
        phi_stride_r: u32,
    }
}
