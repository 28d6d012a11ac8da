//! `resampler-hopper`: what it serves, and that it computes what `general` does unswizzled.

use super::*;

const NAMED: Option<CudaAttentionVariant> = Some(CudaAttentionVariant::ResamplerHopper);

#[test]
fn serves_16_bit_elements_of_every_row_alike_on_9_0() {
    let mma = Form::Mma { dtype: DType::BF16, columns: 96 };
    let latents = Shape { group: 4, ..shape(mma, 64, 2368) };
    assert_eq!(latents.choose(NAMED, HOPPER).unwrap(), CudaAttentionVariant::ResamplerHopper);
    let refused = |shape: Shape, arch| shape.choose(NAMED, arch).unwrap_err().to_string();
    assert_eq!(
        refused(latents, Arch { major: 8, minor: 9 }),
        "attention: the variant resampler-hopper on compute capability 8.9 is not supported by cuda; available: compute capability 9.0 only"
    );
    assert_eq!(
        refused(Shape { form: Form::F32, ..latents }, HOPPER),
        "attention: f32 by the variant resampler-hopper is not supported by cuda; available: general"
    );
    assert_eq!(
        refused(Shape { all: false, ..latents }, HOPPER),
        "attention: another rule than all by the variant resampler-hopper is not supported by cuda; available: general"
    );
    assert_eq!(
        refused(Shape { form: Form::Any, ..latents }, HOPPER),
        "attention: mixed dtypes, or such heads by the variant resampler-hopper is not supported by cuda; available: general"
    );
    // One, two or four warpgroups, whose pairs are heads times rows.
    for (group, q_rows, ragged_q, tile) in [
        (1, 64, false, (1, 64)),
        (2, 64, false, (2, 64)),
        (4, 64, false, (4, 64)),
        (4, 65, false, (4, 64)),
        (3, 100, false, (3, 85)),
        (8, 9, false, (8, 9)),
        (1, 5, false, (1, 5)),
        (4, 64, true, (4, 16)),
        (300, 2, false, (256, 1)),
    ] {
        let shape = Shape { group, q_rows, ragged_q, ..latents };
        assert_eq!(shape.tile(CudaAttentionVariant::ResamplerHopper), tile, "{group} heads, {q_rows} rows");
    }
}

/// Bit j of each of `rows` sets of `keys` keys.
fn bits(rows: usize, keys: usize, shows: impl Fn(usize, usize) -> bool) -> Vec<u32> {
    let words = keys.div_ceil(32);
    let mut bits = vec![0; rows * words];
    for row in 0..rows {
        for j in (0..keys).filter(|&j| shows(row, j)) {
            bits[row * words + j / 32] |= 1 << (j % 32);
        }
    }
    bits
}

/// A second segment of `keys` keys.
fn second(bench: &mut Bench, problems: &Problems, keys: usize) -> Segment<Bound<CudaMemory>> {
    let k = bench.tensor(&problems.operand("k2", 0, keys, problems.kv_heads));
    let v = bench.tensor(&problems.operand("v2", 0, keys, problems.kv_heads));
    Segment::new(k, v)
}

/// Bounds, per element: weights rounded to 16 bits in both kernels, u of the mean magnitude A of V
/// each, which `general` computes of |V|; and the roundings of both results.
#[test]
fn computes_what_general_does() {
    let Some(mut bench) = bench() else { return };
    for (dtype, unit) in [(DType::BF16, 1.0 / 256.0), (DType::F16, 1.0 / 2048.0)] {
        // 256, 72, 64, 160 and 300 pairs; keys that end inside a block, or exceed the stages.
        for (group, rows, keys, more, head_dim) in
            [(4, 64, 100, 64, 96), (8, 9, 64, 64, 128), (1, 64, 150, 0, 72), (4, 40, 1100, 3, 64), (3, 100, 1, 90, 120)]
        {
            let problems = Problems { batch: 2, rows, keys, heads: 2 * group, kv_heads: 2, head_dim, dtype };
            let mut args = problems.args(&mut bench, 0);
            if more > 0 {
                args.second = Some(second(&mut bench, &problems, more));
            }
            let holes = bits(2, keys, |b, j| b == 0 && !(64..192).contains(&j) && j % 7 != 3);
            let lengths = bench.words(DType::U32, &[2], &[keys as u32 - 1, 0]);
            let holes = bench.words(DType::U32, &[2, keys.div_ceil(32)], &holes);
            for exist in [Keys::All, Keys::Lengths(lengths), Keys::Bits(holes)] {
                let case = format!("{dtype} {group} heads {rows} rows {keys} + {more} keys of {head_dim}, {exist:?}");
                args.first.keys = exist;
                let run = |bench: &mut Bench, args: &Args, named| {
                    bench.run(args, named);
                    (bench.numbers(&args.out), bench.numbers(args.log_sum_exp.as_ref().unwrap()))
                };
                let (right, right_lse) = run(&mut bench, &args, Some(CudaAttentionVariant::General));
                let (out, lse) = run(&mut bench, &args, NAMED);
                let mut magnitudes = args.clone();
                let mut absolute = |v: &Bound<CudaMemory>| {
                    let values: Vec<f64> = bench.numbers(v).into_iter().map(f64::abs).collect();
                    let tensor = HostTensor::from_slice(&values, v.spec.shape()).unwrap();
                    bench.tensor(&tensor.to_dtype(dtype).unwrap())
                };
                magnitudes.first.v = absolute(&args.first.v);
                if let Some(second) = &mut magnitudes.second {
                    second.v = absolute(&second.v);
                }
                let (magnitude, _) = run(&mut bench, &magnitudes, Some(CudaAttentionVariant::General));
                assert!(right.iter().any(|&x| x.abs() > 0.01), "{case}");
                for (i, ((a, b), m)) in right.iter().zip(&out).zip(&magnitude).enumerate() {
                    let bound = unit * (2.0 * m + a.abs() + b.abs()) + 1e-6;
                    assert!((a - b).abs() <= bound, "{case}: {a} and {b} at {i}, bound {bound}");
                }
                for (a, b) in right_lse.iter().zip(&lse) {
                    assert!(a == b || (a - b).abs() <= 1e-5, "{case}: log-sum-exp {a} and {b}");
                }
            }
        }
    }
}

/// A row's bits depend neither on other problems nor on the tile in which it lies.
#[test]
fn neighbours_and_tiles_change_no_bit() {
    let Some(mut bench) = bench() else { return };
    for (dtype, head_dim) in [(DType::BF16, 96), (DType::F16, 128)] {
        let run = |bench: &mut Bench, batch, first, rows| {
            let problems = Problems { batch, rows: 64, keys: 300, heads: 8, kv_heads: 2, head_dim, dtype };
            let mut args = problems.args(bench, first);
            // The first rows of each problem.
            let part = |bound: &mut Bound<CudaMemory>| bound.spec = bound.spec.narrow(1, 0, rows).unwrap().0;
            part(&mut args.q);
            args.out = bench.empty(dtype, &[batch, rows, 8, head_dim]);
            args.log_sum_exp = Some(bench.empty(DType::F32, &[batch, rows, 8]));
            bench.run(&args, NAMED);
            (bench.read(&args.out), bench.read(args.log_sum_exp.as_ref().unwrap()))
        };
        let (out, lse) = run(&mut bench, 4, 0, 64);
        let (own_out, own_lse) = run(&mut bench, 1, 3, 64);
        assert!(own_out.iter().any(|&byte| byte != 0), "{dtype}");
        assert_eq!(out[3 * own_out.len()..], own_out, "{dtype}");
        assert_eq!(lse[3 * own_lse.len()..], own_lse, "{dtype}");
        // 64 rows of 4 heads are four warpgroups, 32 two, 7 one.
        for rows in [32, 7] {
            let (part_out, part_lse) = run(&mut bench, 1, 3, rows);
            assert_eq!(own_out[..part_out.len()], part_out, "{dtype} {rows} rows");
            assert_eq!(own_lse[..part_lse.len()], part_lse, "{dtype} {rows} rows");
        }
    }
}

/// `operand` with NaN in the keys for which `hidden`.
fn with_nan(operand: &HostTensor<'_>, hidden: impl Fn(usize) -> bool) -> HostTensor<'static> {
    let row = operand.shape()[2] * operand.shape()[3];
    let mut values = operand.to_f64().unwrap();
    for (j, row) in values.chunks_mut(row).enumerate() {
        if hidden(j) {
            row.fill(f64::NAN);
        }
    }
    HostTensor::from_slice(&values, operand.shape()).unwrap().to_dtype(operand.dtype()).unwrap().into_owned().unwrap()
}

#[test]
fn nan_in_hidden_keys_changes_no_bit() {
    let Some(mut bench) = bench() else { return };
    for dtype in [DType::BF16, DType::F16] {
        let problems = Problems { batch: 1, rows: 64, keys: 200, heads: 4, kv_heads: 1, head_dim: 64, dtype };
        let hidden = |j: usize| j % 3 == 1 || (64..128).contains(&j);
        for by_bits in [true, false] {
            let hidden = |j: usize| if by_bits { hidden(j) } else { j >= 130 };
            let mut args = problems.args(&mut bench, 0);
            args.first.keys = match by_bits {
                true => Keys::Bits(bench.words(DType::U32, &[1, 7], &bits(1, 200, |_, j| !hidden(j)))),
                false => Keys::Lengths(bench.words(DType::U32, &[1], &[130])),
            };
            bench.run(&args, NAMED);
            let clean = bench.read(&args.out);
            args.first.k = bench.tensor(&with_nan(&problems.operand("k", 0, 200, 1), hidden));
            args.first.v = bench.tensor(&with_nan(&problems.operand("v", 0, 200, 1), hidden));
            args.out = bench.empty(dtype, &[1, 64, 4, 64]);
            bench.run(&args, NAMED);
            assert!(bench.numbers(&args.out).iter().all(|x| x.is_finite()), "{dtype}");
            assert_eq!(bench.read(&args.out), clean, "{dtype}");
        }
    }
}

/// A problem without a visible key gets what its policy says, whatever unused K and q hold.
#[test]
fn empty_rows_get_their_policy() {
    let Some(mut bench) = bench() else { return };
    let problems = Problems { batch: 2, rows: 16, keys: 100, heads: 4, kv_heads: 1, head_dim: 72, dtype: DType::BF16 };
    let v = problems.operand("v", 0, 100, 1).to_f64().unwrap();
    let half = 16 * 4 * 72;
    for policy in [EmptyRow::Zero, EmptyRow::Uniform, EmptyRow::AttendAll] {
        let op = Attention { empty_rows: EmptyRows::all(policy), ..OP };
        let mut args = problems.args(&mut bench, 0);
        bench.run_op(&op, &args, NAMED, MANY_BLOCKS);
        let (shown, shown_lse) = (bench.numbers(&args.out), bench.numbers(args.log_sum_exp.as_ref().unwrap()));
        args.first.keys = Keys::Lengths(bench.words(DType::U32, &[2], &[100, 0]));
        if policy == EmptyRow::Uniform {
            // Of the second problem.
            args.first.k = bench.tensor(&with_nan(&problems.operand("k", 0, 100, 1), |j| j >= 100));
            args.q = bench.tensor(&with_nan(&problems.operand("q", 0, 16, 4), |i| i >= 16));
        }
        bench.run_op(&op, &args, NAMED, MANY_BLOCKS);
        let (out, lse) = (bench.numbers(&args.out), bench.numbers(args.log_sum_exp.as_ref().unwrap()));
        assert_eq!((&out[..half], &lse[..64]), (&shown[..half], &shown_lse[..64]), "{policy:?}");
        let (out, lse) = (&out[half..], &lse[64..]);
        match policy {
            EmptyRow::Zero => {
                assert!(out.iter().all(|&x| x == 0.0) && lse.iter().all(|&x| x == f64::NEG_INFINITY));
            }
            EmptyRow::AttendAll => assert_eq!((out, lse), (&shown[half..], &shown_lse[64..])),
            EmptyRow::Uniform => {
                for (i, &x) in out.iter().enumerate() {
                    // Weights are 1, sums f32; the result is rounded to 8 bits.
                    let mean: f64 = (0..100).map(|j| v[(100 + j) * 72 + i % 72]).sum::<f64>() / 100.0;
                    assert!((x - mean).abs() <= mean.abs() / 256.0 + 1e-6, "{x} for {mean} at {i}");
                }
                assert!(lse.iter().all(|x| (x - 100f64.ln()).abs() < 1e-6), "{lse:?}");
            }
        }
    }
}

#[test]
fn visits_blocks_that_have_a_key() {
    let Some(mut bench) = bench() else { return };
    let problems = Problems { batch: 1, rows: 64, keys: 300, heads: 4, kv_heads: 2, head_dim: 64, dtype: DType::BF16 };
    let mut args = problems.args(&mut bench, 0);
    // A block per K/V head and 64 keys.
    assert_eq!(bench.run(&args, NAMED), (1, 2 * 5));
    args.first.keys = Keys::Lengths(bench.words(DType::U32, &[1], &[128]));
    assert_eq!(bench.run(&args, NAMED), (1, 2 * 2));
    args.first.keys = Keys::Bits(bench.words(DType::U32, &[1, 10], &bits(1, 300, |_, j| j == 70 || j >= 256)));
    assert_eq!(bench.run(&args, NAMED), (1, 2 * 2));
    args.first.keys = Keys::Lengths(bench.words(DType::U32, &[1], &[0]));
    assert_eq!(bench.run(&args, NAMED), (1, 0));
}

/// The maximum is taken before scores are scaled: a scale below 0 turns them around, one of 0 makes
/// all weights the same.
#[test]
fn any_scale() {
    let Some(mut bench) = bench() else { return };
    let problems = Problems { batch: 1, rows: 16, keys: 100, heads: 4, kv_heads: 1, head_dim: 64, dtype: DType::F16 };
    let mut args = problems.args(&mut bench, 0);
    args.first.keys = Keys::Lengths(bench.words(DType::U32, &[1], &[90]));
    for scale in [-0.125, 0.0, -0.0, 1e-30] {
        let op = Attention { scale, ..OP };
        let mut results = Vec::new();
        for named in [Some(CudaAttentionVariant::General), NAMED] {
            bench.run_op(&op, &args, named, MANY_BLOCKS);
            results.push((bench.numbers(&args.out), bench.numbers(args.log_sum_exp.as_ref().unwrap())));
        }
        let (right, out) = (&results[0], &results[1]);
        // 4 roundings to 11 bits of numbers of magnitude 1.
        assert!(right.0.iter().zip(&out.0).all(|(a, b)| (a - b).abs() <= 4.0 / 2048.0), "{scale}");
        assert!(right.1.iter().zip(&out.1).all(|(a, b)| (a - b).abs() <= 1e-5), "{scale}");
    }
}

/// Rows of 72 elements, 76 apart: aligned to 8 bytes only, and read and written element by element.
#[test]
fn rows_that_are_not_aligned_change_no_bit() {
    let Some(mut bench) = bench() else { return };
    let problems = Problems { batch: 1, rows: 20, keys: 130, heads: 4, kv_heads: 1, head_dim: 72, dtype: DType::BF16 };
    let mut args = problems.args(&mut bench, 0);
    bench.run(&args, NAMED);
    let right = bench.numbers(&args.out);
    let spread = |bench: &mut Bench, operand: &HostTensor<'_>| {
        let [_, rows, heads, _] = operand.shape() else { unreachable!("four dimensions") };
        let (rows, heads) = (*rows, *heads);
        let mut bytes = vec![0xff; rows * heads * 76 * 2];
        for (to, from) in bytes.chunks_mut(2 * 76).zip(operand.bytes().unwrap().chunks(2 * 72)) {
            to[..2 * 72].copy_from_slice(from);
        }
        let mut bound = bench.bytes(DType::BF16, &[1, rows, heads, 76], &bytes);
        bound.spec =
            Layout::strided(DType::BF16, &[1, rows, heads, 72], &[rows * heads * 76, heads * 76, 76, 1]).unwrap();
        bound
    };
    args.q = spread(&mut bench, &problems.operand("q", 0, 20, 4));
    args.first.k = spread(&mut bench, &problems.operand("k", 0, 130, 1));
    args.first.v = spread(&mut bench, &problems.operand("v", 0, 130, 1));
    let mut out = bench.empty(DType::BF16, &[1, 20, 4, 76]);
    let whole = out.spec;
    out.spec = Layout::strided(DType::BF16, &[1, 20, 4, 72], &[20 * 4 * 76, 4 * 76, 76, 1]).unwrap();
    args.out = out.clone();
    bench.run(&args, NAMED);
    out.spec = whole;
    let out = bench.numbers(&out);
    for (pair, (row, right)) in out.chunks(76).zip(right.chunks(72)).enumerate() {
        assert_eq!(row[..72], *right, "pair {pair}");
        assert!(row[72..].iter().all(|x| x.is_nan()), "pair {pair}: written behind its end");
    }
}
