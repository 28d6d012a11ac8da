//! `attention` on index values of any size, and what must hold then: guards around results stay,
//! and rows are those of the reference.

#![allow(dead_code, reason = "each test uses a part")]

pub mod media_index;
pub mod plans;

use xattn::ops::{Attention, AttentionArgs, EmptyRow, EmptyRows, Keys, Media, Segment, Visibility};
use xattn::{DType, Device, Dispatch, HostTensor, Recorder, Shapes, Tensor, View, ViewMut, Workspace, bit_words};

/// Rows before and behind each output.
const GUARD: usize = 2;
/// Outputs' initial and guard value: 12288 in every dtype, beyond any result for inputs below 1.
pub const PATTERN: u32 = 0x4640_0000;

/// Uniform in -1..1, by a small congruential generator.
pub fn reals(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Index values of a call.
#[derive(Clone)]
pub struct Values {
    pub q_offsets: [u32; 3],
    pub lengths: [u32; 2],
    pub slots: [u32; 2],
    pub bits: [u32; 4],
    pub offsets: [u32; 3],
    pub causal: [u32; 2],
    pub phi: Vec<i32>,
    /// The plan of each problem (of ragged ones: the first), if there is any.
    pub plan: Option<[Vec<u32>; 2]>,
}

pub const ROWS: usize = 40;
const FIRST: usize = 70;
const SECOND: usize = 130;
/// Query heads, no power of two, of one K/V head.
pub const HEADS: usize = 3;
pub const DIM: usize = 16;
const PER_MEDIA: u32 = 24;

/// Which index operands a call has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// The medium's keys. Ragged queries and second segment, lengths and slots of the first one: 13
    /// buffers, so wgpu packs index operands.
    Packed,
    /// The medium's keys. Bits of the only segment.
    Bits,
    /// Keys of media up to the row's. From here on: lengths and slots of segment 1, bits of 2.
    Preceding,
    /// Keys up to the row's position.
    Causal,
    /// Those whose bit is set for the row.
    MediaBits,
    /// All. Lengths of the second segment, too.
    All,
}

impl Form {
    pub const EACH: [Form; 6] = [Form::Packed, Form::Bits, Form::Preceding, Form::Causal, Form::MediaBits, Form::All];
}

const HOSTILE: [u32; 7] = [0, 1, 39, 71, 0x7fff_ffff, 0x8000_0000, u32::MAX];

impl Values {
    pub fn plain() -> Self {
        Values {
            q_offsets: [1, 20, 38],
            lengths: [60, 70],
            slots: [2, 0],
            bits: [0xffff_0fff, 0x1234_5678, 0xffff_ffff, 0],
            offsets: [0, 20, 49],
            causal: [30, 3],
            phi: (0..ROWS as i32).map(|i| i / 7).collect(),
            plan: None,
        }
    }

    /// Any of the hostile numbers anywhere.
    pub fn hostile(seed: u32) -> Self {
        let mut state = seed;
        let mut pick = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            HOSTILE[(state >> 16) as usize % HOSTILE.len()]
        };
        Values {
            q_offsets: [pick(), pick(), pick()],
            lengths: [pick(), pick()],
            slots: [pick(), pick()],
            bits: [pick(), pick(), pick(), pick()],
            offsets: [pick(), pick(), pick()],
            causal: [pick(), pick()],
            phi: (0..ROWS).map(|i| if i % 3 == 0 { pick() as i32 } else { i as i32 / 9 }).collect(),
            plan: None,
        }
    }

    /// Values whose offsets leave queries to one problem alone.
    fn alone(&self, problem: usize) -> Self {
        let [from, between, to] = self.q_offsets;
        let q_offsets = if problem == 0 { [from, between, between] } else { [between, between, to] };
        Values { q_offsets, ..self.clone() }
    }
}

/// The policies of rows that see nothing: three different ones.
pub fn op() -> Attention {
    let empty_rows =
        EmptyRows { no_media: EmptyRow::Uniform, beyond_media: EmptyRow::AttendAll, masked: EmptyRow::Zero };
    Attention { empty_rows, ..Attention::for_head_dim(DIM) }
}

/// Result, log-sum-exp and row_visible, as words; reals as f32.
pub type Bits = [Vec<u32>; 3];

pub fn words(device: &Device, values: &[u32], shape: &[usize]) -> Tensor {
    Tensor::upload(device, &HostTensor::from_slice(values, shape).unwrap(), DType::U32).unwrap()
}

/// A tensor that holds the pattern, also before and behind its middle.
fn guarded(device: &Device, shape: &[usize], dtype: DType) -> Tensor {
    let mut wide = shape.to_vec();
    wide[1] += 2 * GUARD;
    let values = vec![f32::from_bits(PATTERN); wide.iter().product()];
    Tensor::upload(device, &HostTensor::from_slice(&values, &wide).unwrap(), dtype).unwrap()
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

/// Runs the call with results in the operands' dtype; also its number of wgpu dispatches.
pub fn run(device: &Device, form: Form, values: &Values, dtype: DType, op: Attention) -> (Bits, u32) {
    let packed = form == Form::Packed;
    let (batch, entries) = (2, if packed { 1 } else { 2 });
    let real = |n: usize, rows: usize, heads: usize, seed| {
        let shape = [n, rows, heads, DIM];
        let values = HostTensor::from_slice(&reals(n * rows * heads * DIM, seed), &shape).unwrap();
        Tensor::upload(device, &values, dtype).unwrap()
    };
    let bits = |rows: usize| {
        let of_row = bit_words(rows);
        let words: Vec<u32> = (0..batch * of_row).map(|i| values.bits[i % 4]).collect();
        self::words(device, &words, &[batch, of_row])
    };
    let q = real(entries, ROWS, HEADS, 1);
    let cached = if form == Form::Bits { 2 } else { 3 };
    let (k, v) = (real(cached, FIRST, 1, 2), real(cached, FIRST, 1, 3));
    let (k2, v2) = (real(entries, SECOND, 1, 4), real(entries, SECOND, 1, 5));
    let (q_offsets, offsets) = (words(device, &values.q_offsets, &[3]), words(device, &values.offsets, &[3]));
    let (lengths, slots) = (words(device, &values.lengths, &[2]), words(device, &values.slots, &[2]));
    let (first_bits, second_bits, causal) = (bits(FIRST), bits(SECOND), words(device, &values.causal, &[2]));
    let phi: Vec<i32> = (0..entries * ROWS).map(|i| values.phi[i % ROWS]).collect();
    let phi = HostTensor::from_slice(&phi, &[entries, ROWS]).unwrap();
    let phi = Tensor::upload(device, &phi, DType::I32).unwrap();
    let media_bits: Vec<u32> = (0..entries * ROWS).map(|i| values.phi[i % ROWS] as u32).collect();
    let media_bits = words(device, &media_bits, &[entries, ROWS, 1]);
    let plan = values.plan.as_ref().map(|plan| words(device, &plan[..entries].concat(), &[entries, 1 + ROWS, 2]));
    let shape = [entries, ROWS, HEADS, DIM];
    let (mut out, mut lse) = (guarded(device, &shape, dtype), guarded(device, &shape[..3], DType::F32));
    let mut seen = words(device, &vec![PATTERN; entries * (ROWS + 2 * GUARD)], &[entries, ROWS + 2 * GUARD]);

    let media = Media { media_index: phi.view(), keys_per_media: PER_MEDIA, plan: plan.as_ref().map(Tensor::view) };
    let first = Segment::new(k.view(), v.view());
    let second = Segment::new(k2.view(), v2.view());
    let args: AttentionArgs<View<'_>, ViewMut<'_>> = AttentionArgs {
        q: q.view(),
        q_offsets: packed.then(|| q_offsets.view()),
        first: match form {
            Form::Bits => first.with_keys(Keys::Bits(first_bits.view())),
            _ => first.with_keys(Keys::Lengths(lengths.view())).with_slots(slots.view()),
        },
        second: match form {
            Form::Packed => Some(second.with_offsets(offsets.view())),
            Form::Bits => None,
            Form::All => Some(second.with_keys(Keys::Lengths(lengths.view()))),
            _ => Some(second.with_keys(Keys::Bits(second_bits.view()))),
        },
        visibility: match form {
            Form::Packed | Form::Bits => Visibility::SameMedia(media),
            Form::Preceding => Visibility::PrecedingMedia(media),
            Form::Causal => Visibility::PrefixCausal { prefix: 10, offset: Some(causal.view()) },
            Form::MediaBits => Visibility::MediaBits { bits: media_bits.view(), keys_per_block: PER_MEDIA },
            Form::All => Visibility::All,
        },
        out: out.view_mut().narrow(1, GUARD, ROWS).unwrap(),
        log_sum_exp: Some(lse.view_mut().narrow(1, GUARD, ROWS).unwrap()),
        row_visible: Some(seen.view_mut().narrow(1, GUARD, ROWS).unwrap()),
    };
    let dispatches = enqueue(device, &op, args);
    let float = |t: &Tensor| -> Vec<u32> {
        t.download(device).unwrap().to_f32().unwrap().iter().map(|x| x.to_bits()).collect()
    };
    let seen_bits = seen.download(device).unwrap().to_vec::<u32>().unwrap();
    let results = [
        expect_guards("out", &float(&out), entries),
        expect_guards("log_sum_exp", &float(&lse), entries),
        expect_guards("row_visible", &seen_bits, entries),
    ];
    (results, dispatches)
}

/// Runs a call; the number of its dispatches on wgpu.
pub fn enqueue(device: &Device, op: &Attention, args: AttentionArgs<View<'_>, ViewMut<'_>>) -> u32 {
    let shapes = Attention::shapes(&args);
    let prepared = op.prepare(device, shapes.unwrap()).unwrap();
    let mut workspace = Workspace::new(device, prepared.workspace_bytes()).unwrap();
    let mut recorder = device.recorder().unwrap();
    prepared.enqueue(&mut recorder, args, &mut workspace).unwrap();
    let dispatches = match &recorder {
        #[cfg(feature = "wgpu")]
        Recorder::Wgpu(inner) => inner.dispatches(),
        _ => 0,
    };
    device.finish(recorder).unwrap();
    dispatches
}

/// What f32 and the results' dtype allow: scores of 16 products of numbers below 1, scaled by 1/4;
/// sums over at most 200 keys: 2 (20 u · 4) + 216 u. With 16 bits, weights and results are rounded,
/// the reference's too: four times half the distance of neighbouring numbers.
fn bound(dtype: DType) -> f32 {
    2.3e-5 + if dtype == DType::F32 { 0.0 } else { 2.0 * dtype.epsilon() as f32 }
}

fn close(a: u32, b: u32, bound: f32) -> bool {
    a == b || (f32::from_bits(a) - f32::from_bits(b)).abs() <= bound
}

/// Within rounding of the reference, with equal infinities and `row_visible`.
pub fn expect_close(name: &str, got: &Bits, truth: &Bits, dtype: DType) {
    let bounds = [bound(dtype), bound(DType::F32), 0.0];
    for (what, (got, (truth, bound))) in NAMES.iter().zip(got.iter().zip(truth.iter().zip(bounds))) {
        for (i, (&a, &b)) in got.iter().zip(truth).enumerate() {
            let (x, y) = (f32::from_bits(a), f32::from_bits(b));
            assert!(close(a, b, bound), "{name}: {what} {i}: {x:e} ({a:#x}), expected {y:e} ({b:#x})");
        }
    }
}

const NAMES: [&str; 3] = ["out", "log_sum_exp", "row_visible"];

/// The results of ragged problems that may overlap, where the contract leaves open which of them a
/// common row gets: rows of one problem are that one's, rows of none are as they were.
pub fn expect_one_of_each(name: &str, got: &Bits, values: &Values, dtype: DType, op: Attention) {
    let reference = Device::reference();
    let alone = [0, 1].map(|problem| run(&reference, Form::Packed, &values.alone(problem), dtype, op).0);
    let bounds = [bound(dtype), bound(DType::F32), 0.0];
    for (which, what) in NAMES.iter().enumerate() {
        for (i, &word) in got[which].iter().enumerate() {
            let results = alone.each_ref().map(|bits| bits[which][i]);
            let written = results.map(|result| result != PATTERN);
            let allowed = match written {
                [true, true] => vec![results[0], results[1], PATTERN],
                [true, false] => vec![results[0]],
                _ => vec![results[1]],
            };
            let fits = allowed.iter().any(|&result| close(word, result, bounds[which]));
            assert!(fits, "{name}: {what} {i}: {word:#x}, expected one of {allowed:x?}");
        }
    }
}
