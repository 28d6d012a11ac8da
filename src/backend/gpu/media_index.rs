//! `media_index` for GPUs: operands and parameters of its kernels.

use super::{Kernels, operands, params, stride};
use crate::ops::{DocumentEnd, MediaIndex, MediaIndexArgs, MediaSource};
use crate::tensor::Spec;

operands! {
    /// See `shaders/media_index.wgsl`, `kernels/media_index.cu`.
    MediaIndexOperands {
        /// Token ids or locations.
        tokens,
        carry_in,
        media_count,
        carry_out,
        phi,
        plan,
    }
}

params! {
    /// See `shaders/media_index.wgsl`.
    MediaIndexParams of MediaIndexOperands {
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

impl Kernels for MediaIndex {
    type Params = MediaIndexParams;
    type Operands<T> = MediaIndexOperands<T>;

    fn operands<T>(a: &MediaIndexArgs<T, T>) -> MediaIndexOperands<Option<&T>> {
        let (MediaSource::Tokens { ids: tokens, .. } | MediaSource::Locations(tokens)) = &a.source;
        MediaIndexOperands {
            tokens: Some(tokens),
            carry_in: a.carry_in.as_ref(),
            media_count: a.media_count.as_ref(),
            carry_out: a.carry_out.as_ref(),
            phi: Some(&a.media_index),
            plan: a.plan.as_ref(),
        }
    }
}

pub(in crate::backend) fn media_index_params(op: &MediaIndex, a: &MediaIndexArgs<Spec, Spec>) -> MediaIndexParams {
    let MediaIndexOperands { tokens, carry_in, media_count, carry_out, phi, .. } = MediaIndex::operands(a);
    let token = match a.source {
        MediaSource::Tokens { token, .. } => token,
        MediaSource::Locations(_) => 0,
    };
    let end_token = match op.document_end {
        DocumentEnd::Ignore => 0,
        DocumentEnd::Hide { token } | DocumentEnd::Restart { token } => token,
    };
    MediaIndexParams {
        batch: a.media_index.dim(0) as u32,
        rows: a.media_index.dim(1) as u32,
        token: token as u32,
        end_token: end_token as u32,
        tokens_stride_b: stride(tokens, 0),
        tokens_stride_r: stride(tokens, 1),
        carry_in_stride: stride(carry_in, 0),
        media_count_stride: stride(media_count, 0),
        carry_out_stride: stride(carry_out, 0),
        phi_stride_b: stride(phi, 0),
        phi_stride_r: stride(phi, 1),
        ..Default::default()
    }
}
