//! `attention` on the CPU.

use xattn::ops::{Attention, AttentionArgs, EmptyRow, EmptyRows, Keys, Media, Segment, Visibility};
use xattn::{DType, Device, Dispatch, Shapes, View, ViewMut, Workspace, bit_words};

use crate::support::{Buffer, FLOATS, Random, attention_bounds, call, devices, distance, every, largest, seeds};

const LATTICE: [usize; 11] = [0, 1, 2, 3, 63, 64, 65, 127, 128, 129, 257];
const HEAD_DIMS: [usize; 12] = [1, 4, 7, 8, 16, 17, 24, 40, 64, 65, 96, 128];
const HEADS: [(usize, usize); 7] = [(1, 1), (2, 1), (4, 2), (8, 2), (3, 3), (6, 2), (70, 1)];
const POLICIES: [EmptyRow; 3] = [EmptyRow::Zero, EmptyRow::Uniform, EmptyRow::AttendAll];

#[derive(Clone)]
struct Side {
    k: Buffer,
    v: Buffer,
    lengths: Option<Buffer>,
    bits: Option<Buffer>,
    offsets: Option<Buffer>,
    slots: Option<Buffer>,
}

#[derive(Clone)]
struct Case {
    op: Attention,
    q: Buffer,
    q_offsets: Option<Buffer>,
    first: Side,
    second: Option<Side>,
    rule: usize,
    per_row: Option<Buffer>,
    per_block: u32,
    prefix: u32,
    offset: Option<Buffer>,
    out: Buffer,
    log_sum_exp: Buffer,
    row_visible: Buffer,
}

fn offsets(random: &mut Random, batch: usize, total: usize) -> Buffer {
    let mut cuts: Vec<usize> = (0..=batch).map(|_| random.below(total + 2)).collect();
    if random.chance(90) {
        cuts.sort_unstable();
    }
    let mut cuts = cuts.into_iter();
    Buffer::filled(DType::U32, &[batch + 1], 0, || cuts.next().unwrap() as f64)
}

fn side(random: &mut Random, batch: usize, keys: usize, kv_heads: usize, d: usize) -> Side {
    let (ragged, slotted) = (random.chance(20), random.chance(20));
    let entries = if ragged {
        1
    } else if slotted {
        1 + random.below(3)
    } else {
        batch
    };
    let shape = [entries, keys, kv_heads, d];
    let (dtype, gap) = (random.pick(&FLOATS), random.below(3));
    let k = Buffer::filled(dtype, &shape, gap, || random.real());
    let (dtype, gap) = (random.pick(&FLOATS), random.below(3));
    let v = Buffer::filled(dtype, &shape, gap, || random.real());
    let kind = random.below(3);
    Side {
        k,
        v,
        lengths: (kind == 1).then(|| Buffer::filled(DType::U32, &[batch], 0, || random.below(keys + 3) as f64)),
        bits: (kind == 2 && !ragged).then(|| {
            let dense = random.chance(50);
            let words = [batch, bit_words(keys)];
            Buffer::filled(DType::U32, &words, 1, || {
                (random.bits() as u32 | if dense { random.bits() as u32 | random.bits() as u32 } else { 0 }) as f64
            })
        }),
        offsets: ragged.then(|| offsets(random, batch, keys)),
        slots: (!ragged && slotted).then(|| Buffer::filled(DType::U32, &[batch], 0, || random.below(5) as f64)),
    }
}

fn case(seed: u64) -> Case {
    let random = &mut Random(seed);
    let (heads, kv_heads) = random.pick(&HEADS);
    let d = random.pick(&HEAD_DIMS);
    let batch = 1 + random.below(3);
    let length = |random: &mut Random| if random.chance(30) { random.pick(&LATTICE) } else { random.below(20) };
    let (rows, first_keys) = (length(random).min(if heads > 8 { 5 } else { 129 }), length(random));
    let second = random.chance(40).then(|| length(random));
    let ragged = random.chance(20);
    let rows_shape = [if ragged { 1 } else { batch }, rows];
    let rule = random.below(5);
    let per_block = random.pick(&[1u32, 3, 5, 16, 64, 65]);
    let blocks = (first_keys + second.unwrap_or(0)).div_ceil(per_block as usize);
    let per_row = match rule {
        1 | 2 => {
            let stays = random.below(100);
            let mut phi = 0.0;
            Some(Buffer::filled(DType::I32, &rows_shape, random.below(3), || {
                if !random.chance(stays) {
                    phi = random.below(blocks + 4) as f64 - 1.0;
                }
                phi
            }))
        }
        4 => {
            let words = 1 + random.below(bit_words(blocks) + 1);
            let shape = [rows_shape[0], rows, words];
            Some(Buffer::filled(DType::U32, &shape, random.below(2), || {
                f64::from(random.bits() as u32 & random.bits() as u32)
            }))
        }
        _ => None,
    };
    let shape = [rows_shape[0], rows, heads, d];
    let policies = EmptyRows {
        no_media: random.pick(&POLICIES),
        beyond_media: random.pick(&POLICIES),
        masked: random.pick(&POLICIES),
    };
    let (q_type, out_type) = (random.pick(&FLOATS), random.pick(&FLOATS));
    Case {
        op: Attention { empty_rows: policies, ..Attention::for_head_dim(d) },
        q: Buffer::filled(q_type, &shape, random.below(3), || random.real()),
        q_offsets: ragged.then(|| offsets(random, batch, rows)),
        first: side(random, batch, first_keys, kv_heads, d),
        second: second.map(|keys| side(random, batch, keys, kv_heads, d)),
        rule,
        per_row,
        per_block,
        prefix: random.below(70) as u32,
        offset: (random.below(4) > 0).then(|| {
            Buffer::filled(DType::U32, &[batch], random.below(2), || match random.below(12) {
                0 => f64::from(u32::MAX),
                _ => random.below(70) as f64,
            })
        }),
        out: Buffer::filled(out_type, &shape, 1 + random.below(3), || 0.5),
        log_sum_exp: Buffer::filled(DType::F32, &shape[..3], 2, || 0.5),
        row_visible: Buffer::filled(DType::U32, &rows_shape, 1, || 7.0),
    }
}

fn segment(side: &Side) -> Segment<View<'_>> {
    fn view(b: &Option<Buffer>) -> Option<View<'_>> {
        b.as_ref().map(Buffer::view)
    }
    let keys = match (view(&side.lengths), view(&side.bits)) {
        (Some(lengths), _) => Keys::Lengths(lengths),
        (None, Some(bits)) => Keys::Bits(bits),
        (None, None) => Keys::All,
    };
    Segment { k: side.k.view(), v: side.v.view(), keys, offsets: view(&side.offsets), slots: view(&side.slots) }
}

impl Case {
    fn args(&mut self) -> (Attention, AttentionArgs<View<'_>, ViewMut<'_>>) {
        let visibility = match (self.rule, &self.per_row) {
            (1, Some(phi)) => {
                Visibility::SameMedia(Media { media_index: phi.view(), keys_per_media: self.per_block, plan: None })
            }
            (2, Some(phi)) => Visibility::PrecedingMedia(Media {
                media_index: phi.view(),
                keys_per_media: self.per_block,
                plan: None,
            }),
            (3, _) => Visibility::PrefixCausal { prefix: self.prefix, offset: self.offset.as_ref().map(Buffer::view) },
            (4, Some(bits)) => Visibility::MediaBits { bits: bits.view(), keys_per_block: self.per_block },
            _ => Visibility::All,
        };
        let args = AttentionArgs {
            q: self.q.view(),
            q_offsets: self.q_offsets.as_ref().map(Buffer::view),
            first: segment(&self.first),
            second: self.second.as_ref().map(segment),
            visibility,
            out: self.out.view_mut(),
            log_sum_exp: Some(self.log_sum_exp.view_mut()),
            row_visible: Some(self.row_visible.view_mut()),
        };
        (self.op, args)
    }

    fn run(&self, device: &Device) -> Case {
        let mut copy = self.clone();
        let (op, args) = copy.args();
        call(&op, device, args).unwrap();
        copy
    }

    fn same_bits(&self, other: &Case) -> bool {
        self.out.same_bits(&other.out)
            && self.log_sum_exp.same_bits(&other.log_sum_exp)
            && self.row_visible.same_bits(&other.row_visible)
    }

    /// What rounding allows.
    fn bounds(&self) -> (f64, f64) {
        let keys = self.first.k.spec.dim(1) + self.second.as_ref().map_or(0, |s| s.k.spec.dim(1));
        let (out, lse) = attention_bounds(self.q.spec.dim(3), keys, self.op.scale);
        (out + self.out.spec.dtype().epsilon(), lse)
    }
}

#[test]
fn random_configurations_match_the_reference() {
    let (devices, reference) = (devices(), Device::reference());
    let (mut yard_checked, mut emptied) = (0, 0);
    for seed in seeds(0..600) {
        let case = case(seed);
        let truth = case.run(&reference);
        let (out, lse) = case.bounds();
        let large = case.out.spec.elements() >= 4096;
        let yard = || (0..4).map(|p| distance(&case.run(&Device::yardstick(p)).out, &truth.out)).fold(0.0, f64::max);
        let yard = large.then(yard);
        for device in &devices {
            let got = case.run(device);
            let set = device.info().details;
            let [q, k, o] = [&case.q, &case.first.k, &case.out].map(|operand| operand.spec);
            let at = format!("case({seed}) on {set}: rule {} q {q} k {k} out {o}", case.rule);
            assert!(got.out.gaps_hold() && got.log_sum_exp.gaps_hold() && got.row_visible.gaps_hold(), "{at}: gaps");
            assert!(got.row_visible.same_bits(&truth.row_visible), "{at}: row_visible");
            let error = distance(&got.out, &truth.out);
            assert!(error <= out, "{at}: out off by {error:e}, {out:e} allowed");
            let beyond = distance(&got.log_sum_exp, &truth.log_sum_exp);
            assert!(beyond <= lse, "{at}: log_sum_exp off by {beyond:e}, {lse:e} allowed");
            if let Some(yard) = yard {
                let ulp = case.out.spec.dtype().epsilon() * largest(&truth.out);
                assert!(error <= 2.0 * yard + 2.0 * ulp, "{at}: out off by {error:e}, yardstick {yard:e}");
            }
        }
        emptied += usize::from(truth.row_visible.values().contains(&0.0));
        yard_checked += usize::from(large);
    }
    assert!(yard_checked > 50 / every() && emptied > 100 / every(), "{yard_checked} {emptied}");
}

#[test]
fn threads_do_not_change_a_bit() {
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    let (one, two, five) = (pool(1), pool(2), pool(5));
    let devices = devices();
    let check = |case: &Case, name: &str| {
        for device in &devices {
            let [a, b, c] = [&one, &two, &five].map(|pool| pool.install(|| case.run(device)));
            assert!(a.same_bits(&b) && a.same_bits(&c), "{name} on {}", device.info().details);
        }
    };
    for seed in seeds(1000..1100) {
        check(&case(seed), &format!("case({seed})"));
    }
    // Rows 31 to 39 see one medium. Where tiles are of 16 rows, row 31 is alone in its own; where
    // they are of 64, it is not.
    for first in [31, 15, 47] {
        check(&run_of_media(first), &format!("a run from row {first}"));
    }
}

/// 70 rows, one head, 3 media of 70 keys; nine rows from row `first` on see the second one.
fn run_of_media(first: usize) -> Case {
    let random = &mut Random(first as u64);
    let mut case = media_case(None, 1);
    let mut fill = |shape: &[usize]| Buffer::filled(DType::F32, shape, 0, || random.real());
    let (q, k, v) = (fill(&[1, 70, 1, 64]), fill(&[1, 210, 1, 64]), fill(&[1, 210, 1, 64]));
    case.q = q;
    case.first = Side { k, v, lengths: None, bits: None, offsets: None, slots: None };
    case.per_block = 70;
    let mut row = 0;
    case.per_row = Some(Buffer::filled(DType::I32, &[1, 70], 0, || {
        row += 1;
        match row {
            _ if row <= first => 1.0,
            _ if row <= first + 9 => 2.0,
            _ => 3.0,
        }
    }));
    case.out = Buffer::filled(DType::F32, &[1, 70, 1, 64], 0, || 0.5);
    case.log_sum_exp = Buffer::filled(DType::F32, &[1, 70, 1], 0, || 0.5);
    case.row_visible = Buffer::filled(DType::U32, &[1, 70], 0, || 7.0);
    case
}

/// φ over 5 media of 64 keys; medium 3 is never seen.
fn media_case(poison: Option<f64>, batch: usize) -> Case {
    let random = &mut Random(7);
    let mut case = case(0);
    let d = 64;
    let mut fill = |shape: &[usize]| {
        let mut one = Random(11);
        let per = shape[1..].iter().product::<usize>().max(1);
        let values: Vec<f64> = (0..per).map(|_| one.real()).collect();
        let mut i = 0;
        Buffer::filled(DType::F32, shape, 0, || {
            i += 1;
            // Problem 0 is always the same; the others differ.
            if i <= per { values[i - 1] } else { random.real() }
        })
    };
    case.op = Attention::for_head_dim(d);
    case.q = fill(&[batch, 40, 8, d]);
    case.q_offsets = None;
    let (mut k, mut v) = (fill(&[batch, 320, 2, d]), fill(&[batch, 320, 2, d]));
    if let Some(poison) = poison {
        for b in 0..batch {
            for i in 128 * 2 * d..192 * 2 * d {
                k.set(b * 320 * 2 * d + i, poison);
                v.set(b * 320 * 2 * d + i, poison);
            }
        }
    }
    case.first = Side { k, v, lengths: None, bits: None, offsets: None, slots: None };
    case.second = None;
    case.rule = 1;
    case.per_block = 64;
    let mut i = 0;
    case.per_row = Some(Buffer::filled(DType::I32, &[batch, 40], 0, || {
        i += 1;
        [0.0, 1.0, 1.0, 2.0, 4.0, 4.0, 5.0, 1.0][(i - 1) % 40 / 5]
    }));
    case.out = Buffer::filled(DType::F32, &[batch, 40, 8, d], 0, || 0.5);
    case.log_sum_exp = Buffer::filled(DType::F32, &[batch, 40, 8], 0, || 0.5);
    case.row_visible = Buffer::filled(DType::U32, &[batch, 40], 0, || 7.0);
    case
}

#[test]
fn unseen_media_never_reach_the_output() {
    for cpu in devices() {
        let clean = media_case(None, 2).run(&cpu);
        for poison in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(clean.same_bits(&media_case(Some(poison), 2).run(&cpu)), "{poison} on {}", cpu.info().details);
        }
    }
}

#[test]
fn masked_keys_never_reach_the_output() {
    let devices = devices();
    for seed in seeds(2000..2200) {
        let mut clean = case(seed);
        clean.op.empty_rows = EmptyRows::all(EmptyRow::Zero);
        let Some(lengths) =
            clean.first.lengths.clone().filter(|_| clean.first.offsets.is_none() && clean.first.slots.is_none())
        else {
            continue;
        };
        let mut poisoned = clean.clone();
        for (b, length) in lengths.values().into_iter().enumerate() {
            for side in [&mut poisoned.first.k, &mut poisoned.first.v] {
                let (spec, keys) = (side.spec, side.spec.dim(1));
                for j in (length as usize).min(keys)..keys {
                    for g in 0..spec.dim(2) {
                        for c in 0..spec.dim(3) {
                            side.set(b * spec.stride(0) + j * spec.stride(1) + g * spec.stride(2) + c, f64::NAN);
                        }
                    }
                }
            }
        }
        for cpu in &devices {
            assert!(clean.run(cpu).same_bits(&poisoned.run(cpu)), "case({seed}) on {}", cpu.info().details);
        }
    }
}

#[test]
fn neighbours_and_their_number_do_not_change_a_bit() {
    for cpu in devices() {
        let alone = media_case(None, 1).run(&cpu);
        for batch in [2, 7] {
            let many = media_case(None, batch).run(&cpu);
            let (a, b) = (alone.out.values(), many.out.values());
            let same = a.iter().zip(&b).all(|(x, y)| x.to_bits() == y.to_bits());
            assert!(same, "batch {batch} on {}", cpu.info().details);
        }
    }
}

#[test]
fn enqueue_works_in_another_pool_than_prepare() {
    let cpu = Device::cpu();
    let mut case = media_case(None, 3);
    let expected = case.run(&cpu);
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    let (op, args) = case.args();
    let specs = Attention::shapes(&args).unwrap();
    let prepared = pool(1).install(|| op.prepare(&cpu, specs)).unwrap();
    let mut workspace = Workspace::new(&cpu, prepared.workspace_bytes()).unwrap();
    pool(4).install(|| prepared.enqueue(&mut cpu.recorder().unwrap(), args, &mut workspace)).unwrap();
    assert!(case.same_bits(&expected));
}
