//! One result for all layouts: padded or ragged, slots or gathered, one segment or two.

use xattn::ops::{AttentionArgs, Keys, Media, Segment, Visibility};

use crate::problem::{Exists, Problem, Rule};
use crate::support::{assert_same_bits, labs};

/// The first `lengths[b]` rows of each problem's `[rows, width]`, one problem after the other.
fn ragged(values: &[f64], rows: usize, width: usize, lengths: &[usize]) -> Vec<f64> {
    let problems = values.chunks(rows * width);
    problems.zip(lengths).flat_map(|(one, &n)| one[..n * width].iter().copied()).collect()
}

fn offsets(lengths: &[usize]) -> Vec<u32> {
    let mut sum = 0;
    std::iter::once(0)
        .chain(lengths.iter().map(|&n| {
            sum += n as u32;
            sum
        }))
        .collect()
}

#[test]
fn ragged_keys_equal_padded_keys_with_lengths() {
    for lab in labs() {
        for rule in [Rule::All, Rule::Same] {
            let mut p = Problem::sized(1, 4, 3, 7, rule);
            let lengths = [21, 0, 14, 3];
            p.keys = Exists::Lengths(lengths.map(|n| n as u32).to_vec());
            let expected = p.run(&lab);
            let total = lengths.iter().sum();
            let shape = [1, total, p.kv_heads, p.head_dim];
            let pack =
                |values: &[f64]| lab.tensor(&ragged(values, p.keys_per_problem(), p.key_width(), &lengths), &shape);
            let (q, k, v) = (lab.tensor(&p.q, &p.q_shape()), pack(&p.k), pack(&p.v));
            let offsets = lab.words(&offsets(&lengths), &[5]);
            let phi = lab.ints(&p.media_index, &[p.batch, p.rows]);
            let media = Media { media_index: phi.view(), keys_per_media: 7, plan: None };
            let visibility = if rule == Rule::All { Visibility::All } else { Visibility::SameMedia(media) };
            let first = Segment::new(k.view(), v.view()).with_offsets(offsets.view());
            let args = AttentionArgs { first, visibility, ..AttentionArgs::new(q.view(), k.view(), v.view(), ()) };
            assert_same_bits(&lab.run(&p.op(), &p.q_shape(), args), &expected);
        }
    }
}

#[test]
fn ragged_queries_equal_padded_queries() {
    for lab in labs() {
        for rule in [Rule::All, Rule::Same, Rule::Preceding] {
            let p = Problem::sized(2, 4, 3, 5, rule);
            let lengths = [21, 1, 0, 13];
            let expected = ragged(&p.run(&lab), p.rows, p.row_width(), &lengths);
            let total = lengths.iter().sum();
            let shape = [1, total, p.heads, p.head_dim];
            let q = lab.tensor(&ragged(&p.q, p.rows, p.row_width(), &lengths), &shape);
            let (k, v) = (lab.tensor(&p.k, &p.kv_shape()), lab.tensor(&p.v, &p.kv_shape()));
            let phi: Vec<i32> =
                p.media_index.chunks(p.rows).zip(lengths).flat_map(|(row, n)| row[..n].to_vec()).collect();
            let phi = lab.ints(&phi, &[1, total]);
            let offsets = lab.words(&offsets(&lengths), &[5]);
            let media = Media { media_index: phi.view(), keys_per_media: 5, plan: None };
            let visibility = match rule {
                Rule::All => Visibility::All,
                Rule::Same => Visibility::SameMedia(media),
                Rule::Preceding => Visibility::PrecedingMedia(media),
            };
            let args = AttentionArgs {
                q_offsets: Some(offsets.view()),
                visibility,
                ..AttentionArgs::new(q.view(), k.view(), v.view(), ())
            };
            assert_same_bits(&lab.run(&p.op(), &shape, args), &expected);
        }
    }
}

#[test]
fn slots_equal_a_gather() {
    for lab in labs() {
        for rule in [Rule::All, Rule::Same] {
            let p = Problem::sized(3, 4, 3, 5, rule);
            // Repeated, shared, out of order, one unused.
            let slots = [3usize, 1, 1, 0];
            let n = p.keys_per_problem() * p.key_width();
            let gather = |values: &[f64]| -> Vec<f64> {
                slots.iter().flat_map(|&s| values[s * n..(s + 1) * n].to_vec()).collect()
            };
            let expected = Problem { k: gather(&p.k), v: gather(&p.v), ..p.clone() }.run(&lab);
            let run = |slots: &[u32]| {
                let slots = lab.words(slots, &[4]);
                let (q, k, v) =
                    (lab.tensor(&p.q, &p.q_shape()), lab.tensor(&p.k, &p.kv_shape()), lab.tensor(&p.v, &p.kv_shape()));
                let phi = lab.ints(&p.media_index, &[p.batch, p.rows]);
                let media = Media { media_index: phi.view(), keys_per_media: 5, plan: None };
                let visibility = if rule == Rule::All { Visibility::All } else { Visibility::SameMedia(media) };
                let first = Segment::new(k.view(), v.view()).with_slots(slots.view());
                let args = AttentionArgs { first, visibility, ..AttentionArgs::new(q.view(), k.view(), v.view(), ()) };
                lab.run(&p.op(), &p.q_shape(), args)
            };
            assert_same_bits(&run(&[3, 1, 1, 0]), &expected);
            // A slot beyond the entries counts as the last one.
            assert_same_bits(&run(&[u32::MAX, 1, 1, 0]), &expected);
        }
    }
}

/// A cache that lies `[entries, heads, keys, head_dim]`, read through `transpose`, is one that lies
/// `[entries, keys, heads, head_dim]`.
#[test]
fn heads_before_keys_equal_keys_before_heads() {
    for lab in labs() {
        let p = Problem::sized(6, 2, 3, 5, Rule::All);
        let expected = p.run(&lab);
        let [entries, keys, heads, dim] = p.kv_shape();
        let heads_first = |values: &[f64]| {
            let at = |e: usize, h: usize, j: usize| ((e * keys + j) * heads + h) * dim;
            let order = (0..entries * heads * keys).map(|i| (i / keys / heads, i / keys % heads, i % keys));
            let moved: Vec<f64> = order.flat_map(|(e, h, j)| values[at(e, h, j)..at(e, h, j) + dim].to_vec()).collect();
            lab.tensor(&moved, &[entries, heads, keys, dim])
        };
        let (q, k, v) = (lab.tensor(&p.q, &p.q_shape()), heads_first(&p.k), heads_first(&p.v));
        let [k, v] = [&k, &v].map(|tensor| tensor.view().transpose(1, 2).unwrap());
        assert!(heads > 1 && keys > 1);
        assert_same_bits(&lab.run(&p.op(), &p.q_shape(), AttentionArgs::new(q.view(), k, v, ())), &expected);
    }
}

/// Two segments are one, whatever the cut: 64 keys from its own beginning included.
#[test]
fn two_segments_equal_one() {
    for lab in labs() {
        let p = Problem::sized(4, 2, 1, 90, Rule::All);
        let expected = p.run(&lab);
        for cut in [0, 1, 26, 64, 89, 90] {
            let (q, k, v) =
                (lab.tensor(&p.q, &p.q_shape()), lab.tensor(&p.k, &p.kv_shape()), lab.tensor(&p.v, &p.kv_shape()));
            let part = |start: usize, n: usize| {
                Segment::new(k.view().narrow(1, start, n).unwrap(), v.view().narrow(1, start, n).unwrap())
            };
            let args = AttentionArgs {
                first: part(0, cut),
                second: Some(part(cut, 90 - cut)),
                ..AttentionArgs::new(q.view(), k.view(), v.view(), ())
            };
            lab.assert_near(&lab.run(&p.op(), &p.q_shape(), args), &expected);
        }
    }
}

/// Keys that all exist by a length or by bits are keys that all exist.
#[test]
fn full_lengths_and_bits_are_no_mask() {
    for lab in labs() {
        let p = Problem::new(5, 17, Rule::Same);
        let keys = p.keys_per_problem();
        let expected = p.run(&lab);
        for all in
            [Exists::Lengths(vec![keys as u32, u32::MAX]), Exists::Bits(vec![u32::MAX; 2 * xattn::bit_words(keys)])]
        {
            assert_same_bits(&Problem { keys: all, ..p.clone() }.run(&lab), &expected);
        }
        let (q, k, v) =
            (lab.tensor(&p.q, &p.q_shape()), lab.tensor(&p.k, &p.kv_shape()), lab.tensor(&p.v, &p.kv_shape()));
        // A zero-length second segment behind a full first one.
        let empty = lab.zeros(&[p.batch, 0, p.kv_heads, p.head_dim]);
        let open = Problem { rule: Rule::All, ..p.clone() }.run(&lab);
        let args = AttentionArgs {
            first: Segment::new(k.view(), v.view()).with_keys(Keys::All),
            second: Some(Segment::new(empty.view(), empty.view())),
            ..AttentionArgs::new(q.view(), k.view(), v.view(), ())
        };
        assert_same_bits(&lab.run(&p.op(), &p.q_shape(), args), &open);
    }
}
