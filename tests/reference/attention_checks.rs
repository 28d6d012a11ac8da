//! What `attention` refuses, in words.

use xattn::ops::attention::{Attention, AttentionArgs, Keys, Media, Segment, Visibility};
use xattn::ops::{EmptyRows, Op};
use xattn::{DType, Spec};

use crate::spec;

const OP: Attention = Attention { scale: 1.0, empty_rows: EmptyRows::all(xattn::ops::EmptyRow::Zero) };

fn f32s(shape: &[usize]) -> Spec {
    spec(DType::F32, shape)
}

fn u32s(shape: &[usize]) -> Spec {
    spec(DType::U32, shape)
}

/// Two problems of 3 rows, 4 heads and 40 keys of 2 heads.
fn good() -> AttentionArgs<Spec, Spec> {
    AttentionArgs::new(f32s(&[2, 3, 4, 8]), f32s(&[2, 40, 2, 8]), f32s(&[2, 40, 2, 8]), f32s(&[2, 3, 4, 8]))
}

fn segment() -> Segment<Spec> {
    good().first
}

#[track_caller]
fn refuses(args: AttentionArgs<Spec, Spec>, message: &str) {
    assert_eq!(OP.check(&args).unwrap_err().to_string(), message);
}

#[test]
fn accepts_what_it_should() {
    OP.check(&good()).unwrap();
    let keys = Keys::Bits(u32s(&[2, 2]));
    OP.check(&AttentionArgs { first: segment().with_keys(keys), second: Some(segment()), ..good() }).unwrap();
}

#[test]
fn parameters() {
    let message = Attention { scale: f32::NAN, ..OP }.check(&good()).unwrap_err().to_string();
    assert_eq!(message, "attention: scale: expected a finite number, got NaN");
}

#[test]
fn keys_and_values() {
    refuses(
        AttentionArgs { first: Segment::new(f32s(&[2, 40, 3, 8]), f32s(&[2, 40, 3, 8])), ..good() },
        "attention: first.k: expected a number of heads that divides the 4 of q, got f32[2, 40, 3, 8]",
    );
    refuses(
        AttentionArgs { first: Segment::new(f32s(&[2, 40, 2, 8]), f32s(&[2, 41, 2, 8])), ..good() },
        "attention: first.v: expected shape that of k = [2, 40, 2, 8], got f32[2, 41, 2, 8]",
    );
    refuses(
        AttentionArgs { second: Some(Segment::new(f32s(&[2, 4, 4, 8]), f32s(&[2, 4, 4, 8]))), ..good() },
        "attention: second.k: expected 2 heads as first.k, got f32[2, 4, 4, 8]",
    );
    refuses(
        AttentionArgs { first: Segment::new(f32s(&[1, 40, 2, 8]), f32s(&[1, 40, 2, 8])), ..good() },
        "attention: first.k: expected 2 entries, one per problem, got f32[1, 40, 2, 8]",
    );
}

#[test]
fn masks_slots_and_offsets() {
    refuses(
        AttentionArgs { first: segment().with_keys(Keys::Bits(u32s(&[2, 1]))), ..good() },
        "attention: first.bits: expected shape [batch, words] = [2, 2], got u32[2, 1]",
    );
    refuses(
        AttentionArgs { first: segment().with_keys(Keys::Lengths(u32s(&[3]))), ..good() },
        "attention: first.lengths: expected shape [batch] = [2], got u32[3]",
    );
    refuses(
        AttentionArgs { first: segment().with_slots(spec(DType::I32, &[2])), ..good() },
        "attention: first.slots: expected u32, got i32",
    );
    refuses(
        AttentionArgs { first: segment().with_slots(u32s(&[2])).with_offsets(u32s(&[3])), ..good() },
        "attention: first.slots: expected no slots beside first.offsets, got u32[2]",
    );
    refuses(
        AttentionArgs { q_offsets: Some(u32s(&[3])), ..good() },
        "attention: q: expected shape [1, total, ...] with q_offsets, got f32[2, 3, 4, 8]",
    );
    refuses(
        AttentionArgs { q_offsets: Some(u32s(&[0])), ..good() },
        "attention: q_offsets: expected at least one entry, got u32[0]",
    );
}

#[test]
fn rules() {
    let media = |keys_per_media, shape: &[usize]| {
        Visibility::SameMedia(Media { media_index: spec(DType::I32, shape), keys_per_media, plan: None })
    };
    refuses(
        AttentionArgs { visibility: media(0, &[2, 3]), ..good() },
        "attention: keys_per_media: expected at least 1, got 0",
    );
    refuses(
        AttentionArgs { visibility: media(4, &[2, 4]), ..good() },
        "attention: media_index: expected shape [batch, rows] = [2, 3], got i32[2, 4]",
    );
    refuses(
        AttentionArgs { visibility: Visibility::MediaBits { bits: u32s(&[2, 4, 1]), keys_per_block: 4 }, ..good() },
        "attention: media_bits: expected shape [2, 3, words], got u32[2, 4, 1]",
    );
}

#[test]
fn results() {
    refuses(
        AttentionArgs { log_sum_exp: Some(spec(DType::F16, &[2, 3, 4])), ..good() },
        "attention: log_sum_exp: expected f32 (f64 on the reference), got f16",
    );
    refuses(
        AttentionArgs { row_visible: Some(u32s(&[2, 4])), ..good() },
        "attention: row_visible: expected shape [batch, rows] = [2, 3], got u32[2, 4]",
    );
    let twice = Spec::strided(DType::F32, &[2, 3, 4, 8], &[0, 32, 8, 1]).unwrap();
    refuses(
        AttentionArgs { out: twice, ..good() },
        "attention: out: expected strides under which no element is written twice, got f32[2, 3, 4, 8] strides [0, 32, 8, 1]",
    );
}
