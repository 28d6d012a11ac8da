//! The kernel table, and what the cases of `xattn verify` cannot say: which key blocks are visited,
//! that neighbours change no bit, that split-K merges into the same numbers, that NaN in one medium
//! stays there.

use std::sync::Arc;

use super::variant::Form;
use super::*;
use crate::backend::Backend;
use crate::backend::cuda::CudaOptions;
use crate::backend::cuda::runtime::arch::Arch;
use crate::bench::visited::rules::{preceding_media, prefix_causal, same_media, with_operands};
use crate::bench::{Blocks, spread_media, visited};
use crate::ops::{Each, EmptyRow, EmptyRows, Keys, Segment, Visibility};
use crate::verify::generate::{Fill, Rng, reals};
use crate::{HostTensor, Spec as Layout};

mod hopper;

type Args = AttentionArgs<Bound<CudaMemory>, Bound<CudaMemory>>;

const OP: Attention = Attention { scale: 0.125, empty_rows: EmptyRows::all(EmptyRow::Zero) };
const HOPPER: Arch = Arch { major: 9, minor: 0 };

/// A device, or none where the machine has none. Under `scripts/emulated-cuda`, which sets the
/// variable, none is an error.
fn backend() -> Option<Arc<Cuda>> {
    // The environment's cache: cubins for the emulator or a sanitizer serve nobody else.
    match Cuda::open(&CudaOptions { attention: None, ..CudaOptions::from_env().unwrap() }) {
        Ok(backend) => Some(Arc::new(backend)),
        Err(error @ Error::Unavailable { .. }) => {
            assert!(std::env::var_os("XATTN_EMULATOR_SEED").is_none(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Device memory of a test: kept until the test ends.
struct Bench {
    backend: Arc<Cuda>,
    buffers: Vec<<Cuda as Backend>::Buffer>,
}

impl Bench {
    fn bytes(&mut self, dtype: DType, shape: &[usize], bytes: &[u8]) -> Bound<CudaMemory> {
        let spec = Layout::contiguous(dtype, shape).unwrap();
        let buffer = self.backend.allocate(spec.span_bytes().max(4), "a test operand").unwrap();
        let memory = Cuda::memory(&buffer);
        self.buffers.push(buffer);
        self.backend.write(&memory, bytes).unwrap();
        Bound { spec, memory }
    }

    fn words(&mut self, dtype: DType, shape: &[usize], words: &[u32]) -> Bound<CudaMemory> {
        self.bytes(dtype, shape, bytemuck::cast_slice(words))
    }

    fn tensor(&mut self, tensor: &HostTensor<'_>) -> Bound<CudaMemory> {
        self.bytes(tensor.dtype(), tensor.shape(), &tensor.bytes().unwrap())
    }

    fn empty(&mut self, dtype: DType, shape: &[usize]) -> Bound<CudaMemory> {
        let bytes = Layout::contiguous(dtype, shape).unwrap().span_bytes();
        self.bytes(dtype, shape, &vec![0xff; bytes])
    }

    /// Runs the call; returns its launches and the key blocks that they visited.
    fn run(&mut self, args: &Args, named: Option<CudaAttentionVariant>) -> (usize, u32) {
        self.run_in(args, named, MANY_BLOCKS)
    }

    fn run_in(&mut self, args: &Args, named: Option<CudaAttentionVariant>, many_blocks: usize) -> (usize, u32) {
        self.run_op(&OP, args, named, many_blocks)
    }

    fn run_op(
        &mut self,
        op: &Attention,
        args: &Args,
        named: Option<CudaAttentionVariant>,
        many_blocks: usize,
    ) -> (usize, u32) {
        let shapes = Attention::map(Attention::as_ref(args), &mut Each(|_, o: &Bound<CudaMemory>| Ok(o.spec))).unwrap();
        let prepared = Prepared::new(&self.backend, op, &shapes, named, many_blocks).unwrap();
        let count = self.words(DType::U32, &[1], &[0]);
        let workspace = self.backend.allocate(prepared.state_bytes.max(4), "scratch").unwrap();
        let mut recorder = self.backend.recorder().unwrap();
        // SAFETY: the operands live until `finish` has waited.
        unsafe { prepared.record(&self.backend, &mut recorder, args, &Cuda::memory(&workspace), Some(&count)) }
            .unwrap();
        let launches = [&prepared.visible, &prepared.main, &prepared.merge].into_iter().flatten().count();
        self.backend.finish(recorder).unwrap();
        let mut bytes = [0; 4];
        self.backend.read(&count.memory, &mut bytes).unwrap();
        (launches, u32::from_le_bytes(bytes))
    }

    fn read(&self, bound: &Bound<CudaMemory>) -> Vec<u8> {
        let mut bytes = vec![0; bound.spec.span_bytes()];
        self.backend.read(&bound.memory, &mut bytes).unwrap();
        bytes
    }

    fn numbers(&self, bound: &Bound<CudaMemory>) -> Vec<f64> {
        let bytes = self.read(bound);
        HostTensor::from_bytes(bound.spec.dtype(), bound.spec.shape(), bytes).unwrap().to_f64().unwrap()
    }
}

fn bench() -> Option<Bench> {
    Some(Bench { backend: backend()?, buffers: Vec::new() })
}

/// Operands of `batch` problems. Problem b has its own generator: it is the same in any batch.
struct Problems {
    batch: usize,
    rows: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    dtype: DType,
}

impl Problems {
    /// Problems `first..first + batch` of the operand `name`.
    fn operand(&self, name: &str, first: usize, rows: usize, heads: usize) -> HostTensor<'static> {
        let shape = [1, rows, heads, self.head_dim];
        let bytes: Vec<u8> = (first..first + self.batch)
            .flat_map(|b| {
                let mut rng = Rng::named(b as u64, name);
                reals(&mut rng, Fill::Normal(1.0), self.dtype, &shape).unwrap().bytes().unwrap().to_vec()
            })
            .collect();
        HostTensor::from_bytes(self.dtype, &[self.batch, rows, heads, self.head_dim], bytes).unwrap()
    }

    fn args(&self, bench: &mut Bench, first: usize) -> Args {
        let q = bench.tensor(&self.operand("q", first, self.rows, self.heads));
        let k = bench.tensor(&self.operand("k", first, self.keys, self.kv_heads));
        let v = bench.tensor(&self.operand("v", first, self.keys, self.kv_heads));
        let out = bench.empty(self.dtype, &[self.batch, self.rows, self.heads, self.head_dim]);
        let lse = bench.empty(DType::F32, &[self.batch, self.rows, self.heads]);
        AttentionArgs { log_sum_exp: Some(lse), ..AttentionArgs::new(q, k, v, out) }
    }
}

fn shape(form: Form, q_rows: usize, positions: usize) -> Shape {
    Shape {
        form,
        ragged_q: false,
        ragged_keys: false,
        all: true,
        same_media: None,
        zeros: true,
        q_rows,
        group: 1,
        kv_heads: 8,
        head_dim: 64,
        positions,
    }
}

#[test]
fn the_table() {
    use CudaAttentionVariant::{Decode, DecodeSplit, General, Media, Resampler, ResamplerSplit};
    let mma = Form::Mma { dtype: DType::BF16, columns: 64 };
    let expect = |variant, shape: Shape| assert_eq!(shape.choose(None, HOPPER).unwrap(), variant, "{shape:?}");
    let media = |shape| Shape { all: false, same_media: Some(64), ..shape };
    let other = |shape| Shape { all: false, ..shape };
    // Resamplers: 64 latents, 320 or 2368 keys; a Q-Former; 513 rows: 9 tiles for each of 8 heads.
    expect(Resampler, shape(mma, 64, 320));
    expect(ResamplerSplit, shape(mma, 64, 2368));
    expect(Resampler, Shape { zeros: false, ..shape(mma, 64, 2368) });
    expect(Resampler, Shape { ragged_q: true, ..shape(mma, 64, 2368) });
    expect(Resampler, Shape { ragged_keys: true, ..shape(mma, 64, 2368) });
    expect(Resampler, shape(mma, 32, 257));
    expect(Resampler, shape(mma, 513, 1024));
    expect(ResamplerSplit, shape(Form::F32, 64, 1024));
    expect(Resampler, shape(Form::F32, 64, 1023));
    // Text against media, prefill and decode. A row sees 64 of 6400 keys: nothing to split.
    expect(Media, media(shape(mma, 512, 512)));
    expect(Media, media(shape(Form::F32, 9, 512)));
    expect(Decode, media(shape(mma, 1, 6400)));
    expect(Media, Shape { ragged_q: true, ..media(shape(mma, 1, 6400)) });
    // Cached keys: one row, all heads of a group together.
    expect(Decode, other(shape(mma, 1, 1000)));
    expect(DecodeSplit, other(shape(mma, 1, 6404)));
    expect(DecodeSplit, other(Shape { group: 8, ..shape(mma, 1, 6404) }));
    expect(General, other(Shape { group: 9, ..shape(mma, 1, 6404) }));
    expect(Decode, Shape { zeros: false, ..other(shape(mma, 1, 6404)) });
    expect(Decode, shape(mma, 8, 64));
    expect(General, other(shape(mma, 32, 32)));
    expect(General, shape(Form::Any, 64, 2368));
    expect(General, media(shape(Form::Any, 1, 64)));

    let refused = shape(mma, 64, 320).choose(Some(Media), HOPPER).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "attention: another rule than same_media by the variant media is not supported by cuda; available: general"
    );
    assert_eq!("resampler-split".parse::<CudaAttentionVariant>().unwrap(), ResamplerSplit);
    assert_eq!(
        "fast".parse::<CudaAttentionVariant>().unwrap_err().to_string(),
        "device: attention variant: expected general, resampler, resampler-split, resampler-hopper, media, decode, decode-split, got fast"
    );
}

#[test]
fn every_instance() {
    let names: Vec<String> = instances().iter().map(|source| source.entry().to_string()).collect();
    let mut expected = Vec::new();
    for form in ["f16_d64", "f16_d96", "f16_d128", "bf16_d64", "bf16_d96", "bf16_d128", "f32"] {
        expected.extend(["media", "resampler", "decode", "general"].map(|word| format!("attention_{word}_{form}")));
    }
    expected.extend(["general_any", "merge", "visible"].map(|word| format!("attention_{word}")));
    for form in ["f16_d64", "f16_d96", "f16_d128", "bf16_d64", "bf16_d96", "bf16_d128"] {
        expected.extend([64, 128, 256].map(|pairs| format!("attention_hopper{pairs}_{form}")));
    }
    assert_eq!(names, expected);
}

/// Key blocks that one head visits.
fn counted(
    rows: usize,
    keys: usize,
    lengths: Option<u32>,
    rule: &Visibility<&[u32]>,
    named: CudaAttentionVariant,
) -> Option<u32> {
    let mut bench = bench()?;
    let problems = Problems { batch: 1, rows, keys, heads: 1, kv_heads: 1, head_dim: 8, dtype: DType::F32 };
    let mut args = problems.args(&mut bench, 0);
    if let Some(n) = lengths {
        args.first.keys = Keys::Lengths(bench.words(DType::U32, &[1], &[n]));
    }
    let operand = |dtype, shape: &[usize], words: &[u32]| Ok(bench.words(dtype, shape, words));
    args.visibility = with_operands(rule.clone(), 1, rows, operand).unwrap();
    Some(bench.run(&args, Some(named)).1)
}

#[test]
fn blocks_that_nobody_may_see_are_not_visited() {
    use CudaAttentionVariant::{Decode, DecodeSplit, General, Media, Resampler, ResamplerSplit};
    // f32: tiles of 32 pairs.
    let blocks = Blocks { rows: 32, keys: 64 };
    let expect = |variant, rows, keys, lengths: Option<u32>, rule: &Visibility<&[u32]>, number: usize| {
        let Some(count) = counted(rows, keys, lengths, rule, variant) else { return };
        assert_eq!(count as usize, number, "{variant} {rule:?} {lengths:?}");
        if !variant.is_decode() {
            let list = lengths.map(|n| [n]);
            let ideal = visited(rule, list.as_ref().map(|l| l.as_slice()), 1, rows, keys, blocks);
            assert_eq!(ideal.visited, number, "{rule:?} {lengths:?}");
        }
    };
    // 512 rows in 16 tiles, 8 media: each tile sees one of 8 blocks; then media 7 and 8 are gone.
    let phi = spread_media(1, 512, 8);
    expect(Media, 512, 512, None, &same_media(&phi), 16);
    expect(Media, 512, 512, Some(384), &same_media(&phi), 12);
    // Runs of 10 rows: tiles are cut there.
    let phi = spread_media(1, 40, 4);
    expect(Media, 40, 256, None, &same_media(&phi), 4 + 1);
    expect(General, 40, 256, None, &same_media(&phi), 4 + 1);
    let phi = spread_media(1, 100, 5);
    expect(General, 100, 320, None, &preceding_media(&phi), 2 + 4 + 5 + 5);
    expect(General, 100, 320, Some(100), &preceding_media(&phi), 4 * 2);
    expect(General, 128, 128, None, &prefix_causal(32, &[0]), 1 + 1 + 2 + 2);
    expect(Resampler, 33, 200, None, &Visibility::All, 2 * 4);
    expect(Resampler, 33, 200, Some(64), &Visibility::All, 2);
    expect(ResamplerSplit, 33, 1100, Some(600), &Visibility::All, 2 * 10);
    // The rows of one tile see blocks 0 and 2 of 64 keys, those of the other one nothing.
    let bits: Vec<u32> = (0..40).map(|row| [0b100, 0b1, 0][(row / 16).min(2)]).collect();
    expect(General, 40, 256, None, &Visibility::MediaBits { bits: &bits, keys_per_block: 64 }, 2);
    // Single rows: a medium is one block, wherever it begins; φ = 9 is no medium.
    expect(Decode, 3, 512, None, &same_media(&[8, 9, 3]), 2);
    expect(Decode, 1, 512, Some(256), &same_media(&[5]), 0);
    expect(Decode, 2, 1000, None, &prefix_causal(0, &[127]), 2 + 3);
    expect(DecodeSplit, 2, 1000, None, &Visibility::All, 2 * 16);
    expect(DecodeSplit, 1, 1024, None, &preceding_media(&[5]), 5);
}

/// A plan of runs in which problem b's rows change media every `3 + b` rows.
fn phi_of_problem(b: usize, rows: usize) -> Vec<u32> {
    (0..rows).map(|i| (i / (3 + b)).min(4) as u32).collect()
}

fn plan_of(phi: &[u32]) -> Vec<u32> {
    let starts: Vec<usize> = (0..phi.len()).filter(|&i| i == 0 || phi[i] != phi[i - 1]).collect();
    let mut plan = vec![starts.len() as u32, 0];
    plan.extend(starts.iter().flat_map(|&i| [i as u32, phi[i]]));
    plan.resize(2 * (1 + phi.len()), 0);
    plan
}

#[test]
fn neighbours_change_no_bit() {
    use CudaAttentionVariant::{Decode, DecodeSplit, General, Media, Resampler, ResamplerSplit};
    let Some(mut bench) = bench() else { return };
    for (dtype, head_dim) in [(DType::BF16, 64), (DType::F16, 96), (DType::F32, 40)] {
        for variant in [General, Media, Decode, DecodeSplit, Resampler, ResamplerSplit] {
            let (rows, keys) = if variant.chunk_keys().is_some() { (3, 600) } else { (70, 300) };
            let run = |bench: &mut Bench, batch: usize, first: usize| {
                let problems = Problems { batch, rows, keys, heads: 4, kv_heads: 2, head_dim, dtype };
                let mut args = problems.args(bench, first);
                if variant == Media {
                    let phi: Vec<Vec<u32>> = (first..first + batch).map(|b| phi_of_problem(b, rows)).collect();
                    let plan: Vec<u32> = phi.iter().flat_map(|phi| plan_of(phi)).collect();
                    args.visibility = Visibility::SameMedia(crate::ops::Media {
                        media_index: bench.words(DType::I32, &[batch, rows], &phi.concat()),
                        keys_per_media: 75,
                        plan: Some(bench.words(DType::U32, &[batch, 1 + rows, 2], &plan)),
                    });
                }
                bench.run(&args, Some(variant));
                let lse = args.log_sum_exp.as_ref().unwrap();
                (bench.read(&args.out), bench.read(lse))
            };
            let (out, lse) = run(&mut bench, 8, 0);
            let (own_out, own_lse) = run(&mut bench, 1, 3);
            assert!(own_out.iter().any(|&byte| byte != 0), "{variant} {dtype}");
            assert_eq!(out[3 * own_out.len()..4 * own_out.len()], own_out, "{variant} {dtype}");
            assert_eq!(lse[3 * own_lse.len()..4 * own_lse.len()], own_lse, "{variant} {dtype}");
        }
    }
}

/// Queries in flight and resident keys: blocks that stream four tiles give the bits of one tile.
#[test]
fn streamed_tiles_change_no_bit() {
    let Some(mut bench) = bench() else { return };
    for dtype in [DType::BF16, DType::F32] {
        let problems = Problems { batch: 2, rows: 300, keys: 192, heads: 4, kv_heads: 2, head_dim: 64, dtype };
        let mut args = problems.args(&mut bench, 0);
        args.first.keys = Keys::Lengths(bench.words(DType::U32, &[2], &[192, 100]));
        // Long and short runs, without a medium, beyond the media, and a medium that comes back.
        let runs = [(1, 130), (2, 3), (0, 40), (3, 70), (7, 5), (1, 52)];
        let phi: Vec<u32> = runs.iter().flat_map(|&(phi, rows)| vec![phi; rows]).collect();
        let media_index = bench.words(DType::I32, &[2, 300], &phi.repeat(2));
        let plan = bench.words(DType::U32, &[2, 301, 2], &plan_of(&phi).repeat(2));
        let mut results = Vec::new();
        for (planned, many_blocks) in [(false, usize::MAX), (false, 1), (true, usize::MAX), (true, 1)] {
            args.visibility = Visibility::SameMedia(crate::ops::Media {
                media_index: media_index.clone(),
                keys_per_media: 64,
                plan: planned.then(|| plan.clone()),
            });
            args.out = bench.empty(dtype, &[2, 300, 4, 64]);
            bench.run_in(&args, Some(CudaAttentionVariant::Media), many_blocks);
            results.push((bench.read(&args.out), bench.read(args.log_sum_exp.as_ref().unwrap())));
        }
        let numbers = bench.numbers(&args.out);
        let row = |b: usize, i: usize| &numbers[(b * 300 + i) * 256..][..256];
        assert!(numbers.iter().all(|x| x.is_finite()), "{dtype}");
        for (i, shown) in [(0, true), (131, true), (140, false), (200, true), (244, false), (299, true)] {
            assert_eq!(row(0, i).iter().any(|&x| x != 0.0), shown, "{dtype} row {i}");
        }
        assert!(results[1..].iter().all(|result| *result == results[0]), "{dtype}");
    }
}

/// Bounds: each result is within the rounding of P (bf16: 2^-9 of the mean magnitude, below 1 here)
/// and its own of the exact one.
#[test]
fn chunks_merge_into_the_same_numbers() {
    use CudaAttentionVariant::{Decode, DecodeSplit, General, Resampler, ResamplerSplit};
    let Some(mut bench) = bench() else { return };
    for (dtype, bound) in [(DType::BF16, 2.0 / 256.0), (DType::F32, 1e-6)] {
        for (whole, split, rows, keys) in [(Resampler, ResamplerSplit, 20, 1100), (Decode, DecodeSplit, 2, 1100)] {
            let problems = Problems { batch: 2, rows, keys, heads: 4, kv_heads: 2, head_dim: 64, dtype };
            let mut args = problems.args(&mut bench, 0);
            // One problem ends inside the second chunk, the other one has no key at all.
            args.first.keys = Keys::Lengths(bench.words(DType::U32, &[2], &[700, 0]));
            let mut results = Vec::new();
            for variant in [General, whole, split] {
                let launches = bench.run(&args, Some(variant)).0;
                assert_eq!(launches, if variant == split { 2 } else { 1 }, "{variant}");
                results.push((bench.numbers(&args.out), bench.numbers(args.log_sum_exp.as_ref().unwrap())));
            }
            let (out, lse) = &results[0];
            let half = out.len() / 2;
            assert!(out[..half].iter().any(|&x| x.abs() > 0.01) && out[half..].iter().all(|&x| x == 0.0));
            assert!(lse[lse.len() / 2..].iter().all(|&x| x == f64::NEG_INFINITY), "{lse:?}");
            for (variant, (other, other_lse)) in [whole, split].iter().zip(&results[1..]) {
                let worst = out.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(worst <= bound, "{variant} {dtype}: {worst}");
                let same = |(a, b): (&f64, &f64)| a == b || (a - b).abs() <= 1e-5;
                assert!(lse.iter().zip(other_lse).all(same), "{variant} {dtype}: {lse:?} {other_lse:?}");
            }
        }
    }
}

/// Tensor core kernels leave a positive scale to the exponential and multiply any other one in; f32
/// kernels always multiply. 70 of 100 keys exist, so that some are hidden in a block. Bounds as
/// above; log-sum-exp also carries the rounding of scores below 64.
#[test]
fn scales_of_any_sign() {
    use CudaAttentionVariant::{General, Resampler, ResamplerSplit};
    let Some(mut bench) = bench() else { return };
    let shape = |dtype| Problems { batch: 1, rows: 20, keys: 100, heads: 4, kv_heads: 2, head_dim: 64, dtype };
    for scale in [0.25, 0.0, -0.25] {
        let mut results = Vec::new();
        for dtype in [DType::BF16, DType::F32] {
            let mut args = shape(dtype).args(&mut bench, 0);
            let operand = |name, rows, heads| {
                let rounded = shape(DType::BF16).operand(name, 0, rows, heads);
                rounded.to_dtype(dtype).unwrap().into_owned().unwrap()
            };
            args.q = bench.tensor(&operand("q", 20, 4));
            args.first.k = bench.tensor(&operand("k", 100, 2));
            args.first.v = bench.tensor(&operand("v", 100, 2));
            args.first.keys = Keys::Lengths(bench.words(DType::U32, &[1], &[70]));
            for variant in [Resampler, ResamplerSplit, General] {
                bench.run_op(&Attention { scale, ..OP }, &args, Some(variant), MANY_BLOCKS);
                results.push((bench.numbers(&args.out), bench.numbers(args.log_sum_exp.as_ref().unwrap())));
            }
        }
        let (out, lse) = &results[results.len() - 1];
        assert!(out.iter().any(|&x| x.abs() > 0.01), "{scale}");
        for (n, (other, other_lse)) in results.iter().enumerate() {
            let worst = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst(out, other) <= 2.0 / 256.0, "{scale} {n}: {}", worst(out, other));
            assert!(worst(lse, other_lse) <= 3e-5, "{scale} {n}: {}", worst(lse, other_lse));
        }
        // Without a scale all 70 keys weigh the same.
        assert!(scale != 0.0 || lse.iter().all(|x| (x - 70f64.ln()).abs() < 1e-6), "{lse:?}");
    }
}

#[test]
fn nan_in_one_medium_stays_there() {
    use CudaAttentionVariant::{Decode, General, Media};
    let Some(mut bench) = bench() else { return };
    for dtype in [DType::F16, DType::F32] {
        let problems = Problems { batch: 1, rows: 40, keys: 192, heads: 2, kv_heads: 1, head_dim: 64, dtype };
        let mut args = problems.args(&mut bench, 0);
        // Medium 2 of three is NaN; rows alternate between media, and rows 0 and 1 see none.
        let nan = |operand: HostTensor<'_>| {
            let mut values = operand.to_f64().unwrap();
            values[64 * 64..128 * 64].fill(f64::NAN);
            HostTensor::from_slice(&values, operand.shape()).unwrap().to_dtype(dtype).unwrap().into_owned().unwrap()
        };
        args.first.k = bench.tensor(&nan(problems.operand("k", 0, 192, 1)));
        args.first.v = bench.tensor(&nan(problems.operand("v", 0, 192, 1)));
        let phi: Vec<u32> = (0..40).map(|i| if i < 2 { 0 } else { 1 + i % 3 }).collect();
        let media_index = bench.words(DType::I32, &[1, 40], &phi);
        args.visibility = Visibility::SameMedia(crate::ops::Media { media_index, keys_per_media: 64, plan: None });
        for variant in [Media, General, Decode] {
            bench.run(&args, Some(variant));
            let out = bench.numbers(&args.out);
            for (i, &phi) in phi.iter().enumerate() {
                let row = &out[i * 128..(i + 1) * 128];
                let right = match phi {
                    0 => row.iter().all(|&x| x == 0.0),
                    2 => row.iter().all(|x| x.is_nan()),
                    _ => row.iter().all(|x| x.is_finite()) && row.iter().any(|&x| x != 0.0),
                };
                assert!(right, "{variant} {dtype} row {i} of medium {phi}: {row:?}");
            }
        }
    }
}

/// The shapes of two chunks of one row: a 32-bit machine must not plan what it cannot have.
#[test]
fn states_that_no_memory_holds_are_refused() {
    assert_eq!(state_bytes::<u32>(1 << 20, 2, 126).get(), Some(1 << 30));
    assert_eq!(state_bytes::<u32>(1 << 22, 2, 126).get(), None);
    assert_eq!(state_bytes::<usize>(1 << 62, 2, 126).get(), None);
}
