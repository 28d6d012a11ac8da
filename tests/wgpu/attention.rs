//! `attention`: hostile values, what nobody sees, bits that repeat, numbers of dispatches.

use xattn::ops::{Attention, AttentionArgs, EmptyRow, EmptyRows, Keys, Media, Operands, Segment, Visibility};
use xattn::wgpu::Limits;
use xattn::{DType, Device, Dispatch, HostTensor, Recorder, Tensor, View, ViewMut, WgpuOptions, Workspace};

use crate::support::{device, read};

/// Rows before and behind each output.
const GUARD: usize = 2;
/// What guards hold: no kernel computes it.
const PATTERN: u32 = 0x7ac0_ffee;

/// Uniform in -1..1, by a small congruential generator.
fn reals(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Index values of a call.
#[derive(Clone)]
struct Values {
    q_offsets: [u32; 3],
    lengths: [u32; 2],
    slots: [u32; 2],
    bits: [u32; 4],
    offsets: [u32; 3],
    phi: Vec<i32>,
}

const ROWS: usize = 40;
const FIRST: usize = 70;
const SECOND: usize = 50;
const HEADS: usize = 2;
const DIM: usize = 16;

/// Which index operands a call has.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Ragged queries and second segment, lengths and slots of the first one: 13 buffers, so index operands are packed.
    Packed,
    /// Bits of the first segment, nothing else.
    Bits,
}

impl Values {
    fn plain() -> Self {
        let phi = (0..ROWS as i32).map(|i| i / 7).collect();
        let bits = [0xffff_0fff, 0x1234_5678, 0xffff_ffff, 0];
        Values { q_offsets: [1, 20, 38], lengths: [60, 70], slots: [2, 0], bits, offsets: [0, 20, 49], phi }
    }
}

/// Result, log-sum-exp and row_visible, as words.
type Bits = [Vec<u32>; 3];

fn words(device: &Device, values: &[u32], shape: &[usize]) -> Tensor {
    Tensor::upload(device, &HostTensor::from_slice(values, shape).unwrap(), DType::U32).unwrap()
}

/// The middle of a tensor that holds the pattern before and behind.
fn guarded(device: &Device, shape: &[usize]) -> Tensor {
    let mut wide = shape.to_vec();
    wide[1] += 2 * GUARD;
    let values = vec![f32::from_bits(PATTERN); wide.iter().product()];
    Tensor::upload(device, &HostTensor::from_slice(&values, &wide).unwrap(), DType::F32).unwrap()
}

fn expect_guards(name: &str, bits: &[u32], entries: usize) -> Vec<u32> {
    let per_entry = bits.len() / entries;
    let width = per_entry / (ROWS + 2 * GUARD);
    let mut inside = Vec::new();
    for entry in bits.chunks(per_entry) {
        let (before, rest) = entry.split_at(GUARD * width);
        let (middle, behind) = rest.split_at(ROWS * width);
        assert!(before.iter().chain(behind).all(|&b| b == PATTERN), "{name}: guards");
        inside.extend_from_slice(middle);
    }
    inside
}

fn run(device: &Device, form: Form, values: &Values, dtype: DType, op: Attention) -> (Bits, u32) {
    let (batch, entries) = if form == Form::Packed { (2, 1) } else { (2, 2) };
    let real = |n: usize, rows: usize, seed| {
        let shape = [n, rows, HEADS, DIM];
        let values = HostTensor::from_slice(&reals(n * rows * HEADS * DIM, seed), &shape).unwrap();
        Tensor::upload(device, &values, dtype).unwrap()
    };
    let q = real(entries, ROWS, 1);
    let slots_of = if form == Form::Packed { 3 } else { 2 };
    let (k, v) = (real(slots_of, FIRST, 2), real(slots_of, FIRST, 3));
    let (k2, v2) = (real(1, SECOND, 4), real(1, SECOND, 5));
    let (q_offsets, offsets) = (words(device, &values.q_offsets, &[3]), words(device, &values.offsets, &[3]));
    let (lengths, slots) = (words(device, &values.lengths, &[2]), words(device, &values.slots, &[2]));
    let bits: Vec<u32> = (0..batch * 3).map(|i| values.bits[i % 4]).collect();
    let bits = words(device, &bits, &[batch, 3]);
    let phi: Vec<i32> = (0..entries * ROWS).map(|i| values.phi[i % ROWS]).collect();
    let phi = HostTensor::from_slice(&phi, &[entries, ROWS]).unwrap();
    let phi = Tensor::upload(device, &phi, DType::I32).unwrap();
    let shape = [entries, ROWS, HEADS, DIM];
    let (mut out, mut lse) = (guarded(device, &shape), guarded(device, &shape[..3]));
    let mut seen = words(device, &vec![PATTERN; entries * (ROWS + 2 * GUARD)], &[entries, ROWS + 2 * GUARD]);

    let media = Media { media_index: phi.view(), keys_per_media: 24, plan: None };
    let first = Segment::new(k.view(), v.view());
    let packed = form == Form::Packed;
    let args: AttentionArgs<View<'_>, ViewMut<'_>> = AttentionArgs {
        q: q.view(),
        q_offsets: packed.then(|| q_offsets.view()),
        first: match packed {
            true => first.with_keys(Keys::Lengths(lengths.view())).with_slots(slots.view()),
            false => first.with_keys(Keys::Bits(bits.view())),
        },
        second: packed.then(|| Segment::new(k2.view(), v2.view()).with_offsets(offsets.view())),
        visibility: Visibility::SameMedia(media),
        out: out.view_mut().narrow(1, GUARD, ROWS).unwrap(),
        log_sum_exp: Some(lse.view_mut().narrow(1, GUARD, ROWS).unwrap()),
        row_visible: Some(seen.view_mut().narrow(1, GUARD, ROWS).unwrap()),
    };
    let dispatches = enqueue(device, &op, args);
    let float = |t: &Tensor| -> Vec<u32> { read(device, t).iter().map(|x| x.to_bits()).collect() };
    let seen_bits = seen.download(device).unwrap().to_vec::<u32>().unwrap();
    let results = [
        expect_guards("out", &float(&out), entries),
        expect_guards("log_sum_exp", &float(&lse), entries),
        expect_guards("row_visible", &seen_bits, entries),
    ];
    (results, dispatches)
}

/// Runs a call; the number of its dispatches.
fn enqueue(device: &Device, op: &Attention, args: AttentionArgs<View<'_>, ViewMut<'_>>) -> u32 {
    let shapes = Attention::shapes(&args);
    let prepared = op.prepare(device, shapes.unwrap()).unwrap();
    let mut workspace = Workspace::new(device, prepared.workspace_bytes()).unwrap();
    let mut recorder = device.recorder().unwrap();
    prepared.enqueue(&mut recorder, args, &mut workspace).unwrap();
    let dispatches = match &recorder {
        Recorder::Wgpu(inner) => inner.dispatches(),
        _ => 0,
    };
    device.finish(recorder).unwrap();
    dispatches
}

const HOSTILE: [u32; 7] = [0, 1, 39, 71, 0x7fff_ffff, 0x8000_0000, u32::MAX];

/// Any of the hostile numbers anywhere.
fn hostile(seed: usize) -> Values {
    let pick = |i: usize| HOSTILE[(seed * 5 + i * (seed + 3)) % HOSTILE.len()];
    Values {
        q_offsets: [pick(0), pick(1), pick(2)],
        lengths: [pick(3), pick(4)],
        slots: [pick(5), pick(6)],
        bits: [pick(7), pick(8), pick(9), pick(10)],
        offsets: [pick(11), pick(12), pick(13)],
        phi: (0..ROWS).map(|i| if i % 3 == 0 { pick(i) as i32 } else { i as i32 / 9 }).collect(),
    }
}

fn policies() -> EmptyRows {
    EmptyRows { no_media: EmptyRow::Uniform, beyond_media: EmptyRow::AttendAll, masked: EmptyRow::Zero }
}

/// Every word within `bound` of the reference's; NaN and infinities in the same places.
fn expect_close(name: &str, got: &[u32], truth: &[u32], bound: f32) {
    for (i, (&a, &b)) in got.iter().zip(truth).enumerate() {
        let (a, b) = (f32::from_bits(a), f32::from_bits(b));
        assert!(a.to_bits() == b.to_bits() || (a - b).abs() <= bound, "{name} {i}: {a:e}, expected {b:e}");
    }
}

/// With and without index checks compiled in, in WebGPU's default limits; guards hold; results are the reference's.
#[test]
fn hostile_values_reach_nothing_outside() {
    let mut options = WgpuOptions::default();
    options.limits = Some(Limits::default());
    let Some(checked) = device(&options) else { return };
    options.bounds_checks = false;
    let Some(plain) = device(&options) else { return };
    let op = Attention { empty_rows: policies(), ..Attention::for_head_dim(DIM) };
    for form in [Form::Packed, Form::Bits] {
        for seed in 0..30 {
            let values = hostile(seed);
            let (got, _) = run(&plain, form, &values, DType::F32, op);
            assert_eq!(got, run(&checked, form, &values, DType::F32, op).0, "{form:?} {seed}");
            // Problems that overlap among them: the last one that has a row writes it.
            let (truth, _) = run(&Device::reference(), form, &values, DType::F32, op);
            assert_eq!(got[2], truth[2], "{form:?} {seed}");
            // Scores of 16 products of numbers below 1, scaled by 1/4; sums over at most 120 keys: 2 (20 u · 4) + 136 u.
            expect_close(&format!("{form:?} {seed} out"), &got[0], &truth[0], 2e-5);
            expect_close(&format!("{form:?} {seed} lse"), &got[1], &truth[1], 2e-5);
        }
    }
}

#[test]
fn the_same_bits_every_run_and_the_number_of_dispatches() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let op = Attention::for_head_dim(DIM);
    for (form, dispatches) in [(Form::Bits, 2), (Form::Packed, 2 + 5)] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let (first, count) = run(&device, form, &Values::plain(), dtype, op);
            // row_visible, the copies of five index operands where they are packed, and the op itself.
            assert_eq!(count, dispatches, "{form:?}");
            for _ in 0..5 {
                assert_eq!(run(&device, form, &Values::plain(), dtype, op).0, first, "{form:?} {dtype}");
            }
        }
    }
}

/// `batch` problems of 24 rows over 3 media of 70 keys; problem 0 is always the same. `poison` goes to medium 2 of problem 0.
fn media_call(device: &Device, batch: usize, poison: Option<f32>, neighbour: f32, general: bool) -> (Vec<u32>, u32) {
    let (rows, keys, per_medium) = (24, 210, 70);
    let shape = |n: usize| [batch, n, HEADS, DIM];
    let fill = |n: usize, seed: u32| -> Vec<f32> {
        let per = n * HEADS * DIM;
        let mut all = reals(per, seed);
        all.extend(std::iter::repeat_n(neighbour, (batch - 1) * per));
        all
    };
    let upload = |values: &[f32], n: usize| {
        Tensor::upload(device, &HostTensor::from_slice(values, &shape(n)).unwrap(), DType::F32).unwrap()
    };
    let q = upload(&fill(rows, 1), rows);
    let (mut k, mut v) = (fill(keys, 2), fill(keys, 3));
    if let Some(poison) = poison {
        let medium = per_medium * HEADS * DIM..2 * per_medium * HEADS * DIM;
        k[medium.clone()].fill(poison);
        v[medium].fill(poison);
    }
    let (k, v) = (upload(&k, keys), upload(&v, keys));
    // With one rule no row sees medium 2; with the other one the rows of the first run do.
    let phi: Vec<i32> = (0..batch * rows).map(|i| [1, 1, 3, 3, 0][i % rows / 5]).collect();
    let phi = Tensor::upload(device, &HostTensor::from_slice(&phi, &[batch, rows]).unwrap(), DType::I32).unwrap();
    let bits: Vec<u32> = (0..batch * rows).map(|i| [0b001, 0b101, 0b100, 0b100, 0][i % rows / 5]).collect();
    let bits = words(device, &bits, &[batch, rows, 1]);
    let mut out = Tensor::zeros(device, DType::F32, &shape(rows)).unwrap();
    let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
    args.visibility = match general {
        true => Visibility::MediaBits { bits: bits.view(), keys_per_block: per_medium as u32 },
        false => {
            Visibility::SameMedia(Media { media_index: phi.view(), keys_per_media: per_medium as u32, plan: None })
        }
    };
    let dispatches = enqueue(device, &Attention::for_head_dim(DIM), args);
    let all = read(device, &out);
    (all[..rows * HEADS * DIM].iter().map(|x| x.to_bits()).collect(), dispatches)
}

#[test]
fn what_no_row_sees_and_what_neighbours_hold_changes_no_bit() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    for general in [false, true] {
        let (expected, dispatches) = media_call(&device, 1, None, 0.0, general);
        assert_eq!(dispatches, 1);
        assert!(expected.iter().any(|&bits| bits != 0));
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
            assert_eq!(media_call(&device, 1, Some(poison), 0.0, general).0, expected, "{poison}");
        }
        for batch in [2, 5] {
            for neighbour in [0.5, f32::NAN, f32::INFINITY] {
                let got = media_call(&device, batch, None, neighbour, general).0;
                assert_eq!(got, expected, "batch {batch}, {neighbour}");
            }
        }
    }
}

/// Medium 1 is poisoned, and rows of medium 3 in the same tile do not notice.
#[test]
fn nan_in_a_medium_stays_with_the_rows_that_see_it() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let (rows, per_medium) = (20, 10);
    let real = |values: &[f32]| {
        let host = HostTensor::from_slice(values, &[1, values.len() / DIM, 1, DIM]).unwrap();
        Tensor::upload(&device, &host, DType::F32).unwrap()
    };
    let run = |poisoned: bool| {
        let q = real(&reals(rows * DIM, 1));
        let (k, mut v) = (reals(2 * per_medium * DIM, 2), reals(2 * per_medium * DIM, 3));
        if poisoned {
            v[..per_medium * DIM].fill(f32::NAN);
        }
        let (k, v) = (real(&k), real(&v));
        let phi: Vec<i32> = (0..rows as i32).map(|i| 1 + i / 3 % 2).collect();
        let phi = HostTensor::from_slice(&phi, &[1, rows]).unwrap();
        let phi = Tensor::upload(&device, &phi, DType::I32).unwrap();
        let mut out = real(&vec![0.0; rows * DIM]);
        let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
        args.visibility =
            Visibility::SameMedia(Media { media_index: phi.view(), keys_per_media: per_medium as u32, plan: None });
        enqueue(&device, &Attention::for_head_dim(DIM), args);
        read(&device, &out)
    };
    let (clean, poisoned) = (run(false), run(true));
    for (i, (a, b)) in clean.iter().zip(&poisoned).enumerate() {
        let sees = (i / DIM / 3).is_multiple_of(2);
        assert!(if sees { b.is_nan() } else { a.to_bits() == b.to_bits() }, "row {}: {a} {b}", i / DIM);
    }
}

/// Rows without keys get -∞ as their log-sum-exp, and `check` lets calls without rows or heads through.
#[test]
fn nothing_to_see_and_nothing_to_do() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    for (rows, keys, heads) in [(0, 3, 1), (3, 0, 1), (3, 3, 0)] {
        let real = |n: usize| Tensor::zeros(&device, DType::F32, &[1, n, heads, 8]).unwrap();
        let (q, k, v) = (real(rows), real(keys), real(keys));
        let mut out = Tensor::upload(
            &device,
            &HostTensor::from_slice(&vec![7.0f32; rows * heads * 8], &[1, rows, heads, 8]).unwrap(),
            DType::F32,
        )
        .unwrap();
        let mut lse = Tensor::zeros(&device, DType::F32, &[1, rows, heads]).unwrap();
        let mut seen = words(&device, &vec![9; rows], &[1, rows]);
        let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
        args.log_sum_exp = Some(lse.view_mut());
        args.row_visible = Some(seen.view_mut());
        enqueue(&device, &Attention::for_head_dim(8), args);
        assert_eq!(read(&device, &out), vec![0.0; rows * heads * 8]);
        assert_eq!(read(&device, &lse), vec![f32::NEG_INFINITY; rows * heads]);
        let expected = vec![u32::from(keys > 0); rows];
        assert_eq!(seen.download(&device).unwrap().to_vec::<u32>().unwrap(), expected);
    }
}
