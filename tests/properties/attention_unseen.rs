//! What no row sees reaches nothing, bitwise, even when it is NaN or infinite; and problems of a
//! batch do not know of each other.

use xattn::ops::{AttentionArgs, Segment};
use xattn::pack_bits;

use crate::problem::{Exists, Problem, Rule};
use crate::support::{Values, assert_differs, assert_same_bits, labs};

const POISON: [f64; 4] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 3e38];

#[test]
fn the_content_of_a_medium_that_no_row_sees_changes_nothing() {
    for lab in labs() {
        for rule in [Rule::Same, Rule::Preceding] {
            for per_media in [4, 5, 64, 96] {
                let mut p = Problem::sized(1, 2, 4, per_media, rule);
                // No row sees medium 4; under `Same` none sees medium 2 either.
                p.media_index.iter_mut().for_each(|phi| *phi = [0, 1, 3, 3, 1][*phi as usize]);
                let expected = p.run(&lab);
                for poison in POISON {
                    let mut poisoned = p.clone();
                    for problem in 0..p.batch {
                        let hidden: &[usize] = if rule == Rule::Same { &[1, 3] } else { &[3] };
                        for &medium in hidden {
                            for key in medium * per_media..(medium + 1) * per_media {
                                poisoned.poison(problem, key, poison);
                            }
                        }
                    }
                    assert_same_bits(&poisoned.run(&lab), &expected);
                }
            }
        }
    }
}

/// Under `Same` a row's result does not know of the media that its neighbours in the same tile see.
#[test]
fn rows_do_not_see_the_media_of_their_neighbours() {
    for lab in labs() {
        let mut p = Problem::new(2, 5, Rule::Same);
        let expected = p.run(&lab);
        for key in 5..10 {
            p.poison(0, key, f64::NAN);
        }
        let got = p.run(&lab);
        let width = p.row_width();
        for (row, &phi) in p.media_index.iter().enumerate() {
            let at = row * width..(row + 1) * width;
            if phi == 2 && row < p.rows {
                assert!(got[at].iter().all(|x| x.is_nan()), "row {row} sees the poisoned medium");
            } else {
                assert_same_bits(&got[at.clone()], &expected[at]);
            }
        }
    }
}

#[test]
fn padding_keys_change_nothing() {
    for lab in labs() {
        for rule in [Rule::All, Rule::Same, Rule::Preceding] {
            for per_media in [5, 96] {
                let mut p = Problem::new(3, per_media, rule);
                let keys = p.keys_per_problem();
                let lengths = [keys - 3, per_media + 1];
                p.keys = Exists::Lengths(lengths.map(|n| n as u32).to_vec());
                let holes: Vec<u8> = (0..2 * keys).map(|i| u8::from(i % 3 != 0)).collect();
                let masked = Problem { keys: Exists::Bits(pack_bits(&holes, keys).unwrap()), ..p.clone() };
                let expected = (p.run(&lab), masked.run(&lab));
                assert_differs(&expected.0, &expected.1);
                for poison in POISON {
                    let (mut padded, mut holed) = (p.clone(), masked.clone());
                    for (problem, &length) in lengths.iter().enumerate() {
                        (length..keys).for_each(|key| padded.poison(problem, key, poison));
                        (0..keys)
                            .filter(|key| holes[problem * keys + key] == 0)
                            .for_each(|key| holed.poison(problem, key, poison));
                    }
                    assert_same_bits(&padded.run(&lab), &expected.0);
                    assert_same_bits(&holed.run(&lab), &expected.1);
                }
            }
        }
    }
}

#[test]
fn unused_slots_of_a_cache_change_nothing() {
    for lab in labs() {
        let p = Problem::sized(4, 4, 2, 5, Rule::All);
        let slots = lab.words(&[2, 0], &[2]);
        let q = lab.tensor(&p.q[..2 * p.rows * p.row_width()], &[2, p.rows, p.heads, p.head_dim]);
        let run = |p: &Problem| {
            let (k, v) = (lab.tensor(&p.k, &p.kv_shape()), lab.tensor(&p.v, &p.kv_shape()));
            let first = Segment::new(k.view(), v.view()).with_slots(slots.view());
            let args = AttentionArgs { first, ..AttentionArgs::new(q.view(), k.view(), v.view(), ()) };
            lab.run(&p.op(), q.spec().shape(), args)
        };
        let expected = run(&p);
        for poison in POISON {
            let mut poisoned = p.clone();
            for entry in [1, 3] {
                (0..p.keys_per_problem()).for_each(|key| poisoned.poison(entry, key, poison));
            }
            assert_same_bits(&run(&poisoned), &expected);
        }
    }
}

#[test]
fn the_content_of_batch_neighbours_changes_nothing() {
    for lab in labs() {
        for rule in [Rule::All, Rule::Same, Rule::Preceding] {
            let p = Problem::sized(5, 3, 3, 5, rule);
            let expected = p.run(&lab);
            let mut other = p.clone();
            let mut values = Values::new(6);
            for problem in [0, 2] {
                let rows = problem * p.rows * p.row_width()..(problem + 1) * p.rows * p.row_width();
                let fresh = values.normal(rows.len());
                other.q[rows].copy_from_slice(&fresh);
                (0..p.keys_per_problem()).for_each(|key| other.poison(problem, key, f64::NAN));
                other.media_index[problem * p.rows..(problem + 1) * p.rows].fill(1);
            }
            let got = other.run(&lab);
            let middle = p.rows * p.row_width()..2 * p.rows * p.row_width();
            assert_same_bits(&got[middle.clone()], &expected[middle.clone()]);
            assert!(got[..middle.start].iter().any(|x| x.is_nan()));
        }
    }
}

/// Their number changes nothing either: attention promises more than the products around it.
#[test]
fn the_number_of_batch_neighbours_changes_nothing() {
    for lab in labs() {
        for rule in [Rule::All, Rule::Same, Rule::Preceding] {
            let p = Problem::sized(7, 5, 3, 96, rule);
            let expected = p.run(&lab);
            let (rows, keys) = (p.rows * p.row_width(), p.keys_per_problem() * p.key_width());
            for b in 0..p.batch {
                let alone = Problem {
                    batch: 1,
                    q: p.q[b * rows..(b + 1) * rows].to_vec(),
                    k: p.k[b * keys..(b + 1) * keys].to_vec(),
                    v: p.v[b * keys..(b + 1) * keys].to_vec(),
                    media_index: p.media_index[b * p.rows..(b + 1) * p.rows].to_vec(),
                    ..p.clone()
                };
                assert_same_bits(&alone.run(&lab), &expected[b * rows..(b + 1) * rows]);
            }
        }
    }
}
