//! Whether two strided operands share a byte, decided from their strides alone.

use super::{MAX_RANK, Spec};

/// A distance between elements in bytes, and the bounds of its factor in the difference of the
/// first operand's position and the second's.
#[derive(Clone, Copy, Default)]
struct Level {
    stride: i128,
    least: i128,
    most: i128,
}

/// Whether an element of `a`, which begins at byte `a_start`, shares a byte with one of `b`. Yes
/// where the strides do not nest, and this cannot be decided in a few steps.
///
/// Positions differ by Σ δ · stride, over the strides of both. From the largest stride to the
/// smallest, the smaller ones together bridge less than one step in every layout of rows, heads and
/// columns. So at most two δ per stride can lead to a shared byte.
pub(crate) fn may_share(a: &Spec, a_start: u64, b: &Spec, b_start: u64) -> bool {
    if a.span() == 0 || b.span() == 0 {
        return false;
    }
    let mut levels = [Level::default(); 2 * MAX_RANK];
    let mut count = 0;
    let mut add = |spec: &Spec, sign: i128| {
        let size = spec.dtype().size() as i128;
        for (&n, &stride) in spec.shape().iter().zip(spec.strides()) {
            let (stride, steps) = (stride as i128 * size, n as i128 - 1);
            if stride == 0 || steps == 0 {
                continue;
            }
            let at = levels[..count].iter().position(|l| l.stride == stride).unwrap_or(count);
            count = count.max(at + 1);
            levels[at].stride = stride;
            if sign > 0 {
                levels[at].most += steps;
            } else {
                levels[at].least -= steps;
            }
        }
    };
    add(a, 1);
    add(b, -1);
    let levels = &mut levels[..count];
    levels.sort_unstable_by_key(|l| std::cmp::Reverse(l.stride));
    let apart = i128::from(a_start) - i128::from(b_start);
    let (a_size, b_size) = (a.dtype().size() as i128, b.dtype().size() as i128);
    reaches(levels, 1 - a_size - apart, b_size - 1 - apart)
}

/// Whether a sum of the levels' steps lies in `from..=to`, or this cannot be ruled out.
fn reaches(levels: &[Level], from: i128, to: i128) -> bool {
    let Some((level, inner)) = levels.split_first() else {
        return from <= 0 && 0 <= to;
    };
    let least: i128 = inner.iter().map(|l| l.least * l.stride).sum();
    let most: i128 = inner.iter().map(|l| l.most * l.stride).sum();
    let first = level.least.max(-((most - from).div_euclid(level.stride)));
    let last = level.most.min((to - least).div_euclid(level.stride));
    if last - first > 1 {
        return true;
    }
    (first..=last).any(|steps| reaches(inner, from - steps * level.stride, to - steps * level.stride))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    fn spec(dtype: DType, shape: &[usize], strides: &[usize]) -> Spec {
        Spec::strided(dtype, shape, strides).unwrap()
    }

    fn bytes(spec: &Spec, start: u64) -> std::collections::BTreeSet<u64> {
        let mut offsets = vec![0usize];
        for (&n, &stride) in spec.shape().iter().zip(spec.strides()) {
            offsets = offsets.iter().flat_map(|&o| (0..n).map(move |i| o + i * stride)).collect();
        }
        let size = spec.dtype().size() as u64;
        offsets.into_iter().flat_map(|o| (0..size).map(move |b| start + o as u64 * size + b)).collect()
    }

    #[test]
    fn packed_blocks_of_columns_interleave() {
        // q | k | v | out in rows of 4 x 2 heads x 8.
        let block = |i: u64| (spec(DType::BF16, &[2, 5, 2, 8], &[5 * 64, 64, 8, 1]), 4096 + i * 32);
        for i in 0..4 {
            for j in 0..4 {
                let ((a, a_start), (b, b_start)) = (block(i), block(j));
                assert_eq!(may_share(&a, a_start, &b, b_start), i == j, "{i} {j}");
            }
        }
        // They share with one element more.
        assert!(may_share(&block(0).0, 4096 + 2, &block(1).0, 4096 + 32));
        // K and V as halves of a row, with different numbers of rows.
        let k = spec(DType::F32, &[3, 7, 4, 8], &[448, 64, 8, 1]);
        let v = spec(DType::F32, &[3, 6, 4, 8], &[448, 64, 8, 1]);
        assert!(!may_share(&k, 0, &v, 32 * 4));
        assert!(may_share(&k, 0, &v, 31 * 4));
    }

    #[test]
    fn a_cache_and_its_next_row_do_not_share() {
        let past = spec(DType::F32, &[2, 5, 16], &[8 * 16, 16, 1]);
        let present = spec(DType::F32, &[2, 1, 16], &[8 * 16, 16, 1]);
        assert!(!may_share(&past, 0, &present, 5 * 16 * 4));
        assert!(may_share(&past, 0, &present, 4 * 16 * 4));
    }

    #[test]
    fn strides_that_do_not_nest_count_as_sharing() {
        let a = spec(DType::F32, &[5, 7], &[2, 3]);
        let b = spec(DType::F32, &[5, 7], &[2, 3]);
        assert!(may_share(&a, 0, &b, 4));
    }

    /// Against a list of all elements, on small random layouts: never a wrong no, and no wrong yes
    /// where strides nest.
    #[test]
    fn never_says_no_where_a_byte_is_shared() {
        let mut state = 0x2545_F491_4F6C_DD1Du64;
        let mut draw = move |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        let (mut shared, mut apart, mut undecided) = (0, 0, 0);
        for _ in 0..20_000 {
            let dtypes = [DType::F16, DType::F32, DType::F64];
            let mut layout = || {
                let rank = 1 + draw(4) as usize;
                let shape: Vec<usize> = (0..rank).map(|_| draw(4) as usize).collect();
                let strides: Vec<usize> =
                    (0..rank).map(|_| [0, 1, 2, 3, 4, 6, 8, 12, 16, 48][draw(10) as usize]).collect();
                (spec(dtypes[draw(3) as usize], &shape, &strides), 2 * draw(60))
            };
            let ((a, a_start), (b, b_start)) = (layout(), layout());
            let truth = !bytes(&a, a_start).is_disjoint(&bytes(&b, b_start));
            let said = may_share(&a, a_start, &b, b_start);
            assert!(said || !truth, "{a} at {a_start} and {b} at {b_start} share a byte");
            match (truth, said) {
                (true, _) => shared += 1,
                (false, false) => apart += 1,
                (false, true) => undecided += 1,
            }
        }
        assert!(
            shared > 1000 && apart > 5000 && undecided < 1000,
            "{shared} shared, {apart} apart, {undecided} undecided"
        );
    }
}
