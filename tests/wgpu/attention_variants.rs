//! The kernels of `attention` by name: against the reference, exact answers, bits that do not
//! depend on the batch, dispatches, workspace.

use xattn::WgpuAttentionVariant::{self, Decode, DecodeSplit, General, GeneralSplit, Media as ByMedium};
use xattn::ops::{Attention, AttentionArgs, EmptyRow, EmptyRows, Keys, Media, Segment, Visibility};
use xattn::verify::cases::{Case, Verdict, selection};
use xattn::wgpu::Limits;
use xattn::{DType, Device, Dispatch, HostTensor, Recorder, Shapes, Tensor, View, ViewMut, WgpuOptions, Workspace};

use crate::support::{device, integers, read, tensor};

const ALL: [WgpuAttentionVariant; 5] = [General, GeneralSplit, ByMedium, Decode, DecodeSplit];

fn named(variant: Option<WgpuAttentionVariant>) -> Option<Device> {
    let mut options = WgpuOptions::default();
    options.attention = variant;
    device(&options)
}

/// What a call dispatched and needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Need {
    dispatches: u32,
    workspace: usize,
}

fn run(device: &Device, op: &Attention, args: AttentionArgs<View<'_>, ViewMut<'_>>) -> xattn::Result<Need> {
    let shapes = Attention::shapes(&args)?;
    let prepared = op.prepare(device, shapes)?;
    let mut workspace = Workspace::new(device, prepared.workspace_bytes())?;
    let mut recorder = device.recorder()?;
    prepared.enqueue(&mut recorder, args, &mut workspace)?;
    let dispatches = match &recorder {
        Recorder::Wgpu(inner) => inner.dispatches(),
        _ => 0,
    };
    device.finish(recorder)?;
    Ok(Need { dispatches, workspace: prepared.workspace_bytes() })
}

/// Cases of `xattn verify` at equal distances, those that a variant refuses left out.
#[test]
fn every_variant_passes_cases_of_verify() {
    // Only the variants chosen for such a rule keep a medium's NaN from rows of another.
    let isolated = |case: &Case| {
        let text = case.to_string();
        text.contains("rule=same_media") && text.contains("values=non_finite")
    };
    let cases = selection().into_iter().filter(|case| case.op() == "attention" && !isolated(case));
    let cases: Vec<_> = cases.collect();
    for (n, variant) in ALL.into_iter().enumerate() {
        let Some(device) = named(Some(variant)) else { return };
        let mut compared = 0;
        for case in cases.iter().skip(n).step_by(cases.len() / 30) {
            match case.verify(std::slice::from_ref(&device)).remove(0) {
                Verdict::Compared(outcomes) => {
                    let failures: Vec<_> = outcomes.into_iter().filter_map(|o| o.failure).collect();
                    assert!(failures.is_empty(), "{variant}: {case}: {failures:?}");
                    compared += 1;
                }
                Verdict::Skipped(why) => assert!(why.contains(&format!("by the variant {variant}")), "{why}"),
                Verdict::Failed(why) => panic!("{variant}: {case}: {why}"),
            }
            if compared == 8 {
                break;
            }
        }
        assert!(compared >= 4, "{variant} ran {compared} cases only");
    }
}

/// A long call: `batch` problems of `rows` rows and 1100 keys, 4 heads on 2 K/V heads of 16.
struct Long {
    batch: usize,
    rows: usize,
    dtype: DType,
    /// Keys of problem b that exist.
    length: u32,
    empty: EmptyRow,
}

const KEYS: usize = 1100;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 16;

impl Long {
    /// Problem b has the same keys in every batch. Result, log-sum-exp, row_visible of problem 0.
    fn run(&self, device: &Device) -> ([Vec<u32>; 3], Need) {
        let real = |rows: usize, heads: usize, salt: usize| {
            let n = self.batch * rows * heads * DIM;
            let values: Vec<f32> = (0..n).map(|i| ((i * 37 + salt * 11) % 101) as f32 / 50.0 - 1.0).collect();
            tensor(device, &values, &[self.batch, rows, heads, DIM], self.dtype)
        };
        let (q, k, v) = (real(self.rows, HEADS, 1), real(KEYS, KV_HEADS, 2), real(KEYS, KV_HEADS, 3));
        let lengths = HostTensor::from_slice(&vec![self.length; self.batch], &[self.batch]).unwrap();
        let lengths = Tensor::upload(device, &lengths, DType::U32).unwrap();
        let shape = [self.batch, self.rows, HEADS, DIM];
        let mut out = tensor(device, &vec![7.0; shape.iter().product()], &shape, self.dtype);
        let mut lse = Tensor::zeros(device, DType::F32, &shape[..3]).unwrap();
        let mut seen = Tensor::zeros(device, DType::U32, &shape[..2]).unwrap();
        let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
        args.first = Segment::new(k.view(), v.view()).with_keys(Keys::Lengths(lengths.view()));
        args.log_sum_exp = Some(lse.view_mut());
        args.row_visible = Some(seen.view_mut());
        let op = Attention { empty_rows: EmptyRows::all(self.empty), ..Attention::for_head_dim(DIM) };
        let need = run(device, &op, args).unwrap();
        let rows = self.rows * HEADS;
        let first = |t: &Tensor, n: usize| read(device, t)[..n].iter().map(|x| x.to_bits()).collect();
        let seen = seen.download(device).unwrap().to_vec::<u32>().unwrap()[..self.rows].to_vec();
        ([first(&out, rows * DIM), first(&lse, rows), seen], need)
    }
}

/// Values of problem 0 do not depend on how many there are, nor on the run.
#[test]
fn the_same_bits_alone_and_among_eight_and_every_run() {
    for variant in [Some(General), Some(GeneralSplit), Some(Decode), Some(DecodeSplit), None] {
        let Some(device) = named(variant) else { return };
        for (rows, dtype) in [(1, DType::F32), (1, DType::F16), (3, DType::BF16), (40, DType::F32)] {
            let call = |batch| Long { batch, rows, dtype, length: 1050, empty: EmptyRow::Zero };
            let (alone, _) = call(1).run(&device);
            assert!(alone[0].iter().any(|&bits| bits != 0) && alone[2] == vec![1; rows]);
            assert!(call(8).run(&device).0 == alone, "{variant:?}, {rows} rows, {dtype}: the batch changes bits");
            let reruns = if rows == 1 { 20 } else { 3 };
            for _ in 0..reruns {
                assert!(call(1).run(&device).0 == alone, "{variant:?}, {rows} rows, {dtype}: other bits");
            }
        }
    }
}

/// Chunks that nobody sees, rows that see nothing and each policy for them, against the reference.
#[test]
fn lengths_and_policies_over_chunks() {
    for variant in [General, GeneralSplit, Decode, DecodeSplit] {
        let Some(device) = named(Some(variant)) else { return };
        for empty in [EmptyRow::Zero, EmptyRow::Uniform, EmptyRow::AttendAll] {
            for length in [0, 1, 255, 256, 257, 512, 513, 1099, u32::MAX] {
                let call = Long { batch: 2, rows: 3, dtype: DType::F32, length, empty };
                let (got, _) = call.run(&device);
                let (truth, _) = call.run(&Device::reference());
                assert_eq!(got[2], truth[2], "{variant} {empty:?} {length}");
                for (i, (&a, &b)) in got[0].iter().zip(&truth[0]).chain(got[1].iter().zip(&truth[1])).enumerate() {
                    let (a, b) = (f32::from_bits(a), f32::from_bits(b));
                    // Scores of 16 products below 4; sums over 1100 keys: 2 (20 u · 4) + 1116 u.
                    assert!(a == b || (a - b).abs() <= 8e-5, "{variant} {empty:?} {length} {i}: {a}, expected {b}");
                }
            }
        }
    }
}

/// Dispatches and bytes of workspace, of named variants and of the choice.
#[test]
fn dispatches_and_workspace() {
    // row_visible, op, merge. A state is 4 vec4s of 16 columns and one of its own.
    let state = 16 * (1 + DIM / 4);
    let need = |variant, rows, batch| {
        let call = Long { batch, rows, dtype: DType::F32, length: 1100, empty: EmptyRow::Zero };
        named(variant).map(|device| call.run(&device).1)
    };
    let plain = Need { dispatches: 2, workspace: 0 };
    let split = |rows: usize, chunks: usize, batch: usize| Need {
        dispatches: 3,
        workspace: batch * rows * HEADS * chunks * state,
    };
    let expected = [
        (Some(General), 40, plain),
        (Some(Decode), 1, plain),
        (Some(GeneralSplit), 40, split(40, 3, 2)),
        (Some(DecodeSplit), 3, split(3, 5, 2)),
        // By the table: few rows of long keys, more rows of long keys, many tiles.
        (None, 1, split(1, 5, 2)),
        (None, 2, split(2, 5, 2)),
        (None, 3, split(3, 3, 2)),
        (None, 40, split(40, 3, 2)),
        (None, 700, plain),
    ];
    for (variant, rows, want) in expected {
        let Some(got) = need(variant, rows, 2) else { return };
        assert_eq!(got, want, "{variant:?}, {rows} rows");
    }
}

/// States that exceed a binding together: problems take turns, and nothing else changes.
#[test]
fn problems_take_turns_where_their_states_exceed_a_binding() {
    let run_with = |limit: Option<u64>| {
        let mut options = WgpuOptions::default();
        options.attention = Some(GeneralSplit);
        let mut limits = Limits::default();
        if let Some(limit) = limit {
            limits.max_storage_buffer_binding_size = limit;
        }
        options.limits = Some(limits);
        let device = device(&options)?;
        // 5 problems of 32 rows and 16 heads on one K/V head, over two cache entries.
        let (batch, rows, heads, dim) = (5, 32, 16, 8);
        let real = |n: usize, rows: usize, heads: usize, salt| {
            tensor(&device, &integers(n * rows * heads * dim, salt), &[n, rows, heads, dim], DType::F16)
        };
        let (q, k, v) = (real(batch, rows, heads, 1), real(2, KEYS, 1, 2), real(2, KEYS, 1, 3));
        let slots = HostTensor::from_slice(&[0u32, 1, u32::MAX, 1, 0], &[batch]).unwrap();
        let slots = Tensor::upload(&device, &slots, DType::U32).unwrap();
        let mut out = Tensor::zeros(&device, DType::F16, &[batch, rows, heads, dim]).unwrap();
        let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
        args.first = Segment::new(k.view(), v.view()).with_slots(slots.view());
        let need = run(&device, &Attention::for_head_dim(dim), args).unwrap();
        Some((read(&device, &out), need))
    };
    let Some((whole, need)) = run_with(None) else { return };
    // 512 rows, 3 chunks, 3 vec4s.
    let per_problem = 512 * 3 * 48;
    assert_eq!(need, Need { dispatches: 2, workspace: 5 * per_problem });
    let Some((turns, need)) = run_with(Some(2 * per_problem as u64 + 300)) else { return };
    assert_eq!(need, Need { dispatches: 6, workspace: 2 * per_problem });
    assert!(turns == whole, "turns change results");
}

/// Weights that are exactly 0 or equal: key j is 40 e_c, queries choose a column. Means over a
/// power of two of integers are exact.
#[test]
fn exact_answers() {
    let (keys, dim, heads, kv_heads) = (1024, 8, 6, 2);
    for variant in ALL {
        let Some(device) = named(Some(variant)) else { return };
        let k: Vec<f32> = (0..keys * kv_heads * dim)
            .map(|i| if i / (kv_heads * dim) % dim == i % dim { 40.0 } else { 0.0 })
            .collect();
        let v = integers(keys * kv_heads * dim, 3);
        for rows in [1, 5] {
            // Row i, head h likes column (i + h) mod 8: e^-1600 is 0, so it takes the mean of 128
            // keys; a medium has 8 of them.
            let q: Vec<f32> = (0..rows * heads * dim)
                .map(|i| if (i / dim % heads + i / dim / heads) % dim == i % dim { 40.0 } else { 0.0 })
                .collect();
            let phi: Vec<i32> = (0..rows as i32).map(|i| 3 + 5 * i % 13).collect();
            let per_medium = 64;
            let (qt, kt) = (
                tensor(&device, &q, &[1, rows, heads, dim], DType::F32),
                tensor(&device, &k, &[1, keys, kv_heads, dim], DType::F32),
            );
            let vt = tensor(&device, &v, &[1, keys, kv_heads, dim], DType::F32);
            let phi_t =
                Tensor::upload(&device, &HostTensor::from_slice(&phi, &[1, rows]).unwrap(), DType::I32).unwrap();
            for by_medium in [true, false] {
                if !by_medium && variant == ByMedium {
                    continue;
                }
                let mut out = Tensor::zeros(&device, DType::F32, &[1, rows, heads, dim]).unwrap();
                let mut args = AttentionArgs::new(qt.view(), kt.view(), vt.view(), out.view_mut());
                if by_medium {
                    let media = Media { media_index: phi_t.view(), keys_per_media: per_medium as u32, plan: None };
                    args.visibility = Visibility::SameMedia(media);
                }
                run(&device, &Attention { scale: 1.0, empty_rows: EmptyRows::default() }, args).unwrap();
                let expected: Vec<f32> = (0..rows * heads * dim)
                    .map(|at| {
                        let (i, h, c) = (at / dim / heads, at / dim % heads, at % dim);
                        let first = if by_medium { (phi[i] as usize - 1) * per_medium } else { 0 };
                        let n = if by_medium { per_medium } else { keys };
                        let seen = (first..first + n).filter(|j| j % dim == (i + h) % dim);
                        let sum: f32 = seen.map(|j| v[(j * kv_heads + h / 3) * dim + c]).sum();
                        sum / (n / dim) as f32
                    })
                    .collect();
                assert_eq!(read(&device, &out), expected, "{variant}, {rows} rows, by medium: {by_medium}");
            }
        }
    }
}

/// Problems that overlap, in any order: the last that has a row writes it. 70 rows of 9 problems
/// are more tiles than the grid has.
#[test]
fn overlapping_problems_are_written_by_the_last() {
    let (total, keys, dim) = (70, 5, 8);
    let offsets: [&[u32]; 4] = [
        &[0, 70, 0, 70, 3, 70, 0, 64, 1, 70],
        &[10, 50, 5, 33, 0, 70, 40, 41, 41, 60],
        &[70, 0, u32::MAX, 20, 10, 0x8000_0000, 35, 0, 40, 69],
        &[0, 1, 2, 3, 40, 40, 50, 69, 70, 70],
    ];
    for variant in [General, ByMedium, Decode] {
        let Some(device) = named(Some(variant)) else { return };
        for list in offsets {
            let batch = list.len() - 1;
            let call = |device: &Device| {
                let q = tensor(device, &integers(total * dim, 1), &[1, total, 1, dim], DType::F32);
                // Each problem has values of its own.
                let k = tensor(device, &vec![0.0; batch * keys * dim], &[batch, keys, 1, dim], DType::F32);
                let v: Vec<f32> = (0..batch * keys * dim).map(|i| (i / (keys * dim)) as f32).collect();
                let v = tensor(device, &v, &[batch, keys, 1, dim], DType::F32);
                let phi = Tensor::upload(
                    device,
                    &HostTensor::from_slice(&vec![1i32; total], &[1, total]).unwrap(),
                    DType::I32,
                )
                .unwrap();
                let starts = HostTensor::from_slice(list, &[batch + 1]).unwrap();
                let starts = Tensor::upload(device, &starts, DType::U32).unwrap();
                let mut out = tensor(device, &vec![-1.0; total * dim], &[1, total, 1, dim], DType::F32);
                let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
                args.q_offsets = Some(starts.view());
                args.visibility =
                    Visibility::SameMedia(Media { media_index: phi.view(), keys_per_media: 4, plan: None });
                run(device, &Attention::for_head_dim(dim), args).unwrap();
                read(device, &out)
            };
            let truth = call(&Device::reference());
            for _ in 0..5 {
                assert_eq!(call(&device), truth, "{variant} {list:?}");
            }
        }
    }
}

/// What a named variant cannot serve is refused, not given to another one.
#[test]
fn a_variant_refuses_what_it_cannot_serve() {
    let refusal = |variant: WgpuAttentionVariant, ragged: bool, dim: usize| {
        let device = named(Some(variant))?;
        let q = Tensor::zeros(&device, DType::F32, &[1, 4, 1, dim]).unwrap();
        let k = Tensor::zeros(&device, DType::F32, &[1, 3, 1, dim]).unwrap();
        let mut out = Tensor::zeros(&device, DType::F32, &[1, 4, 1, dim]).unwrap();
        let offsets = HostTensor::from_slice(&[0u32, 4], &[2]).unwrap();
        let offsets = Tensor::upload(&device, &offsets, DType::U32).unwrap();
        let mut args = AttentionArgs::new(q.view(), k.view(), k.view(), out.view_mut());
        args.q_offsets = ragged.then(|| offsets.view());
        Some(run(&device, &Attention::for_head_dim(dim), args).map(|_| ()).unwrap_err().to_string())
    };
    let expected = [
        (ByMedium, false, 8, "another rule than same_media by the variant media"),
        (GeneralSplit, true, 8, "ragged queries by the variant general-split"),
        (DecodeSplit, true, 8, "ragged queries by the variant decode-split"),
        (Decode, false, 3016, "heads as wide by the variant decode"),
    ];
    for (variant, ragged, dim, what) in expected {
        let Some(message) = refusal(variant, ragged, dim) else { return };
        assert_eq!(message, format!("attention: {what} is not supported by wgpu; available: general"));
    }
}
