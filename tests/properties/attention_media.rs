//! `attention` under the rules over media: what φ, empty rows and exact numbers must give.

use xattn::ops::{Attention, AttentionArgs, EmptyRow, EmptyRows, Media, Visibility};
use xattn::{DType, Device, Dispatch, HostTensor, Tensor, View, ViewMut};

use crate::problem::{Exists, Problem, Rule};
use crate::support::{Values, assert_differs, assert_same_bits, labs};

/// Per medium: keys that fill no vector and no chunk, and ones that straddle chunks.
const PER_MEDIA: [usize; 4] = [4, 5, 64, 96];

/// The same problem with medium `i` where `order[i]` was.
fn permuted(p: &Problem, order: &[usize]) -> Problem {
    let n = p.per_media * p.key_width();
    let permute = |values: &[f64]| -> Vec<f64> {
        let problems = values.chunks(p.media * n);
        problems.flat_map(|one| order.iter().flat_map(|&m| one[m * n..(m + 1) * n].to_vec())).collect()
    };
    let relabel = |&phi: &i32| match order.iter().position(|&m| m as i32 + 1 == phi) {
        Some(at) => at as i32 + 1,
        None => phi,
    };
    Problem {
        k: permute(&p.k),
        v: permute(&p.v),
        media_index: p.media_index.iter().map(relabel).collect(),
        ..p.clone()
    }
}

#[test]
fn permuting_media_with_relabelled_indices_changes_no_bit() {
    for lab in labs() {
        for (seed, per_media) in (0..).zip(PER_MEDIA) {
            let p = Problem::sized(seed, 2, 4, per_media, Rule::Same);
            let expected = p.run(&lab);
            assert_same_bits(&permuted(&p, &[2, 0, 3, 1]).run(&lab), &expected);
            let unlabelled = Problem { media_index: p.media_index.clone(), ..permuted(&p, &[2, 0, 3, 1]) };
            assert_differs(&unlabelled.run(&lab), &expected);
        }
    }
}

/// With preceding media, a permutation that keeps all occurring prefixes only reorders sums.
#[test]
fn permuting_media_inside_a_prefix_changes_rounding_only() {
    for lab in labs() {
        for (seed, per_media) in (10..).zip(PER_MEDIA) {
            let mut p = Problem::sized(seed, 2, 4, per_media, Rule::Preceding);
            p.media_index.iter_mut().for_each(|phi| *phi = [0, 3, 4][*phi as usize % 3]);
            let swapped = Problem { media_index: p.media_index.clone(), ..permuted(&p, &[2, 0, 1, 3]) };
            lab.assert_near(&swapped.run(&lab), &p.run(&lab));
        }
    }
}

#[test]
fn preceding_media_of_the_last_index_is_no_mask() {
    for lab in labs() {
        for (seed, per_media) in (20..).zip(PER_MEDIA) {
            let mut p = Problem::new(seed, per_media, Rule::Preceding);
            p.media_index.fill(p.media as i32);
            let open = Problem { rule: Rule::All, ..p.clone() };
            assert_same_bits(&p.run(&lab), &open.run(&lab));
            // φ beyond the media sees all of them too.
            p.media_index.fill(p.media as i32 + 7);
            assert_same_bits(&p.run(&lab), &open.run(&lab));
        }
    }
}

/// Each row of `SameMedia` is the plain softmax over its medium alone.
#[test]
fn a_row_sees_its_medium_and_nothing_else() {
    for lab in labs() {
        for (seed, per_media) in (30..).zip(PER_MEDIA) {
            let p = Problem::new(seed, per_media, Rule::Same);
            let got = p.run(&lab);
            let mut alone = Vec::new();
            for m in 0..p.media {
                let n = p.per_media * p.key_width();
                let part = |values: &[f64]| -> Vec<f64> {
                    values.chunks(p.media * n).flat_map(|one| one[m * n..(m + 1) * n].to_vec()).collect()
                };
                let single = Problem { media: 1, k: part(&p.k), v: part(&p.v), rule: Rule::All, ..p.clone() };
                alone.push(single.run(&lab));
            }
            let width = p.row_width();
            for (row, &phi) in p.media_index.iter().enumerate() {
                let at = row * width..(row + 1) * width;
                match usize::try_from(phi).unwrap() {
                    0 => assert_same_bits(&got[at], &vec![0.0; width]),
                    m => lab.assert_near(&got[at.clone()], &alone[m - 1][at]),
                }
            }
        }
    }
}

/// The mean of V over all key slots of a problem, for every row and head.
fn mean_of_values(p: &Problem) -> Vec<f64> {
    let keys = p.keys_per_problem();
    let group = p.heads / p.kv_heads;
    let mut out = Vec::new();
    for b in 0..p.batch {
        let problem = &p.v[b * keys * p.key_width()..(b + 1) * keys * p.key_width()];
        for _ in 0..p.rows {
            for h in 0..p.heads {
                let column = |d: usize| problem.iter().skip(h / group * p.head_dim + d).step_by(p.key_width());
                out.extend((0..p.head_dim).map(|d| column(d).sum::<f64>() / keys as f64));
            }
        }
    }
    out
}

/// All rows without a medium: zeros, the mean of V, or the softmax over all keys.
#[test]
fn a_batch_of_empty_rows_gets_what_the_policy_says() {
    for lab in labs() {
        for rule in [Rule::Same, Rule::Preceding] {
            let mut p = Problem::new(40, 5, rule);
            p.media_index.fill(0);
            let open = Problem { rule: Rule::All, ..p.clone() }.run(&lab);
            assert_same_bits(&p.run(&lab), &vec![0.0; open.len()]);
            p.empty = EmptyRow::Uniform;
            lab.assert_near(&p.run(&lab), &mean_of_values(&p));
            p.empty = EmptyRow::AttendAll;
            lab.assert_near(&p.run(&lab), &open);
        }
    }
}

/// All keys masked by lengths: the same three answers.
#[test]
fn a_batch_whose_keys_are_all_masked_gets_what_the_policy_says() {
    for lab in labs() {
        let mut p = Problem::new(41, 5, Rule::All);
        let open = p.run(&lab);
        p.keys = Exists::Lengths(vec![0, 0]);
        assert_same_bits(&p.run(&lab), &vec![0.0; open.len()]);
        p.empty = EmptyRow::Uniform;
        lab.assert_near(&p.run(&lab), &mean_of_values(&p));
        p.empty = EmptyRow::AttendAll;
        lab.assert_near(&p.run(&lab), &open);
    }
}

#[test]
fn without_any_medium_every_policy_gives_zeros() {
    for lab in labs() {
        for rule in [Rule::All, Rule::Same, Rule::Preceding] {
            for empty in [EmptyRow::Zero, EmptyRow::Uniform, EmptyRow::AttendAll] {
                let mut p = Problem { empty, ..Problem::sized(42, 2, 0, 5, rule) };
                p.media_index.iter_mut().enumerate().for_each(|(i, phi)| *phi = i as i32 % 3);
                assert_same_bits(&p.run(&lab), &vec![0.0; p.batch * p.rows * p.row_width()]);
            }
        }
    }
}

/// In f16, code that adds the most negative number to scores below -16 overflows to -inf, and its
/// "uniform" row is not uniform. Ours is.
#[test]
fn uniform_rows_are_uniform_in_f16_whatever_the_scores() {
    let (keys, head_dim) = (6usize, 8usize);
    let q = vec![4.0f64; head_dim];
    let k: Vec<f64> = (0..keys * head_dim).map(|i| -2.0 - (i / head_dim) as f64).collect();
    let v: Vec<f64> = (0..keys * head_dim).map(|i| (i / head_dim) as f64).collect();
    for device in [Device::reference(), Device::cpu()] {
        let half = |values: &[f64], shape: &[usize]| {
            let host = HostTensor::from_slice(values, shape).unwrap();
            Tensor::upload(&device, &host, DType::F16).unwrap()
        };
        let (q, k, v) =
            (half(&q, &[1, 1, 1, head_dim]), half(&k, &[1, keys, 1, head_dim]), half(&v, &[1, keys, 1, head_dim]));
        let phi = [0i32];
        let media = Media { media_index: View::new(&phi, &[1, 1]).unwrap(), keys_per_media: 2, plan: None };
        let mut out = Tensor::zeros(&device, DType::F16, &[1, 1, 1, head_dim]).unwrap();
        let visibility = Visibility::SameMedia(media);
        let args = AttentionArgs { visibility, ..AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut()) };
        // Scores are -64 times 1 to 3.5, scale 1.
        let op = Attention { scale: 1.0, empty_rows: EmptyRows::all(EmptyRow::Uniform) };
        op.run(&device, args).unwrap();
        assert_eq!(out.download(&device).unwrap().to_f64().unwrap(), vec![2.5; head_dim]);
    }
}

/// A single visible key gives its V exactly; a uniform row over integers, their exact mean.
#[test]
fn sparse_small_integers_are_exact() {
    for lab in labs() {
        let mut values = Values::new(43);
        let mut p = Problem::sized(43, 2, 8, 1, Rule::Same);
        p.q = values.sparse(p.q.len());
        p.k = values.sparse(p.k.len());
        p.v = values.sparse(p.v.len());
        let out = p.run(&lab);
        let group = p.heads / p.kv_heads;
        let mut expected = Vec::new();
        for (row, &phi) in p.media_index.iter().enumerate() {
            for h in 0..p.heads {
                for d in 0..p.head_dim {
                    let key = usize::try_from(phi).unwrap().checked_sub(1);
                    expected.push(key.map_or(0.0, |key| p.v[p.key(row / p.rows, key)][h / group * p.head_dim + d]));
                }
            }
        }
        assert_same_bits(&out, &expected);
        // Equal scores: the mean over 8 keys of sums of small integers is exact.
        p.q.fill(0.0);
        let uniform = Problem { rule: Rule::All, ..p };
        assert_same_bits(&uniform.run(&lab), &mean_of_values(&uniform));
    }
}

/// The plan that `media_index` leaves never changes a bit.
#[test]
fn a_plan_changes_nothing() {
    use xattn::ops::{MediaIndex, MediaIndexArgs, MediaSource};
    for lab in labs() {
        let mut p = Problem::new(44, 5, Rule::Same);
        let locations: Vec<u32> = (0..p.batch * p.rows).map(|i| u32::from(i % p.rows % 7 == 3)).collect();
        let locations = lab.words(&locations, &[p.batch, p.rows]);
        let mut media_index = lab.ints(&vec![-1; p.batch * p.rows], &[p.batch, p.rows]);
        let mut plan = lab.words(&vec![9; p.batch * (1 + p.rows) * 2], &[p.batch, 1 + p.rows, 2]);
        let args = MediaIndexArgs {
            source: MediaSource::Locations(locations.view()),
            carry_in: None,
            carry_out: None::<ViewMut<'_>>,
            media_count: None,
            media_index: media_index.view_mut(),
            plan: Some(plan.view_mut()),
        };
        MediaIndex::default().run(&lab.device, args).unwrap();
        p.media_index = media_index.download(&lab.device).unwrap().to_vec().unwrap();
        assert_eq!(p.media_index[..12], [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2]);
        let (q, k, v) =
            (lab.tensor(&p.q, &p.q_shape()), lab.tensor(&p.k, &p.kv_shape()), lab.tensor(&p.v, &p.kv_shape()));
        let media = Media { media_index: media_index.view(), keys_per_media: 5, plan: Some(plan.view()) };
        let visibility = Visibility::SameMedia(media);
        let args = AttentionArgs { visibility, ..AttentionArgs::new(q.view(), k.view(), v.view(), ()) };
        assert_same_bits(&lab.run(&p.op(), &p.q_shape(), args), &p.run(&lab));
    }
}
