//! Most cases have q = 0, so that every visible key weighs the same, and v = 2^j: mean times number
//! of keys seen is then the bitset of the keys that a row saw, exactly.

use xattn::ops::attention::{Attention, AttentionArgs, EmptyRow, EmptyRows, Keys, Media, Segment, Visibility};
use xattn::{Device, Dispatch, View};

use crate::{assert_close, reference, view, view_mut};

const OP: Attention = Attention { scale: 1.0, empty_rows: EmptyRows::all(EmptyRow::Zero) };

/// `k` of the equal-weight cases: any finite number.
const K: [f64; 8] = [1.0; 8];
/// `v` of the equal-weight cases.
const V: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// The bitset of keys that each row saw: q `[batch, rows, 1, 1]` of zeros. Asserts that log-sum-exp
/// and `row_visible` agree with it.
#[track_caller]
fn seen(
    batch: usize,
    rows: usize,
    first: Segment<View>,
    second: Option<Segment<View>>,
    rule: Visibility<View>,
) -> Vec<u32> {
    let n = batch * rows;
    let (q, mut out, mut lse, mut visible) = (vec![0f64; n], vec![-1f64; n], vec![-1f64; n], vec![7u32; n]);
    let args = AttentionArgs {
        q: view(&q, &[batch, rows, 1, 1]),
        q_offsets: None,
        first,
        second,
        visibility: rule,
        out: view_mut(&mut out, &[batch, rows, 1, 1]),
        log_sum_exp: Some(view_mut(&mut lse, &[batch, rows, 1])),
        row_visible: Some(view_mut(&mut visible, &[batch, rows])),
    };
    OP.run(&reference(), args).unwrap();
    let sets: Vec<u32> = out.iter().zip(&lse).map(|(mean, lse)| (mean * lse.exp()).round() as u32).collect();
    for i in 0..n {
        assert_eq!(visible[i], u32::from(sets[i] != 0), "row_visible of row {i}");
        assert_close(&[lse[i]], &[f64::from(sets[i].count_ones()).ln()]);
    }
    sets
}

/// One entry with the first `n` keys.
fn keys(n: usize) -> Segment<View<'static>> {
    Segment::new(view(&K[..n], &[1, n, 1, 1]), view(&V[..n], &[1, n, 1, 1]))
}

/// One entry with keys `from..to`: their bits differ from those of the first segment.
fn later_keys(from: usize, to: usize) -> Segment<View<'static>> {
    let shape = [1, to - from, 1, 1];
    Segment::new(view(&K[from..to], &shape), view(&V[from..to], &shape))
}

fn media(phi: &[i32], keys_per_media: u32) -> Media<View<'_>> {
    Media { media_index: view(phi, &[1, phi.len()]), keys_per_media, plan: None }
}

#[test]
fn softmax_scale_and_log_sum_exp() {
    // Scores 0.5 · ⟨q, k⟩ = ln 1, ln 3: weights 1/4 and 3/4.
    let (q, k) = ([2.0, 0.0], [0.0, 9.0, 3f64.ln(), -9.0]);
    let (mut out, mut lse) = ([0.0; 2], [0.0]);
    let args = AttentionArgs {
        log_sum_exp: Some(view_mut(&mut lse, &[1, 1, 1])),
        ..AttentionArgs::new(
            view(&q, &[1, 1, 1, 2]),
            view(&k, &[1, 2, 1, 2]),
            view(&[4.0, 40.0, 8.0, 80.0], &[1, 2, 1, 2]),
            view_mut(&mut out, &[1, 1, 1, 2]),
        )
    };
    Attention { scale: 0.5, ..OP }.run(&reference(), args).unwrap();
    assert_close(&out, &[7.0, 70.0]);
    assert_close(&lse, &[4f64.ln()]);
}

#[test]
fn large_scores_do_not_overflow() {
    let mut out = [0.0];
    let args = AttentionArgs::new(
        view(&[1.0], &[1, 1, 1, 1]),
        view(&[5000.0, 5000.0], &[1, 2, 1, 1]),
        view(&[1.0, 3.0], &[1, 2, 1, 1]),
        view_mut(&mut out, &[1, 1, 1, 1]),
    );
    OP.run(&reference(), args).unwrap();
    assert_eq!(out, [2.0]);
}

#[test]
fn heads_share_kv_heads() {
    let q = [0.0, 0.0, 0.0, 3f64.ln()];
    // Heads 0, 1 read K/V head 0, heads 2, 3 read K/V head 1.
    let mut out = [0.0; 4];
    let args = AttentionArgs::new(
        view(&q, &[1, 1, 4, 1]),
        view(&[0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0], &[1, 4, 2, 1]),
        view(&[1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 6.0, 60.0], &[1, 4, 2, 1]),
        view_mut(&mut out, &[1, 1, 4, 1]),
    );
    OP.run(&reference(), args).unwrap();
    // Head 3: weights 1, 3, 1, 1 over 10, 20, 30, 60.
    assert_close(&out, &[3.0, 3.0, 30.0, 160.0 / 6.0]);
}

#[test]
fn two_segments_with_masks() {
    assert_eq!(seen(1, 1, keys(3), Some(later_keys(3, 5)), Visibility::All), [0b11111]);
    let first = keys(3).with_keys(Keys::Bits(view(&[0b101u32], &[1, 1])));
    let second = later_keys(3, 6).with_keys(Keys::Lengths(view(&[2u32], &[1])));
    assert_eq!(seen(1, 1, first, Some(second), Visibility::All), [0b11101]);
    let first = keys(3).with_keys(Keys::Lengths(view(&[u32::MAX], &[1])));
    let second = later_keys(3, 6).with_keys(Keys::Lengths(view(&[0u32], &[1])));
    assert_eq!(seen(1, 1, first, Some(second), Visibility::All), [0b111]);
    // Bits beyond the keys mean nothing.
    let first = keys(3).with_keys(Keys::Bits(view(&[u32::MAX], &[1, 1])));
    assert_eq!(seen(1, 1, first, None, Visibility::All), [0b111]);
}

#[test]
fn slots_name_entries_and_are_clamped() {
    let slots = [2u32, 0, u32::MAX];
    let first = Segment::new(view(&K[..6], &[3, 2, 1, 1]), view(&V[..6], &[3, 2, 1, 1])).with_slots(view(&slots, &[3]));
    assert_eq!(seen(3, 1, first, None, Visibility::All), [0b110000, 0b000011, 0b110000]);
}

#[test]
fn ragged_keys_with_hostile_offsets() {
    let ragged = |offsets: &'static [u32]| {
        Segment::new(view(&K, &[1, 8, 1, 1]), view(&V, &[1, 8, 1, 1])).with_offsets(view(offsets, &[3]))
    };
    let set = |s| seen(2, 1, s, None, Visibility::All);
    assert_eq!(set(ragged(&[0, 3, 8])), [0b00000111, 0b11111000]);
    assert_eq!(set(ragged(&[2, 2, 4])), [0, 0b00001100]);
    // Falling offsets are empty problems, those beyond the end stop there.
    assert_eq!(set(ragged(&[6, 2, u32::MAX])), [0, 0b11111100]);
    assert_eq!(set(ragged(&[u32::MAX, u32::MAX, 1])), [0, 0]);
    let lengths = [2u32, 9];
    assert_eq!(set(ragged(&[0, 3, 8]).with_keys(Keys::Lengths(view(&lengths, &[2])))), [0b011, 0b11111000]);
}

#[test]
fn ragged_queries_leave_gaps_alone() {
    // Problems 0, 1, 2 have rows 1, 2, 3.. of 5 (the last end is beyond); 1 has no keys.
    let (mut out, mut lse, mut visible) = ([-1.0; 5], [-1.0; 5], [7u32; 5]);
    let args = AttentionArgs {
        q: view(&[0.0; 5], &[1, 5, 1, 1]),
        q_offsets: Some(view(&[1u32, 2, 3, 99], &[4])),
        first: Segment::new(view(&K[..4], &[2, 2, 1, 1]), view(&V[..4], &[2, 2, 1, 1]))
            .with_slots(view(&[0u32, 1, 1], &[3]))
            .with_keys(Keys::Lengths(view(&[2u32, 0, 2], &[3]))),
        second: None,
        // Rows count within their problem: row 3 is the last problem's row 0.
        visibility: Visibility::PrefixCausal { prefix: 0, offset: None },
        out: view_mut(&mut out, &[1, 5, 1, 1]),
        log_sum_exp: Some(view_mut(&mut lse, &[1, 5, 1])),
        row_visible: Some(view_mut(&mut visible, &[1, 5])),
    };
    OP.run(&reference(), args).unwrap();
    assert_close(&out, &[-1.0, 1.0, 0.0, 4.0, 6.0]);
    assert_close(&lse, &[-1.0, 0.0, f64::NEG_INFINITY, 0.0, 2f64.ln()]);
    assert_eq!(visible, [7, 1, 0, 1, 1]);
}

#[test]
fn same_media_and_preceding_media() {
    let phi = [0, 1, 2, 3, 1, -5, i32::MAX, i32::MIN];
    let same = seen(1, 8, keys(6), None, Visibility::SameMedia(media(&phi, 2)));
    assert_eq!(same, [0, 0b11, 0b1100, 0b110000, 0b11, 0, 0, 0]);
    let preceding = seen(1, 8, keys(6), None, Visibility::PrecedingMedia(media(&phi, 2)));
    assert_eq!(preceding, [0, 0b11, 0b1111, 0b111111, 0b11, 0, 0b111111, 0]);
    // The last medium may be short, and media run on into the second segment.
    assert_eq!(seen(1, 8, keys(3), None, Visibility::SameMedia(media(&phi, 2)))[1..4], [0b011, 0b100, 0]);
    let both = seen(1, 8, keys(3), Some(later_keys(3, 6)), Visibility::SameMedia(media(&phi, 2)));
    assert_eq!(both, same);
    // One medium of 2^32 - 1 keys.
    assert_eq!(seen(1, 8, keys(3), None, Visibility::PrecedingMedia(media(&phi, u32::MAX)))[1..3], [0b111, 0b111]);
}

#[test]
fn prefix_causal() {
    let rule = |prefix, offset: u32| {
        let offset = [offset];
        let given = Visibility::PrefixCausal { prefix, offset: Some(view(&offset, &[1])) };
        let rows = seen(1, 3, keys(5), None, given);
        if offset == [0] {
            let absent = Visibility::PrefixCausal { prefix, offset: None };
            assert_eq!(rows, seen(1, 3, keys(5), None, absent));
        }
        rows
    };
    assert_eq!(rule(0, 0), [0b1, 0b11, 0b111]);
    assert_eq!(rule(2, 0), [0b11, 0b11, 0b111]);
    assert_eq!(rule(0, 3), [0b1111, 0b11111, 0b11111]);
    assert_eq!(rule(u32::MAX, u32::MAX), [0b11111; 3]);
    // Positions run over both segments: cached keys first.
    let offset = [3u32];
    let rule = Visibility::PrefixCausal { prefix: 1, offset: Some(view(&offset, &[1])) };
    assert_eq!(seen(1, 2, keys(3), Some(later_keys(3, 5)), rule), [0b01111, 0b11111]);
}

#[test]
fn media_bits() {
    let bits = [0b101u32, 0, u32::MAX];
    let rule = |keys_per_block| Visibility::MediaBits { bits: view(&bits, &[1, 3, 1]), keys_per_block };
    assert_eq!(seen(1, 3, keys(5), None, rule(2)), [0b10011, 0, 0b11111]);
    assert_eq!(seen(1, 3, keys(2), Some(later_keys(2, 5)), rule(1)), [0b00101, 0, 0b11111]);
    // No words at all: absent ones count as zeros.
    let none = Visibility::MediaBits { bits: view(&[0u32; 0], &[1, 3, 0]), keys_per_block: 1 };
    assert_eq!(seen(1, 3, keys(5), None, none), [0, 0, 0]);
    // Key 32 stands in the second word.
    let (k, mut v) = ([0.0; 40], [0.0; 40]);
    v[32] = 5.0;
    let long = || Segment::new(view(&k, &[1, 40, 1, 1]), view(&v, &[1, 40, 1, 1]));
    let words = [0u32, 1];
    let rule = Visibility::MediaBits { bits: view(&words, &[1, 1, 2]), keys_per_block: 1 };
    assert_eq!(seen_value(long(), rule), 5.0);
    let rule = Visibility::MediaBits { bits: view(&words[1..], &[1, 1, 1]), keys_per_block: 1 };
    assert_eq!(seen_value(long(), rule), 0.0);
}

fn seen_value(first: Segment<View>, visibility: Visibility<View>) -> f64 {
    let mut out = [-1.0];
    let q = [0.0];
    let new = AttentionArgs::new(
        view(&q, &[1, 1, 1, 1]),
        first.k.clone(),
        first.v.clone(),
        view_mut(&mut out, &[1, 1, 1, 1]),
    );
    OP.run(&reference(), AttentionArgs { first, visibility, ..new }).unwrap();
    out[0]
}

/// Output, log-sum-exp and `row_visible` of rows with q = 1, k = ln 1, ln 2, ln 5 (and ln 8 in the
/// second segment), v = 8, 16, 80 (and 160).
fn policies(
    policy: EmptyRows,
    first_keys: Keys<View>,
    second: Option<Keys<View>>,
    visibility: Visibility<View>,
    rows: usize,
) -> (Vec<f64>, Vec<f64>, Vec<u32>) {
    let k = [1f64.ln(), 2f64.ln(), 5f64.ln(), 8f64.ln()];
    let v = [8.0, 16.0, 80.0, 160.0];
    let q = vec![1.0; rows];
    let (mut out, mut lse, mut visible) = (vec![-1.0; rows], vec![-1.0; rows], vec![7u32; rows]);
    let args = AttentionArgs {
        q: view(&q, &[1, rows, 1, 1]),
        q_offsets: None,
        first: Segment::new(view(&k[..3], &[1, 3, 1, 1]), view(&v[..3], &[1, 3, 1, 1])).with_keys(first_keys),
        second: second
            .map(|keys| Segment::new(view(&k[3..], &[1, 1, 1, 1]), view(&v[3..], &[1, 1, 1, 1])).with_keys(keys)),
        visibility,
        out: view_mut(&mut out, &[1, rows, 1, 1]),
        log_sum_exp: Some(view_mut(&mut lse, &[1, rows, 1])),
        row_visible: Some(view_mut(&mut visible, &[1, rows])),
    };
    Attention { scale: 1.0, empty_rows: policy }.run(&reference(), args).unwrap();
    (out, lse, visible)
}

const DISTINCT: EmptyRows =
    EmptyRows { no_media: EmptyRow::Uniform, beyond_media: EmptyRow::AttendAll, masked: EmptyRow::Zero };
/// The mean of 8, 16, 80, and its log-sum-exp.
const UNIFORM: f64 = 104.0 / 3.0;
/// (1·8 + 2·16 + 5·80) / 8; log-sum-exp ln 8.
const ATTEND_ALL: f64 = 55.0;

#[test]
fn empty_rows_decided_per_row() {
    // One key per medium; the second key is masked. φ = 0, seen, masked, seen, beyond.
    let phi = [0, 1, 2, 3, 4];
    let bits = [0b101u32];
    let masked = || Keys::Bits(view(&bits, &[1, 1]));
    let (out, lse, visible) = policies(DISTINCT, masked(), None, Visibility::SameMedia(media(&phi, 1)), 5);
    assert_close(&out, &[UNIFORM, 8.0, 0.0, 80.0, ATTEND_ALL]);
    assert_close(&lse, &[3f64.ln(), 0.0, f64::NEG_INFINITY, 5f64.ln(), 8f64.ln()]);
    assert_eq!(visible, [0, 1, 0, 1, 0]);
    // Preceding media clamp φ: nothing is beyond. (1·8 + 5·80) / 6 over the keys that exist.
    let (out, _, visible) = policies(DISTINCT, masked(), None, Visibility::PrecedingMedia(media(&phi, 1)), 5);
    assert_close(&out, &[UNIFORM, 8.0, 8.0, 68.0, 68.0]);
    assert_eq!(visible, [0, 1, 1, 1, 1]);
    // The other rules know only masked rows.
    let empty = EmptyRows { masked: EmptyRow::Uniform, ..EmptyRows::all(EmptyRow::Zero) };
    let none = [0u32];
    assert_close(&policies(empty, Keys::Lengths(view(&none, &[1])), None, Visibility::All, 1).0, &[UNIFORM]);
    let empty = EmptyRows { masked: EmptyRow::AttendAll, ..EmptyRows::all(EmptyRow::Zero) };
    assert_close(&policies(empty, Keys::Bits(view(&none, &[1, 1])), None, Visibility::All, 1).0, &[ATTEND_ALL]);
}

#[test]
fn compat_policies_range_over_both_segments() {
    let none = [0u32];
    let lengths = || Keys::Lengths(view(&none, &[1]));
    let run = |policy| policies(EmptyRows::all(policy), lengths(), Some(lengths()), Visibility::All, 1);
    let (out, lse, visible) = run(EmptyRow::Uniform);
    assert_close(&out, &[66.0]);
    assert_close(&lse, &[4f64.ln()]);
    assert_eq!(visible, [0]);
    // (8 + 32 + 400 + 1280) / 16.
    let (out, lse, _) = run(EmptyRow::AttendAll);
    assert_close(&out, &[107.5]);
    assert_close(&lse, &[16f64.ln()]);
}

#[test]
fn media_present_follow_from_the_extents() {
    // no_media and masked rows get zeros, beyond ones the softmax over all slots.
    let policy = EmptyRows { beyond_media: EmptyRow::AttendAll, ..EmptyRows::all(EmptyRow::Zero) };
    let is_beyond = |first: Keys<View>, second: Option<Keys<View>>| -> Vec<bool> {
        let phi = [1, 2, 3, 4, 5];
        let (out, ..) = policies(policy, first, second, Visibility::SameMedia(media(&phi, 1)), 5);
        out.iter().map(|&x| x == ATTEND_ALL || (x - 107.5).abs() < 1e-9).collect()
    };
    let lengths = |n: &'static [u32; 1]| Keys::Lengths(View::new(n, &[1]).unwrap());
    let [f, t] = [false, true];
    assert_eq!(is_beyond(Keys::All, None), [f, f, f, t, t]);
    assert_eq!(is_beyond(lengths(&[2]), None), [f, f, t, t, t]);
    assert_eq!(is_beyond(lengths(&[0]), None), [t, t, t, t, t]);
    // A bitset does not shorten the extent.
    assert_eq!(is_beyond(Keys::Bits(view(&[1u32], &[1, 1])), None), [f, f, f, t, t]);
    // A second segment follows the first one's slots; without keys it has no effect.
    assert_eq!(is_beyond(lengths(&[1]), Some(Keys::All)), [f, f, f, f, t]);
    assert_eq!(is_beyond(lengths(&[1]), Some(lengths(&[0]))), [f, t, t, t, t]);
}

#[test]
fn no_slots_at_all() {
    for policy in [EmptyRow::Zero, EmptyRow::Uniform, EmptyRow::AttendAll] {
        let (mut out, mut lse, mut visible) = ([-1.0; 2], [-1.0], [7u32]);
        let args = AttentionArgs {
            log_sum_exp: Some(view_mut(&mut lse, &[1, 1, 1])),
            row_visible: Some(view_mut(&mut visible, &[1, 1])),
            ..AttentionArgs::new(
                view(&[1.0, 1.0], &[1, 1, 1, 2]),
                view::<f64>(&[], &[1, 0, 1, 2]),
                view::<f64>(&[], &[1, 0, 1, 2]),
                view_mut(&mut out, &[1, 1, 1, 2]),
            )
        };
        Attention { scale: 1.0, empty_rows: EmptyRows::all(policy) }.run(&reference(), args).unwrap();
        assert_eq!((out, lse, visible), ([0.0; 2], [f64::NEG_INFINITY], [0]), "{policy:?}");
    }
}

#[test]
fn empty_batches_rows_heads_and_widths() {
    for q in [[0, 2, 1, 1], [1, 0, 1, 1], [1, 2, 0, 1], [1, 2, 1, 0]] {
        let kv = [q[0], 3, q[2], q[3]];
        let args = AttentionArgs::new(
            view::<f64>(&[], &q),
            view(&V[..3], &kv),
            view(&V[..3], &kv),
            view_mut::<f64>(&mut [], &q),
        );
        OP.run(&reference(), args).unwrap();
    }
}

#[test]
fn invisible_nan_and_infinity_stay_out_and_visible_ones_show() {
    let (k, v) = ([0.0, f64::NAN, 0.0, f64::INFINITY], [3.0, f64::NAN, 5.0, f64::NEG_INFINITY]);
    let run = |bits: u32| -> f64 {
        let mut out = [-1.0];
        let words = [bits];
        let new = AttentionArgs::new(
            view(&[1.0], &[1, 1, 1, 1]),
            view(&k, &[1, 4, 1, 1]),
            view(&v, &[1, 4, 1, 1]),
            view_mut(&mut out, &[1, 1, 1, 1]),
        );
        let first = new.first.clone().with_keys(Keys::Bits(view(&words, &[1, 1])));
        OP.run(&reference(), AttentionArgs { first, ..new }).unwrap();
        out[0]
    };
    assert_eq!(run(0b0101), 4.0);
    assert!(run(0b0111).is_nan());
    assert!(run(0b1101).is_nan());
    assert!(run(0b0010).is_nan());
}

#[test]
fn stride_0_inputs() {
    // One query and one K/V entry for both problems, by stride 0.
    let mut out = [0.0; 2];
    let shared = |data: &'static [f64], rows| View::strided(data, &[2, rows, 1, 1], &[0, 1, 1, 1]).unwrap();
    let args = AttentionArgs::new(
        shared(&[0.0], 1),
        shared(&[1.0, 2.0], 2),
        shared(&[4.0, 8.0], 2),
        view_mut(&mut out, &[2, 1, 1, 1]),
    );
    OP.run(&reference(), args).unwrap();
    assert_eq!(out, [6.0, 6.0]);
}

#[test]
fn low_precision_is_rounded_once_and_the_yardstick_is_close() {
    let h = half::f16::from_f32;
    let data: Vec<half::f16> = (0..64).map(|i| h((i * 37 % 64) as f32 / 32.0 - 1.0)).collect();
    let run = |device: Device| {
        let mut out = [0f32; 16];
        let args = AttentionArgs::new(
            view(&data[..16], &[1, 2, 1, 8]),
            view(&data[16..], &[1, 6, 1, 8]),
            view(&data[16..], &[1, 6, 1, 8]),
            view_mut(&mut out, &[1, 2, 1, 8]),
        );
        Attention::for_head_dim(8).run(&device, args).unwrap();
        out
    };
    let truth = run(reference());
    let mut differs = false;
    for permutation in 0..8 {
        let yardstick = run(Device::yardstick(permutation));
        differs |= yardstick != truth;
        for (y, t) in yardstick.iter().zip(&truth) {
            assert!((y - t).abs() < 1e-6, "{y} {t}");
        }
    }
    assert!(differs);
}
