//! The Q-Former's objectives: what text and queries may know of each other, cached and at once.

use xattn::bench::RandomWeights;
use xattn::bench::weights::Text;
use xattn::bridge::{Objective, QFormer, QFormerArgs, QFormerCall, QFormerConfig};
use xattn::ops::Keys;
use xattn::{Spec, Tensor, View, ViewMut};

use crate::support::{Lab, Values, assert_differs, assert_same_bits, labs, rows_of, spec};

const BATCH: usize = 2;
const QUERIES: usize = 5;
const TEXT: usize = 6;
const TOKENS: usize = 9;
const WIDTH: usize = 32;

fn config() -> QFormerConfig {
    let mut config = QFormerConfig::new(WIDTH, 4, 24);
    (config.layers, config.queries, config.ffn_hidden) = (3, QUERIES, 48);
    config
}

fn qformer(lab: &Lab) -> QFormer {
    let text = Text { vocabulary: 50, positions: 16 };
    let weights = RandomWeights::new(9).qformer(&config(), Some(text)).unwrap();
    QFormer::new(&lab.device, &config(), &weights, lab.precision()).unwrap()
}

fn features(lab: &Lab) -> Tensor {
    lab.tensor(&Values::new(1).normal(BATCH * TOKENS * 24), &[BATCH, TOKENS, 24])
}

const IDS: [i32; BATCH * TEXT] = [7, 3, 11, 0, 2, 49, 1, 8, 8, 20, 30, 40];

/// Queries and text in one call.
fn joint(lab: &Lab, ids: &[i32], objective: Objective, lengths: Option<[u32; 2]>) -> Vec<f64> {
    let (q, features) = (qformer(lab), features(lab));
    let rows = ids.len() / BATCH;
    let ids = lab.ints(ids, &[BATCH, rows]);
    let lengths = lengths.map(|n| lab.words(&n, &[BATCH]));
    let mut args = QFormerArgs::image(features.view(), ());
    args.text = Some(ids.view());
    args.text_keys = lengths.as_ref().map_or(Keys::All, |n| Keys::Lengths(n.view()));
    lab.run_bridge::<QFormerCall>(|s| q.prepare(objective, 0, s), &[BATCH, QUERIES + rows, WIDTH], args)
}

fn image_alone(lab: &Lab) -> Vec<f64> {
    let (q, features) = (qformer(lab), features(lab));
    let args = QFormerArgs::image(features.view(), ());
    lab.run_bridge::<QFormerCall>(|s| q.prepare(Objective::Bidirectional, 0, s), &[BATCH, QUERIES, WIDTH], args)
}

fn query_rows(hidden: &[f64]) -> Vec<f64> {
    rows_of(hidden, [BATCH, hidden.len() / BATCH / WIDTH, WIDTH], 0, QUERIES)
}

fn text_rows(hidden: &[f64], start: usize, len: usize) -> Vec<f64> {
    rows_of(hidden, [BATCH, hidden.len() / BATCH / WIDTH, WIDTH], QUERIES + start, len)
}

#[test]
fn pad_ids_change_no_bit_of_the_query_rows() {
    for lab in labs() {
        let lengths = Some([4, 2]);
        let expected = joint(&lab, &IDS, Objective::Bidirectional, lengths);
        let mut other = IDS;
        for pad in [4, 5, TEXT + 2, TEXT + 3, TEXT + 4, TEXT + 5] {
            other[pad] = 33;
        }
        let got = joint(&lab, &other, Objective::Bidirectional, lengths);
        assert_same_bits(&query_rows(&got), &query_rows(&expected));
        assert_same_bits(&text_rows(&got, 0, 2), &text_rows(&expected, 0, 2));
        // Without the mask they would: the property sees it.
        let open = joint(&lab, &other, Objective::Bidirectional, None);
        assert_differs(&query_rows(&open), &query_rows(&joint(&lab, &IDS, Objective::Bidirectional, None)));
    }
}

/// ITM: text padded to any length under its mask equals the text alone.
#[test]
fn matching_with_padded_text_equals_matching_without() {
    for lab in labs() {
        let short: Vec<i32> = [&IDS[..4], &IDS[TEXT..TEXT + 4]].concat();
        let alone = joint(&lab, &short, Objective::Bidirectional, None);
        let padded = joint(&lab, &IDS, Objective::Bidirectional, Some([4, 4]));
        lab.assert_near(&query_rows(&padded), &query_rows(&alone));
        lab.assert_near(&text_rows(&padded, 0, 4), &text_rows(&alone, 0, 4));
        // In ITM the queries do see the text.
        let mut other = IDS;
        other[1] = 2;
        let other = joint(&lab, &other, Objective::Bidirectional, Some([4, 4]));
        assert_differs(&query_rows(&other)[..QUERIES * WIDTH], &query_rows(&padded)[..QUERIES * WIDTH]);
        assert_same_bits(&query_rows(&other)[QUERIES * WIDTH..], &query_rows(&padded)[QUERIES * WIDTH..]);
    }
}

/// ITG: queries know of no text, and text of no later text.
#[test]
fn generation_looks_only_back() {
    for lab in labs() {
        let hidden = joint(&lab, &IDS, Objective::TextGeneration, None);
        lab.assert_near(&query_rows(&hidden), &image_alone(&lab));
        let mut other = IDS;
        other[3] = 19;
        let got = joint(&lab, &other, Objective::TextGeneration, None);
        assert_same_bits(&query_rows(&got), &query_rows(&hidden));
        assert_same_bits(&text_rows(&got, 0, 3), &text_rows(&hidden, 0, 3));
        assert_differs(&text_rows(&got, 4, 2), &text_rows(&hidden, 4, 2));
    }
}

/// K and V of a call's rows, one tensor per layer.
fn room(lab: &Lab, rows: usize) -> Vec<Tensor> {
    (0..config().layers).map(|_| lab.zeros(&[BATCH, rows, 2 * WIDTH])).collect()
}

/// Text `start..start + len` over the first `past` rows of each cache; appends its K and V.
fn cached_text(lab: &Lab, q: &QFormer, cache: &mut [Tensor], start: usize, len: usize) -> Vec<f64> {
    cached_text_without(lab, q, cache, start..start + len, None)
}

/// The same, where no row sees this word of the text.
fn cached_text_without(
    lab: &Lab,
    q: &QFormer,
    cache: &mut [Tensor],
    text: std::ops::Range<usize>,
    unseen: Option<usize>,
) -> Vec<f64> {
    let (start, len) = (text.start, text.len());
    let past = QUERIES + start;
    let word = |bits: u32| lab.words(&[bits; BATCH], &[BATCH, 1]);
    // Cached rows, then text.
    let masks = unseen.map(|at| {
        let bits = !(1u64 << (QUERIES + at));
        [word(bits as u32), word((bits >> past) as u32)]
    });
    let specs = |i: usize| masks.as_ref().map_or(Keys::All, |m| Keys::Bits(m[i].spec()));
    let views = |i: usize| masks.as_ref().map_or(Keys::All, |m| Keys::Bits(m[i].view()));
    let ids: Vec<i32> = IDS.chunks(TEXT).flat_map(|row| row[start..start + len].to_vec()).collect();
    let ids = lab.ints(&ids, &[BATCH, len]);
    let mut hidden = lab.zeros(&[BATCH, len, WIDTH]);
    let mut present = room(lab, len);
    let narrow = |spec: Spec| spec.narrow(1, 0, past).unwrap().0;
    let mut shapes = QFormerArgs::text(ids.spec(), specs(1), hidden.spec());
    shapes.past_keys = specs(0);
    shapes.past = cache.iter().map(|t| narrow(t.spec())).collect();
    shapes.present = present.iter().map(Tensor::spec).collect();
    let prepared = q.prepare(Objective::TextGeneration, start, shapes).unwrap();
    let mut args: QFormerArgs<View<'_>, ViewMut<'_>> = QFormerArgs::text(ids.view(), views(1), hidden.view_mut());
    args.past_keys = views(0);
    args.past = cache.iter().map(|t| t.view().narrow(1, 0, past).unwrap()).collect();
    args.present = present.iter_mut().map(Tensor::view_mut).collect();
    prepared.run(args).unwrap();
    for (cache, present) in cache.iter_mut().zip(&present) {
        let rows = QUERIES + TEXT;
        let (mut all, new) = (lab.read(cache), lab.read(present));
        for b in 0..BATCH {
            let to = (b * rows + past) * 2 * WIDTH;
            all[to..to + len * 2 * WIDTH].copy_from_slice(&new[b * len * 2 * WIDTH..(b + 1) * len * 2 * WIDTH]);
        }
        *cache = lab.tensor(&all, &[BATCH, rows, 2 * WIDTH]);
    }
    lab.read(&hidden)
}

/// The image pass, its K and V at the front of caches with room for the text.
fn image_pass(lab: &Lab, q: &QFormer) -> Vec<Tensor> {
    let features = features(lab);
    let mut cache = room(lab, QUERIES + TEXT);
    let mut hidden = lab.zeros(&[BATCH, QUERIES, WIDTH]);
    let front = |spec: Spec| spec.narrow(1, 0, QUERIES).unwrap().0;
    let mut shapes = QFormerArgs::image(features.spec(), hidden.spec());
    shapes.present = cache.iter().map(|t| front(t.spec())).collect();
    let prepared = q.prepare(Objective::Bidirectional, 0, shapes).unwrap();
    let mut args = QFormerArgs::image(features.view(), hidden.view_mut());
    args.present = cache.iter_mut().map(|t| t.view_mut().narrow(1, 0, QUERIES).unwrap()).collect();
    prepared.run(args).unwrap();
    cache
}

#[test]
fn cached_generation_equals_the_joint_pass() {
    for lab in labs() {
        let q = qformer(&lab);
        let expected = joint(&lab, &IDS, Objective::TextGeneration, None);
        let at_once = cached_text(&lab, &q, &mut image_pass(&lab, &q), 0, TEXT);
        lab.assert_near(&at_once, &text_rows(&expected, 0, TEXT));
        // Token by token, and with a prompt first.
        for lengths in [&[1; TEXT][..], &[3, 1, 2]] {
            let (mut cache, mut start) = (image_pass(&lab, &q), 0);
            for &len in lengths {
                let rows = cached_text(&lab, &q, &mut cache, start, len);
                lab.assert_near(&rows, &text_rows(&expected, start, len));
                start += len;
            }
        }
    }
}

/// A word that is masked stays so once it is cached.
#[test]
fn a_cached_word_that_is_masked_is_not_seen() {
    const UNSEEN: usize = 1;
    for lab in labs() {
        let (q, features, ids) = (qformer(&lab), features(&lab), lab.ints(&IDS, &[BATCH, TEXT]));
        let bits = lab.words(&[!(1 << UNSEEN); BATCH], &[BATCH, 1]);
        let mut args = QFormerArgs::image(features.view(), ());
        (args.text, args.text_keys) = (Some(ids.view()), Keys::Bits(bits.view()));
        let shape = [BATCH, QUERIES + TEXT, WIDTH];
        let expected = lab.run_bridge::<QFormerCall>(|s| q.prepare(Objective::TextGeneration, 0, s), &shape, args);
        assert_differs(
            &text_rows(&expected, 2, 4),
            &text_rows(&joint(&lab, &IDS, Objective::TextGeneration, None), 2, 4),
        );
        let mut cache = image_pass(&lab, &q);
        for text in [0..3, 3..4, 4..TEXT] {
            let wanted = text_rows(&expected, text.start, text.len());
            lab.assert_near(&cached_text_without(&lab, &q, &mut cache, text, Some(UNSEEN)), &wanted);
        }
    }
}

/// Hostile ids count as the first or last word; nothing else moves.
#[test]
fn token_ids_outside_the_vocabulary_are_clamped() {
    for lab in labs() {
        let (mut hostile, mut clamped) = (IDS, IDS);
        (hostile[0], hostile[7]) = (i32::MIN, i32::MAX);
        (clamped[0], clamped[7]) = (0, 49);
        let [a, b] = [hostile, clamped].map(|ids| joint(&lab, &ids, Objective::Bidirectional, None));
        assert_same_bits(&a, &b);
    }
}

#[test]
fn batch_neighbours_change_no_bit() {
    for lab in labs() {
        let expected = joint(&lab, &IDS, Objective::Bidirectional, None);
        let mut other = IDS;
        other[TEXT..].fill(17);
        let got = joint(&lab, &other, Objective::Bidirectional, None);
        let half = expected.len() / 2;
        assert_same_bits(&got[..half], &expected[..half]);
        assert_differs(&got[half..], &expected[half..]);
    }
}

#[test]
fn contradictions_are_errors_that_name_them() {
    let lab = &labs()[1];
    let q = qformer(lab);
    let d = lab.dtype;
    let features = spec(d, &[BATCH, TOKENS, 24]);
    let refuse = |position: usize, args: QFormerArgs<Spec, Spec>| {
        q.prepare(Objective::Bidirectional, position, args).err().map(|e| e.to_string()).unwrap()
    };
    let hidden = |rows: usize| spec(d, &[BATCH, rows, WIDTH]);
    let ids = |rows: usize| spec(xattn::DType::I32, &[BATCH, rows]);
    assert_eq!(
        refuse(0, QFormerArgs::image(features, spec(d, &[BATCH, QUERIES, 31]))),
        "qformer: hidden: expected shape [batch, rows, 32], got f32[2, 5, 31]"
    );
    assert_eq!(
        refuse(0, QFormerArgs::image(features, hidden(6))),
        "qformer: hidden: expected 0 or 5 rows, got f32[2, 6, 32]"
    );
    assert_eq!(
        refuse(0, QFormerArgs::image(spec(d, &[BATCH, TOKENS, 23]), hidden(QUERIES))),
        "qformer: features: expected shape [2, tokens, 24] beside queries, got f32[2, 9, 23]"
    );
    assert_eq!(
        refuse(11, QFormerArgs::text(ids(6), Keys::All, hidden(6))),
        "qformer: text: expected positions within 0..16, got 11..11+6"
    );
    assert_eq!(
        refuse(0, QFormerArgs::text(spec(d, &[BATCH, 6]), Keys::All, hidden(6))),
        "qformer: text: expected i32[2, text rows], got f32[2, 6]"
    );
    let mut past = QFormerArgs::text(ids(1), Keys::All, hidden(1));
    past.past = vec![spec(d, &[BATCH, 5, 64]); 2];
    assert_eq!(refuse(5, past), "qformer: past: expected 3 tensors, one per layer, got 2");
    let mut present = QFormerArgs::image(features, hidden(QUERIES));
    present.present = vec![spec(d, &[BATCH, 4, 64]); 3];
    assert_eq!(refuse(0, present), "qformer: present: expected shape [2, 5, 64], got f32[2, 4, 64]");
}
