//! `attention` for GPUs: operands, parameters and constants of its kernels, as prepare knows them.

use super::{Kernels, operands, params, stride};
use crate::ops::{Attention, AttentionArgs, EmptyRow, Keys, Media, Segment, Visibility};
use crate::tensor::Spec;

operands! {
    /// See `shaders/lib/attention_params.wgsl`, `kernels/lib/attention_params.cuh`.
    AttentionOperands {
        q,
        q_offsets,
        first_k,
        first_v,
        /// Which keys of the segment exist: lengths or bits.
        first_mask,
        /// Where a problem finds its part of the segment: cache entries or offsets.
        first_origin,
        second_k,
        second_v,
        second_mask,
        second_origin,
        /// What the rule reads: φ or the bits of every row, or the causal offset of every problem.
        per_row,
        /// Index operands in one buffer, where there are too many to be bound one by one (WGSL).
        packed,
        out,
        log_sum_exp,
        row_visible,
        /// A counter of key blocks, for tests.
        visited,
        /// The media plan (CUDA).
        plan,
        /// What chunks of keys leave for `attention_merge`.
        states,
    }
}

params! {
    /// See `shaders/lib/attention_params.wgsl`.
    AttentionParams of AttentionOperands {
        batch: u32,
        first_problem: u32,
        problems: u32,
        q_entries: u32,
        q_rows: u32,
        heads: u32,
        group: u32,
        scale: f32,
        tile_rows: u32,
        tile_heads: u32,
        row_tiles: u32,
        head_tiles: u32,
        panels: u32,
        turns: u32,
        chunks: u32,
        chunk_keys: u32,
        q_stride_b: u32,
        q_stride_r: u32,
        q_stride_h: u32,
        q_offsets_stride: u32,
        first_entries: u32,
        first_rows: u32,
        first_k_stride_b: u32,
        first_k_stride_r: u32,
        first_k_stride_h: u32,
        first_v_stride_b: u32,
        first_v_stride_r: u32,
        first_v_stride_h: u32,
        first_mask_stride: u32,
        first_origin_stride: u32,
        second_entries: u32,
        second_rows: u32,
        second_k_stride_b: u32,
        second_k_stride_r: u32,
        second_k_stride_h: u32,
        second_v_stride_b: u32,
        second_v_stride_r: u32,
        second_v_stride_h: u32,
        second_mask_stride: u32,
        second_origin_stride: u32,
        per_row_stride_b: u32,
        per_row_stride_r: u32,
        per_row_words: u32,
        keys_per_block: u32,
        prefix: u32,
        out_stride_b: u32,
        out_stride_r: u32,
        out_stride_h: u32,
        log_sum_exp_stride_b: u32,
        log_sum_exp_stride_r: u32,
        log_sum_exp_stride_h: u32,
        row_visible_stride_b: u32,
        row_visible_stride_r: u32,
        head_dim: u32,
        rule: u32,
        first_mask_kind: u32,
        first_origin_kind: u32,
        second_mask_kind: u32,
        second_origin_kind: u32,
        no_media: u32,
        beyond_media: u32,
        masked: u32,
        stretch: u32,
    }
}

impl Kernels for Attention {
    type Params = AttentionParams;
    type Operands<T> = AttentionOperands<T>;

    fn operands<T>(a: &AttentionArgs<T, T>) -> AttentionOperands<Option<&T>> {
        let (first, second) = (&a.first, a.second.as_ref());
        AttentionOperands {
            q: Some(&a.q),
            q_offsets: a.q_offsets.as_ref(),
            first_k: Some(&first.k),
            first_v: Some(&first.v),
            first_mask: mask(&first.keys),
            first_origin: origin(first),
            second_k: second.map(|s| &s.k),
            second_v: second.map(|s| &s.v),
            second_mask: second.and_then(|s| mask(&s.keys)),
            second_origin: second.and_then(origin),
            per_row: per_row(&a.visibility),
            packed: None,
            out: Some(&a.out),
            log_sum_exp: a.log_sum_exp.as_ref(),
            row_visible: a.row_visible.as_ref(),
            visited: None,
            plan: media(&a.visibility).and_then(|m| m.plan.as_ref()),
            states: None,
        }
    }
}

fn mask<R>(keys: &Keys<R>) -> Option<&R> {
    match keys {
        Keys::All => None,
        Keys::Lengths(r) | Keys::Bits(r) => Some(r),
    }
}

fn origin<R>(segment: &Segment<R>) -> Option<&R> {
    segment.offsets.as_ref().or(segment.slots.as_ref())
}

fn per_row<R>(visibility: &Visibility<R>) -> Option<&R> {
    match visibility {
        Visibility::All => None,
        Visibility::PrefixCausal { offset, .. } => offset.as_ref(),
        Visibility::SameMedia(m) | Visibility::PrecedingMedia(m) => Some(&m.media_index),
        Visibility::MediaBits { bits, .. } => Some(bits),
    }
}

fn media<R>(visibility: &Visibility<R>) -> Option<&Media<R>> {
    match visibility {
        Visibility::SameMedia(media) => Some(media),
        _ => None,
    }
}

/// Key numbers stay below 2^31: larger ones mean the same, and the sum of two fits 32 bits.
fn clamp(n: u32) -> u32 {
    n.min(i32::MAX as u32)
}

/// 0 all, 1 same media, 2 preceding media, 3 prefix, 4 bits: `lib/attention_keys.{cuh,wgsl}`.
pub(in crate::backend) fn rule<R>(visibility: &Visibility<R>) -> u32 {
    match visibility {
        Visibility::All => 0,
        Visibility::SameMedia(_) => 1,
        Visibility::PrecedingMedia(_) => 2,
        Visibility::PrefixCausal { .. } => 3,
        Visibility::MediaBits { .. } => 4,
    }
}

/// As there: 0 all, 1 lengths, 2 bits.
pub(in crate::backend) fn mask_kind<R>(keys: &Keys<R>) -> u32 {
    match keys {
        Keys::All => 0,
        Keys::Lengths(_) => 1,
        Keys::Bits(_) => 2,
    }
}

/// As there: 0 the problem's number, 1 cache entries, 2 offsets.
pub(in crate::backend) fn origin_kind<R>(segment: &Segment<R>) -> u32 {
    match (&segment.slots, &segment.offsets) {
        (_, Some(_)) => 2,
        (Some(_), None) => 1,
        (None, None) => 0,
    }
}

/// As there: 0 zeros, 1 the mean of V, 2 the softmax over all key positions.
pub(in crate::backend) fn policy(policy: EmptyRow) -> u32 {
    match policy {
        EmptyRow::Zero => 0,
        EmptyRow::Uniform => 1,
        EmptyRow::AttendAll => 2,
    }
}

/// Everything but the tiles and the places of packed operands.
pub(in crate::backend) fn attention_params(op: &Attention, a: &AttentionArgs<Spec, Spec>) -> AttentionParams {
    let sizes = a.sizes();
    let o = Attention::operands(a);
    let (first, second) = (&a.first, a.second.as_ref());
    let prefix = match a.visibility {
        Visibility::PrefixCausal { prefix, .. } => clamp(prefix),
        _ => 0,
    };
    let keys_per_block = match &a.visibility {
        Visibility::All | Visibility::PrefixCausal { .. } => 1,
        Visibility::SameMedia(m) | Visibility::PrecedingMedia(m) => m.keys_per_media,
        Visibility::MediaBits { keys_per_block, .. } => *keys_per_block,
    };
    AttentionParams {
        batch: sizes.batch as u32,
        q_entries: a.q.dim(0) as u32,
        q_rows: sizes.q_rows as u32,
        heads: sizes.heads as u32,
        group: (sizes.heads / sizes.kv_heads.max(1)) as u32,
        scale: op.scale,
        q_stride_b: stride(o.q, 0),
        q_stride_r: stride(o.q, 1),
        q_stride_h: stride(o.q, 2),
        q_offsets_stride: stride(o.q_offsets, 0),
        first_entries: first.k.dim(0) as u32,
        first_rows: first.k.dim(1) as u32,
        first_k_stride_b: stride(o.first_k, 0),
        first_k_stride_r: stride(o.first_k, 1),
        first_k_stride_h: stride(o.first_k, 2),
        first_v_stride_b: stride(o.first_v, 0),
        first_v_stride_r: stride(o.first_v, 1),
        first_v_stride_h: stride(o.first_v, 2),
        first_mask_stride: stride(o.first_mask, 0),
        first_origin_stride: stride(o.first_origin, 0),
        second_entries: o.second_k.map_or(0, |k| k.dim(0) as u32),
        second_rows: o.second_k.map_or(0, |k| k.dim(1) as u32),
        second_k_stride_b: stride(o.second_k, 0),
        second_k_stride_r: stride(o.second_k, 1),
        second_k_stride_h: stride(o.second_k, 2),
        second_v_stride_b: stride(o.second_v, 0),
        second_v_stride_r: stride(o.second_v, 1),
        second_v_stride_h: stride(o.second_v, 2),
        second_mask_stride: stride(o.second_mask, 0),
        second_origin_stride: stride(o.second_origin, 0),
        per_row_stride_b: stride(o.per_row, 0),
        per_row_stride_r: stride(o.per_row, 1),
        per_row_words: o.per_row.map_or(0, |s| if s.rank() == 3 { s.dim(2) as u32 } else { 1 }),
        keys_per_block: clamp(keys_per_block),
        prefix,
        out_stride_b: stride(o.out, 0),
        out_stride_r: stride(o.out, 1),
        out_stride_h: stride(o.out, 2),
        log_sum_exp_stride_b: stride(o.log_sum_exp, 0),
        log_sum_exp_stride_r: stride(o.log_sum_exp, 1),
        log_sum_exp_stride_h: stride(o.log_sum_exp, 2),
        row_visible_stride_b: stride(o.row_visible, 0),
        row_visible_stride_r: stride(o.row_visible, 1),
        head_dim: sizes.head_dim as u32,
        rule: rule(&a.visibility),
        first_mask_kind: mask_kind(&first.keys),
        first_origin_kind: origin_kind(first),
        second_mask_kind: second.map_or(0, |s| mask_kind(&s.keys)),
        second_origin_kind: second.map_or(0, origin_kind),
        no_media: policy(op.empty_rows.no_media),
        beyond_media: policy(op.empty_rows.beyond_media),
        masked: policy(op.empty_rows.masked),
        ..Default::default()
    }
}
